"""Second opinions on labels: what models that never saw an image say against its label.

    answers of models → opinions → calibrated beside the labels → agreement, share of wrong labels
                                                                → disputed images

An opinion is *own* (models of the study, each image answered by those that weren't trained on it)
or *foreign* (a classifier that never saw this laboratory). An own model has learnt the labels'
habits, so that it repeats errors that are frequent; a foreign one hasn't, but may be at a loss with
another stain. Hence both are named wherever one of them disputes a label. No label is changed here.

Knows labels and probabilities; knows nothing of images, files or networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.steps import normalise_spelling
from leuko.errors import ShapeError
from leuko.judgement.metrics import exact_limits
from leuko.learning.noise import Share, bound_share, distrust, fit_noise, sharpen

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

DOUBTED = 0.1  # calibrated probability of the label, below which an opinion disputes it
ELSEWHERE = 0.5  # of the probability on classes without counterpart: "none of these" beyond it
LEAST_IMAGES = 30  # answered; fewer, and chance can't be told from a pattern
ALL = "all models together"
NONE = "none of these"
# Logarithms of probabilities are scores of sharpness 1 where models are calibrated. Averages over
# views and repeats, and smoothed targets, make them too cautious.
SHARPNESS = 1.5
PARTS = 5  # of the groups, for calibrating each on the others
RESAMPLES = 1000
LEAST = 1e-6  # probability, so that its logarithm is finite


@dataclass(frozen=True)
class Labels:
    """The labels that are judged.

    Attributes:
        images: N ids.
        groups: N names; images of one group are resampled together.
        given: (N,) index of the label, in [0, K).
        classes: K names.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]
    given: IntArray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Opinion:
    """What one voice says about M images.

    Attributes:
        name: A model, or several together.
        kind: "own": of models of this set, none of which was trained on the image that it
            answers; "foreign": of a classifier that never saw this laboratory.
        images: M ids.
        classes: The K' classes that it can name, all of them classes of the set.
        probabilities: (M, K'); rows sum to 1.
        none: (M,) True where it says "none of these".
    """

    name: str
    kind: str
    images: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: FloatArray
    none: BoolArray


@dataclass(frozen=True)
class Judged:
    """An opinion beside N labels of K classes.

    Attributes:
        opinion: The one that was judged.
        answers: (N,) the class that it prefers, in [0, K); K where it says "none of these"; -1
            where it says nothing: it wasn't asked, or can't name the class on the label.
        probabilities: (N, K), calibrated on other groups than the image's own. NaN where it says
            nothing or "none of these".
        disputed: (N,) it prefers another class, and its calibrated probability of the label is
            below `DOUBTED`. "None of these" disputes no label: it names no other one.
        agreement: Share of its answers that are the label; "none of these" is a disagreement.
        kappa: Cohen's, of the same; None if it is undefined. Both with bootstraps over groups.
        wrong: Estimated share of wrong labels, see `leuko.learning.noise`; None without trust.
        reason: Why it may not dispute labels, in one sentence; empty if it may.
    """

    opinion: Opinion
    answers: IntArray
    probabilities: FloatArray
    disputed: BoolArray
    agreement: Share
    kappa: Share | None
    wrong: Share | None
    reason: str = ""

    @property
    def asked(self) -> int:
        """How many labels it has an answer to."""
        return int((self.answers >= 0).sum())

    @property
    def none(self) -> int:
        """How many images it calls "none of these"."""
        return int((self.answers == self.probabilities.shape[1]).sum())


@dataclass(frozen=True)
class Between:
    """How far two opinions agree with each other, on the n images that both answer."""

    a: str
    b: str
    n: int
    agreement: Share
    kappa: Share | None


@dataclass(frozen=True)
class Case:
    """A disputed label.

    Attributes:
        image: Its id.
        label: As it is.
        suggested: The class that those who dispute it think most probable.
        by: Names of the opinions that dispute it.
        kinds: "own", "foreign" or both, of those.
        score: In [0, 1]: one minus the calibrated probability of the label, averaged over all
            opinions of a kind that may dispute labels, then over the kinds.
    """

    image: str
    label: str
    suggested: str
    by: tuple[str, ...]
    kinds: tuple[str, ...]
    score: float


# --- whose opinions -------------------------------------------------------------------------------


def read_labels(predictions: pl.DataFrame, classes: Sequence[str]) -> Labels:
    """The labels in a table like ``predictions.parquet``, sorted by image."""
    rows = predictions.unique("image").sort("image")
    number = {name: k for k, name in enumerate(classes)}
    given = np.array([number[label] for label in rows["label"]], dtype=np.int64)
    return Labels(tuple(rows["image"]), tuple(rows["group"]), given, tuple(classes))


def collect_own(
    predictions: pl.DataFrame, classes: Sequence[str], models: Sequence[str]
) -> list[Opinion]:
    """The opinion of each model of a study, and that of all together if there are several.

    Args:
        predictions: As in ``predictions.parquet``: answers of models that weren't trained on the
            image. Those of several repeats are averaged.
        classes: K names; the columns ``p_CLASS`` in this order.
        models: Those whose opinion counts, without the baselines.
    """
    answers = {}
    for model in models:
        mean = (
            predictions.filter(pl.col("model") == model)
            .group_by("image").agg(pl.col(f"p_{c}").mean() for c in classes).sort("image")
        )  # fmt: skip
        answers[model] = mean["image"].to_list(), mean.drop("image").to_numpy().astype(np.float64)
    if len(models) > 1:
        every = [p for _, p in answers.values()]
        answers[ALL] = next(iter(answers.values()))[0], np.mean(every, axis=0)
    return [
        Opinion(name, "own", tuple(images), tuple(classes), p, np.zeros(len(p), dtype=bool))
        for name, (images, p) in answers.items()
    ]


def translate_foreign(
    name: str,
    images: Sequence[str],
    classes: Sequence[str],
    probabilities: FloatArray,
    onto: Sequence[str],
    counterparts: Mapping[str, str] | None = None,
) -> Opinion:
    """The opinion of a classifier with other classes, in the words of this set.

    Classes without a counterpart are renormalised away; where they had more than `ELSEWHERE` of
    the probability, the opinion is "none of these".

    Args:
        name: Of the classifier.
        images: M ids.
        classes: Its own classes.
        probabilities: (M, its classes); rows sum to 1.
        onto: The K classes of the set.
        counterparts: Its class → class of the set; None: classes that are spelt alike.

    Raises:
        ShapeError: Lengths differ, it has a counterpart that isn't a class of the set, or fewer
            than two classes of the set have one.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(images), len(classes)):
        raise ShapeError(
            f"{name}: found probabilities {p.shape} for {len(images)} images and {len(classes)} "
            "classes; expected one row an image, one column a class."
        )
    spelling = {normalise_spelling(c): c for c in onto}
    if counterparts is None:
        found = {c: spelling.get(normalise_spelling(c)) for c in classes}
        counterparts = {c: mine for c, mine in found.items() if mine is not None}
    known = [c for c in onto if c in counterparts.values()]
    if strange := sorted(set(counterparts.values()) - set(onto)):
        raise ShapeError(f"{name}: {strange[0]!r} is no class of the set ({', '.join(onto)}).")
    if len(known) < 2:
        raise ShapeError(
            f"{name} knows {', '.join(classes)}; of the set's classes ({', '.join(onto)}) it takes "
            "two to have an opinion. Say which mean the same with counterparts."
        )
    own = np.zeros((len(p), len(known)))
    for k, c in enumerate(classes):
        if c in counterparts:
            own[:, known.index(counterparts[c])] += p[:, k]
    mass = own.sum(axis=1)
    own = (own + LEAST) / (own + LEAST).sum(axis=1, keepdims=True)
    return Opinion(name, "foreign", tuple(images), tuple(known), own, 1 - mass > ELSEWHERE)


# --- beside the labels ----------------------------------------------------------------------------


def judge_opinion(opinion: Opinion, labels: Labels, *, seed: int) -> Judged:
    """Agreement, estimated share of wrong labels, and which ones are disputed.

    Args:
        opinion: On any of the images.
        labels: Those that are judged.
        seed: Decides the parts for calibrating, and the resamples.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    K = len(labels.classes)
    place = {image: i for i, image in enumerate(opinion.images)}
    at = np.array([place.get(image, -1) for image in labels.images], dtype=np.int64)
    columns = np.array([labels.classes.index(c) for c in opinion.classes])
    asked = (at >= 0) & np.isin(labels.given, columns)
    answers = np.full(len(at), -1, dtype=np.int64)
    answers[asked] = columns[opinion.probabilities[at[asked]].argmax(axis=1)]
    answers[asked] = np.where(opinion.none[at[asked]], K, answers[asked])
    agreement, kappa = agree(answers, labels.given, labels.groups, K + 1, seed=seed)

    rows = np.flatnonzero(asked & (answers < K))  # what can be calibrated
    calibrated = np.full((len(at), K), np.nan)
    disputed, wrong = np.zeros(len(at), dtype=bool), None
    reason = _find_too_little(rows, labels)
    if not reason:
        order = np.argsort(columns)
        scores = np.log(np.maximum(opinion.probabilities[at[rows]][:, order], LEAST))  # (n, K')
        truth = np.searchsorted(columns[order], labels.given[rows])
        groups = [labels.groups[i] for i in rows.tolist()]
        with threadpool_limits(limits=1):  # sums that threads share are rounded in another order
            noise = fit_noise(scores, truth, SHARPNESS)
            calibrated[rows] = 0.0
            calibrated[np.ix_(rows, columns[order])] = _calibrate(scores, truth, groups, seed)
            reason = distrust(scores, truth, noise)
            wrong = None if reason else bound_share(scores, truth, groups, noise, seed)
    if not reason:
        own = calibrated[rows, labels.given[rows]]
        disputed[rows] = (answers[rows] != labels.given[rows]) & (own < DOUBTED)
    return Judged(opinion, answers, calibrated, disputed, agreement, kappa, wrong, reason)


def _find_too_little(rows: IntArray, labels: Labels) -> str:
    """Why so few answers allow no judgement; empty if they do."""
    if len(rows) < LEAST_IMAGES:
        return f"It answers for {len(rows)} images; at least {LEAST_IMAGES} are needed."
    if len(set(labels.given[rows].tolist())) < 2:
        return "All images that it answers for have one label."
    if len({labels.groups[i] for i in rows.tolist()}) < 2:
        return "All images that it answers for are of one group."
    return ""


def _calibrate(scores: FloatArray, truth: IntArray, groups: Sequence[str], seed: int) -> FloatArray:
    """Probabilities (n, K') with a sharpness that was fitted without the image's own group."""
    names, index = np.unique(np.asarray(list(groups), dtype=str), return_inverse=True)
    part = np.random.default_rng([seed, 41]).permutation(len(names))[index] % PARTS
    calibrated = np.empty_like(scores)
    for held in np.unique(part):
        rest = part != held
        sharpness = fit_noise(scores[rest], truth[rest], SHARPNESS).sharpness
        calibrated[~rest] = sharpen(scores[~rest], sharpness)
    return calibrated


def agree(
    a: IntArray, b: IntArray, groups: Sequence[str], categories: int, *, seed: int
) -> tuple[Share, Share | None]:
    """Raw agreement and Cohen's kappa, with 95 % bootstrap intervals over groups.

    Where all answers agree, the resamples are alike and say nothing; then the lower limit of the
    agreement is the exact one (Clopper–Pearson) with the number of groups as n, and kappa's is
    what follows from it.

    Args:
        a: (N,) in [0, categories); -1 for no answer, which doesn't count.
        b: (N,) likewise.
        groups: N names.
        categories: How many there are.
        seed: Decides the resamples.

    Returns:
        Agreement in [0, 1] and kappa in [-1, 1]; kappa is None where one category is all there is.

    Source: Cohen 1960, doi:10.1177/001316446002000104.
    """
    rows = np.flatnonzero((a >= 0) & (b >= 0))
    if not len(rows):
        return Share(0.0, 0.0, 1.0), None
    a, b = a[rows], b[rows]
    names, index = np.unique(np.asarray([groups[i] for i in rows.tolist()]), return_inverse=True)
    rng = np.random.default_rng([seed, 60])
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    drawn = np.concatenate([np.ones((1, len(names)), dtype=drawn.dtype), drawn])
    eye = np.eye(categories)

    def add_up(values: FloatArray) -> FloatArray:
        """Sums over images (1 + B, C) of values (N, C); the first is of the images as they are."""
        of_group = np.zeros((len(names), values.shape[1]))
        np.add.at(of_group, index, values)
        return np.asarray(drawn @ of_group)

    count = add_up(np.ones((len(rows), 1)))[:, 0]
    observed = add_up((a == b)[:, None].astype(np.float64))[:, 0] / count
    expected = (add_up(eye[a]) * add_up(eye[b])).sum(axis=1) / count**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas = np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)
    agreement = _limit(observed)
    if agreement.value == 1:
        agreement = Share(1.0, exact_limits(len(names), len(names))[0], 1.0)
    if np.isnan(kappas[0]):
        return agreement, None
    kappa = _limit(kappas)
    if agreement.value == 1:
        kappa = Share(1.0, float((agreement.low - expected[0]) / (1 - expected[0])), 1.0)
    return agreement, kappa


def _limit(values: FloatArray) -> Share:
    """The first value, with the percentiles of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    value = float(values[0])
    return Share(value, min(value, float(low)), max(value, float(high)))


def compare_opinions(judged: Sequence[Judged], labels: Labels, *, seed: int) -> list[Between]:
    """Agreement of each pair of opinions that hold no common part.

    Several models together aren't compared with one of them, which they contain.
    """
    found = []
    for a, b in combinations(judged, 2):
        names = a.opinion.name, b.opinion.name
        if ALL in names and a.opinion.kind == b.opinion.kind == "own":
            continue
        n = int(((a.answers >= 0) & (b.answers >= 0)).sum())
        K = len(labels.classes)
        found.append(Between(*names, n, *agree(a.answers, b.answers, labels.groups, K + 1,
                                               seed=seed)))  # fmt: skip
    return found


def list_cases(judged: Sequence[Judged], labels: Labels) -> list[Case]:
    """The labels that at least one opinion disputes, the most certain first."""
    trusted = [j for j in judged if not j.reason]
    cases = []
    for i in np.flatnonzero(np.any([j.disputed for j in trusted], axis=0)) if trusted else []:
        row, given = int(i), int(labels.given[i])
        against = [j for j in trusted if j.disputed[row]]
        heard = [j for j in trusted if not np.isnan(j.probabilities[row]).any()]
        probabilities = _weigh_kinds(against, row)
        probabilities[given] = 0.0
        cases.append(
            Case(
                labels.images[row], labels.classes[given],
                labels.classes[int(probabilities.argmax())],
                tuple(j.opinion.name for j in against),
                tuple(sorted({j.opinion.kind for j in against}, reverse=True)),
                float(1 - _weigh_kinds(heard, row)[given]),
            )
        )  # fmt: skip
    return sorted(cases, key=lambda case: (-case.score, case.image))


def _weigh_kinds(judged: Sequence[Judged], row: int) -> FloatArray:
    """Mean probabilities (K,) of an image over the opinions of each kind, then over the kinds."""
    kinds = dict.fromkeys(j.opinion.kind for j in judged)
    means = [
        np.mean([j.probabilities[row] for j in judged if j.opinion.kind == kind], axis=0)
        for kind in kinds
    ]
    return np.asarray(np.mean(means, axis=0))
