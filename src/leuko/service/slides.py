"""REST: slides, their fields, and the readings of a slide.

Thin over `shelf`, `fields` and `reviews`.

Knows requests; knows nothing of tables.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from leuko.service import fields, shelf, signatures
from leuko.service.adaptations import add_adaptations
from leuko.service.examination import answer, examine, reencode
from leuko.service.examples import Id, describe_upload, show_errors
from leuko.service.exports import add_exports
from leuko.service.readings import add_readings
from leuko.service.records import LONGEST_NAME, clean_text
from leuko.service.refusals import Refusal
from leuko.service.shelf import Finding
from leuko.service.store import Store
from leuko.service.uploads import Upload, receive_files
from leuko.service.waiting import Waiting

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle
    from leuko.service.queue import Queue
    from leuko.use.predictor import Predictor

LARGEST_TARGET = 10_000
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}


class NewSlide(BaseModel):
    """What a slide begins with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"name": "Smear 17", "target": 200, "reader": "A. Meyer"}},
    )
    name: str = Field(max_length=1000)
    target: int = Field(200, ge=1, le=LARGEST_TARGET, description="Cells to be counted.")
    keep_images: bool = Field(False, description="Keep the images after the signature.")
    reader: str = Field("", max_length=1000, description="Who reads it first.")


class SlideChanges(BaseModel):
    """What is to be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"target": 400}})
    name: str | None = Field(None, max_length=1000)
    target: int | None = Field(None, ge=1, le=LARGEST_TARGET)
    keep_images: bool | None = None
    by: str = Field("", max_length=1000)


def make_router(store: Store, predictor: Predictor, queue: Queue) -> APIRouter:
    """The routes of slides and readings, below ``/api/v1``.

    Args:
        store: Where everything is kept.
        predictor: Of the bundle.
        queue: Lets work with pictures in, or refuses it.
    """
    router = APIRouter(
        prefix="/api/v1", tags=["slides"],
        responses=show_errors(404, 409, 410, 413, 415, 422, 423, 503),
    )  # fmt: skip
    bundle = predictor.bundle

    @router.get("/slides", summary="All slides, the newest first")
    def list_slides() -> list[dict[str, Any]]:
        return shelf.list_slides(store)

    @router.post("/slides", status_code=201, summary="Make a slide")
    def create_slide(new: NewSlide) -> dict[str, Any]:
        made = shelf.create_slide(
            store, name=_clean_name(new.name), target=new.target, keep_images=new.keep_images,
            reader=new.reader, model=bundle.id, classes=predictor.classes,
        )  # fmt: skip
        return shelf.read_slide(store, made)

    @router.get("/slides/{sid}", summary="One slide with its fields and readings")
    def read_slide(sid: Id) -> dict[str, Any]:
        return shelf.read_slide(store, sid)

    @router.patch("/slides/{sid}", summary="Another name, target or wish about images")
    def change_slide(sid: Id, wanted: SlideChanges) -> dict[str, Any]:
        changes = wanted.model_dump(exclude_none=True, exclude={"by"})
        if "name" in changes:
            changes["name"] = _clean_name(changes["name"])
        shelf.change_slide(store, sid, changes, by=wanted.by)
        return shelf.read_slide(store, sid)

    @router.delete("/slides/{sid}", status_code=204, summary="Delete what was never signed")
    def delete_slide(sid: Id) -> None:
        shelf.delete_slide(store, sid)

    @router.delete("/slides/{sid}/images", status_code=204, summary="Delete the images only")
    def delete_images(sid: Id, by: Annotated[str, Query(max_length=1000)] = "") -> None:
        signatures.delete_images_now(store, sid, by=by)

    @router.post(
        "/slides/{sid}/fields", status_code=201, summary="Add one image",
        openapi_extra=describe_upload("file", 1),
    )  # fmt: skip
    async def add_field(
        request: Request,
        sid: Id,
        idempotency_key: Annotated[str | None, Header(max_length=100)] = None,
    ) -> dict[str, Any]:
        settings = request.app.state.parts.settings
        queue.check()  # while the image is still on its way
        files = await receive_files(request, settings, field="file", most=1, check=queue.check)
        file, size = files[0], len(files[0].data)
        find = partial(_find_repeated, store, sid, idempotency_key, file.data)
        there = await to_thread.run_sync(find)
        if there is None:
            picture = await queue.run(partial(_look, store, bundle, queue, sid, file), size=size)
            there = await to_thread.run_sync(
                partial(fields.add_field, store, sid, picture, key=idempotency_key)
            )
        return await to_thread.run_sync(partial(fields.read_field, store, sid, there))

    @router.post("/slides/{sid}/scale", summary="All images are here: look again at one, if needed")
    async def settle_scale(sid: Id) -> dict[str, Any]:
        left = await to_thread.run_sync(partial(fields.list_unsettled, store, sid))
        if not left:
            return {"field": None, "left": 0}
        field, scale = next(iter(left.items()))
        data = await to_thread.run_sync(partial(fields.read_image, store, sid, field))
        again = partial(_look_again, bundle, queue, data, scale)
        findings = await queue.run(again, size=len(data))
        replace = partial(fields.replace_cells, store, sid, field, scale, findings)
        await to_thread.run_sync(replace)
        return {"field": field, "left": len(left) - 1}

    @router.get(
        "/slides/{sid}/fields/{fid}/image", response_class=Response, responses=JPEG,
        summary="The image, as JPEG",
    )  # fmt: skip
    def read_image(
        sid: Id, fid: Id, width: Annotated[int | None, Query(ge=16, le=10_000)] = None
    ) -> Response:
        data = fields.read_image(store, sid, fid)
        with queue.decoding:
            shown = reencode(data, width)
        return Response(shown, media_type="image/jpeg")

    add_readings(router, store, bundle, queue, Waiting(store))
    add_exports(router, store, bundle, queue.decoding)
    add_adaptations(router, store, bundle, queue.decoding)
    return router


def _look(store: Store, bundle: Bundle, queue: Queue, sid: int, file: Upload) -> fields.Picture:
    """Finds and names the cells of an uploaded file; in the queue."""
    with queue.decoding:
        draft = examine(bundle, file.data, file.name, partial(fields.measure_scale, store, sid))
    return draft if isinstance(draft, fields.Picture) else answer(bundle, draft)


def _look_again(bundle: Bundle, queue: Queue, data: bytes, scale: float) -> tuple[Finding, ...]:
    """Finds and names the cells of an image that is kept, at the scale of all; in the queue."""
    with queue.decoding:
        draft = examine(bundle, data, "", lambda _size, _own: scale)
    assert not isinstance(draft, fields.Picture)  # it could be read when it came
    return answer(bundle, draft).findings


def _find_repeated(store: Store, sid: int, key: str | None, data: bytes) -> int | None:
    import hashlib

    return fields.find_field_of(store, sid, key=key, sha256=hashlib.sha256(data).hexdigest())


def _clean_name(name: str) -> str:
    cleaned = clean_text(name, LONGEST_NAME)
    if not cleaned:
        raise Refusal(422, "no_name", "A slide needs a name. Give it one that isn't blank.")
    return cleaned
