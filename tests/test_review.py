"""The review API over HTTP, with the shell around it and a small real bundle behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from starlette.testclient import TestClient

from leuko.data.drawing import draw_field
from leuko.data.image import decode_image, encode_jpeg, encode_png, resize_image
from leuko.errors import LeukoError
from leuko.service.app import create_app
from leuko.service.settings import ServiceSettings
from leuko.service.store import Store
from leuko.use.differential import count_predictions
from leuko.use.predictor import Predictor, load
from leuko.use.record import read_record
from small_bundle import CLASSES, make_bundle

HOSTILE = "<script>alert(1)</script>\x00../../etc/passwd"
KINDS = ["NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("review")
    predictor = Predictor(make_bundle(folder / "bundle"))
    app = create_app(predictor, Store.open(folder / "leuko.db"))
    with TestClient(app, base_url="http://127.0.0.1") as opened:
        yield opened


def draw(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return encode_jpeg(draw_field(rng, KINDS, mark=False, blur=0.8).image)


class Slide:
    """A slide over HTTP, and one of its readings."""

    def __init__(self, client: TestClient, *, fields: int = 1, **facts: Any) -> None:
        self.client = client
        made = client.post("/api/v1/slides", json={"name": "Smear", "reader": "A", **facts})
        assert made.status_code == 201, made.text
        self.place = f"/api/v1/slides/{made.json()['id']}"
        self.path = f"{self.place}/readings/{made.json()['readings'][0]['id']}"
        for seed in range(fields):
            assert self.upload(draw(seed), f"field-{seed}.jpg").status_code == 201

    def upload(self, data: bytes, name: str = "field.jpg", key: str | None = None):
        head = {"Idempotency-Key": key} if key else {}
        files = {"file": (name, data)}
        return self.client.post(f"{self.place}/fields", files=files, headers=head)

    def read(self) -> dict[str, Any]:
        return self.client.get(self.path).json()

    def ids(self) -> list[int]:
        return [cell["id"] for cell in self.read()["cells"]]

    def change(self, kind: str, *cells: int, **facts: Any):
        seen = facts.pop("revision", None)
        seen = self.read()["revision"] if seen is None else seen
        body = {"id": str(uuid4()), "revision": seen, "kind": kind, "cells": cells, **facts}
        return self.client.post(f"{self.path}/changes", json=body)

    def sign(self, **facts: Any):
        body = {"name": "A", "revision": self.read()["revision"], "leave_unidentified": True}
        return self.client.post(f"{self.path}/signature", json={**body, **facts})


def test_from_an_image_to_a_signature(client: TestClient):
    slide = Slide(client, fields=2)
    reading = slide.read()
    cells = reading["cells"]
    assert len(cells) >= 4
    assert {*cells[0]["machine"]["probabilities"]} == set(CLASSES)
    field = client.get(slide.place).json()["fields"][0]
    assert field["cells"] == [c["id"] for c in cells if c["field"] == field["id"]]
    image = client.get(f"{slide.place}/fields/{field['id']}/image?width=100")
    assert image.headers["content-type"] == "image/jpeg"
    assert max(decode_image(image.content).shape) == 100
    for size, side in ((None, 256), (64, 64), (500, 500)):
        query = "" if size is None else f"?size={size}"
        found = client.get(f"{slide.path}/cells/{cells[0]['id']}/image{query}")
        assert max(decode_image(found.content).shape) <= side
    first = slide.change("label", cells[0]["id"], label="LYMPHOCYTE", by="A").json()
    assert first["revision"] == reading["revision"] + 1
    assert [c["id"] for c in first["cells"]] == [cells[0]["id"]]
    assert first["reading"]["undo"] == first["changes"][-1]["id"]
    refused = slide.change("undo", change=first["reading"]["undo"], by="B")
    assert refused.status_code == 409
    assert "The last change is by A" in refused.json()["error"]["message"]
    assert refused.json()["undo"] == first["reading"]["undo"]
    undone = slide.change("undo", change=first["reading"]["undo"], by="A").json()
    assert undone["cells"][0]["label"] == cells[0]["label"]
    assert slide.change("redo", change=undone["reading"]["redo"], by="A").status_code == 200
    counts = client.get(f"{slide.path}/differential").json()
    assert counts["reviewed"]["pictures"] == 2
    assert counts["machine"]["reader"] is None
    assert counts["reviewed"]["reader"] == "A"
    assert counts["reviewed"]["reviewed"] == 1, "of the counted cells one was looked at"
    assert "one by one; not corrected" in counts["reviewed"]["correction"]["text"]
    slide.change("confirm", *slide.ids())
    after = client.get(f"{slide.path}/differential").json()["reviewed"]
    assert after["cells"] + sum(b["count"] for b in after["beside"]) == len(cells)
    assert after["reviewed"] == after["cells"]
    assert slide.sign(revision=0).status_code == 409
    signed = slide.sign()
    assert signed.json()["signed"]["name"] == "A"
    assert slide.change("confirm", cells[0]["id"]).status_code == 423
    assert client.get(f"{slide.place}/fields/{field['id']}/image").status_code == 410
    assert client.delete(slide.place).status_code == 423
    final = client.get(f"{slide.path}/differential").json()["reviewed"]
    assert final["status"] == "final"
    again = client.post(f"{slide.path}/versions", json={"name": "B", "reason": "a mistake"})
    assert (again.status_code, again.json()["version"]) == (201, 2)
    kinds = [entry["kind"] for entry in client.get(f"{slide.path}/trail").json()]
    assert kinds[-3:] == ["sign", "images deleted", "version"] or kinds[-1] == "version"


def test_what_was_signed_is_told_in_the_same_words_ever_after(client: TestClient):
    slide = Slide(client, fields=2, keep_images=True, name="Smear 17", target=100)
    assert slide.upload(b"no image", "early.txt").status_code == 201
    slide.change("label", slide.ids()[0], label="blast")
    slide.sign()
    exports = [f"export/{name}" for name in ("differential.pdf", "differential.csv",
                                             "differential.json", "cells.csv")]  # fmt: skip

    def tell() -> list[bytes]:
        asked = [f"{slide.path}/{part}?version=1" for part in ("differential", *exports)]
        return [client.get(path).content for path in asked]

    first = tell()
    assert b"Smear 17" in first[2]
    assert [client.get(f"{slide.path}/{name}").content for name in exports] == first[1:]
    client.patch(slide.place, json={"name": "Smear 99", "target": 5000})
    assert tell() == first
    assert [client.get(f"{slide.path}/{name}").content for name in exports] == first[1:]
    client.post(f"{slide.path}/versions", json={"name": "B", "reason": "one field was missing"})
    assert slide.upload(draw(31), "late.jpg").status_code == 201
    assert slide.upload(b"no image either", "late.txt").status_code == 201
    assert tell() == first
    now = client.get(f"{slide.path}/differential").json()
    then = client.get(f"{slide.path}/differential?version=1").json()
    assert [one["slide"] for one in (now["machine"], now["reviewed"])] == ["Smear 99"] * 2
    assert (now["reviewed"]["pictures"], then["reviewed"]["pictures"]) == (3, 2)
    assert (now["machine"]["pictures"], then["machine"]["pictures"]) == (3, 2)
    assert [one["image"] for one in then["reviewed"]["set_aside"]] == ["early.txt"]
    assert len(now["machine"]["set_aside"]) == 2


def test_the_final_report_replaces_the_preliminary_one(client: TestClient):
    slide = Slide(client, fields=2, keep_images=True)

    def read() -> tuple[str, dict[str, str]]:
        entries = client.get(f"{slide.path}/export/differential.json").json()["entry"]
        found = {entry["resource"]["code"]["text"]: entry["fullUrl"] for entry in entries}
        return entries[0]["resource"]["status"], found

    status, before = read()
    assert status == "preliminary"
    slide.change("label", *slide.ids()[:2], label="blast")
    client.patch(slide.place, json={"name": "Renamed"})
    slide.sign()
    status, after = read()
    assert status == "final"
    assert {name: after[name] for name in before} == before
    client.post(f"{slide.path}/versions", json={"name": "B", "reason": "a mistake"})
    assert read()[1] == after
    second = client.post(f"{slide.place}/readings", json={"reader": "B"}).json()["id"]
    slide.path = f"{slide.place}/readings/{second}"
    assert not set(read()[1].values()) & set(after.values())


def test_the_machine_counts_as_the_library_does(tmp_path: Path):
    predictor = load(threads=1)
    rng = np.random.default_rng(2)
    data = encode_png(draw_field(rng, KINDS * 2, mark=False, blur=0.8).image)
    answers = predictor.predict([data, b"no image"])
    states = {answer.state for answer in answers if answer.cell}
    assert states == {"pre-classified", "unidentified", "rejected"}  # or nothing would be shown
    record = read_record(predictor.bundle.facts, predictor.bundle.id)
    expected = count_predictions(answers, record=record, slide="Smear").to_json()
    assert expected["correction"]["done"]
    with TestClient(
        create_app(predictor, Store.open(tmp_path / "leuko.db")), base_url="http://127.0.0.1"
    ) as client:
        slide = Slide(client, fields=0)
        for name, content in (("a.png", data), ("b.png", b"no image")):
            assert slide.upload(content, name).status_code == 201
        told = client.get(f"{slide.path}/differential").json()
        waiting = [c for c in slide.read()["cells"] if c["state"] == "unidentified"]
    for part in ("cells", "rows", "beside", "unidentified", "rejected", "pictures", "flags",
                 "correction", "model"):  # fmt: skip
        assert told["machine"][part] == expected[part], part
    # No cell is lost on the way to a person's eyes.
    assert len(waiting) == sum(a.state != "pre-classified" and a.cell is not None for a in answers)


def test_the_order_of_images_makes_no_difference(tmp_path: Path):
    predictor = load(threads=1)
    images = [encode_png(draw_far(seed, scale)) for seed, scale in enumerate((1.0, 0.8, 0.72))]
    record = read_record(predictor.bundle.facts, predictor.bundle.id)
    expected = count_predictions(predictor.predict(images), record=record).to_json()
    told, before = [], []
    with TestClient(
        create_app(predictor, Store.open(tmp_path / "leuko.db")), base_url="http://127.0.0.1"
    ) as client:
        for order in ((0, 1, 2), (2, 1, 0)):
            slide = Slide(client, fields=0)
            for number in order:
                assert slide.upload(images[number], f"{number}.png").status_code == 201
            before.append(describe(slide))
            client.get(f"{slide.path}/differential")  # is kept until something changes it
            settle(slide)
            told.append(describe(slide))
            counts = client.get(f"{slide.path}/differential").json()["machine"]
            for part in ("cells", "rows", "beside", "unidentified", "rejected"):
                assert counts[part] == expected[part], part
            trail = client.get(f"{slide.path}/trail").json()
            assert any("gone" in entry["detail"] for entry in trail)
            news = client.get(f"{slide.path}/changes?since=0").json()
            assert {c["id"] for c in news["cells"]} == set(slide.ids())
    assert before[0] != before[1]  # or there would be nothing to settle
    assert told[0] == told[1]


def test_what_a_person_changed_is_not_looked_at_again(client: TestClient):
    slide = Slide(client, fields=0)
    for seed, scale in enumerate((1.0, 0.8, 0.72)):
        assert slide.upload(encode_png(draw_far(seed, scale)), f"{seed}.png").status_code == 201
        if not seed:
            kept = slide.ids()
            assert slide.change("label", kept[0], label="blast", by="A").status_code == 200
    settle(slide)
    assert set(kept) <= set(slide.ids())
    labels = {cell["id"]: cell["label"] for cell in slide.read()["cells"]}
    assert labels[kept[0]] == "blast"
    late = Slide(client, fields=0)
    for seed, scale in enumerate((1.0, 0.8)):
        assert late.upload(encode_png(draw_far(seed, scale)), f"{seed}.png").status_code == 201
    late.change("label", late.ids()[-1], label="blast", by="A")
    assert late.sign().status_code == 200
    assert client.post(f"{late.place}/scale").json() == {"field": None, "left": 0}


def draw_far(seed: int, scale: float) -> np.ndarray:
    """A field whose own scale differs from that of the others, in the same number of pixels."""
    rng = np.random.default_rng(seed)
    whole = draw_field(rng, KINDS * 2, mark=False, blur=0.8).image
    height, width = whole.shape[:2]
    part = whole[: round(height * scale), : round(width * scale)]
    return resize_image(np.ascontiguousarray(part), height, width)


def settle(slide: Slide) -> None:
    for _ in range(10):
        if slide.client.post(f"{slide.place}/scale").json()["field"] is None:
            return
    raise AssertionError("there is always one more")


def describe(slide: Slide) -> list[Any]:
    """The cells without their numbers."""
    fields = slide.client.get(slide.place).json()["fields"]
    names = {field["id"]: field["name"] for field in fields}
    return sorted(
        (names[c["field"]], c["box"], c["label"], c["machine"]["probability"], c["state"])
        for c in slide.read()["cells"]
    )


def test_a_bad_file_is_listed_and_the_rest_goes_on(client: TestClient):
    slide = Slide(client, fields=0)
    bad = slide.upload(b"not an image", HOSTILE)
    assert bad.status_code == 201
    assert bad.json()["set_aside"]["reason"] == "not_an_image"
    assert bad.json()["cells"] == []
    assert bad.json()["name"].startswith("<script>alert(1)</script>")
    assert "\x00" not in bad.json()["name"]
    data = draw(3)
    good = slide.upload(data, key="a")
    assert good.status_code == 201
    assert slide.upload(data, key="a").json() == good.json()
    same = slide.upload(data, "other.jpg", key="b")
    assert (same.status_code, same.json()["error"]["field"]) == (409, good.json()["id"])
    image = f"{slide.place}/fields/{bad.json()['id']}/image"
    assert client.get(image).status_code == 404


def test_two_browsers_see_each_other(client: TestClient):
    slide = Slide(client)
    first, second = slide.ids()[:2]
    seen = slide.read()["revision"]
    heard: list[dict[str, Any]] = []

    def listen() -> None:
        news = client.get(f"{slide.path}/changes", params={"since": seen, "wait": 10})
        heard.append(news.json())

    waiting = threading.Thread(target=listen)
    waiting.start()
    time.sleep(0.3)
    slide.change("label", first, label="blast")
    began = time.monotonic()
    waiting.join(10)
    assert time.monotonic() - began < 8  # of the 10 that it would wait
    assert heard[0]["cells"][0]["label"] == "blast"
    late = slide.change("label", first, second, label="other", revision=seen)
    assert late.status_code == 409
    body = late.json()
    assert body["error"]["code"] == "conflict"
    assert {c["id"]: c["label"] for c in body["cells"]}[first] == "blast"
    assert body["revision"] == seen + 1
    mine = slide.change("label", second, label="other", revision=seen).json()
    assert {c["id"] for c in mine["cells"]} == {first, second}
    quiet = client.get(f"{slide.path}/changes", params={"since": seen + 2, "wait": 0.2}).json()
    assert (quiet["revision"], quiet["cells"], quiet["changes"]) == (seen + 2, [], [])


def test_missed_and_joined_cells(client: TestClient):
    slide = Slide(client)
    field = client.get(slide.place).json()["fields"][0]
    box = [10, 10, 90, 90]
    added = slide.change("add", field=field["id"], box=box).json()["cells"][0]
    assert added["box"] == box
    assert added["added"]
    assert added["machine"]["label"] in CLASSES
    split = slide.change("split", added["id"], boxes=[box, [50, 10, 130, 90]]).json()["cells"]
    assert [c["deleted"] for c in split] == [True, False, False]
    assert client.get(f"{slide.path}/cells/{split[1]['id']}/image").status_code == 200
    for wrong in ([-1, 0, 10, 10], [0, 0, 1, 1], [9, 9, 5, 20], [0, 0, 99999, 10]):
        refused = slide.change("add", field=field["id"], box=wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_box")
    assert slide.change("add", field=99999, box=box).status_code == 404
    assert slide.change("add", field=field["id"]).status_code == 422
    assert slide.change("split", added["id"], boxes=[box, box]).status_code == 422  # deleted


def test_parts_of_a_cell_stay_on_its_slide(client: TestClient):
    slide, other = Slide(client, keep_images=True), Slide(client)
    foreign = client.get(other.place).json()["fields"][0]["id"]
    cell, *rest = slide.read()["cells"]
    x0, y0, x1, y1 = cell["box"]
    halves = [[max(0, x0), max(0, y0), (x0 + x1) / 2, y1], [(x0 + x1) / 2, max(0, y0), x1, y1]]
    refused = slide.change("split", cell["id"], boxes=halves, field=foreign)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "other_field")
    assert slide.change("add", box=[10, 10, 90, 90], field=foreign).status_code == 404
    assert slide.ids() == [cell["id"], *(c["id"] for c in rest)]
    parts = slide.change("split", cell["id"], boxes=halves).json()["cells"]
    assert {part["field"] for part in parts} == {cell["field"]}
    assert slide.sign().status_code == 200
    signed = slide.read()
    assert client.delete(other.place).status_code == 204
    assert slide.read() == signed
    for file in ("differential.pdf", "cells.csv", "set.zip"):
        asked = client.get(f"{slide.path}/export/{file}")
        assert asked.status_code == (422 if file == "set.zip" else 200)  # nothing was reviewed


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "no uuid", "revision": 0, "kind": "label", "cells": [1], "label": "x"},
        {"id": str(uuid4()), "revision": 0, "kind": "paint", "cells": [1]},
        {"id": str(uuid4()), "revision": -1, "kind": "label", "cells": [1], "label": "x"},
        {"id": str(uuid4()), "revision": 0, "kind": "label", "cells": [1], "label": " "},
        {"id": str(uuid4()), "revision": 0, "kind": "label", "cells": [1], "more": 1},
        {"id": str(uuid4()), "revision": 0, "kind": "add", "field": 1, "box": [1, 2, 3, 1e999]},
        {"id": str(uuid4()), "revision": 0, "kind": "add", "field": 1, "box": [1, 2, "x", 4]},
        {"id": str(uuid4()), "revision": 2**70, "kind": "label", "cells": [2**70], "label": "x"},
    ],
)
def test_what_makes_no_sense_is_refused_in_the_common_form(client: TestClient, body: dict):
    import json

    slide = Slide(client, fields=0)
    answer = client.post(
        f"{slide.path}/changes", content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 422, answer.text
    assert {"code", "message"} <= set(answer.json()["error"])


@pytest.mark.parametrize("number", [0, 10**9, 2**63, 2**70])
def test_numbers_that_lead_nowhere(client: TestClient, number: int):
    slide = Slide(client, fields=0)
    for path in (
        f"/api/v1/slides/{number}",
        f"{slide.place}/readings/{number}",
        f"{slide.place}/fields/{number}/image",
        f"{slide.path}/cells/{number}/image",
    ):
        assert client.get(path).status_code in (404, 422)


def test_a_hostile_label_is_text_all_the_way(client: TestClient):
    slide = Slide(client, name=HOSTILE, reader=HOSTILE)
    cell = slide.ids()[0]
    changed = slide.change("label", cell, label=HOSTILE, by=HOSTILE).json()
    assert changed["cells"][0]["label"] == "<script>alert(1)</script>�../../etc/passwd"
    assert client.get(f"{slide.path}/differential").status_code == 200


def test_slides_are_listed_renamed_and_deleted(client: TestClient):
    slide = Slide(client, name="To be deleted")
    renamed = client.patch(slide.place, json={"name": "Renamed", "target": 400, "by": "A"})
    assert (renamed.json()["name"], renamed.json()["target"]) == ("Renamed", 400)
    assert client.patch(slide.place, json={"target": 0}).status_code == 422
    assert client.patch(slide.place, json={"name": " "}).status_code == 422
    listed = client.get("/api/v1/slides").json()
    assert listed[0]["name"] == "Renamed"
    assert listed[0]["fields"] == 1
    assert client.delete(slide.place).status_code == 204
    assert client.get(slide.place).status_code == 404


def test_the_map_shows_where_the_network_looked(client: TestClient):
    slide = Slide(client)
    cell = slide.ids()[0]
    found = client.get(f"{slide.path}/cells/{cell}/map?size=200")
    assert found.headers["content-type"] == "image/png"
    drawn = decode_image(found.content)
    portrait = decode_image(client.get(f"{slide.path}/cells/{cell}/image?size=200").content)
    assert drawn.shape == portrait.shape  # the page lays one on the other
    other = client.get(f"{slide.path}/cells/{cell}/map", params={"label": CLASSES[0]})
    another = client.get(f"{slide.path}/cells/{cell}/map", params={"label": CLASSES[1]})
    assert other.content != another.content
    refused = client.get(f"{slide.path}/cells/{cell}/map", params={"label": "blast"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unknown_class")


def test_two_readings_and_an_arbitration(client: TestClient):
    slide = Slide(client)
    other = client.post(f"{slide.place}/readings", json={"reader": "B"}).json()
    slide.change("confirm", *slide.ids())
    slide.change("label", slide.ids()[0], label="blast")
    slide.sign()
    first = int(slide.path.rsplit("/", 1)[1])
    pair = {"a": first, "b": other["id"]}
    assert client.get(f"{slide.place}/comparison", params=pair).status_code == 409
    slide.path = f"{slide.place}/readings/{other['id']}"
    slide.change("confirm", *slide.ids())
    slide.sign()
    compared = client.get(f"{slide.place}/comparison", params=pair).json()
    assert [d["a"]["label"] for d in compared["differing"]] == ["blast"]
    settled = client.post(
        f"{slide.place}/readings", json={"reader": "C", "arbitrates": [first, other["id"]]}
    )
    assert settled.status_code == 201
    waiting = [c for c in settled.json()["cells"] if c["state"] == "unidentified"]
    assert [c["reason"].split("; ")[0] for c in waiting] == ["A: blast"]


def wait_for_adaptation(client: TestClient, slide: Slide) -> dict[str, Any]:
    end = time.monotonic() + 300
    while (told := client.get(f"{slide.path}/adaptation").json())["state"] == "running":
        assert time.monotonic() < end, told
        time.sleep(0.1)
    return told


@pytest.fixture(scope="module")
def labelled(client: TestClient) -> Slide:
    """A slide whose cells are enough to adapt a model to."""
    slide = Slide(client, fields=7, keep_images=True)
    told = client.get(f"{slide.path}/adaptation").json()
    assert told["state"] == "none"
    assert "There are 0 such classes" in told["labels"]["missing"]
    refused = client.post(f"{slide.path}/adaptation")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "too_few")
    cells = slide.ids()
    for k, name in enumerate(CLASSES[:2]):
        slide.change("label", *cells[k::2], label=name)
    slide.change("label", cells[0], label="blast")
    return slide


def test_the_reviewed_cells_adapt_the_model(client: TestClient, labelled: Slide, monkeypatch):
    monkeypatch.setattr("leuko.use.adaptation.REPEATS", 1)  # a quarter of the time
    slide = labelled
    rows = client.get(f"{slide.path}/adaptation").json()["labels"]
    assert [row["label"] for row in rows["classes"]] == list(CLASSES[:2])
    assert all(row["enough"] and row["fields"] == 7 for row in rows["classes"])
    assert rows["missing"] == ""
    assert client.get(f"{slide.path}/adaptation/bundle.zip").status_code == 404
    begun = client.post(f"{slide.path}/adaptation", json={"by": "Ada"})
    assert begun.status_code == 202, begun.text
    told = wait_for_adaptation(client, slide)
    assert told["state"] == "done", told
    kept = told["kept"]
    assert "1 cell labelled 'blast' took no part" in kept["notes"][0]
    assert set(kept["result"]["balanced_accuracy"]) == {"before", "after", "gain"}
    assert (kept["by"], kept["outdated"]) == ("Ada", False)
    packed = client.get(f"{slide.path}/adaptation/bundle.zip")
    assert packed.content[:2] == b"PK"
    assert len(packed.content) == kept["size"]
    trail = client.get(f"{slide.path}/trail").json()
    assert [(e["by"], e["detail"]["bundle"]) for e in trail if e["kind"] == "adapted"] == [
        ("Ada", kept["result"]["bundle"])
    ]
    # Another service over the same store has it too, and says when the labels have changed.
    parts = client.app.state.parts
    app = create_app(Predictor(parts.queue._predictor.bundle), parts.store)
    slide.change("confirm", slide.ids()[3])
    again = TestClient(app, base_url="http://127.0.0.1").get(f"{slide.path}/adaptation").json()
    assert again["state"] == "done"
    assert again["kept"] == {**kept, "outdated": True}


def test_an_adaptation_can_be_cancelled_and_only_one_runs(
    client: TestClient, labelled: Slide, monkeypatch
):
    go_on = threading.Event()
    monkeypatch.setattr(
        "leuko.service.adaptations.write_set", lambda *_: go_on.wait(60) and _fail()
    )
    before = client.get(f"{labelled.path}/adaptation").json()["kept"]
    assert client.post(f"{labelled.path}/adaptation").json()["state"] == "running"
    second = client.post(f"{labelled.path}/adaptation")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "running")
    other = Slide(client, fields=0)
    assert client.get(f"{other.path}/adaptation").json()["busy"]
    client.delete(f"{other.path}/adaptation")  # not the one that runs
    go_on.set()
    told = wait_for_adaptation(client, labelled)
    assert (told["state"], told["error"]) == ("failed", "This is why.")
    monkeypatch.undo()
    client.post(f"{labelled.path}/adaptation")
    client.delete(f"{labelled.path}/adaptation")
    told = wait_for_adaptation(client, labelled)
    assert told["state"] == "cancelled"
    assert told["kept"] == before
    assert not client.get(f"{other.path}/adaptation").json()["busy"]


def _fail() -> bytes:
    raise LeukoError("This is why.")


def test_without_images_nothing_is_adapted(client: TestClient):
    slide = Slide(client)
    slide.change("confirm", slide.ids()[0])
    slide.sign()
    told = client.get(f"{slide.path}/adaptation").json()
    assert "deleted" in told["labels"]["missing"]
    refused = client.post(f"{slide.path}/adaptation")
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "images_deleted")


class Decoder:
    """Stands before the decoder of the service: counts who is inside, and holds them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside = self.most = self.entered = 0
        self.begun, self.crowded, self.go_on = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()
        for name in ("examination", "exports", "portraits"):
            monkeypatch.setattr(f"leuko.service.{name}.decode_image", self)

    def __call__(self, data: bytes, **facts: Any) -> Any:
        with self._lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside > 2:
                self.crowded.set()
        self.begun.set()
        self.go_on.wait(60)
        with self._lock:
            self.inside -= 1
        return decode_image(data, **facts)


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[TestClient]:
    """A service with more threads than decoders, whatever the machine."""
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    settings = ServiceSettings(workers=6, decoders=2, shortest_queue=20)
    app = create_app(predictor, Store.open(tmp_path / "leuko.db"), settings)
    with TestClient(app, base_url="http://127.0.0.1") as opened:
        yield opened


def test_two_images_are_decoded_at_a_time_whoever_asks(
    crowd: TestClient, monkeypatch: pytest.MonkeyPatch
):
    slide = Slide(crowd, fields=2)
    cell = slide.ids()[0]
    slide.change("confirm", cell)
    (field, other) = crowd.get(slide.place).json()["fields"]
    one, box = f"{slide.path}/cells/{cell}", [10, 10, 90, 90]
    asked = [
        *(partial(slide.upload, draw(seed)) for seed in (41, 42, 43)),
        *(partial(crowd.get, f"{slide.place}/fields/{f['id']}/image") for f in (field, other)),
        *(partial(crowd.get, f"{one}/{part}") for part in ("image?size=500", "map")),
        partial(crowd.get, f"{slide.path}/export/set.zip"),
        partial(slide.change, "add", field=field["id"], box=box),
    ]
    decoder = Decoder(monkeypatch)
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(ask) for ask in asked]
        assert not decoder.crowded.wait(2)
        decoder.go_on.set()
    assert [a.result().status_code for a in answers] == [201] * 3 + [200] * 6
    assert decoder.most == 2
    assert decoder.entered >= len(asked)


def test_an_image_that_finds_no_room_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = ServiceSettings(shortest_queue=1, longest_queue=1)
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    app = create_app(predictor, Store.open(tmp_path / "leuko.db"), settings)
    with TestClient(app, base_url="http://127.0.0.1") as opened, ThreadPoolExecutor(1) as pool:
        slide = Slide(opened, fields=0)
        decoder = Decoder(monkeypatch)
        first = pool.submit(slide.upload, draw(51))
        assert decoder.begun.wait(60)
        second = slide.upload(draw(52))
        assert (second.status_code, second.json()["error"]["code"]) == (503, "busy")
        assert int(second.headers["Retry-After"]) >= 1
        assert decoder.entered == 1
        decoder.go_on.set()
        assert first.result().status_code == 201
        assert slide.upload(draw(52)).status_code == 201


def test_every_answer_is_described(client: TestClient):
    described = client.get("/api/v1/openapi.json").json()
    for path, kinds in described["paths"].items():
        for kind, facts in kinds.items():
            if path.startswith("/api/v1/slides"):
                assert facts["summary"], (kind, path)
                assert {"404", "422", "423"} <= set(facts["responses"]), (kind, path)


def test_png_and_jpeg_are_both_taken(client: TestClient):
    slide = Slide(client, fields=0)
    pixels = decode_image(draw(4))
    assert slide.upload(encode_png(pixels), "field.png").json()["set_aside"] is None
