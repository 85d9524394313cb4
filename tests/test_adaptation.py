"""A new microscope: what a few labelled cells give back, and that they can't do harm."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import leuko
from leuko.cli import main
from leuko.data.image import encode_png
from leuko.data.sources import scan
from leuko.errors import AdaptationError, BundleError, ShapeError
from leuko.judgement.calibration import fit_temperature, fit_thresholds, fit_thresholds_from_few
from leuko.judgement.metrics import balanced_accuracy
from leuko.learning.bundle import MODEL, WEIGHTS, Bundle, load_bundle
from leuko.learning.card import write_card
from leuko.learning.graph import read_graph, replace_tensors
from leuko.learning.head import answer_features, fit_head, fit_heads
from leuko.learning.parts import read_parts, read_tensors
from leuko.learning.seen import add_seen, describe_seen, find_seen_by
from leuko.microscope import see_features
from leuko.use.adaptation import Examples, adapt_head, choose_sizes
from leuko.use.differential import count_differential
from leuko.use.differential_page import write_page
from leuko.use.fhir import write_fhir
from leuko.use.record import read_record
from small_bundle import CLASSES, SIZE, make_bundle, make_training

K, D = 4, 32
NAMES = ["basophil", "eosinophil", "lymphocyte", "monocyte"]


def draw_cells(
    n: int, seed: int = 0, *, shift: float = 0.0, classes: int = K
) -> tuple[np.ndarray, np.ndarray]:
    """Features of cells of several classes; `shift` is what another stain does to all of them."""
    world = np.random.default_rng(99)
    centres, lamp = world.normal(size=(K, D)), world.normal(size=D)
    mixing = np.eye(D) + 0.5 * shift * world.normal(size=(D, D)) / np.sqrt(D)
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    x = centres[y] + 0.9 * rng.normal(size=(n, D))
    return x @ mixing + shift * 4 * lamp, y


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    """A layer that is right at home."""
    x, y = draw_cells(800, 1)
    return fit_head(x, y, (np.zeros((K, D)), np.zeros(K)), 1e-4)


def take(x: np.ndarray, y: np.ndarray) -> Examples:
    return Examples(x, y, tuple(f"cell {i}" for i in range(len(y))))


def test_a_shift_of_the_features_is_made_good(head):
    x, y = draw_cells(48, 2, shift=1.0)
    new, true = draw_cells(800, 3, shift=1.0)
    before = balanced_accuracy(true, answer_features(new, head))
    found = adapt_head(take(x, y), head, NAMES, coverage=0.9)
    after = balanced_accuracy(true, answer_features(new, found.head))
    assert before < 0.75 < 0.9 < after
    assert found.changed
    assert found.judged.before.low <= before <= found.judged.before.high
    assert found.judged.after.value <= after + 0.05, "the figures aren't too good"
    assert found.judged.gain.low > 0
    assert [p.labels for p in found.curve] == [9, 19, 28, 38]
    assert found.doubled is not None
    assert "48 more labels" in found.outlook
    assert found.counts.tolist() == [12] * 4
    p = answer_features(new, found.head)
    assert 0.5 < found.temperature < 2
    assert (p[np.arange(len(p)), true] >= found.thresholds[true]).mean() > 0.8


def test_shuffled_labels_change_nothing(head):
    x, y = draw_cells(80, 4, shift=0.5)
    for seed in range(3):
        wrong = np.random.default_rng(seed).permutation(y)
        found = adapt_head(take(x, wrong), head, NAMES, temperature=1.7, coverage=0.9)
        assert not found.changed
        assert found.head is head
        assert not found.calibrated
        assert found.temperature == 1.7
        assert found.thresholds is None
        assert "by chance" in found.reason


def test_at_home_the_layer_stays_and_is_calibrated_only(head):
    x, y = draw_cells(80, 5)
    found = adapt_head(take(x, y), head, NAMES, coverage=0.9)
    assert not found.changed
    assert found.head is head
    assert found.calibrated
    assert "kept" in found.reason


def test_classes_without_cells_keep_their_weights_and_rare_ones_are_left_out(head):
    x, y = draw_cells(63, 6, shift=1.0, classes=3)
    new = fit_head(x, y, head, 0.02)
    assert np.array_equal(new[0][3], head[0][3])
    assert new[1][3] == head[1][3]
    assert not np.array_equal(new[0][:3], head[0][:3])
    more, _ = draw_cells(4, 7, shift=1.0)
    cells = take(np.concatenate([x, more]), np.concatenate([y, [3] * 4]))
    found = adapt_head(cells, head, NAMES)
    assert found.counts.tolist() == [21, 21, 21, 0]
    assert found.ignored.tolist() == [0, 0, 0, 4]
    assert np.array_equal(found.head[0][3], head[0][3])


def test_the_same_cells_give_the_same_layer_and_strength_holds_it(head):
    x, y = draw_cells(40, 8, shift=1.0)
    near, far = fit_heads(x, y, head, [100.0, 1e-3])
    assert np.abs(near[0] - head[0]).max() < 0.05 * np.abs(far[0] - head[0]).max()
    alone = fit_head(x, y, head, 1e-3)
    assert np.abs(answer_features(x, alone) - answer_features(x, far)).max() < 1e-2
    a, b = (adapt_head(take(x, y), head, NAMES, seed=3) for _ in range(2))
    assert a.head[0].tobytes() == b.head[0].tobytes()
    assert a.judged == b.judged


def test_cells_of_one_group_are_never_on_both_sides(head):
    """Five photographs of each cell under another label: whoever remembers them looks right."""
    rng = np.random.default_rng(9)
    x = np.repeat(rng.normal(size=(24, D)) * 5, 5, axis=0) + 0.01 * rng.normal(size=(120, D))
    y = np.repeat(np.arange(24) % K, 5)
    grouped = Examples(x, y, tuple(f"cell {i // 5}" for i in range(120)))
    assert adapt_head(take(x, y), head, NAMES).judged.after.value > 0.9, "with a leak"
    assert adapt_head(grouped, head, NAMES).judged.after.value < 0.5


def test_fields_that_hold_cells_of_every_class_are_enough(head):
    x, y = draw_cells(48, 2, shift=1.0)
    order = np.argsort(y, kind="stable")  # the first of each class lie in the first field, …
    fields = np.empty(48, int)
    fields[order] = np.tile(np.arange(12), 4)
    found = adapt_head(Examples(x, y, tuple(f"field {i}" for i in fields)), head, NAMES)
    assert found.judged.gain.low > 0


def test_too_little_is_refused_with_what_is_needed(head):
    x, y = draw_cells(16, 10)
    with pytest.raises(AdaptationError, match=r"Found 0 classes .*; expected two or more"):
        adapt_head(take(x, y), head, NAMES)
    x, y = draw_cells(18, 10, classes=3)
    with pytest.raises(AdaptationError, match=r"Found 18 labelled cells .*at least 20"):
        adapt_head(take(x, y), head, NAMES)
    x, y = draw_cells(40, 10, classes=2)
    y[y == 1] = np.where(np.arange(20) < 4, 1, 0)
    with pytest.raises(AdaptationError, match=r"eosinophil 4; 5 are needed"):
        adapt_head(take(x, y), head, NAMES)
    with pytest.raises(ShapeError, match="expected as many of each"):
        adapt_head(take(x, y), head, NAMES[:3])
    with pytest.raises(ShapeError, match=r"for a last layer of shape \(4, 32\)"):
        answer_features(x[:, :5], head)
    with pytest.raises(ShapeError, match="above 0"):
        fit_head(x, y, head, 0.0)
    assert choose_sizes(take(*draw_cells(20, 0))) == [8, 12]


def test_few_cells_move_a_temperature_only_a_little_and_share_a_threshold():
    p = np.tile([[0.9, 0.1]], (20, 1))
    y = np.zeros(20, np.int64)
    assert fit_temperature(y, p) < 0.1, "all are right: as sure as it gets"
    assert 0.4 < fit_temperature(y, p, near=1.0) < 1
    y = np.arange(30) % 3
    p = np.full((30, 3), 0.2)
    p[np.arange(30), y] = 0.6
    p[:2] = [[0.2, 0.4, 0.4], [0.5, 0.3, 0.2]]
    assert fit_thresholds(y, p, 0.95).tolist() == [0, 0, 0]
    assert fit_thresholds_from_few(y, p, 0.95).tolist() == [0.2] * 3
    assert fit_thresholds_from_few(y, p, 0.9).tolist() == fit_thresholds(y, p, 0.9).tolist()


# --- bundles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "small").path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, made: Path) -> Path:
    """Class folders of blots whose colours this bundle's classes don't fit."""
    folder = tmp_path_factory.mktemp("labelled") / "here"
    rng = np.random.default_rng(5)
    colours = {
        "eosinophil": (200, 60, 60),
        "Lymphocyte": (70, 60, 200),
        "neutrophil": (60, 170, 60),
    }
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(12):
            picture = np.full((64, 64, 3), 235) + rng.normal(0, 6, (64, 64, 3))
            x, y = rng.integers(24, 40, 2)
            inside = np.hypot(*np.mgrid[-y : 64 - y, -x : 64 - x]) < rng.integers(10, 18)
            picture[inside] = colour + rng.normal(0, 25, (inside.sum(), 3))
            data = encode_png(np.clip(picture, 0, 255).astype(np.uint8))
            (folder / name / f"{i}.png").write_bytes(data)
    return folder


def test_the_command_writes_a_bundle_that_is_better_and_passes_every_check(
    made: Path, labelled: Path, tmp_path: Path, capsys
):
    field = replace(load_bundle(made).facts.preprocessing, view="field")
    old = make_bundle(tmp_path / "old", preprocessing=field)
    out, page = tmp_path / "new.zip", tmp_path / "page.html"
    words = ["adapt", str(old.path), str(labelled), "--out", str(out), "--report", str(page)]
    assert main([*words, "--json", "--recipe", "minimal", "--groups", "given"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["changed"]
    assert (
        told["balanced_accuracy"]["after"]["value"] > told["balanced_accuracy"]["before"]["value"]
    )
    assert told["data"]["counts"] == dict.fromkeys(CLASSES, 12)
    assert "Research use only" in said.err
    assert "Learning curve" in page.read_text("utf-8")
    new = load_bundle(out)
    assert new.id == told["id"] != old.id
    assert new.facts.training["adaptation"]["base"] == old.id
    assert new.facts.training["data"] == old.facts.training["data"]
    assert (
        "Fitted to another microscope"
        in read_parts(out, ("card.md", *_others(out)))["card.md"].decode()
    )
    weights, _ = read_tensors(WEIGHTS, read_parts(out, ("card.md", *_others(out)))[WEIGHTS])
    before, _ = read_tensors(WEIGHTS, read_parts(old.path, ("card.md", *_others(out)))[WEIGHTS])
    changed = {name for name in weights if weights[name].tobytes() != before[name].tobytes()}
    assert changed == {"6.weight", "6.bias"}
    assert main(words) == 2, "nothing is overwritten"
    # The features are the old network's: they and the new layer give the new bundle's answers.
    cells = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    features = see_features(old, cells)
    assert features.shape == (5, 8, 24)
    given, _ = new.network.answer(cells, views=8)
    assert np.abs(answer_features(features, new.head) - given).max() < 1e-5


@pytest.fixture(scope="module")
def fitted(labelled: Path, made: Path, tmp_path_factory) -> tuple[Bundle, Bundle]:
    """A bundle that has been tested, and what adapting its last layer made of it."""
    place = tmp_path_factory.mktemp("fitted")
    field = replace(load_bundle(made).facts.preprocessing, view="field")
    training = make_training(CLASSES)
    training["metrics"]["confusion"] = [[38, 1, 1], [1, 38, 1], [1, 1, 38]]
    training["seen"] = describe_seen(["1" * 64], ["2" * 64])
    old = make_bundle(place / "old", preprocessing=field, training=training)
    return old, leuko.adapt(old.path, labelled, out=place / "new", groups="given").bundle


def test_errors_of_the_old_layer_are_not_taken_for_those_of_the_new(
    fitted: tuple[Bundle, Bundle], labelled: Path, tmp_path: Path
):
    old, new = fitted
    assert read_record(old.facts, old.id).confusion is not None
    counts = dict.fromkeys(CLASSES, 70)
    for bundle in (new, leuko.adapt(new.path, labelled, out=tmp_path / "b", groups="given").bundle):
        record = read_record(bundle.facts, bundle.id)
        assert (record.confusion, record.unidentified) == (None, None)
        assert "last layer was fitted again after the test" in record.lack
        slide = count_differential(
            counts, record=record, likeliest=counts, unidentified={"doubt": 200}
        )
        assert "leuko evaluate" in slide.correction.text
        assert not slide.correction.done
        doubts = next(flag for flag in slide.flags if "unidentified" in flag.kind)
        assert (doubts.kind, doubts.level) == ("unidentified", "note")
        assert "isn't known: it was fitted to another microscope" in doubts.text
        for text in (write_page(slide), json.dumps(write_fhir(slide))):
            assert "last layer was fitted again after the test" in html.unescape(text)
            assert "right in the model" not in text
    assert not bundle.facts.training["adaptation"]["changed"], "the second time it was kept"
    card = " ".join((new.path / "card.md").read_text("utf-8").split())
    assert "no figure there is this bundle's" in card
    assert "The network in that bundle was then trained on all of them" in card
    assert "Temperature 1." not in card


def test_a_layer_that_was_kept_keeps_its_errors_and_not_its_doubts(fitted: tuple[Bundle, Bundle]):
    old, new = fitted
    told = {**new.facts.training["adaptation"], "changed": False, "layer_tested": True}
    kept = replace(old.facts, training={**old.facts.training, "adaptation": told})
    record = read_record(kept, "kept")
    assert record.confusion == read_record(old.facts, old.id).confusion
    assert record.unidentified is None
    assert record.source.endswith(
        "the model was fitted to another microscope, which left its last layer"
    )
    card = " ".join(write_card(kept).split())
    assert "The network is that of the bundle it was made from" in card
    assert "Without its temperature the ECE was 0.100, with it 0.900" in card
    del told["layer_tested"]  # as bundles of before, which may have been adapted twice
    record = read_record(replace(kept, training={**kept.training, "adaptation": told}), "before")
    assert record.confusion is None
    assert "may have been fitted again" in record.lack


def test_cells_that_a_bundle_was_fitted_to_are_recognised(
    fitted: tuple[Bundle, Bundle], labelled: Path
):
    old, new = fitted
    hashes = scan(labelled).table["sha256"].to_list()
    seen = find_seen_by(new.facts, [*hashes, "1" * 64, "2" * 64])
    assert seen.trained == {*hashes, "1" * 64}
    assert seen.calibrated == {*hashes, "2" * 64}
    assert seen.listed
    assert not find_seen_by(old.facts, hashes).trained
    warnings = leuko.evaluate(new, labelled, groups="given").results["warnings"]
    assert "trained on 36 images of 36" in warnings[0]
    # Where nothing is known of what the old bundle has seen, that is still so.
    unknown = replace(new.facts, training={"seen": add_seen(None, [], hashes)})
    assert find_seen_by(unknown, hashes).calibrated == set(hashes)
    assert not find_seen_by(unknown, hashes).listed
    twice = add_seen(unknown.training["seen"], hashes[:1], [])
    assert not find_seen_by(replace(unknown, training={"seen": twice}), hashes).listed


def _others(path: Path) -> list[str]:
    from leuko.learning.bundle import PARTS

    return [name for name in PARTS if name != "card.md"]


def test_a_class_that_the_bundle_lacks_is_refused_unless_a_map_says_which_it_is(
    made: Path, labelled: Path, tmp_path: Path
):
    other = tmp_path / "here"
    other.mkdir()
    for folder in labelled.iterdir():
        name = "Segmented" if folder.name == "neutrophil" else folder.name
        (other / name).symlink_to(folder)
    with pytest.raises(AdaptationError, match="'Segmented', which the bundle doesn't know"):
        leuko.adapt(made, other, out=tmp_path / "new", groups="given")
    found = leuko.adapt(
        made, other, out=tmp_path / "new", groups="given",
        map={"here": {"Segmented": "NEUTROPHIL"}},
    )  # fmt: skip
    assert found.facts["data"]["counts"] == dict.fromkeys(CLASSES, 12)
    assert any("Segmented is taken as NEUTROPHIL" in note for note in found.facts["notes"])


def test_too_few_pictures_are_refused_and_nothing_is_written(
    made: Path, labelled: Path, tmp_path: Path, capsys
):
    few = tmp_path / "few"
    for folder in labelled.iterdir():
        (few / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:6]:
            (few / folder.name / file.name).symlink_to(file)
    words = ["adapt", str(made), str(few), "--out", str(tmp_path / "new"), "--groups", "given"]
    assert main(words) == 1
    assert "expected at least 20" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_only_the_named_tensors_of_a_model_change_and_others_are_refused(made: Path):
    data = (made / MODEL).read_bytes()
    weight = np.arange(len(CLASSES) * 24, dtype=np.float32).reshape(len(CLASSES), 24)
    changed = replace_tensors(data, {"head.weight": weight})
    before, after = read_graph(data), read_graph(changed)
    assert len(changed) == len(data)
    assert np.array_equal(after.weights["head.weight"], weight)
    assert after.metadata == before.metadata
    for name, values in before.weights.items():
        if name != "head.weight":
            assert after.weights[name].tobytes() == values.tobytes()
    for name, values, why in (
        ("head.weight", weight.T, "can't be"),
        ("head.weight", weight.astype(np.float64), "can't be"),
        ("head.other", weight, "no tensor"),
        ("head.weight", np.full_like(weight, np.nan), "NaN"),
    ):
        with pytest.raises(BundleError, match=why):
            replace_tensors(data, {name: values})
