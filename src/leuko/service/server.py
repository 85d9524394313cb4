"""uvicorn, taught to hang up on slow clients, never on those still sending, and to end cleanly.

uvicorn has no limit on the time that a request may take to arrive, or an answer to be read. Here a
sweep, several times a second, looks at each connection: a head has `receive_seconds`, a body as
long and what its size takes at the slowest speed, an answer the same. Who is refused while still
sending is listened to for some seconds more: otherwise the system would reset the connection, and
the client would never read why.

Knows connections and signals; knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from leuko.errors import SettingsError
from leuko.service.app import create_app, join, stop
from leuko.service.guard import LONGEST_HEAD
from leuko.service.settings import ServiceSettings

if TYPE_CHECKING:
    from leuko.service.store import Store
    from leuko.use.predictor import Predictor

SWEEP = 0.25  # s between sweeps
SEND_BUFFER = 1 << 18  # bytes; the system would take megabytes of an answer that nobody reads
LINGER_SECONDS, LINGER_BYTES = 5.0, 1 << 30
MOMENT = 0.5  # s, to tell a slow client why
KEEP_ALIVE = 5  # s without a request


def _write_answer(status: str, code: str, message: str, *headers: str) -> bytes:
    """An answer to who hasn't asked yet, or hasn't asked to the end."""
    body = json.dumps({"error": {"code": code, "message": message}})
    head = [f"HTTP/1.1 {status}", "content-type: application/json", "connection: close"]
    return "\r\n".join([*head, f"content-length: {len(body)}", *headers, "", body]).encode()


FULL = _write_answer(
    "503 Service Unavailable", "busy", "Too many connections are open; ask again later.",
    "retry-after: 1",
)  # fmt: skip
SLOW = _write_answer(
    "408 Request Timeout", "slow", "The request took too long to arrive; send it faster."
)


class Connection(H11Protocol):
    """One connection of a client, with deadlines."""

    def __init__(self, *args: Any, settings: ServiceSettings, **more: Any) -> None:
        super().__init__(*args, **more)
        self._settings = settings
        self._phase: tuple[Any, Any] | None = None  # of the exchange, and which one
        self._since = monotonic()  # the phase began
        self._received = 0  # bytes, in this phase
        self._unread: tuple[float, int] | None = None  # since when, of how many bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or says that there are too many."""
        patient = _Patient(transport, self)
        super().connection_made(patient)  # type: ignore[arg-type]
        self._note(monotonic())
        if len(self.connections) > self._settings.connections:
            patient.write(FULL)
            patient.linger()

    def data_received(self, data: bytes) -> None:
        """Counts, then does as uvicorn does."""
        if self.transport.lingers(len(data)):  # type: ignore[attr-defined]
            return
        self._received += len(data)
        super().data_received(data)
        self._note(monotonic())

    def on_response_complete(self) -> None:
        """Does as uvicorn does; another request may follow."""
        super().on_response_complete()
        self._note(monotonic())

    def resume_writing(self) -> None:
        """The client has read something."""
        self._unread = None
        super().resume_writing()

    def is_sending(self) -> bool:
        """Whether the client may be in the middle of a request."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def sweep(self, now: float) -> None:
        """Hangs up if the client is too slow."""
        if self.transport.is_closing():  # it was told already
            return
        s = self._settings
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            self._unread = None
        else:
            since, most = self._unread or (now, waiting)
            self._unread = (since, max(most, waiting))
            if now - since > s.receive_seconds + (most - waiting) / s.slowest:
                self.transport.abort()
                return
        self._note(now)
        allowed = s.receive_seconds
        if self.conn.their_state is h11.SEND_BODY:
            if self.flow.read_paused:  # it waits for us
                self._since = now
            allowed += self._received / s.slowest
        elif self.conn.their_state is not h11.IDLE:  # all was received
            return
        if now - self._since > allowed:
            if self.cycle is None or not self.cycle.response_started:
                self.transport.write(SLOW)
            self.transport.linger(MOMENT)  # type: ignore[attr-defined]

    def _note(self, now: float) -> None:
        """Notes when another phase of the exchange begins."""
        phase = (self.conn.their_state, self.cycle)
        if phase != self._phase:
            self._phase, self._since, self._received = phase, now, 0

    def shutdown(self) -> None:
        """Ends the connection, after the request that is being answered."""
        with contextlib.suppress(h11.LocalProtocolError):
            super().shutdown()
            return
        self.transport.abort()


class _Patient:
    """A transport that, when closed, still listens to a client that is sending."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._lingered: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingered is not None or self._transport.is_closing()

    def close(self) -> None:
        if self._connection.is_sending():
            self.linger()
        elif self._lingered is None:
            self._transport.close()

    def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Sends what is left, says that no more follows, and drops what still comes."""
        if self.is_closing():
            return
        self._lingered = 0
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._connection.loop.call_later(seconds, self._transport.abort)

    def lingers(self, received: int) -> bool:
        """Whether what was received is to be dropped."""
        if self._lingered is None:
            return False
        self._lingered += received
        if self._lingered > LINGER_BYTES:
            self._transport.abort()
        return True


class Server(uvicorn.Server):
    """A server that looks after its connections, and ends with code 0 when asked to end."""

    on_stop: Callable[[], None] = staticmethod(lambda: None)
    _swept = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Notes the wish; unlike uvicorn's it doesn't send the signal once more at the end."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, or less often under load."""
        now = monotonic()
        if now - self._swept >= SWEEP:
            self._swept = now
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.sweep(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was begun, then ends."""
        self.on_stop()
        await super().shutdown(sockets)


def make_server(app: Any, settings: ServiceSettings) -> Server:
    """A server for an app from `create_app`; it doesn't listen yet."""
    config = uvicorn.Config(
        app, http=partial(Connection, settings=settings),  # type: ignore[arg-type]
        ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )  # fmt: skip
    server = Server(config)
    server.on_stop = partial(stop, app)
    return server


def run_service(
    settings: ServiceSettings,
    *,
    open_predictor: Callable[[], Predictor],
    open_store: Callable[[], Store] | None,
    on_start: Callable[[str], None],
) -> None:
    """Serves until it is told to stop.

    Args:
        settings: Of the service.
        open_predictor: Loads and checks the model; called in a thread while the page is served.
        open_store: The same for the store; None serves predictions alone.
        on_start: Called with the address of the page.

    Raises:
        LeukoError: Model or store can't be opened, or the address is taken.
    """
    faults: list[BaseException] = []
    listening = listen(settings)
    address, port = listening.getsockname()[:2]
    app = create_app(None, None, settings)
    server = make_server(app, settings)

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def open_parts() -> None:
            try:
                predictor = open_predictor()
                store = None if open_store is None else open_store()
                loop.call_soon_threadsafe(join, app, predictor, store)
            except BaseException as error:
                faults.append(error)
                server.should_exit = True

        threading.Thread(target=open_parts, name="leuko-open", daemon=True).start()
        shown = f"[{address}]" if ":" in address else address
        loop.call_later(0.01, on_start, f"http://{shown}:{port}/")
        await server.serve(sockets=[listening])

    asyncio.run(serve())
    if faults:
        raise faults[0]


def listen(settings: ServiceSettings) -> socket.socket:
    """Opens the address.

    Raises:
        SettingsError: It is taken, or isn't one of this machine.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # of its connections too
        # Head and body leave one after the other. Without this the body waits until the client
        # has acknowledged the head, which it puts off for 40 ms; asyncio sets it only on sockets
        # that name their protocol, and this one doesn't.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    except OSError as error:
        raise SettingsError(
            f"Can't listen on {settings.host}, port {settings.port}: {error.strerror or error}. "
            "Another program may hold it: choose another with --port, or --port 0 for any."
        ) from None
