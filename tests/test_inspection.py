"""leuko audit as its users meet it: one folder with a page, JSON and decisions to fill in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import leuko
from leuko.cli import main
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg, encode_png
from leuko.data.manifest import read_manifest, write_manifest
from leuko.data.synthetic import write_demo_set
from leuko.errors import DataError, OutputError, SettingsError
from leuko.inspection import Inspection, audit

KINDS = ("NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 fields of three classes; a turned copy, a second photograph, a conflict, a broken file."""
    folder = tmp_path_factory.mktemp("planted") / "set"
    folder.mkdir()
    lines = ["image,label"]

    def add(name: str, data: bytes, label: str) -> None:
        (folder / name).write_bytes(data)
        lines.append(f"{name},{label}")

    for i in range(24):
        drawn = draw_field(np.random.default_rng(i), [KINDS[i % 3]]).image
        add(f"f{i:02}.png", encode_png(drawn), KINDS[i % 3])
        if i == 0:
            turned = np.ascontiguousarray(np.rot90(drawn, 2)[:, ::-1])
            add("turned.jpg", encode_jpeg(turned, 85), KINDS[0])
    again = draw_field(
        np.random.default_rng(1), [KINDS[1]], stage=(40, -30), camera=np.random.default_rng(99)
    )
    add("again.png", encode_png(again.image), "MONOCYTE")
    add("broken.png", b"\x89PNG\r\n\x1a\n", KINDS[0])
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def inspected(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return audit(planted, out=tmp_path_factory.mktemp("audits") / "one", workers=1)


def test_what_was_planted_is_found(inspected: Inspection):
    found = {kind: [] for kind in inspected.audit.count()}
    for issue in inspected.issues:
        found[issue.kind].append(set(issue.images))
    assert found["turned_copy"] == [{"f00.png", "turned.jpg"}]
    assert found["same_cell"] == [{"f01.png", "again.png"}]
    assert found["label_conflict"] == [{"f01.png", "again.png"}]
    assert found["damaged"] == [{"broken.png"}]
    assert {frozenset(g) for g in inspected.groups} == {
        frozenset(("f00.png", "turned.jpg")),
        frozenset(("f01.png", "again.png")),
    }


def test_the_folder_holds_page_json_manifest_scores_and_decisions(inspected: Inspection):
    folder = inspected.folder
    assert folder is not None
    facts = json.loads((folder / "audit.json").read_text("utf-8"))
    assert facts == json.loads(json.dumps(inspected.to_json()))
    assert facts["images"] == 27
    assert all({"kind", "images", "detail"} <= set(issue) for issue in facts["issues"])
    assert sorted(map(sorted, facts["groups"])) == [
        ["again.png", "f01.png"],
        ["f00.png", "turned.jpg"],
    ]
    page = (folder / "audit.html").read_text("utf-8")
    assert "turned.jpg" in page
    assert "Research use only" in page
    manifest = read_manifest(folder / "manifest.parquet")
    assert manifest.audited
    with (folder / "decisions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert set(rows) >= {"turned.jpg", "f00.png", "again.png", "f01.png"}
    assert all(row["decision"] == "" for row in rows.values())


def test_a_persons_decision_goes_from_the_table_into_the_cleaning(
    inspected: Inspection, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert inspected.folder is not None
    table = (inspected.folder / "decisions.csv").read_text("utf-8-sig").splitlines()
    head = next(csv.reader(table[:1]))
    rows = list(csv.DictReader(table))
    for row in rows:
        if row["image"] == "again.png":
            row.update(decision="relabel", new_label="LYMPHOCYTE", reason="looked at it")
    mine = tmp_path / "mine.csv"
    with mine.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "cleaned"
    words = ["clean", str(planted), "--recipe", "strict", "--decisions", str(mine), "--json"]
    assert main([*words, "--out", str(out)]) == 3, "one file can't be read"
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["steps"][0]["name"] == "apply_decisions"
    assert ledger["steps"][0]["renamed"][0]["new"] == "LYMPHOCYTE"
    kept = leuko.scan(out).table
    label = dict(kept.select("image", "label").iter_rows())
    assert label["again.png"] == label["f01.png"] == "LYMPHOCYTE", "settled, so both stay"
    assert len({"f00.png", "turned.jpg"} & set(label)) == 1, "one of the copies stays"


def test_the_same_set_gives_the_same_audit(inspected: Inspection, planted: Path):
    again = audit(planted, workers=2)
    assert again.to_json() == inspected.to_json()
    assert again.folder is None


def test_the_command_prints_json_alone_and_says_where_the_page_is(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "audit"
    assert main(["audit", str(planted), "--out", str(out), "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((out / "audit.json").read_text("utf-8"))
    assert "Turned copies" in said.err
    assert str(out / "audit.html") in said.err
    assert main(["audit", str(planted), "--out", str(out)]) == 2
    assert "never overwrites" in capsys.readouterr().err


def test_the_leak_meter_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    counts = {"NEUTROPHIL": 12, "EOSINOPHIL": 8, "LYMPHOCYTE": 8, "MONOCYTE": 6, "BASOPHIL": 3}
    folder = write_demo_set(tmp_path / "demo", seed=5, counts=counts)
    out = tmp_path / "audit"
    assert main(["audit", str(folder), "--out", str(out), "--split", "--folds", "2"]) == 0
    facts = json.loads((out / "audit.json").read_text("utf-8"))["leak_meter"]
    assert [row["who"].split(" (")[0] for row in facts["rows"]] == [
        "colour histogram", "nearest neighbour", "network",
    ]  # fmt: skip
    assert facts["n"] == sum(counts.values()), "two folds suffice for the three basophils"
    assert "leak meter" in capsys.readouterr().err
    assert 'id="leak"' in (out / "audit.html").read_text("utf-8")


def test_wrong_use_is_refused_before_any_work(planted: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="folds is 1"):
        audit(planted, folds=1)
    with pytest.raises(SettingsError, match="give one with out"):
        audit(planted, split=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(OutputError):
        audit(planted, out=tmp_path / "full")


def test_a_finished_study_of_the_same_set_says_which_labels_it_disputes(tmp_path: Path):
    from run_folder import write_run

    counts = {"LYMPHOCYTE": 25, "NEUTROPHIL": 25}
    labels = [c for c, n in counts.items() for _ in range(n)]
    run = write_run(
        tmp_path / "run", found=counts, models={"resnet18": 1.2}, image="f{:02}.png", drop=(),
        size=32,
    )  # fmt: skip
    data = tmp_path / "set"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(50):
        pixels = rng.integers(150, 255, (48, 48, 3)).astype(np.uint8)
        (data / f"f{i:02}.png").write_bytes(encode_png(pixels))
    lines = [f"f{i:02}.png,{label}" for i, label in enumerate(labels)]
    (data / "labels.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    write_manifest(leuko.scan(data), run / "manifest.parquet")

    found = audit(data, study=run, out=tmp_path / "audited", workers=1)
    disputed = [i for i in found.issues if i.kind == "disputed_label"]
    assert disputed, "of 50 drawn answers some are sure and wrong"
    assert found.folder is not None
    facts = json.loads((found.folder / "audit.json").read_text("utf-8"))
    assert facts["labels"]["run"] == "run"
    assert facts["labels"]["decisions"] == {"applied": False}
    assert {i["images"][0] for i in facts["issues"] if i["kind"] == "disputed_label"} == {
        case["image"] for case in facts["labels"]["disputed"]
    }
    page = (found.folder / "audit.html").read_text("utf-8")
    assert "A second opinion on the labels" in page
    assert "No decisions file was applied" in page
    table = (found.folder / "decisions.csv").read_text("utf-8-sig")
    assert all(issue.images[0] in table for issue in disputed)

    (data / "labels.csv").write_text("\n".join(["image,label", *lines[:-1]]) + "\n")
    with pytest.raises(DataError, match=r"f49\.png.*of this set"):
        audit(data, study=run, workers=1)
    with pytest.raises(DataError, match="Expected a finished run"):
        audit(data, study=data, workers=1)
