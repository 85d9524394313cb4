"""A new microscope from a few dozen labelled cells: is a re-fitted last layer better?

    features, labels → head by cross-validation → before against after → calibration → curve

Each figure comes from cells that took no part in what is judged, not even in choosing how far the
layer may move; cells of one group are on one side. The old layer stays unless the new one is
better by these figures. Pure functions on arrays: knows no file, no picture and no network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.splits import Split, make_splits
from leuko.errors import AdaptationError, ShapeError, TooFewGroupsError
from leuko.judgement.calibration import (
    apply_temperature,
    fit_temperature,
    fit_thresholds_from_few,
)
from leuko.judgement.comparison import (
    Interval,
    bootstrap_weights,
    interval,
    limits_over_repeats,
)
from leuko.judgement.metrics import Float64, measure, resampled
from leuko.learning.head import Head, answer_features, fit_head, fit_heads

MINIMUM = 20  # labelled cells
FOLDS = 5
LEAST = FOLDS  # groups of a class: one in each fold
STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1)  # divided by the number of cells
REPEATS = 4
SMALL = 0.01  # of balanced accuracy: a gain that hardly helps
CERTAIN = 0.9  # share of the resamples in which the new layer has to be better
METRIC = "balanced_accuracy"

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Examples:
    """Labelled cells of the new microscope.

    Attributes:
        features: (N, V, D) of each view, or (N, D), as the bundle's network gives them.
        labels: (N,), in [0, K): places in the bundle's classes.
        groups: N names; cells of one group (one cell, one field, one patient) stay together.
    """

    features: NDArray[np.floating]
    labels: NDArray[np.integer]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Examples:
        """Some of the cells."""
        groups = tuple(self.groups[i] for i in np.arange(len(self))[rows])
        return Examples(self.features[rows], self.labels[rows], groups)


@dataclass(frozen=True)
class Gain:
    """Two layers on the same cells, which took no part in fitting.

    Attributes:
        before: Balanced accuracy of the old layer.
        after: Of the re-fitted one.
        gain: Of the second over the first.
        certainty: Share of the resamples of groups in which it is above 0.
    """

    before: Interval
    after: Interval
    gain: Interval
    certainty: float


@dataclass(frozen=True)
class CurvePoint:
    """What so many labels give.

    Attributes:
        labels: Mean number of labelled cells that a layer was fitted to.
        value: Balanced accuracy on cells that took no part, with limits.
    """

    labels: int
    value: Interval


@dataclass(frozen=True)
class Adaptation:
    """What a few labelled cells made of a last layer.

    Attributes:
        head: Weight (K, D) and bias (K,); the old ones where nothing was gained.
        changed: Whether they differ from the old ones.
        calibrated: Whether temperature and thresholds were fitted to these cells.
        reason: Why the layer was changed, or wasn't: a sentence.
        strength: How strongly the new layer was held to the old one; None if it wasn't changed.
        temperature: For `apply_temperature`.
        thresholds: (K,) of the sets of classes; None without a coverage.
        judged: Before and after.
        accuracy: The share of right answers, ``before`` and ``after``, on the same cells.
        recalls: (2, K), before and after, of each class; 0 without cells.
        curve: By number of labels, rising; the last is what a fold leaves of all.
        doubled: What as many labels again would gain, if the curve goes on as it does; None
            without a curve.
        counts: (K,) cells of each class.
        ignored: (K,) cells of classes with too few, which took no part.
    """

    head: Head
    changed: bool
    calibrated: bool
    reason: str
    strength: float | None
    temperature: float
    thresholds: Float64 | None
    judged: Gain
    accuracy: dict[str, Interval]
    recalls: Float64
    curve: tuple[CurvePoint, ...]
    doubled: Interval | None
    counts: NDArray[np.int64]
    ignored: NDArray[np.int64]

    @property
    def outlook(self) -> str:
        """Whether more labels would help: a sentence."""
        if self.doubled is None:
            return "There are too few labels to say what more of them would give."
        gain, N = self.doubled, int(self.counts.sum())
        told = (
            f"{100 * gain.value:+.1f} points of balanced accuracy ({100 * gain.low:+.1f} to "
            f"{100 * gain.high:+.1f}) if the learning curve goes on as it does"
        )
        if gain.high < SMALL:
            return f"{N} more labels would hardly help: {told}."
        if gain.low > 0:
            return f"{N} more labels would help: {told}."
        return f"Whether {N} more labels would help can't be told from these: {told}."


def adapt_head(
    examples: Examples,
    head: Head,
    classes: Sequence[str],
    *,
    temperature: float = 1.0,
    coverage: float | None = None,
    seed: int = 0,
    prepare: Callable[[Head], Head] | None = None,
    tick: Tick | None = None,
) -> Adaptation:
    """Re-fits a last layer, its temperature and its thresholds to a new microscope.

    Args:
        examples: The labelled cells.
        head: The bundle's last layer, (K, D) and (K,).
        classes: K names, for messages.
        temperature: The bundle's.
        coverage: Of sets of classes, in (0, 1); None makes none.
        seed: Decides the folds and the resamples.
        prepare: What is done to a new layer before it is used, such as rounding.
        tick: Called with (pieces of work done, pieces in all).

    Raises:
        AdaptationError: Too few cells, or fewer than two classes with enough of them.
        ShapeError: The arrays don't fit each other.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):  # matrices so small take longer when threads share them
        return _adapt(examples, head, classes, temperature, coverage, seed, prepare, tick)


def _adapt(
    examples: Examples,
    head: Head,
    classes: Sequence[str],
    temperature: float,
    coverage: float | None,
    seed: int,
    prepare: Callable[[Head], Head] | None,
    tick: Tick | None,
) -> Adaptation:
    kept, ignored = _choose_cells(examples, head, classes)
    try:
        _split(kept, FOLDS, REPEATS, seed)
    except TooFewGroupsError:
        raise AdaptationError(
            f"Cells of several classes lie in the same groups (such as fields), so that {FOLDS} "
            "parts with every class in each can't be made. Label cells in more fields."
        ) from None
    sizes = choose_sizes(kept)
    total = (len(sizes) + 1) * REPEATS * FOLDS
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if tick is not None:
            tick(done, total)

    old = np.repeat(answer_features(kept.features, head)[None], REPEATS, axis=0)
    new = {size: cross_answer(kept, head, size=size, seed=seed, step=step) for size in sizes}
    full = _count_full(kept)
    new[full] = cross_answer(kept, head, seed=seed, step=step)
    judged = compare_layers(kept, old, new[full], seed=seed)
    changed, calibrated, reason = decide_change(judged, len(np.unique(kept.labels)))
    strength = choose_strength(kept, head, seed=seed) if changed else None
    final = head
    if strength is not None:
        final = fit_head(kept.features, kept.labels, head, strength)
        final = prepare(final) if prepare else final
    warmth, thresholds = temperature, None
    if calibrated:
        near = 1.0 if changed else temperature
        sure = new[full] if changed else old
        warmth, thresholds = calibrate(kept.labels, sure, coverage, near=near)
    curve = [CurvePoint(size, _limits(kept, new[size], seed)) for size in sizes]
    return Adaptation(
        head=final, changed=changed, calibrated=calibrated, reason=reason, strength=strength,
        temperature=warmth, thresholds=thresholds, judged=judged,
        curve=(*curve, CurvePoint(full, judged.after)),
        doubled=extrapolate(kept, new, seed=seed),
        recalls=np.stack([_find_recalls(kept, old), _find_recalls(kept, new[full])]),
        accuracy={
            "before": _limits(kept, old[:1], seed, "accuracy"),
            "after": _limits(kept, new[full], seed, "accuracy"),
        },
        counts=np.bincount(kept.labels, minlength=len(classes)), ignored=ignored,
    )  # fmt: skip


def cross_answer(
    examples: Examples,
    head: Head,
    *,
    size: int | None = None,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Float64:
    """What re-fitted layers say of cells that they weren't fitted to, strength chosen within.

    Args:
        examples: The labelled cells; each class in `LEAST` groups or more.
        head: The old layer.
        size: Cells that each layer is fitted to; None for all that aren't answered.
        seed: Decides folds and the cells of smaller fits.
        step: Called after each fold.

    Returns:
        (R, N, K): one answer for each cell in each repeat.
    """
    answers = np.zeros((REPEATS, len(examples), len(head[0])))
    for split in _split(examples, FOLDS, REPEATS, seed):
        rng = np.random.default_rng([seed, split.repeat, split.fold, size or 0])
        rows = split.train if size is None else _draw(examples, split.train, size, rng)
        part = examples.take(rows)
        fitted = fit_head(part.features, part.labels, head, choose_strength(part, head, seed=seed))
        answers[split.repeat, split.test] = answer_features(examples.features[split.test], fitted)
        step()
    return answers


def choose_strength(examples: Examples, head: Head, *, seed: int = 0) -> float:
    """How strongly to hold a new layer to the old one, by cross-validation within these cells.

    Returns:
        The one of `STRENGTHS`, divided by the number of cells, with the least log loss, averaged
        over the classes; the largest where there are too few groups to tell.
    """
    N = len(examples)
    folds = min(FOLDS - 1, *_count_groups(examples).values())
    if folds < 2:
        return STRENGTHS[0] / N
    try:
        splits = _split(examples, folds, 1, seed)
    except TooFewGroupsError:  # enough groups, but some hold several classes
        return STRENGTHS[0] / N
    y = examples.labels
    counts = np.bincount(y)[y]
    loss = dict.fromkeys(STRENGTHS, 0.0)
    for split in splits:
        part = examples.take(split.train)
        heads = fit_heads(part.features, part.labels, head, [s / len(part) for s in STRENGTHS])
        for strength, fitted in zip(STRENGTHS, heads, strict=True):
            p = answer_features(examples.features[split.test], fitted)
            right = p[np.arange(len(p)), y[split.test]]
            loss[strength] -= float((np.log(np.maximum(right, 1e-9)) / counts[split.test]).sum())
    return min(STRENGTHS, key=lambda strength: loss[strength]) / N


def compare_layers(examples: Examples, old: Float64, new: Float64, *, seed: int = 0) -> Gain:
    """Balanced accuracy of two layers on the same cells, and of their difference.

    Args:
        examples: The labelled cells.
        old: (R, N, K) answers of the old layer.
        new: (R, N, K) answers of layers that weren't fitted to the cells they answer for.
        seed: Of the resamples.
    """
    y, rng = examples.labels, np.random.default_rng(seed)
    plain = np.array(
        [measure(METRIC, y, b) - measure(METRIC, y, a) for a, b in zip(old, new, strict=True)]
    )
    weights = bootstrap_weights(examples.groups, rng)
    draws = np.stack(
        [resampled(METRIC, y, b, weights) - resampled(METRIC, y, a, weights)
         for a, b in zip(old, new, strict=True)]
    )  # fmt: skip
    value = float(plain.mean())
    low, high = limits_over_repeats(plain, draws, rng)
    return Gain(
        before=_limits(examples, old[:1], seed),
        after=_limits(examples, new, seed),
        gain=Interval(value, min(low, value), max(high, value)),
        certainty=float((draws.mean(axis=0) > 0).mean()),
    )


def decide_change(judged: Gain, classes: int) -> tuple[bool, bool, str]:
    """Whether the new layer is taken, whether to calibrate, and why.

    Args:
        judged: Before and after.
        classes: That the labelled cells have.
    """
    before, after, gain = judged.before, judged.after, judged.gain
    told = (
        f"{after.value:.1%} instead of {before.value:.1%} balanced accuracy, "
        f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )
    if max(before.low, after.low) <= 1 / classes:
        return False, False, (
            "Nothing was changed: the labels fit neither the model as it was nor what can be "
            f"learnt from them, no better than by chance ({told}). Do labels and pictures belong "
            "together?"
        )  # fmt: skip
    if gain.value > 0 and judged.certainty >= CERTAIN:
        return True, True, f"The last layer was fitted again: {told}, on cells it wasn't fitted to."
    return False, True, (
        f"The last layer was kept, because a new one isn't shown to be better ({told}). "
        "Temperature and thresholds were fitted to these cells."
    )  # fmt: skip


def calibrate(
    labels: NDArray[np.integer], answers: Float64, coverage: float | None, *, near: float
) -> tuple[float, Float64 | None]:
    """Temperature, and thresholds of the sets of classes, for a new microscope.

    Args:
        labels: (N,).
        answers: (R, N, K), of layers that weren't fitted to the cells they answer for.
        coverage: Of sets; None for none.
        near: The temperature to expect; so few cells move it only as far as they tell.
    """
    R, N, K = answers.shape
    warmth = fit_temperature(np.tile(labels, R), answers.reshape(-1, K), near=near, cells=N)
    if coverage is None:
        return warmth, None
    sure = np.mean([apply_temperature(p, warmth) for p in answers], axis=0)
    return warmth, fit_thresholds_from_few(labels, sure, coverage)


def extrapolate(
    examples: Examples, answers: Mapping[int, Float64], *, seed: int = 0
) -> Interval | None:
    """What as many labels again would gain, if the learning curve goes on as it does.

    Balanced accuracy is taken to approach its end with one over the square root of the number of
    labels; the limits are those of the cells at hand, and don't cover another law.

    Args:
        examples: The labelled cells, N of them.
        answers: (R, N, K) by the number of labels that the layers were fitted to.
        seed: Of the resamples.

    Returns:
        The gain from N to 2 N labels; None with fewer than three numbers.
    """
    if len(answers) < 3:
        return None
    y, N = examples.labels, len(examples)
    weights = bootstrap_weights(examples.groups, np.random.default_rng(seed))
    weights = np.concatenate([np.ones((1, N), weights.dtype), weights])  # the first: as they are
    values = [
        np.mean([resampled(METRIC, y, p, weights) for p in given], axis=0)
        for given in answers.values()
    ]  # per number of labels (B + 1,)
    slope = np.polyfit(np.array(list(answers)) ** -0.5, np.stack(values), 1)[0]
    gains = slope * ((2 * N) ** -0.5 - N**-0.5)
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    value = float(gains[0])
    return Interval(value, min(float(low), value), max(float(high), value))


def choose_sizes(examples: Examples) -> list[int]:
    """The numbers of labels on the curve before the last, which is all that a fold leaves."""
    full = _count_full(examples)
    least = max(8, 2 * len(np.unique(examples.labels)))
    return [n for n in (full // 4, full // 2, 3 * full // 4) if n >= least]


def _choose_cells(
    examples: Examples, head: Head, classes: Sequence[str]
) -> tuple[Examples, NDArray[np.int64]]:
    """The cells of classes with enough groups, and how many of the others there are, (K,)."""
    y, K = np.asarray(examples.labels), len(classes)
    if len(examples.features) != len(y) or len(examples.groups) != len(y) or len(head[0]) != K:
        raise ShapeError(
            f"Found {len(examples.features)} features, {len(y)} labels and "
            f"{len(examples.groups)} groups for {len(head[0])} rows of a layer and {K} classes; "
            "expected as many of each."
        )
    groups = _count_groups(examples)
    enough = np.array([groups[k] >= LEAST for k in range(K)])
    kept = examples.take(np.flatnonzero(enough[y]))
    kept = replace(kept, features=np.asarray(kept.features, np.float64))  # once, not in each fit
    there = [name for name, fine in zip(classes, enough, strict=True) if fine]
    rare = ", ".join(f"{classes[k]} {groups[k]}" for k in range(K) if 0 < groups[k] < LEAST)
    more = f" Too few to learn from: {rare}; {LEAST} are needed." if rare else ""
    if len(there) < 2:
        raise AdaptationError(
            f"Found {len(there)} classes with at least {LEAST} different cells; expected two or "
            f"more.{more} Label cells of several classes, about as many of each."
        )
    if len(kept) < MINIMUM:
        raise AdaptationError(
            f"Found {len(kept)} labelled cells ({', '.join(there)}); expected at least {MINIMUM}, "
            f"and better 50 to 100, about as many of each class.{more} Label some more."
        )
    return kept, np.bincount(y[~enough[y]], minlength=K)


def _draw(
    examples: Examples, rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """So many of the rows, with two groups of each class among them."""
    order = rng.permutation(rows)
    first: list[int] = []
    for k in np.unique(examples.labels[rows]):
        own = {examples.groups[i]: int(i) for i in order[examples.labels[order] == k][::-1]}
        first += list(own.values())[-2:]
    others = [int(i) for i in order if i not in first]
    return np.array([*first, *others][: max(size, len(first))])


def _split(examples: Examples, folds: int, repeats: int, seed: int) -> list[Split]:
    names = [f"{i:06d}" for i in range(len(examples))]
    labels = [str(k) for k in examples.labels]
    return make_splits(
        labels, examples.groups, folds=folds, repeats=repeats, seed=seed, images=names
    )


def _count_groups(examples: Examples) -> Counter[int]:
    """How many groups each class is in."""
    pairs = set(zip(np.asarray(examples.labels).tolist(), examples.groups, strict=True))
    return Counter(k for k, _ in pairs)


def _count_full(examples: Examples) -> int:
    """Labels that a fold leaves for fitting."""
    return round(len(examples) * (1 - 1 / FOLDS))


def _find_recalls(examples: Examples, answers: Float64) -> Float64:
    """(K,), the mean over the repeats."""
    y, K = examples.labels, answers.shape[2]
    right = (answers.argmax(axis=2) == y).mean(axis=0)
    counts = np.bincount(y, minlength=K)
    return np.asarray(np.bincount(y, weights=right, minlength=K) / np.maximum(counts, 1))


def _limits(examples: Examples, answers: Float64, seed: int, metric: str = METRIC) -> Interval:
    return interval(metric, examples.labels, answers, examples.groups, rng=seed)
