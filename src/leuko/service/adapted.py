"""The last adaptation of each reading, in the store: what was found, and the new bundle.

Each function is one transaction. Knows what is kept; knows nothing of how a model is adapted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select

from leuko.service import tables
from leuko.service.records import LONGEST_NAME, clean_text
from leuko.service.reviews import lock
from leuko.service.shelf import note_event
from leuko.service.store import Store, now

EVENT = "adapted"


@dataclass(frozen=True)
class Kept:
    """What is kept of an adaptation, beside the bundle.

    Attributes:
        at: When it was done, ISO 8601.
        by: Who asked for it; may be empty.
        revision: Of the reading whose labels were used.
        notes: What was left out, in sentences.
        result: As of ``leuko adapt --json``, and ``bundle``, the id of the new one.
        size: Bytes of the zipped bundle.
    """

    at: str
    by: str
    revision: int
    notes: tuple[str, ...]
    result: dict[str, Any]
    size: int


def keep_adaptation(
    store: Store,
    slide: int,
    reading: int,
    bundle: bytes,
    *,
    by: str,
    revision: int,
    notes: Sequence[str],
    result: Mapping[str, Any],
) -> None:
    """Keeps it in the place of the one before, and notes it in the trail.

    Args:
        store: Where.
        slide: Of the reading.
        reading: Whose labels were used.
        bundle: The new one, zipped.
        by, revision, notes, result: As of `Kept`.

    Raises:
        Refusal: 404, the slide was deleted meanwhile.
    """
    by, table = clean_text(by, LONGEST_NAME), tables.adaptations
    with store.write() as connection:
        lock(connection, slide, reading)
        connection.execute(delete(table).where(table.c.reading == reading))
        connection.execute(
            insert(table).values(
                reading=reading, at=now(), by=by, revision=revision, notes=list(notes),
                result=dict(result), bundle=bundle,
            )
        )  # fmt: skip
        detail = {
            "reading": reading, "bundle": result["bundle"], "changed": result["changed"],
            "cells": result["data"]["cells"],
        }  # fmt: skip
        note_event(connection, slide, EVENT, by=by, detail=detail)


def find_adaptation(store: Store, reading: int) -> Kept | None:
    """What is kept of a reading's adaptation, if anything is."""
    t = tables.adaptations.c
    asked = select(t.at, t.by, t.revision, t.notes, t.result, func.length(t.bundle)).where(
        t.reading == reading
    )
    with store.read() as connection:
        row = connection.execute(asked).first()
    if row is None:
        return None
    return Kept(row.at, row.by, row.revision, tuple(row.notes), row.result, int(row[5]))


def read_bundle(store: Store, reading: int) -> bytes | None:
    """The adapted bundle, zipped, if one is kept."""
    asked = select(tables.adaptations.c.bundle).where(tables.adaptations.c.reading == reading)
    with store.read() as connection:
        row = connection.execute(asked).first()
    return None if row is None else bytes(row.bundle)
