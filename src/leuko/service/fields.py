"""The fields of a slide in the store: each one image, its scale, its cells.

Each function is one transaction. Knows what lies where; knows nothing of how cells are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, select

from leuko.service import tables
from leuko.service.records import FIELD, SIGNED, Change
from leuko.service.refusals import Refusal
from leuko.service.shelf import (
    Finding,
    append,
    find_slide,
    images_gone,
    insert_cells,
    insert_row,
    list_fields,
    lock_readings,
)
from leuko.service.store import Store, now


@dataclass(frozen=True)
class Picture:
    """A field on its way into the store.

    Attributes:
        name: As it is shown; only text.
        data: The bytes as they came; empty if they couldn't be read.
        sha256: Of those bytes.
        width, height: In px; None if it couldn't be read.
        scale: Pixels per µm, measured in this field alone.
        aside: Reason and sentence, if it couldn't be read.
        findings: Its cells.
        cut_scale: Pixels per µm at which they were found; None if that matters to none.
    """

    name: str
    data: bytes
    sha256: str
    width: int | None = None
    height: int | None = None
    scale: float | None = None
    aside: tuple[str, str] | None = None
    findings: tuple[Finding, ...] = ()
    cut_scale: float | None = None


def find_field_of(store: Store, slide: int, *, key: str | None, sha256: str) -> int | None:
    """The field that a repeated request has made already.

    Raises:
        Refusal: 404 without the slide; 409 if another field has the same bytes, or the key was used
            for another file; 423 if a reading is signed.
    """
    with store.read() as connection:
        return _check_new_field(connection, slide, key, sha256)


def add_field(store: Store, slide: int, picture: Picture, *, key: str | None) -> int:
    """Adds a field with its cells; every reading of the slide gets them.

    Args:
        store: Where.
        slide: Its slide.
        picture: With its findings.
        key: Tells a repeated request from a second one.

    Returns:
        Id of the field; of the one that is there already if the request was repeated.

    Raises:
        Refusal: As for `find_field_of`.
    """
    with store.write() as connection:
        # Before anything else, so that two uploads of one file can't both find nothing.
        waiting = lock_readings(connection, slide)
        there = _check_new_field(connection, slide, key, picture.sha256)
        if there is not None:
            return there
        reason, why = picture.aside or (None, None)
        at = now()
        field = insert_row(
            connection, tables.fields, slide=slide, name=picture.name, key=key,
            sha256=picture.sha256, width=picture.width, height=picture.height,
            scale=picture.scale, reason=reason, detail=why, created=at,
        )  # fmt: skip
        if picture.aside is None:
            insert_row(connection, tables.images, field=field, data=picture.data)
        found = insert_cells(connection, slide, field, picture.findings)
        detail = {"field": field, "name": picture.name, "scale": picture.cut_scale}
        for row in waiting:
            append(
                connection,
                Change(
                    f"field-{field}", row.revision + 1, FIELD, tuple(found), at=at,
                    version=row.version, detail=detail,
                ),
                reading=row.id,
            )  # fmt: skip
    for row in waiting:
        store.tell(row.id)
    return field


def list_unsettled(store: Store, slide: int) -> dict[int, float]:
    """Fields whose cells were found at another scale than that of all images now, with that scale.

    The first image of a slide is looked at before the scale of the others is known. A field stays
    as it is once a person changed one of its cells, and all do once a reading is signed.

    Raises:
        Refusal: 404.
    """
    with store.read() as connection:
        return _list_unsettled(connection, slide)


def replace_cells(
    store: Store, slide: int, field: int, scale: float, findings: Sequence[Finding]
) -> None:
    """Puts what was found at another scale in the place of a field's cells, in every reading.

    Nothing is done if somebody changed one of them meanwhile, or other images changed the scale.
    """
    with store.write() as connection:
        waiting = lock_readings(connection, slide)
        if _list_unsettled(connection, slide).get(field) != scale:
            return
        (there,) = list_fields(connection, slide, field)
        gone = there["cells"]
        connection.execute(delete(tables.cells).where(tables.cells.c.id.in_(gone)))
        found = insert_cells(connection, slide, field, findings)
        detail = {"field": field, "name": there["name"], "scale": scale, "gone": gone}
        for row in waiting:
            append(
                connection,
                Change(
                    f"field-{field}-{row.revision + 1}", row.revision + 1, FIELD, tuple(found),
                    at=now(), version=row.version, detail=detail,
                ),
                reading=row.id,
            )  # fmt: skip
    for row in waiting:
        store.tell(row.id)


def _list_unsettled(connection: Connection, slide: int) -> dict[int, float]:
    if find_slide(connection, slide).images_deleted:
        return {}
    readings = connection.execute(
        select(tables.readings).where(tables.readings.c.slide == slide)
    ).all()
    if any(row.state == SIGNED or row.version > 1 or row.arbitrates for row in readings):
        return {}
    changes = tables.changes.c
    cut: dict[int, float | None] = {}
    changed: set[int] = set()
    made = select(changes.kind, changes.cells, changes.made, changes.detail).where(
        changes.reading.in_([row.id for row in readings])
    )
    for kind, concerned, added, detail in connection.execute(
        made.order_by(changes.reading, changes.revision)
    ):
        if kind == FIELD:
            cut[detail["field"]] = detail.get("scale")
        else:
            changed |= {*concerned, *added}
    cells = select(tables.cells.c.id, tables.cells.c.field).where(tables.cells.c.slide == slide)
    kept = {field for cell, field in connection.execute(cells) if cell in changed}
    sizes: dict[tuple[int, int], list[tuple[int, float]]] = {}
    measured = select(tables.fields).where(
        tables.fields.c.slide == slide, tables.fields.c.scale.is_not(None)
    )
    for row in connection.execute(measured.order_by(tables.fields.c.id)):
        sizes.setdefault((row.width, row.height), []).append((row.id, row.scale))
    found = {}
    for alike in sizes.values():
        scale = float(np.median([own for _, own in alike]))
        for field, _ in alike:
            if field not in kept and cut.get(field) not in (None, scale):
                found[field] = scale
    return found


def read_field(store: Store, slide: int, field: int) -> dict[str, Any]:
    """One field, as the API gives it.

    Raises:
        Refusal: 404.
    """
    with store.read() as connection:
        find_slide(connection, slide)
        found = list_fields(connection, slide, field)
    if not found:
        raise no_field(slide, field)
    return found[0]


def read_image(store: Store, slide: int, field: int) -> bytes:
    """The bytes of a field as they came.

    Raises:
        Refusal: 404; 410 once they are deleted.
    """
    asked = (
        select(tables.fields.c.reason, tables.images.c.data)
        .select_from(tables.fields.outerjoin(tables.images))
        .where(tables.fields.c.id == field, tables.fields.c.slide == slide)
    )
    with store.read() as connection:
        above = find_slide(connection, slide)
        row = connection.execute(asked).first()
    if row is None:
        raise no_field(slide, field)
    if row.data is None:
        raise images_gone(above) if row.reason is None else no_image(field)
    return bytes(row.data)


def measure_scale(store: Store, slide: int, size: tuple[int, int], *own: float) -> float:
    """The median of what fields of one size measured, this one's own included.

    Pictures of one size on one slide come from one microscope; a single field gives its scale to
    about a tenth only.

    Args:
        store: Where.
        slide: Its slide.
        size: Width and height in px.
        own: Pixels per µm that a new field measured.
    """
    asked = select(tables.fields.c.scale).where(
        tables.fields.c.slide == slide, tables.fields.c.width == size[0],
        tables.fields.c.height == size[1], tables.fields.c.scale.is_not(None),
    )  # fmt: skip
    with store.read() as connection:
        return float(np.median([*own, *connection.scalars(asked)]))


def find_scale(store: Store, slide: int, field: int) -> float | None:
    """Pixels per µm at which cells of a field are cut out.

    Raises:
        Refusal: 404.
    """
    asked = select(tables.fields).where(tables.fields.c.id == field, tables.fields.c.slide == slide)
    with store.read() as connection:
        row = connection.execute(asked).first()
    if row is None:
        raise no_field(slide, field)
    if row.scale is None:
        return None
    return measure_scale(store, slide, (row.width, row.height))


def no_field(slide: int, field: int) -> Refusal:
    """For a field that isn't there."""
    return Refusal(404, "no_field", f"Slide {slide} has no field {field}.")


def no_image(field: int) -> Refusal:
    """For a field that was set aside."""
    return Refusal(404, "no_image", f"Field {field} couldn't be read, so there is no image of it.")


def _check_new_field(
    connection: Connection, slide: int, key: str | None, sha256: str
) -> int | None:
    find_slide(connection, slide)
    known = tables.fields.c.sha256 == sha256
    if key is not None:
        known = known | (tables.fields.c.key == key)
    found = connection.execute(
        select(tables.fields).where(tables.fields.c.slide == slide, known)
    ).all()
    for row in found:
        if key is not None and row.key == key:
            if row.sha256 == sha256:
                return int(row.id)
            raise Refusal(
                409, "key_reused",
                "This Idempotency-Key came with another file before. Use a new key per file.",
            )  # fmt: skip
    if found:
        raise Refusal(
            409, "same_file",
            f"These bytes are on this slide already, as {found[0].name}. Its cells would be "
            "counted twice. Leave the file out.", field=found[0].id, name=found[0].name,
        )  # fmt: skip
    signed = select(tables.readings.c.id).where(
        tables.readings.c.slide == slide, tables.readings.c.state == SIGNED
    )
    if connection.execute(signed.limit(1)).first():
        raise Refusal(
            423, "signed",
            "A reading of this slide is signed, so its cells are fixed. Open a new version of it, "
            "or make another slide.",
        )  # fmt: skip
    return None
