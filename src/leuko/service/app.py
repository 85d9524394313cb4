"""The application: routers, guard, page, and what is told of their faults.

    guard → routes (model, predictions, slides) → queue → predictor
                                                → store
          → static page

Model and store may come later than the page: until then their routes answer 503. Knows how the
parts are joined; knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import leuko
from leuko.errors import LeukoError
from leuko.service import sessions
from leuko.service.examples import show_answer, show_errors
from leuko.service.guard import Guard, head_of
from leuko.service.metrics import CONTENT_TYPE, Metrics
from leuko.service.refusals import Refusal
from leuko.service.settings import ServiceSettings

if TYPE_CHECKING:
    from leuko.service.queue import Queue
    from leuko.service.store import Store
    from leuko.use.predictor import Predictor

STATIC = Path(__file__).parent / "static"


class Parts:
    """What opens after the page: model, queue and store; at ``app.state.parts``.

    Attributes:
        settings: Of the service.
        metrics: Of the app.
        queue: Before the model; None until it was checked.
        store: Open; None until then, and without slides.
        stopping: Set when the service is to end: whoever waits for news waits no longer.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.queue: Queue | None = None
        self.store: Store | None = None
        self.stopping = asyncio.Event()

    def check(self) -> None:
        """Says whether everything is there.

        Raises:
            Refusal: 503, not yet, or the store doesn't answer.
        """
        self.metrics.ready.set(0)
        if self.queue is None:
            raise starting()
        if self.store is not None:
            self.store.check()
        self.metrics.ready.set(1)


def create_app(
    predictor: Predictor | None = None,
    store: Store | None = None,
    settings: ServiceSettings | None = None,
) -> FastAPI:
    """Makes the application.

    Args:
        predictor: That answers; None if it follows with `join`.
        store: Of slides, open; None leaves their routes out.
        settings: Of the service.
    """
    parts = Parts(settings or ServiceSettings())
    app = FastAPI(
        title="Leuko",
        version=leuko.__version__,
        summary="Classifies white blood cells in blood-smear images.",
        description="Research use only, not for diagnosis.",
        docs_url=None, redoc_url=None, openapi_url=None, lifespan=_live,
    )  # fmt: skip
    app.state.parts = parts
    app.add_middleware(Guard, settings=parts.settings, metrics=parts.metrics)
    app.add_exception_handler(Exception, _refuse)
    for kind in (LeukoError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    _add_signs_of_life(app, parts)
    app.include_router(sessions.make_router(parts.settings))
    app.mount("/", _Page(parts))
    if predictor is not None:
        join(app, predictor, store)
    return app


def join(app: FastAPI, predictor: Predictor, store: Store | None = None) -> None:
    """Adds model and store, and their routes. Call it in the thread of the event loop."""
    from leuko.service.predictions import make_router
    from leuko.service.queue import Queue

    parts: Parts = app.state.parts
    queue = Queue(predictor, parts.settings, parts.metrics.answer_seconds.observe)
    parts.metrics.waiting.set_function(lambda: queue.waiting)
    page = app.router.routes.pop()  # it takes every path, so it stays last
    app.include_router(make_router(predictor, queue, parts.settings, parts.metrics))
    if store is not None:
        from leuko.service import slides

        app.include_router(slides.make_router(store, predictor, queue))
    app.router.routes.append(page)
    app.openapi_schema = None
    parts.store = store
    parts.queue = queue


def stop(app: FastAPI) -> None:
    """Tells those who wait for news that the service ends. In the event loop's thread."""
    parts: Parts = app.state.parts
    parts.stopping.set()
    if parts.store is not None:
        parts.store.hang_up()


@asynccontextmanager
async def _live(app: FastAPI) -> AsyncIterator[None]:
    yield
    parts: Parts = app.state.parts
    if parts.queue is not None:
        parts.queue.close()
    if parts.store is not None:
        parts.store.close()


class _Page:
    """The page's files; and a clear word for paths that don't exist."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._files = StaticFiles(directory=STATIC, html=True, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/api/") and self._parts.queue is None:
            raise starting()
        await self._files(scope, receive, send)


def starting() -> Refusal:
    """Model and store aren't there yet."""
    return Refusal(503, "starting", "The model is being checked; ask again.", retry_after=1)


def _add_signs_of_life(app: FastAPI, parts: Parts) -> None:
    alive, here = show_answer("It does", {"live": True}), show_answer("Both are", {"ready": True})

    @app.get(
        "/live", tags=["service"], summary="Does the process answer?",
        responses={200: alive, **show_errors()},
    )  # fmt: skip
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get(
        "/ready", tags=["service"], summary="Is the model checked, and the store open?",
        responses={200: here, **show_errors(503)},
    )  # fmt: skip
    def ready() -> JSONResponse:
        parts.check()
        return JSONResponse({"ready": True})

    written: list[Any] = [None, b""]  # the description, and its text: to write it takes long

    @app.get("/api/v1/openapi.json", include_in_schema=False)
    async def describe_all() -> Response:
        facts = app.openapi()
        if written[0] is not facts:  # routes were added
            written[:] = facts, json.dumps(facts).encode()
        return Response(written[1], media_type="application/json")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        from leuko.service.reference import write_reference

        return HTMLResponse(write_reference(app.openapi()))

    @app.get(
        "/metrics", tags=["service"], summary="Numbers for Prometheus",
        response_class=PlainTextResponse, responses=show_errors(),
    )  # fmt: skip
    async def metrics() -> Response:
        return Response(parts.metrics.render(), media_type=CONTENT_TYPE)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    refusal = describe(error)
    return JSONResponse(refusal.to_json(), refusal.status, headers=head_of(refusal))


def describe(error: Exception) -> Refusal:
    """Any fault that a client can do something about, as a refusal; others are raised again.

    Raises:
        Exception: `error`, a fault of ours.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        found = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
        )
        return Refusal(
            422, "invalid", f"The request doesn't have the form it should: {found[:500]}"
        )
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method"}.get(error.status_code, "invalid")
        text = {404: "There is nothing here.", 405: "This can't be done here."}
        return Refusal(error.status_code, code, text.get(error.status_code, str(error.detail)))
    raise error
