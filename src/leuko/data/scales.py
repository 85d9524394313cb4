"""One scale for each picture size of a set: the pictures of one size came from one microscope.

A single picture tells its scale to about a tenth; the median over a set is certain to about 1 %.
This module knows which pictures are looked at; how a picture tells its scale is in
`leuko.data.leukocytes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leuko.data.image import read_image
from leuko.data.leukocytes import estimate_set_scales
from leuko.errors import ImageError

SCALE_SAMPLE = 60  # images of one size, evenly spaced: their median is certain to about 1 %

Source = TypeVar("Source")


def measure_set_scales(
    root: Path, rows: Iterable[tuple[str | Path, int, int]]
) -> dict[tuple[int, int], float]:
    """One scale for each picture size of a set, from up to `SCALE_SAMPLE` of its images.

    Args:
        root: Folder that the paths are relative to.
        rows: (path, width, height) of each image; files that can't be read are left out.

    Returns:
        {(height, width): pixels per µm}; hand the value to `find_leukocytes`.
    """

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for path in sample_sizes(rows):
            with suppress(ImageError):
                yield read_image(root / path)

    return estimate_set_scales(pictures())


def sample_sizes(rows: Iterable[tuple[Source, int, int]]) -> list[Source]:
    """Chooses up to `SCALE_SAMPLE` pictures of each size, evenly spaced.

    Args:
        rows: (whatever stands for a picture, width, height).
    """
    by_size: dict[tuple[int, int], list[Source]] = defaultdict(list)
    for source, width, height in rows:
        by_size[height, width].append(source)
    return [s for same in by_size.values() for s in same[:: -(-len(same) // SCALE_SAMPLE)]]
