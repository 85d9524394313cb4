"""Pure functions on true classes (N,) and probabilities (N, K). They know no model and no file.

The predicted class is the one with the highest probability, the first of them in a tie. A class
that doesn't occur among the true ones has no recall, no F1 and no AUROC: averages over classes
leave it out. No function returns NaN: values go into JSON, which has none.

`measure` takes a metric by name; `resampled` gives it for many bootstrap resamples at once, as
matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leuko.errors import ShapeError, UnknownNameError, suggest

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.floating]
Float64 = NDArray[np.float64]

BINS = 15  # the usual number for ECE since Guo et al. 2017
SMALLEST_PROBABILITY = 1e-15  # a network's exact 0 would make the log loss infinite
BLOCK = 2_000_000  # weights handled at a time, so that memory doesn't grow with the resamples


def check_inputs(y_true: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Float64]:
    """Gives the arrays as (N,) int64 and (N, K) float64, or says what doesn't fit.

    Raises:
        ShapeError: No rows; N differs; a label that isn't whole or has no column; a probability
            that is NaN, infinite or outside [0, 1]; a row whose sum is off 1 by more than 1e-4.
    """
    y, p = np.asarray(y_true), np.asarray(probabilities, dtype=np.float64)
    if y.ndim != 1 or p.ndim != 2 or len(y) != len(p):
        raise ShapeError(
            f"Found labels of shape {y.shape} and probabilities of shape {p.shape}; "
            "expected (N,) and (N, K). Pass one row of probabilities for each label."
        )
    if not len(y):
        raise ShapeError("Found no predictions; expected at least one. Check what was selected.")
    if not np.issubdtype(y.dtype, np.integer):
        raise ShapeError(
            f"Found labels of type {y.dtype}; expected whole numbers. Pass class indices."
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ShapeError(
            f"Found labels from {y.min()} to {y.max()} for {p.shape[1]} columns of probabilities; "
            f"expected 0 to {p.shape[1] - 1}. Use one class list for both."
        )
    faulty = ~np.isfinite(p).all(axis=1)
    if not faulty.any():
        faulty = (np.abs(p.sum(axis=1) - 1) > 1e-4) | (p < -1e-6).any(axis=1)
    if faulty.any():
        i = int(np.flatnonzero(faulty)[0])
        raise ShapeError(
            f"Found {int(faulty.sum())} rows that aren't probabilities; row {i} is "
            f"{np.array2string(p[i], precision=4, threshold=8)}. Expected finite values in [0, 1] "
            "that sum to 1. Apply softmax to the scores."
        )
    return y.astype(np.int64), np.clip(p, 0.0, 1.0)


def accuracy(y_true: IntArray, probabilities: FloatArray) -> float:
    """Share of right predictions; a majority guess gets the majority's share.

    Args:
        y_true: True class indices, (N,), in [0, K).
        probabilities: (N, K); rows sum to 1.

    Returns:
        In [0, 1].

    Raises:
        ShapeError: see `check_inputs`; the same for all metrics below.
    """
    return measure("accuracy", y_true, probabilities)


def balanced_accuracy(y_true: IntArray, probabilities: FloatArray) -> float:
    """Mean recall over the classes that occur: unchanged if one class becomes more frequent.

    Returns:
        In [0, 1]; 1/K for a constant guess when all K classes occur.

    Source: Brodersen et al. 2010, doi:10.1109/ICPR.2010.764.
    """
    return measure("balanced_accuracy", y_true, probabilities)


def macro_f1(y_true: IntArray, probabilities: FloatArray) -> float:
    """Mean F1 over the classes that occur; F1 is 0 for a class that is never predicted.

    Returns:
        In [0, 1]. Equals scikit-learn's macro average when all K classes occur.
    """
    return measure("macro_f1", y_true, probabilities)


def auroc(y_true: IntArray, probabilities: FloatArray) -> float:
    """Mean over the classes that occur of the area under one-against-the-rest ROC curves.

    The chance that an image of the class has a higher probability for it than another image;
    ties count half.

    Returns:
        In [0, 1]; 0.5 for a constant guess. Equals scikit-learn's
        ``roc_auc_score(multi_class="ovr", average="macro")`` when all K classes occur.

    Raises:
        ShapeError: Only one class occurs, so there is nothing to tell it from.

    Source: Fawcett 2006, doi:10.1016/j.patrec.2005.10.010.
    """
    return measure("auroc", y_true, probabilities)


def ece(y_true: IntArray, probabilities: FloatArray) -> float:
    """Expected calibration error: mean gap between confidence and accuracy.

    15 bins of equal width over the top probability, each weighted by its share of images. It's
    above 0 even for a perfectly calibrated model: compare it with `ece_noise_floor`.

    Returns:
        In [0, 1]; 0 is best.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    return measure("ece", y_true, probabilities)


def classwise_ece(y_true: IntArray, probabilities: FloatArray) -> float:
    """Calibration error of each class's own probability, averaged over all K classes.

    Sees what the top probability hides, such as a rare class that is always given too little.

    Returns:
        In [0, 1]; 0 is best.

    Source: Kull et al. 2019, arXiv:1910.12656.
    """
    return measure("classwise_ece", y_true, probabilities)


def nll(y_true: IntArray, probabilities: FloatArray) -> float:
    """Mean negative log probability of the true class, in nats.

    Returns:
        At least 0; log(K) for equal probabilities; at most 34.5, as a probability below 1e-15
        counts as 1e-15.
    """
    return measure("nll", y_true, probabilities)


def brier(y_true: IntArray, probabilities: FloatArray) -> float:
    """Mean squared distance between probabilities and truth, summed over the classes.

    Returns:
        In [0, 2]; 1 - 1/K for equal probabilities.

    Source: Brier 1950, the original form for several classes.
    """
    return measure("brier", y_true, probabilities)


def confusion(y_true: IntArray, probabilities: FloatArray) -> NDArray[np.int64]:
    """Counts by true class (rows) and predicted class (columns), (K, K); the sum is N."""
    y, p = check_inputs(y_true, probabilities)
    K = p.shape[1]
    return np.bincount(y * K + p.argmax(axis=1), minlength=K * K).reshape(K, K).astype(np.int64)


def per_class(
    y_true: IntArray, probabilities: FloatArray, classes: Sequence[str]
) -> dict[str, dict[str, float | int]]:
    """Precision, recall, F1 and numbers for each class.

    A precision without predictions, and a recall without images, is 0: ``predicted`` and ``n``
    tell such a 0 from a measured one.

    Args:
        y_true: True class indices, (N,), in [0, K).
        probabilities: (N, K); rows sum to 1.
        classes: K names, in the order of the columns.

    Returns:
        ``{name: {"precision", "recall", "f1", "n", "predicted"}}``; n true images, and how many
        were predicted to be of the class.
    """
    table = confusion(y_true, probabilities)
    if len(classes) != len(table):
        raise ShapeError(
            f"Found {len(classes)} class names for {len(table)} columns of probabilities; "
            "expected as many of each."
        )
    rows: dict[str, dict[str, float | int]] = {}
    for k, name in enumerate(classes):
        hits, n, predicted = int(table[k, k]), int(table[k].sum()), int(table[:, k].sum())
        rows[name] = {
            "precision": hits / predicted if predicted else 0.0,
            "recall": hits / n if n else 0.0,
            "f1": 2 * hits / (n + predicted) if n + predicted else 0.0,
            "n": n,
            "predicted": predicted,
        }
    return rows


@dataclass(frozen=True)
class ReliabilityCurve:
    """The bins of a reliability diagram that hold images, M of them, by rising confidence.

    Attributes:
        lower: Left edge of each bin, (M,).
        upper: Right edge, (M,); a confidence that equals it belongs to the bin.
        confidence: Mean top probability, (M,).
        accuracy: Share of right predictions, (M,).
        count: Predictions in the bin, (M,).
        low: Lower exact (Clopper–Pearson) 95 % limit of the accuracy, (M,).
        high: Upper limit, (M,). Both assume independent images: with several predictions of one
            image, or images that share a group, they are too narrow.
    """

    lower: Float64
    upper: Float64
    confidence: Float64
    accuracy: Float64
    count: NDArray[np.int64]
    low: Float64
    high: Float64


def reliability_curve(
    y_true: IntArray, probabilities: FloatArray, bins: int = BINS
) -> ReliabilityCurve:
    """Accuracy against confidence in bins of equal width, with exact limits."""
    y, p = check_inputs(y_true, probabilities)
    confidence = p.max(axis=1)
    correct = (p.argmax(axis=1) == y).astype(np.float64)
    bin_of = _bin_index(confidence, bins)
    count = np.bincount(bin_of, minlength=bins)
    used = np.flatnonzero(count)
    n = count[used].astype(np.float64)
    right = np.bincount(bin_of, weights=correct, minlength=bins)[used]
    limits = [exact_limits(int(k), int(m)) for k, m in zip(right, n, strict=True)]
    low, high = np.array(limits, dtype=np.float64).reshape(-1, 2).T
    return ReliabilityCurve(
        lower=used / bins,
        upper=(used + 1) / bins,
        confidence=np.bincount(bin_of, weights=confidence, minlength=bins)[used] / n,
        accuracy=right / n,
        count=count[used].astype(np.int64),
        low=low,
        high=high,
    )


def exact_limits(right: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson limits of a share.

    Args:
        right: Successes, 0 ≤ right ≤ n. A fraction where the share is one of more trials than n
            of them are independent.
        n: Trials; with none, the limits are 0 and 1.
        level: Of confidence, in (0, 1).

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404; fractions: Korn and Graubard
    1998, Survey Methodology 24, 193–201.
    """
    from scipy.stats import beta

    if n == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if right == 0 else float(beta.ppf(tail, right, n - right + 1))
    high = 1.0 if right == n else float(beta.ppf(1 - tail, right + 1, n - right))
    return low, high


@dataclass(frozen=True)
class NoiseFloor:
    """The ECE that a perfectly calibrated model would show by chance.

    Attributes:
        mean: Mean over the simulations.
        p95: 95th percentile: a measured ECE above it is evidence of miscalibration.
    """

    mean: float
    p95: float


def ece_noise_floor(
    probabilities: FloatArray, rng: np.random.Generator | int, n_simulations: int = 1000
) -> NoiseFloor:
    """Simulates the ECE of a model whose top probabilities are exactly right.

    Each simulation calls a prediction right with the probability that it claims. Independent
    images are assumed.

    Args:
        probabilities: (N, K); rows sum to 1.
        rng: Generator or seed.
        n_simulations: How often to draw N outcomes.

    Source: consistency resampling, Bröcker and Smith 2007, doi:10.1175/WAF993.1.
    """
    _, p = check_inputs(np.zeros(len(np.asarray(probabilities)), dtype=np.int64), probabilities)
    generator = np.random.default_rng(rng)
    confidence = p.max(axis=1)
    order = np.argsort(_bin_index(confidence, BINS), kind="stable")
    confidence = confidence[order]
    starts = np.flatnonzero(np.diff(_bin_index(confidence, BINS), prepend=-1))
    values = []
    for start in range(0, n_simulations, max(1, BLOCK // len(p))):
        size = min(max(1, BLOCK // len(p)), n_simulations - start)
        right = generator.random((size, len(p))) < confidence
        values.append(np.abs(np.add.reduceat(confidence - right, starts, axis=1)).sum(axis=1))
    simulated = np.concatenate(values) / len(p)
    return NoiseFloor(float(simulated.mean()), float(np.quantile(simulated, 0.95)))


def measure(metric: str, y_true: IntArray, probabilities: FloatArray) -> float:
    """A metric by its name in `METRICS`.

    Raises:
        UnknownNameError: No metric of that name.
        ShapeError: see `check_inputs`; or auroc where one class occurs.
    """
    value = float(resampled(metric, y_true, probabilities, np.ones((1, len(y_true))))[0])
    if np.isnan(value):
        raise ShapeError(
            f"Found one class only among the true labels; {metric} needs at least two. "
            "Leave it out, or add images of another class."
        )
    return value


def resampled(
    metric: str, y_true: IntArray, probabilities: FloatArray, weights: NDArray[np.number]
) -> Float64:
    """One metric for B resamples at once; the same as repeating row i ``weights[b, i]`` times.

    Args:
        metric: A name in `METRICS`.
        y_true: True class indices, (N,), in [0, K).
        probabilities: (N, K); rows sum to 1.
        weights: (B, N); how often each row is in each resample; 0 or more.

    Returns:
        (B,). NaN only where a resample is empty or, for auroc, holds a single class.

    Raises:
        UnknownNameError: No metric of that name.
        ShapeError: see `check_inputs`; or weights that aren't (B, N).
    """
    y, p = check_inputs(y_true, probabilities)
    if metric not in METRICS:
        raise UnknownNameError(f"No metric is called {metric!r}. {suggest(metric, list(METRICS))}")
    if weights.ndim != 2 or weights.shape[1] != len(y):
        raise ShapeError(
            f"Found weights of shape {weights.shape} for {len(y)} rows; expected (B, {len(y)})."
        )
    kernel = METRICS[metric](y, p)
    step = max(1, BLOCK // len(y))
    parts = [kernel(weights[i : i + step].astype(np.float64)) for i in range(0, len(weights), step)]
    return np.concatenate(parts) if parts else np.empty(0)


# A kernel holds what doesn't depend on the resample, and maps weights (B, N) to values (B,).
Kernel = Callable[[Float64], Float64]


def _divide(a: Float64, b: Float64, otherwise: float) -> Float64:
    quotient = np.full(np.broadcast(a, b).shape, otherwise, dtype=np.float64)
    np.divide(a, b, out=quotient, where=b > 0)
    return quotient


def _row_mean(scores: Float64) -> Kernel:
    """Kernel of a metric that is the mean of one score (N,) per row."""
    return lambda w: _divide(w @ scores, w.sum(axis=1), np.nan)


def _accuracy(y: NDArray[np.int64], p: Float64) -> Kernel:
    return _row_mean((p.argmax(axis=1) == y).astype(np.float64))


def _nll(y: NDArray[np.int64], p: Float64) -> Kernel:
    # The clip is at 1 too: rounding must not make the loss of a certain answer negative.
    return _row_mean(-np.log(np.clip(p[np.arange(len(y)), y], SMALLEST_PROBABILITY, 1.0)))


def _brier(y: NDArray[np.int64], p: Float64) -> Kernel:
    return _row_mean(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1))


def _class_counts(
    y: NDArray[np.int64], p: Float64
) -> Callable[[Float64], tuple[Float64, Float64, Float64]]:
    """Kernel for hits, true and predicted counts, each (B, K)."""
    truth, predicted = np.eye(p.shape[1])[y], np.eye(p.shape[1])[p.argmax(axis=1)]  # (N, K)
    return lambda w: (w @ (truth * predicted), w @ truth, w @ predicted)


def _mean_over_occurring(values: Float64, true: Float64) -> Float64:
    """Mean (B,) of values (B, K) over the classes with a true count above 0."""
    occurs = true > 0
    return _divide((values * occurs).sum(axis=1), occurs.sum(axis=1).astype(np.float64), np.nan)


def _balanced_accuracy(y: NDArray[np.int64], p: Float64) -> Kernel:
    counts = _class_counts(y, p)

    def kernel(w: Float64) -> Float64:
        hits, true, _ = counts(w)
        return _mean_over_occurring(_divide(hits, true, 0.0), true)

    return kernel


def _macro_f1(y: NDArray[np.int64], p: Float64) -> Kernel:
    counts = _class_counts(y, p)

    def kernel(w: Float64) -> Float64:
        hits, true, predicted = counts(w)
        return _mean_over_occurring(_divide(2 * hits, true + predicted, 0.0), true)

    return kernel


def _auroc(y: NDArray[np.int64], p: Float64) -> Kernel:
    # Sorting is done once per class. Rows of equal probability form one step of the ROC curve,
    # which gives ties their half.
    plans = []
    for k in np.unique(y):
        order = np.argsort(p[:, k], kind="stable")
        steps = np.flatnonzero(np.diff(p[order, k], prepend=-1.0))
        plans.append((order, steps, y[order] == k))

    def kernel(w: Float64) -> Float64:
        areas, defined = np.zeros(len(w)), np.zeros(len(w))
        for order, steps, own in plans:
            sorted_w = w[:, order]
            positive = np.add.reduceat(sorted_w * own, steps, axis=1)  # (B, steps)
            negative = np.add.reduceat(sorted_w * ~own, steps, axis=1)
            below = np.cumsum(negative, axis=1)
            pairs = positive.sum(axis=1) * below[:, -1]
            wins = (positive * (below - negative / 2)).sum(axis=1)
            areas += _divide(wins, pairs, 0.0)
            defined += pairs > 0
        return _divide(areas, defined, np.nan)

    return kernel


def _bin_index(confidence: Float64, bins: int) -> NDArray[np.int64]:
    """Bins of equal width over [0, 1], open on the left: the last one holds 1."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _gap(confidence: Float64, right: Float64) -> Kernel:
    """Kernel of the calibration error of claimed (N,) against happened (N,) in equal bins."""
    gaps = np.eye(BINS)[_bin_index(confidence, BINS)] * (confidence - right)[:, None]  # (N, bins)
    return lambda w: _divide(np.abs(w @ gaps).sum(axis=1), w.sum(axis=1), np.nan)


def _ece(y: NDArray[np.int64], p: Float64) -> Kernel:
    return _gap(p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64))


def _classwise_ece(y: NDArray[np.int64], p: Float64) -> Kernel:
    kernels = [_gap(p[:, k], (y == k).astype(np.float64)) for k in range(p.shape[1])]
    return lambda w: np.asarray(sum(kernel(w) for kernel in kernels) / len(kernels))


METRICS: dict[str, Callable[[NDArray[np.int64], Float64], Kernel]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "auroc": _auroc,
    "ece": _ece,
    "classwise_ece": _classwise_ece,
    "nll": _nll,
    "brier": _brier,
}
