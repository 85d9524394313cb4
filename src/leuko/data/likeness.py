"""Finds pictures that show the same place, however one of them was turned, sheared or recoloured.

    picture → landmarks with descriptors → nearest neighbours in a tree → matches that agree on one
            movement → affine registration → correlation of what both pictures show → likeness

No pair of pictures is compared unless three or four of its landmarks agree, so the time grows as
N log N. This module knows pixels; it knows nothing of files, labels, cells or physical scale.

Landmarks are SIFT's (Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94), after the local contrast
was evened out, because many smears are photographed out of focus; descriptors are compared as
square roots (Arandjelović and Zisserman 2012, doi:10.1109/CVPR.2012.6248018). A mirrored picture
needs no second look: mirroring a patch permutes its descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.image import resize_image
from leuko.data.registration import (
    COARSE,
    CORRELATION,
    DETAIL,
    EVIDENCE,
    Likeness,
    Sketch,
    register,
)

if TYPE_CHECKING:
    from scipy.spatial import KDTree

SIDE = 240  # px, the long side at which landmarks are sought; smaller pictures stay as they are
# Landmarks that have to agree on one movement: three, or four where pictures have so many that
# three agree by chance.
AGREEING = (3, 4)
MANY = 150  # landmarks per picture
TOLERANCE = (48.0, 0.45, 0.5)  # px, radians and log of size within which two matches agree
NARROWING = (24.0, 12.0, 8.0)  # px from where a movement carries a match, fit by fit
NEIGHBOURS = 6
AXES = 16  # principal components of the descriptors that are searched
# All landmarks of a set together: more per picture in a small set, where every overlap counts
# and time doesn't; fewer in a large one. Sixty still find every turned copy.
BUDGET = 270_000
FEWEST, MOST = 60, 250

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Progress = Callable[[int, int], None]


def choose_landmarks(pictures: int) -> int:
    """Landmarks per picture for a set of so many pictures; see `BUDGET`."""
    return int(np.clip(BUDGET // max(1, pictures), FEWEST, MOST))


def sketch_picture(picture: NDArray[np.uint8], landmarks: int) -> Sketch:
    """Reduces one picture to what is compared.

    Args:
        picture: RGB uint8, (H, W, 3).
        landmarks: The most that are kept, the strongest first; see `choose_landmarks`.
    """
    height, width = picture.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    small = resize_image(picture, max(8, round(height * shrink)), max(8, round(width * shrink)))
    photographed = _find_photographed(small)
    points, descriptors = _find_landmarks(small[..., 1], photographed, landmarks)
    return Sketch(
        points, descriptors, _flatten(small, photographed), small.shape[1], small.shape[0], shrink
    )


def find_likenesses(
    sketches: Sequence[Sketch], *, threads: int = 1, progress: Progress | None = None
) -> list[Likeness]:
    """Finds the pairs of pictures that show the same place.

    Args:
        sketches: Of N pictures.
        threads: For the search of neighbours; they don't change the result.
        progress: Called with (pairs compared, pairs in all).

    Returns:
        Ordered by a, then b. Of many copies of one picture not every pair is found, but each copy
        with some others, so that groups are whole.
    """
    found: dict[tuple[int, int], Likeness] = {}
    candidates = list(_propose(sketches, threads))
    for done, (a, b, start) in enumerate(candidates):
        if progress is not None and done % 500 == 0:
            progress(done, len(candidates))
        likeness = register(a, b, sketches[a], sketches[b], start)
        if likeness.score < CORRELATION or likeness.evidence < EVIDENCE or likeness.detail < DETAIL:
            continue
        if (a, b) not in found or found[a, b].evidence < likeness.evidence:
            found[a, b] = likeness
    if progress is not None:
        progress(len(candidates), len(candidates))
    return [found[key] for key in sorted(found)]


# --- one picture ----------------------------------------------------------------------------------


def _find_photographed(small: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """False in black corners, as turning a picture leaves them, and near their rim."""
    import cv2

    lit = (small.max(axis=2) > 40).astype(np.uint8)
    if not lit.all():
        # The rim is the strongest edge of all, and a descriptor reaches several px across it.
        lit = cv2.erode(lit, np.ones((13, 13), np.uint8), borderValue=1).astype(np.uint8)
    return np.asarray(lit, dtype=bool)


@cache
def _sift(landmarks: int) -> Any:
    import cv2

    return cv2.SIFT.create(nfeatures=landmarks, contrastThreshold=0.015, sigma=1.2)


def _find_landmarks(
    green: NDArray[np.uint8], photographed: NDArray[np.bool_], most: int
) -> tuple[FloatArray, NDArray[np.uint8]]:
    import cv2

    even = cv2.createCLAHE(4.0, (4, 4)).apply(np.ascontiguousarray(green))
    found, descriptors = _sift(most).detectAndCompute(even, photographed.astype(np.uint8))
    if descriptors is None:
        return np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8)
    points = np.array([(*p.pt, p.size, p.angle) for p in found[:most]], np.float32)
    return points, descriptors[:most].astype(np.uint8)


def _flatten(small: NDArray[np.uint8], photographed: NDArray[np.bool_]) -> NDArray[np.float16]:
    """Green density, small, without shading, exposure and contrast of the photograph."""
    import cv2

    size = (max(8, round(small.shape[1] / COARSE)), max(8, round(small.shape[0] / COARSE)))
    density = -np.log(
        np.maximum(cv2.resize(small[..., 1], size, interpolation=cv2.INTER_AREA), 4.0)
    )
    seen = cv2.resize(photographed.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    seen = (seen > 0.99).astype(np.float32)

    def blur(values: FloatArray, spread: float) -> FloatArray:
        """Mean of what was photographed nearby."""
        total = cv2.GaussianBlur(values * seen, (0, 0), spread)
        weight = cv2.GaussianBlur(seen, (0, 0), spread)
        return np.asarray(total / np.maximum(weight, 1e-3), dtype=np.float32)

    density = density.astype(np.float32)
    density -= blur(density, 6.0)
    deviation = np.sqrt(blur(density**2, 8.0)) + 0.02
    return np.where(seen > 0, density / deviation, np.nan).astype(np.float16)


# --- pairs worth comparing ------------------------------------------------------------------------


def _propose(
    sketches: Sequence[Sketch], threads: int
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Pairs a < b with the movement (2, 3) that enough of their landmarks agree on."""
    from scipy.spatial import KDTree

    owner = np.repeat(np.arange(len(sketches)), [len(s.points) for s in sketches])
    if len(owner) <= NEIGHBOURS:
        return
    points = np.concatenate([s.points for s in sketches])
    middles = np.array([[s.width / 2, s.height / 2] for s in sketches])
    least = AGREEING[len(owner) >= MANY * len(sketches)]
    project = _learn_axes([s.descriptors for s in sketches])
    axes = np.concatenate([project(s.descriptors) for s in sketches])
    tree = KDTree(axes)
    for mirrored in (False, True):
        if mirrored:
            axes = np.concatenate([project(_mirror(s.descriptors)) for s in sketches])
        first, second = _search(tree, axes, owner, threads)
        pair = owner[first] * len(sketches) + owner[second]
        kept = _keep_runs(pair, least)
        first, second, pair = first[kept], second[kept], pair[kept]
        moves = _move(points[first], points[second], middles[owner[first]], mirrored=mirrored)
        for start, end in _count_votes(moves, pair, least):
            run = slice(start, end)
            p, q = points[first[run]], points[second[run]]
            matrix = _agree(p, q, moves[run], least, mirrored=mirrored)
            if matrix is not None:
                yield int(owner[first[start]]), int(owner[second[start]]), matrix


def _keep_runs(pair: IntArray, least: int) -> IntArray:
    """Rows of the matches of those pairs of pictures that have enough of them, sorted by pair."""
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(pair)))
    return order[np.repeat(lengths >= least, lengths)]


def _move(
    one: FloatArray, other: FloatArray, middles: FloatArray, *, mirrored: bool
) -> NDArray[np.float64]:
    """(m, 4): where each match carries the middle of picture a (x, y), its angle and log of size.

    Each match gives a whole movement by itself, because landmarks have an angle and a size.
    """
    p, q = one.astype(np.float64), other.astype(np.float64)
    flip = np.array([-1.0, 1.0]) if mirrored else np.ones(2)
    angle = np.deg2rad(q[:, 3] - (180 - p[:, 3] if mirrored else p[:, 3]))
    growth = np.log(q[:, 2] / p[:, 2])
    x, y = ((middles - p[:, :2]) * flip * np.exp(growth)[:, None]).T
    cos, sin = np.cos(angle), np.sin(angle)
    landing = q[:, :2] + np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
    return np.column_stack([landing, angle, growth])


def _count_votes(
    moves: NDArray[np.float64], pair: IntArray, least: int
) -> Iterator[tuple[int, int]]:
    """Start and end of the runs of one pair in which enough matches may agree.

    Votes are counted in boxes twice as wide as the tolerances that overlap by half, so that no
    agreement is split by a border; what passes is judged exactly by `_agree`.
    """
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(pair))))
    hopeful = np.zeros(len(starts), dtype=bool)
    turns = round(np.pi / TOLERANCE[1])  # boxes in a whole turn
    x, y = (np.floor(moves[:, :2] / TOLERANCE[0]).clip(-500, 500) + 500).T.astype(np.int64)
    turn = np.floor(moves[:, 2] % (2 * np.pi) / (2 * np.pi) * 2 * turns).astype(np.int64)
    for shift in range(8):
        boxes = [(x + (shift & 1)) // 2, (y + (shift >> 1 & 1)) // 2]
        boxes.append((turn + (shift >> 2)) % (2 * turns) // 2)
        key = ((run * 512 + boxes[0]) * 512 + boxes[1]) * turns + boxes[2]
        keys, counts = np.unique(key, return_counts=True)
        hopeful[keys[counts >= least] // (512 * 512 * turns)] = True
    ends = np.append(starts[1:], len(pair))
    yield from zip(starts[hopeful].tolist(), ends[hopeful].tolist(), strict=True)


def _search(
    tree: KDTree, axes: FloatArray, owner: IntArray, threads: int
) -> tuple[IntArray, IntArray]:
    """Each landmark's nearest ones in other pictures: rows (M,) and (M,), the lower owner first.

    eps = 3: the neighbours need not be the very nearest, since one match more or less is no
    matter; the search is five times as fast and finds 95 of 100.
    """
    wanted = min(NEIGHBOURS + 1, len(owner))
    links = []
    for start in range(0, len(axes), 100_000):
        part = np.arange(start, min(start + 100_000, len(axes)))
        near = tree.query(axes[part], k=wanted, eps=3.0, workers=threads)[1]
        one, other = np.repeat(part, wanted), near.ravel().astype(np.int64)
        apart = owner[one] != owner[other]
        one, other = one[apart], other[apart]
        swapped = owner[one] > owner[other]
        links.append((np.where(swapped, other, one), np.where(swapped, one, other)))
    first = np.concatenate([link[0] for link in links])
    second = np.concatenate([link[1] for link in links])
    key = np.unique(first * len(owner) + second)
    return key // len(owner), key % len(owner)


def _learn_axes(
    descriptors: Sequence[NDArray[np.uint8]],
) -> Callable[[NDArray[np.uint8]], FloatArray]:
    """Principal components of up to 50,000 descriptors, spread over the set; gives a projection.

    Sums by einsum and rounded axes: BLAS adds in another order with another number of threads.
    """
    total = sum(len(d) for d in descriptors)
    step = -(-total // 50_000)
    sample = _root(np.concatenate([d[::step] for d in descriptors]))
    middle = sample.mean(axis=0, dtype=np.float64).round(6)
    sample = sample - middle.astype(np.float32)
    spread = np.einsum("ni,nj->ij", sample, sample, dtype=np.float64, optimize=False)
    axes = np.linalg.eigh(spread)[1][:, -AXES:].round(6).astype(np.float32)

    def project(part: NDArray[np.uint8]) -> FloatArray:
        centred = _root(part) - middle.astype(np.float32)
        return np.asarray(np.einsum("ni,ij->nj", centred, axes, optimize=False))

    return project


def _root(descriptors: NDArray[np.uint8]) -> FloatArray:
    values = descriptors.astype(np.float32)
    return np.asarray(np.sqrt(values / np.maximum(1.0, values.sum(axis=1, keepdims=True))))


def _mirror(descriptors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The descriptors of the mirrored picture: 4 × 4 places × 8 directions, seen from behind."""
    parts = descriptors.reshape(-1, 4, 4, 8)[:, ::-1]
    return np.ascontiguousarray(parts[..., -np.arange(8) % 8]).reshape(-1, 128)


def _agree(
    one: FloatArray, other: FloatArray, moves: NDArray[np.float64], least: int, *, mirrored: bool
) -> NDArray[np.float64] | None:
    """The movement (2, 3) that most matches of one pair agree on, if enough do."""
    away = np.hypot(*(moves[:, None, :2] - moves[None, :, :2]).transpose(2, 0, 1))
    turned = np.abs((moves[:, None, 2] - moves[None, :, 2] + np.pi) % (2 * np.pi) - np.pi)
    grown = np.abs(moves[:, None, 3] - moves[None, :, 3])
    near = (away < TOLERANCE[0]) & (turned < TOLERANCE[1]) & (grown < TOLERANCE[2])
    best = near[near.sum(axis=1).argmax()]
    p, q = one[best, :2].astype(np.float64), other[best, :2].astype(np.float64)
    # One landmark may have several descriptors, and many may have one neighbour.
    if min(len(np.unique(side.round(), axis=0)) for side in (p, q)) < least:
        return None
    return _narrow(p, q, moves[best], least, mirrored=mirrored)


def _narrow(
    p: NDArray[np.float64],
    q: NDArray[np.float64],
    moves: NDArray[np.float64],
    least: int,
    *,
    mirrored: bool,
) -> NDArray[np.float64]:
    """The movement (2, 3) of matches some of which are wrong."""
    turn = np.exp(np.median(moves[:, 3]) + 1j * np.angle(np.exp(1j * moves[:, 2]).sum()))
    linear = _make_linear(turn, mirrored=mirrored)
    matrix = np.column_stack([linear, np.median(q - p @ linear.T, axis=0)])
    for reach in NARROWING:
        near = np.hypot(*(p @ matrix[:, :2].T + matrix[:, 2] - q).T) < reach
        if near.sum() < least:
            break
        matrix = _fit_movement(p[near], q[near], mirrored=mirrored)
    return matrix


def _fit_movement(
    p: NDArray[np.float64], q: NDArray[np.float64], *, mirrored: bool
) -> NDArray[np.float64]:
    """(2, 3): rotation, size and shift that carry p (m, 2) to q (m, 2) with the least squares.

    Source: Umeyama 1991, doi:10.1109/34.88573.
    """
    p0, q0 = p.mean(axis=0), q.mean(axis=0)
    x = (p - p0) * ([-1.0, 1.0] if mirrored else [1.0, 1.0])
    a, b = x @ [1, 1j], (q - q0) @ [1, 1j]
    turn = (np.conj(a) * b).sum() / max((np.abs(a) ** 2).sum(), 1e-9)
    linear = _make_linear(turn, mirrored=mirrored)
    return np.column_stack([linear, q0 - linear @ p0])


def _make_linear(turn: complex, *, mirrored: bool) -> NDArray[np.float64]:
    """(2, 2) that multiplies x + iy by `turn`, after x was mirrored or not."""
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return linear * [-1.0, 1.0] if mirrored else linear
