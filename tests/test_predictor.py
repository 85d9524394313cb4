"""Prediction as its users meet it: every kind of input, states, bad files, tables, no PyTorch."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import leuko
from leuko.cli import main
from leuko.data.drawing import draw_cell, draw_field
from leuko.data.image import encode_png, resize_image
from leuko.data.manifest import Manifest
from leuko.data.pictures import cut_pictures
from leuko.data.sources import scan
from leuko.engine import stream_jobs
from leuko.errors import (
    BundleError,
    ImageError,
    NoImagesError,
    SettingsError,
    ShapeError,
    TrainingError,
    UnknownNameError,
)
from leuko.learning.facts import Decision
from leuko.use.answers import Answer, Predictions
from leuko.use.cutting import PART, SHARE
from leuko.use.inputs import gather
from leuko.use.predictor import Predictor, decide, load
from small_bundle import CLASSES, make_bundle

COLUMNS = ["image", "cell", "x0", "y0", "x1", "y1", "label", "probability",
           *(f"p_{c}" for c in CLASSES), "set", "state", "reason"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Predictor:
    return load(make_bundle(tmp_path_factory.mktemp("model") / "small").path, threads=1)


@pytest.fixture(scope="module")
def smear(tmp_path_factory) -> Path:
    """Fields of one size: two cells, one cell, none; a damaged file; a text."""
    folder = tmp_path_factory.mktemp("smear")
    rng = np.random.default_rng(4)
    for name, kinds in {"a": ("LYMPHOCYTE", "NEUTROPHIL"), "b": ("EOSINOPHIL",), "c": ()}.items():
        field = draw_field(rng, kinds, mark=False, blur=0.8).image
        (folder / f"{name}.png").write_bytes(encode_png(resize_image(field, 240, 320)))
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("nothing")
    return folder


def plain(found: Predictions) -> list[Answer]:
    return [replace(answer, image="") for answer in found]


def test_fields_give_an_answer_per_cell_and_bad_files_are_listed(model: Predictor, smear: Path):
    found = model.predict(smear)
    assert [(Path(a.image).name, a.cell) for a in found] == [
        ("a.png", 1), ("a.png", 2), ("b.png", 1), ("c.png", None),
    ]  # fmt: skip
    assert found.answers[3].state == "rejected"
    assert found.answers[3].reason == "no leukocyte was found"
    assert found.answers[3].label is None
    assert [(Path(s.image).name, s.reason) for s in found.set_aside] == [("d.png", "truncated")]
    assert any("notes.txt" in note for note in found.notes)
    assert found.probabilities.shape == (4, 3)
    assert np.abs(found.probabilities[:3].sum(1) - 1).max() < 1e-9
    assert np.isnan(found.probabilities[3]).all()
    for answer in found.answers[:3]:
        x0, y0, x1, y1 = answer.box
        assert 0 <= x0 < x1 <= 320
        assert 0 <= y0 < y1 <= 240
        assert answer.label == CLASSES[int(np.argmax(answer.probabilities))]


def test_openvino_answers_the_same_but_for_rounding(model: Predictor, smear: Path):
    pytest.importorskip("openvino")
    other = load(model.bundle.path, engine="openvino")
    assert other.bundle.network.engine == "openvino"
    ours, theirs = model.predict(smear), other.predict(smear)
    assert [(a.image, a.label, a.state) for a in ours] == [
        (a.image, a.label, a.state) for a in theirs
    ]
    assert np.nanmax(np.abs(ours.probabilities - theirs.probabilities)) < 1e-5
    with ThreadPoolExecutor(4) as pool:  # as the service asks it
        for found in pool.map(lambda _: other.predict(smear), range(8)):
            assert (found.probabilities[:3] == theirs.probabilities[:3]).all()
    with pytest.raises(UnknownNameError, match="openvino"):
        load(model.bundle.path, engine="openvin")


def test_every_kind_of_input_gives_the_same_answer(model: Predictor, smear: Path, tmp_path: Path):
    path = smear / "a.png"
    expected = plain(model.predict(path))
    assert len(expected) == 2
    picture = Image.open(path).convert("RGB")
    (tmp_path / "a.png").write_bytes(path.read_bytes())
    (tmp_path / "list.csv").write_text("image,label\na.png,X\n")
    for given in (
        str(path), path.read_bytes(), np.asarray(picture), picture, [path],
        tmp_path / "list.csv", (one for one in [path]),
    ):  # fmt: skip
        assert plain(model.predict(given)) == expected, type(given)
    assert np.array_equal(model.predict_proba(path), model.predict(path).probabilities)


def test_the_network_sees_what_training_saw(model: Predictor, tmp_path: Path):
    """The predictor's cells and those of `cut_pictures` are the same bytes."""
    rng = np.random.default_rng(2)
    for kind in ("LYMPHOCYTE", "EOSINOPHIL"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            field = draw_field(rng, [kind], height=240, width=240, mark=False, centred=True)
            (tmp_path / kind / f"{i}.png").write_bytes(encode_png(field.image))
    manifest: Manifest = scan(tmp_path)
    prepared = model.bundle.facts.preprocessing
    names, pictures, _ = cut_pictures(
        manifest, view="cell", size=prepared.size, light=prepared.light
    )
    expected, _ = model.bundle.answer(pictures)
    found = model.predict([tmp_path / name for name in names])
    assert [a.cell for a in found] == [1] * 6, "one answer for each picture around one cell"
    assert np.array_equal(found.probabilities, expected)


def test_order_and_parts_do_not_matter(model: Predictor, smear: Path):
    many = [smear / "b.png", smear / "d.png"] * (PART // 2 + 3)
    seen: list[tuple[int, int]] = []
    found = model.predict(many, progress=lambda done, total: seen.append((done, total)))
    assert len(found) == len(found.set_aside) == PART // 2 + 3
    assert len(set(plain(found))) == 1
    assert seen[-1] == (len(many), len(many))


def test_processes_answer_as_threads_do(
    model: Predictor, smear: Path, monkeypatch: pytest.MonkeyPatch
):
    many = [smear / "b.png", smear / "d.png", smear / "a.png"] * (SHARE // 3 + 1)
    expected = model.predict(many)
    monkeypatch.setattr("leuko.use.cutting.FEW", 2)
    started: list[int] = []
    monkeypatch.setattr(
        "leuko.use.cutting.stream_jobs",
        lambda *words, **more: started.append(more["workers"]) or stream_jobs(*words, **more),
    )
    found = model.predict(many, workers=2)
    assert started == [2]
    assert found.answers == expected.answers
    assert found.set_aside == expected.set_aside
    model.predict([path.read_bytes() for path in many], workers=2)
    assert started == [2], "what lies in memory already isn't sent to processes"


def test_a_killed_process_is_told_and_leaves_nothing_behind(
    model: Predictor, smear: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("leuko.use.cutting.FEW", 2)
    answers = model.stream(gather([smear / "b.png"] * (9 * SHARE))[0], workers=2)
    next(answers)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    workers[0].kill()
    with pytest.raises(TrainingError, match="was killed"):
        list(answers)
    assert multiprocessing.active_children() == []


def test_a_known_scale_is_used(model: Predictor, smear: Path):
    near = model.predict(smear / "b.png", scale=6.0).answers[0]
    far = model.predict(smear / "b.png", scale=8.0).answers[0]
    assert near.probabilities != far.probabilities


@pytest.mark.parametrize(
    ("probabilities", "thresholds", "chosen", "state", "says"),
    [
        ((0.9, 0.1, 0.0), (0.3, 0.3, 0.3), "A", "pre-classified", ""),
        ((0.5, 0.4, 0.1), (0.3, 0.3, 0.3), "A|B", "unidentified", "2 classes"),
        ((0.4, 0.3, 0.3), (0.5, 0.5, 0.5), "", "unidentified", "unlike"),
        ((0.6, 0.4, 0.0), (0.7, 0.3, 0.3), "B", "unidentified", "A is likeliest"),
        ((0.4, 0.3, 0.3), (0.3, 0.35, 0.35), "A", "unidentified", "reaches"),
        ((0.4, 0.3, 0.3), None, "", "unidentified", "reaches"),
        ((0.6, 0.3, 0.1), None, "", "pre-classified", ""),
    ],
)
def test_a_doubtful_answer_is_never_pre_classified(probabilities, thresholds, chosen, state, says):
    given = None if thresholds is None else dict(zip("ABC", thresholds, strict=True))
    found = decide(np.array(probabilities), Decision(thresholds=given), "ABC")
    assert "|".join(found[0]) == chosen
    assert found[1] == state
    assert says in found[2]


def test_python_and_the_command_line_say_the_same_in_every_format(
    model: Predictor, smear: Path, tmp_path: Path, capsys
):
    words = ["predict", str(smear), "--model", str(model.bundle.path)]
    assert main(words) == 3
    printed, told = capsys.readouterr()
    found = load(model.bundle.path).predict(str(smear))
    assert printed == found.to_csv()
    assert "4 answers" in told
    assert f"set aside: {smear}/d.png (truncated)" in told
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0]) == COLUMNS
    for row, answer in zip(rows[:3], found.answers, strict=False):
        assert tuple(float(row[f"p_{c}"]) for c in CLASSES) == answer.probabilities
    assert main([*words, "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts == found.to_json()
    assert facts["cells"][3]["label"] is None
    for kind in ("csv", "parquet", "json"):
        assert main([*words, "--out", str(tmp_path / f"cells.{kind}")]) == 3
        assert not capsys.readouterr().out
    assert (tmp_path / "cells.csv").read_text() == printed
    assert json.loads((tmp_path / "cells.json").read_text()) == facts
    table = pl.read_parquet(tmp_path / "cells.parquet")
    assert table.columns == COLUMNS
    assert table.schema["cell"] == pl.Int64
    assert np.array_equal(
        table.select([f"p_{c}" for c in CLASSES]).head(3).to_numpy(), found.probabilities[:3]
    )
    assert main(["predict", str(smear / "b.png"), "--model", str(model.bundle.path)]) == 0


def test_no_text_of_the_table_is_run_by_a_spreadsheet():
    evil = Answer("=cmd()", 1, (0, 0, 1, 1), "+A", 0.5, (0.5, 0.5), ("+A",), "rejected", "@x")
    rows = list(csv.reader(io.StringIO(Predictions(("+A", "-B"), (evil,), (), "").to_csv())))
    assert not [value for row in rows for value in row if value[:1] in ("=", "+", "-", "@")]
    assert rows[1][0] == "'=cmd()"


def test_prediction_loads_no_pytorch_and_no_tables(model: Predictor, smear: Path):
    script = (
        "import sys, leuko.cli\n"
        f"code = leuko.cli.main(['predict', {str(smear / 'b.png')!r}, '--model', "
        f"{str(model.bundle.path)!r}])\n"
        "heavy = ('torch', 'polars', 'scipy', 'sklearn', 'matplotlib', 'onnx')\n"
        "sys.exit(str([m for m in heavy if m in sys.modules]) if code == 0 else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip().endswith("[]"), done.stderr


def test_what_cannot_be_answered_is_refused(model: Predictor, tmp_path: Path, smear: Path):
    with pytest.raises(NoImagesError, match="no image"):
        model.predict(tmp_path)
    with pytest.raises(NoImagesError, match="no image"):
        model.predict([])
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 3)), 3, [None]):
        with pytest.raises(ShapeError, match="expected"):
            model.predict(wrong)
    with pytest.raises(ImageError, match=r"d\.png"):
        model.predict_proba([smear / "a.png", smear / "d.png"])
    missing = model.predict(tmp_path / "none.png")
    assert [s.reason for s in missing.set_aside] == ["not_found"]
    with pytest.raises(SettingsError, match=r"\.parquet"):
        missing.write(tmp_path / "cells.xlsx")
    (tmp_path / "list.csv").write_text("image\n../../etc/passwd\n")
    with pytest.raises(leuko.errors.LabelTableError, match="below"):
        gather(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("name", "says"),
    [("nofolder", "Check the path"), ("*.jpg", "no file fits it"), (r"a\x.jpg", "separated by /")],
)
def test_what_was_named_and_is_not_there_is_refused(
    model: Predictor, smear: Path, tmp_path: Path, monkeypatch, capsys, name: str, says: str
):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(model.bundle.path), "--out", "cells.csv"]
    for named in ([name], [str(smear / "b.png"), name]):
        assert main(["predict", *named, *words]) == 1
        told = capsys.readouterr()
        assert not told.out
        assert f"There is no {name}; expected" in told.err
        assert says in told.err
    assert not list(tmp_path.iterdir())
    # Within what exists a missing file is set aside, as any that can't be read.
    (tmp_path / "list.csv").write_text("image\nlost.png\n")
    assert main(["predict", "list.csv", *words]) == 3
    assert "set aside: lost.png (not_found)" in capsys.readouterr().err


def test_without_a_shipped_model_it_is_said_what_to_do(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr("leuko.use.predictor.files", lambda _: tmp_path)
    with pytest.raises(BundleError, match="leuko train DATA --out BUNDLE"):
        load()
    (tmp_path / "x.png").write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8)))
    assert main(["predict", str(tmp_path / "x.png")]) == 1
    assert "ships no model" in capsys.readouterr().err


def test_a_bundle_of_whole_fields_answers_once_for_each(tmp_path: Path, smear: Path):
    from leuko.learning.batches import DEVIATION, MEAN
    from leuko.learning.facts import Preprocessing

    prepared = Preprocessing("field", 20.0, 32, MEAN, DEVIATION, 1, light="matched")
    whole = load(make_bundle(tmp_path / "b", preprocessing=prepared).path, threads=1)
    found = whole.predict([smear / "a.png", smear / "c.png"])
    assert [a.box for a in found] == [(0.0, 0.0, 320.0, 240.0)] * 2


def test_a_picture_around_one_cell_gives_one_answer(model: Predictor):
    cells = [draw_cell(np.random.default_rng(i), "LYMPHOCYTE", 96) for i in range(4)]
    assert [a.image for a in model.predict(cells)] == [f"image-{i}" for i in (1, 2, 3, 4)]
