"""REST: readings, their changes, signatures and cells. Thin over `reviews`.

Knows requests; knows nothing of tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from leuko.service import arbitration, fields, portraits, reviews, shelf, signatures
from leuko.service.counts import count_machine, count_reviewed
from leuko.service.examination import PORTRAIT, name_cells, place_boxes
from leuko.service.examples import LARGEST_ID, Id, show_errors
from leuko.service.records import (
    ADD,
    LONGEST_LABEL,
    LONGEST_NAME,
    SPLIT,
    Box,
    Wish,
    check_wish,
    clean_text,
)
from leuko.service.refusals import Refusal
from leuko.service.store import Store
from leuko.service.waiting import Waiting
from leuko.use.record import read_record

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle
    from leuko.service.queue import Queue

MOST_CELLS = 5000
LONGEST_WAIT = 25.0  # s; proxies close silent connections after 30 or 60
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
Side = Annotated[float, Field(ge=-LARGEST_ID, le=LARGEST_ID, allow_inf_nan=False)]
BoxOfNumbers = tuple[Side, Side, Side, Side]


class NewReading(BaseModel):
    """A second reading, or one that settles where two differ."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"reader": "B. Roth"}})
    reader: str = Field("", max_length=1000)
    arbitrates: tuple[Id, Id] | None = Field(None, description="Two signed readings.")


class NewChange(BaseModel):
    """One step of a review."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "id": "5b0d9f4e-3c1a-4d57-9a3e-0c5a8f1d2e77", "revision": 12, "kind": "label",
                "cells": [31, 32], "label": "monocyte", "by": "A. Meyer",
            }
        },
    )  # fmt: skip
    id: UUID = Field(description="Made by the client; a repeated request does nothing twice.")
    revision: int = Field(ge=0, le=LARGEST_ID, description="The last one that the client has seen.")
    kind: Literal["label", "confirm", "delete", "restore", "add", "split", "undo", "redo"]
    cells: list[Id] = Field([], max_length=MOST_CELLS)
    label: str | None = Field(None, max_length=1000, description="None: unidentified.")
    field: Id | None = Field(None, description="In which a cell is added.")
    box: BoxOfNumbers | None = None
    boxes: list[BoxOfNumbers] | None = Field(None, max_length=20)
    change: UUID | None = Field(None, description="What undo or redo is about.")
    by: str = Field("", max_length=1000)


class Signature(BaseModel):
    """Under which name, and what was looked at."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"name": "A. Meyer", "revision": 14}}
    )
    name: str = Field(max_length=1000)
    revision: int = Field(ge=0, le=LARGEST_ID)
    leave_unidentified: bool = False


class NewVersion(BaseModel):
    """Why a signed reading is opened again."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"name": "A. Meyer", "reason": "Two cells were swapped."}},
    )
    reason: str = Field(max_length=4000)
    name: str = Field(max_length=1000)


def add_readings(
    router: APIRouter, store: Store, bundle: Bundle, queue: Queue, waiting: Waiting
) -> None:
    """Adds the routes of readings."""
    above = "/slides/{sid}/readings"
    one = above + "/{rid}"

    @router.post(above, status_code=201, summary="Open a second reading, or an arbitration")
    def open_reading(sid: Id, new: NewReading) -> dict[str, Any]:
        reader = clean_text(new.reader, LONGEST_NAME)
        if new.arbitrates is None:
            made = reviews.open_reading(store, sid, reader)
        else:
            made = arbitration.open_arbitration(store, sid, new.arbitrates, reader)
        return reviews.load_reading(store, sid, made).to_json()

    @router.get(one, summary="A reading with all its cells")
    def read_reading(
        sid: Id, rid: Id, version: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None
    ) -> dict[str, Any]:
        return reviews.load_reading(store, sid, rid, version=version).to_json()

    @router.post(one + "/changes", summary="Change cells")
    async def make_change(sid: Id, rid: Id, new: NewChange) -> dict[str, Any]:
        wish = _to_wish(new)
        findings: Sequence[shelf.Finding] = ()
        if wish.kind in (ADD, SPLIT):
            field = await to_thread.run_sync(partial(_find_field, store, sid, rid, wish))
            if field is not None:
                look = partial(_look, store, bundle, queue, sid, field, wish.boxes)
                findings = await queue.run(look)
        change = partial(reviews.make_change, store, sid, rid, wish, findings)
        after = await to_thread.run_sync(change)
        return _to_news(after, wish.seen)

    @router.get(one + "/changes", summary="Changes since a revision; waits for the next one")
    async def read_changes(
        sid: Id,
        rid: Id,
        since: Annotated[int, Query(ge=0, le=LARGEST_ID)] = 0,
        wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT)] = 0,
    ) -> dict[str, Any]:
        load = partial(reviews.load_reading, store, sid, rid)
        found = await to_thread.run_sync(load)
        if wait and found.review.revision <= since:
            await waiting.wait(rid, since, wait)
            found = await to_thread.run_sync(load)
        return _to_news(found, since)

    @router.post(one + "/signature", summary="Sign: the reading is locked")
    def sign(sid: Id, rid: Id, signature: Signature) -> dict[str, Any]:
        name = _clean_name(signature.name)
        return signatures.sign(
            store, sid, rid, name=name, seen=signature.revision,
            leave_unidentified=signature.leave_unidentified,
        ).to_json()  # fmt: skip

    @router.post(one + "/versions", status_code=201, summary="Open a signed reading again")
    def open_version(sid: Id, rid: Id, new: NewVersion) -> dict[str, Any]:
        reason = clean_text(new.reason, 2000)
        if not reason:
            raise Refusal(422, "no_reason", "A new version needs a reason. Say what it is for.")
        name = _clean_name(new.name)
        return signatures.open_version(store, sid, rid, name=name, reason=reason).to_json()

    @router.get(one + "/trail", summary="Who did what and when")
    def read_trail(sid: Id, rid: Id) -> list[dict[str, Any]]:
        return signatures.read_trail(store, sid, rid)

    record = read_record(bundle.facts, bundle.id)

    # Undoing the model's errors takes a second, and a review doesn't change what the machine said.
    @lru_cache(maxsize=32)
    def tell_machine(
        sid: int, rid: int, version: int | None, _state: tuple[Any, ...]
    ) -> dict[str, Any]:
        found = reviews.load_reading(store, sid, rid, version=version)
        slide = found.recall(shelf.read_slide(store, sid))
        own = record if slide["model"] == bundle.id else None
        return count_machine(slide, found.review.cells.values(), own).to_json()

    @router.get(one + "/differential", summary="Counts with exact limits, before and after review")
    def read_differential(
        sid: Id, rid: Id, version: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None
    ) -> dict[str, Any]:
        found = reviews.load_reading(store, sid, rid, version=version)
        slide = found.recall(shelf.read_slide(store, sid))
        own = record if slide["model"] == bundle.id else None
        # Others than before, if an image was looked at again.
        cells = tuple(i for field in slide["fields"] for i in field["cells"])
        state = slide["name"], slide["target"], len(slide["fields"]), cells
        signed = found.outline["version"] if found.signed else None
        return {
            "machine": tell_machine(sid, rid, signed, state),
            "reviewed": count_reviewed(slide, found, own).to_json(),
            "revision": found.review.revision,
        }

    @router.get("/slides/{sid}/comparison", summary="How far two signed readings agree")
    def compare(sid: Id, a: Id, b: Id) -> dict[str, Any]:
        return arbitration.compare(store, sid, a, b)

    @router.get(
        one + "/cells/{cid}/image", response_class=Response, responses=JPEG,
        summary="A cell with a margin, as JPEG",
    )  # fmt: skip
    def read_portrait(
        sid: Id, rid: Id, cid: Id, size: Annotated[int | None, Query(ge=16, le=2000)] = None
    ) -> Response:
        whole = size is not None and size > PORTRAIT  # it is cut out of its field then
        with queue.decoding if whole else nullcontext():
            shown = portraits.read_portrait(store, sid, rid, cid, size)
        return Response(shown, media_type="image/jpeg")

    @router.get(
        one + "/cells/{cid}/map", response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **show_errors(404, 410, 422)},
        summary="What in the cell speaks for a class, as PNG",
    )  # fmt: skip
    async def read_map(
        sid: Id, rid: Id, cid: Id, label: Annotated[str | None, Query(max_length=200)] = None,
        size: Annotated[int, Query(ge=32, le=1000)] = 320,
    ) -> Response:  # fmt: skip
        def draw() -> bytes:
            with queue.decoding:
                view = portraits.cut_view(store, bundle, sid, rid, cid, label=label, size=size)
            return portraits.draw_attention(bundle, view)

        return Response(await queue.run(draw), media_type="image/png")

    @router.get(one + "/cells/{cid}/similar", summary="Labelled cells that look most like it")
    def find_similar(
        sid: Id, rid: Id, cid: Id, most: Annotated[int, Query(ge=1, le=50)] = 8
    ) -> list[dict[str, Any]]:
        return portraits.find_similar(store, sid, rid, cid, most)


def _clean_name(name: str) -> str:
    cleaned = clean_text(name, LONGEST_NAME)
    if not cleaned:
        raise Refusal(422, "no_name", "A name is needed. Give the name of the person who signs.")
    return cleaned


def _to_wish(new: NewChange) -> Wish:
    label = None if new.label is None else clean_text(new.label, LONGEST_LABEL)
    if label == "":
        raise Refusal(422, "no_label", "The label is blank. Give one, or null for unidentified.")
    if new.box is not None and new.boxes is not None:
        raise Refusal(422, "invalid", "Give box or boxes, not both.")
    boxes = [new.box] if new.box is not None else new.boxes or []
    return Wish(
        str(new.id), new.revision, new.kind, tuple(new.cells), label, new.field, tuple(boxes),
        None if new.change is None else str(new.change), clean_text(new.by, LONGEST_NAME),
    )  # fmt: skip


def _find_field(store: Store, sid: int, rid: int, wish: Wish) -> int | None:
    """In which field a person marked cells; None if the change was made already."""
    if reviews.find_repeated(store, sid, rid, wish):
        return None
    found = reviews.load_reading(store, sid, rid)
    check_wish(found.review, wish)
    return found.review.cells[wish.cells[0]].field if wish.cells else wish.field


def _look(
    store: Store, bundle: Bundle, queue: Queue, sid: int, field: int, boxes: Sequence[Box]
) -> Sequence[shelf.Finding]:
    """Names the cells that a person marked; in the queue."""
    data, scale = fields.read_image(store, sid, field), fields.find_scale(store, sid, field)
    with queue.decoding:
        draft = place_boxes(bundle, data, boxes, scale)
    return name_cells(bundle, draft)


def _to_news(found: reviews.Reading, since: int) -> dict[str, Any]:
    """What a client that has seen a revision doesn't know yet."""
    outline = found.outline
    return {
        "revision": found.review.revision,
        "changes": [c.to_json() for c in found.changes if c.revision > since],
        "cells": [cell.to_json() for cell in found.review.since(since)],
        "reading": {
            "state": outline["state"], "version": outline["version"], "signed": outline["signed"],
            "undo": found.review.undo, "redo": found.review.redo,
        },
    }  # fmt: skip
