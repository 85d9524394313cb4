"""How many pixels of a picture are a micrometre, and of a set of pictures.

Red cells are alike in everybody, so a field tells its own scale by them, whatever the objective; a
picture of one cell, in which none is whole, by its nucleus, which is a poorer measure. A single
picture tells its scale to about a tenth; those of one size in one set came from one microscope, and
their median is certain to about 1 %. What this module refuses to know: classes, labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.image import read_image
from leuko.data.stain import (
    THUMBNAIL,
    Field,
    FloatArray,
    Mask,
    View,
    blur,
    find_cell_threshold,
    find_nuclear_threshold,
    find_nuclei,
    label_parts,
    make_view,
    measure_distance,
)
from leuko.errors import ImageError

INSCRIBED = 6.25  # µm, the circle that fits into a red cell (7.5 µm wide, seldom round)
FIELD = 47.0  # µm, the long side of a field in which no red cell can be measured
CUT_OUT = 48.0  # µm: square pictures up to this side were cut around one cell; fields show more
NUCLEUS = 65.0  # µm², a leukocyte's: the median of PBC's five classes lies between 51 and 114
SMALL = 30.0  # µm², smaller than a leukocyte's nucleus is
LARGE = 120.0  # µm², a nucleus that is seldom exceeded: only every fourth monocyte's is larger
GIANT = 300.0  # µm², a nucleus that isn't exceeded at all: a promyelocyte's reach 270
SHARP = 2.5  # px per µm from which on a red cell's width is measured without bias
CLEAR = 4.0  # px per µm from which on no clump of red cells is taken for a single one
GAP = 250  # px, of the pale middle of a red cell
DENSE = 0.003  # red cells per µm² of a wide field at least: half of what most have
WIDEST = 1280  # px, of a thumbnail on which red cells are measured
SCALE_SAMPLE = 60  # images of one size, evenly spaced: their median is certain to about 1 %

Source = TypeVar("Source")


def is_cut_out(height: int, width: int, scale: float) -> bool:
    """Whether a picture was cut around one cell: about square, and small for a field.

    Args:
        height, width: In px.
        scale: Pixels per µm.
    """
    long, short = max(height, width), min(height, width)
    return long <= 1.15 * short and long <= CUT_OUT * scale


def estimate_scale(field: Field, view: View | None = None) -> float:
    """Pixels per micrometre, from the width of the red cells in this picture, or from a nucleus.

    Args:
        field: RGB uint8, (H, W, 3).
        view: The field in a thumbnail of the usual size, if it was made already.

    Returns:
        Pixels of the field per µm, > 0. Where no red cell can be measured, the scale at which
        the long side of the field is 47 µm, as in most photographs of this kind; and where a
        nucleus would be larger than nuclei are, because the picture was cut out closely around
        its cell, the scale at which it is as large as most are (65 µm²).

    Raises:
        ShapeError: The field is no picture.
    """
    view = view or make_view(field)
    measured = _measure_red_cells(view)
    scale = measured or float(max(field.shape[:2])) / FIELD
    largest = GIANT if measured else LARGE
    clear = scale * view.shrink >= CLEAR
    stained = (
        int((view.stain > find_nuclear_threshold(view.stain)).sum()) / (scale * view.shrink) ** 2
    )
    # To part nuclei takes as long as to find red cells; often all the stain is less than a nucleus.
    nuclei = [stained] if clear and stained <= largest else _measure_nuclei(view, scale)
    area = max(nuclei, default=0.0)
    alone = not measured and is_cut_out(field.shape[0], field.shape[1], scale)
    if (sum(nuclei) if alone else area) > largest:
        return _fit_nucleus(view, scale)
    # Where red cells are too small to be measured one by one, none is, or the largest are, or
    # clumps of them, in whose measure a nucleus is a small one.
    return _look_closer(field, scale, measured=measured > 0, clumps=not clear and area < SMALL)


def estimate_set_scales(fields: Iterable[Field]) -> dict[tuple[int, int], float]:
    """One scale for each picture size of a set: the median over its fields.

    A single field with few red cells gives its scale to about 10 %; pictures of one size in
    one set came from one microscope, and their median is certain to about 1 %.

    Returns:
        {(height, width): pixels per µm}; hand the value to `find_leukocytes`.
    """
    scales: dict[tuple[int, int], list[float]] = {}
    for field in fields:
        scales.setdefault((field.shape[0], field.shape[1]), []).append(estimate_scale(field))
    return {size: float(np.median(values)) for size, values in scales.items()}


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


def _measure_red_cells(view: View, gap: float = GAP, density: float = 0.0) -> float:
    """Pixels per µm from the circles that fit into red cells, single or touching; see `INSCRIBED`.

    0 if there are fewer of them than three, or than `density` in a µm². Circles that all touch a
    nucleus lie in its cytoplasm, in a picture that shows one cell alone.
    """
    nuclei = view.stain >= find_nuclear_threshold(view.stain)
    ground = view.valid & ~nuclei
    levels = view.density[ground]
    if levels.size == 0 or levels.min() == levels.max():
        return 0.0
    gaps, _ = label_parts(~(ground & (view.density > find_cell_threshold(levels))))
    small_gap = np.bincount(gaps.ravel()) < gap
    small_gap[0] = True
    solid = small_gap[gaps] & ground
    depth = measure_distance(~solid)
    smooth = blur(depth, 1.0)
    peak = (smooth == cv2.dilate(smooth, np.ones((13, 13), np.uint8))) & (smooth > 5)
    peak[:6], peak[-6:], peak[:, :6], peak[:, -6:] = False, False, False, False
    radii = depth[peak]
    if radii.size < 3 or not (measure_distance(nuclei)[peak] > 1.3 * radii).any():
        return 0.0
    order = np.argsort(radii)
    weights = np.cumsum((_look_around(solid, np.argwhere(peak), radii) ** 2 + 0.02)[order])
    middle = radii[order][np.searchsorted(weights, 0.6 * weights[-1])]
    unit = float(2 * middle) / INSCRIBED
    return unit / view.shrink if radii.size >= density * view.valid.size / unit**2 else 0.0


def _look_closer(field: Field, scale: float, *, measured: bool, clumps: bool) -> float:
    """The scale from red cells in larger thumbnails, until they are large enough there.

    Args:
        field: As it was looked at in a thumbnail of the usual size.
        scale: What is known from there, in px per µm.
        measured: Whether that came from red cells.
        clumps: Whether these may have been clumps of them.
    """
    side, length = THUMBNAIL, max(field.shape[:2])
    while side < min(length, WIDEST):
        unsure = not measured or scale * min(1.0, side / length) < SHARP
        if not (unsure or clumps):
            break
        side *= 2
        # If the cells were seen, their pale middles are larger here; left open, they'd make rings.
        gap = GAP if unsure else GAP * (side / THUMBNAIL) ** 2
        again = _measure_red_cells(make_view(field, side), gap, density=DENSE)
        if again and (unsure or again < 0.75 * scale):
            scale, measured, clumps = again, True, False
    return scale


def _measure_nuclei(view: View, scale: float) -> list[float]:
    """The area of each nucleus in µm²; lobes are joined by their distance in µm."""
    unit = scale * view.shrink
    nuclei = find_nuclei(blur(view.stain, 0.25 * unit), view.valid, unit)
    return [float(n) / unit**2 for n in np.bincount(nuclei.ravel())[1:]]


def _fit_nucleus(view: View, scale: float) -> float:
    """The scale at which the nucleus of the one cell in a picture is as large as most are.

    A picture that was cut out along the rim of its cell shows no red cell, but its nucleus, whose
    lobes may lie too far apart to be joined at the scale at hand.
    """
    for _ in range(4):
        nuclei = _measure_nuclei(view, scale)
        if not nuclei:
            break
        scale *= float(np.sqrt(sum(nuclei) / NUCLEUS))
        if max(nuclei) <= LARGE:
            break
    return scale


def _look_around(solid: Mask, centres: NDArray[np.intp], radii: FloatArray) -> FloatArray:
    """How free each circle stands, (n,) in [0, 1]: 1 for a lone red cell, 0 within a clump."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = 1.2 * radii[:, None]
    ys = np.rint(centres[:, :1] + reach * np.sin(angles)).astype(np.intp)
    xs = np.rint(centres[:, 1:] + reach * np.cos(angles)).astype(np.intp)
    height, width = solid.shape
    inside = (ys >= 0) & (xs >= 0) & (ys < height) & (xs < width)
    taken = solid[np.clip(ys, 0, height - 1), np.clip(xs, 0, width - 1)]
    free: FloatArray = (inside & ~taken).sum(axis=1) / np.maximum(1, inside.sum(axis=1))
    return free
