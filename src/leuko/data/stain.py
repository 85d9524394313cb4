"""Sees the stain in a field: which pixels are nuclei, and which belong to any cell at all.

After division by the empty background a nucleus takes red and green light but leaves the blue, a
red cell takes the blue. Where a stain or a camera has made nuclei red, they are known by being far
darker than red cells. What this module refuses to know: where a leukocyte ends, how large anything
is in µm, classes, files.

    field → thumbnail → optical density → stain response → nuclei
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.density import LOGARITHM, measure_background
from leuko.data.image import resize_image
from leuko.errors import ShapeError

THUMBNAIL = 160  # px, the long side at which everything is looked for in fields up to 94 µm
SMALLEST = 10.0  # µm², of a nucleus; platelets lie below 15, whole nuclei above 30
FAINT = 0.4  # share of what is dark; if less has a nucleus's colour, colour fails
DARKER = 1.8  # times a red cell's density, by which a nucleus is known where its colour fails

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)

Field = NDArray[np.uint8]
Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A field, made small and turned into optical density; all arrays are (h, w)."""

    density: FloatArray  # of green light; 0 is background, every cell is positive
    stain: FloatArray  # high in nuclei, low in cytoplasm, about 0 or below in red cells
    body: FloatArray  # as stain, with less red light: eosinophil granules are positive too
    valid: Mask  # False in black corners, where nothing was photographed
    shrink: float  # px of the thumbnail per px of the field


def check_field(field: Field) -> None:
    """Refuses what is no picture.

    Raises:
        ShapeError: Says what was found.
    """
    if field.ndim != 3 or field.shape[2] != 3 or field.dtype != np.uint8 or 0 in field.shape:
        raise ShapeError(
            f"Found an array {field.shape} of {field.dtype}; a field is (H, W, 3) uint8. "
            "Read it with leuko.data.image.read_image."
        )


def make_view(field: Field, side: int = THUMBNAIL) -> View:
    """A field as it is looked at: small, and as optical density.

    Args:
        field: RGB uint8, (H, W, 3).
        side: Its long side, in px; a smaller field stays as large as it is.

    Raises:
        ShapeError: The field is no picture.
    """
    check_field(field)
    height, width = field.shape[:2]
    shrink = min(1.0, side / max(height, width))
    small = resize_image(field, max(1, round(height * shrink)), max(1, round(width * shrink)))
    planes = [np.asarray(plane, np.uint8) for plane in cv2.split(small)]  # whole ones are faster
    valid = np.maximum(np.maximum(planes[0], planes[1]), planes[2]) > 40
    if not valid.all():  # the rim of a black corner is a mixture, not a colour
        valid = cv2.erode(valid.view(np.uint8), _CROSS) > 0  # beyond the edge counts as valid
    seen = small[valid] if valid.any() else small.reshape(-1, 3)
    background = measure_background(seen[::3]).astype(np.float32)
    red, green, blue = (
        level - np.asarray(cv2.LUT(plane, LOGARITHM), np.float32)
        for level, plane in zip(np.log(background), planes, strict=True)
    )
    stain = (red + green - 2 * blue) * valid
    body = (0.5 * red + green - 1.5 * blue) * valid
    coloured = int((stain > find_nuclear_threshold(stain)).sum())
    if coloured < 0.04 * seen.shape[0]:  # else there is a nucleus; looking further costs time
        dark = _find_dark(green[valid])
        if dark and coloured < FAINT * ((green > dark) & valid).sum():
            # 0.3 is the least threshold of nuclei. Cytoplasm isn't told from red cells.
            stain = 0.3 * green / dark * valid
            body = stain - 0.2
    return View(green, stain, body, valid, shrink)


def _find_dark(density: FloatArray) -> float:
    """The density above which nuclei are, by being darker than red cells; 0: none are.

    Args:
        density: (n,), of green light.
    """
    if not density.size:
        return 0.0
    cells = density[density > find_cell_threshold(density)]
    if not cells.size:
        return 0.0
    between = _otsu(cells)
    darker, others = cells[cells > between], cells[cells <= between]
    return between if darker.size and darker.mean() > DARKER * others.mean() else 0.0


def _otsu(values: FloatArray) -> float:
    """Otsu's threshold: the cut that leaves the least variance within both sides.

    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    step = (high - low) / 256
    bins = ((values.ravel() - low) / step).astype(np.intp)
    counts = np.bincount(np.minimum(bins, 255), minlength=256).astype(float)
    middles = low + step * (np.arange(256) + 0.5)
    below = np.cumsum(counts)
    moment = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
    return float(middles[np.nanargmax(between[:-1])])


def find_nuclear_threshold(stain: FloatArray) -> float:
    """Stain response above which a pixel belongs to a nucleus."""
    return max(0.3, _otsu(stain))


def find_cell_threshold(density: FloatArray) -> float:
    """Density of green light above which a pixel belongs to a cell, red or white."""
    return min(max(0.06, _otsu(density)), 0.25)


def find_nuclei(stain: FloatArray, valid: Mask, unit: float) -> NDArray[np.int_]:
    """Numbers the nuclei; the lobes of one nucleus share a number.

    Args:
        stain: (h, w), of a view, smoothed.
        valid: (h, w), of it.
        unit: px of the thumbnail per µm.

    Returns:
        (h, w): 1… in nuclei, 0 elsewhere.
    """
    mask = (stain > find_nuclear_threshold(stain)) & valid
    joined, count = label_parts(dilate(mask, 0.8 * unit))
    areas = np.bincount(joined[mask], minlength=count + 1) / unit**2
    keep = areas >= SMALLEST
    keep[0] = False
    nuclei = np.zeros(mask.shape, dtype=np.int_)
    for label in np.flatnonzero(keep):
        nucleus = mask & (joined == label)
        for part in _split_touching(nucleus, unit) if areas[label] >= 120 else [nucleus]:
            nuclei[part] = nuclei.max() + 1
    return nuclei


def _split_touching(nucleus: Mask, unit: float) -> list[Mask]:
    """Two nuclei that lie close, told from the lobes of one by their size and distance."""
    parts, count = label_parts(nucleus)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:] / unit**2
    large = np.flatnonzero(areas >= 30.0) + 1  # µm²: a lobe is smaller, a whole nucleus larger
    if len(large) < 2:
        return [nucleus]
    everywhere = _locate(parts, count) / unit
    centres = everywhere[large - 1]
    cells = [0]
    for k in range(1, len(large)):  # lobes of one nucleus lie within 9 µm
        if np.hypot(*(centres[cells] - centres[k]).T).min() >= 9.0:
            cells.append(k)
    away = np.hypot(*(everywhere[:, None] - centres[cells][None]).transpose(2, 0, 1))
    owner = np.concatenate([[-1], away.argmin(axis=1)])
    return [owner[parts] == k for k in range(len(cells))]


def _locate(parts: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """The centre (y, x) in px of each part from 1 to `count`."""
    ys, xs = np.nonzero(parts)
    labels = parts[ys, xs]
    areas = np.bincount(labels, minlength=count + 1)[1:]
    sums = [np.bincount(labels, along, minlength=count + 1)[1:] for along in (ys, xs)]
    return np.stack(sums, axis=1) / areas[:, None]


def dilate(mask: Mask, radius: float) -> Mask:
    """Grows a mask by `radius` px in every direction."""
    radius = max(1.0, radius)
    if radius > 6:  # a disc costs as its area does; both ways give the same
        return measure_distance(mask) <= radius
    return cv2.dilate(mask.view(np.uint8), draw_disc(radius)) > 0


def draw_disc(radius: float) -> NDArray[np.uint8]:
    """All pixels within `radius` px of the middle one."""
    axis = np.square(np.arange(-int(radius), int(radius) + 1))
    return (axis[:, None] + axis <= radius**2).astype(np.uint8)


def measure_distance(mask: Mask) -> NDArray[np.float64]:
    """Distance in px of each pixel to the nearest one of a mask (h, w): 0 on it.

    At most the long side of the mask, which an empty one gives everywhere.
    """
    away = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # A square distance is whole; OpenCV's has a rounding error that depends on the processor.
    squared = np.rint(np.square(np.minimum(away, np.float32(max(mask.shape)))))
    return np.sqrt(squared, dtype=np.float64)


def label_parts(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Parts that hang together by edges: (h, w) of 0 and 1…n, and n."""
    count, parts = cv2.connectedComponents(mask.view(np.uint8), None, 4, cv2.CV_32S)
    return np.asarray(parts, np.int32), count - 1


def blur(image: NDArray[np.floating], sigma: float) -> NDArray[Any]:
    """Gaussian blur, cut at four sigma; beyond its edge the image is mirrored."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return np.asarray(cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT))
