"""What leaving the doubtful answers to a person is worth: risk against coverage.

Answers are put in order, the surest first. The risk at a coverage is the share of wrong ones among
that share of them; AURC, the area under the curve, is the mean risk over all coverages. Pure
functions; they know no model and no file.

Source: Geifman and El-Yaniv 2017, arXiv:1705.08500.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.comparison import RESAMPLES, bootstrap_weights
from leuko.judgement.metrics import BLOCK, Float64, exact_limits

COVERAGE = 0.8  # at which the error is told
POINTS = 200  # of a curve that is written down


def trace_risk(wrong: NDArray[np.bool_], sureness: Float64) -> tuple[Float64, Float64]:
    """The curve: what is wrong among the surest.

    Args:
        wrong: (N,) whether each answer is wrong.
        sureness: (N,), of any scale; equal ones can't be told apart and come together.

    Returns:
        Coverages in (0, 1], rising, and the risk at each, in [0, 1]: one pair per distinct
        sureness.

    Raises:
        ShapeError: No answers, or the two differ in length.
    """
    order, ends = _sort(wrong, sureness)
    errors = np.cumsum(np.asarray(wrong, np.float64)[order])
    return (ends + 1) / len(order), errors[ends] / (ends + 1)


def measure_risk(
    wrong: NDArray[np.bool_], sureness: Float64, weights: NDArray[np.number]
) -> tuple[Float64, Float64]:
    """AURC and the error at 80 % coverage, in each of B resamples.

    Args:
        wrong, sureness: As for `trace_risk`.
        weights: (B, N): how often each answer is in each resample; none may be empty.

    Returns:
        Two arrays (B,), in [0, 1].
    """
    order, ends = _sort(wrong, sureness)
    errors = np.asarray(wrong, np.float64)[order]
    areas, risks = [], []
    step = max(1, BLOCK // len(order))
    for start in range(0, len(weights), step):
        w = weights[start : start + step].astype(np.float64)[:, order]
        held = np.cumsum(w, axis=1)[:, ends]  # (B, M)
        lost = np.cumsum(w * errors, axis=1)[:, ends]
        # Before the first answer that a resample holds there is neither weight nor error.
        risk = np.divide(lost, held, out=np.zeros_like(lost), where=held > 0)
        total = held[:, -1:]
        areas.append((risk * np.diff(held, axis=1, prepend=0)).sum(axis=1) / total[:, 0])
        at = (held >= COVERAGE * total - 1e-9).argmax(axis=1)
        risks.append(risk[np.arange(len(at)), at])
    return np.concatenate(areas), np.concatenate(risks)


def judge_orders(
    wrong: NDArray[np.bool_], orders: Mapping[str, Float64], groups: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Several ways to be sure, on the same answers; the limits come from whole groups.

    Args:
        wrong: (N,).
        orders: By name the sureness (N,); the first is compared with each of the others.
        groups: N names.
        seed: Decides the resamples.

    Returns:
        Per name ``aurc`` and ``error_at_80``, each {value, low, high}, and ``curve``, pairs of
        coverage and risk; ``full_error``; ``differences``: {name: {value, low, high}}, AURC of the
        first minus that of the other, below 0 where the first is better.
    """
    rng = np.random.default_rng(seed)
    weights = bootstrap_weights(groups, rng, RESAMPLES)
    once = np.ones((1, len(groups)))
    told: dict[str, Any] = {"full_error": float(np.mean(wrong)), "coverage": COVERAGE}
    plain: dict[str, float] = {}
    drawn: dict[str, Float64] = {}
    for name, sureness in orders.items():
        (area,), (risk,) = measure_risk(wrong, sureness, once)
        areas, risks = measure_risk(wrong, sureness, weights)
        plain[name], drawn[name] = float(area), areas
        told[name] = {
            "aurc": _limit(float(area), areas),
            "error_at_80": _limit_error(float(risk), risks, sureness, groups),
            "curve": _thin(*trace_risk(wrong, sureness)),
        }
    first, *others = orders
    told["differences"] = {
        name: _limit(plain[first] - plain[name], drawn[first] - drawn[name]) for name in others
    }
    return told


def _sort(wrong: NDArray[np.bool_], sureness: Float64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows by falling sureness, and the last place of each run of equal ones."""
    score = np.asarray(sureness, np.float64)
    if len(score) != len(wrong) or not len(score):
        raise ShapeError(
            f"Found {len(wrong)} answers and {len(score)} values of how sure they are; expected "
            "as many of each, and at least one."
        )
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    return order, ends


def _limit(value: float, draws: Float64) -> dict[str, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _limit_error(
    value: float, draws: Float64, sureness: Float64, groups: Sequence[str]
) -> dict[str, float]:
    """Where none or all are wrong, the other limit is the exact one, groups as n."""
    limits = _limit(value, draws)
    if value in (0, 1):
        kept = np.argsort(-sureness, kind="stable")[: int(np.ceil(COVERAGE * len(groups)))]
        n = len({groups[i] for i in kept})
        low, high = exact_limits(round(value * n), n)
        limits = {
            "value": value, "low": min(limits["low"], low), "high": max(limits["high"], high),
        }  # fmt: skip
    return limits


def _thin(coverage: Float64, risk: Float64) -> list[list[float]]:
    """At most `POINTS` pairs, evenly spaced, the last among them."""
    some = np.unique(np.linspace(0, len(coverage) - 1, POINTS).round().astype(int))
    return [[float(coverage[i]), float(risk[i])] for i in some]
