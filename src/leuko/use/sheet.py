"""What the one page of a differential says, in words and in the order of the page.

One source for paper and screen, so that they can't say different things. Knows differentials;
knows nothing of HTML or PDF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath

import leuko
from leuko.data.headers import REASONS
from leuko.judgement.agreement import Limited
from leuko.judgement.findings import quantity
from leuko.use.differential import Beside, Differential, Row
from leuko.use.flags import NOTE, WARNING
from leuko.use.kinds import NUCLEATED_RED, spell_out
from leuko.use.reference import Difference

MOST = 5  # reasons of one kind that are named; the rest is summed
NAMED = 3  # files of one reason that are named
OTHERS = "Not leukocytes"
ID = 13  # characters of a bundle's id, which is a hash
WORDS = 120  # characters of a name or reason that comes from data
LONGEST = 240  # of a reason with the names of its files


@dataclass(frozen=True)
class Line:
    """One class.

    Attributes:
        label: The class.
        cells: Its count.
        percent: Its share.
        limits: Exact 95 % limits of it.
        bar: Share and limits as numbers in percent, to be drawn; None without cells.
        corrected: The corrected share; empty without a correction.
        corrected_limits: Its limits.
        found: How many cells of this class the model named rightly in its test.
    """

    label: str
    cells: str
    percent: str
    limits: str
    bar: tuple[float, float, float] | None
    corrected: str
    corrected_limits: str
    found: str


@dataclass(frozen=True)
class Aside:
    """What isn't part of the 100 %: a heading with a number, and reasons with theirs."""

    title: str
    total: str
    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Compared:
    """One class against the reference: shares, and the differences with their limits."""

    label: str
    counted: str
    reference: str
    difference: str
    limits: str
    beyond: bool
    corrected: str
    corrected_limits: str


@dataclass(frozen=True)
class Sheet:
    """The page.

    Attributes:
        slide: Name of the slide.
        signed: Whether it is final.
        status: A sentence: who has looked at the cells.
        cells: Leukocytes counted.
        counted: The word that follows: ``leukocyte`` or ``leukocytes``.
        summary: What that is of, in words.
        warnings: Sentences.
        notes: Sentences.
        lines: Classes of leukocytes.
        corrected: Whether there are corrected shares.
        red: Nucleated red cells, a line per class, shares per 100 leukocytes.
        asides: What isn't counted.
        compared: Against a reference; empty without.
        reference: Sentence about it.
        foot: Sentences on method, model and versions.
        legend: What the names of classes stand for; empty if all are known. It is in the foot.
    """

    slide: str
    signed: bool
    status: str
    cells: str
    counted: str
    summary: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[Line, ...]
    corrected: bool
    red: tuple[Line, ...]
    asides: tuple[Aside, ...]
    compared: tuple[Compared, ...]
    reference: str
    foot: tuple[str, ...]
    legend: str


def lay_out(
    found: Differential, differences: Sequence[Difference] = (), reference: str = ""
) -> Sheet:
    """Puts a differential into words.

    Args:
        found: The differential.
        differences: Against a reference count, from `leuko.use.reference.compare_slide`.
        reference: Name of the reference.
    """
    tested = found.model.get("test", {}).get("classes", {}) if found.model else {}
    return Sheet(
        slide=shorten(found.slide) or "a slide without a name",
        signed=found.signed is not None,
        status=_tell_status(found),
        cells=f"{found.cells:,}",
        counted="leukocyte" if found.cells == 1 else "leukocytes",
        summary=_summarise(found),
        warnings=tuple(shorten(f.text, 400) for f in found.flags if f.level == WARNING),
        notes=tuple(shorten(f.text, 400) for f in found.flags if f.level == NOTE),
        lines=tuple(_make_line(row, row.percent, tested) for row in found.rows),
        corrected=found.correction.done,
        red=tuple(
            _make_line(one, one.per_100, tested)
            for one in found.beside
            if one.sort == NUCLEATED_RED
        ),
        asides=_list_asides(found),
        compared=tuple(_make_compared(d) for d in differences),
        reference=_tell_reference(differences, reference) if differences else "",
        foot=_tell_foot(found),
        legend=_tell_legend(found),
    )


def shorten(words: str, most: int = WORDS) -> str:
    """Words from data on one line: what is no text becomes "?", the rest is cut."""
    told = " ".join(words.encode("utf-8", "replace").decode().split())
    told = "".join(c if c.isprintable() else "?" for c in told)
    return told if len(told) <= most else told[: most - 1] + "…"


def tell_number(value: float | None, digits: int = 1) -> str:
    """With one decimal and a true minus; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def tell_range(low: float | None, high: float | None) -> str:
    """Limits with one decimal; empty for none."""
    return "" if low is None or high is None else f"{low:.1f}–{high:.1f}"


def tell_signed(value: float | None) -> str:
    """A difference with its sign; a true minus, so that it isn't taken for a dash."""
    if value is None:
        return "–"
    return f"{value:+.1f}".replace("-", "\u2212") if abs(value) >= 0.05 else "0.0"


def tell_signed_range(limited: Limited) -> str:
    """Limits of a difference."""
    if limited.low is None or limited.high is None:
        return ""
    return f"{tell_signed(limited.low)} to {tell_signed(limited.high)}"


def tell_time(written: str) -> str:
    """A time as people write it; its zone, if it has one, stays with it."""
    time = datetime.fromisoformat(written)
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def _tell_status(found: Differential) -> str:
    who = shorten(found.reader or "")
    if found.signed:
        told = f"signed by {who}, {tell_time(found.signed)}"
        if _is_reviewed(found):
            return f"Final: reviewed and {told}"
        return f"Final: {told}{_tell_confirmed(found)}"
    if found.reader:
        if _is_reviewed(found):
            return f"Preliminary: reviewed by {who}, not signed"
        return f"Preliminary: in review by {who}, not signed{_tell_confirmed(found)}"
    return "Preliminary: pre-classified by software, not reviewed"


def _is_reviewed(found: Differential) -> bool:
    """Whether a person looked at each cell that was counted."""
    return found.reviewed is not None and found.reviewed == found.cells


def _tell_confirmed(found: Differential) -> str:
    if found.reviewed is None:
        return ""
    cells = quantity(found.cells, "counted cell")
    return f"; {found.reviewed:,} of {cells} confirmed one by one"


def _summarise(found: Differential) -> str:
    told = [f"of {found.target:,} wanted"]
    if found.pictures is not None:
        told.append(quantity(found.pictures, "picture"))
    told.append(f"{sum(found.unidentified.values()):,} unidentified")
    told.append(f"{sum(found.rejected.values()):,} rejected")
    return " · ".join(told)


def _make_line(
    one: Row | Beside, share: float | None, tested: Mapping[str, dict[str, int]]
) -> Line:
    test = tested.get(one.label)
    low, high = (one.low, one.high) if share is not None else (None, None)
    return Line(
        label=shorten(one.label, 40),
        cells=f"{one.count:,}",
        percent=tell_number(share),
        limits=tell_range(low, high),
        bar=None if share is None or low is None or high is None else (share, low, high),
        corrected="" if one.corrected is None else tell_number(one.corrected),
        corrected_limits=tell_range(one.corrected_low, one.corrected_high),
        found=f"{test['found']} of {test['tested']}" if test else "",
    )


def _list_asides(found: Differential) -> tuple[Aside, ...]:
    other = {one.label: one.count for one in found.beside if one.sort != NUCLEATED_RED}
    files = _tell_files(found.set_aside)
    kinds = (
        ("Unidentified", found.unidentified), ("Rejected", found.rejected),
        (OTHERS, other), ("Files that couldn't be read", files),
    )  # fmt: skip
    return tuple(_make_aside(title, reasons) for title, reasons in kinds if sum(reasons.values()))


def _tell_files(set_aside: Sequence[tuple[str, str]]) -> dict[str, int]:
    """What was expected instead, and of few files their names, rather than the code of a reason."""
    files: dict[str, list[str]] = {}
    for name, reason in set_aside:
        told = f"expected {REASONS[reason][0]}" if reason in REASONS else reason
        files.setdefault(told, []).append(shorten(PurePath(name).name, 40))
    return {
        (f"{', '.join(names)}: {told}" if len(names) <= NAMED else told): len(names)
        for told, names in files.items()
    }


def _make_aside(title: str, reasons: Mapping[str, int]) -> Aside:
    ordered = sorted(((n, why) for why, n in reasons.items() if n), key=lambda r: (-r[0], r[1]))
    rows = [(shorten(why, LONGEST), f"{n:,}") for n, why in ordered[:MOST]]
    if len(ordered) > MOST:
        rest = ordered[MOST:]
        rows.append((f"{len(rest)} other reasons", f"{sum(n for n, _ in rest):,}"))
    return Aside(title, f"{sum(reasons.values()):,}", tuple(rows))


def _make_compared(d: Difference) -> Compared:
    name = d.label if d.unit == "%" else f"{d.label}, {d.unit}"
    return Compared(
        label=shorten(name, 60),
        counted="no such class" if d.count is None else tell_number(d.counted.value),
        reference="not named"
        if d.reference_count is None
        else f"{tell_number(d.reference.value)} ({d.reference_count:,})",
        difference=tell_signed(d.difference.value),
        limits=tell_signed_range(d.difference),
        beyond=d.beyond_chance,
        corrected=tell_signed(d.corrected_difference.value),
        corrected_limits=tell_signed_range(d.corrected_difference),
    )


def _tell_reference(differences: Sequence[Difference], name: str) -> str:
    beyond = [d.label for d in differences if d.beyond_chance]
    told = f"Reference: {shorten(name)}. " if name else ""
    if not beyond:
        return told + "No class differs by more than the chance of which cells were counted allows."
    return f"{told}More than chance allows: {', '.join(shorten(b, 40) for b in beyond)}."


def _tell_legend(found: Differential) -> str:
    names = [*(row.label for row in found.rows), *(one.label for one in found.beside)]
    told = [f"{shorten(name, 40)} ({full})" for name in names if (full := spell_out(name))]
    return f"{', '.join(told)}." if told else ""


def _tell_foot(found: Differential) -> tuple[str, ...]:
    known = found.reviewed is not None or bool(found.model)  # else a person may have counted alone
    by_model = found.reader is None or (known and not _is_reviewed(found))
    errors = ", not the model's errors" if by_model else ""
    foot = [
        f"Limits: exact (Clopper–Pearson), 95 %; they hold the chance of which cells are looked at"
        f"{errors}. Nucleated red cells are given per 100 leukocytes; platelets and unidentified "
        "cells are no part of the 100 %.",
        shorten(found.correction.text, 600),
    ]
    legend = _tell_legend(found)
    foot += [legend] if legend else []
    model = f"Leuko {leuko.__version__}"
    if found.model:
        m = found.model
        model += f", {m['architecture']}, bundle {shorten(str(m['bundle']), ID)} of {m['created']}"
    if found.made:
        model += f". Counted {tell_time(found.made)}"
    return (*foot, model + ".")
