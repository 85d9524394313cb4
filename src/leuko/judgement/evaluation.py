"""Judges a bundle's answers to a labelled set: every number with its limits.

The unit is the group, as everywhere: images that show one cell are resampled together. Knows
answers, their sets of classes and their states; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement.calibration import find_coverage_band
from leuko.judgement.comparison import interval
from leuko.judgement.metrics import (
    Float64,
    confusion,
    ece_noise_floor,
    per_class,
    reliability_curve,
)
from leuko.judgement.selective import judge_orders

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece", "classwise_ece", "nll",
           "brier")  # fmt: skip
FORCED = ("accuracy", "balanced_accuracy", "macro_f1")
STATES = ("pre-classified", "unidentified", "rejected")  # as in leuko.use.answers, the surest first
OWN, PLAIN = "by_state", "by_probability"  # orders of the risk–coverage curve


@dataclass(frozen=True)
class Answers:
    """What was said about N cells of K classes.

    Attributes:
        y_true: (N,), in [0, K).
        probabilities: (N, K), calibrated; rows sum to 1.
        groups: N names; cells of one group are resampled together.
        states: N, each one of `STATES`.
        sets: (N, K): the classes that can't be excluded; None where the bundle has no thresholds.
    """

    y_true: NDArray[np.int64]
    probabilities: Float64
    groups: tuple[str, ...]
    states: tuple[str, ...]
    sets: NDArray[np.bool_] | None

    def pick(self, chosen: NDArray[np.bool_]) -> Answers:
        """Only the cells of this mask (N,)."""
        return Answers(
            self.y_true[chosen],
            self.probabilities[chosen],
            tuple(np.asarray(self.groups, object)[chosen]),
            tuple(np.asarray(self.states, object)[chosen]),
            None if self.sets is None else self.sets[chosen],
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the likeliest class is the true one, whatever the state."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.y_true)


def judge_answers(
    answers: Answers,
    classes: Sequence[str],
    *,
    target: float | None,
    calibrated: Sequence[int] | None,
    seed: int,
) -> dict[str, Any]:
    """All that ``evaluation.json`` says about the answers.

    Args:
        answers: Of cells whose class is among those of the model.
        classes: K names.
        target: The coverage that the sets were made for; None without.
        calibrated: Per class the cells that its threshold comes from; None where that isn't one
            number per class.
        seed: Decides the resamples.

    Returns:
        ``n``; each of `METRICS` as {value, low, high} (auroc is None where one class occurs);
        ``ece_floor``; ``per_class``, ``confusion`` (K × K, rows are the truth), ``reliability``,
        ``coverage``, ``states``, ``unidentified``, ``rejected``, ``pre_classified``, ``risk``.
    """
    y, p, groups = answers.y_true, answers.probabilities, answers.groups
    states = np.array(answers.states)
    shares = {state: judge_share(states == state, groups, seed) for state in STATES}
    named = states == STATES[0]
    rest = judge_share(answers.right[named], np.array(groups, object)[named].tolist(), seed)
    floor = ece_noise_floor(p, seed)
    curve = reliability_curve(y, p)
    return {
        "n": len(y),
        "groups": len(set(groups)),
        **judge_metrics(answers, METRICS, seed),
        "ece_floor": {**asdict(floor), "n": len(y)},
        "per_class": _judge_classes(answers, classes, seed),
        "confusion": confusion(y, p).tolist(),
        "reliability": {key: value.tolist() for key, value in vars(curve).items()},
        "coverage": _judge_coverage(answers, classes, target, calibrated, seed),
        "states": {s: {"n": int((states == s).sum()), **shares[s]} for s in STATES},
        "unidentified": shares["unidentified"]["value"],
        "rejected": shares["rejected"]["value"],
        "pre_classified": {"n": int(named.sum()), "accuracy": rest},
        "risk": judge_orders(~answers.right, rank_answers(answers), groups, seed=seed),
    }


def judge_metrics(answers: Answers, metrics: Sequence[str], seed: int) -> dict[str, Any]:
    """Some metrics with their limits; None for an AUROC where one class occurs."""
    one = len(np.unique(answers.y_true)) < 2
    return {
        name: None
        if one and name == "auroc"
        else asdict(interval(name, answers.y_true, answers.probabilities, answers.groups, rng=seed))
        for name in metrics
    }


def judge_forced(
    answers: Answers, classes: Sequence[str], common: Sequence[str], seed: int
) -> dict[str, Any]:
    """The same answers, had only the classes of the set been allowed.

    Args:
        answers: Of cells of the common classes.
        classes: K names.
        common: Those that both sides have; the others can't be answered.
        seed: Decides the resamples.
    """
    kept = [list(classes).index(c) for c in common]
    part = answers.probabilities[:, kept]
    total = part.sum(axis=1, keepdims=True)
    # Where nothing at all was given to these classes, the answer is an even guess.
    even = np.full_like(part, 1 / len(kept))
    forced = np.divide(part, total, out=even, where=total > 0)
    number = np.full(len(classes), -1)
    number[kept] = np.arange(len(kept))
    y = number[answers.y_true].astype(np.int64)
    own = Answers(y, forced, answers.groups, answers.states, None)
    return {
        "classes": list(common),
        **judge_metrics(own, FORCED, seed),
        "confusion": confusion(y, forced).tolist(),
    }


def judge_share(
    hits: NDArray[np.bool_], groups: Sequence[str], seed: int
) -> dict[str, float | None]:
    """A share with its limits: {value, low, high}; without limits where there is one group."""
    if not len(hits):
        return {"value": None, "low": None, "high": None}
    if len(set(groups)) < 2:
        return {"value": float(np.mean(hits)), "low": None, "high": None}
    two = np.stack([hits, ~hits], axis=1).astype(np.float64)
    return asdict(interval("accuracy", np.zeros(len(hits), np.int64), two, groups, rng=seed))


def rank_answers(answers: Answers) -> dict[str, Float64]:
    """How sure each answer is, in two orders.

    ``by_state`` puts what is pre-classified first and what is rejected last, and looks at the
    probability within each; ``by_probability`` looks at the highest probability alone.
    """
    highest = answers.probabilities.max(axis=1)
    place = np.array([len(STATES) - STATES.index(state) for state in answers.states], np.float64)
    return {OWN: 2 * place + highest, PLAIN: highest}


def _judge_classes(
    answers: Answers, classes: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """The classes one by one; limits of recall and precision over groups."""
    y, said = answers.y_true, answers.probabilities.argmax(axis=1)
    groups = np.array(answers.groups, object)
    states = np.array(answers.states)
    told: dict[str, dict[str, Any]] = {}
    for k, (name, row) in enumerate(
        per_class(answers.y_true, answers.probabilities, classes).items()
    ):
        own, taken = y == k, said == k
        recall = judge_share(answers.right[own], groups[own].tolist(), seed)
        precision = judge_share(answers.right[taken], groups[taken].tolist(), seed)
        told[name] = {
            **row,
            "recall_limits": [recall["low"], recall["high"]],
            "precision_limits": [precision["low"], precision["high"]],
            **{s.replace("-", "_"): int((states[own] == s).sum()) for s in STATES},
        }
    return told


def _judge_coverage(
    answers: Answers,
    classes: Sequence[str],
    target: float | None,
    calibrated: Sequence[int] | None,
    seed: int,
) -> dict[str, Any]:
    """How often the set of a cell holds its class, against where chance would put that."""
    nothing: dict[str, Any] = {"target": None, "observed": None, "low": None, "high": None,
                               "band": None, "set_size": None, "per_class": {}}  # fmt: skip
    if answers.sets is None or target is None:
        return nothing
    y, groups = answers.y_true, np.array(answers.groups, object)
    held = answers.sets[np.arange(len(y)), y]
    tested = np.bincount(y, minlength=len(classes)).tolist()
    rows: dict[str, Any] = {}
    for k, name in enumerate(classes):
        own = y == k
        if own.any():
            share = judge_share(held[own], groups[own].tolist(), seed)
            rows[name] = {
                "observed": share["value"], "low": share["low"], "high": share["high"],
                "n": tested[k],
                "calibrated": None if calibrated is None else calibrated[k],
                "band": None if calibrated is None
                else list(find_coverage_band([calibrated[k]], [tested[k]], target)),
            }  # fmt: skip
    share = judge_share(held, answers.groups, seed)
    band = None if calibrated is None else list(find_coverage_band(calibrated, tested, target))
    return {
        "target": target, "observed": share["value"], "low": share["low"], "high": share["high"],
        "band": band, "set_size": float(answers.sets.sum(axis=1).mean()), "per_class": rows,
    }  # fmt: skip
