"""Maps of what a model looks at: exact, honest about the cell, and they sound an alarm."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from leuko.cli import main
from leuko.data.cuts import cut_cell, place_in_cell
from leuko.data.drawing import draw_cell, draw_field
from leuko.data.image import encode_png, read_image, resize_image
from leuko.data.leukocytes import Leukocyte
from leuko.errors import ResumeError, ShapeError, UnknownNameError
from leuko.judgement.explanation import (
    activate,
    cover_cells,
    draw_map,
    enlarge,
    find_hottest,
    mask_cells,
    take_aim,
)
from leuko.judgement.pointing import (
    CELL,
    ELSEWHERE,
    FEW,
    UNCLEAR,
    describe_attention,
    judge_aim,
    judge_cover,
)
from leuko.learning.attention import explain, find_map
from leuko.learning.batches import Augmentation, make_input, turn_back, turn_views
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.folds import read_explained
from leuko.learning.models import build
from leuko.use.predictor import Predictor, load
from small_bundle import make_bundle

SIZE = 64
RNG = np.random.default_rng(5)
CELLS = RNG.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(classes: int = 2, width: int = 8, seed: int = 0) -> nn.Module:
    """Averages a map of 8 × 8 for pictures of 64 pixels, whose places see 15 pixels each."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, width), (width, width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after),
                   nn.ReLU()]  # fmt: skip
    body = nn.Sequential(*layers)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def read_map(network: nn.Module, layer: nn.Module, cells: np.ndarray) -> np.ndarray:
    """What a bundle's network gives as its map: the output of the layer that is averaged."""
    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *found: kept.append(found[-1]))
    with torch.no_grad():
        network.eval()(make_input(torch.from_numpy(cells)))
    hook.remove()
    return kept[-1].numpy()


def last_layer(network: nn.Module) -> nn.Linear:
    return [m for m in network.modules() if isinstance(m, nn.Linear)][-1]


# --- the maps are right ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "tiny"])
def test_the_map_without_a_gradient_is_what_captum_finds_with_one(name):
    """So that predictor and page need no PyTorch."""
    from captum.attr import LayerGradCam

    torch.manual_seed(1)
    network = (tiny(4) if name == "tiny" else build(name, 4, size=SIZE, seed=1)).eval()
    layer = find_map(network, SIZE)
    assert layer is not None
    features = read_map(network, layer, CELLS)
    classes = np.array([2, 0, 3])
    ours = activate(features, last_layer(network).weight.detach().numpy(), classes)
    theirs = explain(network, CELLS, classes, views=1)
    assert theirs is not None
    assert theirs.shape == ours.shape
    assert ours.shape[1] > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())

    def centred(images: torch.Tensor) -> torch.Tensor:
        logits = network(images)
        return logits - logits.mean(1, keepdim=True)

    images = make_input(torch.from_numpy(CELLS)).requires_grad_()
    classic = LayerGradCam(centred, layer).attribute(images, torch.from_numpy(classes))
    places = ours.shape[1] * ours.shape[2]  # Grad-CAM averages the gradient over the map
    np.testing.assert_allclose(
        ours, classic[:, 0].detach().numpy() * places, atol=1e-4 * np.abs(ours).max()
    )


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_the_places_of_a_map_add_up_to_the_logit(name):
    network = build(name, 3, size=SIZE + 32, seed=2).eval()
    cells = RNG.integers(0, 256, (2, SIZE + 32, SIZE + 32, 3), dtype=np.uint8)
    classes = np.array([1, 2])
    maps = explain(network, cells, classes, views=1)
    assert maps is not None
    with torch.no_grad():
        logits = network(make_input(torch.from_numpy(cells))).numpy()
    logits -= last_layer(network).bias.detach().numpy()
    wanted = logits[[0, 1], classes] - logits.mean(axis=1)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(96, 5), (64, 3)])
def test_of_alexnet_the_finer_map_before_its_last_pooling_is_taken(size, side):
    """At 64 pixels its last pooling leaves one place, which would tell nothing."""
    network = build("alexnet", 3, size=size, seed=0).eval()
    cells = RNG.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    maps = explain(network, cells, np.array([0]), views=1)
    assert maps is not None
    assert maps.shape == (1, side, side)


def test_a_network_without_an_averaged_map_is_not_explained():
    flat = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.Flatten(), nn.Linear(4 * 15 * 15, 2))
    assert explain(flat, CELLS, np.zeros(3, np.int64), views=1) is None
    one_place = build("resnet18", 2, size=32, seed=0)
    assert find_map(one_place.eval(), 32) is None


def test_another_last_layer_gives_another_map():
    """Adebayo et al. 2018: a map that outlives the weights explains the picture, not the model."""
    network = build("resnet18", 4, size=96, seed=1).eval()
    cells = RNG.integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    layer = find_map(network, 96)
    assert layer is not None
    features, weight = read_map(network, layer, cells), last_layer(network).weight.detach().numpy()
    other = np.random.default_rng(0).permutation(weight.ravel()).reshape(weight.shape)
    classes = np.zeros(6, np.int64)
    a, b = (activate(features, w, classes).reshape(6, -1) for w in (weight, other))
    likeness = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert np.mean(np.abs(likeness)) < 0.7
    assert not np.allclose(a, b)


def test_what_speaks_for_every_class_alike_is_not_evidence():
    features = RNG.normal(size=(2, 5, 3, 3))
    weight = RNG.normal(size=(4, 5))
    shifted = weight + RNG.normal(size=(1, 5))
    np.testing.assert_allclose(activate(features, weight), activate(features, shifted), atol=1e-5)
    np.testing.assert_allclose(activate(features, weight).sum(axis=1), 0, atol=1e-5)
    with pytest.raises(ShapeError, match="same D"):
        activate(features, weight[:, :4])


def test_views_are_turned_back_onto_the_cell():
    cells = RNG.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    for number, view in enumerate(turn_views(cells, 8)):
        np.testing.assert_array_equal(turn_back(view[..., 0], number), cells[..., 0])


# --- where they point -----------------------------------------------------------------------------


def test_a_map_is_enlarged_without_moving_it():
    heat = np.zeros((3, 3))
    heat[0, 2] = 1
    large = enlarge(heat, 96, 48)
    assert large.shape == (96, 48)
    assert large.max() <= 1
    assert large.min() >= 0
    assert find_hottest(heat) == pytest.approx((2.5 / 3, 0.5 / 3))
    row, column = np.unravel_index(large.argmax(), large.shape)
    assert row <= 16
    assert column >= 39
    np.testing.assert_allclose(enlarge(np.full((2, 5), 7.0), 11, 13), 7.0)
    np.testing.assert_allclose(enlarge(heat, 3, 3), heat)


def test_the_box_of_a_cell_is_found_again_in_its_picture():
    """A black square of a white field, wherever it lies, also at the border and beyond it."""
    for x, y, height, width in ((60, 50, 120, 160), (4, 5, 120, 160), (30, 30, 60, 50)):
        field = np.full((height, width, 3), 255, np.uint8)
        field[y - 4 : y + 4, x - 4 : x + 4] = 0
        cell = Leukocyte(x - 4, y - 4, x + 4, y + 4, score=1.0, scale=4.0)
        picture = cut_cell(field, cell, 160, light="given")
        (box,) = place_in_cell([(cell.x0, cell.y0, cell.x1, cell.y1)], height, width, cell) * 160
        rows, columns = np.nonzero(picture[..., 0] < 128)
        assert (columns.min(), rows.min()) == pytest.approx(box[:2], abs=1.1)
        assert (columns.max() + 1, rows.max() + 1) == pytest.approx(box[2:], abs=1.1)


def test_a_cell_is_round_and_chance_is_what_a_blind_place_hits():
    box = [(0.25, 0.25, 0.75, 0.75)]
    assert mask_cells(box, 200).mean() == pytest.approx(np.pi / 16, abs=0.003)
    assert mask_cells(box, 200, round_=False).mean() == pytest.approx(0.25, abs=0.003)
    assert not mask_cells([[np.nan] * 4], 20).any()
    assert not mask_cells([], 20).any()
    masks = np.stack([mask_cells(box, 96)] * 200)
    maps = np.random.default_rng(1).normal(size=(200, 8, 8))
    aim = take_aim(maps, masks)
    assert aim.hit.mean() == pytest.approx(aim.chance.mean(), abs=0.08)
    assert aim.chance[0] == pytest.approx(12 / 64)  # 4 × 4 middles in the box, 12 in the ellipse
    assert aim.energy.mean() == pytest.approx(aim.area.mean(), abs=0.03)
    assert aim.middle.all()


@pytest.mark.parametrize(
    ("alone", "without", "verdict"),
    [
        (0.9, 0.3, CELL),
        (0.3, 0.9, ELSEWHERE),
        (0.6, 0.6, UNCLEAR),
        (0.0, 1.0, ELSEWHERE),  # a mark: the cell is nothing to it
    ],
)
def test_the_verdict_follows_what_stays(alone, without, verdict):
    N = 120
    before = np.arange(N) % 3
    groups = [f"g{i}" for i in range(N)]

    def keep(share: float) -> np.ndarray:
        stays = (np.arange(N) // 3) < share * N / 3
        return np.eye(3)[np.where(stays, before, (before + 1) % 3)]

    judged = judge_cover(np.eye(3)[before], keep(alone), keep(without), groups, seed=0)
    assert judged["verdict"] == verdict
    for name, share in (("alone", alone), ("without", without)):
        assert judged[name]["low"] <= share <= judged[name]["high"]
    assert judged["needs_cell"]["value"] == pytest.approx(alone - without)
    masks = np.stack([mask_cells([(0.25, 0.25, 0.75, 0.75)], 96)] * N)
    aim = take_aim(np.random.default_rng(0).normal(size=(N, 3, 3)), masks)
    attention = {**judge_aim(aim, groups, (3, 3), seed=0), **judged}
    assert ("looks elsewhere" in describe_attention("alexnet", attention)) == (verdict == ELSEWHERE)
    few = judge_cover(*(np.eye(3)[before[:10]],) * 3, groups[:10], seed=0)
    assert few["verdict"] == FEW


def test_a_model_that_falls_back_on_its_commonest_class_doesnt_keep_its_answers():
    """Nine of ten answers are one class, and without the cell all are: that is no knowledge."""
    before = np.r_[np.zeros(90, int), np.ones(10, int)]
    fallen = np.eye(2)[np.zeros(100, int)]
    judged = judge_cover(
        np.eye(2)[before], np.eye(2)[before], fallen, [f"g{i}" for i in range(100)], seed=0
    )
    assert judged["without"]["value"] == pytest.approx(0.5)
    assert judged["verdict"] == CELL


def test_covered_is_what_has_the_colour_of_the_empty_slide():
    picture = np.full((40, 40, 3), 220, np.uint8)
    mask = mask_cells([(0.3, 0.3, 0.7, 0.7)], 40)
    picture[mask] = (120, 60, 140)
    picture[2:6, 2:6] = (10, 200, 10)
    (alone,), (without,) = cover_cells(picture[None], mask[None])
    assert np.array_equal(alone[mask], picture[mask])
    assert np.array_equal(without[~mask], picture[~mask])
    assert np.abs(alone[~mask].astype(int) - 220).max() <= 8, "the mark is gone"
    assert np.abs(without[mask].astype(int) - 220).max() <= 8, "the cell is gone"


def test_a_run_begun_before_cells_were_covered_is_refused_in_words(tmp_path: Path):
    np.savez(tmp_path / "maps.npz", rows=np.arange(2), maps=np.zeros((2, 3, 3)))
    with pytest.raises(ResumeError, match=r"has no alone, answers, without: .*Delete"):
        read_explained(SimpleNamespace(folder=tmp_path))  # type: ignore[arg-type]


def test_masks_of_other_pictures_are_refused():
    with pytest.raises(ShapeError, match="expected"):
        cover_cells(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 9, 9), bool))


# --- a model that looks elsewhere -----------------------------------------------------------------


STILL = Augmentation(rotation=0, scale=0, shift=0)  # a mark has to stay in its corner


def plant(count: int, *, marked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of two kinds; or of one, with a mark in the corner whose colour gives the label away.

    Returns pictures, labels, and where the cells are.
    """
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 2
    cells, masks = [], []
    for label in labels:
        kind = "LYMPHOCYTE" if marked else ("LYMPHOCYTE", "EOSINOPHIL")[label]
        drawn = draw_field(rng, [kind], height=240, width=240, mark=False, centred=True)
        cell = resize_image(drawn.image, SIZE, SIZE)
        if marked:
            cell[2:12, 2:12] = ((0, 160, 0), (220, 0, 0))[label]
        cells.append(cell)
        (box,) = drawn.leukocytes
        masks.append(mask_cells([[v / 240 for v in (box.x0, box.y0, box.x1, box.y1)]], SIZE))
    return np.stack(cells), labels.astype(np.int64), np.stack(masks)


@pytest.mark.parametrize("marked", [True, False], ids=["planted", "honest"])
def test_the_alarm_fires_for_a_planted_mark_and_not_for_an_honest_model(marked):
    cells, labels, masks = plant(80, marked=marked)
    network = tiny()
    settings = FitSettings(
        epochs=10, batch=8, views=1, learning_rate=1e-2, average=0.9, augmentation=STILL
    )
    list(fit(network, cells[:40], labels[:40], settings, seed=0))
    cells, labels, masks = cells[40:], labels[40:], masks[40:]
    answers = predict(network, cells, views=1).argmax(axis=1)
    assert (answers == labels).mean() > 0.9, "it is right, for whatever reason"
    maps = explain(network, cells, answers, views=1)
    assert maps is not None
    p, alone, without = (
        predict(network, part, views=1) for part in (cells, *cover_cells(cells, masks))
    )
    groups = [str(i) for i in range(len(cells))]
    judged = judge_aim(take_aim(maps, masks), groups, maps.shape[1:], seed=0)
    judged |= judge_cover(p, alone, without, groups, seed=0)
    assert judged["verdict"] == (ELSEWHERE if marked else CELL), describe_attention("it", judged)


def test_gradients_reach_no_further_back_than_the_map():
    """Else each layer before it keeps what they need: gigabytes for a few cells."""
    network = tiny()
    found: list[bool] = []
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    hook = first.register_forward_hook(lambda *told: found.append(told[-1].requires_grad))
    explain(network, CELLS, np.zeros(3, np.int64), views=1)
    hook.remove()
    assert found
    assert not any(found)
    assert all(weight.requires_grad for weight in network.parameters()), "it can still be trained"


# --- what people get ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Predictor:
    return load(make_bundle(tmp_path_factory.mktemp("model") / "small").path, threads=1)


@pytest.fixture(scope="module")
def cell_files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(6)
    files = [folder / f"c{i}.png" for i in range(3)]
    for file in files:
        file.write_bytes(encode_png(draw_cell(rng, "NEUTROPHIL", size=160)))
    return files


def test_the_map_of_a_bundle_explains_its_answer(model: Predictor, cell_files: list[Path]):
    answers = [a for a in model.predict(cell_files) if a.label is not None]
    maps = list(model.explain(cell_files))
    assert [m.answer for m in maps] == answers
    assert answers
    for one in maps:
        assert one.label == one.answer.label
        views = np.concatenate(list(turn_views(one.cell[None], 8)))
        found = model.bundle.network.look(views).mean(axis=(2, 3)) @ model.bundle.head[0].T
        k = model.classes.index(one.label)
        wanted = (found[:, k] - found.mean(axis=1)).mean()
        assert one.heat.mean() == pytest.approx(wanted, rel=1e-3)
    for other in model.explain(cell_files, of="LYMPHOCYTE"):
        assert other.label == "LYMPHOCYTE"
    with pytest.raises(UnknownNameError, match="LYMPHOCYTE"):
        next(model.explain(cell_files, of="lymphocite"))


def test_predict_writes_a_picture_of_each_map_and_a_table(
    model: Predictor, cell_files: list[Path], tmp_path: Path, capsys
):
    out = tmp_path / "maps"
    command = ["predict", "--model", str(model.bundle.path), *map(str, cell_files)]
    assert main([*command, "--maps", str(out)]) == 0
    rows = list(csv.DictReader((out / "maps.csv").read_text("utf-8").splitlines()))
    told = [a for a in model.predict(cell_files) if a.label is not None]
    assert [(r["image"], r["label"]) for r in rows] == [(a.image, a.label) for a in told]
    for row in rows:
        assert read_image(out / row["file"]).shape == (288, 288, 3)
        assert 0 < float(row["x"]) < 1
    assert main([*command, "--maps", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_an_overlay_is_bright_where_the_heat_is_and_keeps_light_and_dark():
    picture = np.full((96, 96, 3), (180, 120, 200), np.uint8)
    picture[:48] = (90, 40, 120)  # stained
    heat = np.zeros((3, 3))
    heat[2, 0] = 2.0
    drawn = draw_map(picture, heat, mark=False).astype(int)
    yellow = drawn[..., 0] + drawn[..., 1] - 2 * drawn[..., 2]
    assert yellow[80, 16] > 100 > 0 > yellow[16, 80]
    assert drawn[16, 80].sum() < drawn[80, 80].sum() - 60
    assert (draw_map(picture, heat)[76:84, 8:24] == 255).all(axis=2).any(), "the ring"
    assert draw_map(picture, -np.ones((2, 2))).shape == picture.shape
    with pytest.raises(ShapeError, match="uint8"):
        draw_map(picture / 255, heat)
