"""Signatures, new versions, and the trail; and when a slide's images go.

Each function is one transaction. Knows what a signature does; knows nothing of requests.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from leuko.service import tables
from leuko.service.comparison import pair_cells
from leuko.service.records import (
    OPEN,
    SIGN,
    SIGNED,
    SLIDE,
    VERSION,
    Change,
    hinder_signature,
)
from leuko.service.refusals import Refusal
from leuko.service.reviews import Reading, describe_slide, load, lock, signed_already
from leuko.service.shelf import append, delete_images, find_slide, lock_readings, note_event
from leuko.service.store import Store, now


def sign(
    store: Store,
    slide: int,
    reading: int,
    *,
    name: str,
    seen: int,
    leave_unidentified: bool,
) -> Reading:
    """Locks a reading under a name. Images go once nobody needs them any more.

    They are needed while a reading is open, or two signed ones differ and no arbitration is signed;
    and they stay if the slide says so.

    Args:
        store: Where.
        slide: Of the reading.
        reading: Its id.
        name: Of who signs.
        seen: The revision that they have seen.
        leave_unidentified: Sign although cells are unidentified.

    Raises:
        Refusal: 404; 409 if something changed since; 422 with the reasons; 423 if it is signed.
    """
    with store.write() as connection:
        lock_readings(connection, slide)
        row = lock(connection, slide, reading)
        if row.state == SIGNED:
            raise signed_already(row)
        before = load(connection, slide, reading)
        if seen != row.revision:
            raise Refusal(
                409, "conflict",
                f"The reading is at revision {row.revision}, and {seen} was looked at. Look at "
                "what changed, then sign.", revision=row.revision,
                cells=[cell.to_json() for cell in before.review.since(seen)],
            )  # fmt: skip
        if reasons := hinder_signature(before.review, leave_unidentified=leave_unidentified):
            raise Refusal(422, "not_ready", " ".join(reasons), reasons=reasons)
        at = now()
        append(
            connection,
            Change(f"sign-{row.version}", row.revision + 1, SIGN, by=name, at=at,
                   version=row.version, detail={"leave_unidentified": leave_unidentified,
                                                SLIDE: describe_slide(connection, slide)}),
            reading=reading,
        )  # fmt: skip
        _set(connection, reading, state=SIGNED, signed_name=name, signed_at=at)
        forget = _needs_no_images(connection, slide)
        if forget:
            _forget_images(connection, slide, by=name)
        after = load(connection, slide, reading)
    store.tell(reading)
    if forget:
        store.forget()
    return after


def open_version(store: Store, slide: int, reading: int, *, name: str, reason: str) -> Reading:
    """Opens a signed reading again, as its next version.

    Raises:
        Refusal: 404; 422 if it isn't signed.
    """
    with store.write() as connection:
        row = lock(connection, slide, reading)
        if row.state != SIGNED:
            raise Refusal(
                422, "open", "This reading is open, so it can be changed as it is. No new version "
                "is needed."
            )  # fmt: skip
        append(
            connection,
            Change(f"version-{row.version + 1}", row.revision + 1, VERSION, by=name, at=now(),
                   version=row.version + 1, detail={"reason": reason}),
            reading=reading,
        )  # fmt: skip
        _set(
            connection, reading,
            state=OPEN, version=row.version + 1, signed_name=None, signed_at=None,
        )  # fmt: skip
        after = load(connection, slide, reading)
    store.tell(reading)
    return after


def read_trail(store: Store, slide: int, reading: int) -> list[dict[str, Any]]:
    """Everything that happened to a reading and its slide, in order.

    Raises:
        Refusal: 404.
    """
    with store.read() as connection:
        found = load(connection, slide, reading)
        events = connection.execute(
            select(tables.events).where(tables.events.c.slide == slide).order_by(tables.events.c.id)
        ).all()
    entries = [change.to_json() for change in found.changes]
    entries += [
        {"id": None, "revision": None, "kind": e.kind, "cells": [], "label": None, "made": [],
         "change": None, "by": e.by, "at": e.at, "version": None, "detail": e.detail}
        for e in events
    ]  # fmt: skip
    return sorted(entries, key=lambda entry: entry["at"])


def delete_images_now(store: Store, slide: int, *, by: str) -> None:
    """Deletes the images of a slide that has no open reading.

    Raises:
        Refusal: 404; 409 while a reading is open.
    """
    with store.write() as connection:
        readings = lock_readings(connection, slide)
        above = find_slide(connection, slide)
        if any(row.state == OPEN for row in readings):
            raise Refusal(
                409, "open",
                "A reading of this slide is open and needs the images. Sign it first, or, if "
                "nothing of the slide was ever signed, delete the slide.",
            )  # fmt: skip
        if above.images_deleted:
            return
        _forget_images(connection, slide, by=by)
    store.forget()


# --- rows -----------------------------------------------------------------------------------------


def _needs_no_images(connection: Connection, slide: int) -> bool:
    above = find_slide(connection, slide)
    readings = lock_readings(connection, slide)
    if above.keep_images or above.images_deleted or any(r.state == OPEN for r in readings):
        return False
    if any(row.arbitrates for row in readings):
        return True
    reviews = [load(connection, slide, row.id).review for row in readings]
    return all(
        len(set(pair.labels)) == 1
        for other in reviews[1:]
        for pair in pair_cells(reviews[0], other)
    )


def _forget_images(connection: Connection, slide: int, *, by: str) -> None:
    fields = delete_images(connection, slide)
    note_event(connection, slide, "images deleted", by=by, detail={"fields": fields})


def _set(connection: Connection, reading: int, **values: Any) -> None:
    connection.execute(
        update(tables.readings).where(tables.readings.c.id == reading).values(**values)
    )
