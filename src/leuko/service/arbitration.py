"""A third reading that settles where two signed ones differ.

What both agree on is taken over; what they differ on waits as unidentified, with both labels as the
reason. Knows the store and comparisons; knows nothing of requests.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select

from leuko.service import tables
from leuko.service.comparison import NO_CELL, NOT_COUNTED, Pair, compare_readings, pair_cells
from leuko.service.records import ARBITRATE, REVIEWED, SIGNED, TAKEN, Change
from leuko.service.refusals import Refusal
from leuko.service.reviews import Reading, load
from leuko.service.shelf import append, insert_reading, lock_readings, note_event
from leuko.service.store import Store, now
from leuko.use.answers import UNIDENTIFIED

Taken = tuple[str | None, str, str, bool]  # label, state, reason, deleted


def compare(store: Store, slide: int, a: int, b: int) -> dict[str, Any]:
    """Judges two signed readings, as the API gives it.

    Raises:
        Refusal: 404; 409 if one isn't signed: its reader would see the other's labels.
    """
    with store.read() as connection:
        left, right = _load_signed(connection, slide, (a, b))
    return {
        "a": left.outline,
        "b": right.outline,
        **compare_readings(left.review, right.review),
    }


def open_arbitration(store: Store, slide: int, readings: tuple[int, int], reader: str) -> int:
    """A reading that begins with what two others agree on.

    Args:
        store: Where.
        slide: Their slide.
        readings: Two signed ones.
        reader: Who decides.

    Returns:
        Its id.

    Raises:
        Refusal: As for `compare`.
    """
    at = now()
    with store.write() as connection:
        lock_readings(connection, slide)
        a, b = _load_signed(connection, slide, readings)
        made = insert_reading(connection, slide, reader, at, arbitrates=readings)
        names = [one.outline["reader"] or f"reading {one.outline['id']}" for one in (a, b)]
        taken: dict[str, Taken] = {}
        concerned, added = [], []
        for pair in pair_cells(a.review, b.review):
            cell = pair.cell.id
            if pair.cell.added:
                cell = _copy(connection, cell, made)
                added.append(cell)
            concerned.append(cell)
            taken[str(cell)] = settle(pair, names)
        change = Change(
            f"arbitrate-{made}", 1, ARBITRATE, tuple(concerned), made=tuple(added), by=reader,
            at=at, detail={"readings": list(readings), TAKEN: taken},
        )  # fmt: skip
        append(connection, change, reading=made)
        detail = {"reading": made, "arbitrates": list(readings)}
        note_event(connection, slide, "reading", by=reader, detail=detail)
    return made


def settle(pair: Pair, names: list[str]) -> Taken:
    """What an arbitration begins with for one cell: label, state, reason, deleted.

    Args:
        pair: The cell in both readings.
        names: Of the two readers.
    """
    left, right = pair.labels
    if left != right:
        reason = f"{names[0]}: {left}; {names[1]}: {right}"
        return None, UNIDENTIFIED, reason, False
    sure = pair.a if pair.a and pair.a.state == REVIEWED else pair.b or pair.a
    assert sure is not None
    if left == NO_CELL:
        return sure.label, sure.state, sure.reason, True
    if left in NOT_COUNTED:
        return sure.label, sure.state, sure.reason, False
    return left, sure.state, "", False


def _load_signed(
    connection: Connection, slide: int, readings: tuple[int, int]
) -> tuple[Reading, Reading]:
    if readings[0] == readings[1]:
        raise Refusal(422, "same_reading", "A reading is compared with itself. Name two readings.")
    a, b = (load(connection, slide, one) for one in readings)
    for one in (a, b):
        if one.outline["state"] != SIGNED:
            raise Refusal(
                409, "open",
                f"Reading {one.outline['id']} isn't signed. Readings are compared once both are, "
                "so that neither reader sees the other's labels before.",
            )  # fmt: skip
    return a, b


def _copy(connection: Connection, cell: int, reading: int) -> int:
    """The same cell for another reading."""
    source = _one(connection, tables.cells, tables.cells.c.id == cell)
    values = {**source._mapping, "reading": reading}
    del values["id"]
    key = connection.execute(insert(tables.cells).values(**values)).inserted_primary_key
    assert key is not None
    portrait = _one(connection, tables.portraits, tables.portraits.c.cell == cell)
    values = {**portrait._mapping, "cell": key[0]}
    connection.execute(insert(tables.portraits).values(**values))
    return int(key[0])


def _one(connection: Connection, table: Any, where: Any) -> Row[Any]:
    row: Row[Any] = connection.execute(select(table).where(where)).one()
    return row
