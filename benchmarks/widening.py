"""How far colours and places have to vary, and in which light, for a start to serve elsewhere.

    uv run python benchmarks/widening.py RUN START ../shared/data/blood-cells
    uv run python benchmarks/widening.py RUN A,B ../shared/data/blood-cells --rows 1
    uv run python benchmarks/widening.py RUN A ../shared/data/blood-cells --slide 255,229,204
    uv run python benchmarks/widening.py RUN A ../shared/data/blood-cells --rows 7 \
      --model resnet18 --teacher efficientnet_b0

RUN is the folder of a pretraining, START the weights that are trained on; of several the mean. For
two epochs, on 800 cells of each class, with each variation and light in turn; judged on the tenth
of RUN that was kept aside, on the development third of the Kaggle set (see `pretraining.py`), and
on the tenth again, its cells cut out closely and made noisy.
Five minutes a row on one core; `--rows 0,2` names rows, so that two can run side by side. `--slide`
shows the Kaggle set's cells in another light than the grey of training, `--frozen` keeps the
statistics of batch normalisation, `--mild` has a share of each batch change no more than within one
laboratory, `--mix 0,0.25,1` judges means of START and of what was trained from it. `--teacher`
names a shipped start whose answers to the same changed pictures are learnt in place of the labels.

Source of the teaching: Beyer et al. 2022, arXiv:2106.05237.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from leuko.data.cuts import SURROUNDINGS, WINDOW, place_in_cell
from leuko.data.density import EMPTY, measure_background
from leuko.data.manifest import read_manifest
from leuko.data.pictures import cut_cells, cut_pictures
from leuko.engine import count_cores
from leuko.judgement.comparison import interval
from leuko.learning import batches
from leuko.learning import fit as training
from leuko.learning.batches import OTHER_LABORATORIES, WIDE, Augmentation
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build, choose_precision
from leuko.learning.starts import find_start
from leuko.plan import prepare
from leuko.settings import StudySettings
from leuko.watcher import Watcher
from pretraining import Cells, choose_third, judge, read_cells, take
from spoilt import add_noise, end_cells

MOST = 800
FAR = 2.0  # µm off the middle of its picture
# What was wide before pictures that end closely around their cell, and more noise, were part of it.
PLACES = replace(OTHER_LABORATORIES, cut_out=0.0)
COLOURS = replace(WIDE, cut_out=0.0, noise=0.03)
# Name, variation, light.
ROWS = (
    ("nothing more trained", None, "given"),
    ("nothing more trained", None, "matched"),
    ("`OTHER_LABORATORIES`, no picture cut out", PLACES, "given"),
    ("`OTHER_LABORATORIES`, no picture cut out", PLACES, "matched"),
    ("shift 0.2 instead of 0.06", replace(PLACES, shift=0.2), "given"),
    ("shift 0.2 instead of 0.06", replace(PLACES, shift=0.2), "matched"),
    ("saturation 0.8, mixing 0.3, tint 0.2 too", COLOURS, "given"),
    ("saturation 0.8, mixing 0.3, tint 0.2 too", COLOURS, "matched"),
    ("the same, tint 0.1", replace(COLOURS, tint=0.1), "matched"),
    ("the same, stain 0.6, blur 1.5", replace(COLOURS, stain=0.6, blur=1.5), "matched"),
    ("`WIDE`: a quarter cut out, noise 0.08 too", WIDE, "matched"),
    ("`WIDE`, scale 0.5", replace(WIDE, scale=0.5), "matched"),
)  # fmt: skip


def read_run(run: Path, light: str, size: int, most: int) -> tuple[Cells, Cells]:
    """What RUN trained on, so many of each class at most, and what it kept aside, in a light."""
    manifest = read_manifest(run / "manifest.parquet")
    table = manifest.table.unique("image", keep="first", maintain_order=True)
    split = pl.read_parquet(run / "splits.parquet").select("image", "part")
    table = table.join(split, on="image", how="inner", maintain_order="left")
    train = table.filter(pl.col("part") == "train")
    rng = np.random.default_rng(0)
    drawn = [
        train.filter(pl.col("label") == c)[rng.permutation((train["label"] == c).sum())[:most]]
        for c in sorted(set(train["label"]))
    ]

    def cut(part: pl.DataFrame) -> Cells:
        own = manifest.with_table(part.drop("part"))
        names, plain, _ = cut_pictures(own, view="cell", size=size, light=light)
        side = round(size * SURROUNDINGS / WINDOW)
        _, wide, _ = cut_pictures(own, view="cell", size=side, window=SURROUNDINGS, light=light)
        told = {image: rest for image, *rest in part.select("image", "label", "group").iter_rows()}
        labels = np.array([told[name][0].lower() for name in names])
        groups = np.array([told[name][1] for name in names])
        return Cells(wide, plain, labels, groups, np.arange(len(names)))

    return cut(pl.concat(drawn)), cut(table.filter(pl.col("part") == "test"))


def measure_offsets(kaggle: Path) -> NDArray[np.float64]:
    """How far the middle of each cell lies off the middle of its picture, in µm."""
    settings = StudySettings(recipe="classic", split="folds")
    found = prepare(kaggle, settings, Watcher(), workers=count_cores()).found
    sizes = {
        image: (height, width)
        for image, height, width in found.table.select("image", "height", "width").iter_rows()
    }
    offsets = []
    for cell in cut_cells(found, view="cell", size=96, light="given"):
        middle = (*cell.leukocyte.centre,) * 2
        placed = place_in_cell([middle], *sizes[cell.image], cell.leukocyte)
        offsets.append(WINDOW * np.hypot(*(placed[0, :2] - 0.5)))
    return np.array(offsets)


@contextmanager
def teaching(model: str, classes: Sequence[str], size: int) -> Iterator[None]:
    """Has training learn what a shipped start answers; put around the loop from outside."""
    if not model:
        yield
        return
    start = find_start(model)
    if list(start.classes) != list(classes):
        raise SystemExit(f"The start of {model} knows {start.classes}; expected {classes}.")
    teacher = build(model, len(classes), size=size, seed=0)
    teacher.load_state_dict({k: v.float() for k, v in load_file(start.path).items()})
    teacher.eval()
    give, judge_labels = training.iterate_batches, functional.cross_entropy
    last: dict[str, torch.Tensor] = {}

    def give_taught(*words: Any, **more: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets in give(*words, **more):
            if not torch.is_inference_mode_enabled():  # else statistics are measured
                with torch.no_grad():
                    last["answers"] = teacher(images).softmax(1)
            yield images, targets

    training.iterate_batches = give_taught
    functional.cross_entropy = lambda logits, _, **__: judge_labels(logits, last["answers"])
    try:
        yield
    finally:
        training.iterate_batches, functional.cross_entropy = give, judge_labels


@contextmanager
def sparing(share: float) -> Iterator[None]:
    """Has a share of each batch change mildly; put around the loop from outside."""
    change = batches.augment

    def change_the_rest(
        images: torch.Tensor, a: Augmentation, generator: torch.Generator, **more: Any
    ) -> torch.Tensor:
        mild = int(share * len(images))
        parts = (images[:mild], Augmentation(shift=a.shift)), (images[mild:], a)
        return torch.cat([change(p, how, generator, **more) for p, how in parts if len(p)])

    batches.augment = change_the_rest if share else change
    try:
        yield
    finally:
        batches.augment = change


def average(several: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack([weights[name].float() for weights in several]).mean(0)
        for name in several[0]
    }


def judge_spoilt(network: nn.Module, home: Cells, truth: NDArray[np.int64]) -> list[str]:
    """Balanced accuracy at home, of one view, for cells cut out 11 to 14 µm wide, then for noise.

    The noise has a deviation of 25 to 50 levels.
    """
    rng = np.random.default_rng(1)
    spoilt = end_cells(home.plain, rng), add_noise(home.plain, rng, 25, 50)
    groups = home.groups.tolist()
    figures = [
        interval("balanced_accuracy", truth, predict(network, cells, views=1), groups)
        for cells in spoilt
    ]
    return [f"{v.value:.1%} ({v.low:.1%}–{v.high:.1%})" for v in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("start", type=lambda names: [Path(name) for name in names.split(",")])
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--rows", default=",".join(map(str, range(len(ROWS)))))
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures, px")
    parser.add_argument("--frozen", action="store_true", help="statistics of normalisation stay")
    parser.add_argument("--seed", type=int, default=0, help="of order and variation")
    parser.add_argument("--mild", type=float, default=0.0, help="share of each batch, from 0 to 1")
    parser.add_argument("--most", type=int, default=MOST, help="cells of each class to train on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--mix", default="1", help="shares of the training in its mean with START")
    parser.add_argument("--teacher", default="", help="a shipped start: efficientnet_b0, …")
    parser.add_argument("--slide", type=lambda levels: [float(x) for x in levels.split(",")])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [ROWS[int(number)] for number in given.rows.split(",")]
    offsets = measure_offsets(given.kaggle)
    for light in ("given", "matched"):
        chosen = [row for row in rows if row[2] == light]
        if not chosen:
            continue
        train, home = read_run(given.run, light, given.size, given.most)
        away = read_cells(given.kaggle, "classic", given.size, light)
        away = take(away, choose_third(away))
        for told, cells in (("home", home), ("away", away)):
            slide = np.median([measure_background(p.reshape(-1, 3)) for p in cells.wide], axis=0)
            print(f"The empty slide at {told}, median: {slide.round()}.")
        if given.slide and light == "matched":
            shown = away.plain * (np.array(given.slide) / EMPTY) + 0.5
            away = replace(away, plain=np.minimum(shown, 255).astype(np.uint8))
        far = offsets[away.places] > FAR
        print(
            f"{len(train.labels):,} cells; n = {len(home.labels):,} at home, {len(far)} away, of "
            f"which {far.sum()} lie more than {FAR:g} µm off the middle of their picture.\n"
        )
        classes = sorted(set(home.labels))
        labels = np.searchsorted(classes, train.labels)
        every = np.arange(len(home.labels))
        for told, augmentation, _ in chosen:
            network = build(given.model, len(classes), size=given.size, seed=0)
            start = average([load_file(path) for path in given.start])
            network.load_state_dict(start)
            if augmentation is not None:
                settings = FitSettings(
                    epochs=given.epochs, batch=32, learning_rate=5e-4, size=given.size,
                    augmentation=augmentation, reach=WINDOW / SURROUNDINGS,
                    precision=choose_precision(given.model, "auto"), frozen=given.frozen,
                )  # fmt: skip
                with teaching(given.teacher, classes, given.size), sparing(given.mild):
                    for _ in fit(network, train.wide, labels, settings, seed=given.seed):
                        pass
            trained = {name: value.clone() for name, value in network.state_dict().items()}
            for share in map(float, given.mix.split(",")):
                mixed = {k: torch.lerp(start[k], v.float(), share) for k, v in trained.items()}
                network.load_state_dict(mixed)
                figures = judge(network, home, every, away)
                figures += judge_spoilt(network, home, np.searchsorted(classes, home.labels))
                name = told if given.mix == "1" else f"{told}, share {share:g}"
                print(f"| {name} | {light} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
