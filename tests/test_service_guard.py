"""The service from within: who may ask, how long the queue is, how slow a client may be."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from leuko.data.image import encode_png
from leuko.errors import SettingsError
from leuko.service.app import create_app
from leuko.service.queue import LONGEST_WAIT
from leuko.service.refusals import Refusal
from leuko.service.server import listen, make_server
from leuko.service.settings import ServiceSettings, is_local
from leuko.use.cutting import Prepared
from leuko.use.inputs import Item
from leuko.use.predictor import Predictor, load
from running_service import form, post, read_all
from small_bundle import make_bundle

TOKEN = "a-token-that-is-long-enough"
PICTURE = encode_png(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8))


class Halting(Predictor):
    """Answers only while the gate is open."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor.bundle)
        self.gate = threading.Event()
        self.prepared = 0

    def prepare(self, items: list[Item], *, scale: float | None = None) -> Prepared:
        self.prepared += 1
        assert self.gate.wait(30)
        return super().prepare(items, scale=scale)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return load(make_bundle(tmp_path_factory.mktemp("model") / "small").path, threads=1)


@contextmanager
def serving(predictor: Predictor | None, **settings: Any) -> Iterator[Any]:
    """The real server in a thread; yields its port and the parts of its app."""
    chosen = ServiceSettings(port=0, **settings)
    listening = listen(chosen)
    app = create_app(predictor, None, chosen)
    server = make_server(app, chosen)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    server.port = listening.getsockname()[1]
    server.parts = app.state.parts
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    """One request without a socket."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as c:
            return await c.request(method, path, **more)

    return asyncio.run(send())


# --- who may ask ----------------------------------------------------------------------------------


def test_no_answer_waits_for_the_client_to_acknowledge_its_head() -> None:
    with (
        listen(ServiceSettings(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "127.0.0.1", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.0.0.1", "LOCALHOST:1", 200),
        ("127.0.0.1", "192.168.1.7:8000", 400),
        ("127.0.0.1", "evil.example", 400),
        ("127.0.0.1", "localhost.evil.example:8000", 400),
        ("127.0.0.1", "127.0.0.1.evil.example", 400),
        ("127.0.0.1", "", 400),
        ("127.0.0.1", "localhost:8000@evil.example", 400),
        ("0.0.0.0", "192.168.1.7:8000", 200),
        ("0.0.0.0", "evil.example", 400),
        ("0.0.0.0", "station.example:8000", 200),
    ],
)
def test_only_own_names_are_answered(bound: str, host: str, status: int):
    settings = ServiceSettings(host=bound, token=TOKEN, names=("station.example",))
    app = create_app(None, None, settings)
    for path in ("/live", "/", "/session"):
        answer = ask(app, "GET", path, headers={"Host": host})
        assert answer.status_code in ((200, 404) if status == 200 else (400,)), path
    if status == 400:
        assert answer.json()["error"]["code"] == "host"


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ({}, True),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://localhost:8001"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://localhost:8000.evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_other_pages_can_neither_change_nor_read(headers: dict[str, str], right: bool, predictor):
    app = create_app(predictor)
    for method, path, good in (
        ("POST", "/session", 204), ("DELETE", "/session", 204), ("GET", "/api/v1/model", 200),
    ):  # fmt: skip
        more = {"json": {}} if method == "POST" else {}
        answer = ask(app, method, path, headers=headers, **more)
        assert answer.status_code == (good if right else 403), (method, path)
        assert "access-control-allow-origin" not in answer.headers
    assert ask(app, "OPTIONS", "/api/v1/predict", headers=headers).status_code in (405, 403)


def test_the_token_opens_by_header_or_cookie_and_nothing_else_does(predictor):
    app = create_app(predictor, None, ServiceSettings(token=TOKEN))
    for headers in (
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer"}, {"Authorization": "Bearer ä".encode("latin-1")},
        {"Cookie": f"leuko_session={TOKEN}"}, {"Cookie": "leuko_session="},
        {"Cookie": "leuko_session=" + "0" * 64},
    ):  # fmt: skip
        for path in ("/api/v1/model", "/api/v1/openapi.json", "/metrics", "/docs", "/api/v1/x"):
            answer = ask(app, "GET", path, headers=headers)
            assert answer.status_code == 401, (headers, path)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert ask(app, "POST", "/api/v1/predict", headers=headers).status_code == 401
    open_to_all = [ask(app, "GET", path).status_code for path in ("/live", "/ready", "/session")]
    assert open_to_all == [200, 200, 200]
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(app, "GET", "/api/v1/model", headers=bearer).status_code == 200
    assert ask(app, "POST", "/session", json={"token": "wrong"}).status_code == 401
    logged_in = ask(app, "POST", "/session", json={"token": TOKEN})
    cookie = logged_in.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    kept = {"Cookie": cookie.partition(";")[0]}
    assert ask(app, "GET", "/api/v1/model", headers=kept).status_code == 200
    assert ask(app, "GET", "/session", headers=kept).json() == {"needed": True, "logged_in": True}
    assert ask(app, "GET", "/session").json() == {"needed": True, "logged_in": False}
    other = create_app(predictor, None, ServiceSettings(token="another-token-that-is-long"))
    assert ask(other, "GET", "/api/v1/model", headers=kept).status_code == 401
    assert "Max-Age=0" in ask(app, "DELETE", "/session", headers=kept).headers["set-cookie"]


def test_guessing_the_token_ends_in_429(predictor):
    app = create_app(predictor, None, ServiceSettings(token=TOKEN))
    codes = [ask(app, "POST", "/session", json={"token": f"{i}"}).status_code for i in range(12)]
    assert codes == [401] * 10 + [429] * 2
    last = ask(app, "POST", "/session", json={"token": TOKEN})
    assert (last.status_code, last.headers["retry-after"]) == (429, "60")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_a_token_is_asked_for_wherever_others_can_reach(host: str, local: bool):
    assert is_local(host) is local
    if not local:
        with pytest.raises(SettingsError, match="token"):
            ServiceSettings(host=host)
    assert ServiceSettings(host=host, token=TOKEN).host == host


# --- before, and when something breaks ------------------------------------------------------------


def test_until_the_model_is_checked_the_page_is_there_and_the_rest_says_wait():
    app = create_app()
    assert ask(app, "GET", "/live").status_code == 200
    for method, path in (("GET", "/ready"), ("GET", "/api/v1/model"), ("POST", "/api/v1/predict"),
                         ("GET", "/api/v1/slides")):  # fmt: skip
        answer = ask(app, method, path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        assert answer.json()["error"]["code"] == "starting"
    assert "leuko_ready 0.0" in ask(app, "GET", "/metrics").text


def test_a_fault_shows_no_inside(predictor, caplog):
    class Broken(Predictor):
        def prepare(self, items: Any, *, scale: float | None = None) -> Prepared:
            raise RuntimeError("secret /etc/path")

    app = create_app(Broken(predictor.bundle))
    answer = ask(app, "POST", "/api/v1/predict", files={"files": ("a.png", PICTURE)})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "fault"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" in caplog.text  # the log has it


def test_the_reference_is_a_page_without_scripts(predictor):
    answer = ask(create_app(predictor), "GET", "/docs")
    assert answer.status_code == 200
    assert "/api/v1/predict" in answer.text
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert "//" not in re.sub(r"http://localhost|http://127.0.0.1", "", answer.text).replace(
        "://…", ""
    )


# --- the queue ------------------------------------------------------------------------------------


def test_a_full_queue_says_so_cleanly_and_who_is_in_is_answered(predictor):
    halting = Halting(predictor)
    with serving(halting, shortest_queue=4, patience=0.0) as server:
        body = form(PICTURE + bytes(1 << 20))  # larger than any buffer on the way
        raw = post(body, "Connection: close") + body

        def send(_: int) -> bytes:
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
                link.sendall(raw)  # all of it, as simple clients do, before the answer is read
                return read_all(link)

        with ThreadPoolExecutor(40) as pool:
            told = [pool.submit(send, i) for i in range(40)]
            while sum(one.done() for one in told) < 36:
                time.sleep(0.02)
            assert httpx.get(f"http://127.0.0.1:{server.port}/live").status_code == 200
            halting.gate.set()
        answers = [one.result() for one in told]  # a reset would raise here
        codes = Counter(answer[9:12] for answer in answers)
        assert codes == {b"200": 4, b"503": 36}
        for answer in answers:
            if answer[9:12] == b"503":
                assert re.search(rb"\r\nretry-after: \d+\r\n", answer)
                assert b'"code": "busy"' in answer or b'"code":"busy"' in answer
        assert server.parts.queue.waiting == 0


def test_connections_stay_open_through_refusals(predictor):
    halting = Halting(predictor)
    with serving(halting, shortest_queue=1, patience=0.0) as server:
        url = f"http://127.0.0.1:{server.port}"
        files = {"files": ("a.png", PICTURE + bytes(300_000))}
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=30) as client:
            first = pool.submit(httpx.post, url + "/api/v1/predict", files=files, timeout=30)
            while halting.prepared == 0:
                time.sleep(0.01)
            codes = [client.post("/api/v1/predict", files=files).status_code for _ in range(100)]
            assert codes == [503] * 100
            halting.gate.set()
            assert first.result().status_code == 200
            assert client.post("/api/v1/predict", files=files).status_code == 200


def test_work_for_nobody_is_dropped(predictor):
    halting = Halting(predictor)
    with serving(halting, shortest_queue=30, patience=0.0) as server:
        body = form(PICTURE)
        links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for link in links:
            link.sendall(post(body) + body)
        queue = server.parts.queue
        wait_for(lambda: queue.waiting == 20)
        for link in links:
            link.close()
        wait_for(lambda: queue.waiting == 0)
        halting.gate.set()
        answer = httpx.post(
            f"http://127.0.0.1:{server.port}/api/v1/predict", files={"files": ("a", PICTURE)}
        )
        assert answer.status_code == 200
        assert halting.prepared <= 3  # two were being read when their clients went


def test_the_queue_is_as_long_as_patience_allows(predictor):
    async def fill() -> None:
        queue = create_app(halting, None, settings).state.parts.queue
        items = [Item("a", PICTURE)]
        works = [asyncio.ensure_future(queue.answer(items)) for _ in range(queue.limit)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal) as caught:
            await queue.answer(items)
        assert caught.value.retry_after >= 1
        halting.gate.set()
        assert all(len(told) == 1 for told in await asyncio.gather(*works))
        before = queue.limit
        for _ in range(60):
            await queue.run(lambda: time.sleep(0.0005))
        assert queue.limit > before  # the machine has proved to be faster than it was guessed
        assert await queue.run(lambda: 7, pictures=1000) == 7  # alone it may be anything
        queue.close()

    halting, settings = Halting(predictor), ServiceSettings(patience=0.35)
    asyncio.run(fill())


def test_who_is_turned_away_comes_back_after_those_before(predictor):
    async def fill() -> None:
        queue = create_app(halting, None, settings).state.parts.queue
        items = [Item("a", PICTURE)]
        work = asyncio.ensure_future(queue.answer(items))
        await asyncio.sleep(0.05)
        told = []
        for _ in range(400):
            with pytest.raises(Refusal) as caught:
                queue.check()
            told.append(caught.value.retry_after)
        assert told == sorted(told)
        assert (told[0], told[-1]) == (1, LONGEST_WAIT)
        assert told[100] >= 5  # at 0.05 s each
        halting.gate.set()
        await work
        queue.check()  # there is room
        queue.close()

    halting, settings = Halting(predictor), ServiceSettings(shortest_queue=1, patience=0.0)
    asyncio.run(fill())


@pytest.mark.parametrize(("goal", "share"), [(0.0, 0.4), (60.0, 1.0)])
def test_the_queue_is_shortened_while_answers_are_late(predictor, goal, share):
    async def fill() -> None:
        queue = create_app(predictor, None, ServiceSettings(goal=goal)).state.parts.queue
        for _ in range(20):
            await queue.run(lambda: None)
        assert queue._share == share
        queue.close()

    asyncio.run(fill())


def test_a_lone_request_lends_the_idle_cores_and_gets_the_same_bits(predictor):
    network = predictor.bundle.network
    cells = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    queue = create_app(predictor, None, ServiceSettings(workers=4)).state.parts.queue
    counts = []

    async def ask_several(n: int) -> None:
        go_on = threading.Event()
        works = [asyncio.ensure_future(queue.run(lambda: go_on.wait(30))) for _ in range(n)]
        await asyncio.sleep(0.05)
        counts.append(queue._count_idle())
        go_on.set()
        await asyncio.gather(*works)

    for n in (1, 2, 3, 4):
        asyncio.run(ask_several(n))
    assert counts == [4, 2, 1, 1]
    alone = network.answer(cells, views=8)
    for parts in (1, 2, 3, 5, 100):
        network.share(lambda parts=parts: parts, 4)
        for one, other in zip(alone, network.answer(cells, views=8), strict=True):
            assert np.array_equal(one, other)
    queue.close()


def test_bytes_that_wait_are_bounded(predictor):
    async def fill() -> None:
        queue = create_app(halting, None, settings).state.parts.queue
        first = asyncio.ensure_future(queue.answer([Item("a", PICTURE)]))
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal):
            await queue.answer([Item("a", PICTURE)])
        halting.gate.set()
        await first
        queue.close()

    halting = Halting(predictor)
    settings = ServiceSettings(queue_bytes=len(PICTURE) + 10)
    asyncio.run(fill())


# --- slow clients ---------------------------------------------------------------------------------


def wait_for(done: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_slow_clients_are_hung_up_on_and_others_dont_notice(predictor):
    with serving(predictor, receive_seconds=1.0) as server:
        address = ("127.0.0.1", server.port)
        began = time.monotonic()
        heads = [socket.create_connection(address) for _ in range(40)]
        silent = [socket.create_connection(address) for _ in range(10)]
        bodies = [socket.create_connection(address) for _ in range(20)]
        for link in heads:
            link.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        for link in bodies:
            link.sendall(post(b"", length=1000))
        readers = [slow_reader(address) for _ in range(10)]
        slow = heads + silent + bodies + readers
        trickle = heads[:20] + bodies
        good = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            while time.monotonic() - began < 60:
                for link in list(trickle):
                    try:
                        link.sendall(b"a")
                    except OSError:
                        trickle.remove(link)
                assert client.get("/live").status_code == 200
                assert (
                    client.post("/api/v1/predict", files={"files": ("a.png", PICTURE)}).status_code
                    == 200
                )
                good += 1
                client.get("/live", headers={"Connection": "close"})
                time.sleep(0.1)
                if len(server.server_state.connections) <= 1:
                    break
        assert len(server.server_state.connections) <= 1, "without deadlines they'd be there yet"
        assert good
        told = b"".join(drain(link) for link in heads[20:])
        assert told.count(b"HTTP/1.1 408 ") == 20
        for link in slow:
            link.close()


def slow_reader(address: tuple[str, int]) -> socket.socket:
    """Asks for much, and reads nothing."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    link.connect(address)
    link.sendall(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
    return link


def drain(link: socket.socket) -> bytes:
    link.settimeout(5)
    try:
        return read_all(link)
    except OSError:
        return b""


def test_a_slow_but_steady_upload_is_received(predictor):
    with serving(predictor, receive_seconds=2.0, slowest=500.0) as server:
        body = form(PICTURE)
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(post(body, "Connection: close"))
            for start in range(0, len(body), 300):
                link.sendall(body[start : start + 300])
                time.sleep(0.1)
            assert read_all(link).startswith(b"HTTP/1.1 200 ")


def test_too_many_connections_are_told(predictor):
    with serving(predictor, connections=5) as server:
        address = ("127.0.0.1", server.port)
        held = [socket.create_connection(address) for _ in range(5)]
        wait_for(lambda: len(server.server_state.connections) == 5)
        with socket.create_connection(address) as link:
            link.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = read_all(link)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        for link in held:
            link.close()
        wait_for(lambda: not server.server_state.connections)
        assert httpx.get(f"http://127.0.0.1:{server.port}/live").status_code == 200


def test_uploads_that_arrive_at_a_time_are_bounded(predictor):
    with serving(predictor, uploads=2) as server:
        address = ("127.0.0.1", server.port)
        held = [socket.create_connection(address) for _ in range(2)]
        for link in held:
            link.sendall(post(b"", length=1000))
        time.sleep(0.3)
        url = f"http://127.0.0.1:{server.port}/api/v1/predict"
        answer = httpx.post(url, files={"files": ("a.png", PICTURE)})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        for link in held:
            link.close()
        time.sleep(0.3)
        assert httpx.post(url, files={"files": ("a.png", PICTURE)}).status_code == 200


def test_static_files_stay_within_their_folder():
    app = create_app()
    root = Path(__file__).parent
    for path in (
        "/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", f"/{root}/conftest.py", "//etc/passwd",
        "/..\\app.py", "/icons/../../app.py",
    ):  # fmt: skip
        assert ask(app, "GET", path).status_code == 404, path
