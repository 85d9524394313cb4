"""The weights that ship with the package: there, small, whole, and honest about what they saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from leuko.data.drawing import draw_cell
from leuko.data.image import encode_png, resize_image
from leuko.errors import SeenImagesError, WeightsError
from leuko.learning.models import DEFAULT_MODELS, build
from leuko.learning.starts import (
    answer,
    check_unseen,
    find_seen,
    find_start,
    list_starts,
    pack_hashes,
    read_hashes,
    write_half,
)
from leuko.study import compare
from leuko.use.predictor import load


def test_there_is_a_start_for_each_default_model_and_all_are_small():
    assert set(list_starts()) >= set(DEFAULT_MODELS)
    assert sum(find_start(m).path.stat().st_size for m in list_starts()) <= 40e6


@pytest.mark.parametrize("model", DEFAULT_MODELS)
def test_a_start_fits_its_network_and_has_its_papers(model):
    start = find_start(model)
    network = build(model, 3, size=start.size, init="blood", seed=0)
    given = {k: torch.from_numpy(v).float() for k, v in load_file(start.path).items()}
    own = network.state_dict()
    body = list(own)[:-2]
    assert all(torch.equal(own[k].float(), given[k]) for k in body)
    card = start.path.with_suffix(".md").read_text("utf-8")
    assert "CC BY 4.0" in card
    assert "leuko pretrain" in card
    assert start.facts["kept_aside"]["n"] > 1000
    assert start.facts["data"]["trained_on"] == len(read_hashes(start.path.with_suffix(".seen")))


def test_a_start_answers_in_the_classes_it_was_trained_on():
    rng = np.random.default_rng(0)
    pictures = np.stack(
        [resize_image(draw_cell(rng, kind, 96), 96, 96) for kind in ("LYMPHOCYTE", "NEUTROPHIL")]
    )
    classes, p = answer("alexnet", pictures)
    assert {"lymphocyte", "neutrophil", "platelet"} <= set(classes)
    assert p.shape == (2, len(classes))
    assert p.sum(1) == pytest.approx(1)


def test_what_was_seen_is_told_by_hash():
    seen = next(iter(read_hashes(find_start("alexnet").path.with_suffix(".seen"))))
    known, other = f"{seen:016x}" + "0" * 48, "f" * 64
    assert find_seen("alexnet", [known, other]) == {known}
    check_unseen(["alexnet"], {other})
    with pytest.raises(SeenImagesError, match="1 of the 2 images"):
        check_unseen(["alexnet"], {known, other})


def test_hashes_are_kept_in_eight_bytes_each(tmp_path: Path):
    hashes = [f"{i:016x}" + "a" * 48 for i in (7, 2**63, 7)]
    (tmp_path / "x.seen").write_bytes(pack_hashes(hashes))
    assert (tmp_path / "x.seen").stat().st_size == 16
    assert read_hashes(tmp_path / "x.seen") == {7, 2**63}


def test_half_precision_keeps_shapes_and_small_things(tmp_path: Path):
    tensors = {
        "weight": np.full((2, 3), 0.1, np.float32),
        "bias": np.full(3, 1e-7, np.float32),
        "counter": np.array(5, np.int64),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    halved = load_file(write_half(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert halved["weight"].dtype == np.float16
    assert halved["bias"].dtype == np.float32
    assert halved["counter"].shape == ()
    assert halved["counter"] == 5


def test_a_network_without_a_start_is_told_what_to_do():
    with pytest.raises(WeightsError, match="--init random"):
        find_start("resnet50")


def test_a_study_asks_the_starts_that_never_saw_its_laboratory(tmp_path: Path):
    rng = np.random.default_rng(0)
    for kind in ("LYMPHOCYTE", "NEUTROPHIL"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(16):
            picture = encode_png(draw_cell(rng, kind, 96))
            (tmp_path / "set" / kind / f"{i:02}.png").write_bytes(picture)
    study = compare(
        tmp_path / "set", models=("alexnet",), folds=2, epochs=1, views=1, leak_meter=False,
        groups="given", recipe="minimal", out=tmp_path / "run",
    )  # fmt: skip
    told = {o["name"]: o for o in study.results["labels"]["opinions"]}
    assert told["alexnet, pretrained elsewhere"]["kind"] == "foreign"
    assert told["alexnet"]["kind"] == "own"
    assert told["alexnet, pretrained elsewhere"]["n"] == 32


def test_the_shipped_bundle_answers_without_being_named(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "cell.png").write_bytes(encode_png(draw_cell(rng, "LYMPHOCYTE", 192)))
    model = load()
    found = model.predict(tmp_path / "cell.png")
    assert len(model.classes) == 8
    assert len(found.answers) == 1
    probabilities = model.predict_proba(tmp_path / "cell.png")
    assert probabilities.shape == (1, 8)
    # A drawing is no blood: it gets no class, and says why.
    assert found.answers[0].state == "rejected"
    assert found.answers[0].reason
