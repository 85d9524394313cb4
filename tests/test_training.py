"""Training one model for use: from a folder of pictures to a bundle that answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import leuko
from leuko.cli import main
from leuko.data.drawing import draw_cell
from leuko.data.image import encode_png
from leuko.errors import BundleError, OutputError, ResumeError, SettingsError, ShapeError
from leuko.judgement.calibration import fit_temperature
from leuko.judgement.predictions import Predictions
from leuko.learning.bundle import Bundle
from leuko.progress import resume_command
from leuko.training import _decide, _find_states, _Places, train

QUICK = {"model": "alexnet", "folds": 2, "epochs": 2, "views": 1, "size": 64}


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "cells"
    rng = np.random.default_rng(0)
    for kind, count in {"LYMPHOCYTE": 12, "EOSINOPHIL": 10}.items():
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            (folder / kind / f"{i:02}.png").write_bytes(encode_png(draw_cell(rng, kind, 96)))
    return folder


@pytest.fixture(scope="module")
def trained(cells: Path, tmp_path_factory) -> tuple[Bundle, Path]:
    place = tmp_path_factory.mktemp("trained")
    bundle = train(
        cells, out=place / "mine", run=place / "run", credits="=nobody", coverage=0.8, **QUICK
    )
    return bundle, place


def test_the_model_that_was_judged_can_be_kept_as_it_is(cells: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="--split tenth"):
        train(cells, run=tmp_path / "no", refit=False, **QUICK)
    quick = {**QUICK, "folds": 5}
    bundle = train(cells, run=tmp_path / "run", refit=False, split="tenth", **quick)
    told = bundle.facts.training
    tested = pl.read_parquet(tmp_path / "run" / "splits.parquet").filter(pl.col("part") == "test")
    assert told["metrics"]["n"] == told["parity"]["cells"] == len(tested) < 22
    assert "not trained again" in told["protocol"]["judged"]
    card = (bundle.path / "card.md").read_text("utf-8")
    assert f"Of these {len(tested)} were kept for the test" in card
    assert "can't be judged on them any more" not in card
    assert not (tmp_path / "run" / "final").exists()


def test_a_bundle_tells_where_it_comes_from(trained: tuple[Bundle, Path]):
    bundle, place = trained
    facts = bundle.facts
    assert bundle.path == place / "mine"
    assert facts.architecture == "alexnet"
    assert facts.classes == ("EOSINOPHIL", "LYMPHOCYTE")
    assert facts.features == 256
    assert facts.preprocessing.views == 1
    assert facts.preprocessing.light == "matched"
    told = facts.training
    assert told["data"]["counts"] == {"EOSINOPHIL": 10, "LYMPHOCYTE": 12}
    assert told["data"]["credits"] == "=nobody"
    assert told["data"]["licence"] == "not stated"
    assert told["protocol"]["folds"] == 2
    assert told["metrics"]["n"] == 22
    limits = told["metrics"]["balanced_accuracy"]
    assert 0 <= limits["low"] <= limits["value"] <= limits["high"] <= 1
    metrics = told["metrics"]
    assert 0 <= metrics["rejected"] <= metrics["rejected"] + metrics["unidentified"] <= 1
    assert told["parity"]["cells"] == 22
    assert told["parity"]["largest_difference"] <= 1e-5
    assert told["parity"]["same_classes"]
    card = (bundle.path / "card.md").read_text()
    card = " ".join(card.split())
    for text in (
        "Research use only", "=nobody", "EOSINOPHIL 10, LYMPHOCYTE 12", "alexnet",
        "*Rejected*, without any class", "than those of 90% of", "stranger than 98% of",
    ):  # fmt: skip
        assert text in card


def test_calibration_comes_from_cells_that_the_model_never_saw(trained: tuple[Bundle, Path]):
    bundle, place = trained
    table = pl.read_parquet(place / "run" / "predictions.parquet")
    splits = pl.read_parquet(place / "run" / "splits.parquet").filter(pl.col("part") == "test")
    assert sorted(table["image"]) == sorted(splits["image"])
    y = np.array([bundle.facts.classes.index(label) for label in table["label"]])
    p = table.select([f"p_{c}" for c in bundle.facts.classes]).to_numpy()
    decision = bundle.facts.decision
    assert decision.temperature == pytest.approx(fit_temperature(y, p))
    assert decision.coverage == 0.8
    assert decision.cells == {"EOSINOPHIL": 10, "LYMPHOCYTE": 12}


def test_the_evaluator_and_the_predictor_agree_from_the_files_on(
    trained: tuple[Bundle, Path], cells: Path
):
    """What the final network's own process answered for each picture, in PyTorch."""
    bundle, place = trained
    result = json.loads((place / "run" / "final" / "alexnet-r0-f0" / "result.json").read_text())
    raw = np.array(result["probabilities"])
    names = sorted(p.relative_to(cells).as_posix() for p in cells.rglob("*.png"))
    found = leuko.load(bundle.path).predict([cells / name for name in names])
    assert [a.cell for a in found] == [1] * 22
    from leuko.judgement.calibration import apply_temperature

    expected = apply_temperature(raw, bundle.facts.decision.temperature)
    # Of 22 cells nobody learns well what cells are like: one or two of its own are rejected.
    kept = np.isfinite(found.probabilities).all(axis=1)
    assert kept.sum() >= 19
    assert np.abs(found.probabilities[kept] - expected[kept]).max() <= 1e-5
    assert np.array_equal(found.probabilities[kept].argmax(1), expected[kept].argmax(1))


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Exporting alone needs no process of its own here: PyTorch is loaded already."""

    def work_here(work: Any, jobs: Any, **_: Any) -> Any:
        return ((job, work(job, lambda _: None)) for job in jobs)

    monkeypatch.setattr("leuko.training.map_jobs", work_here)


@pytest.mark.usefixtures("in_this_process")
def test_a_finished_run_gives_the_same_bundle_again(trained: tuple[Bundle, Path], tmp_path: Path):
    bundle, place = trained
    again = train(resume=place / "run", out=tmp_path / "b.zip", credits="=nobody", coverage=0.8)
    assert again.facts.training == bundle.facts.training
    assert again.facts.decision == bundle.facts.decision
    for kind in (0, 1):
        assert np.array_equal(again.head[kind], bundle.head[kind])


def test_a_run_is_continued_as_it_was_begun_or_not_at_all(
    trained: tuple[Bundle, Path], cells: Path, tmp_path: Path, monkeypatch
):
    _, place = trained
    out = tmp_path / "b"
    for asked, said in (
        ({"half": True}, "half was false, now true"),
        ({"refit": False}, "refit was true, now false"),
        ({"coverage": 0.9}, "coverage was 0.8, now 0.9"),
    ):
        with pytest.raises(ResumeError, match=said):
            train(resume=place / "run", out=out, **asked)
    assert main(["train", "--resume", str(place / "run"), "--out", str(out), "--half"]) == 2
    # As it was left by a version that recorded nothing: nobody can say what was judged.
    before = tmp_path / "before"
    shutil.copytree(place / "run", before)
    (before / "training.json").unlink()
    with pytest.raises(ResumeError, match=r"3 finished trainings and no training.json.*--half"):
        train(resume=before, out=out)
    (before / "training.json").write_text("[]")
    with pytest.raises(ResumeError, match="expected something like"):
        train(resume=before, out=out)
    assert not out.exists()
    # Without a finished training nothing is judged yet; what was asked for first is kept.
    for result in before.glob("*/*/result.json"):
        result.unlink()
    (before / "training.json").unlink()
    begun: list[bool] = []

    def stop(jobs: list[Any], *_: Any, **__: Any) -> None:
        begun.extend(job.half for job in jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr("leuko.training.run_jobs", stop)
    for asked in ({"half": True}, {}):
        with pytest.raises(KeyboardInterrupt):
            train(resume=before, out=out, **asked)
    assert begun == [True] * 6


@pytest.mark.usefixtures("in_this_process")
def test_a_difference_between_pytorch_and_onnx_stops_it(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch
):
    _, place = trained
    monkeypatch.setattr("leuko.training.PARITY", -1.0)
    with pytest.raises(BundleError, match="answers otherwise than PyTorch"):
        train(resume=place / "run", out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_trained_is_refused_before_any_work(
    trained: tuple[Bundle, Path], cells: Path, tmp_path: Path, capsys
):
    bundle, place = trained
    with pytest.raises(OutputError, match="exists"):
        train(cells, out=bundle.path, **QUICK)
    with pytest.raises(ShapeError, match="coverage"):
        train(cells, coverage=1.0, out=tmp_path / "b", **QUICK)
    with pytest.raises(ResumeError, match="models was"):
        train(resume=place / "run", model="resnet18", out=tmp_path / "b")
    with pytest.raises(SettingsError, match="folds"):
        train(cells, out=tmp_path / "b", **{**QUICK, "folds": 1})
    assert main(["train", str(cells), "--run", "a", "--resume", "b"]) == 2
    assert main(["train", str(cells), "--model", "resnet19"]) == 2
    assert "Did you mean 'resnet18'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_is_taken_out_of_a_bundle(trained: tuple[Bundle, Path], tmp_path: Path, capsys):
    bundle, _ = trained
    out = tmp_path / "network.onnx"
    assert main(["export", str(bundle.path), "--out", str(out)]) == 0
    assert out.read_bytes() == (bundle.path / "model.onnx").read_bytes()
    assert main(["export", str(bundle.path), "--out", str(out)]) == 2
    assert main(["export", str(bundle.path), "--to", "tensorrt"]) == 2
    assert "There is no format 'tensorrt'" in capsys.readouterr().err


def test_cells_of_the_test_are_left_unidentified_by_the_rules_of_use():
    """Sure answers all, in two parts; each of the first cells has one reason against it."""
    n = 60
    p = np.full((n, 2), 0.02)
    p[np.arange(n), np.arange(n) % 2] = 0.98
    names = tuple(map(str, range(n)))
    answers = Predictions("m", names, names, np.arange(n) % 2, p[None])
    plan: Any = SimpleNamespace(classes=("A", "B"))
    parts = np.arange(n) % 2

    def judge(**changed: dict[int, float]) -> list[str]:
        given = {"certainty": np.full(n, 0.9), "portraits": np.full(n, 0.5),
                 "features": np.linspace(0.1, 0.2, n)}  # fmt: skip
        for name, values in changed.items():
            given[name][list(values)] = list(values.values())
        decision = _decide(plan, answers, np.ones(n, bool), 0.8)
        return _find_states(plan, answers, parts, 0.8, decision, _Places(**given)).tolist()

    states = judge(certainty={0: 0.4, 1: 0.0}, portraits={2: 1.1}, features={3: 0.9})
    assert states[:5] == ["unidentified", "rejected", "rejected", "unidentified", "pre-classified"]
    assert set(judge()[:50]) == {"pre-classified"}
    # The limit of a part comes from the others: a part that lies far altogether is strange.
    far = judge(features=dict.fromkeys(range(0, n, 2), 0.5))
    assert set(far[::2]) == {"unidentified"}


def test_a_class_that_is_rare_in_each_part_leaves_no_cell_in_doubt_that_use_would_name():
    """20 cells have a threshold for 95 %, the 10 of a part have none: in use there is one."""
    y = np.repeat([0, 1], [80, 20])
    p = np.full((100, 2), 0.02)
    p[np.arange(100), y] = 0.98
    names = tuple(map(str, range(100)))
    answers = Predictions("m", names, names, y, p[None])
    plan: Any = SimpleNamespace(classes=("A", "B"))
    decision = _decide(plan, answers, np.ones(100, bool), 0.95)
    places = _Places(np.full(100, 0.9), np.full(100, 0.5), np.linspace(0.1, 0.2, 100))
    states = _find_states(plan, answers, np.arange(100) % 2, 0.95, decision, places)
    assert set(states[:90]) == {"pre-classified"}


def test_the_advice_after_ctrl_c_keeps_the_bundle():
    words = ["train", "set", "--out", "mine", "--run", "r"]
    assert resume_command(words, Path("r")) == "leuko train set --out mine --resume r"
