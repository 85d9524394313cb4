"""Making probabilities mean what they say: temperature, and sets of classes at a stated coverage.

Pure functions on true classes (N,) and probabilities (N, K) of cells that the model never saw.
They know no model and no file.

Conformal sets are computed by hand: crepes gives p-values of one calibrated object, while a
bundle has to hold one threshold per class that anybody can apply and check.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.metrics import SMALLEST_PROBABILITY, check_inputs

Float64 = NDArray[np.float64]
Labels = NDArray[np.integer]

COVERAGE = 0.95
COLDEST, HOTTEST = 0.05, 20.0  # temperatures; at either end something else is wrong
SPREAD = 0.5  # of the logarithm of temperatures that are to be expected


def apply_temperature(probabilities: NDArray[np.floating], temperature: float) -> Float64:
    """Sharpens (below 1) or softens (above 1) probabilities; their order stays.

    Args:
        probabilities: (N, K); rows sum to 1. They may be means over several views: what counts is
            their logarithm, which for one view is the network's output.
        temperature: Above 0; 1 changes nothing.

    Returns:
        (N, K); rows sum to 1.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    p = np.asarray(probabilities, np.float64)
    if temperature == 1:
        return p.copy()
    scores = np.log(np.maximum(p, SMALLEST_PROBABILITY)) / temperature
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def fit_temperature(
    y_true: Labels,
    probabilities: NDArray[np.floating],
    *,
    near: float | None = None,
    cells: int | None = None,
) -> float:
    """The temperature at which the log loss is least.

    Args:
        y_true: (N,), in [0, K).
        probabilities: (N, K), of cells that the model never saw.
        near: Where so few cells may say little, the temperature to expect: its logarithm gets a
            normal prior around it, `SPREAD` wide. None: only the cells have a say.
        cells: How many different cells there are, if the rows show some several times.

    Returns:
        From 0.05 to 20.

    Raises:
        ShapeError: see `leuko.judgement.metrics.check_inputs`.
    """
    from scipy.optimize import minimize_scalar

    y, p = check_inputs(y_true, probabilities)
    scores = np.log(np.maximum(p, SMALLEST_PROBABILITY))

    def loss(logarithm: float) -> float:
        scaled = scores / np.exp(logarithm)
        highest = scaled.max(axis=1)
        total = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        far = 0.0 if near is None else (logarithm - np.log(near)) / SPREAD
        return float(np.mean(total - scaled[np.arange(len(y)), y]) + far**2 / 2 / (cells or len(y)))

    found = minimize_scalar(
        loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def fit_thresholds(
    y_true: Labels, probabilities: NDArray[np.floating], coverage: float = COVERAGE
) -> Float64:
    """The least probability with which each class belongs to the set of a cell.

    Class-conditional split conformal prediction: for each class, among its own n cells, the
    threshold is the floor((n + 1)(1 - coverage))-th smallest probability of the true class. Of
    new cells of that class, drawn from the same source, at least `coverage` then have it in their
    set, whatever the model is worth. The guarantee holds on average over draws of the calibration
    cells, and only as far as new cells resemble them.

    Args:
        y_true: (N,), in [0, K).
        probabilities: (N, K), of cells that the model never saw, as they will be given out.
        coverage: In (0, 1).

    Returns:
        (K,), in [0, 1]; 0, so that the class is in every set, where its cells are too few for
        the coverage asked: fewer than coverage / (1 - coverage), or none at all.

    Raises:
        ShapeError: see `leuko.judgement.metrics.check_inputs`; or a coverage outside (0, 1).

    Source: Vovk 2012, arXiv:1209.2673; Angelopoulos and Bates 2021, arXiv:2107.07511.
    """
    y, p = check_inputs(y_true, probabilities)
    if not 0 < coverage < 1:
        raise ShapeError(f"Found a coverage of {coverage}; expected a number between 0 and 1.")
    thresholds = np.zeros(p.shape[1])
    for k in range(p.shape[1]):
        own = np.sort(p[y == k, k])
        # The small number undoes rounding: 20 × 0.05 is to be 1, not a little less.
        rank = int(np.floor((len(own) + 1) * (1 - coverage) + 1e-9))
        if rank >= 1:
            thresholds[k] = own[rank - 1]
    return thresholds


def fit_thresholds_from_few(
    y_true: Labels, probabilities: NDArray[np.floating], coverage: float = COVERAGE
) -> Float64:
    """As `fit_thresholds`, where some classes have too few cells for a threshold of their own.

    They take the threshold of all cells together. For them the stated share then holds over the
    mixture of classes that these cells have, not for each class.

    Args:
        y_true: (N,), in [0, K).
        probabilities: (N, K), of cells that the model never saw, as they will be given out.
        coverage: In (0, 1).

    Returns:
        (K,), in [0, 1]; 0 where even all cells together are too few.

    Raises:
        ShapeError: see `fit_thresholds`.
    """
    y, p = check_inputs(y_true, probabilities)
    own = fit_thresholds(y, p, coverage)
    right = p[np.arange(len(y)), y]
    pair = np.stack([right, 1 - right], axis=1)  # all cells as one class
    shared = fit_thresholds(np.zeros(len(y), np.int64), pair, coverage)[0]
    few = np.floor((np.bincount(y, minlength=len(own)) + 1) * (1 - coverage) + 1e-9) < 1
    return np.where(few, shared, own)


def find_sets(
    probabilities: NDArray[np.floating], thresholds: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Which classes are in the set of each cell.

    Args:
        probabilities: (N, K).
        thresholds: (K,), from `fit_thresholds`.

    Returns:
        (N, K). A row may hold no class at all: then the cell is unlike those of any class.
    """
    return np.asarray(probabilities) >= np.asarray(thresholds)


def find_coverage_band(
    calibrated: Sequence[int], tested: Sequence[int], coverage: float, level: float = 0.99
) -> tuple[float, float]:
    """Where the observed coverage lies by chance, if new cells are like those of the calibration.

    The thresholds of `fit_thresholds` cover a share of the cells of a class that is itself drawn,
    Beta(n + 1 - r, r) with r = floor((n + 1)(1 - coverage)); how many of m new cells are covered
    is Beta-binomial. The classes are independent, so their numbers add up.

    Args:
        calibrated: n of each class: cells that its threshold comes from.
        tested: m of each class: new cells, drawn independently.
        coverage: That was asked for, in (0, 1).
        level: Share of such draws that lie within, in (0, 1).

    Returns:
        The lowest and the highest share of all the cells tested; 0 and 1 without any.

    Source: Vovk 2012, arXiv:1209.2673; Angelopoulos and Bates 2021, arXiv:2107.07511.
    """
    from scipy.stats import betabinom

    chances = np.ones(1)
    for n, m in zip(calibrated, tested, strict=True):
        rank = int(np.floor((n + 1) * (1 - coverage) + 1e-9))
        own = np.zeros(m + 1)
        if rank < 1:
            own[m] = 1.0  # the class is in every set
        else:
            own = betabinom(m, n + 1 - rank, rank).pmf(np.arange(m + 1))
        chances = np.convolve(chances, own)
    total = len(chances) - 1
    if not total:
        return 0.0, 1.0
    below = np.cumsum(chances)
    tail = (1 - level) / 2
    low, high = np.searchsorted(below, [tail, 1 - tail - 1e-12])
    return float(low / total), float(min(high, total) / total)


def cross_calibrate(
    y_true: Labels,
    probabilities: NDArray[np.floating],
    parts: Sequence[int] | NDArray[np.integer],
    coverage: float = COVERAGE,
) -> tuple[Float64, NDArray[np.bool_]]:
    """What calibration is worth on cells that weren't used for it.

    Temperature and thresholds of each part come from all other parts.

    Args:
        y_true: (N,), in [0, K).
        probabilities: (N, K), of cells that the model never saw.
        parts: (N,) two parts or more; cells of one group belong into one part.
        coverage: In (0, 1).

    Returns:
        Calibrated probabilities (N, K) and sets (N, K).

    Raises:
        ShapeError: Only one part.
    """
    y, p = check_inputs(y_true, probabilities)
    part_of = np.asarray(parts)
    if len(part_of) != len(y) or len(np.unique(part_of)) < 2:
        raise ShapeError(
            f"Found {len(np.unique(part_of))} parts of {len(part_of)} cells for {len(y)} answers; "
            "expected two or more, and one entry for each answer."
        )
    calibrated, sets = np.empty_like(p), np.zeros(p.shape, bool)
    for part in np.unique(part_of):
        here = part_of == part
        temperature = fit_temperature(y[~here], p[~here])
        others = apply_temperature(p[~here], temperature)
        calibrated[here] = apply_temperature(p[here], temperature)
        sets[here] = find_sets(calibrated[here], fit_thresholds(y[~here], others, coverage))
    return calibrated, sets
