"""Finds the leukocytes in a field.

Works on stain, not on shape; all lengths are in micrometres until the last step, so fields of any
magnification come out alike. What this module refuses to know: classes, labels, files.

    field → stain → nuclei → cells → boxes with a score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuko.data.scales import estimate_scale, is_cut_out
from leuko.data.stain import (
    THUMBNAIL,
    Field,
    FloatArray,
    blur,
    dilate,
    find_nuclei,
    label_parts,
    make_view,
)

OFF_CENTRE = 8.0  # µm from the middle of such a picture; whatever lies farther is a neighbour
CERTAIN = 0.5  # score from which a leukocyte in a field counts (results/leukocytes.md)
RESOLUTION = 1.7  # px of the thumbnail per µm at which it is looked for in wider ones


@dataclass(frozen=True)
class Leukocyte:
    """One white blood cell in a field.

    Attributes:
        x0: Left edge of the whole cell, nucleus and cytoplasm, in px of the field.
        y0: Top edge.
        x1: Right edge, half open.
        y1: Lower edge, half open.
        score: In [0, 1]: how certain it is that this is a leukocyte. 0 marks a stand-in
            that was chosen because nothing was found.
        area: Area of the nucleus in µm²; 0 for a stand-in.
        scale: Pixels of the field per µm that was used to find it.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    area: float = 0.0
    scale: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box in px of the field."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


def find_leukocytes(field: Field, scale: float | None = None) -> list[Leukocyte]:
    """Finds every leukocyte in a field.

    Args:
        field: RGB uint8, (H, W, 3).
        scale: Pixels per µm where it is known (one microscope, one camera); None estimates it
            from the red cells in this picture.

    Returns:
        The cells from the most to the least certain; an empty list if there is none.

    Raises:
        ShapeError: The array is not (H, W, 3) uint8.
    """
    view = make_view(field)
    scale = scale or estimate_scale(field, view)
    side = round(RESOLUTION * max(field.shape[:2]) / scale)
    if side > THUMBNAIL:
        view = make_view(field, side)
    unit = scale * view.shrink  # px of the thumbnail per µm
    stain = blur(view.stain, 0.25 * unit)
    body = blur(view.body, 0.25 * unit)
    nuclei = find_nuclei(stain, view.valid, unit)
    height, width = field.shape[:2]
    found = []
    for label in range(1, int(nuclei.max()) + 1):
        nucleus = nuclei == label
        area = float(nucleus.sum()) / unit**2
        x0, y0, x1, y1 = _find_extent(body, nuclei, label, unit)
        found.append(
            Leukocyte(
                max(0.0, x0 / view.shrink),
                max(0.0, y0 / view.shrink),
                min(float(width), x1 / view.shrink),
                min(float(height), y1 / view.shrink),
                score=_rate(area, float(stain[nucleus].mean())),
                area=area,
                scale=scale,
            )
        )
    return sorted(found, key=lambda cell: -cell.score)


def choose_leukocyte(leukocytes: Sequence[Leukocyte], field: Field) -> Leukocyte:
    """Chooses the one cell that stands for a picture with one label.

    Rule for fields: the most certain one; among equally certain ones the largest nucleus. Rule
    for pictures that were cut around one cell (see `is_cut_out`): the one nearest to the middle,
    because the label is that of the cell in the middle, and a neighbour may have the larger
    nucleus. If none was found, or none within `OFF_CENTRE` of the middle of a cut-out, a stand-in
    with score 0: 15 µm around the strongest stain response, or around the middle.

    Args:
        leukocytes: What `find_leukocytes` found in this picture.
        field: RGB uint8, (H, W, 3).
    """
    height, width = field.shape[:2]
    scale = leukocytes[0].scale if leukocytes else estimate_scale(field)
    if leukocytes and not is_cut_out(height, width, scale):
        return max(leukocytes, key=lambda cell: (round(cell.score, 2), cell.area))
    x, y = width / 2, height / 2
    if leukocytes:

        def distance(cell: Leukocyte) -> float:
            return float(np.hypot(cell.centre[0] - x, cell.centre[1] - y))

        nearest = min(leukocytes, key=distance)
        if distance(nearest) <= OFF_CENTRE * scale:
            return nearest
    else:
        view = make_view(field)
        stain = blur(view.stain, 1.9 * scale * view.shrink)
        row, column = np.unravel_index(int(np.argmax(stain)), stain.shape)
        x, y = column / view.shrink, row / view.shrink
    half = 7.5 * scale
    return Leukocyte(
        max(0.0, x - half),
        max(0.0, y - half),
        min(float(width), x + half),
        min(float(height), y + half),
        score=0.0,
        scale=scale,
    )


def _find_extent(
    body: FloatArray, nuclei: NDArray[np.int_], label: int, unit: float
) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in px of the thumbnail: nucleus and cytoplasm of one cell.

    The rim of the cytoplasm is fainter than the threshold; half a µm on every side makes up
    for it (the edges of hand-drawn boxes are met without bias).
    """
    ys, xs = np.nonzero(nuclei == label)
    reach = round(6 * unit)
    top, left = max(0, ys.min() - reach), max(0, xs.min() - reach)
    near = (slice(top, ys.max() + reach + 1), slice(left, xs.max() + reach + 1))
    nucleus = nuclei[near] == label
    cell = (body[near] > 0.1) & (nuclei[near] == 0) & dilate(nucleus, 5 * unit) | nucleus
    # The opening cuts the necks to stained neighbours and drops the lace around them.
    cell = dilate(~dilate(~cell, 0.8 * unit), 0.8 * unit) | nucleus
    parts, _ = label_parts(cell)
    kept = np.unique(parts[nucleus])
    ys, xs = np.nonzero(np.isin(parts, kept[kept > 0]))
    rim = 0.5 * unit
    return (
        float(left + xs.min() - rim),
        float(top + ys.min() - rim),
        float(left + xs.max() + 1 + rim),
        float(top + ys.max() + 1 + rim),
    )


def _rate(area: float, response: float) -> float:
    """Score in [0, 1] from nuclear area (µm²) and mean stain response."""
    return float(1 / (1 + np.exp(-(area - 18) / 3)) / (1 + np.exp(-(response - 0.35) / 0.05)))
