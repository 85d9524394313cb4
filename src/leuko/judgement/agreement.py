"""How well two ways of counting agree: differences, limits of agreement, sensitivity.

Knows numbers of slides; knows no cells, files or names of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.metrics import exact_limits


@dataclass(frozen=True)
class Limited:
    """A number with its 95 % limits; all None where it can't be told."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Agreement:
    """Paired measurements of several slides against a reference, in the unit of both.

    Attributes:
        slides: N.
        bias: Mean difference, measured minus reference, with limits by Student's t.
        deviation: Standard deviation of the differences; None for one slide.
        lower: Lower limit of agreement, bias - 1.96 deviations, with limits of its own.
        upper: Upper limit of agreement: about 95 of 100 differences lie between the two.
        correlation: Pearson's r, with limits by Fisher's transformation from four slides on; None
            where one side doesn't vary.
    """

    slides: int
    bias: Limited
    deviation: float | None
    lower: Limited
    upper: Limited
    correlation: Limited


@dataclass(frozen=True)
class Detection:
    """How often a sign that the reference sees, or doesn't see, is seen or not.

    Attributes:
        positive: Slides that have the sign by the reference.
        found: Of these, slides that have it by the measurement.
        negative: Slides that don't have it by the reference.
        passed: Of these, slides that don't have it by the measurement.
        sensitivity: found / positive with exact limits; None without a positive slide.
        specificity: passed / negative, likewise.
    """

    positive: int
    found: int
    negative: int
    passed: int
    sensitivity: Limited
    specificity: Limited


def limit_difference(a: Limited, b: Limited) -> Limited:
    """The difference a - b of two independent numbers, with limits from theirs.

    Each limit is as far from the difference as the two distances that lead there, squared and
    summed. With exact limits of two shares it is a little wider than need be.

    Args:
        a: With limits around the value.
        b: Likewise.

    Source: MOVER, Zou and Donner 2008, doi:10.1002/sim.3095; for shares Newcombe 1998, method 10.
    """
    if a.value is None or b.value is None:
        return Limited(None)
    difference = a.value - b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Limited(difference)
    return Limited(
        difference,
        difference - float(np.hypot(a.value - a.low, b.high - b.value)),
        difference + float(np.hypot(a.high - a.value, b.value - b.low)),
    )


def measure_agreement(measured: Sequence[float], reference: Sequence[float]) -> Agreement:
    """Bias and limits of agreement of paired measurements.

    Args:
        measured: Of N slides.
        reference: Of the same slides, in the same order.

    Raises:
        ShapeError: No slide, or not as many on both sides.

    Source: Bland and Altman 1999, doi:10.1177/096228029900800204.
    """
    from scipy.stats import t

    a, b = np.asarray(measured, np.float64), np.asarray(reference, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ShapeError(
            f"Found measurements of shape {a.shape} and references of shape {b.shape}; expected "
            "one of each for every slide."
        )
    n, differences = len(a), a - b
    bias = float(differences.mean())
    if n == 1:
        alone = Limited(None)
        return Agreement(1, Limited(bias), None, alone, alone, alone)
    deviation = float(differences.std(ddof=1))
    wide = float(t.ppf(0.975, n - 1)) * deviation
    own = wide * float(np.sqrt(1 / n + 1.96**2 / (2 * (n - 1))))

    def limit(value: float) -> Limited:
        return Limited(value, value - own, value + own)

    return Agreement(
        slides=n,
        bias=Limited(bias, bias - wide / n**0.5, bias + wide / n**0.5),
        deviation=deviation,
        lower=limit(bias - 1.96 * deviation),
        upper=limit(bias + 1.96 * deviation),
        correlation=_correlate(a, b),
    )


def _correlate(a: NDArray[np.float64], b: NDArray[np.float64]) -> Limited:
    if not (a.std() > 1e-12 and b.std() > 1e-12):
        return Limited(None)
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if len(a) < 4 or abs(r) > 1 - 1e-12:
        return Limited(r)
    z, reach = np.arctanh(r), 1.96 / np.sqrt(len(a) - 3)
    return Limited(r, float(np.tanh(z - reach)), float(np.tanh(z + reach)))


def measure_detection(measured: Sequence[bool], reference: Sequence[bool]) -> Detection:
    """Sensitivity and specificity over slides, with exact limits.

    Args:
        measured: Whether each slide has the sign by the measurement.
        reference: Whether it has it by the reference, in the same order.

    Raises:
        ShapeError: Not as many on both sides.
    """
    if len(measured) != len(reference):
        raise ShapeError(
            f"Found {len(measured)} measurements and {len(reference)} references; expected one of "
            "each for every slide."
        )
    pairs = list(zip(measured, reference, strict=True))
    positive = sum(wanted for _, wanted in pairs)
    found = sum(seen and wanted for seen, wanted in pairs)
    negative = len(pairs) - positive
    passed = sum(not seen and not wanted for seen, wanted in pairs)
    return Detection(
        positive, found, negative, passed, limit_share(found, positive),
        limit_share(passed, negative),
    )  # fmt: skip


def limit_share(count: int, n: int) -> Limited:
    """A share in [0, 1] with exact (Clopper–Pearson) limits; None of none."""
    return Limited(count / n, *exact_limits(count, n)) if n else Limited(None)
