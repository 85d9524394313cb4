"""Describes one cut-out cell in numbers: how its nucleus, cytoplasm and surroundings look.

    cell → optical density → nucleus, cytoplasm, surroundings → colour, shape, grain, patterns

A cell has no upper side: what is described is pooled over regions, so that a cell turned by
quarters or mirrored has the same portrait, and one turned by any angle nearly so. What this
module refuses to know: classes, labels, files, other cells.

Every number is computed pixel by pixel or summed in one fixed order: a portrait doesn't depend on
the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.cuts import WINDOW
from leuko.data.density import LOGARITHM, measure_background
from leuko.data.image import resize_image
from leuko.data.stain import draw_disc
from leuko.errors import ShapeError

SIZE = 64  # px, the side at which every cell is described
UNIT = SIZE / WINDOW  # px per µm

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of colour
SCALES = (0.22, 0.38, 0.62, 1.06, 1.8)  # µm: from a granule to a lobe, about × 1.7 each
NEIGHBOURS = ((1, 1), (2, 1), (4, 3))  # px: a ring of eight at 0° and at 45°
DEPTHS = (0.0, 0.47, 0.94, 1.41, 1.88)  # µm below the rim, where lobes are counted

FloatArray: TypeAlias = NDArray[np.float32]
ByteMask: TypeAlias = NDArray[np.uint8]  # 0 or 1: what OpenCV takes for a mask


def describe_cell(cell: NDArray[np.uint8]) -> FloatArray:
    """The portrait of one cell: morphology and colour as numbers that can be compared.

    Args:
        cell: RGB uint8, (S, S, 3), from `leuko.data.cuts.cut_cell` with its window of
            20 µm; it is brought to 64 × 64. Portraits of one set should come from one S.

    Returns:
        (D,), finite; D is the same for all cells: 140 of colour, 49 of shape, 540 of grain on
        five scales, 360 of local patterns, 264 of how all of this varies together. Lengths are
        in px of 64 / 20 µm, colours in natural optical density. No number has a fixed range:
        standardise each over the set.

    Raises:
        ShapeError: Not a square (S, S, 3) of uint8.

    Sources: local binary patterns, Ojala et al. 2002, doi:10.1109/TPAMI.2002.1017623;
        covariances of a region, Tuzel et al. 2006, doi:10.1007/11744047_45, and their logarithm,
        Arsigny et al. 2006, doi:10.1002/mrm.20965.
    """
    density = _measure_density(cell)
    nucleus, body, outside = _segment(density)
    inside = _distance(1 - nucleus)
    smooth = [density, *(_blur(density, scale * UNIT) for scale in SCALES)]
    depth = inside - outside  # > 0 within the nucleus
    off_middle = _distance_from_middle(body)
    regions = {
        "nucleus": nucleus,
        "cytoplasm": body & (1 - nucleus),
        "surroundings": 1 - body,
        "centre": _CENTRE,
        "body": body,
        "rim": (np.abs(depth) < 0.94 * UNIT).astype(np.uint8),
        "all": np.ones_like(body),
    }
    numbers = [
        _describe_colour(density, regions),
        _describe_shape(nucleus, inside, body, off_middle),
        _describe_grain(smooth, regions),
        _describe_patterns(smooth[1], regions),
        _describe_variation(smooth, depth, off_middle, regions),
    ]
    return np.concatenate(numbers).astype(np.float32)


# --- what is where ------------------------------------------------------------------------


def _measure_density(cell: NDArray[np.uint8]) -> FloatArray:
    """Optical density (64, 64, 3) against the bright background of this window."""
    if cell.ndim != 3 or cell.shape[0] != cell.shape[1] or cell.shape[2] != 3 or not cell.size:
        raise ShapeError(
            f"Found an array {cell.shape}; a cut-out cell is (S, S, 3). Cut it out with "
            "leuko.data.cuts.cut_cell."
        )
    if cell.dtype != np.uint8:
        raise ShapeError(f"Found a cell of {cell.dtype}; expected uint8, 0 to 255. Convert it.")
    if len(cell) != SIZE:
        cell = resize_image(cell, SIZE, SIZE)
    background = measure_background(cell.reshape(-1, 3))
    return np.log(background).astype(np.float32) - np.asarray(cv2.LUT(cell, LOGARITHM))


def _segment(density: FloatArray) -> tuple[ByteMask, ByteMask, FloatArray]:
    """Nucleus and whole cell, masks (64, 64), never empty; and the distance to the nucleus."""
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    stain = _blur(red + green - 2 * blue, 0.25 * UNIT)
    body = _blur(0.5 * red + green - 1.5 * blue, 0.25 * UNIT)
    stained = (stain > max(0.3, _otsu(stain))).astype(np.uint8)
    if not stained.any():  # a ghost or a pale smudge: its most stained part stands for a nucleus
        stained = (stain >= np.percentile(stain, 95)).astype(np.uint8)
    parts = cv2.connectedComponents(cv2.dilate(stained, _DISC), None, 4)[1]
    central = np.bincount(parts.ravel(), (stained * _NEARNESS).ravel())
    nucleus = stained & (parts == central.argmax())
    outside = _distance(nucleus)
    cell = ((body > 0.1) & (stained == nucleus) & (outside <= 5 * UNIT)).view(np.uint8)
    inner = cv2.erode(cell | nucleus, _DISC)
    if inner.any():  # the opening cuts the necks to stained neighbours
        cell &= cv2.dilate(inner, _DISC)
    whole = cell | nucleus
    count, parts = cv2.connectedComponents(whole, None, 4)
    kept = np.zeros(count, np.uint8)
    kept[parts[nucleus > 0]] = 1
    return nucleus, whole & kept[parts], outside


def _otsu(values: FloatArray) -> float:
    """Otsu's threshold over 256 bins between the extremes (doi:10.1109/TSMC.1979.4310076)."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    bins = np.minimum((values - low) * (256 / (high - low)), 255).astype(np.uint8)
    cut, _ = cv2.threshold(bins, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return low + float(cut + 1) * (high - low) / 256


def _distance(mask: NDArray[Any]) -> FloatArray:
    """Distance in px of each pixel to the nearest one of the mask: 0 on it, at most 64."""
    empty = np.logical_not(mask).astype(np.uint8)
    away = cv2.distanceTransform(empty, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squared = np.rint(np.square(np.minimum(away, np.float32(SIZE))))  # whole; see `_length`
    return np.asarray(np.sqrt(squared), np.float32)


def _distance_from_middle(mask: ByteMask) -> FloatArray:
    """Distance in px of each pixel to the middle of the mask's area."""
    moments = cv2.moments(mask, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    return _length(_AXIS - np.float32(y), _AXIS.T - np.float32(x))


def _blur(image: FloatArray, sigma: float) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def _length(x: NDArray[Any], y: NDArray[Any]) -> FloatArray:
    """Length of vectors. OpenCV's own rounds in a way that depends on where the arrays lie."""
    return np.asarray(np.sqrt(x * x + y * y), np.float32)


_AXIS = np.arange(SIZE, dtype=np.float32)[:, None]
_OFF_CENTRE = np.hypot(_AXIS - (SIZE - 1) / 2, _AXIS.T - (SIZE - 1) / 2)  # px
_NEARNESS = np.exp(-np.square(_OFF_CENTRE / (5 * UNIT)))
_DISC = draw_disc(0.8 * UNIT)
_CENTRE = (_OFF_CENTRE < 4.5 * UNIT).astype(np.uint8)


# --- what it looks like -------------------------------------------------------------------


def _pool(maps: FloatArray, region: ByteMask) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation of each map (64, 64, C) over a region; 0 where the region is empty."""
    mean, deviation = cv2.meanStdDev(maps, mask=region)
    return mean.ravel().astype(np.float32), deviation.ravel().astype(np.float32)


def _take(maps: FloatArray, region: ByteMask) -> FloatArray:
    """The pixels (n, C) of maps (64, 64, C) in a region."""
    # Three times as fast as a mask of two dimensions.
    return np.take(maps.reshape(-1, maps.shape[2]), np.flatnonzero(region), axis=0)


def _describe_colour(density: FloatArray, regions: Mapping[str, ByteMask]) -> FloatArray:
    """Mean, deviation and quantiles of red, green, blue and nuclear stain in five regions."""
    stain = density @ np.array([1, 1, -2], np.float32)
    colours = np.asarray(cv2.merge([density, stain]), np.float32)  # (64, 64, 4)
    numbers = []
    for name in ("nucleus", "cytoplasm", "surroundings", "centre", "body"):
        inside = _take(colours, regions[name])
        if not len(inside):
            numbers.append(np.zeros(4 * (2 + len(SHARES)), np.float32))
            continue
        places = np.rint(np.array(SHARES) * (len(inside) - 1)).astype(np.intp)
        quantiles = np.sort(inside, axis=0)[places]
        numbers += [*_pool(colours, regions[name]), quantiles.ravel()]
    return np.concatenate(numbers)


def _describe_shape(
    nucleus: ByteMask, inside: FloatArray, body: ByteMask, off_middle: FloatArray
) -> FloatArray:
    """Outline and lobes of the nucleus and of the whole cell, and how one lies in the other.

    Args:
        nucleus, body: Masks (64, 64).
        inside: Distance to what isn't nucleus, in px.
        off_middle: Distance to the middle of the cell, in px.
    """
    lobes = [_count_parts(inside > depth * UNIT) for depth in DEPTHS]
    share = float(nucleus.sum() / body.sum())
    numbers = [
        *_measure_outline(nucleus, inside, _distance_from_middle(nucleus)),
        *_measure_outline(body, _distance(1 - body), off_middle),
        *lobes, share, float(off_middle[nucleus > 0].mean()),
    ]  # fmt: skip
    return np.array(numbers, np.float32)


def _measure_outline(mask: ByteMask, inside: FloatArray, off_middle: FloatArray) -> list[float]:
    """21 numbers: size, compactness, convexity, elongation, thickness, spread, seven moments.

    Args:
        mask: (64, 64).
        inside: Distance to what lies outside of it, in px.
        off_middle: Distance to its middle, in px.
    """
    moments = cv2.moments(mask, binaryImage=True)
    area = moments["m00"]
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    length = sum(cv2.arcLength(contour, True) for contour in contours)
    hull = cv2.convexHull(np.concatenate(contours))
    hull_area, hull_length = max(cv2.contourArea(hull), 1), max(cv2.arcLength(hull, True), 1)
    xx, yy, xy = (moments[name] / area for name in ("mu20", "mu02", "mu11"))
    spread = np.hypot((xx - yy) / 2, xy)
    long, short = (max((xx + yy) / 2 + turn * spread, 1e-3) for turn in (1, -1))  # of one pixel: 0
    hu = cv2.HuMoments(moments).ravel()
    hu[6] = abs(hu[6])  # the seventh changes its sign in the mirror
    thickness, reach = inside[mask > 0], off_middle[mask > 0]
    return [
        np.sqrt(area), length, length**2 / area, area / hull_area, length / hull_length,
        np.sqrt(long), np.sqrt(short), short / long, *(np.sign(hu) * np.log10(np.abs(hu) + 1e-9)),
        thickness.max(), thickness.mean(), thickness.std(), reach.max(), reach.mean(),
        len(contours),
    ]  # fmt: skip


def _count_parts(mask: NDArray[np.bool_]) -> int:
    return int(cv2.connectedComponents(mask.astype(np.uint8))[0]) - 1


def _describe_grain(smooth: Sequence[FloatArray], regions: Mapping[str, ByteMask]) -> FloatArray:
    """Dark and bright dots, edges and ridges on five scales, in three colours and five regions.

    Args:
        smooth: Density (64, 64, 3), then the same after each blur of `SCALES`.
        regions: Masks (64, 64).
    """
    maps = []
    for fine, coarse in pairwise(smooth):
        dots = fine - coarse
        maps += [np.maximum(dots, 0), np.maximum(-dots, 0)]
    for image in smooth[1:-1]:
        dx, dy, xx, yy, xy = (
            cv2.Sobel(image, cv2.CV_32F, *order)
            for order in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
        )
        maps += [_length(dx, dy) / 8, _length(xx - yy, 2 * xy) / 8]
    stack = np.asarray(cv2.merge(maps), np.float32)  # (64, 64, 54)
    numbers = []
    for name in ("nucleus", "cytoplasm", "rim", "centre", "surroundings"):
        numbers += [np.sqrt(part) for part in _pool(stack, regions[name])]
    return np.concatenate(numbers)


def _describe_patterns(image: FloatArray, regions: Mapping[str, ByteMask]) -> FloatArray:
    """Histograms of uniform local binary patterns: grey and three colours, three radii."""
    # Not mean(axis=2), which takes ten times as long for the same bits.
    grey = (image[..., 0] + image[..., 1] + image[..., 2]) / np.float32(3)
    stack = np.asarray(cv2.merge([grey, image]), np.float32)  # (64, 64, 4)
    # One count of all: the two regions don't overlap, 0 is what lies in neither.
    where = 40 * (regions["nucleus"] + 2 * regions["cytoplasm"])
    bins = where[..., None] + np.arange(0, 40, 10, dtype=np.uint8)  # where those of an image begin
    numbers = []
    for straight, diagonal in NEIGHBOURS:
        patterns = bins + _find_patterns(stack, straight, diagonal)
        counts = np.bincount(patterns.ravel(), minlength=120).reshape(3, 40)
        for region in (counts[1], counts[2], counts.sum(axis=0)):
            numbers.append(np.sqrt(region / max(region[:10].sum(), 1)))
    return np.concatenate(numbers).astype(np.float32)


def _find_patterns(stack: FloatArray, straight: int, diagonal: int) -> NDArray[np.uint8]:
    """For each pixel: how many of its ring of eight are denser, 0 to 8; 9 if they are scattered."""
    pad = max(straight, diagonal)
    wide = cv2.copyMakeBorder(stack, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    s, d = straight, diagonal
    ring = ((0, s), (d, d), (s, 0), (d, -d), (0, -s), (-d, -d), (-s, 0), (-d, d))
    code = np.zeros(stack.shape, np.uint8)
    least = stack + np.float32(0.005)  # so that noise in an even background isn't a pattern
    for bit, (dy, dx) in enumerate(ring):
        other = wide[pad + dy : pad + dy + SIZE, pad + dx : pad + dx + SIZE]
        code |= (other >= least).view(np.uint8) << np.uint8(bit)
    return np.asarray(cv2.LUT(code, _UNIFORM), np.uint8)


def _list_uniform() -> NDArray[np.uint8]:
    """For each code of eight bits the number of ones, or 9 if they don't lie together."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = np.abs(bits - np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9).astype(np.uint8)


_UNIFORM = _list_uniform()


def _describe_variation(
    smooth: Sequence[FloatArray],
    depth: FloatArray,
    off_middle: FloatArray,
    regions: Mapping[str, ByteMask],
) -> FloatArray:
    """Logarithm of the covariance of colour, edges, dots and place, in four regions.

    Args:
        smooth: Density (64, 64, 3), then the same after each blur of `SCALES`.
        depth: Distance to the rim of the nucleus in px, > 0 inside.
        off_middle: Distance to the middle of the cell in px.
        regions: Masks (64, 64).
    """
    dx = cv2.Sobel(smooth[1], cv2.CV_32F, 1, 0)
    dy = cv2.Sobel(smooth[1], cv2.CV_32F, 0, 1)
    edges = _length(dx, dy) / 8
    dots = cv2.Laplacian(smooth[2], cv2.CV_32F)
    maps = np.asarray(
        cv2.merge([smooth[0], edges, dots, off_middle / 20, depth / 10]), np.float32
    )  # (64, 64, 11)
    width = maps.shape[2]
    matrices = np.empty((4, width, width))
    for k, name in enumerate(("nucleus", "cytoplasm", "centre", "all")):
        inside = _take(maps, regions[name]).astype(np.float64)
        if len(inside) < 2 * width:
            matrices[k] = 1e-4 * np.eye(width)
            continue
        inside -= inside.mean(axis=0)
        # OpenCV sums in one order; NumPy's matrix product may not, if threads share it.
        matrices[k] = cv2.mulTransposed(inside, aTa=True) / len(inside)
    values, vectors = np.linalg.eigh(matrices + 1e-5 * np.eye(width))
    logs = np.log(np.maximum(values, 1e-7))[:, None, None, :]
    logs = (vectors[:, :, None, :] * vectors[:, None, :, :] * logs).sum(axis=3)
    rows, columns = np.triu_indices(width)
    return np.asarray(logs[:, rows, columns].ravel(), np.float32)
