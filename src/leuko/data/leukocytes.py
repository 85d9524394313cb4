"""Finds the leukocytes in a field and measures its physical scale.

Works on stain, not on shape: after division by the empty background a nucleus takes red and
green light but leaves the blue, a red cell takes the blue. Where a stain or a camera has made
nuclei red, they are known by being far darker than red cells. What this module refuses to know:
classes, labels, files.

    field → thumbnail → optical density → stain response ┬→ nuclei → cells → boxes with a score
                                        └→ red cells → pixels per micrometre

All lengths are in micrometres until the last step; the scale comes from the picture itself
(red cells are alike in everybody), so fields of any magnification come out alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.density import LOGARITHM, measure_background
from leuko.data.image import resize_image
from leuko.errors import ShapeError

INSCRIBED = 6.25  # µm, the circle that fits into a red cell (7.5 µm wide, seldom round)
FIELD = 47.0  # µm, the long side of a field in which no red cell can be measured
NUCLEUS = 65.0  # µm², a leukocyte's: the median of PBC's five classes lies between 51 and 114
SMALL = 30.0  # µm², smaller than a leukocyte's nucleus is
LARGE = 120.0  # µm², a nucleus that is seldom exceeded: only every fourth monocyte's is larger
GIANT = 300.0  # µm², a nucleus that isn't exceeded at all: a promyelocyte's reach 270
FAINT = 0.4  # share of what is dark; if less has a nucleus's colour, colour fails
DARKER = 1.8  # times a red cell's density, by which a nucleus is known where its colour fails
CUT_OUT = 48.0  # µm: square pictures up to this side were cut around one cell; fields show more
OFF_CENTRE = 8.0  # µm from the middle of such a picture; whatever lies farther is a neighbour
SMALLEST = 10.0  # µm², of a nucleus; platelets lie below 15, whole nuclei above 30
CERTAIN = 0.5  # score from which a leukocyte in a field counts (results/leukocytes.md)
THUMBNAIL = 160  # px, the long side at which everything is looked for in fields up to 94 µm
RESOLUTION = 1.7  # px of the thumbnail per µm at which it is looked for in wider ones
SHARP = 2.5  # px per µm from which on a red cell's width is measured without bias
CLEAR = 4.0  # px per µm from which on no clump of red cells is taken for a single one
GAP = 250  # px, of the pale middle of a red cell
DENSE = 0.003  # red cells per µm² of a wide field at least: half of what most have
WIDEST = 1280  # px, of a thumbnail on which red cells are measured

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)

Field = NDArray[np.uint8]
Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


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


@dataclass(frozen=True)
class _View:
    """A field, made small and turned into optical density; all arrays are (h, w)."""

    density: FloatArray  # of green light; 0 is background, every cell is positive
    stain: FloatArray  # high in nuclei, low in cytoplasm, about 0 or below in red cells
    body: FloatArray  # as stain, with less red light: eosinophil granules are positive too
    valid: Mask  # False in black corners, where nothing was photographed
    shrink: float  # px of the thumbnail per px of the field


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
    view = _make_view(field)
    scale = scale or _measure_scale(field, view)
    side = round(RESOLUTION * max(field.shape[:2]) / scale)
    if side > THUMBNAIL:
        view = _make_view(field, side)
    unit = scale * view.shrink  # px of the thumbnail per µm
    stain = _blur(view.stain, 0.25 * unit)
    body = _blur(view.body, 0.25 * unit)
    nuclei = _find_nuclei(stain, view.valid, unit)
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
        view = _make_view(field)
        stain = _blur(view.stain, 1.9 * scale * view.shrink)
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


def is_cut_out(height: int, width: int, scale: float) -> bool:
    """Whether a picture was cut around one cell: about square, and small for a field.

    Args:
        height, width: In px.
        scale: Pixels per µm.
    """
    long, short = max(height, width), min(height, width)
    return long <= 1.15 * short and long <= CUT_OUT * scale


def estimate_scale(field: Field) -> float:
    """Pixels per micrometre, from the width of the red cells in this picture, or from a nucleus.

    Args:
        field: RGB uint8, (H, W, 3).

    Returns:
        Pixels of the field per µm, > 0. Where no red cell can be measured, the scale at which
        the long side of the field is 47 µm, as in most photographs of this kind; and where a
        nucleus would be larger than nuclei are, because the picture was cut out closely around
        its cell, the scale at which it is as large as most are (65 µm²).
    """
    return _measure_scale(field, _make_view(field))


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


def _make_view(field: Field, side: int = THUMBNAIL) -> _View:
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
    coloured = int((stain > _nuclear_threshold(stain)).sum())
    if coloured < 0.04 * seen.shape[0]:  # else there is a nucleus; looking further costs time
        dark = _find_dark(green[valid])
        if dark and coloured < FAINT * ((green > dark) & valid).sum():
            # 0.3 is the least threshold of nuclei. Cytoplasm isn't told from red cells.
            stain = 0.3 * green / dark * valid
            body = stain - 0.2
    return _View(green, stain, body, valid, shrink)


def _find_dark(density: FloatArray) -> float:
    """The density above which nuclei are, by being darker than red cells; 0: none are.

    Args:
        density: (n,), of green light.
    """
    if not density.size:
        return 0.0
    cells = density[density > _cell_threshold(density)]
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


def _nuclear_threshold(stain: FloatArray) -> float:
    """Stain response above which a pixel belongs to a nucleus."""
    return max(0.3, _otsu(stain))


def _cell_threshold(density: FloatArray) -> float:
    """Density of green light above which a pixel belongs to a cell, red or white."""
    return min(max(0.06, _otsu(density)), 0.25)


def _measure_scale(field: Field, view: _View) -> float:
    """As `estimate_scale`, for who has the view of the usual size already."""
    measured = _measure_red_cells(view)
    scale = measured or float(max(field.shape[:2])) / FIELD
    largest = GIANT if measured else LARGE
    clear = scale * view.shrink >= CLEAR
    stained = int((view.stain > _nuclear_threshold(view.stain)).sum()) / (scale * view.shrink) ** 2
    # To part nuclei takes as long as to find red cells; often all the stain is less than a nucleus.
    nuclei = [stained] if clear and stained <= largest else _measure_nuclei(view, scale)
    area = max(nuclei, default=0.0)
    alone = not measured and is_cut_out(field.shape[0], field.shape[1], scale)
    if (sum(nuclei) if alone else area) > largest:
        return _fit_nucleus(view, scale)
    # Where red cells are too small to be measured one by one, none is, or the largest are, or
    # clumps of them, in whose measure a nucleus is a small one.
    return _look_closer(field, scale, measured=measured > 0, clumps=not clear and area < SMALL)


def _measure_red_cells(view: _View, gap: float = GAP, density: float = 0.0) -> float:
    """Pixels per µm from the circles that fit into red cells, single or touching; see `INSCRIBED`.

    0 if there are fewer of them than three, or than `density` in a µm². Circles that all touch a
    nucleus lie in its cytoplasm, in a picture that shows one cell alone.
    """
    nuclei = view.stain >= _nuclear_threshold(view.stain)
    ground = view.valid & ~nuclei
    levels = view.density[ground]
    if levels.size == 0 or levels.min() == levels.max():
        return 0.0
    gaps, _ = _label(~(ground & (view.density > _cell_threshold(levels))))
    small_gap = np.bincount(gaps.ravel()) < gap
    small_gap[0] = True
    solid = small_gap[gaps] & ground
    depth = _measure_distance(~solid)
    smooth = _blur(depth, 1.0)
    peak = (smooth == cv2.dilate(smooth, np.ones((13, 13), np.uint8))) & (smooth > 5)
    peak[:6], peak[-6:], peak[:, :6], peak[:, -6:] = False, False, False, False
    radii = depth[peak]
    if radii.size < 3 or not (_measure_distance(nuclei)[peak] > 1.3 * radii).any():
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
        again = _measure_red_cells(_make_view(field, side), gap, density=DENSE)
        if again and (unsure or again < 0.75 * scale):
            scale, measured, clumps = again, True, False
    return scale


def _measure_nuclei(view: _View, scale: float) -> list[float]:
    """The area of each nucleus in µm²; lobes are joined by their distance in µm."""
    unit = scale * view.shrink
    nuclei = _find_nuclei(_blur(view.stain, 0.25 * unit), view.valid, unit)
    return [float(n) / unit**2 for n in np.bincount(nuclei.ravel())[1:]]


def _fit_nucleus(view: _View, scale: float) -> float:
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


def _find_nuclei(stain: FloatArray, valid: Mask, unit: float) -> NDArray[np.int_]:
    """(h, w) labels 1… of the nuclei; the lobes of one nucleus share a label."""
    mask = (stain > _nuclear_threshold(stain)) & valid
    joined, count = _label(_dilate(mask, 0.8 * unit))
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
    parts, count = _label(nucleus)
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
    cell = (body[near] > 0.1) & (nuclei[near] == 0) & _dilate(nucleus, 5 * unit) | nucleus
    # The opening cuts the necks to stained neighbours and drops the lace around them.
    cell = _dilate(~_dilate(~cell, 0.8 * unit), 0.8 * unit) | nucleus
    parts, _ = _label(cell)
    kept = np.unique(parts[nucleus])
    ys, xs = np.nonzero(np.isin(parts, kept[kept > 0]))
    rim = 0.5 * unit
    return (
        float(left + xs.min() - rim),
        float(top + ys.min() - rim),
        float(left + xs.max() + 1 + rim),
        float(top + ys.max() + 1 + rim),
    )


def _dilate(mask: Mask, radius: float) -> Mask:
    """Grows a mask by `radius` px in every direction."""
    radius = max(1.0, radius)
    if radius > 6:  # a disc costs as its area does; both ways give the same
        return _measure_distance(mask) <= radius
    return cv2.dilate(mask.view(np.uint8), draw_disc(radius)) > 0


def draw_disc(radius: float) -> NDArray[np.uint8]:
    """All pixels within `radius` px of the middle one."""
    axis = np.square(np.arange(-int(radius), int(radius) + 1))
    return (axis[:, None] + axis <= radius**2).astype(np.uint8)


def _measure_distance(mask: Mask) -> NDArray[np.float64]:
    """Distance in px of each pixel to the nearest one of a mask (h, w): 0 on it.

    At most the long side of the mask, which an empty one gives everywhere.
    """
    away = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # A square distance is whole; OpenCV's has a rounding error that depends on the processor.
    squared = np.rint(np.square(np.minimum(away, np.float32(max(mask.shape)))))
    return np.sqrt(squared, dtype=np.float64)


def _label(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Parts that hang together by edges: (h, w) of 0 and 1…n, and n."""
    count, parts = cv2.connectedComponents(mask.view(np.uint8), None, 4, cv2.CV_32S)
    return np.asarray(parts, np.int32), count - 1


def _blur(image: NDArray[np.floating], sigma: float) -> NDArray[Any]:
    """Gaussian blur, cut at four sigma; beyond its edge the image is mirrored."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return np.asarray(cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT))


def _rate(area: float, response: float) -> float:
    """Score in [0, 1] from nuclear area (µm²) and mean stain response."""
    return float(1 / (1 + np.exp(-(area - 18) / 3)) / (1 + np.exp(-(response - 0.35) / 0.05)))
