"""What leaves the service as files, read back by whoever will read it."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from pypdf import PdfReader
from starlette.testclient import TestClient

import leuko
from leuko.data.drawing import draw_field
from leuko.data.image import decode_image, encode_jpeg
from leuko.data.sources import scan
from leuko.service.app import create_app
from leuko.service.exports import WINDOW, cut_window
from leuko.service.store import Store

FORMULA = "=1+1"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    store = Store.open(tmp_path_factory.mktemp("store") / "leuko.db")
    with TestClient(create_app(leuko.load(), store), base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.fixture(scope="module")
def path(client: TestClient) -> str:
    """A reading of two fields: one cell moved to a class that a spreadsheet would run, the sure
    ones confirmed, one deleted."""
    new = {"name": "Smear 1", "reader": "Ada Meyer", "keep_images": True}
    slide = client.post("/api/v1/slides", json=new).json()
    rng = np.random.default_rng(5)
    for number in range(2):
        image = draw_field(rng, ["NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL"], mark=False, blur=0.8)
        file = (f"field {number}.jpg", encode_jpeg(image.image))
        client.post(f"/api/v1/slides/{slide['id']}/fields", files={"file": file})
    place = f"/api/v1/slides/{slide['id']}/readings/{slide['readings'][0]['id']}"
    cells = [c["id"] for c in client.get(place).json()["cells"]]
    change(client, place, kind="label", cells=cells[:1], label=FORMULA)
    change(client, place, kind="delete", cells=cells[1:2])
    sure = [c["id"] for c in client.get(place).json()["cells"] if c["state"] == "pre-classified"]
    change(client, place, kind="confirm", cells=[i for i in sure if i != cells[1]])
    return place


def change(client: TestClient, place: str, **facts: Any) -> None:
    revision = client.get(place).json()["revision"]
    body = {"id": str(uuid4()), "revision": revision, **facts}
    client.post(f"{place}/changes", json=body).raise_for_status()


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_files_say_the_same_numbers(client: TestClient, path: str) -> None:
    counted = client.get(f"{path}/differential").json()["reviewed"]
    rows = read_rows(client.get(f"{path}/export/differential.csv").text)
    assert {r["status"] for r in rows} == {"preliminary"}
    written = {r["class"]: int(r["count"]) for r in rows if r["sort"] == "leukocyte"}
    expected = {r["label"]: r["count"] for r in counted["rows"]}
    assert written == {**{k: v for k, v in expected.items() if k != FORMULA}, f"'{FORMULA}": 1}
    report = client.get(f"{path}/export/differential.json")
    assert Bundle.model_validate(report.json()).entry[0].resource.status == "preliminary"
    pdf = client.get(f"{path}/export/differential.pdf")
    text = PdfReader(io.BytesIO(pdf.content)).pages[0].extract_text()
    assert "Smear 1" in text
    assert "not for diagnosis" in text
    for answer in (report, pdf):
        assert answer.headers["content-disposition"].startswith('attachment; filename="slide-')


def test_cells_are_listed_with_what_the_machine_said(client: TestClient, path: str) -> None:
    cells = {c["id"]: c for c in client.get(path).json()["cells"] if not c["deleted"]}
    rows = read_rows(client.get(f"{path}/export/cells.csv").text)
    assert {int(row["cell"]) for row in rows} == set(cells)
    for row in rows:
        cell = cells[int(row["cell"])]
        assert row["label"] in (cell["label"], f"'{cell['label']}")
        assert row["machine_label"] == cell["machine"]["label"]
        assert float(row[f"p_{row['machine_label']}"]) == cell["machine"]["probability"]


def test_the_labelled_set_is_read_by_leuko(client: TestClient, path: str, tmp_path: Path) -> None:
    reviewed = [c for c in client.get(path).json()["cells"]
                if c["state"] == "reviewed" and not c["deleted"]]  # fmt: skip
    packed = client.get(f"{path}/export/set.zip").content
    with zipfile.ZipFile(io.BytesIO(packed)) as package:
        package.extractall(tmp_path)
    loaded = scan(tmp_path).table
    assert sorted(loaded["label"]) == sorted(c["label"] for c in reviewed)
    assert loaded["group"].n_unique() == len({c["field"] for c in reviewed})
    sides = {decode_image(p.read_bytes()).shape for p in tmp_path.glob("*.jpg")}
    assert len(sides) == 1


def test_a_cell_at_the_border_is_in_the_middle_of_its_picture() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[0:10, 70:80] = 200
    cut = cut_window(pixels, (70.0, 0.0, 80.0, 10.0), 1.0)
    half = round(WINDOW / 2)
    assert cut.shape == (2 * half, 2 * half, 3)
    assert cut[half, half].tolist() == [200] * 3
    assert cut[half, 0].tolist() == [0] * 3


def test_without_a_reviewed_cell_there_is_no_set(client: TestClient) -> None:
    slide = client.post("/api/v1/slides", json={"name": "empty"}).json()
    place = f"/api/v1/slides/{slide['id']}/readings/{slide['readings'][0]['id']}"
    answer = client.get(f"{place}/export/set.zip")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "nothing_reviewed"
    assert json.dumps(client.get(f"{place}/export/differential.json").json())
    assert client.get(f"{place}/export/other.exe").status_code == 422
