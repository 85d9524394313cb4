"""What whoever reads a differential should know: too few cells, too many doubts, odd classes.

    counts, shares, the model's record → flags, warnings first

Knows the parts of a differential; knows nothing of how they were counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leuko.judgement.findings import quantity
from leuko.judgement.metrics import exact_limits
from leuko.use.kinds import NUCLEATED_RED, find_missing, is_usual
from leuko.use.record import Record

if TYPE_CHECKING:
    from leuko.use.differential import Beside, Row

TARGET = 200  # cells that one examiner counts for a reference, CLSI H20
FEW = 100  # below it the limits are too wide for most uses: warned of whatever the target
WARNING, NOTE = "warning", "note"


@dataclass(frozen=True)
class Flag:
    """Something that whoever reads the differential should know.

    Attributes:
        kind: A key that doesn't change between versions, such as ``few_cells``.
        level: ``warning`` or ``note``.
        text: A sentence with the numbers it comes from.
    """

    kind: str
    level: str
    text: str


def raise_flags(
    cells: int,
    target: int,
    rows: Sequence[Row],
    beside: Sequence[Beside],
    unidentified: Mapping[str, int],
    set_aside: Sequence[tuple[str, str]],
    record: Record | None,
    reader: str | None,
) -> tuple[Flag, ...]:
    """Everything that there is to say of a count, warnings first.

    Args:
        cells: Leukocytes counted.
        target: How many were wanted.
        rows, beside: The classes of leukocytes, and what else was counted.
        unidentified: Reason → cells.
        set_aside: Files that couldn't be read: name and reason.
        record: What is known of the model.
        reader: Who reviewed the cells; None if nobody did.
    """
    flags = [
        *_flag_number(cells, target),
        *_flag_doubts(cells, beside, unidentified, record, reader),
        *_flag_files(set_aside),
        *_flag_classes(rows, beside, record, reader),
    ]
    return tuple(sorted(flags, key=lambda flag: flag.level != WARNING))


def _flag_number(cells: int, target: int) -> list[Flag]:
    if not cells:
        return [Flag("no_cells", WARNING, "No leukocyte was counted: there is no differential.")]
    if cells < FEW:
        told = f"{quantity(cells, 'leukocyte')} {'was' if cells == 1 else 'were'} counted"
        text = f"Only {told}, fewer than {FEW}: the limits are wide."
        return [Flag("few_cells", WARNING, text)]
    if cells < TARGET:
        text = (
            f"{cells} leukocytes were counted, fewer than the {TARGET} of a reference count "
            "(CLSI H20)."
        )
        return [Flag("few_cells", WARNING, text)]
    if cells < target:
        text = f"{cells:,} leukocytes were counted of the {target:,} that were wanted."
        return [Flag("below_target", WARNING, text)]
    return []


def _flag_doubts(
    cells: int,
    beside: Sequence[Beside],
    unidentified: Mapping[str, int],
    record: Record | None,
    reader: str | None,
) -> list[Flag]:
    """Unidentified cells, measured by how many there were in the model's own test."""
    doubtful = sum(unidentified.values())
    if not doubtful:
        return []
    all_cells = cells + doubtful + sum(one.count for one in beside)
    text = (
        f"Unidentified: {doubtful:,} of {quantity(all_cells, 'cell')} "
        f"({_tell_share(doubtful / all_cells)}), "
        "no part of the percentages"
    )
    usual = record.unidentified if record and reader is None else None
    if usual is None:
        if record and record.doubt and reader is None:
            text += f". How many the model usually leaves isn't known: {record.doubt}"
        return [Flag("unidentified", NOTE, text + ".")]
    low, _ = exact_limits(doubtful, all_cells)
    if low > usual:
        text += (
            f"; in the model's test {_tell_share(usual)} were. These pictures are harder for it "
            "than those it was tested on: review them."
        )
        return [Flag("many_unidentified", WARNING, text)]
    return [Flag("unidentified", NOTE, f"{text}; in the model's test {_tell_share(usual)} were.")]


def _tell_share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _flag_files(set_aside: Sequence[tuple[str, str]]) -> list[Flag]:
    if not set_aside:
        return []
    files = "1 file" if len(set_aside) == 1 else f"{len(set_aside):,} files"
    return [Flag("set_aside", WARNING, f"{files} couldn't be read, so cells may be missing.")]


def _flag_classes(
    rows: Sequence[Row], beside: Sequence[Beside], record: Record | None, reader: str | None
) -> list[Flag]:
    """Cells that a normal differential doesn't name; classes that the model can't name."""
    flags = []
    found: list[Row | Beside] = [row for row in rows if row.count and not is_usual(row.label)]
    found += [one for one in beside if one.count and one.sort == NUCLEATED_RED]
    for one in found:
        text = (
            f"{one.label}: {one.count:,}. It isn't one of the five classes of a normal differential"
        )
        text += "." if reader else "; have a person look at each."
        if one.corrected_low is not None and one.corrected_low < 0.05:
            text += " The model's errors alone may explain the number."
        flags.append(Flag("outside_the_five", NOTE, text))
    for row in rows:
        if row.percent is None or row.corrected_low is None or row.corrected_high is None:
            continue
        if not row.corrected_low <= row.percent <= row.corrected_high:
            text = (
                f"{row.label}: the counted cells say {row.percent:.1f} %; with doubtful cells and "
                f"the model's errors allowed for it is {row.corrected:.1f} % "
                f"({row.corrected_low:.1f}–{row.corrected_high:.1f})."
            )
            flags.append(Flag("correction_differs", WARNING, text))
    missing = find_missing(row.label for row in rows) if record and not reader else []
    if missing:
        text = (
            f"The model doesn't know {', '.join(missing)}: such cells end in another class or "
            "stay unidentified."
        )
        flags.append(Flag("unknown_classes", WARNING, text))
    return flags
