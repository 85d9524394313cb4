"""uvicorn, told how to live with slow clients, and how to stop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from leuko.errors import SettingsError
from leuko.service.app import create_app, join
from leuko.service.settings import ServiceSettings

if TYPE_CHECKING:
    from leuko.use.predictor import Predictor


class Server(uvicorn.Server):
    """A server that ends with code 0 when it was asked to end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Notes the wish; unlike uvicorn's it doesn't send the signal once more at the end."""
        self.force_exit = self.should_exit
        self.should_exit = True


def run_service(
    settings: ServiceSettings,
    *,
    open_predictor: Callable[[], Predictor],
    open_store: Callable[[], Any] | None,
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
    server = Server(
        uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", log_config=None,
            access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=int(settings.drain_seconds),
            h11_max_incomplete_event_size=1 << 15,
        )
    )  # fmt: skip

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
    except OSError as error:
        raise SettingsError(
            f"Can't listen on {settings.host}, port {settings.port}: {error.strerror or error}. "
            "Another program may hold it: choose another with --port, or --port 0 for any."
        ) from None
    return made
