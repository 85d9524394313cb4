"""Differentials as CSV: a row per class, and per reason for what wasn't counted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leuko.data.steps import normalise_spelling
from leuko.judgement.agreement import Limited
from leuko.use.answers import defuse
from leuko.use.differential import RESEARCH_USE, Differential
from leuko.use.kinds import LEUKOCYTE
from leuko.use.reference import Comparison, Difference

COLUMNS = (
    "slide", "status", "class", "sort", "count", "percent", "low", "high", "corrected",
    "corrected_low", "corrected_high",
)  # fmt: skip
COMPARED = ("reference_count", "reference", "difference", "difference_low", "difference_high")
METHOD = (
    "class", "way", "slides", "bias", "bias_low", "bias_high", "deviation", "lower_limit",
    "upper_limit", "correlation", "by_chance", "side", "threshold", "sensitivity",
    "sensitivity_low", "sensitivity_high", "positive", "specificity", "specificity_low",
    "specificity_high", "negative",
)  # fmt: skip
LAST = "use"


def write_csv(
    found: Iterable[Differential],
    differences: Mapping[str, Sequence[Difference]] | None = None,
) -> str:
    """All slides in one table.

    ``percent`` is of the leukocytes; for nucleated red cells it is per 100 leukocytes. Rows whose
    ``sort`` is unidentified, rejected or set aside have the reason as class.

    Args:
        found: Differentials.
        differences: Per slide, against a reference; adds columns.
    """
    compared = COMPARED if differences else ()
    rows: list[list[Any]] = []
    for one in found:
        beside = {normalise_spelling(d.label): d for d in (differences or {}).get(one.slide, ())}
        for row in _list_rows(one):
            match = beside.pop(normalise_spelling(row[2]), None) if row[3] in _SORTS else None
            rows.append([*row, *(_list_difference(match) if compared else ()), RESEARCH_USE])
        for d in beside.values():  # classes that only the reference has
            empty = [one.slide, one.status, d.label, "reference only", *[None] * 7]
            rows.append([*empty, *_list_difference(d), RESEARCH_USE])
    return _write([*COLUMNS, *compared, LAST], rows)


_SORTS = (LEUKOCYTE, "nucleated red cell")


def _list_rows(one: Differential) -> list[list[Any]]:
    first = [one.slide, one.status]
    rows: list[list[Any]] = [
        [*first, r.label, LEUKOCYTE, r.count, r.percent, r.low, r.high, r.corrected,
         r.corrected_low, r.corrected_high]
        for r in one.rows
    ]  # fmt: skip
    rows += [
        [*first, b.label, b.sort, b.count, b.per_100, b.low, b.high, b.corrected, b.corrected_low,
         b.corrected_high]
        for b in one.beside
    ]  # fmt: skip
    aside: dict[str, int] = {}
    for _, reason in one.set_aside:
        aside[reason] = aside.get(reason, 0) + 1
    for sort, reasons in (
        ("unidentified", one.unidentified), ("rejected", one.rejected), ("set aside", aside),
    ):  # fmt: skip
        rows += [[*first, why, sort, n, *[None] * 6] for why, n in reasons.items()]
    return rows


def _list_difference(d: Difference | None) -> list[Any]:
    if d is None:
        return [None] * len(COMPARED)
    return [d.reference_count, d.reference.value, *_triple(d.difference)]


def write_comparison_csv(comparison: Comparison) -> str:
    """Bias, limits of agreement and, per threshold, sensitivity and specificity."""
    rows: list[list[Any]] = []
    for m in comparison.methods:
        a = m.agreement
        first = [
            m.label, m.way, a.slides, *_triple(a.bias), a.deviation, a.lower.value, a.upper.value,
            a.correlation.value, m.by_chance,
        ]  # fmt: skip
        for t, d in m.detections:
            rows.append([
                *first, t.side, t.percent, *_triple(d.sensitivity), d.positive,
                *_triple(d.specificity), d.negative, RESEARCH_USE,
            ])  # fmt: skip
        if not m.detections:
            rows.append([*first, *[None] * 10, RESEARCH_USE])
    return _write([*METHOD, LAST], rows)


def _triple(limited: Limited) -> list[float | None]:
    return [limited.value, limited.low, limited.high]


def _write(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([defuse(_round(value)) for value in row])
    return out.getvalue().encode("utf-8", "replace").decode()


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
