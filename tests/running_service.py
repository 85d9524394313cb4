"""`leuko serve` as a process, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx


class Service:
    """A process of its own; its log is read line by line."""

    def __init__(self, folder: Path, model: Path | None, *more: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        words = ["serve", "--port", "0", "--store", str(folder / "leuko.db"), "--log", *more]
        words += ["--model", str(model)] if model else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leuko.cli", *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(lambda: bool(self._address()) or self.process.poll() is not None)
        self.port = int((self._address() or "0").rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _address(self) -> str | None:
        found = [re.search(r"(http://\S+:\d+)/", line) for line in list(self.log)]
        return next((f[1] for f in found if f), None)

    @staticmethod
    def _wait(done, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    def wait_until_ready(self) -> None:
        with httpx.Client(base_url=self.url) as client:
            self._wait(lambda: client.get("/ready").status_code == 200)

    def memory(self, which: str = "VmRSS") -> float:
        """MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{which}:\s+(\d+)", text)[1]) / 1024

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> int:
        """Asks it to end; gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._reader.join(5)
        self.process.stderr.close()
        return code


def exchange(port: int, *pieces: bytes, seconds: float = 20.0, pause: float = 0.0) -> bytes:
    """Sends raw bytes, piece by piece, and reads until the service hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        for piece in pieces:
            link.sendall(piece)
            time.sleep(pause)
        return read_all(link)


def read_all(link: socket.socket) -> bytes:
    found = b""
    while piece := link.recv(65536):
        found += piece
    return found


def form(data: bytes, name: str = "a.png", field: str = "files", boundary: str = "xyz") -> bytes:
    """One file as multipart."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"'
    return f"{head}\r\n\r\n".encode() + data + f"\r\n--{boundary}--\r\n".encode()


def post(body: bytes, *more: str, boundary: str = "xyz", length: int | None = None) -> bytes:
    """The head of a request to predict."""
    lines = [
        "POST /api/v1/predict HTTP/1.1", "Host: localhost",
        f"Content-Type: multipart/form-data; boundary={boundary}", *more,
    ]  # fmt: skip
    if not any(line.lower().startswith("transfer-encoding") for line in more):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode()
