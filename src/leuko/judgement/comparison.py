"""Which model is better, and can these data tell? Intervals, paired tests, Holm, the choice.

The unit is the group (one cell, field, slide or patient), never the single prediction: images of
one group are resampled together, and repeats of one image count once.

What the numbers cover: new images of the same kind, given the networks as they were trained here.
With one repeat nothing is known about training the same family again, and "better" is a word about
these fitted networks: in a simulation (n = 300, accuracy 85 %) two equal families whose training
runs vary by 2 points (standard deviation) were told apart in 18 % of cases, by 4 points in 40 %.
With more repeats that variance is estimated and added to the intervals (see `interval`): the same
cases gave 8 and 12 % for two repeats, 8 and 11 % for three, 5 and 7 % for five. Repeats train on
much the same images, so what another data set would do to the ranking stays unknown.

A tie means that the data can't tell, not that the models are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError, UnknownNameError, suggest
from leuko.judgement.metrics import (
    METRICS,
    Float64,
    IntArray,
    check_inputs,
    measure,
    resampled,
)
from leuko.judgement.predictions import Predictions

RESAMPLES = 2000
FLIPS = 4999  # the smallest p that can be found is 1 / (FLIPS + 1)
BLOCK = 4_000_000  # bootstrap counts held at a time
RANGES = {"nll": (0.0, np.inf), "brier": (0.0, 2.0)}  # all others lie in [0, 1]
# Resampling adds noise to these, and noise raises them: their resamples lie above the value.
RAISED_BY_NOISE = ("ece", "classwise_ece")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % limits; low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """One comparison: a against b.

    Attributes:
        a: Name of the first model.
        b: Name of the second.
        difference: Metric of a minus metric of b, mean over repeats.
        low: Lower limit of the 95 % interval of the difference, for this pair alone.
        high: Upper limit.
        p: Two-sided p of the sign-flip test, for this pair alone.
        p_holm: The same, adjusted for the number of pairs compared.
        verdict: "better" or "worse" (a than b) if p_holm < 0.05 and the interval leaves out 0
            on the side of the difference; else "tie".
        metric: What was compared.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: str
    metric: str

    def to_json(self) -> dict[str, str | float]:
        """The entry of ``pairs`` in results.json."""
        return asdict(self)


def bootstrap_weights(
    groups: Sequence[str], rng: np.random.Generator, n_resamples: int = RESAMPLES
) -> NDArray[np.int32]:
    """How often each image is in each resample, when whole groups are drawn with replacement.

    Not stratified by class, because the class counts of another sample of smears would vary too.
    A class of g among G groups is missing from a resample with probability about exp(-g): 2e-9 for
    20 groups. Of 3 it's missing in 5 %; metrics then average over the classes that are there.

    Args:
        groups: N names.
        rng: Drawn from in an order that doesn't depend on how the groups are called.
        n_resamples: B.

    Returns:
        (B, N) counts of at least 0; all images of a group have the same.

    Source: cluster bootstrap, Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x.
    """
    group_of = _number_groups(groups)
    G = int(group_of.max()) + 1
    drawn = rng.integers(0, G, (n_resamples, G)) + np.arange(n_resamples)[:, None] * G
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * G).reshape(n_resamples, G)
    return counts.astype(np.int32)[:, group_of]


def interval(
    metric: str,
    y_true: IntArray,
    probabilities: Float64,
    groups: Sequence[str],
    *,
    rng: np.random.Generator | int = 0,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """A metric with its 95 % percentile interval from the group bootstrap.

    Percentile rather than BCa: it stays in the metric's range and needs no jackknife. Simulated
    coverage at n = 300 with the classes of the Kaggle set (400 runs): accuracy 95.8 %, in pairs of
    like images 95.3 %, balanced accuracy 93.5 %, AUROC and macro-F1 93 % (200 runs); see
    ``tests/test_comparison.py``. Two additions:

    - Calibration errors rise with noise, so their resamples lie too high. They are shifted so
      that their mean is the value.
    - Where no image is wrong, or all are, all resamples are alike and say nothing. The other limits
      of accuracy, balanced accuracy and macro-F1 then are exact (Clopper-Pearson) ones, with the
      number of groups as n; averaged over the classes for the latter two, which is cautious.

    With R >= 2 repeats the metric is averaged over them in each resample. The variance between the
    repeats beyond what single images explain is due to training and splitting. It's added, and as
    few repeats tell it badly, the limits are widened by Student's t (Satterthwaite's degrees of
    freedom, at least 2).

    Args:
        metric: A name in `leuko.judgement.metrics.METRICS`.
        y_true: True class indices, (N,), in [0, K).
        probabilities: (N, K), or (R, N, K) for R repeats; rows sum to 1.
        groups: N names; images of one group are drawn together.
        rng: Generator or seed.
        n_resamples: 2000 keep the limits within about 0.06 standard errors.

    Raises:
        UnknownNameError: No metric of that name.
        ShapeError: The arrays don't fit, or auroc is asked for where one class occurs.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    p = p[None] if p.ndim == 2 else p
    _check(metric, y_true, p, groups)
    least, most = RANGES.get(metric, (0.0, 1.0))
    plain = _plain(metric, y_true, p)
    generator = np.random.default_rng(rng)
    draws = _draw(metric, y_true, p, groups, generator, n_resamples)
    value = float(plain.mean())
    if metric in RAISED_BY_NOISE:
        draws += plain[:, None] - np.nanmean(draws, axis=1, keepdims=True)
    low, high = limits_over_repeats(plain, draws, generator)
    if metric in ("accuracy", "balanced_accuracy", "macro_f1") and value in (0.0, 1.0):
        far = _limit_of_all(metric, np.asarray(y_true), groups)
        low, high = (far, high) if value else (low, 1 - far)
    return Interval(value, max(least, min(low, value)), min(most, max(high, value)))


def compare_pair(
    a: Predictions,
    b: Predictions,
    *,
    metric: str = "accuracy",
    rng: np.random.Generator | int = 0,
    n_resamples: int = RESAMPLES,
) -> Pair:
    """The difference of two models on the same images: interval, p and verdict.

    The interval is the paired group bootstrap of `interval`. The test swaps the two models'
    answers for whole groups at random (sign flips): if the models are alike, no swap changes
    anything but by chance. It needs no normality and suits few images. For accuracy all swaps are
    counted exactly, which for one repeat and groups of one image is McNemar's exact test; for
    other metrics 4,999 random swaps are taken. Why no t-test over folds: folds share their
    training images, so their differences aren't independent (Dietterich 1998). The test takes the
    networks as they are; what repeats say about training enters through the interval, and a
    verdict needs both.

    Args:
        a: The first model.
        b: The second; same images, groups, labels and number of repeats.
        metric: A name in `leuko.judgement.metrics.METRICS`; difference > 0 means a's is higher,
            and "better" means that only for metrics where more is better.
        rng: Generator or seed.
        n_resamples: As in `interval`.

    Raises:
        UnknownNameError: No metric of that name, or one where less is better.
        ShapeError: The two don't fit each other.

    Source: Good 2005, Permutation, Parametric and Bootstrap Tests; Dietterich 1998,
    doi:10.1162/089976698300017197.
    """
    _check_pair(a, b, metric)
    generator = np.random.default_rng(rng)
    y, groups = np.asarray(a.y_true), a.groups
    both = np.concatenate([a.probabilities, b.probabilities])  # (2R, N, K)
    R = len(a.probabilities)
    plain = _plain(metric, y, both)
    draws = _draw(metric, y, both, groups, generator, n_resamples)
    per_repeat = plain[:R] - plain[R:]
    difference = float(per_repeat.mean())
    low, high = limits_over_repeats(per_repeat, draws[:R] - draws[R:], generator)
    if metric == "accuracy":
        p = _sign_flip_exact(_group_wins(a, b))
    else:
        p = _sign_flip_sampled(metric, a, b, generator)
    low, high = min(low, difference), max(high, difference)
    verdict = _verdict(difference, low, high, p)
    return Pair(a.name, b.name, difference, low, high, p, p, verdict, metric)


def compare_models(
    predictions: Sequence[Predictions],
    *,
    metric: str = "accuracy",
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> list[Pair]:
    """All pairs, with Holm's correction for their number.

    Each interval is a 95 % one for its pair alone and belongs to p; the verdict belongs to
    p_holm. A pair whose interval leaves out 0 can therefore still be a tie: among many pairs one
    such is expected by chance.

    Args:
        predictions: Two or more models on the same images; fewer give no pairs.
        metric: A name in `leuko.judgement.metrics.METRICS` where more is better.
        seed: Each pair starts from it anew, so a pair's numbers don't depend on the other models.
        n_resamples: As in `interval`.

    Returns:
        Pairs (first, second), (first, third), ... in the order given.

    Source: Holm 1979, through statsmodels.
    """
    pairs = [
        compare_pair(a, b, metric=metric, rng=seed, n_resamples=n_resamples)
        for a, b in combinations(predictions, 2)
    ]
    if not pairs:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests([pair.p for pair in pairs], method="holm")[1].tolist()
    return [
        replace(x, p_holm=q, verdict=_verdict(x.difference, x.low, x.high, q))
        for x, q in zip(pairs, adjusted, strict=True)
    ]


def choose_best(
    balanced_accuracy: Mapping[str, float],
    pairs: Sequence[Pair],
    cost: Mapping[str, tuple[float, float]],
) -> tuple[str, str]:
    """The cheapest model than which the one with the top balanced accuracy isn't shown better.

    Args:
        balanced_accuracy: By model; leave the baselines out.
        pairs: From `compare_models`; may hold more models.
        cost: (FLOPs per image, parameters) by model.

    Returns:
        The name, and the rule with its numbers as a sentence for the report.

    Raises:
        ShapeError: No models, or a pair or a cost is missing.
    """
    if not balanced_accuracy:
        raise ShapeError("Found no models to choose from; expected at least one.")
    top = max(sorted(balanced_accuracy), key=lambda name: balanced_accuracy[name])
    verdicts = {(pair.a, pair.b): pair.verdict for pair in pairs}
    candidates = []
    for name in balanced_accuracy:
        if name not in cost:
            raise ShapeError(f"Found no cost of {name}; expected its FLOPs and its parameters.")
        if name == top:
            candidates.append(name)
            continue
        said = verdicts.get((top, name))
        swapped = verdicts.get((name, top))
        if said is None and swapped is None:
            raise ShapeError(f"Found no comparison of {top} and {name}; expected all pairs.")
        if said != "better" and swapped != "worse":
            candidates.append(name)
    best = min(sorted(candidates), key=lambda name: cost[name])
    metric = pairs[0].metric.replace("_", " ") if pairs else "accuracy"
    highest = f"{top} has the highest balanced accuracy ({balanced_accuracy[top]:.3f})"
    if len(candidates) == 1:
        others = f", and each other model's {metric} is worse" if len(balanced_accuracy) > 1 else ""
        return best, f"{highest}{others}: {best} is chosen."
    tied = ", ".join(sorted(set(candidates) - {top}))
    return best, (
        f"{highest}; in {metric} it is not shown to be better than {tied}. Of these the cheapest "
        f"is chosen, by FLOPs per image, then by parameters: {best} "
        f"({cost[best][0]:.3g} FLOPs, {cost[best][1]:.3g} parameters)."
    )


def _number_groups(groups: Sequence[str]) -> NDArray[np.int64]:
    """Groups as numbers (N,), by first appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(g, len(seen)) for g in groups], dtype=np.int64)


def _check(metric: str, y_true: IntArray, p: Float64, groups: Sequence[str]) -> None:
    if metric not in METRICS:
        raise UnknownNameError(f"No metric is called {metric!r}. {suggest(metric, list(METRICS))}")
    if p.ndim != 3 or not len(p) or len(groups) != len(y_true):
        raise ShapeError(
            f"Found {len(y_true)} labels, {len(groups)} groups and probabilities of shape "
            f"{p.shape}; expected N, N and (R, N, K)."
        )
    if len(set(groups)) < 2:
        raise ShapeError(
            "All images are in one group; an interval needs two or more, because groups are what "
            "is resampled. Group by something smaller, or judge more slides."
        )
    for q in p:
        check_inputs(y_true, q)


def _check_pair(a: Predictions, b: Predictions, metric: str) -> None:
    for one in (a, b):
        _check(metric, one.y_true, one.probabilities, one.groups)
    if metric in RAISED_BY_NOISE or metric in RANGES:
        raise UnknownNameError(
            f"Models can't be ranked by {metric!r} here, as less of it is better. "
            "Take accuracy, balanced_accuracy, macro_f1 or auroc."
        )
    same = (
        a.images == b.images
        and a.groups == b.groups
        and np.array_equal(a.y_true, b.y_true)
        and a.probabilities.shape == b.probabilities.shape
    )
    if not same:
        raise ShapeError(
            f"{a.name} and {b.name} weren't judged on the same images, groups, labels and "
            "repeats; a paired comparison needs that. Compare models of one study."
        )


def _plain(metric: str, y_true: IntArray, p: Float64) -> Float64:
    """The metric of each of R sets of answers (R, N, K) on the images as they are: (R,)."""
    return np.array([measure(metric, y_true, q) for q in p])


def _draw(
    metric: str,
    y_true: IntArray,
    p: Float64,
    groups: Sequence[str],
    rng: np.random.Generator,
    n_resamples: int,
) -> Float64:
    """The metric of each of R sets of answers (R, N, K) in the same B resamples: (R, B)."""
    step = max(1, BLOCK // len(groups))
    parts = []
    for start in range(0, n_resamples, step):
        weights = bootstrap_weights(groups, rng, min(step, n_resamples - start))
        parts.append(np.stack([resampled(metric, y_true, q, weights) for q in p]))
    return np.concatenate(parts, axis=1)


def limits_over_repeats(
    plain: Float64, draws: Float64, rng: np.random.Generator
) -> tuple[float, float]:
    """2.5 % and 97.5 % points of the mean over repeats; see `interval`.

    Args:
        plain: (R,): each repeat's value on the images as they are.
        draws: (R, B): the same in B resamples.
        rng: For the noise of training; not drawn from if there is one repeat.

    The variance between repeats, s2, holds tau2 (training, splitting) and the noise of single
    images v. Resampling adds the image noise a second time: between the repeats of a resample
    the variance is s2 + v on average. So tau2 = s2 - v = 2 * s2 - (mean over resamples).
    """
    values = draws.mean(axis=0)
    values = values[np.isfinite(values)]  # a resample of one class has no AUROC
    R = len(plain)
    if R > 1:
        s2 = float(plain.var(ddof=1))
        tau2 = 2 * s2 - float(np.nanmean(draws.var(axis=0, ddof=1)))
        if tau2 > 0:
            from scipy.stats import t

            values = values + rng.normal(0, np.sqrt(tau2 / R), len(values))
            degrees = max(2.0, (R - 1) * (values.var() / (s2 / R)) ** 2)
            middle = values.mean()
            values = middle + (values - middle) * max(1.0, t.ppf(0.975, degrees) / 1.96)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _limit_of_all(metric: str, y_true: NDArray[np.integer], groups: Sequence[str]) -> float:
    """The exact lower limit where all n of n are right: 0.025 ** (1 / n), with groups as n."""
    group_of = _number_groups(groups)
    if metric == "accuracy":
        return float(0.025 ** (1 / len(np.unique(group_of))))
    sizes = [len(np.unique(group_of[y_true == k])) for k in np.unique(y_true)]
    return float(np.mean([0.025 ** (1 / n) for n in sizes]))


def _verdict(difference: float, low: float, high: float, p: float) -> str:
    if p >= 0.05 or low <= 0 <= high:
        return "tie"
    return "better" if difference > 0 else "worse"


def _group_wins(a: Predictions, b: Predictions) -> NDArray[np.int64]:
    """Right answers of a minus those of b, summed over repeats and images of each group: (G,)."""
    right_a = (a.probabilities.argmax(axis=2) == a.y_true).sum(axis=0)  # (N,)
    right_b = (b.probabilities.argmax(axis=2) == b.y_true).sum(axis=0)
    group_of = _number_groups(a.groups)
    return np.rint(np.bincount(group_of, weights=right_a - right_b)).astype(np.int64)


def _sign_flip_exact(wins: NDArray[np.int64]) -> float:
    """Two-sided p of the sum of whole numbers (G,) under all 2**G choices of their signs.

    The distribution of the sum is built one group at a time, as sums are whole numbers between
    -S and S.
    """
    sizes = np.abs(wins[wins != 0])
    if not len(sizes):
        return 1.0
    S, observed = int(sizes.sum()), abs(int(wins.sum()))
    chance = np.zeros(2 * S + 1)  # of the sums -S ... S
    chance[S] = 1.0
    for size in sizes:
        shifted = np.zeros_like(chance)
        shifted[size:] += chance[:-size] / 2
        shifted[:-size] += chance[size:] / 2
        chance = shifted
    sums = np.abs(np.arange(-S, S + 1))
    return float(min(1.0, chance[sums >= observed].sum()))


def _sign_flip_sampled(
    metric: str, a: Predictions, b: Predictions, rng: np.random.Generator
) -> float:
    """Two-sided p from random swaps of whole groups, for metrics that aren't sums over images."""
    group_of = _number_groups(a.groups)
    G, N = int(group_of.max()) + 1, len(group_of)
    y = np.concatenate([a.y_true, a.y_true])
    pairs = [
        np.concatenate(two) for two in zip(a.probabilities, b.probabilities, strict=True)
    ]  # R of (2N, K)
    keep = np.concatenate([np.ones((1, N)), np.zeros((1, N))], axis=1)

    def differences(first: Float64) -> Float64:
        return np.asarray(
            np.mean(
                [
                    resampled(metric, y, q, first) - resampled(metric, y, q, 1 - first)
                    for q in pairs
                ],
                axis=0,
            )
        )

    observed = abs(float(differences(keep)[0]))
    reached, step = 0, max(1, BLOCK // (2 * N))
    for start in range(0, FLIPS, step):
        stay = rng.integers(0, 2, (min(step, FLIPS - start), G)).astype(np.float64)[:, group_of]
        swapped = np.concatenate([stay, 1 - stay], axis=1)  # (B, 2N): whose answer a gets
        # Rounding must not make a swap that changes nothing look smaller than what was observed.
        reached += int((np.abs(differences(swapped)) >= observed - 1e-12).sum())
    return (reached + 1) / (FLIPS + 1)
