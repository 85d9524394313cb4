"""The command that serves the laboratory's page and the REST interface. Needs no PyTorch."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from leuko.commands.options import say

if TYPE_CHECKING:
    from leuko.service.store import Store
    from leuko.use.predictor import Predictor


def serve(
    *,
    model: Path | None = None,
    engine: str = "onnxruntime",
    store: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    name: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    open_page: Annotated[bool, Parameter(name="--open", negative="")] = False,
    log: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve the laboratory's page and a REST interface, for this machine unless told otherwise.

    Ctrl-C or SIGTERM ends it, after what was begun is answered.

    Parameters
    ----------
    model:
        A bundle that leuko train wrote; default names the one that ships with Leuko.
        [default: that one]
    engine:
        onnxruntime, or openvino (needs leuko[openvino]); which is faster depends on the
        processor, and answers differ by rounding.
    store:
        Where slides are kept: a file, or postgresql://… [default: leuko.db of this user]
    host:
        Address to listen on. Any but this machine's own needs a token.
    port:
        0 takes any that is free.
    token_file:
        A file that only you can read, holding a token that everybody has to know. Without it the
        environment's LEUKO_TOKEN.
    name:
        A host name under which others reach the service, beside this machine's own name.
    open_page:
        Show the page in the browser.
    log:
        Print a line for each request.
    """
    from leuko.service.server import run_service
    from leuko.service.settings import ServiceSettings, read_token

    settings = ServiceSettings(host, port, read_token(token_file), name)
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(message)s",
        level=logging.INFO if log else logging.WARNING,
    )  # fmt: skip

    def open_predictor() -> Predictor:
        from leuko.use.predictor import load

        # One thread for each answer, and as many answers at a time as there are cores.
        return load(model, threads=1, engine=engine)

    def open_store() -> Store:
        from leuko.service.store import Store

        return Store.open(store)

    def tell(address: str) -> None:
        say(f"Leuko is at {address} (stop with Ctrl-C)\nResearch use only, not for diagnosis.")
        if open_page:
            import webbrowser

            webbrowser.open(address)

    run_service(settings, open_predictor=open_predictor, open_store=open_store, on_start=tell)
    say("stopped.")
    return 0
