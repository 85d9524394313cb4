"""The settings of the service: where it listens, who may ask, and how much of anything it takes.

Knows limits; knows nothing of HTTP.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from leuko.data.headers import MAX_BYTES
from leuko.errors import SettingsError

TOKEN = "LEUKO_TOKEN"  # of the environment
SHORTEST_TOKEN = 16  # characters; a guess at this length is hopeless at any rate of asking


@dataclass(frozen=True)
class ServiceSettings:
    """What `leuko serve` is told, and the limits it keeps.

    Attributes:
        host: Address to listen on.
        port: 0 takes any that is free.
        token: Whoever asks has to know it; None only where nobody but this machine can ask.
        names: Host names under which the service is reached, beside this machine's own.
        upload_bytes: Largest request with pictures: one picture at its limit, and its frame.
        text_bytes: Largest request of any other kind.
        files: Most pictures in one request.
        patience: Seconds within which work that is let in should begin; more is turned away.
        goal: Seconds from being let in within which 99 of 100 pictures should be answered.
        shortest_queue: Pictures that may wait in any case.
        longest_queue: Pictures that may wait at most.
        queue_bytes: Bytes of pictures that may wait.
        uploads: Requests with pictures that are received at a time.
        workers: Requests that are answered at a time; None takes one per core.
        decoders: Pictures that are decoded at a time; each takes up to some hundred megabytes.
        receive_seconds: For the head of a request, and for a body beside what `slowest` allows.
        slowest: Bytes per second below which a client is too slow.
        drain_seconds: After SIGTERM, until what is unfinished is dropped.
        connections: Open at a time; above, new ones are turned away.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    names: tuple[str, ...] = ()
    upload_bytes: int = MAX_BYTES + (1 << 16)
    text_bytes: int = 1 << 20
    files: int = 64
    patience: float = 0.35
    goal: float = 0.45
    shortest_queue: int = 4
    longest_queue: int = 64
    queue_bytes: int = 4 * MAX_BYTES
    uploads: int = 64
    workers: int | None = None
    decoders: int = 2
    receive_seconds: float = 9.0
    slowest: float = 1 << 16
    drain_seconds: float = 8.0
    connections: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port is {self.port}; expected 1 to 65535.")
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise SettingsError(
                f"The token has {len(self.token)} characters; expected at least {SHORTEST_TOKEN}. "
                'Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        if self.token is None and not is_local(self.host):
            raise SettingsError(
                f"--host {self.host} lets others reach the service, so it needs a token. Put one "
                "of 16 characters or more into a file that only you can read, and name it with "
                f"--token-file FILE (or set {TOKEN}). Without --host only this machine can ask."
            )


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path | None) -> str | None:
    """The token: from a file if one is named, else from the environment, else None.

    Raises:
        SettingsError: The file can't be read, is empty, or others may read it.
    """
    if path is None:
        return os.environ.get(TOKEN, "").strip() or None
    try:
        text = path.read_text("utf-8").strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise SettingsError(f"The token file {path} can't be read: {error}.") from None
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(
            f"Others may read the token file {path} (its mode is {mode:o}). "
            f"Change that first: chmod 600 {path}"
        )
    if not text or not text.isprintable() or not text.isascii():
        raise SettingsError(
            f"The token file {path} holds no token; expected one line of letters and digits."
        )
    return text
