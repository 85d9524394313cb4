"""What stands before every route: who may ask, how much, and what every answer says.

Plain ASGI: it sees the head of a request before anything is read, and each piece of the body as it
comes. Knows HTTP; knows nothing of pictures.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leuko.service.metrics import Metrics
from leuko.service.refusals import Refusal
from leuko.service.sessions import knows_token
from leuko.service.settings import ServiceSettings, is_local

log = logging.getLogger("leuko.service")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
LONGEST_HEAD = 1 << 15  # bytes
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# What tells nothing of anybody: the page itself, whether the process lives, and the log-in.
OPEN = ("/live", "/ready", "/session")
CLOSED = ("/api/", "/metrics", "/docs")


class Guard:
    """Middleware; see the module.

    Args:
        app: What it guards.
        settings: Token, names, limits.
        metrics: Told of every request.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._receiving = 0  # requests with pictures whose body isn't complete
        self._names = {"localhost", socket.gethostname().lower(), *settings.names}
        if not is_local(settings.host):
            self._names.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets one request through, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._settings)
        # Many small ranges of one file cost much; nothing here is large enough to need one.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        try:
            self._judge(scope, exchange)
            if exchange.pictures:
                self._begin_receiving(exchange)
            await self._app(scope, exchange.receive, exchange.send)
            if exchange.too_large is not None:  # and the app has said so in its own words
                raise exchange.too_large
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except Exception:
            if exchange.too_large is None:
                log.exception("%s failed", exchange.id)
            await exchange.refuse(exchange.too_large or fault(exchange.id))
        finally:
            exchange.end_receiving()
            self._record(scope, exchange)

    def _begin_receiving(self, exchange: _Exchange) -> None:
        if self._receiving >= self._settings.uploads:
            raise Refusal(
                503, "busy", "Too many pictures are arriving already; send them again later.",
                retry_after=1,
            )  # fmt: skip
        self._receiving += 1

        def end() -> None:
            self._receiving -= 1
            exchange.end_receiving = lambda: None

        exchange.end_receiving = end

    def _judge(self, scope: Scope, exchange: _Exchange) -> None:
        """Refuses by the head alone."""
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        self._check_host(headers)
        if scope["method"] not in SAFE_METHODS or scope["path"].startswith("/api/"):
            check_origin(headers)
        if self._settings.token is not None and scope["path"].startswith(CLOSED):
            self._check_token(headers)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEAD:
            raise Refusal(431, "head", f"The head of the request is above {LONGEST_HEAD} bytes.")
        if exchange.declared > exchange.limit:
            raise too_large(exchange.limit)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Refuses names that aren't ours: a foreign page could have pointed its own name here."""
        name = split_host(headers.get("host", ""))
        if name in self._names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if address is not None and (address.is_loopback or not is_local(self._settings.host)):
            return  # pointing a name takes a name
        raise Refusal(
            400, "host",
            f"The host {name[:80]!r} isn't one of this service. If it is reached by that name, "
            "start it with --name.",
        )  # fmt: skip

    def _check_token(self, headers: Mapping[str, str]) -> None:
        token = self._settings.token or ""
        if knows_token(headers, token):
            return
        raise Refusal(
            401, "token",
            "This service asks for a token: log in on the page, or send the header "
            "'Authorization: Bearer TOKEN'.",
        )  # fmt: skip

    def _record(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = perf_counter() - exchange.began
        route = getattr(scope.get("route"), "path_format", None) or "page"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, exchange.status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log.info(
            "%s %s %s %d bytes=%d ms=%.0f", exchange.id, method, route, exchange.status,
            exchange.received, 1000 * seconds,
        )  # fmt: skip


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: ServiceSettings
    ) -> None:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").lower()
        chunked = b"transfer-encoding" in headers
        declared = headers.get(b"content-length", b"0")
        self.id = scope["request_id"] = secrets.token_hex(8)
        self.began = perf_counter()
        self.pictures = kind.startswith(b"multipart/form-data")
        self.limit = settings.upload_bytes if self.pictures else settings.text_bytes
        self.declared = int(declared[:20]) if declared.isdigit() else self.limit + 1
        self.end_receiving: Callable[[], None] = lambda: None
        self._coming = chunked or self.declared > 0
        self._endless = chunked or self.declared > self.limit
        self.received = 0
        self.status = 0
        self.too_large: Refusal | None = None
        self._no_store = scope["path"].startswith((*CLOSED, *OPEN))
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self.limit:
                # Kept, because frameworks turn what is raised here into errors of their own.
                self.too_large = too_large(self.limit)
                raise self.too_large
            if not message.get("more_body", False):
                self._coming = False
                self.end_receiving()
        return message

    async def send(self, message: Message) -> None:
        if self.too_large is not None and self.status != 413:
            return  # some framework's word for it; ours follows
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept = [(n, v) for n, v in message["headers"] if n.decode("latin-1") not in HEADERS]
            more = dict(HEADERS) | {"x-request-id": self.id}
            if self._no_store:
                more["cache-control"] = "no-store"
                kept = [(n, v) for n, v in kept if n != b"cache-control"]
            if self._coming and self._endless:  # else what still comes is read and dropped
                more["connection"] = "close"
            message["headers"] = kept + [(n.encode(), v.encode()) for n, v in more.items()]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self.status:
            return  # the answer has begun
        self.too_large = None
        await answer_refusal(refusal, self.send)


async def answer_refusal(refusal: Refusal, send: Send) -> None:
    """Sends a refusal."""
    body = json.dumps(refusal.to_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in head_of(refusal).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def head_of(refusal: Refusal) -> dict[str, str]:
    """The headers that belong to a refusal."""
    found = {}
    if refusal.retry_after is not None:
        found["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        found["www-authenticate"] = "Bearer"
    return found


def too_large(limit: int) -> Refusal:
    """A body above its limit."""
    return Refusal(
        413, "too_large",
        f"The request is larger than {limit / 2**20:.1f} MiB. Send fewer or smaller pictures at a "
        "time.",
    )  # fmt: skip


def fault(request: str) -> Refusal:
    """A fault of ours; what happened is in the log, under the request's id."""
    return Refusal(
        500, "fault",
        f"A fault in Leuko itself. Nothing was changed. Please report it, with the log's lines of "
        f"request {request}.",
    )  # fmt: skip


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuses what another page made the browser send; other programs send no origin.

    Raises:
        Refusal: 403.
    """
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != headers.get("host", "")
    if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Refusal(
            403, "origin", "This request comes from another page; only its own page may ask."
        )


def split_host(host: str) -> str:
    """The name or address in a Host header, without its port."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or (port.endswith("]") and name):  # an IPv6 address has colons of its own
        name, port = host.lower(), ""
    if not (port == "" or port.isdecimal()):
        return host
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name
