"""Which labels of a set are probably wrong: models that never saw a cell disagree with its label.

    portraits → kernel ridge regression, out of fold, several times over
              → noise model: how many labels are wrong at all → for each label, how surely

What this module refuses to know: images, files, what an audit does with its answer. It needs no
PyTorch, and gives the same answer on any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leuko.data.splits import Split, make_splits
from leuko.errors import SettingsError, ShapeError, TooFewGroupsError
from leuko.learning.noise import Share, bound_share, distrust, explain, fit_noise, sharpen

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LEAST_IMAGES = 30  # of a set; fewer, and chance can't be told from a pattern
LEAST_OF_CLASS = 5  # images; a class with fewer is left out
LEAST_GROUPS = 2  # of a class: one to learn from, one to judge

# Chosen on half of PBC and on drawn sets, with planted errors; see results/wrong_labels.md.
REPEATS = 3
LANDMARKS = 1500
WIDTH = 0.5  # of the kernel, in 1 / (mean squared distance of two portraits)
PENALTY = 0.03
SHARPNESS = 9.0  # of these models; they are seldom sharper than this
SURE = 0.5  # score from which a label is flagged

BLOCK = 4096  # rows at a time, so that memory doesn't grow with the set


@dataclass(frozen=True)
class Doubts:
    """What the models say about N labels of K classes.

    Attributes:
        classes: Names of the K classes, sorted.
        probabilities: (N, K), out of fold; rows sum to 1. The probability of what a cell *is*,
            freed of the errors in the labels that were learnt from. NaN where there is no opinion.
        given: (N,) index of the label that the image has.
        suggested: (N,) index of the most probable class; that of the label if there's no opinion.
        score: (N,) in [0, 1]: probability that the label is wrong; 0 where there is no opinion.
        flagged: (N,) worth a look: the score is at least `SURE`, and every repeat, each with other
            folds, prefers another class to the label.
        judged: (N,) False where there is no opinion.
        reason: Why there is no opinion on any image, in one sentence; empty if there is one.
        left_out: Classes whose images were not judged though others were, with the reason.
        wrong: Estimated share of wrong labels among those judged; None if there is no opinion.
            The most probable one under the noise model; the interval is a bootstrap over groups,
            with the models as they are. Errors between classes that look alike are underestimated.
    """

    classes: tuple[str, ...]
    probabilities: FloatArray
    given: IntArray
    suggested: IntArray
    score: FloatArray
    flagged: BoolArray
    judged: BoolArray
    reason: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: Share | None = None


def find_doubts(
    features: NDArray[np.floating],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int,
) -> Doubts:
    """Finds labels that models which never saw the cell, nor a copy of it, don't believe.

    The share of wrong labels is that of `leuko.learning.noise`: a set in which each surprise can
    be explained by models that aren't sure has no wrong labels, and no flags.

    Args:
        features: (N, D) finite portraits, from `leuko.data.portraits.describe_cell`.
        labels: N names.
        groups: N names: images of one cell, source or slide, which stay on one side of each fold.
        folds: At least 2; fewer are used if a class has fewer groups.
        seed: Decides folds and landmarks.

    Returns:
        An opinion on each image, or the reason why there is none.

    Raises:
        ShapeError: Lengths differ, or a feature isn't finite.
        SettingsError: folds or seed out of range.

    Source: kernel ridge regression on landmarks, Williams & Seeger 2001 (NIPS 13).
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    _check(features, labels, groups, folds, seed)
    classes, given = np.unique(np.asarray(list(labels), dtype=str), return_inverse=True)
    names = tuple(str(name) for name in classes)
    left_out = _leave_out(names, given, groups)
    judged = ~np.isin(given, [names.index(name) for name in left_out])
    kept = [k for k, name in enumerate(names) if name not in left_out]
    rows = np.flatnonzero(judged)
    truth = np.searchsorted(kept, given[rows])  # (n,) in [0, len(kept))
    groups_kept = [groups[i] for i in rows.tolist()]
    reason = _find_too_little(names, kept, len(rows))
    splits = [] if reason else _split([names[kept[k]] for k in truth], groups_kept, folds, seed)
    if not splits:
        reason = reason or "Groups that hold several classes leave no way to split by group."
        return _have_no_opinion(names, given, reason, left_out)
    with threadpool_limits(limits=1):  # sums that threads share are rounded in another order
        scores = _answer(features[rows], truth, len(kept), splits, seed)  # (R, n, k)
        mean = scores.mean(axis=0)
        noise = fit_noise(mean, truth, SHARPNESS)
        if reason := distrust(mean, truth, noise):
            return _have_no_opinion(names, given, reason, left_out)
        wrong = bound_share(mean, truth, groups_kept, noise, seed)
    return _judge(names, kept, given, judged, scores, noise.sharpness, wrong, left_out)


# --- what can be judged -------------------------------------------------------------------


def _check(
    features: NDArray[np.floating],
    labels: Sequence[str],
    groups: Sequence[str],
    folds: int,
    seed: int,
) -> None:
    if features.ndim != 2 or not len(features) == len(labels) == len(groups):
        raise ShapeError(
            f"Found features {features.shape}, {len(labels)} labels and {len(groups)} groups; "
            "expected (N, D) and N of each. Describe each labelled image once."
        )
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ShapeError(
            f"Row {broken[0]} of the features (and {len(broken) - 1} more) has a number that isn't "
            "finite. Leave the image out."
        )
    for name, value, least in (("folds", folds, 2), ("seed", seed, 0)):
        if value < least:
            raise SettingsError(f"{name} is {value}; expected at least {least}. Set it to that.")


def _leave_out(names: Sequence[str], given: IntArray, groups: Sequence[str]) -> dict[str, str]:
    """Classes that are too small to be learnt, with the reason."""
    left_out = {}
    for k, name in enumerate(names):
        rows = np.flatnonzero(given == k)
        own = len({groups[i] for i in rows.tolist()})
        if len(rows) < LEAST_OF_CLASS:
            left_out[name] = f"{len(rows)} images; at least {LEAST_OF_CLASS} are needed."
        elif own < LEAST_GROUPS:
            left_out[name] = "All images are of one group: none is left to judge the others by."
    return left_out


def _find_too_little(names: Sequence[str], kept: Sequence[int], images: int) -> str:
    """Why so few images or classes allow no opinion; empty if they do."""
    if images < LEAST_IMAGES:
        return f"{images} images can be judged; at least {LEAST_IMAGES} are needed."
    if len(kept) < 2:
        return f"Only {names[kept[0]]} has enough images; it takes two classes to doubt a label."
    return ""


def _have_no_opinion(
    names: tuple[str, ...], given: IntArray, reason: str, left_out: dict[str, str]
) -> Doubts:
    no = np.zeros(len(given), dtype=bool)
    unknown = np.full((len(given), len(names)), np.nan)
    return Doubts(
        names, unknown, given, given.copy(), np.zeros(len(given)), no, no.copy(), reason, left_out
    )


def _split(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> list[Split]:
    """Grouped folds, as many as the smallest class allows; none if not even two are possible."""
    groups_of_class = {
        name: {group for label, group in zip(labels, groups, strict=True) if label == name}
        for name in set(labels)
    }
    images = [f"{row:09d}" for row in range(len(labels))]
    for count in range(min(folds, *map(len, groups_of_class.values())), 1, -1):
        try:
            return make_splits(
                labels, groups, folds=count, repeats=REPEATS, seed=seed, images=images
            )
        except TooFewGroupsError:  # groups that hold several classes may need fewer
            continue
    return []


# --- what the models say ------------------------------------------------------------------


def _answer(
    features: NDArray[np.floating],
    truth: IntArray,
    classes: int,
    splits: Sequence[Split],
    seed: int,
) -> FloatArray:
    """Out-of-fold scores (R, N, K) of each repeat, about 1 for the class and 0 for the others."""
    spread = features.std(axis=0)
    points = (features - features.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
    points = np.ascontiguousarray(points, dtype=np.float32)
    width = WIDTH / max(2 * float(points.var(axis=0).sum()), 1e-6)
    scores = np.zeros((REPEATS, len(points), classes))
    for split in splits:
        rng = np.random.default_rng([seed, split.repeat, split.fold])
        chosen = rng.choice(split.train, min(LANDMARKS, len(split.train)), replace=False)
        scores[split.repeat, split.test] = _fit_and_answer(
            points, np.eye(classes)[truth], split, points[np.sort(chosen)], width
        )
    return scores


def _fit_and_answer(
    points: NDArray[np.float32],
    targets: FloatArray,
    split: Split,
    landmarks: NDArray[np.float32],
    width: float,
) -> FloatArray:
    """Kernel ridge regression of targets (N, K) on the landmarks (M, D): answers (n, K)."""
    from scipy.linalg import solve

    middle = targets[split.train].mean(axis=0)
    normal = PENALTY * _compare(landmarks, landmarks, width) + 1e-6 * np.eye(len(landmarks))
    right = np.zeros((len(landmarks), targets.shape[1]))
    for start in range(0, len(split.train), BLOCK):
        rows = split.train[start : start + BLOCK]
        near = _compare(points[rows], landmarks, width)  # (B, M)
        normal += near.T @ near
        right += near.T @ (targets[rows] - middle)
    weights = solve(normal, right, assume_a="pos", check_finite=False)
    answers = np.empty((len(split.test), targets.shape[1]))
    for start in range(0, len(split.test), BLOCK):
        rows = split.test[start : start + BLOCK]
        answers[start : start + BLOCK] = _compare(points[rows], landmarks, width) @ weights
    return np.asarray(answers + middle)


def _compare(a: NDArray[np.float32], b: NDArray[np.float32], width: float) -> FloatArray:
    """Gaussian kernel (A, B) in [0, 1] of (A, D) and (B, D)."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.asarray(np.exp(-width * np.maximum(squared, 0).astype(np.float64)))


# --- what follows from it -----------------------------------------------------------------


def _judge(
    names: tuple[str, ...],
    kept: Sequence[int],
    given: IntArray,
    judged: BoolArray,
    scores: FloatArray,
    sharpness: float,
    wrong: Share,
    left_out: dict[str, str],
) -> Doubts:
    """Puts the answers on the judged images beside all N labels."""
    rows, within = np.flatnonzero(judged), np.arange(int(judged.sum()))
    truth = np.searchsorted(kept, given[rows])
    probabilities = sharpen(scores.mean(axis=0), sharpness)
    own = probabilities[within, truth]
    # Even where no label seems wrong, one might be: so the scores never lose their order.
    share = max(wrong.value, 0.25 / len(rows))
    likelihood = explain(own, share, len(kept))
    surely = share * (1 - own) / (len(kept) - 1) / np.maximum(likelihood, 1e-300)
    opposed = (scores.argmax(axis=2) != truth).all(axis=0)

    everyone = np.full((len(given), len(names)), np.nan)
    everyone[rows] = 0.0
    everyone[np.ix_(rows, np.asarray(kept))] = probabilities
    suggested, score = given.copy(), np.zeros(len(given))
    suggested[rows] = np.asarray(kept)[probabilities.argmax(axis=1)]
    score[rows] = np.clip(surely, 0, 1)
    flagged = np.zeros(len(given), dtype=bool)
    flagged[rows] = (surely >= SURE) & opposed
    return Doubts(names, everyone, given, suggested, score, flagged, judged, "", left_out, wrong)
