"""The differentials of a reading: as the machine left it, and as it is after review.

Pure: knows readings; knows nothing of requests or files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from leuko.service.records import REVIEWED, SIGNED, Cell
from leuko.service.reviews import Reading
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED
from leuko.use.differential import Differential, count_differential
from leuko.use.predictor import NO_CELL, UNLIKE
from leuko.use.record import Record

NO_LEUKOCYTE = "no leukocyte, as the reader says"


def count_machine(
    slide: Mapping[str, Any], cells: Iterable[Cell], record: Record | None
) -> Differential:
    """What the machine said, unreviewed: the numbers of `leuko differential` for these pictures.

    Args:
        slide: From `leuko.service.shelf.read_slide`, or `Reading.recall` of it.
        cells: Of a reading; what was added by persons is left out.
        record: Of the bundle that answered, if it is the one in use.
    """
    machine = [cell.machine for cell in cells if not cell.added]
    # What the machine took for no cell waits for a person as unidentified; here it counts as what
    # the machine said.
    refused = [m for m in machine if m.state == REJECTED or m.reason == UNLIKE]
    found = [m for m in machine if m.state != REJECTED and m.reason != UNLIKE]
    counts = Counter(m.label for m in found if m.state == PRE_CLASSIFIED)
    return count_differential(
        {**dict.fromkeys(slide["classes"], 0), **_name(counts)},
        record=record,
        likeliest=_name(Counter(m.label for m in found)),
        unidentified=Counter(m.reason for m in found if m.state == UNIDENTIFIED),
        rejected=Counter(m.reason for m in refused) + _count_empty(slide),
        made=_to_time(slide["created"]),
        **_describe(slide),
    )


def count_reviewed(
    slide: Mapping[str, Any], reading: Reading, record: Record | None
) -> Differential:
    """What a reading says; final once it is signed.

    Args:
        slide: From `Reading.recall`, so that what was signed stays as it was.
        reading: Of this slide.
        record: As for `count_machine`.
    """
    present = [cell for cell in reading.review.cells.values() if not cell.deleted]
    refused = Counter(cell.reason for cell in present if cell.state == REJECTED)
    deleted = sum(cell.deleted and not cell.added for cell in reading.review.cells.values())
    refused += Counter({NO_LEUKOCYTE: deleted})
    signed = reading.outline["signed"] if reading.outline["state"] == SIGNED else None
    last = reading.changes[-1].at if reading.changes else slide["created"]
    return count_differential(
        {
            **dict.fromkeys(slide["classes"], 0),
            **_name(Counter(cell.label for cell in present if cell.counted)),
        },
        record=record,
        unidentified=Counter(c.reason for c in present if c.state == UNIDENTIFIED),
        rejected=refused + _count_empty(slide),
        reader=signed["name"] if signed else reading.outline["reader"] or None,
        signed=_to_time(signed["when"]) if signed else None,
        reviewed=_name(
            Counter(cell.label for cell in present if cell.counted and cell.state == REVIEWED)
        ),
        made=_to_time(last),
        **_describe(slide),
    )


def _describe(slide: Mapping[str, Any]) -> dict[str, Any]:
    fields: Sequence[Mapping[str, Any]] = slide["fields"]
    return {
        "slide": slide["name"],
        "target": slide["target"],
        "pictures": sum(field["set_aside"] is None for field in fields),
        "set_aside": [
            (field["name"], field["set_aside"]["reason"]) for field in fields if field["set_aside"]
        ],
    }


def _count_empty(slide: Mapping[str, Any]) -> Counter[str]:
    """Fields in which the machine found nothing, as `leuko predict` counts them."""
    empty = sum(not field["cells"] and field["set_aside"] is None for field in slide["fields"])
    return Counter({NO_CELL: empty}) if empty else Counter()


def _name(counts: Mapping[str | None, int]) -> dict[str, int]:
    return {label: n for label, n in counts.items() if label is not None}


def _to_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
