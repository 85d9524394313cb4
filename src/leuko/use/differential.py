"""The differential of one slide: counts → percentages with exact limits, corrections, flags.

    counts (+ doubts, a person's name, the model's record) → Differential → to_json

Pure: the same counts give the same differential, whether a model or a person made them. Knows
counts; knows nothing of pictures, pages or files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from leuko.errors import SettingsError, ShapeError
from leuko.judgement.findings import quantity
from leuko.judgement.metrics import exact_limits
from leuko.judgement.prevalence import DRAWS, Prevalence, correct_prevalence
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED, Predictions
from leuko.use.flags import TARGET, Flag, raise_flags
from leuko.use.kinds import LEUKOCYTE, NUCLEATED_RED, order_classes, sort_class
from leuko.use.record import Record

RESEARCH_USE = "Research use only, not for diagnosis."
PRELIMINARY, FINAL = "preliminary", "final"


@dataclass(frozen=True)
class Row:
    """One class of leukocytes; all shares in percent of the leukocytes that were counted.

    Attributes:
        label: The class.
        count: Cells.
        percent: Share; None where nothing was counted.
        low: Lower exact (Clopper–Pearson) 95 % limit: the chance of which cells are looked at.
        high: Upper limit.
        corrected: Share after undoing the model's own errors; None without a correction.
        corrected_low: Lower 95 % limit: that chance, and how well the errors are known.
        corrected_high: Upper limit.
    """

    label: str
    count: int
    percent: float | None
    low: float
    high: float
    corrected: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None


@dataclass(frozen=True)
class Beside:
    """A class that isn't a leukocyte, and so no part of the 100 %.

    Attributes:
        label: The class.
        sort: ``nucleated red cell`` or ``other``.
        count: Cells.
        per_100: Per 100 leukocytes, for nucleated red cells; else None.
        low: Lower exact 95 % limit of it.
        high: Upper one; None where no leukocyte was counted.
        corrected: As `Row.corrected`, per 100 leukocytes.
        corrected_low: Lower 95 % limit.
        corrected_high: Upper limit.
    """

    label: str
    sort: str
    count: int
    per_100: float | None = None
    low: float | None = None
    high: float | None = None
    corrected: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None


@dataclass(frozen=True)
class Correction:
    """Where corrected shares come from, or why there are none.

    Attributes:
        done: Whether there are any.
        text: A sentence: the source, or the reason.
        cells: Cells of the test that the model's errors were counted on.
        answers: Cells of the slide that it was applied to, by the likeliest class of each.
    """

    done: bool
    text: str
    cells: int = 0
    answers: int = 0


@dataclass(frozen=True)
class Differential:
    """What one slide holds. Made by `count_differential`.

    Attributes:
        slide: Its name.
        status: ``final`` once signed, else ``preliminary``.
        reader: Who looked at the cells; None if nobody did.
        signed: When that person signed, ISO 8601 with an offset; None before.
        made: When the cells were counted, ISO 8601; None if it isn't said.
        pictures: How many were looked at; None if it isn't said.
        cells: Leukocytes that were counted: the 100 %.
        target: How many were wanted.
        rows: Classes of leukocytes, in the order of a report.
        beside: Other classes.
        unidentified: Doubtful cells by reason; no part of the 100 %.
        rejected: What is no leukocyte, or pictures without one, by reason.
        set_aside: Files that couldn't be read: name and reason.
        flags: Warnings first.
        correction: About the corrected shares.
        model: What is known of the model; empty without one.
        reviewed: How many of `cells` a person confirmed or named one by one; None if it isn't said.
    """

    slide: str
    status: str
    reader: str | None
    signed: str | None
    made: str | None
    pictures: int | None
    cells: int
    target: int
    rows: tuple[Row, ...]
    beside: tuple[Beside, ...]
    unidentified: dict[str, int]
    rejected: dict[str, int]
    set_aside: tuple[tuple[str, str], ...]
    flags: tuple[Flag, ...]
    correction: Correction
    model: dict[str, Any]
    reviewed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``leuko differential --json`` prints them."""
        facts = asdict(self)
        return {
            "use": RESEARCH_USE,
            **facts,
            "unidentified": _sum_up(self.unidentified),
            "rejected": _sum_up(self.rejected),
            "set_aside": [{"image": image, "reason": why} for image, why in self.set_aside],
            "rows": [asdict(row) for row in self.rows],
            "beside": [asdict(one) for one in self.beside],
            "flags": [asdict(flag) for flag in self.flags],
        }


def count_differential(
    counts: Mapping[str, int],
    *,
    slide: str = "",
    record: Record | None = None,
    likeliest: Mapping[str, int] | None = None,
    unidentified: Mapping[str, int] | None = None,
    rejected: Mapping[str, int] | None = None,
    set_aside: Sequence[tuple[str, str]] = (),
    target: int = TARGET,
    reader: str | None = None,
    signed: datetime | None = None,
    reviewed: Mapping[str, int] | None = None,
    made: datetime | None = None,
    pictures: int | None = None,
    seed: int = 0,
) -> Differential:
    """Makes a differential of counts, whoever counted.

    Args:
        counts: Cells per class: pre-classified ones, or those that a person has reviewed. Classes
            of `record` that are absent have 0.
        slide: Its name.
        record: What the bundle says of its model, from `leuko.use.record.read_record`.
        likeliest: Likeliest class of *every* cell that wasn't rejected, doubtful ones too: what
            the model's confusion can be undone in. None, or with a `reader`, nothing is corrected.
        unidentified: Doubtful cells by reason.
        rejected: What is no leukocyte, by reason.
        set_aside: Name and reason of files that couldn't be read.
        target: How many leukocytes were wanted, at least 1.
        reader: Who reviewed the cells.
        signed: When the reader signed; needs a time zone. The differential is final then.
        reviewed: Of `counts`, the cells that the reader confirmed or named one by one. A signature
            vouches for the others too, but nobody looked for the model's errors among them. None
            if it isn't known.
        made: When it was counted.
        pictures: How many were looked at.
        seed: Of the draws behind the corrected limits.

    Raises:
        SettingsError: Signed by nobody, or without a time zone; a target below 1.
        ShapeError: A count that is negative, or more cells reviewed than counted.
    """
    _check_signature(reader, signed)
    if target < 1:
        raise SettingsError(f"The target is {target} cells; expected at least 1, such as 200.")
    doubts, refused = _count_up(unidentified), _count_up(rejected)
    numbers = {**dict.fromkeys(record.classes if record else (), 0), **_count_up(counts)}
    names = order_classes(numbers)
    leukocytes = [name for name in names if sort_class(name) == LEUKOCYTE]
    cells = sum(numbers[name] for name in leukocytes)
    confirmed = _count_reviewed(reviewed, numbers, leukocytes)
    corrected, correction = (
        _correct(record, likeliest, seed)
        if reader is None
        else ({}, Correction(False, _tell_review(signed is not None, cells, confirmed)))
    )
    rows = tuple(_make_row(name, numbers[name], cells, corrected) for name in leukocytes)
    beside = tuple(
        _make_beside(name, numbers[name], cells, corrected)
        for name in names
        if sort_class(name) != LEUKOCYTE
    )
    return Differential(
        slide=slide,
        status=FINAL if signed else PRELIMINARY,
        reader=reader,
        signed=signed.isoformat(timespec="seconds") if signed else None,
        made=made.isoformat(timespec="seconds") if made else None,
        pictures=pictures, cells=cells, target=target, rows=rows, beside=beside,
        unidentified=doubts, rejected=refused, set_aside=tuple(set_aside),
        flags=raise_flags(cells, target, rows, beside, doubts, set_aside, record, reader),
        correction=correction, model=record.to_json() if record else {}, reviewed=confirmed,
    )  # fmt: skip


def count_predictions(
    found: Predictions,
    *,
    record: Record | None = None,
    slide: str = "",
    target: int = TARGET,
    made: datetime | None = None,
) -> Differential:
    """The differential of what a model answered to the pictures of one slide, unreviewed."""
    by_state: dict[str, Counter[str]] = {
        state: Counter() for state in (PRE_CLASSIFIED, UNIDENTIFIED, REJECTED)
    }
    likeliest: Counter[str] = Counter()
    for answer in found:
        by_state[answer.state][
            answer.label or "" if answer.state == PRE_CLASSIFIED else answer.reason
        ] += 1
        if answer.state != REJECTED and answer.label is not None:
            likeliest[answer.label] += 1
    return count_differential(
        {**dict.fromkeys(found.classes, 0), **by_state[PRE_CLASSIFIED]},
        slide=slide, record=record, likeliest=likeliest, unidentified=by_state[UNIDENTIFIED],
        rejected=by_state[REJECTED],
        set_aside=[(one.image, one.reason) for one in found.set_aside], target=target, made=made,
        pictures=len({answer.image for answer in found}),
    )  # fmt: skip


# --- parts ----------------------------------------------------------------------------------------


def _check_signature(reader: str | None, signed: datetime | None) -> None:
    if signed is None:
        return
    if not (reader or "").strip():
        raise SettingsError("A differential was signed by nobody; expected the reader's name.")
    if signed.utcoffset() is None:
        raise SettingsError(
            f"The time of the signature, {signed}, has no time zone; expected one, such as UTC."
        )


def _count_up(counts: Mapping[str, int] | None) -> dict[str, int]:
    found = {str(name): int(n) for name, n in (counts or {}).items()}
    for name, n in found.items():
        if n < 0:
            raise ShapeError(f"Found {n} cells of {name!r}; expected 0 or more.")
    return found


def _count_reviewed(
    reviewed: Mapping[str, int] | None, counts: Mapping[str, int], leukocytes: Sequence[str]
) -> int | None:
    if reviewed is None:
        return None
    found = _count_up(reviewed)
    for name, n in found.items():
        if n > counts.get(name, 0):
            raise ShapeError(
                f"Found {n} reviewed cells of {name!r}, but {counts.get(name, 0)} counted ones; "
                "expected no more than were counted."
            )
    return sum(found.get(name, 0) for name in leukocytes)


def _tell_review(signed: bool, cells: int, reviewed: int | None) -> str:
    """Why a reader's count isn't corrected, without saying that each cell was looked at."""
    why = "a person signed" if signed else "a person reviews the cells"
    if reviewed is None:
        return (
            f"Not corrected, because {why}; how many cells were confirmed one by one isn't known."
        )
    if not cells:
        return "Not corrected: there is no leukocyte."
    if reviewed == cells:
        return "Not corrected: a person has confirmed each counted cell."
    left = cells - reviewed
    return (
        f"{left:,} of the {quantity(cells, 'counted cell')} {'was' if left == 1 else 'were'} not "
        f"confirmed one by one; not corrected, because {why}."
    )


def _sum_up(reasons: Mapping[str, int]) -> dict[str, Any]:
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return {"total": sum(reasons.values()), "reasons": dict(ordered)}


def _correct(
    record: Record | None, likeliest: Mapping[str, int] | None, seed: int
) -> tuple[dict[str, tuple[float, float, float]], Correction]:
    """Corrected shares by class in percent, with limits; and where they come from."""
    if record is None:
        return {}, Correction(False, "Not corrected: nothing is known of the model's errors.")
    if likeliest is None:
        return {}, Correction(False, "Not corrected: these counts aren't the model's own answers.")
    if record.confusion is None:
        return {}, Correction(False, f"Not corrected: {record.lack}")
    answers = [int(likeliest.get(name, 0)) for name in record.classes]
    counted = [sort_class(name) == LEUKOCYTE for name in record.classes]
    if not any(n for n, whole in zip(answers, counted, strict=True) if whole):
        return {}, Correction(False, "Not corrected: there is no leukocyte.")
    found: Prevalence = correct_prevalence(
        answers, record.confusion, counted, np.random.default_rng(seed)
    )
    parts = zip(found.value, found.low, found.high, strict=True)
    shares = {
        name: (100 * float(value), 100 * float(low), 100 * float(high))
        for name, (value, low, high) in zip(record.classes, parts, strict=True)
    }
    return shares, Correction(
        True,
        "Corrected for how often this model takes one class for another, by the likeliest class "
        f"of all {quantity(sum(answers), 'cell')}, doubtful ones too. The errors were counted on "
        f"{record.cells:,} cells ({record.source}); that they are the same on this slide is an "
        f"assumption. Limits from {DRAWS:,} draws of slide and test.",
        cells=record.cells,
        answers=sum(answers),
    )


def _make_row(
    name: str, count: int, cells: int, corrected: Mapping[str, tuple[float, float, float]]
) -> Row:
    low, high = exact_limits(count, cells)
    percent = 100 * count / cells if cells else None
    return Row(name, count, percent, 100 * low, 100 * high, *corrected.get(name, ()))


def _make_beside(
    name: str, count: int, cells: int, corrected: Mapping[str, tuple[float, float, float]]
) -> Beside:
    """Nucleated red cells per 100 leukocytes: of two counts the ratio is as exact as a share."""
    sort = sort_class(name)
    if sort != NUCLEATED_RED or not cells:
        return Beside(name, sort, count)
    low, high = exact_limits(count, count + cells)
    return Beside(
        name, sort, count, 100 * count / cells, 100 * low / (1 - low), 100 * high / (1 - high),
        *corrected.get(name, ()),
    )  # fmt: skip
