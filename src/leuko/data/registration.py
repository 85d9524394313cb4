"""Lays one picture on another and says how alike they are: one pair, no search.

A movement that some landmarks suggest is refined on flattened pictures; then what both show is
correlated, in the gross and in detail. Knows pixels; knows no files, labels or cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COARSE = 3  # px of that picture per px of the flattened one that is correlated
CORRELATION = 0.85  # of what both show, see results/same_cells.md and results/copies.md
# Correlation of the finest detail of that part. Round cells on an empty ground are alike in the
# gross whoever they are; detail is not: 0.72 and more in second photographs and copies, 0.65 and
# less in drawn lymphocytes that look alike.
DETAIL = 0.69
EVIDENCE = 6.5  # correlation weighed by the size of that part, see `_weigh`
PROMISE = 0.2  # correlation before the registration is refined, below which it isn't

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Sketch:
    """What is kept of one picture to compare it with others.

    Attributes:
        points: (n, 4): x, y in px, size in px and angle in degrees of each landmark, in the
            reduced picture.
        descriptors: (n, 128) uint8.
        flat: (h, w) float16: the picture made small, without shading and local contrast; NaN
            where nothing was photographed.
        width, height: Of the reduced picture in px.
        shrink: px of the reduced picture per px of the picture.
    """

    points: FloatArray
    descriptors: NDArray[np.uint8]
    flat: NDArray[np.float16]
    width: int
    height: int
    shrink: float


@dataclass(frozen=True)
class Likeness:
    """Two pictures that show the same place.

    Attributes:
        a, b: Positions in the sequence, a < b.
        score: Correlation of the part that both show, in [0.85, 1].
        evidence: The same weighed by the size of that part; above 6.5 it can't be chance.
        overlap: Share of the smaller picture that both show, in (0, 1].
        detail: Correlation of the finest detail of that part, in [0.69, 1].
        matrix: (2, 3): a point (x, y) of a, in px, lies at ``matrix @ (x, y, 1)`` in b.
    """

    a: int
    b: int
    score: float
    evidence: float
    overlap: float
    detail: float
    matrix: NDArray[np.float64]

    @property
    def mirrored(self) -> bool:
        """One of the two is a mirror image."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)

    @property
    def distortion(self) -> float:
        """How far the movement is from a mere shift and change of size; 0 for none.

        The largest change of direction or length of a unit vector, after division by the scale:
        about the angle in radians for a rotation, 2 for a mirror image.
        """
        linear = self.matrix[:, :2]
        scale = np.sqrt(abs(np.linalg.det(linear)))
        return float(np.linalg.svd(linear / scale - np.eye(2))[1][0])


def register(a: int, b: int, one: Sketch, other: Sketch, start: NDArray[np.float64]) -> Likeness:
    """Refines a movement on the flattened pictures, and says how alike they then are.

    Args:
        a, b: Positions of the two in their set, for the result.
        one, other: Their sketches.
        start: (2, 3): a movement of the reduced picture of a onto that of b.
    """
    flat_a, flat_b = one.flat.astype(np.float32), other.flat.astype(np.float32)
    # Pixel centres: a point x of the reduced picture is (x + 0.5) / COARSE - 0.5 of the flat one.
    to_flat, to_full = _rescale(1 / COARSE), _rescale(COARSE)
    coarse = (to_flat @ _square(start) @ to_full)[:2]
    outcomes = [(*_compare(flat_a, flat_b, coarse), coarse)]
    if outcomes[0][0] >= PROMISE:
        better = _refine(flat_a, flat_b, coarse)
        outcomes.append((*_compare(flat_a, flat_b, better), better))
    score, evidence, overlap, best = max(outcomes, key=lambda outcome: outcome[1])
    detail = _compare_detail(flat_a, _carry_back(flat_b, flat_a, best)) if score > 0 else 0.0
    whole = _rescale(1 / other.shrink) @ to_full @ _square(best) @ to_flat @ _rescale(one.shrink)
    return Likeness(a, b, score, evidence, overlap, detail, whole[:2])


def _rescale(factor: float) -> NDArray[np.float64]:
    shift = (factor - 1) / 2
    return np.array([[factor, 0, shift], [0, factor, shift], [0, 0, 1]])


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])


def _refine(
    flat_a: FloatArray, flat_b: FloatArray, start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The affine movement near `start` with the highest correlation.

    Source: Evangelidis and Psarakis 2008, doi:10.1109/TPAMI.2008.113, as in OpenCV.
    """
    import cv2

    rule = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    seen = np.isfinite(flat_b).astype(np.uint8)
    try:
        _, matrix = cv2.findTransformECC(
            np.nan_to_num(flat_a), np.nan_to_num(flat_b), start.astype(np.float32),
            cv2.MOTION_AFFINE, rule, seen, 3,
        )  # fmt: skip
    except cv2.error:  # no common part, or no convergence: the start stands
        return start
    return np.asarray(matrix, dtype=np.float64)


def _compare(
    flat_a: FloatArray, flat_b: FloatArray, matrix: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Correlation, evidence and overlap after b was carried back onto a."""
    growth = np.linalg.svd(matrix[:, :2])[1]
    if not np.isfinite(matrix).all() or growth[0] > 4 or growth[1] < 0.25:
        return -1.0, -np.inf, 0.0  # everything can be carried onto a point
    moved = _carry_back(flat_b, flat_a, matrix)
    both = np.isfinite(moved) & np.isfinite(flat_a)
    common = int(both.sum())
    smaller = min(
        int(np.isfinite(flat_a).sum()),
        int(np.isfinite(flat_b).sum() / abs(np.linalg.det(matrix[:, :2]))),
    )
    if common < 64 or common < 0.07 * smaller:
        return -1.0, -np.inf, 0.0
    score = _correlate(flat_a[both], moved[both])
    return score, _weigh(score, common), min(1.0, common / max(1, smaller))


def _carry_back(flat_b: FloatArray, flat_a: FloatArray, matrix: NDArray[np.float64]) -> FloatArray:
    """b as it lies on a, of the shape of a; NaN where b shows nothing."""
    import cv2

    # A copy that is moved by a tenth of a pixel shall not lose its border.
    wider = cv2.copyMakeBorder(flat_b, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    moved = cv2.warpAffine(
        wider, matrix + np.array(((0, 0, 1), (0, 0, 1))), (flat_a.shape[1], flat_a.shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=np.nan,
    )  # fmt: skip
    return np.asarray(moved, dtype=np.float32)


def _compare_detail(flat_a: FloatArray, moved: FloatArray) -> float:
    """Correlation of what is finer than about two px, where both pictures show something."""
    import cv2

    both = np.isfinite(moved) & np.isfinite(flat_a)
    weight = np.maximum(cv2.GaussianBlur(both.astype(np.float32), (0, 0), 1.0), 1e-3)
    fine = []
    for flat in (flat_a, moved):
        shown = np.where(both, flat, 0).astype(np.float32)
        fine.append((shown - cv2.GaussianBlur(shown, (0, 0), 1.0) / weight)[both])
    return _correlate(*fine)


def _correlate(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    return float((x * y).sum() / max(np.sqrt((x**2).sum() * (y**2).sum()), 1e-6))


def _weigh(score: float, size: int) -> float:
    """Fisher's z over its spread for `size` px, of which 25 count as one independent."""
    return float(np.arctanh(np.clip(score, -0.99, 0.99)) * np.sqrt(size / 25))
