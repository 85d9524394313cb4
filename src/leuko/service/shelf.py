"""Slides in the store, and the rows that all that belongs to a slide is made of.

    slide → fields (`fields`) → cells as the machine found them

Each function is one transaction. Knows what lies where; knows nothing of how cells are found or
what a review makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from leuko.service import tables
from leuko.service.records import (
    LONGEST_NAME,
    OPEN,
    SIGNED,
    Box,
    Change,
    Machine,
    clean_text,
)
from leuko.service.refusals import Refusal
from leuko.service.store import Store, now


@dataclass(frozen=True)
class Finding:
    """A cell on its way into the store.

    Attributes:
        box: x0, y0, x1, y1 in px of the field.
        machine: What the model says of it.
        portrait: JPEG of it with a margin.
        features: (D,) float32, what its last layer sees.
    """

    box: Box
    machine: Machine
    portrait: bytes
    features: NDArray[np.float32]


# --- slides ---------------------------------------------------------------------------------------


def create_slide(
    store: Store,
    *,
    name: str,
    target: int,
    keep_images: bool,
    reader: str,
    model: str,
    classes: Sequence[str],
) -> int:
    """A slide with one reading, both empty.

    Args:
        store: Where.
        name: As it is shown.
        target: Cells to be counted.
        keep_images: Whether images stay after the signature.
        reader: Of the first reading.
        model: Id of the bundle.
        classes: Its classes.

    Returns:
        The id of the slide.
    """
    at = now()
    with store.write() as connection:
        slide = insert_row(
            connection, tables.slides, name=name, target=target, keep_images=keep_images,
            created=at, model=model, classes=list(classes),
        )  # fmt: skip
        insert_reading(connection, slide, reader, at)
        note_event(connection, slide, "created", by=reader, detail={"name": name, "target": target})
    return slide


def insert_reading(
    connection: Connection, slide: int, reader: str, at: str, arbitrates: Sequence[int] = ()
) -> int:
    """A reading without changes."""
    return insert_row(
        connection, tables.readings, slide=slide, reader=clean_text(reader, LONGEST_NAME),
        arbitrates=list(arbitrates), created=at, revision=0, version=1, state=OPEN,
    )  # fmt: skip


def list_slides(store: Store) -> list[dict[str, Any]]:
    """All slides, the newest first, as the API lists them."""
    with store.read() as connection:
        slides = connection.execute(select(tables.slides).order_by(tables.slides.c.id.desc()))
        found = [{"id": s.id, "name": s.name, "created": s.created, "target": s.target,
                  "images_deleted": s.images_deleted} for s in slides]  # fmt: skip
        numbers = {kind: _count(connection, getattr(tables, kind)) for kind in ("fields", "cells")}
        readings: dict[int, list[dict[str, Any]]] = {}
        for row in connection.execute(select(tables.readings).order_by(tables.readings.c.id)):
            readings.setdefault(row.slide, []).append(outline_reading(row))
    return [
        {
            **slide,
            **{kind: counts.get(slide["id"], 0) for kind, counts in numbers.items()},
            "readings": readings.get(slide["id"], []),
        }
        for slide in found
    ]


def read_slide(store: Store, slide: int) -> dict[str, Any]:
    """One slide with its fields and readings, as the API gives it.

    Raises:
        Refusal: 404.
    """
    with store.read() as connection:
        row = find_slide(connection, slide)
        readings = connection.execute(
            select(tables.readings)
            .where(tables.readings.c.slide == slide)
            .order_by(tables.readings.c.id)
        )
        return {
            "id": row.id, "name": row.name, "target": row.target, "keep_images": row.keep_images,
            "created": row.created, "model": row.model, "classes": row.classes,
            "images_deleted": row.images_deleted, "fields": list_fields(connection, slide),
            "readings": [outline_reading(r) for r in readings],
        }  # fmt: skip


def outline_reading(row: Row[Any]) -> dict[str, Any]:
    """A reading without its cells."""
    signed = {"name": row.signed_name, "when": row.signed_at} if row.state == SIGNED else None
    return {
        "id": row.id, "slide": row.slide, "reader": row.reader, "state": row.state,
        "version": row.version, "revision": row.revision, "arbitrates": row.arbitrates,
        "created": row.created, "signed": signed,
    }  # fmt: skip


def change_slide(store: Store, slide: int, changes: Mapping[str, Any], *, by: str) -> None:
    """Another name, target or wish about images.

    Raises:
        Refusal: 404; 410 to keep images that are deleted.
    """
    with store.write() as connection:
        row = find_slide(connection, slide)
        if changes.get("keep_images") and row.images_deleted:
            raise images_gone(row)
        before = {name: getattr(row, name) for name in changes}
        if before == dict(changes):
            return
        connection.execute(
            update(tables.slides).where(tables.slides.c.id == slide).values(**changes)
        )
        detail = {"before": before, "after": dict(changes)}
        note_event(connection, slide, "changed", by=by, detail=detail)


def delete_slide(store: Store, slide: int) -> None:
    """Removes a slide and all that belongs to it.

    Raises:
        Refusal: 404; 423 once anything of it was signed, or a cell of another slide lies on it.
    """
    with store.write() as connection:
        find_slide(connection, slide)
        lock_readings(connection, slide)
        signed = select(tables.readings.c.id).where(
            tables.readings.c.slide == slide,
            (tables.readings.c.state == SIGNED) | (tables.readings.c.version > 1),
        )
        if connection.execute(signed.limit(1)).first():
            raise Refusal(
                423, "signed",
                "This slide has been signed, and what was signed stays. Its images alone can be "
                "deleted once none of its readings is open.",
            )  # fmt: skip
        # Once the parts of a split cell could be kept with a field of another slide.
        fields = select(tables.fields.c.id).where(tables.fields.c.slide == slide)
        guests = select(tables.cells.c.slide).where(
            tables.cells.c.field.in_(fields), tables.cells.c.slide != slide
        )
        if guest := connection.execute(guests.limit(1)).first():
            raise Refusal(
                423, "in_use",
                f"Cells of slide {guest.slide} were kept with a field of this one, and would go "
                f"with it. Keep this slide, or delete slide {guest.slide} first.",
            )  # fmt: skip
        connection.execute(delete(tables.slides).where(tables.slides.c.id == slide))
    store.forget()


def find_slide(connection: Connection, slide: int) -> Row[Any]:
    """The row of a slide.

    Raises:
        Refusal: 404.
    """
    row = connection.execute(select(tables.slides).where(tables.slides.c.id == slide)).first()
    if row is None:
        raise Refusal(404, "no_slide", f"There is no slide {slide}. It may have been deleted.")
    return row


def note_event(
    connection: Connection, slide: int, kind: str, *, by: str, detail: Mapping[str, Any]
) -> None:
    """Writes down what happened to a slide as a whole."""
    by = clean_text(by, LONGEST_NAME)
    insert_row(
        connection, tables.events, slide=slide, kind=kind, by=by, at=now(), detail=dict(detail)
    )


# --- fields ---------------------------------------------------------------------------------------


def delete_images(connection: Connection, slide: int) -> int:
    """Deletes the images and portraits of a slide; gives the number of fields that had one."""
    fields = select(tables.fields.c.id).where(tables.fields.c.slide == slide)
    cells = select(tables.cells.c.id).where(tables.cells.c.slide == slide)
    gone = connection.execute(delete(tables.images).where(tables.images.c.field.in_(fields)))
    connection.execute(
        update(tables.portraits).where(tables.portraits.c.cell.in_(cells)).values(image=None)
    )
    connection.execute(
        update(tables.slides).where(tables.slides.c.id == slide).values(images_deleted=now())
    )
    return gone.rowcount


def images_gone(slide: Row[Any]) -> Refusal:
    """For images that were deleted, at the signature or later."""
    return Refusal(
        410, "images_deleted",
        f"The images of this slide were deleted after its signature ({slide.images_deleted}). "
        "Boxes, labels and counts are kept.",
    )  # fmt: skip


def list_fields(
    connection: Connection, slide: int, field: int | None = None
) -> list[dict[str, Any]]:
    """The fields of a slide with their cells, or one of them, as the API gives them."""
    below = tables.cells.c.slide == slide, tables.cells.c.reading.is_(None)
    cells: dict[int, list[int]] = {}
    asked = select(tables.cells.c.id, tables.cells.c.field).where(*below)
    for cell in connection.execute(asked.order_by(tables.cells.c.id)):
        cells.setdefault(cell.field, []).append(cell.id)
    rows = select(tables.fields).where(tables.fields.c.slide == slide)
    if field is not None:
        rows = rows.where(tables.fields.c.id == field)
    return [
        {
            "id": row.id, "name": row.name, "width": row.width, "height": row.height,
            "cells": cells.get(row.id, []),
            "set_aside": {"reason": row.reason, "detail": row.detail} if row.reason else None,
        }
        for row in connection.execute(rows.order_by(tables.fields.c.id))
    ]  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


def lock_readings(connection: Connection, slide: int) -> list[Row[Any]]:
    """The readings of a slide, held so that nobody else changes them meanwhile."""
    asked = select(tables.readings).where(tables.readings.c.slide == slide)
    return list(connection.execute(asked.order_by(tables.readings.c.id).with_for_update()))


def insert_cells(
    connection: Connection,
    slide: int,
    field: int,
    findings: Sequence[Finding],
    reading: int | None = None,
) -> list[int]:
    """Adds cells with their portraits; the ids, in order."""
    made = []
    for one in findings:
        machine = one.machine
        cell = insert_row(
            connection, tables.cells, slide=slide, field=field, reading=reading,
            **dict(zip(("x0", "y0", "x1", "y1"), map(float, one.box), strict=True)),
            label=machine.label, probability=machine.probability,
            probabilities=dict(machine.probabilities), set=list(machine.set),
            state=machine.state, reason=machine.reason,
        )  # fmt: skip
        features = one.features.astype("<f2").tobytes()
        insert_row(connection, tables.portraits, cell=cell, image=one.portrait, features=features)
        made.append(cell)
    return made


def append(
    connection: Connection, change: Change, *, reading: int, wish: Mapping[str, Any] | None = None
) -> None:
    """Adds a change to a reading that is locked."""
    insert_row(
        connection, tables.changes, reading=reading, revision=change.revision, id=change.id,
        kind=change.kind, cells=list(change.cells), label=change.label, made=list(change.made),
        target=change.target, by=change.by, at=change.at, version=change.version,
        detail=dict(change.detail), wish=wish,
    )  # fmt: skip
    connection.execute(
        update(tables.readings)
        .where(tables.readings.c.id == reading)
        .values(revision=change.revision)
    )


def insert_row(connection: Connection, table: Any, **values: Any) -> int:
    """Adds a row; gives its id."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _count(connection: Connection, table: Any) -> dict[int, int]:
    asked = select(table.c.slide, func.count()).group_by(table.c.slide)
    if table is tables.cells:
        asked = asked.where(tables.cells.c.reading.is_(None))
    return {row[0]: row[1] for row in connection.execute(asked)}
