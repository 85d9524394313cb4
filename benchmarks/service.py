"""The service under load and abuse, beside two peers with the same model: results/service.md.

    python benchmarks/service.py ../shared/data/pbc --litserve FOLDER --out results/service.md

FOLDER is where ``uv pip install --target FOLDER litserve`` put LitServe; without it that peer is
left out. Both peers find and cut cells exactly as Leuko does and average the same eight views;
the plain one is FastAPI with a PyTorch network, as most people write it; LitServe is given Leuko's
own predictor, so that only the serving differs. One client program asks all: raw sockets, one
thread, keep-alive, and it waits as long as Retry-After says. Every service gets the same two cores
as the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from fastapi import FastAPI, UploadFile

from provenance import head

CLIENTS = (1, 4, 16, 64, 200)
ROUNDS = 4
TEMPORARY = tempfile.mkdtemp(prefix="leuko-service-")


# --- the services ---------------------------------------------------------------------------------


def make_eager(predictor: Any) -> Callable[[Any], Any]:
    """The shipped network in PyTorch: cells (N, S, S, 3) to the mean of their views, (N, K)."""
    import torch

    from leuko.learning.batches import turn_views
    from leuko.learning.models import build
    from leuko.learning.parts import read_tensors

    facts = predictor.bundle.facts
    data = (predictor.bundle.path / "weights.safetensors").read_bytes()
    weights, _ = read_tensors("weights.safetensors", data)
    size, views = facts.preprocessing.size, facts.preprocessing.views
    network = build(facts.architecture, len(facts.classes), size=size, seed=0)
    network.load_state_dict({
        name: torch.from_numpy(np.array(w, np.float32 if w.ndim else w.dtype))
        for name, w in weights.items()
    })  # fmt: skip
    network.eval()
    mean = torch.tensor(facts.preprocessing.mean).view(1, 3, 1, 1)
    deviation = torch.tensor(facts.preprocessing.deviation).view(1, 3, 1, 1)

    def answer(cells: Any) -> Any:
        turned = [np.ascontiguousarray(v) for v in turn_views(cells, views)]
        with torch.inference_mode():
            seen = torch.from_numpy(np.concatenate(turned)).permute(0, 3, 1, 2) / 255
            told = network((seen - mean) / deviation).softmax(1)
        return told.reshape(views, len(cells), -1).mean(0)

    return answer


def make_plain_app() -> Any:
    """A service as it is usually written: FastAPI, PyTorch, no limits."""
    import leuko
    from leuko.use.inputs import Item

    predictor = leuko.load()
    eager = make_eager(predictor)
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/api/v1/predict")
    def predict(files: list[UploadFile]) -> dict[str, Any]:
        items = [Item(one.filename or "", one.file.read()) for one in files]
        found = [cell.pixels for one in predictor.prepare(items).ready for cell in one]
        if not found:
            return {"cells": []}
        rows = eager(np.stack(found)).tolist()
        return {"cells": [dict(zip(predictor.classes, row, strict=True)) for row in rows]}

    return app


def serve_plain(port: int) -> None:
    import uvicorn

    uvicorn.run(make_plain_app(), port=port, log_level="error", access_log=False)


class Process:
    """A service as a process of its own."""

    def __init__(self, kind: str, litserve: Path | None) -> None:
        self.kind, self.port = kind, find_port()
        words = [sys.executable, __file__, "--serve", kind, "--port", str(self.port)]
        env = dict(os.environ)
        if kind.startswith("leuko"):
            store = Path(TEMPORARY) / f"{self.port}.db"
            words = [sys.executable, "-m", "leuko.cli", "serve", "--port", str(self.port)]
            words += ["--store", str(store)]
            words += ["--engine", "openvino"] if kind.endswith("openvino") else []
        elif kind == "litserve":
            script = Path(__file__).with_name("service_litserve.py")
            words = [sys.executable, str(script), str(self.port)]
            env["PYTHONPATH"] = str(litserve)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env,
            start_new_session=True,
        )  # fmt: skip

    def wait(self, path: str = "/ready", seconds: float = 180) -> float:
        """Waits for a path to answer 200; seconds since the start."""
        while time.monotonic() - self.began < seconds:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    return time.monotonic() - self.began
            except OSError:
                time.sleep(0.01)
        raise SystemExit(f"{self.kind} didn't start")

    def memory(self) -> float:
        """MiB, of all its processes."""
        group = os.getpgid(self.process.pid)
        total = 0.0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getpgid(int(status.parent.name)) == group:
                    total += int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024
            except (OSError, TypeError):
                continue
        return total

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        return sum(float(v) for v in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M))

    def stop(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):  # LitServe leaves a worker behind
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(10)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


# --- the client -----------------------------------------------------------------------------------


def write_request(data: bytes) -> bytes:
    body = (
        b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        + data + b"\r\n--xyz--\r\n"
    )  # fmt: skip
    return (
        b"POST /api/v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: multipart/form-data; boundary=xyz\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


@dataclass
class Told:
    """What a crowd of clients was told."""

    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    took: float = 0.0

    @property
    def rate(self) -> float:
        return self.codes["200"] / self.took

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.seconds, q)) * 1000 if self.seconds else float("nan")


class _Client:
    def __init__(self, port: int) -> None:
        self.port = port
        self.link: socket.socket | None = None
        self.found = b""
        self.until = 0.0  # when it asks again
        self.began = 0.0


def ask(
    port: int, requests: list[bytes], clients: int, *, seconds: float = 1e9, most: int = 10**9,
    patient: bool = True,
) -> Told:  # fmt: skip
    """Lets clients ask, each as soon as it was answered.

    Args:
        port: Of the service.
        requests: Sent in turn.
        clients: At a time.
        seconds: Until no more is asked.
        most: Requests.
        patient: Waits as long as Retry-After says.
    """
    told, selector = Told(), selectors.DefaultSelector()
    crowd = [_Client(port) for _ in range(clients)]
    asked, began = 0, time.monotonic()
    busy: set[int] = set()
    idle = list(crowd)
    while True:
        now = time.monotonic()
        over = now - began > seconds or asked >= most
        if over and not busy:
            break
        for client in [c for c in idle if c.until <= now] if not over else []:
            idle.remove(client)
            try:
                if client.link is None:
                    client.link = socket.create_connection(("127.0.0.1", port), timeout=30)
                    selector.register(client.link, selectors.EVENT_READ, client)
                client.link.sendall(requests[asked % len(requests)])
            except OSError:
                told.codes["reset"] += 1
                _drop(selector, client)
                idle.append(client)
                continue
            asked += 1
            client.began, client.found = time.monotonic(), b""
            busy.add(id(client))
        for key, _ in selector.select(0.02):
            client = key.data
            try:
                piece = client.link.recv(1 << 16)
            except OSError:
                piece = b""
            if not piece:
                if id(client) in busy:
                    told.codes["reset"] += 1
                    busy.discard(id(client))
                    idle.append(client)
                _drop(selector, client)
                continue
            client.found += piece
            head, mark, body = client.found.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if not mark or length is None or len(body) < int(length[1]):
                continue
            code = head[9:12].decode()
            told.codes[code] += 1
            busy.discard(id(client))
            idle.append(client)
            client.until = 0.0
            if code == "200":
                told.seconds.append(time.monotonic() - client.began)
            elif patient:
                after = re.search(rb"(?i)retry-after: (\d+)", head)
                client.until = time.monotonic() + (int(after[1]) if after else 0)
    told.took = time.monotonic() - began
    for client in crowd:
        _drop(selector, client)
    return told


def _drop(selector: selectors.BaseSelector, client: _Client) -> None:
    if client.link is not None:
        selector.unregister(client.link)
        client.link.close()
        client.link = None


# --- what is measured -----------------------------------------------------------------------------


def measure_load(
    kinds: list[str], requests: list[bytes], seconds: float, litserve: Path | None
) -> list[dict[str, Any]]:
    """The same crowds for each service, in `ROUNDS` turns, so that all meet the same machine."""
    services = {kind: Process(kind, litserve) for kind in kinds}
    for service in services.values():
        service.wait()
        ask(service.port, requests, 4, most=40)  # warm
    rows = []
    for clients in CLIENTS:
        counted = {k: read_answers(s) for k, s in services.items() if k.startswith("leuko")}
        told: dict[str, list[Told]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, service in services.items():
                told[kind].append(ask(service.port, requests, clients, seconds=seconds / ROUNDS))
        for kind, service in services.items():
            after = read_answers(service) if kind in counted else None
            whole = join(told[kind])
            rows.append({
                "service": kind, "clients": clients, "rate": whole.rate,
                "rates": [one.rate for one in told[kind]],
                "p50": whole.quantile(0.5), "p99": whole.quantile(0.99),
                "codes": dict(whole.codes), "memory": service.memory(),
                "within": None if after is None else bound(counted[kind], after),
            })  # fmt: skip
            print(rows[-1], flush=True)
    for service in services.values():
        service.stop()
    return rows


def join(rounds: list[Told]) -> Told:
    return Told(
        sum((one.codes for one in rounds), Counter()),
        [seconds for one in rounds for seconds in one.seconds],
        sum(one.took for one in rounds),
    )


def measure_parts(paths: list[Path]) -> dict[str, float]:
    """Milliseconds on one core that an answer consists of, the least of five turns each."""
    import torch

    import leuko
    from leuko.use.inputs import Item

    torch.set_num_threads(1)
    predictor = leuko.load(threads=1)
    items = [Item(path.name, path.read_bytes()) for path in paths]
    prepared = [predictor.prepare([item]) for item in items]
    cells = [one.ready[0][0].pixels[None] for one in prepared if one.ready[0]]
    eager = make_eager(predictor)
    parts: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "read, find, cut, describe": (lambda item: predictor.prepare([item]), items),
        "network, ONNX Runtime": (predictor.bundle.answer, cells),
        "the same, distances to what is known": (
            lambda one: list(predictor.conclude(one)), prepared
        ),
        "network, PyTorch": (eager, cells),
    }  # fmt: skip
    least = dict.fromkeys(parts, float("inf"))
    for _ in range(5):
        for name, (work, given) in parts.items():
            began = time.perf_counter()
            for one in given:
                work(one)
            least[name] = min(least[name], (time.perf_counter() - began) / len(given) * 1000)
    return {**least, **measure_convolutions(predictor, cells)}


def measure_convolutions(predictor: Any, cells: list[Any]) -> dict[str, float]:
    """Milliseconds of the network's convolutions, by ONNX Runtime's profile; their GFLOP/s."""
    import onnxruntime

    from leuko.learning.batches import turn_views
    from leuko.learning.inference import INPUT
    from leuko.learning.models import build, count_flops

    facts = predictor.bundle.facts
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = f"{TEMPORARY}/profile"
    session = onnxruntime.InferenceSession(str(predictor.bundle.path / "model.onnx"), options)
    views = facts.preprocessing.views
    for one in cells:
        session.run(None, {INPUT: np.concatenate(list(turn_views(one, views)))})
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    spent = sum(
        event["dur"] for event in events
        if event.get("args", {}).get("op_name") == "Conv" and event["name"].endswith("kernel_time")
    )  # fmt: skip
    ms = spent / 1000 / len(cells)
    network = build(facts.architecture, len(facts.classes), size=facts.preprocessing.size, seed=0)
    flops = views * count_flops(network, facts.preprocessing.size)
    return {f"convolutions of ONNX Runtime's, with profiling ({flops / ms / 1e6:.0f} GFLOP/s)": ms}


def read_answers(service: Process) -> dict[float, float]:
    """Answers within so many seconds of being let in, as the service counts them."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics").read().decode()
    found = re.findall(r'leuko_answer_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    return {float(le): float(n) for le, n in found}


def bound(before: dict[float, float], after: dict[float, float]) -> tuple[float, int]:
    """The least bucket that holds 99 % of the answers; how many answers."""
    counts = {le: after[le] - before.get(le, 0) for le in after}
    total = counts[float("inf")]
    return min(le for le, n in counts.items() if n >= 0.99 * total), int(total)


def measure_shedding(service: Process, requests: list[bytes]) -> Counter[str]:
    """A crowd that doesn't wait: at least a thousand refusals."""
    codes: Counter[str] = Counter()
    while codes["503"] < 1000:
        codes += ask(service.port, requests, 100, seconds=3, patient=False).codes
    return codes


def measure_growth(service: Process, requests: list[bytes], number: int) -> tuple[float, float]:
    """MiB before and after many requests."""
    bad = [write_request(b"no picture"), write_request(requests[0][:400])]
    ask(service.port, [requests[0], *bad], 4, most=300)
    before = service.memory()
    ask(service.port, [requests[0], *bad * 2], 4, most=number)
    return before, service.memory()


def measure_flood(service: Process) -> tuple[float, str]:
    """300 MB in chunks: MiB that they cost, and what was answered."""
    before = high_water(service)
    piece = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    head = write_request(b"").partition(b"\r\n\r\n")[0]
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    first = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as link:
        link.sendall(head + b"\r\n\r\n" + b"%x\r\n%s\r\n" % (len(first), first))
        for _ in range(300):
            link.sendall(piece)
        link.sendall(b"0\r\n\r\n")
        answer = link.recv(1 << 16)
    return high_water(service) - before, answer[9:12].decode()


def high_water(service: Process) -> float:
    text = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024


async def measure_slow(service: Process, request: bytes) -> dict[str, Any]:
    """300 slow clients: how long the last of each kind is held, and how others fare meanwhile."""
    head = request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    closed: dict[str, list[float]] = {"heads": [], "bodies": [], "readers": []}
    live: list[float] = []
    good: Counter[str] = Counter()

    def count() -> int:
        return sum(len(one) for one in closed.values())

    async def crawl(kind: str, first: bytes, trickle: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        began = time.monotonic()
        writer.write(first)
        gone = asyncio.ensure_future(reader.read(-1))
        while not gone.done() and time.monotonic() - began < 40:
            if trickle:
                writer.write(b"a")
            await asyncio.wait({gone}, timeout=1)
        closed[kind].append(time.monotonic() - began)
        gone.cancel()
        writer.close()

    async def read_slowly(number: int) -> None:
        """Each asks for 20 MB and reads nothing; the service's own table says who is left."""
        waiting = {}
        for _ in range(number):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            link.connect(("127.0.0.1", service.port))
            link.setblocking(False)
            waiting[link] = time.monotonic()
            ask_much = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 300
            await asyncio.get_running_loop().sock_sendall(link, ask_much)
        while waiting:
            await asyncio.sleep(0.25)
            there = connections_of(service)
            for link, began in list(waiting.items()):
                seconds = time.monotonic() - began
                if link.getsockname()[1] not in there or seconds > 40:
                    closed["readers"].append(seconds)
                    del waiting[link]
                    link.close()

    async def ask_meanwhile() -> None:
        loop = asyncio.get_running_loop()
        while count() < 300:
            begun = time.monotonic()
            await loop.run_in_executor(
                None, lambda: urllib.request.urlopen(f"http://127.0.0.1:{service.port}/live").read()
            )
            live.append(time.monotonic() - begun)
            good.update((await loop.run_in_executor(
                None, lambda: ask(service.port, [request], 1, most=1)
            )).codes)  # fmt: skip
            await asyncio.sleep(0.05)

    half = b"GET / HTTP/1.1\r\nHost: 127"
    await asyncio.gather(
        ask_meanwhile(),
        *[crawl("heads", half, trickle=False) for _ in range(200)],
        *[crawl("bodies", head, trickle=True) for _ in range(50)],
        read_slowly(50),
    )
    return {
        "closed": count(), "longest": {kind: max(one) for kind, one in closed.items()},
        "live": len(live), "live_p99": float(np.quantile(live, 0.99)), "good": dict(good),
    }  # fmt: skip


def connections_of(service: Process) -> set[int]:
    """Remote ports of its open connections."""
    open_ones = set()
    for link in Path(f"/proc/{service.process.pid}/fd").iterdir():
        try:
            open_ones.add(str(link.readlink()))
        except OSError:
            continue
    lines = Path(f"/proc/{service.process.pid}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {int(row[2].rpartition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in open_ones}


def measure_drain(repeats: int, requests: list[bytes]) -> list[tuple[int, float, int]]:
    """SIGTERM with 12 requests under way: how many were answered 200, seconds, exit code."""
    found = []
    for _ in range(repeats):
        service = Process("leuko", None)
        service.wait()
        links = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(12)]
        for link, request in zip(links, requests, strict=False):
            link.sendall(request[:-100])
        time.sleep(0.2)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        good = 0
        for link, request in zip(links, requests, strict=False):
            link.sendall(request[-100:])
            good += link.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            link.close()
        code = service.process.wait(20)
        found.append((good, time.monotonic() - began, code))
    return found


def measure_start(repeats: int) -> list[tuple[float, float]]:
    """Seconds to the first page and to readiness."""
    found = []
    for _ in range(repeats):
        service = Process("leuko", None)
        found.append((service.wait("/"), service.wait("/ready")))
        service.stop()
    return found


# --- the report -----------------------------------------------------------------------------------


def tell_parts(parts: dict[str, float]) -> list[str]:
    rows = [f"| {name} | {ms:.1f} |" for name, ms in parts.items()]
    told = "What an answer consists of, on one core, in ms for a picture with one cell (`--parts`):"
    return [told, "", "| part | ms |", "|---|--:|", *rows, ""]


def write_report(facts: dict[str, Any]) -> str:
    load, lines = facts["load"], []
    add: Callable[[str], None] = lines.append
    command = "uv run python benchmarks/service.py ../shared/data/pbc --litserve FOLDER"
    lines += head("The service under load and abuse", f"{command} --out results/service.md")
    add(f"Made by `benchmarks/service.py` in {facts['minutes']:.0f} minutes on {facts['cores']} "
        f"cores, which the client shared; load of the machine by others at the start: "
        f"{facts['load_before']:.1f}. The shipped model ({facts['model']}), "
        f"{facts['pictures']} pictures of PBC with one cell each, one per request. Both peers find "
        "and cut cells as Leuko does; *plain* is FastAPI with the network in PyTorch, *litserve* "
        "is LitServe 0.2 around Leuko's predictor.\n")  # fmt: skip
    add("| clients | service | answers/s, each round | of Leuko's | p50 ms | p99 ms | told | MiB |")
    add("|--:|---|--:|--:|--:|--:|---|--:|")
    for clients in CLIENTS:
        rows = [row for row in load if row["clients"] == clients]
        own = next(row["rate"] for row in rows if row["service"] == "leuko")
        for row in rows:
            codes = ", ".join(f"{n:,} × {code}" for code, n in sorted(row["codes"].items()))
            each = ", ".join(f"{rate:.0f}" for rate in row["rates"])
            add(
                f"| {clients} | {row['service']} | {row['rate']:.1f} ({each}) | "
                f"{row['rate'] / own:.2f} | "
                f"{row['p50']:.0f} | {row['p99']:.0f} | {codes} | {row['memory']:.0f} |"
            )
    add(
        "\nClients wait as long as `Retry-After` says. Times are the client's, of answers of 200.\n"
    )
    lines += tell_parts(facts["parts"])
    add("From being let in to the answer, as the service counts it, 99 of 100 answers within:\n")
    add("| service | clients | s | answers |\n|---|--:|--:|--:|")
    for row in load:
        if row["within"]:
            within, answers = row["within"]
            add(f"| {row['service']} | {row['clients']} | {within:g} | {answers:,} |")
    shed, slow = facts["shed"], facts["slow"]
    codes = ", ".join(f"{n:,} × {code}" for code, n in sorted(shed.items()))
    add(f"\n- **Turned away.** 100 clients that don't wait: {codes}.")
    before, after = facts["growth"]
    add(f"- **Memory.** {facts['number']:,} requests (one in five a picture, the rest damaged): "
        f"{before:.0f} → {after:.0f} MiB.")  # fmt: skip
    cost, code = facts["flood"]
    add(f"- **300 MB in chunks** cost {cost:.1f} MiB and were answered {code}.")
    held = ", ".join(f"{seconds:.1f}" for seconds in slow["longest"].values())
    add(f"- **Slow clients.** 200 half heads, 50 bodies of a byte a second, 50 that don't read: "
        f"all {slow['closed']} closed, the last of each after {held} s; meanwhile `/live` "
        f"answered {slow['live']} times, p99 {slow['live_p99'] * 1000:.0f} ms, and predictions: "
        f"{slow['good']}.")  # fmt: skip
    drained = facts["drain"]
    answered, slowest = sum(d[0] for d in drained), max(d[1] for d in drained)
    add(f"- **End.** SIGTERM with 12 requests half sent, {len(drained)} times: {answered} of "
        f"{12 * len(drained)} answered 200, the slowest end {slowest:.1f} s, exit codes "
        f"{sorted({d[2] for d in drained})}.")  # fmt: skip
    page, ready = (median(s[i] for s in facts["start"]) for i in (0, 1))
    add(f"- **Start.** Median of {len(facts['start'])}: first page after {page:.1f} s, ready after "
        f"{ready:.1f} s.")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--litserve", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=16)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--parts", action="store_true", help="only what an answer consists of")
    parser.add_argument("--serve")
    parser.add_argument("--port", type=int)
    asked = parser.parse_args()
    if asked.serve:
        serve_plain(asked.port)
        return
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    began, load_before = time.monotonic(), os.getloadavg()[0]
    found = sorted(asked.data.rglob("*.jpg"))
    chosen = found[:: max(1, len(found) // 64)][:64]
    requests = [write_request(path.read_bytes()) for path in chosen]
    parts = measure_parts(chosen)
    if asked.parts:
        print("\n".join(tell_parts(parts)))
        return
    start = measure_start(5)
    kinds = ["leuko", "leuko openvino", "plain"] + (["litserve"] if asked.litserve else [])
    load = measure_load(kinds, requests, asked.seconds, asked.litserve)
    service = Process("leuko", None)
    service.wait()
    shed = measure_shedding(service, requests)
    growth = measure_growth(service, requests, asked.number)
    flood = measure_flood(service)
    slow = asyncio.run(measure_slow(service, requests[0]))
    told = json.loads(
        urllib.request.urlopen(f"http://127.0.0.1:{service.port}/api/v1/model").read()
    )
    service.stop()
    facts = {
        "parts": parts,
        "load": load, "shed": shed, "growth": growth, "flood": flood, "slow": slow, "start": start,
        "drain": measure_drain(5, requests), "model": told["architecture"], "number": asked.number,
        "pictures": len(requests), "cores": len(os.sched_getaffinity(0)),
        "load_before": load_before, "minutes": (time.monotonic() - began) / 60,
    }  # fmt: skip
    report = write_report(facts)
    print(report)
    if asked.out:
        asked.out.write_text(report)


if __name__ == "__main__":
    main()
