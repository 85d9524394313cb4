"""From light to dye: the logarithm of each level, and the light of the empty slide.

The optical density of a pixel is the logarithm of the background's light over its own
(Beer-Lambert). What this module refuses to know: cells, places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of each level of a byte. Below 4 a camera's noise is as large as the light.
LOGARITHM = np.log(np.maximum(np.arange(256, dtype=np.float32), 4))
BRIGHT = 0.92  # share of the pixels that are no brighter than the empty slide
EMPTY = 230.0  # what `match_light` brings the empty slide to; above it is room for noise
# Of a picture whose empty slide is darker than this, or that shows none, only so much is made
# brighter: three times the light is three times the noise.
DARKEST = EMPTY / 3


def measure_background(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The light of the empty slide: the 92nd percentile of each colour, 1 at least.

    Args:
        pixels: (N, C), N ≥ 1.

    Returns:
        (C,), in [1, 255], to the last bit as `numpy.percentile` gives it. That sorts, and takes
        several times as long as counting.
    """
    return np.array([max(1.0, _find_quantile(level)) for level in pixels.T])


def match_light(picture: NDArray[np.uint8], background: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The picture under another lamp, which shows the empty slide as a grey of `EMPTY`.

    Each colour is multiplied by one number, so the optical density of a dye stays what it was
    (Beer-Lambert): lamps and cameras differ between laboratories, the cells don't.

    Args:
        picture: RGB uint8, (H, W, 3).
        background: (3,), in levels from 1 to 255, from `measure_background`.

    Returns:
        (H, W, 3), rounded; what would be brighter than 255 is 255.
    """
    gain = EMPTY / np.maximum(background, DARKEST)
    levels = np.arange(256)[:, None] * gain
    table = np.minimum(levels + 0.5, 255).astype(np.uint8)
    return table[picture, np.arange(3)]


def _find_quantile(levels: NDArray[np.uint8]) -> float:
    no_brighter = np.cumsum(np.bincount(levels, minlength=256))
    place = BRIGHT * (len(levels) - 1)
    first = int(place)
    places = first, min(first + 1, len(levels) - 1)
    low, high = np.searchsorted(no_brighter, places, side="right")
    between = place - first
    # From the nearer end, as NumPy does.
    if between < 0.5:
        return float(low + (high - low) * between)
    return float(high - (high - low) * (1 - between))
