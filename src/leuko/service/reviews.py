"""Readings in the store: how they are opened, loaded and changed.

Each function is one transaction; a change that was answered is on the disk. Knows how a reading is
kept; what follows from its changes is said in `leuko.service.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from leuko.service import tables
from leuko.service.fields import no_field
from leuko.service.records import (
    ADD,
    FIELD,
    OPEN,
    REDO,
    SIGN,
    SIGNED,
    SLIDE,
    SPLIT,
    UNDO,
    Cell,
    Change,
    Machine,
    Review,
    Wish,
    begin_cell,
    check_wish,
    replay,
)
from leuko.service.refusals import Refusal
from leuko.service.shelf import (
    Finding,
    append,
    find_slide,
    insert_cells,
    insert_reading,
    list_fields,
    lock_readings,
    note_event,
    outline_reading,
)
from leuko.service.store import Store, now

Find = Callable[[], Sequence[Finding]]


@dataclass(frozen=True)
class Reading:
    """A reading as it stands.

    Attributes:
        outline: Everything but its cells, as the API gives it.
        review: Its cells.
        changes: That led there.
        signed: Name, target and fields of the slide when it was signed; None while it is open.
    """

    outline: dict[str, Any]
    review: Review
    changes: tuple[Change, ...]
    signed: Mapping[str, Any] | None = None

    def recall(self, slide: Mapping[str, Any]) -> dict[str, Any]:
        """The slide as it was signed; as it is while this reading is open.

        Args:
            slide: From `leuko.service.shelf.read_slide`.
        """
        if self.signed is None:
            return dict(slide)
        now = {field["id"]: field for field in slide["fields"]}
        then = [{**now[field["id"]], **field} for field in self.signed["fields"]]
        return {**slide, **self.signed, "fields": then}

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            **self.outline,
            "cells": [cell.to_json() for cell in self.review.cells.values()],
            "undo": self.review.undo,
            "redo": self.review.redo,
        }


def load_reading(store: Store, slide: int, reading: int, *, version: int | None = None) -> Reading:
    """A reading as it is, or as an earlier version was signed.

    Raises:
        Refusal: 404 without it, or without that version.
    """
    with store.read() as connection:
        return load(connection, slide, reading, version)


def open_reading(store: Store, slide: int, reader: str) -> int:
    """A second reading, which begins with what the machine said.

    Returns:
        Its id.

    Raises:
        Refusal: 404; 410 once the images are deleted, because nobody could look at the cells.
    """
    with store.write() as connection:
        row = find_slide(connection, slide)
        if row.images_deleted:
            raise Refusal(
                410, "images_deleted",
                "The images of this slide are deleted, so it can't be read a second time. Open the "
                "second reading before the first is signed, or keep the images.",
            )  # fmt: skip
        lock_readings(connection, slide)
        made = insert_reading(connection, slide, reader, now())
        note_event(connection, slide, "reading", by=reader, detail={"reading": made})
    return made


def find_repeated(store: Store, slide: int, reading: int, wish: Wish) -> bool:
    """Whether this very change was made already.

    Raises:
        Refusal: 404; 409 if its id belongs to another change.
    """
    with store.read() as connection:
        _find(connection, slide, reading)
        return _is_repeated(connection, reading, wish)


def make_change(
    store: Store, slide: int, reading: int, wish: Wish, findings: Sequence[Finding] = ()
) -> Reading:
    """Does what somebody asks for, or refuses it.

    Args:
        store: Where.
        slide: Of the reading.
        reading: Its id.
        wish: What is asked for. If it was done already, nothing is done again.
        findings: Cells to be made, for ``add`` and ``split``.

    Returns:
        The reading after it.

    Raises:
        Refusal: 404; 409 if somebody else changed the cells since; 422 if it makes no sense; 423 if
            the reading is signed.
    """
    with store.write() as connection:
        row = lock(connection, slide, reading)
        if _is_repeated(connection, reading, wish):
            return load(connection, slide, reading)
        if row.state == SIGNED:
            raise signed_already(row)
        before = load(connection, slide, reading)
        concerned = check_wish(before.review, wish)
        made: tuple[int, ...] = ()
        if findings:
            field = _find_field(connection, slide, wish, before.review)
            made = tuple(insert_cells(connection, slide, field, findings, reading))
        if wish.kind in (UNDO, REDO):
            made = _find_made(before.changes, wish.target)
        change = Change(
            wish.id, row.revision + 1, wish.kind, concerned, wish.label, made, wish.target,
            by=wish.by, at=now(), version=row.version,
        )  # fmt: skip
        append(connection, change, reading=reading, wish=wish.to_json())
        after = load(connection, slide, reading)
    store.tell(reading)
    return after


# --- rows -----------------------------------------------------------------------------------------


def _find(connection: Connection, slide: int, reading: int, *, lock: bool = False) -> Row[Any]:
    asked = select(tables.readings).where(
        tables.readings.c.id == reading, tables.readings.c.slide == slide
    )
    row = connection.execute(asked.with_for_update() if lock else asked).first()
    if row is None:
        find_slide(connection, slide)
        raise Refusal(404, "no_reading", f"Slide {slide} has no reading {reading}.")
    return row


def lock(connection: Connection, slide: int, reading: int) -> Row[Any]:
    """The row of a reading, held so that nobody else changes it meanwhile.

    Raises:
        Refusal: 404.
    """
    return _find(connection, slide, reading, lock=True)


def signed_already(row: Row[Any]) -> Refusal:
    """For a reading that is locked."""
    return Refusal(
        423, "signed",
        f"This reading was signed by {row.signed_name} ({row.signed_at}) and is locked. Open a new "
        "version of it, with the reason, to change anything.",
    )  # fmt: skip


def _is_repeated(connection: Connection, reading: int, wish: Wish) -> bool:
    row = connection.execute(
        select(tables.changes.c.wish).where(
            tables.changes.c.reading == reading, tables.changes.c.id == wish.id
        )
    ).first()
    if row is None:
        return False
    if row.wish != wish.to_json():
        raise Refusal(
            409, "id_reused",
            "The id of this change belongs to another change of this reading. Make a new id for "
            "each change.",
        )  # fmt: skip
    return True


def _find_field(connection: Connection, slide: int, wish: Wish, review: Review) -> int:
    """Where new cells lie: in the field of the cell that is split, or in one of this slide."""
    if wish.kind != ADD:
        return review.cells[wish.cells[0]].field
    assert wish.field is not None  # check_wish has seen to it
    fields = tables.fields.c
    asked = select(fields.id).where(fields.id == wish.field, fields.slide == slide)
    if connection.execute(asked).first() is None:
        raise no_field(slide, wish.field)
    return wish.field


def _find_made(changes: Sequence[Change], target: str | None) -> tuple[int, ...]:
    return next(change.made for change in changes if change.id == target)


def load(connection: Connection, slide: int, reading: int, version: int | None = None) -> Reading:
    """As `load_reading`, within a transaction."""
    row = _find(connection, slide, reading)
    cells, changes = tables.cells, tables.changes
    own = cells.c.reading.is_(None) | (cells.c.reading == reading)
    found = connection.execute(
        select(cells).where(cells.c.slide == slide, own).order_by(cells.c.id)
    )
    steps = connection.execute(
        select(changes).where(changes.c.reading == reading).order_by(changes.c.revision)
    )
    beginning = [_to_cell(cell) for cell in found]
    whole = history = tuple(_to_change(change) for change in steps)
    outline = outline_reading(row)
    if version is not None and (version != row.version or row.state == OPEN):
        history, outline, later = _go_back(history, outline, version)
        beginning = [cell for cell in beginning if cell.id not in later]
    signed = _recall(connection, slide, whole, history[-1]) if outline["signed"] else None
    return Reading(outline, replay(beginning, history), history, signed)


def _go_back(
    history: tuple[Change, ...], outline: dict[str, Any], version: int
) -> tuple[tuple[Change, ...], dict[str, Any], set[int]]:
    """The reading as it was when a version was signed, and the cells that came later."""
    signed = [c for c in history if c.kind == SIGN and c.version == version]
    if not signed:
        raise Refusal(
            404, "no_version",
            f"This reading has no signed version {version}. Its present one is "
            f"{outline['version']}.",
        )  # fmt: skip
    last = signed[0]
    then = {
        "version": version, "revision": last.revision, "state": SIGNED,
        "signed": {"name": last.by, "when": last.at},
    }  # fmt: skip
    later = {i for c in history[last.revision :] if c.kind == FIELD for i in c.cells}
    later |= {i for c in history[last.revision :] if c.kind in (ADD, SPLIT) for i in c.made}
    return history[: last.revision], {**outline, **then}, later


def describe_slide(connection: Connection, slide: int) -> dict[str, Any]:
    """What a signature says of its slide, beside the cells: it may be renamed, and fields added."""
    row = find_slide(connection, slide)
    fields = [
        {name: field[name] for name in ("id", "name", "set_aside")}
        for field in list_fields(connection, slide)
    ]
    return {"name": row.name, "target": row.target, "fields": fields}


def _recall(
    connection: Connection, slide: int, changes: Sequence[Change], signature: Change
) -> Mapping[str, Any]:
    """What a signature says of its slide; of one that says nothing, what lay there before it."""
    if SLIDE in signature.detail:
        found: Mapping[str, Any] = signature.detail[SLIDE]
        return found
    then = describe_slide(connection, slide)
    events = tables.events.c
    renamed = select(events.detail).where(
        events.slide == slide, events.kind == "changed", events.at > signature.at
    )
    for detail in connection.scalars(renamed.order_by(events.id.desc())):
        then |= {name: value for name, value in detail["before"].items() if name in then}
    later = {c.detail["field"] for c in changes[signature.revision :] if c.kind == FIELD}
    return {**then, "fields": [field for field in then["fields"] if field["id"] not in later]}


def _to_cell(row: Row[Any]) -> Cell:
    machine = Machine(
        row.label, row.probability, row.probabilities, tuple(row.set), row.state, row.reason
    )
    box = (row.x0, row.y0, row.x1, row.y1)
    return begin_cell(row.id, row.field, box, machine, added=row.reading is not None)


def _to_change(row: Row[Any]) -> Change:
    return Change(
        row.id, row.revision, row.kind, tuple(row.cells), row.label, tuple(row.made), row.target,
        row.by, row.at, row.version, row.detail,
    )  # fmt: skip
