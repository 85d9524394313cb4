"""Telling what is no cell: planted outliers, another laboratory's cells, tampered references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leuko.data.drawing import draw_cell
from leuko.data.leukocytes import Leukocyte
from leuko.data.portraits import describe_cell
from leuko.errors import BundleError, ShapeError
from leuko.judgement.outliers import (
    Reference,
    add_examples,
    choose_feature_limit,
    fit_reference,
    score_features,
    score_portraits,
)
from leuko.learning.bundle import REFERENCE, load_bundle, write_bundle
from leuko.learning.card import write_card
from leuko.learning.export import export_network
from leuko.learning.facts import Outliers
from leuko.learning.parts import read_tensors, write_sums, write_tensors
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED
from leuko.use.predictor import STRANGE, UNLIKE, Predictor, judge_cell
from small_bundle import SIZE, make_facts, make_network, state

KINDS = ("EOSINOPHIL", "LYMPHOCYTE", "NEUTROPHIL")


def make_clusters(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Portraits along four of twenty directions, features about three centres."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(4, 20))
    portraits = rng.normal(size=(count, 4)) @ directions + 0.1 * rng.normal(size=(count, 20))
    centres = np.random.default_rng(2).normal(size=(3, 30)) * 3
    features = centres[rng.integers(0, 3, count)] + 0.4 * rng.normal(size=(count, 30))
    return portraits, features


def test_what_is_alike_stays_within_the_limits_and_what_is_not_lies_beyond():
    portraits, features = make_clusters(0)
    reference, limit = fit_reference(portraits, features)
    own_portraits, own_features = make_clusters(5)
    kept = score_portraits(reference, own_portraits) <= limit
    assert 0.8 < kept.mean() < 0.97
    far = np.random.default_rng(3).normal(size=(100, 20)) * 4
    assert (score_portraits(reference, far) > limit).all()
    bound = choose_feature_limit(score_features(reference, own_features))
    assert (score_features(reference, own_features) <= bound).mean() >= 0.97
    elsewhere = np.random.default_rng(4).normal(size=(100, 30))
    assert (score_features(reference, elsewhere) > bound).mean() > 0.95


def test_examples_of_another_laboratory_become_known():
    portraits, features = make_clusters(0)
    reference, _ = fit_reference(portraits, features)
    other = np.random.default_rng(9).normal(size=(1, 30)) * 3 + 0.3 * np.random.default_rng(
        10
    ).normal(size=(60, 30))
    before = score_features(reference, other[30:])
    after = score_features(add_examples(reference, other[:30]), other[30:])
    assert (after <= before + 1e-9).all()
    assert np.median(after) < 0.7 * np.median(before)


def test_scores_do_not_depend_on_neighbours_or_length():
    portraits, features = make_clusters(0)
    reference, _ = fit_reference(portraits, features)
    together = score_features(reference, features[:9])
    assert np.allclose(together[4], score_features(reference, features[4:5]), atol=1e-9)
    assert np.allclose(together, score_features(reference, 7 * features[:9]), atol=1e-9)


@pytest.mark.parametrize(("portraits", "features"), [(4, 3), (20, 0)])
def test_too_few_cells_are_refused(portraits: int, features: int):
    with pytest.raises(ShapeError, match="Use more images"):
        fit_reference(np.zeros((portraits, 5)), np.zeros((features, 4)))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Path:
    """A bundle that knows drawn cells."""
    rng = np.random.default_rng(0)
    cells = np.stack([draw_cell(rng, KINDS[i % 3], SIZE) for i in range(120)])
    network = make_network()
    model = export_network(network, size=SIZE)
    plain = make_facts(network)
    path = tmp_path_factory.mktemp("known")
    simple = write_bundle(
        path / "plain", plain, weights=state(network), model=model, card=write_card(plain)
    )
    portraits = np.stack([describe_cell(cell) for cell in cells])
    _, features = simple.answer(cells)
    reference, limit = fit_reference(portraits, features)
    bound = choose_feature_limit(score_features(reference, features)) * 1.5
    facts = replace(plain, decision=replace(plain.decision, outliers=Outliers(1.5 * limit, bound)))
    return write_bundle(
        path / "bundle", facts, weights=state(network), model=model, card=write_card(facts),
        reference=reference,
    ).path  # fmt: skip


def test_noise_gets_no_class_and_a_cell_does(bundled: Path):
    model = Predictor(load_bundle(bundled, threads=1))
    rng = np.random.default_rng(8)
    cells = np.stack([draw_cell(rng, KINDS[i % 3], SIZE) for i in range(20)])
    noise = rng.integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    middle = [Leukocyte(0.0, 0.0, 32.0, 32.0, score=1.0, scale=1.6)] * 20
    kept, _ = model.answer_cells([f"{i}" for i in range(20)], middle, list(cells))
    refused, probabilities = model.answer_cells([f"{i}" for i in range(20)], middle, list(noise))
    assert sum(answer.state == REJECTED for answer in kept) <= 4
    for answer in refused:
        assert (answer.state, answer.label, answer.probabilities) == (REJECTED, None, None)
        assert answer.reason
    assert probabilities.shape == (20, 3)


@pytest.mark.parametrize(
    ("scores", "state", "reason"),
    [((0.9, 0.9), None, ""), ((1.1, 0.9), REJECTED, UNLIKE), ((0.9, 1.1), UNIDENTIFIED, STRANGE)],
)
def test_a_strange_picture_is_rejected_and_a_strange_cell_left_to_a_person(
    bundled: Path, scores: tuple[float, float], state: str | None, reason: str
):
    bundle = load_bundle(bundled, threads=1)
    sure = np.array([0.98, 0.01, 0.01])
    cell = Leukocyte(0.0, 0.0, 32.0, 32.0, score=1.0, scale=1.6)
    chosen, found, why = judge_cell(cell, sure, np.array(scores), bundle)
    assert (found, why) == (state or PRE_CLASSIFIED, reason)
    assert chosen == (() if state == REJECTED else (bundle.facts.classes[0],))


def test_a_changed_or_missing_reference_is_refused(bundled: Path, tmp_path: Path):
    parts = {file.name: file.read_bytes() for file in bundled.iterdir()}
    tensors, texts = read_tensors(REFERENCE, parts[REFERENCE])

    def refuse(name: str, changed: dict[str, bytes], match: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        changed = {k: v for k, v in changed.items() if k != "SHA256SUMS"}
        changed["SHA256SUMS"] = write_sums(changed)
        for part, data in changed.items():
            (folder / part).write_bytes(data)
        with pytest.raises(BundleError, match=match):
            load_bundle(folder, threads=1)

    missing = {k: v for k, v in parts.items() if k != REFERENCE}
    refuse("missing", missing, "don't belong together")
    wrong = {**tensors, "spread": tensors["spread"] * np.float16(2)}
    refuse("spread", {**parts, REFERENCE: write_tensors(wrong, texts)}, "golden pictures lie")
    short = {**tensors, "axes": tensors["axes"][1:]}
    refuse("short", {**parts, REFERENCE: write_tensors(short, texts)}, "fit each other")
    refuse("text", {**parts, REFERENCE: write_tensors(tensors, {})}, "which model it is")


def test_a_reference_keeps_its_names():
    portraits, features = make_clusters(0)
    reference, _ = fit_reference(portraits, features)
    assert isinstance(reference, Reference)
    assert set(reference.to_tensors()) == {
        "centre", "spread", "axes", "feature_axes", "examples",
    }  # fmt: skip
