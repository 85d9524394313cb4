"""Two readings of one slide: how far they agree, and which cells they see differently.

Cells that the machine found are the same by their id; cells that both readers added are the same if
their boxes overlap. What neither reader counts as a leukocyte takes no part. Pure: knows readings;
knows nothing of databases.

Source of kappa's interval: Fleiss, Cohen and Everitt 1969, doi:10.1037/h0028106.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leuko.judgement.metrics import exact_limits
from leuko.service.records import Box, Cell, Review
from leuko.use.answers import REJECTED, UNIDENTIFIED

NO_CELL = "no leukocyte"
NOT_COUNTED = (NO_CELL, UNIDENTIFIED, REJECTED)
SAME = 0.5  # least overlap (intersection over union) of two boxes around one cell
Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Pair:
    """One cell in two readings; None where a reading hasn't got it."""

    a: Cell | None
    b: Cell | None

    @property
    def cell(self) -> Cell:
        """As one of them has it."""
        found = self.a or self.b
        assert found is not None
        return found

    @property
    def labels(self) -> tuple[str, str]:
        """What each says of it."""
        return name_of(self.a), name_of(self.b)


def name_of(cell: Cell | None) -> str:
    """What a reading says of a cell: its class, or why it isn't counted."""
    if cell is None or cell.deleted:
        return NO_CELL
    if cell.counted:
        return str(cell.label)
    return REJECTED if cell.state == REJECTED else UNIDENTIFIED


def pair_cells(a: Review, b: Review) -> list[Pair]:
    """Matches the cells of two readings of one slide."""
    own = [[c for c in r.cells.values() if c.added and not c.deleted] for r in (a, b)]
    pairs = [Pair(c, b.cells.get(i)) for i, c in a.cells.items() if not c.added]
    pairs += [Pair(None, c) for i, c in b.cells.items() if not c.added and i not in a.cells]
    overlaps = sorted(
        (
            (overlap(p.box, q.box), -i, -k)
            for i, p in enumerate(own[0])
            for k, q in enumerate(own[1])
            if p.field == q.field
        ),
        reverse=True,
    )
    left: set[int] = set()
    right: set[int] = set()
    for share, i, k in overlaps:
        if share >= SAME and -i not in left and -k not in right:
            left.add(-i)
            right.add(-k)
            pairs.append(Pair(own[0][-i], own[1][-k]))
    pairs += [Pair(c, None) for i, c in enumerate(own[0]) if i not in left]
    pairs += [Pair(None, c) for k, c in enumerate(own[1]) if k not in right]
    return pairs


def overlap(p: Box, q: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    wide = min(p[2], q[2]) - max(p[0], q[0])
    high = min(p[3], q[3]) - max(p[1], q[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / ((p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - both)


@dataclass(frozen=True)
class Limited:
    """A share with its 95 % limits."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As the API gives it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def measure_kappa(a: Sequence[str], b: Sequence[str]) -> Limited | None:
    """Cohen's kappa: agreement beyond what chance would give.

    Args:
        a: Labels of one reader.
        b: Of the other, for the same cells.

    Returns:
        With limits from the large-sample variance. Where all cells agree, that variance is 0; the
        lower limit then comes from the exact limit of the agreement. None without cells, or where
        both readers use one and the same class only: there is nothing that chance couldn't give.
    """
    names = sorted({*a, *b})
    n = len(a)
    if n == 0 or len(names) < 2:
        return None
    place = {name: k for k, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for one, other in zip(a, b, strict=True):
        table[place[one], place[other]] += 1 / n
    rows, columns, same = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    observed, expected = float(same.sum()), float(rows @ columns)
    kappa = (observed - expected) / (1 - expected)
    if observed > 1 - 1e-12:
        low = (exact_limits(n, n)[0] - expected) / (1 - expected)
        return Limited(1.0, max(-1.0, low), 1.0)
    weight = (1 - kappa) * (columns[:, None] + rows[None, :])  # of cell (i, j): p.i + pj.
    diagonal = same @ (1 - (rows + columns) * (1 - kappa)) ** 2
    apart = table * weight**2
    off = apart.sum() - np.diag(apart).sum()
    constant = (kappa - expected * (1 - kappa)) ** 2
    variance = (diagonal + off - constant) / (n * (1 - expected) ** 2)
    half = Z * float(np.sqrt(max(0.0, variance)))
    return Limited(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))


def compare_readings(a: Review, b: Review) -> dict[str, Any]:
    """Judges two readings of one slide.

    Returns:
        ``cells`` that at least one reader counts; ``agreement`` and ``kappa``, each with limits;
        ``classes``: for each class the counts of both, how many cells both call so, and the shares
        ``of_a`` and ``of_b`` (of the cells that this reader calls so, those that the other calls so
        too); ``differing``: cells with both labels.
    """
    pairs = [p for p in pair_cells(a, b) if not set(p.labels) <= set(NOT_COUNTED)]
    left, right = [p.labels[0] for p in pairs], [p.labels[1] for p in pairs]
    same = sum(one == other for one, other in zip(left, right, strict=True))
    kappa = measure_kappa(left, right)
    counts = Counter(left), Counter(right), Counter(p.labels[0] for p in pairs if _agree(p))
    names = sorted({*left, *right}, key=lambda name: (name in NOT_COUNTED, name.casefold(), name))
    return {
        "cells": len(pairs),
        "agreement": _share(same, len(pairs)),
        "kappa": kappa and kappa.to_json(),
        "classes": [
            {
                "label": name, "a": counts[0][name], "b": counts[1][name],
                "both": counts[2][name], "of_a": _share(counts[2][name], counts[0][name]),
                "of_b": _share(counts[2][name], counts[1][name]),
            }
            for name in names
        ],
        "differing": [
            {
                "field": pair.cell.field, "box": list(pair.cell.box),
                "a": {"cell": pair.a and pair.a.id, "label": pair.labels[0]},
                "b": {"cell": pair.b and pair.b.id, "label": pair.labels[1]},
            }
            for pair in pairs
            if not _agree(pair)
        ],
    }  # fmt: skip


def _agree(pair: Pair) -> bool:
    return pair.labels[0] == pair.labels[1]


def _share(part: int, whole: int) -> dict[str, float] | None:
    if not whole:
        return None
    return Limited(part / whole, *exact_limits(part, whole)).to_json()
