"""Real databases for tests: SQLite files, and a PostgreSQL of our own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import numpy as np

from leuko.service import shelf
from leuko.service.fields import Picture, add_field
from leuko.service.records import Machine
from leuko.service.shelf import Finding
from leuko.service.store import Store

BINARIES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class Cluster:
    """PostgreSQL on a socket in a folder of its own, run by an ordinary user."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="leuko-pg-"))  # short: a socket's path is
        self._binaries = binaries
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            known = {entry.pw_name for entry in pwd.getpwall()}
            name = "postgres" if "postgres" in known else "nobody"
            shutil.chown(self.folder, name)
            self._user = {"user": name, "extra_groups": []}
        data = self.folder / "data"
        self._call("initdb", "-D", str(data), "-A", "trust", "-U", "leuko", "-E", "UTF8", "-N")
        self.start()

    def start(self) -> None:
        """Also after a crash: it then recovers from its log."""
        data = self.folder / "data"
        self._server = subprocess.Popen(
            [self._binaries / "postgres", "-D", data, "-k", self.folder,
             "-c", "listen_addresses="],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **self._user,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def crash(self) -> None:
        """Ends it at once, without a word to anybody and without writing anything more."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(30)

    def _wait(self) -> None:
        end = time.monotonic() + 60
        asked = [self._binaries / "pg_isready", "-q", "-h", self.folder]
        while subprocess.run(asked, check=False).returncode:
            assert time.monotonic() < end, "PostgreSQL didn't start"
            assert self._server.poll() is None, "PostgreSQL ended"
            time.sleep(0.05)

    def make_database(self) -> str:
        """A new one; its URL."""
        name = f"leuko_{uuid4().hex[:12]}"
        self._call("createdb", "-h", str(self.folder), "-U", "leuko", name)
        return f"postgresql://leuko@/{name}?host={self.folder}"

    def stop(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *words], capture_output=True, text=True, cwd=self.folder,
            check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def find_binaries() -> Path | None:
    """The folder with PostgreSQL's programs."""
    named = shutil.which("initdb")
    return next(iter(BINARIES), Path(named).resolve().parent if named else None)


CLASSES = ("lymphocyte", "monocyte", "neutrophil")


def make_finding(label: str = "neutrophil", state: str = "pre-classified", at: float = 0.0):
    """A cell as the machine would find it."""
    shares = {name: 0.9 if name == label else 0.05 for name in CLASSES}
    machine = Machine(label, 0.9, shares, (label,), state, "" if state != "unidentified" else "?")
    features = np.eye(8, dtype=np.float32)[CLASSES.index(label)] + at / 1000
    return Finding((at, at, at + 20, at + 20), machine, b"a portrait " * 3, features)


def make_picture(number: int = 0, cells: int = 3, mark: bytes = b"an image") -> Picture:
    """A field with cells; the second is doubtful."""
    found = tuple(
        make_finding(CLASSES[k % 3], "unidentified" if k == 1 else "pre-classified", at=30.0 * k)
        for k in range(cells)
    )
    data = mark + b" %d" % number
    return Picture(f"field-{number}.jpg", data, f"{number:064d}", 640, 480, 10.0, None, found)


def fill(store: Store, *, fields: int = 1, cells: int = 3, **settings) -> tuple[int, int]:
    """A slide with fields; its id and that of its reading."""
    values = {"name": "Smear", "target": 200, "keep_images": False, "reader": "A", **settings}
    slide = shelf.create_slide(store, model="m" * 64, classes=CLASSES, **values)
    for number in range(fields):
        add_field(store, slide, make_picture(number, cells), key=f"key-{number}")
    return slide, shelf.read_slide(store, slide)["readings"][0]["id"]
