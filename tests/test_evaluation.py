"""Judging a bundle on a labelled set: the contract, planted faults, maps, what is set aside."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leuko
import small_bundle
from leuko.cli import main
from leuko.data.drawing import draw_cell
from leuko.data.image import encode_png
from leuko.data.manifest import hash_data
from leuko.data.pictures import cut_pictures
from leuko.data.sources import scan
from leuko.errors import DataError, OutputError, UnknownNameError
from leuko.evaluation import evaluate
from leuko.judgement.calibration import find_coverage_band, find_sets, fit_thresholds
from leuko.judgement.evaluation import STATES
from leuko.judgement.selective import judge_orders, measure_risk, trace_risk
from leuko.learning.batches import DEVIATION, MEAN, make_input
from leuko.learning.export import export_network
from leuko.learning.seen import describe_seen
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED, name_columns
from leuko.use.predictor import NO_CELL, Predictor, load
from small_bundle import CLASSES, SIZE, make_bundle, make_network, make_training

LIMITED = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
CELLS = 30

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """Drawn single cells, c0.png to c29.png."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(1)
    for i in range(CELLS):
        cell = draw_cell(rng, CLASSES[i % 3], size=160)
        (folder / f"c{i}.png").write_bytes(encode_png(cell))
    return folder


@pytest.fixture(scope="module")
def write(pool: Path) -> Write:
    """Writes a table of labels, by the numbers of the cells."""

    def write_table(name: str, labels: list[str], more: list[tuple[str, str]] = []) -> Path:  # noqa: B006
        path = pool / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "label"])
            table.writerows([(f"c{i}.png", label) for i, label in enumerate(labels)] + more)
        return path

    return write_table


@pytest.fixture(scope="module")
def model(tmp_path_factory, write: Write) -> Predictor:
    """A network with random weights, whose answers to the pool are of every class."""
    manifest = scan(write("unknown", ["cell"] * CELLS))
    _, cells, _ = cut_pictures(manifest, view="cell", size=SIZE, light="matched")
    network = make_network()
    taken = make_input(torch.from_numpy(cells), torch.tensor(MEAN), torch.tensor(DEVIATION))
    with torch.no_grad():
        logits = network(taken)
        network[-1].weight.div_(logits.std(dim=0, keepdim=True).T / 3)
        network[-1].bias.zero_()
        network[-1].bias.sub_(network(taken).mean(dim=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_bundle, "make_network", lambda **_: network)
        exported = export_network(network, size=SIZE)
        path = make_bundle(tmp_path_factory.mktemp("model") / "small", exported).path
    return load(path, threads=1)


@pytest.fixture(scope="module")
def said(model: Predictor, write: Write) -> list[str]:
    """What the model answers to each cell: labels with which it is always right."""
    manifest = scan(write("asked", ["cell"] * CELLS))
    prepared = model.bundle.facts.preprocessing
    _, cells, _ = cut_pictures(manifest, view="cell", size=prepared.size, light=prepared.light)
    answers, _ = model.bundle.answer(cells)
    labels = [CLASSES[k] for k in answers.argmax(axis=1)]
    assert set(labels) == set(CLASSES)
    return labels


def judge(model: Predictor, data: Any, **how: Any) -> dict[str, Any]:
    return evaluate(model, data, groups="given", **how).results


def test_the_contract_of_the_json_and_the_folder(
    model: Predictor, write: Write, said: list[str], tmp_path: Path, capsys
):
    labels = [*said[:-1], next(c for c in CLASSES if c != said[-1])]
    data, out = write("contract", labels), tmp_path / "out"
    words = ["evaluate", str(model.bundle.path), str(data), "--groups", "given"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "evaluation.json").read_text("utf-8"))
    assert (results["n"], results["classes"]) == (CELLS, list(CLASSES))
    for key in LIMITED:
        assert 0 <= results[key]["low"] <= results[key]["value"] <= results[key]["high"] <= 1
    assert results["accuracy"]["value"] == pytest.approx(1 - 1 / CELLS)
    confusion = np.array(results["confusion"])
    assert confusion.shape == (3, 3)
    assert confusion.sum(axis=1).tolist() == [labels.count(c) for c in CLASSES]  # rows: truth
    assert confusion[CLASSES.index(labels[-1]), CLASSES.index(said[-1])] == 1
    for name, row in results["per_class"].items():
        assert row["n"] == labels.count(name)
        assert {"precision", "recall", "f1"} <= set(row)
    assert results["coverage"]["target"] == 0.9
    assert 0 <= results["coverage"]["observed"] <= 1
    shares = [results["states"][state]["value"] for state in STATES]
    assert sum(shares) == pytest.approx(1)
    assert (results["unidentified"], results["rejected"]) == (shares[1], shares[2])
    assert (PRE_CLASSIFIED, UNIDENTIFIED, REJECTED) == STATES
    rows = list(csv.reader(io.StringIO((out / "answers.csv").read_text("utf-8"))))
    assert rows[0] == [*name_columns(CLASSES), "truth", "group"]
    assert [row[-2] for row in rows[1:]] == labels
    page = (out / "evaluation.html").read_text("utf-8")
    assert "Research use only" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)  # nothing from elsewhere
    assert main([*words, "--out", str(out)]) == 2  # nothing is overwritten


def test_the_numbers_are_those_of_the_bundle_on_the_pictures_of_training(
    model: Predictor, write: Write, said: list[str]
):
    data = write("same", said)
    names, cells, _ = cut_pictures(scan(data), view="cell", size=SIZE, light="matched")
    expected, _ = model.bundle.answer(cells)
    found = evaluate(model, data, groups="given")
    assert [a.image for a in found.answers] == names
    assert found.probabilities.tobytes() == expected.tobytes()
    pictures = model.predict(data)  # and so does prediction, with its states
    assert [(a.image, a.probabilities, a.state) for a in pictures] == [
        (a.image, a.probabilities, a.state) for a in found.answers
    ]


def test_a_model_that_looks_elsewhere_is_a_warning(
    model: Predictor, write: Write, said: list[str], monkeypatch
):
    """What the cells are is turned round: a corner is said to be the cell, and the cell isn't."""
    table = write("elsewhere", said)
    fair = evaluate(model, table).results
    assert fair["attention"]["n"] >= 20
    assert fair["attention"]["map"] == list(model.bundle.network.map or ())
    assert not any("looks elsewhere" in warning for warning in fair["warnings"])
    corner = np.array([[0.0, 0.0, 0.15, 0.15]])
    monkeypatch.setattr(
        "leuko.use.attention.locate_cells", lambda _, images, **how: dict.fromkeys(images, corner)
    )
    found = evaluate(model, table).results
    assert found["attention"]["without"]["value"] > found["attention"]["alone"]["value"]
    assert any("looks elsewhere" in warning for warning in found["warnings"])


def test_planted_faults_show_in_the_numbers(model: Predictor, write: Write, said: list[str]):
    right = judge(model, write("right", said))
    assert right["accuracy"]["value"] == 1
    assert right["accuracy"]["low"] < 1  # none of 30 wrong doesn't prove that none ever is
    assert right["risk"]["full_error"] == 0
    turned = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    permuted = judge(model, write("permuted", [turned[c] for c in said]))
    assert permuted["accuracy"]["value"] == 0
    assert permuted["accuracy"]["high"] < 0.2
    table = np.array(permuted["confusion"])
    assert (table == np.roll(np.diag([said.count(c) for c in CLASSES]), 1, axis=0)).all()
    rng = np.random.default_rng(0)
    chance = [
        judge(model, write("shuffled", rng.permutation(said).tolist()))["accuracy"]
        for _ in range(3)
    ]
    expected = sum((said.count(c) / CELLS) ** 2 for c in CLASSES)
    assert all(one["low"] < expected + 0.12 and one["value"] < 0.75 for one in chance)


def test_a_set_the_model_was_trained_on_is_recognised(
    model: Predictor, write: Write, said: list[str], tmp_path: Path, capsys
):
    data = write("trained", said)
    hashes = scan(data).table["sha256"].to_list()
    assert judge(model, data)["warnings"] == []

    def remember(name: str, seen: Any) -> Predictor:
        training = {**make_training(CLASSES), "seen": seen}
        return load(make_bundle(tmp_path / name, training=training).path, threads=1)

    taught = remember("taught", describe_seen(hashes[:20], hashes[20:25]))
    results = judge(taught, data)
    assert results["seen"]["trained"] == results["seen"]["related"] == 20
    assert results["seen"]["calibrated"] == 5
    assert results["seen"]["unseen"]["n"] == 10
    assert "trained on 20 images of 30" in results["warnings"][0]
    out = tmp_path / "out"
    assert main(["evaluate", str(taught.bundle.path), str(data), "--groups", "given",
                 "--out", str(out)]) == 0  # fmt: skip
    assert "WARNING: The model was trained on 20 images" in capsys.readouterr().err
    assert "trained on 20 images" in (out / "evaluation.html").read_text("utf-8")
    fitted = remember("fitted", describe_seen([], hashes))
    assert "Temperature and thresholds" in judge(fitted, data)["warnings"][0]
    told = judge(taught, data)["warnings"]
    assert any("come from 5 others of 30" in said for said in told), "fewer than it learnt"
    damaged = remember("damaged", [1, 2])
    assert judge(damaged, data)["seen"]["listed"] is False, "nothing is known"


def test_the_hash_of_the_whole_set_is_enough_where_no_image_is_listed(
    tmp_path: Path, write: Write, said: list[str]
):
    data = write("whole", said)
    training = make_training(CLASSES)
    training["data"]["sha256"] = hash_data(scan(data))
    other = load(make_bundle(tmp_path / "other", training=training).path, threads=1)
    assert "the set that the model was made from" in judge(other, data)["warnings"][0]


def test_classes_of_other_names_are_mapped_and_unknown_ones_told_apart(
    model: Predictor, write: Write, said: list[str], tmp_path: Path
):
    short = {"NEUTROPHIL": "neutrophils", "LYMPHOCYTE": "L", "EOSINOPHIL": "Eos"}
    labels = [short[c] for c in said]
    labels[:2] = ["blast", "blast"]
    data = write("mapped", labels)
    table = tmp_path / "map.toml"
    table.write_text('[mapped]\nL = "lymphocyte"\nEos = "EOSINOPHIL"\n')
    results = judge(model, data, map=table)
    assert results["n"] == CELLS - 2
    assert results["accuracy"]["value"] == 1
    assert results["names"]["neutrophils"] == "NEUTROPHIL"
    assert results["unknown"]["blast"]["n"] == 2
    assert sum(results["unknown"]["blast"]["answers"].values()) == 2
    assert "blast" in results["warnings"][0]
    assert results["forced"] is None
    with pytest.raises(UnknownNameError, match="Did you mean 'Eos'"):
        judge(model, data, map={"mapped": {"Eoss": "EOSINOPHIL"}})
    with pytest.raises(DataError, match=r"\[mapped\] and \[model\]"):
        judge(model, write("mapped", ["x"] * CELLS))


def test_classes_the_set_does_not_have_are_told_both_ways(
    model: Predictor, write: Write, said: list[str]
):
    # What the model calls the third class is labelled as the first here.
    labels = [CLASSES[0] if c == CLASSES[2] else c for c in said]
    results = judge(model, write("fewer", labels))
    assert results["absent"] == [CLASSES[2]]
    assert results["per_class"][CLASSES[2]]["n"] == 0
    assert results["accuracy"]["value"] == pytest.approx(1 - said.count(CLASSES[2]) / CELLS)
    assert results["forced"]["classes"] == list(CLASSES[:2])
    assert results["forced"]["accuracy"]["value"] > results["accuracy"]["value"]


def test_classes_that_a_map_joins_are_one(model: Predictor, write: Write, said: list[str]):
    joined = {CLASSES[0]: "granulocyte", CLASSES[2]: "granulocyte"}
    labels = [joined.get(c, c) for c in said]
    results = judge(model, write("joined", labels), map={"model": joined})
    assert results["classes"] == ["granulocyte", CLASSES[1]]
    assert np.array(results["confusion"]).shape == (2, 2)
    assert results["accuracy"]["value"] > 0.9
    assert results["coverage"]["band"] is None  # thresholds are those of single classes


def test_what_cannot_be_judged_is_listed_with_its_reason(
    model: Predictor, write: Write, said: list[str], pool: Path, tmp_path: Path, capsys
):
    (pool / "broken.png").write_bytes((pool / "c0.png").read_bytes()[:2000])
    Image.fromarray(np.full((160, 160, 3), 200, np.uint8)).save(pool / "empty.png")
    more = [("broken.png", CLASSES[0]), ("gone.png", CLASSES[0]), ("c28.png", CLASSES[0]),
            ("c29.png", ""), ("empty.png", CLASSES[0])]  # fmt: skip
    labels = [*said[:-3], f"{CLASSES[0]}, {CLASSES[1]}", CLASSES[1], ""]
    data = write("faulty", labels, more)
    out = tmp_path / "out"
    words = ["evaluate", str(model.bundle.path), str(data), "--groups", "given", "--out", str(out)]
    assert main(words) == 3
    told = capsys.readouterr().err
    results = json.loads((out / "evaluation.json").read_text("utf-8"))
    reasons = {one["image"]: one["reason"] for one in results["data"]["set_aside"]}
    assert reasons == {
        "c27.png": "many_labels", "c28.png": "label_conflict", "c29.png": "no_label",
        "broken.png": "truncated", "gone.png": "no_image",
    }  # fmt: skip
    assert all(image in told for image in reasons)
    assert results["data"]["no_cell"] == ["empty.png"]
    assert results["states"]["rejected"]["n"] == 1
    rows = list(csv.DictReader(io.StringIO((out / "answers.csv").read_text("utf-8"))))
    assert (rows[-1]["state"], rows[-1]["reason"]) == (REJECTED, NO_CELL)
    assert results["n"] == CELLS - 3 + 1


def test_hostile_names_stay_text(
    model: Predictor, write: Write, said: list[str], pool: Path, tmp_path: Path
):
    evil = "<img src=x onerror=alert(1)>"
    (pool / "=1+1.png").write_bytes((pool / "c0.png").read_bytes())
    data = write("hostile", [*said[:-1], evil], [("=1+1.png", said[0])])
    out = tmp_path / "out"
    found = evaluate(model, data, groups="given", out=out)
    page = (out / "evaluation.html").read_text("utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert found.results["unknown"][evil]["n"] == 1
    assert "'=1+1.png" in (out / "answers.csv").read_text("utf-8")


def test_images_of_one_group_are_resampled_together(model: Predictor, pool: Path, said: list[str]):
    path = pool / "grouped.csv"
    labels = [said[i] if i % 3 else CLASSES[CLASSES.index(said[i]) - 1] for i in range(CELLS)]

    def width(groups: int) -> float:
        rows = [f"c{i}.png,{label},g{i % groups}" for i, label in enumerate(labels)]
        path.write_text("\n".join(["image,label,group", *rows]))
        value = judge(model, path)["accuracy"]
        return value["high"] - value["low"]

    assert width(3) > 1.5 * width(30)


def test_wrong_use_is_refused_before_any_work(model: Predictor, write: Write, tmp_path: Path):
    data = write("refused", [CLASSES[0]] * CELLS)
    with pytest.raises(UnknownNameError, match="cell"):
        evaluate(model, data, groups="cels")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError):
        evaluate(model, data, out=tmp_path / "full")
    assert main(["evaluate", str(tmp_path / "nothing"), str(data)]) == 1


# --- the numbers by themselves --------------------------------------------------------------------


def test_risk_against_coverage_by_hand():
    wrong = np.array([False, True, False, True])
    coverage, risk = trace_risk(wrong, np.array([0.9, 0.6, 0.8, 0.5]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.5]
    (area,), (at,) = measure_risk(wrong, np.array([0.9, 0.6, 0.8, 0.5]), np.ones((1, 4)))
    assert area == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert at == 0.5  # 80 % of four answers are four
    same = np.full(4, 0.7)  # no order at all: the risk is that of all, whatever the rows' order
    assert measure_risk(wrong, same, np.ones((1, 4)))[0][0] == 0.5
    assert measure_risk(wrong[::-1], same, np.ones((1, 4)))[0][0] == 0.5


def test_a_resample_of_the_risk_is_what_repeating_the_rows_gives():
    rng = np.random.default_rng(3)
    wrong, sure = rng.random(40) < 0.3, rng.random(40).round(1)
    weights = rng.multinomial(40, np.full(40, 1 / 40), 20)
    areas, risks = measure_risk(wrong, sure, weights)
    for b, w in enumerate(weights):
        rows = np.repeat(np.arange(40), w)
        (area,), (risk,) = measure_risk(wrong[rows], sure[rows], np.ones((1, 40)))
        assert (areas[b], risks[b]) == (pytest.approx(area), pytest.approx(risk))


def test_a_useful_order_is_told_from_a_useless_one():
    rng = np.random.default_rng(0)
    sure = rng.random(400)
    wrong = rng.random(400) > 0.5 + sure / 2
    groups = [str(i) for i in range(400)]
    told = judge_orders(wrong, {"good": sure, "none": rng.random(400)}, groups, seed=0)
    assert told["good"]["error_at_80"]["high"] < told["full_error"]
    assert told["differences"]["none"]["high"] < 0
    right = judge_orders(wrong & False, {"good": sure}, groups, seed=0)["good"]["error_at_80"]
    assert right["value"] == 0 < right["high"] < 0.02  # none of 320 isn't never
    never = judge_orders(wrong | True, {"good": sure}, groups, seed=0)["good"]["error_at_80"]
    assert never["value"] == 1 > never["low"] > 0.98


def test_the_band_of_coverage_is_where_conformal_sets_fall():
    assert find_coverage_band([500], [500], 0.9) == (0.848, 0.944)  # the exact Beta-binomial
    assert find_coverage_band([5], [10], 0.9) == (1.0, 1.0)  # too few: in every set
    assert find_coverage_band([50], [0], 0.9) == (0.0, 1.0)
    rng = np.random.default_rng(2)
    inside = outside = 0
    for _ in range(200):
        y, p = rng.integers(0, 2, 400), rng.dirichlet((2, 2), 400)
        counts = [np.bincount(part, minlength=2).tolist() for part in (y[:200], y[200:])]
        low, high = find_coverage_band(*counts, 0.9)
        for asked in (0.9, 0.75):
            sets = find_sets(p[200:], fit_thresholds(y[:200], p[:200], asked))
            held = low <= sets[np.arange(200), y[200:]].mean() <= high
            inside += held and asked == 0.9
            outside += not held and asked == 0.75
    assert inside >= 194
    assert outside >= 150  # the negative control


def test_evaluation_never_loads_torch(model: Predictor, write: Write, said: list[str]):
    script = (
        "import sys, leuko; leuko.evaluate(sys.argv[1], sys.argv[2], groups='given'); "
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", script, str(model.bundle.path), str(write("torchless", said))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert callable(leuko.evaluate)
