"""Pretraining: a start for other studies, with its card, and a list of what it has seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from leuko.cli import main
from leuko.data.drawing import draw_cell
from leuko.data.image import encode_png
from leuko.data.manifest import read_manifest
from leuko.errors import DataError, ResumeError, SeenImagesError, SettingsError, WeightsError
from leuko.learning import starts
from leuko.pretraining import Pretrained, pretrain, write_starts
from leuko.study import compare

QUICK = {"model": "alexnet", "epochs": 2, "batch": 8, "size": 96, "views": 1}


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "cells"
    rng = np.random.default_rng(0)
    for kind in ("LYMPHOCYTE", "EOSINOPHIL"):
        (folder / kind).mkdir(parents=True)
        for i in range(12):
            (folder / kind / f"{i:02}.png").write_bytes(encode_png(draw_cell(rng, kind, 96)))
    return folder


@pytest.fixture(scope="module")
def made(cells: Path, tmp_path_factory) -> Pretrained:
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    return pretrain(cells, out=run, credit="drawn, CC0", **QUICK)


@pytest.fixture
def shipped(made: Pretrained, monkeypatch) -> Path:
    """As if what was trained here shipped with the package."""
    folder = made.starts["alexnet"].parent
    monkeypatch.setattr(starts, "_find_folder", lambda: folder)
    return folder


def test_a_tenth_is_kept_aside_and_judged(made):
    splits = pl.read_parquet(made.study.folder / "splits.parquet")
    assert splits.select("repeat", "fold").n_unique() == 1
    tested = splits.filter(pl.col("part") == "test")
    assert 2 <= len(tested) <= 4
    facts = json.loads(made.starts["alexnet"].with_suffix(".json").read_text())
    assert facts["kept_aside"]["n"] == len(tested)
    assert facts["classes"] == ["EOSINOPHIL", "LYMPHOCYTE"]
    assert facts["data"]["credit"] == "drawn, CC0"
    assert "not\nfor diagnosis" in made.starts["alexnet"].with_suffix(".md").read_text()


def test_the_file_is_in_half_precision_and_small_things_are_not(made):
    tensors = load_file(made.starts["alexnet"])
    assert {t.dtype.name for t in tensors.values() if t.ndim >= 2} == {"float16"}
    assert {t.dtype.name for t in tensors.values() if t.ndim == 1} == {"float32"}


def test_a_start_is_used_by_path_and_says_what_it_learnt(made, shipped, cells, tmp_path):
    with np.load(made.study.folder / "cells.npz") as file:
        pictures = file["cells"]
    classes, p = starts.answer("alexnet", pictures, views=1)
    assert classes == ("EOSINOPHIL", "LYMPHOCYTE")
    assert p.sum(1) == pytest.approx(1)
    assert p.shape == (len(pictures), 2)
    study = compare(
        cells, models=("alexnet",), folds=2, epochs=1, size=64, views=1, leak_meter=False,
        init=str(made.starts["alexnet"]), out=tmp_path / "run",
    )  # fmt: skip
    assert study.results["protocol"]["init"].endswith("alexnet.safetensors")


def test_nobody_is_tested_on_what_a_start_has_seen(made, shipped, cells, tmp_path):
    manifest = read_manifest(made.study.folder / "manifest.parquet")
    hashes = dict(manifest.table.select("image", "sha256").iter_rows())
    splits = pl.read_parquet(made.study.folder / "splits.parquet")
    seen = starts.find_seen("alexnet", hashes.values())
    assert seen == {hashes[i] for i in splits.filter(pl.col("part") == "train")["image"]}
    with pytest.raises(SeenImagesError, match="--init random"):
        compare(cells, models=("alexnet",), folds=2, init="blood", size=64, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_start_is_told_at_once(shipped, cells, tmp_path):
    with pytest.raises(WeightsError, match="leuko pretrain DATA --model resnet34"):
        compare(cells, models=("resnet34",), init="blood", out=tmp_path / "run")


def test_a_study_of_several_folds_gives_no_start(cells, tmp_path):
    study = compare(
        cells, models=("alexnet",), folds=2, epochs=1, size=64, views=1, leak_meter=False,
        init="random", out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(DataError, match="one split"):
        write_starts(study)


def test_a_run_that_is_resumed_knows_its_model(made, capsys):
    run = made.study.folder
    assert pretrain(resume=run).starts.keys() == {"alexnet"}
    with pytest.raises(ResumeError, match="models"):
        pretrain(resume=run, model="resnet18")
    with pytest.raises(SettingsError, match="--model resnet18"):
        pretrain()
    assert main(["pretrain"]) == 2
    assert "name one, such as" in capsys.readouterr().err
