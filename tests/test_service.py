"""The service as its users and its abusers meet it: a process, asked over HTTP."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

import leuko
from leuko.cli import main
from leuko.data.drawing import draw_field
from leuko.data.image import encode_png, resize_image
from leuko.service.guard import POLICY
from running_service import Service, exchange, form, post, read_all
from small_bundle import make_bundle
from test_image import KINDS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "small").path


@pytest.fixture(scope="module")
def service(tmp_path_factory, bundle: Path) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"), bundle)
    running.wait_until_ready()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def fields() -> list[bytes]:
    rng = np.random.default_rng(4)
    drawn = [draw_field(rng, kinds, mark=False, blur=0.8).image
             for kinds in (("LYMPHOCYTE", "NEUTROPHIL"), ("EOSINOPHIL",), ())]  # fmt: skip
    return [encode_png(resize_image(image, 240, 320)) for image in drawn]


def predict(client: httpx.Client, *files: bytes, name: str = "a.png") -> httpx.Response:
    return client.post("/api/v1/predict", files=[("files", (name, data)) for data in files])


def test_answers_are_those_of_the_library_bit_by_bit(client, fields, bundle):
    expected = leuko.load(bundle, threads=1).predict(fields).to_json()
    told = predict(client, *fields, b"no picture").json()
    for row in (*told["cells"], *expected["cells"]):
        row.pop("image")
    assert told["cells"] == expected["cells"]
    assert (told["bundle"], told["classes"]) == (expected["bundle"], expected["classes"])
    assert [row["reason"] for row in told["set_aside"]] == ["not_an_image"]


def test_neighbours_change_no_answer(client, fields):
    alone = [predict(client, data).json() for data in fields]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for data, told in zip(
                fields, pool.map(lambda d: predict(client, d), fields), strict=True
            ):
                if told.status_code == 200:
                    assert told.json() == alone[fields.index(data)]


def test_every_kind_of_file_has_the_outcome_of_the_library(client, service):
    before = service.memory("VmHWM")
    for kind, (data, reason) in KINDS.items():
        answer = predict(client, data, name=f"{kind}.jpg")
        assert answer.status_code == 200, (kind, answer.text)
        assert [row["reason"] for row in answer.json()["set_aside"]] == [reason] * bool(reason), (
            kind
        )
    assert len(KINDS) > 100
    assert service.memory("VmHWM") - before < 450
    assert list(service.temporary.iterdir()) == []
    assert client.get("/live").status_code == 200


def test_the_log_holds_hash_size_and_outcome_but_no_name(client, service, fields):
    answer = predict(client, fields[1], name="Mustermann, Erika.png")
    number = answer.headers["x-request-id"]
    time.sleep(0.3)
    lines = [line for line in service.log if number in line]
    assert any(re.search(r"sha256=[0-9a-f]{64} bytes=\d+ outcome=answered", x) for x in lines)
    assert any("POST /api/v1/predict 200" in line for line in lines)
    assert "Mustermann" not in "".join(service.log)


def test_hostile_names_come_back_as_text(client):
    for name in (
        "../../etc/passwd",
        "<img src=x onerror=alert(1)>",
        "a\r\nX: y",
        "\x1b[31m",
        "=1+1",
    ):
        (row,) = predict(client, b"nothing", name=name).json()["set_aside"]
        assert row["image"].isprintable()
        assert len(row["image"]) <= 200
    assert len(predict(client, b"x", name="n" * 3000).json()["set_aside"][0]["image"]) == 200


def test_every_answer_carries_the_headers_of_safety(client, fields):
    for answer in (
        client.get("/"), client.get("/nothing"), client.get("/ready"), client.post("/ready"),
        predict(client, fields[0]), client.post("/api/v1/predict"),
        client.get("/", headers={"Host": "elsewhere.example"}),
    ):  # fmt: skip
        head = answer.headers
        assert head["content-security-policy"] == POLICY
        assert "unsafe" not in POLICY
        assert head["x-content-type-options"] == "nosniff"
        assert head["referrer-policy"] == "no-referrer"
        assert re.fullmatch("[0-9a-f]{16}", head["x-request-id"])
        assert "server" not in head
        assert "access-control-allow-origin" not in head
    assert client.get("/api/v1/model").headers["cache-control"] == "no-store"


def test_bodies_above_the_limit_are_cut_off_and_cost_little(service):
    piece = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    begin = post(b"", "Transfer-Encoding: chunked")
    first = form(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    before = service.memory("VmHWM")
    answer = exchange(
        service.port, begin, b"%x\r\n%s\r\n" % (len(first), first), *[piece] * 100, b"0\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert b"connection: close" in answer
    assert service.memory("VmHWM") - before < 25
    declared = exchange(service.port, post(b"", length=300 << 20))
    assert declared.startswith(b"HTTP/1.1 413 ")
    assert json.loads(declared.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"
    text = b'{"token": "' + b"a" * (2 << 20) + b'"}'
    with httpx.Client(base_url=service.url) as client:
        assert client.post("/session", content=text).status_code == 413
        chunked = client.post("/session", content=iter([text]))
        assert chunked.status_code == 413
        assert chunked.json()["error"]["code"] == "too_large"
    assert list(service.temporary.iterdir()) == []


MULTIPART = "multipart/form-data; boundary=xyz"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", MULTIPART, 422, "multipart"),
        (b"--xyz--\r\n", MULTIPART, 422, "no_file"),
        (form(b"x", field="others"), MULTIPART, 422, "no_file"),
        (form(b"x").replace(b'; filename="a.png"', b""), MULTIPART, 422, "no_file"),
        (form(b"x").replace(b'name="files"; ', b""), MULTIPART, 422, "multipart"),
        (form(b"x")[:-9], MULTIPART, 422, "multipart"),
        (form(b"x"), "multipart/form-data", 422, "multipart"),
        (form(b"x"), "multipart/form-data; boundary=" + "b" * 300, 422, "multipart"),
        (form(b"x").replace(b"a.png", b"a" * 9000), MULTIPART, 422, "multipart"),
        (form(b"x")[:-9] * 1001 + b"--xyz--\r\n", MULTIPART, 413, "too_many_files"),
        (form(b"x")[:-9] * 65 + b"--xyz--\r\n", MULTIPART, 413, "too_many_files"),
        (form(b"x")[:-9] + form(b"x")[:-9], MULTIPART, 422, "multipart"),
        (form(b"x").replace(b'; filename="a.png"', b"")[:-9] * 40, MULTIPART, 422, "multipart"),
        (form(b"x", boundary="other"), MULTIPART, 422, "multipart"),
        (b"\x89PNG", "image/png", 415, "content_type"),
        (b"[" * 250_000, "application/json", 415, "content_type"),
    ],
)  # fmt: skip
def test_what_isnt_pictures_in_multipart_is_refused(client, body, kind, status, code):
    answer = client.post("/api/v1/predict", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_odd_requests_are_refused_and_harm_nothing(service, client):
    host = b"Host: localhost\r\n"
    for raw, status in (
        (b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * (1 << 16) + b"\r\n\r\n", b"4"),
        (b"GET / HTTP/1.1\r\n" + host * 2 + b"\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (post(b"", length=-5), b"400"),
        (post(b"", "Content-Length: 3", length=4), b"400"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"\x16\x03\x01" + bytes(200), b"400"),
        (b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n", b"404"),
        (b"GET /%00 HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n", b"404"),
    ):
        assert exchange(service.port, raw)[9:12].startswith(status), raw[:60]
    deep = client.post(
        "/session", content=b"[" * 250_000, headers={"Content-Type": "application/json"}
    )
    assert (deep.status_code, deep.json()["error"]["code"]) == (400, "invalid")
    ranges = {"Range": "bytes=" + ",".join(f"{i}-{i}" for i in range(1000))}
    assert client.get("/", headers=ranges).status_code == 200
    assert client.get("/live").status_code == 200
    assert "Traceback" not in "".join(service.log)


def test_six_byte_chunks_and_expect_continue_work(service, fields):
    body = form(fields[1])
    pieces = [
        b"%x\r\n%s\r\n" % (len(p), p) for p in (body[i : i + 6] for i in range(0, len(body), 6))
    ]
    close = "Connection: close"
    told = exchange(
        service.port,
        post(b"", "Transfer-Encoding: chunked", close),
        b"".join(pieces) + b"0\r\n\r\n",
    )
    assert told.startswith(b"HTTP/1.1 200 ")
    told = exchange(service.port, post(body, "Expect: 100-continue", close), body, pause=0.2)
    assert told.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 " in told


def test_clients_that_go_away_leave_nothing_behind(service, client, fields):
    client.get("/live")
    before = service.open_files()
    body = form(fields[0])
    for cut in np.linspace(10, len(body), 40).astype(int):
        with socket.create_connection(("127.0.0.1", service.port)) as link:
            link.sendall(post(body) + body[:cut])
    for _ in range(100):
        answer = predict(client, fields[1])
        if answer.status_code == 200:
            break
        time.sleep(0.1)
    assert answer.status_code == 200
    time.sleep(0.5)
    assert service.open_files() <= before + 2
    assert list(service.temporary.iterdir()) == []
    assert "Traceback" not in "".join(service.log)


def test_metrics_are_told(client, fields):
    predict(client, fields[1])
    text = client.get("/metrics").text
    assert re.search(
        r'leuko_requests_total\{method="POST",route="/api/v1/predict",status="200"\} \d', text
    )
    assert re.search(r'leuko_pictures_total\{outcome="answered"\} \d', text)
    assert "leuko_ready 1.0" in text
    assert "leuko_answer_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text


def test_every_status_that_occurs_is_documented(client, service):
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    seen = Counter(
        (m[1], m[2], m[3])
        for line in service.log
        if (m := re.search(r" ([A-Z]+) (/\S*) (\d{3}) bytes=", line))
    )
    assert len(seen) > 5
    for method, route, status in seen:
        if route in paths and status not in ("405", "499"):  # 499: nobody waited for it
            assert status in paths[route][method.lower()]["responses"], (method, route, status)
    for route, operations in paths.items():
        if "/slides" not in route and route != "/session":
            for operation in operations.values():
                good = operation["responses"]["200"]["content"]
                assert "example" in good.get("application/json", {"example": "of text"}), route


def test_it_runs_without_torch_and_ends_when_asked(tmp_path, bundle, fields):
    running = Service(tmp_path, bundle)
    running.wait_until_ready()
    body = form(fields[1])
    links = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(12)]
    for link in links:  # half of each request is there when the end is asked for
        link.sendall(post(body) + body[:1000])
    with httpx.Client(base_url=running.url) as client:
        assert predict(client, fields[0]).status_code == 200
    assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text()
    ended: list[int] = []
    stopper = threading.Thread(target=lambda: ended.append(running.stop()))
    stopper.start()
    time.sleep(0.5)
    with pytest.raises(OSError):  # noqa: PT011
        socket.create_connection(("127.0.0.1", running.port))
    for link in links:
        link.sendall(body[1000:])
        assert read_all(link).startswith(b"HTTP/1.1 200 ")
        link.close()
    stopper.join(20)
    assert ended == [0]
    assert "Traceback" not in "".join(running.log)


def test_a_broken_model_ends_the_service_with_a_sentence(tmp_path, bundle):
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in bundle.iterdir():
        (broken / part.name).write_bytes(part.read_bytes())
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    running = Service(tmp_path, broken)
    assert running.process.wait(60) == 1
    running.stop()
    assert "weights.safetensors" in running.log[-1]
    assert "Traceback" not in "".join(running.log)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_others_are_let_in_only_with_a_token(host, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LEUKO_TOKEN", raising=False)
    assert main(["serve", "--host", host]) == 2
    assert "--token-file" in capsys.readouterr().err
    file = tmp_path / "token"
    file.write_text("a-token-that-is-long-enough")
    file.chmod(0o644)
    assert main(["serve", "--host", host, "--token-file", str(file)]) == 2
    assert "chmod 600" in capsys.readouterr().err
    file.write_text("short")
    file.chmod(0o600)
    assert main(["serve", "--host", host, "--token-file", str(file)]) == 2
    assert "at least 16" in capsys.readouterr().err
    assert main(["serve", "--token-file", str(tmp_path / "none")]) == 2
    assert "can't be read" in capsys.readouterr().err


def test_a_taken_port_is_named(service, capsys):
    assert main(["serve", "--port", str(service.port)]) == 2
    assert "--port" in capsys.readouterr().err
