"""What a model says of each cell, and how that is written down: CSV, Parquet, JSON.

The columns are a contract with other programs. Knows answers; knows nothing of models.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import SettingsError
from leuko.storage import write_atomically

PRE_CLASSIFIED, UNIDENTIFIED, REJECTED = "pre-classified", "unidentified", "rejected"
FIRST = ("image", "cell", "x0", "y0", "x1", "y1", "label", "probability")
LAST = ("set", "state", "reason")
# With one of these at the beginning a spreadsheet takes a text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Answer:
    """One row: a cell, or a picture in which there was none.

    Attributes:
        image: Name of the picture.
        cell: Number within the picture, from 1 for the most certain; None without a cell.
        box: x0, y0, x1, y1 of the whole cell in px; None without a cell.
        label: The likeliest class. It is only as good as `state` says; None if it was rejected.
        probability: Of that class, calibrated; None if it was rejected.
        probabilities: (K,) of all classes; None if it was rejected.
        set: Classes that can't be excluded at the bundle's coverage, the likeliest first; empty
            where the bundle has no thresholds too.
        state: ``pre-classified``, ``unidentified`` or ``rejected``.
        reason: Why it isn't pre-classified; empty if it is.
    """

    image: str
    cell: int | None = None
    box: tuple[float, float, float, float] | None = None
    label: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] | None = None
    set: tuple[str, ...] = ()
    state: str = REJECTED
    reason: str = ""


@dataclass(frozen=True)
class SetAside:
    """A picture that couldn't be read.

    Attributes:
        image: Its name.
        reason: A key of `leuko.data.image.REASONS`.
        detail: A sentence.
    """

    image: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Predictions:
    """All answers to what was handed over.

    Attributes:
        classes: K names.
        answers: In the order of the pictures.
        set_aside: Pictures that couldn't be read.
        bundle: The `id` of the bundle that answered.
        notes: What was left out of folders, in sentences.
    """

    classes: tuple[str, ...]
    answers: tuple[Answer, ...]
    set_aside: tuple[SetAside, ...]
    bundle: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    @property
    def labels(self) -> list[str | None]:
        """The label of each answer."""
        return [answer.label for answer in self.answers]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K), a row for each answer; NaN where there was no cell."""
        none = (np.nan,) * len(self.classes)
        rows = [none if a.probabilities is None else a.probabilities for a in self.answers]
        return np.array(rows, np.float64).reshape(-1, len(self.classes))

    def count(self) -> dict[str, int]:
        """Answers by state."""
        return count_states(self.answers)

    def to_json(self) -> dict[str, Any]:
        """As ``leuko predict --json`` prints it."""
        return {
            "bundle": self.bundle,
            "classes": list(self.classes),
            "cells": [_to_object(answer, self.classes) for answer in self.answers],
            "set_aside": [vars(one) for one in self.set_aside],
        }

    def to_csv(self) -> str:
        """As ``leuko predict`` writes it."""
        return write_table(self.answers, self.classes)

    def write(self, path: str | Path) -> Path:
        """Writes ``.csv``, ``.parquet`` or ``.json``, by the name."""
        place = Path(path)
        kind = check_kind(place)
        if kind == ".csv":
            return write_atomically(place, self.to_csv())
        if kind == ".json":
            return write_atomically(place, json.dumps(self.to_json(), indent=1) + "\n")
        return write_atomically(place, self._write_parquet)

    def _write_parquet(self, path: Path) -> None:
        import polars as pl

        numbers = {"cell": pl.Int64, "probability": pl.Float64}
        numbers |= dict.fromkeys(("x0", "y0", "x1", "y1"), pl.Float64)
        numbers |= {f"p_{name}": pl.Float64 for name in self.classes}
        schema = {name: numbers.get(name, pl.String) for name in name_columns(self.classes)}
        rows = [_to_row(answer, len(self.classes)) for answer in self.answers]
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)


def check_kind(path: Path) -> str:
    """The ending of a file of answers.

    Raises:
        SettingsError: It isn't one that can be written.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet", ".json"):
        raise SettingsError(
            f"{path} ends in {kind or 'nothing'}; answers are written as .csv, .parquet or .json."
        )
    return kind


def name_columns(classes: Sequence[str]) -> list[str]:
    """The columns of the table."""
    return [*FIRST, *(f"p_{name}" for name in classes), *LAST]


def count_states(answers: Iterable[Answer]) -> dict[str, int]:
    """How many answers have each state."""
    found = Counter(answer.state for answer in answers)
    return {state: found[state] for state in (PRE_CLASSIFIED, UNIDENTIFIED, REJECTED)}


def write_table(
    answers: Sequence[Answer],
    classes: Sequence[str],
    more: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """The table as CSV.

    Args:
        answers: Its rows.
        classes: K names.
        more: By name further columns, written last.
    """
    more = more or {}
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([defuse(name) for name in (*name_columns(classes), *more)])
    for answer, *rest in zip(answers, *more.values(), strict=True):
        writer.writerow([defuse(value) for value in (*_to_row(answer, len(classes)), *rest)])
    return out.getvalue()


def _to_row(answer: Answer, classes: int) -> list[Any]:
    """Values in the order of the columns."""
    return [
        answer.image, answer.cell, *(answer.box or (None,) * 4), answer.label, answer.probability,
        *(answer.probabilities or (None,) * classes), "|".join(answer.set), answer.state,
        answer.reason,
    ]  # fmt: skip


def _to_object(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
    facts = dict(zip(name_columns(classes), _to_row(answer, len(classes)), strict=True))
    return {**facts, "set": list(answer.set)}


def defuse(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value
