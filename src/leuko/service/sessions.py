"""The token, and the cookie that a browser gets for it.

The cookie isn't the token: it follows from it, so that nothing has to be kept here, a restart ends
no session, and another token ends all. Knows secrets; knows nothing of what they protect.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from leuko.service.examples import show_answer, show_errors
from leuko.service.refusals import Refusal
from leuko.service.settings import ServiceSettings

COOKIE = "leuko_session"
FAILURES, MINUTE = 10, 60.0  # wrong tokens that one client may try within these seconds
REMEMBERED = 1000  # clients


def knows_token(headers: Mapping[str, str], token: str) -> bool:
    """Whether a request proves that it knows the token, by header or by cookie."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and _is_same(given.strip(), token):
        return True
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    session = _make_session(token)
    return any(name == COOKIE and _is_same(value, session) for name, _, value in pairs)


def make_router(settings: ServiceSettings) -> APIRouter:
    """Routes by which the page logs in and out."""
    router = APIRouter(prefix="/session", tags=["session"])
    failures: dict[str, deque[float]] = {}

    state = show_answer("Both", {"needed": True, "logged_in": False})

    @router.get(
        "", summary="Is a token needed, and is this browser logged in?",
        responses={200: state, **show_errors()},
    )  # fmt: skip
    async def show(request: Request) -> JSONResponse:
        token = settings.token
        known = token is None or knows_token(request.headers, token)
        return JSONResponse({"needed": token is not None, "logged_in": known})

    @router.post(
        "", status_code=204, summary="Log in: the answer sets a cookie",
        responses=show_errors(413, 422, 429),
    )  # fmt: skip
    async def log_in(request: Request, body: Annotated[dict[str, Any], Body()]) -> Response:
        token, given = settings.token, body.get("token")
        answer = Response(status_code=204)
        if token is None:
            return answer
        tried = failures.setdefault(request.client.host if request.client else "", deque())
        while tried and monotonic() - tried[0] > MINUTE:
            tried.popleft()
        if len(tried) >= FAILURES:
            raise Refusal(
                429, "too_many_attempts", "Too many wrong tokens came from there; wait a minute.",
                retry_after=int(MINUTE),
            )  # fmt: skip
        if not isinstance(given, str) or not _is_same(given.strip(), token):
            tried.append(monotonic())
            while len(failures) > REMEMBERED:
                del failures[next(iter(failures))]
            raise Refusal(401, "token", "This isn't the token of the service.")
        answer.set_cookie(COOKIE, _make_session(token), httponly=True, samesite="strict")
        return answer

    @router.delete("", status_code=204, summary="Log out", responses=show_errors())
    async def log_out() -> Response:
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _is_same(given: str, expected: str) -> bool:
    """Compares in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _make_session(token: str) -> str:
    return hmac.new(token.encode(), b"leuko session", hashlib.sha256).hexdigest()
