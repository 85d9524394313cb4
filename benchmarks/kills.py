"""Is a confirmed change ever lost when the service is killed? Prints results/store.md's tables.

uv run python benchmarks/kills.py [KILLS] [sqlite|postgresql ...]

A reviewer works over HTTP as the page does: label, confirm, delete, restore, add, undo, redo. The
process is killed with SIGKILL at random moments and started again; with PostgreSQL every fourth
kill is the database's instead. Then every change that was answered has to be there, at its
revision, and the cells have to be what the client was told. The request that was under way is sent
again under its id, and must count once.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg
from stores import Cluster, find_binaries

KINDS = ["NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL", "MONOCYTE"]
LABELS = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "blast")


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_until(done: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@dataclass
class Tally:
    """What happened, all kills together."""

    kills: int = 0
    under_way: int = 0  # requests that a kill left without an answer
    not_written: int = 0  # those of them that the store didn't have
    written: int = 0  # those of them that it had: answered again, they counted once
    confirmed: int = 0
    lost: int = 0
    wrong_cells: int = 0
    back: list[float] = field(default_factory=list)  # s until the service answered again


class Reviewer:
    """Reviews one reading; remembers what was confirmed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.confirmed: dict[str, int] = {}
        self.cells: dict[int, dict[str, Any]] = {}
        self.revision = 0
        self.pile: dict[str, Any] = {}
        self.under_way: dict[str, Any] | None = None

    def wish(self) -> dict[str, Any]:
        kind = str(self.rng.choice(["label"] * 4 + ["confirm", "delete", "add", "undo", "redo"]))
        body: dict[str, Any] = {
            "id": str(UUID(bytes=self.rng.bytes(16), version=4)), "revision": self.revision,
            "kind": kind, "by": "reviewer",
        }  # fmt: skip
        if kind in ("undo", "redo") and self.pile.get(kind):
            return {**body, "change": self.pile[kind]}
        there = [i for i, cell in self.cells.items() if not cell["deleted"] and cell["label"]]
        if kind == "add":
            cell = next(iter(self.cells.values()))
            x, y = (float(v) for v in self.rng.integers(0, 100, 2))
            return {**body, "field": cell["field"], "box": [x, y, x + 60, y + 60]}
        if kind == "delete" and len(there) < 5:
            kind = "confirm"
        kind = {"undo": "label", "redo": "confirm"}.get(kind, kind)
        chosen = [int(i) for i in self.rng.choice(there, size=min(2, len(there)), replace=False)]
        label = {"label": str(self.rng.choice(LABELS))} if kind == "label" else {}
        return {**body, "kind": kind, "cells": chosen, **label}

    def work(self, client: httpx.Client, path: str) -> None:
        """Until the service is gone."""
        while True:
            self.under_way = self.under_way or self.wish()
            answer = client.post(f"{path}/changes", json=self.under_way)
            answer.raise_for_status()
            self.hear(answer.json())
            self.confirmed[self.under_way["id"]] = self.revision
            self.under_way = None

    def hear(self, told: dict[str, Any]) -> None:
        self.revision = told["revision"]
        self.cells |= {cell["id"]: cell for cell in told["cells"]}
        self.pile = told["reading"]


class Server:
    """`leuko serve` as a process."""

    def __init__(self, store: str) -> None:
        self.port = find_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = ["serve", "--port", str(self.port), "--store", store]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leuko.cli", *words], stderr=subprocess.DEVNULL
        )
        wait_until(self.ready)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def prepare(url: str, rng: np.random.Generator) -> str:
    """A slide with fields; the path of its reading."""
    with httpx.Client(base_url=url, timeout=120) as client:
        slide = client.post("/api/v1/slides", json={"name": "Kills", "keep_images": True}).json()
        place = f"/api/v1/slides/{slide['id']}"
        for number in range(6):
            image = encode_jpeg(draw_field(rng, KINDS, mark=False, blur=0.8).image)
            files = {"file": (f"field-{number}.jpg", image)}
            client.post(f"{place}/fields", files=files).raise_for_status()
        return f"{place}/readings/{slide['readings'][0]['id']}"


def check(client: httpx.Client, path: str, reviewer: Reviewer, tally: Tally) -> None:
    """Compares the store with what the client was told."""
    told = client.get(f"{path}/changes", params={"since": 0}).json()
    there = {change["id"]: change["revision"] for change in told["changes"]}
    tally.confirmed = len(reviewer.confirmed)
    tally.lost += sum(there.get(i) != at for i, at in reviewer.confirmed.items())
    now = {cell["id"]: cell for cell in client.get(path).json()["cells"]}
    pending = reviewer.under_way
    if pending is not None:
        tally.under_way += 1
        tally.not_written += pending["id"] not in there
        tally.written += pending["id"] in there
        again = client.post(f"{path}/changes", json=pending)
        again.raise_for_status()
        reviewer.hear(again.json())
        reviewer.confirmed[pending["id"]] = there.get(pending["id"], reviewer.revision)
        reviewer.under_way = None
        now = {cell["id"]: cell for cell in client.get(path).json()["cells"]}
        after = client.get(f"{path}/changes", params={"since": 0}).json()["changes"]
        assert sum(change["id"] == pending["id"] for change in after) == 1
    tally.wrong_cells += sum(now.get(i) != cell for i, cell in reviewer.cells.items())


def run(kind: str, kills: int, seed: int) -> Tally:
    rng = np.random.default_rng(seed)
    tally, reviewer = Tally(), Reviewer(rng)
    with tempfile.TemporaryDirectory() as folder:
        cluster = None
        store = str(Path(folder) / "leuko.db")
        if kind == "postgresql":
            binaries = find_binaries()
            assert binaries is not None, "PostgreSQL isn't installed"
            cluster = Cluster(binaries)
            store = cluster.make_database()
        server = Server(store)
        try:
            path = prepare(server.url, rng)
            for number in range(kills):
                moment = float(rng.uniform(0.05, 2.0))
                of_database = cluster is not None and number % 4 == 3
                stop = cluster.crash if of_database and cluster else server.kill
                with httpx.Client(base_url=server.url, timeout=60) as client:
                    if not reviewer.cells:
                        reading = client.get(path).json()
                        reviewer.hear({**reading, "reading": reading})
                    timer = threading.Timer(moment, stop)
                    timer.start()
                    with suppress(httpx.HTTPError):  # gone, or 5xx without its database
                        reviewer.work(client, path)
                    timer.join()
                began = time.monotonic()
                if of_database and cluster is not None:
                    cluster.start()
                    wait_until(server.ready)
                else:
                    server = Server(store)
                tally.back.append(time.monotonic() - began)
                tally.kills += 1
                with httpx.Client(base_url=server.url, timeout=60) as client:
                    check(client, path, reviewer, tally)
        finally:
            server.kill()
            if cluster is not None:
                cluster.stop()
    return tally


def main(kills: int, kinds: list[str]) -> None:
    print("| store | kills | confirmed changes | lost | cells other than confirmed | "
          "requests under way | of them not written | written, and counted once | "
          "back after, s (median) |")  # fmt: skip
    print("|---" * 9 + "|")
    for seed, kind in enumerate(kinds):
        found = run(kind, kills, seed)
        print(f"| {kind} | {found.kills} | {found.confirmed:,} | {found.lost} | "
              f"{found.wrong_cells} | {found.under_way} | {found.not_written} | {found.written} | "
              f"{np.median(found.back):.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 20, words[1:] or ["sqlite", "postgresql"])
