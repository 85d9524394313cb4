"""Routes that answer for pictures and keep nothing: the model's facts, and predictions.

Knows requests and answers; knows nothing of slides.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from leuko.service.examples import (
    MODEL,
    PREDICTIONS,
    PREDICTIONS_SCHEMA,
    describe_upload,
    show_answer,
    show_errors,
)
from leuko.service.metrics import Metrics
from leuko.service.queue import Queue, Told
from leuko.service.settings import ServiceSettings
from leuko.service.uploads import Upload, receive_files, stop_when_gone
from leuko.use.answers import Predictions, SetAside
from leuko.use.inputs import Item
from leuko.use.predictor import Predictor

RESEARCH_USE = "Research use only, not for diagnosis."
log = logging.getLogger("leuko.service")


def describe_model(predictor: Predictor) -> dict[str, Any]:
    """What clients are told of the model; no path."""
    facts = predictor.bundle.facts
    return {
        "id": predictor.bundle.id,
        "name": str(facts.training.get("data", {}).get("name", facts.architecture)),
        "architecture": facts.architecture,
        "classes": list(facts.classes),
        "engine": predictor.bundle.network.engine,
        "size": facts.preprocessing.size,
        "created": facts.created,
        "leuko": facts.leuko,
        "research_use": RESEARCH_USE,
    }


def make_router(
    predictor: Predictor, queue: Queue, settings: ServiceSettings, metrics: Metrics
) -> APIRouter:
    """The routes, over a model that was checked."""
    router = APIRouter(prefix="/api/v1", tags=["predictions"])

    @router.get(
        "/model",
        summary="The model that answers",
        responses={200: show_answer("What it is", MODEL), **show_errors(503)},
    )
    async def model() -> JSONResponse:
        return JSONResponse(describe_model(predictor))

    @router.post(
        "/predict",
        summary="Find the leukocytes in pictures and classify them",
        description="Nothing is kept. The answer is what `leuko predict --json` prints.",
        responses={
            200: show_answer("Cells and set-aside files", PREDICTIONS, PREDICTIONS_SCHEMA),
            **show_errors(413, 415, 422, 503),
        },
        openapi_extra=describe_upload("files"),
    )
    async def predict(request: Request) -> JSONResponse:
        queue.check()  # while the pictures are still on their way
        uploads = await receive_files(request, settings, check=queue.check)
        items = [Item(one.name, one.data) for one in uploads]
        told = await stop_when_gone(request, queue.answer(items))
        _record(request, uploads, told, metrics)
        found = Predictions(
            predictor.classes,
            tuple(a for one in told if not isinstance(one, SetAside) for a in one),
            tuple(one for one in told if isinstance(one, SetAside)),
            predictor.bundle.id,
        )
        return JSONResponse(found.to_json())

    return router


def _record(request: Request, uploads: list[Upload], told: Told, metrics: Metrics) -> None:
    """One line per picture: its hash, its size and what came of it; never its name or pixels."""
    for upload, one in zip(uploads, told, strict=True):
        outcome = one.reason if isinstance(one, SetAside) else "answered"
        metrics.pictures.labels(outcome).inc()
        log.info(
            "%s picture sha256=%s bytes=%d outcome=%s",
            request.scope["request_id"],
            hashlib.sha256(upload.data).hexdigest(),
            len(upload.data),
            outcome,
        )
