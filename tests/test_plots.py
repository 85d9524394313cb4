"""Figures: same bytes each time, any name is text, wrong shapes are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from leuko.errors import ShapeError, StorageError
from leuko.judgement import canvas, plots
from leuko.judgement.metrics import reliability_curve

NAMES = ["NEUTROPHIL", "$\\frac{1}", "a_b^c <script>", "血小板", "x" * 90, "tab\tnew\nline\x07"]


def some_cells(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def draw_all(classes: list[str], models: list[str]) -> dict[str, Any]:
    rng, K = np.random.default_rng(1), len(classes)
    cells = {c: some_cells(3) for c in classes}
    counts = dict.fromkeys(classes, 12)
    p = rng.dirichlet(np.ones(K), 50)
    ece = dict.fromkeys(models, (0.1, 0.05, 0.15))
    values = {m: dict.fromkeys(plots.METRIC_TITLES, (0.8, 0.7, 0.9)) for m in models}
    history = pl.DataFrame(
        [
            {"model": m, "repeat": 0, "fold": f, "epoch": e, "loss": 1 / e, "accuracy": 1 - 0.5 / e}
            for m in models for f in range(2) for e in range(1, 4)
        ]
    )  # fmt: skip
    pairs = [plots.Difference(a, models[0], 0.1, 0.02, 0.2, "better") for a in models[1:]]
    return {
        "samples": plots.draw_samples(cells, {c: ["i1", "i2", "i3"] for c in classes}, counts),
        "counts": plots.draw_class_counts(
            [plots.Stage("as found", counts, 12 * K), plots.Stage("drop", {classes[0]: 4}, 4, 9)],
            classes,
        ),
        "average": plots.draw_average_pictures(
            {c: s.mean(axis=0) for c, s in cells.items()},
            {c: s.std(axis=0).mean(axis=2) for c, s in cells.items()},
        ),
        "training": plots.draw_training_curves(history, models),
        "confusions": plots.draw_confusions(dict.fromkeys(models, np.eye(K, dtype=int)), classes),
        "reliability": plots.draw_reliability(
            dict.fromkeys(models, reliability_curve(rng.integers(0, K, 50), p)), ece
        ),
        "comparison": plots.draw_comparison(
            values, {"majority": values[models[0]]}, pairs, models[0]
        ),
        "mistakes": plots.draw_mistakes(
            some_cells(K), classes, classes[::-1], [0.9] * K, ["image"] * K
        ),
        "cost": plots.draw_cost(
            {m: v["accuracy"] for m, v in values.items()}, dict.fromkeys(models, 3.0), "seconds"
        ),
        "boxes": plots.draw_boxes([some_cells(1)[0]], [[(2.0, 3.0, 20.0, 30.0)]], [classes[0]]),
    }


def test_names_from_data_are_plain_text_in_every_figure(tmp_path: Path) -> None:
    # markup, signs the font lacks and control signs would raise or warn (warnings are errors)
    for name, figure in draw_all(NAMES, NAMES[1:3]).items():
        png, svg = plots.save_figure(figure, tmp_path, name)
        assert png.read_bytes().startswith(b"\x89PNG"), name
        assert b"<script" not in svg.read_bytes(), name


def test_same_figure_gives_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    curve = reliability_curve(rng.integers(0, 3, 30), rng.dirichlet(np.ones(3), 30))
    for folder in ("a", "b"):
        confusion = plots.draw_confusions({"m": np.eye(2, dtype=int)}, ["x", "y"])
        reliability = plots.draw_reliability({"m": curve}, {"m": (0.1, 0.05, 0.2)})
        samples = plots.draw_samples({"c": some_cells(2)}, {"c": ["i", "j"]})
        for number, figure in enumerate((confusion, reliability, samples)):
            plots.save_figure(figure, tmp_path / folder, str(number))
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 6
    for name in files:
        first, second = ((tmp_path / d / name).read_bytes() for d in "ab")
        assert first == second, name
        assert b"<dc:date>" not in first


def test_pixels_of_samples_are_not_resampled(tmp_path: Path) -> None:
    cells = some_cells(1, size=40)
    plots.save_figure(plots.draw_samples({"c": cells}, {"c": ["i"]}), tmp_path, "s")
    from PIL import Image

    page = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    factor = 3  # 40 pixels come nearest to the target of 135 as 120
    wanted = cells[0].repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(page[4 : 4 + 120, 170 : 170 + 120], wanted)


def test_style_of_the_caller_is_left_alone() -> None:
    before = dict(mpl.rcParams)
    plots.draw_confusions({"m": np.eye(2, dtype=int)}, ["x", "y"])
    assert dict(mpl.rcParams) == before


def test_short_names_stay_different() -> None:
    names = ["granulocyte_immature_one_of_many_a", "granulocyte_immature_two_of_many_a", "血", "小"]
    shown = canvas.short_names(names, 12)
    assert len(set(shown.values())) == 4
    assert all(len(s) <= 16 for s in shown.values())


def test_one_colour_a_class_whatever_is_drawn() -> None:
    assert canvas.class_colours(["a", "b", "c"])["b"] == canvas.class_colours(["a", "b"])["b"]
    assert len(set(canvas.class_colours(list("abcdefgh")).values())) == 8
    assert len(set(canvas.model_colours(list("abcdef")).values())) == 6


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(3, 3\)"):
        plots.draw_confusions({"m": np.eye(2)}, ["a", "b", "c"])
    with pytest.raises(ShapeError, match=r"\(n, S, S, 3\)"):
        plots.draw_samples({"c": np.zeros((4, 4, 3), np.uint8)}, {"c": ["i"]})


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    figure = plots.draw_cost({"m": (0.5, 0.4, 0.6)}, {"m": 1.0}, "seconds")
    with pytest.raises(StorageError):
        plots.save_figure(figure, tmp_path / "file" / "figures", "f")
