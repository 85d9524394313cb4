"""How the fine-tuning recipe was chosen: on cells that neither the start nor a report has seen.

    uv run python benchmarks/learning.py RUN --models alexnet,resnet18
    uv run python benchmarks/learning.py RUN --models alexnet --start FILE --only "rate 0.001"

RUN is the folder of a pretraining. Of its cells those that the shipped starts have not seen, nor
another picture of, are turned into other laboratories: each task draws a stain, a lamp, a focus and
a noise of its own, far from PBC's, and 8 % wrong training labels; then the empty slide of each cell
is brought to one grey, as a study does. A task trains on 261 cells with
the class counts of one fold of the Kaggle set and tests on the rest, with true labels. The Kaggle
set takes no part.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import polars as pl
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from leuko.data.density import match_light, measure_background
from leuko.judgement.comparison import interval
from leuko.judgement.metrics import balanced_accuracy
from leuko.learning import fit as training
from leuko.learning.batches import WIDE, Augmentation
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build, choose_precision
from leuko.learning.starts import find_seen, list_starts

COUNTS = {"neutrophil": 149, "eosinophil": 70, "lymphocyte": 26, "monocyte": 16}
BASE = FitSettings(epochs=12, learning_rate=1e-3)
TRIALS: dict[str, tuple[FitSettings, int, bool]] = {  # settings, size, whether from the start
    "random start": (replace(BASE, learning_rate=2e-3), 96, False),
    "pretrained, rate 0.002": (replace(BASE, learning_rate=2e-3), 96, True),
    "pretrained, rate 0.001": (BASE, 96, True),
    "pretrained, rate 0.0005": (replace(BASE, learning_rate=5e-4), 96, True),
    "rate 0.001, statistics frozen": (replace(BASE, frozen=True), 96, True),
    "rate 0.001, varied widely": (replace(BASE, augmentation=WIDE), 96, True),
    "rate 0.001, colours varied more": (
        replace(
            BASE,
            augmentation=Augmentation(
                brightness=0.15, contrast=0.15, saturation=0.2, stain=0.1, blur=0.5, sharpening=0.3
            ),
        ),
        96,
        True,
    ),
    "rate 0.001, 6 epochs": (replace(BASE, epochs=6), 96, True),
    "rate 0.001, 64 px": (BASE, 64, True),
    "rate 0.001, mixup": (BASE, 96, True),
    "rate 0.001, cutmix": (BASE, 96, True),
    "rate 0.001, three seeds averaged": (BASE, 96, True),
}
SEEDS = {"rate 0.001, three seeds averaged": 3}  # networks whose answers are averaged; else 1
MIXUP, CUTMIX = 0.2, 1.0  # alpha of the beta distribution that the share is drawn from


def change_laboratory(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, S, S, 3): one drawn laboratory for all cells."""
    density = -np.log(np.maximum(cells, 1) / 255.0)
    matrix = np.diag(rng.uniform(0.5, 0.9, 3)) + rng.uniform(-0.15, 0.15, (3, 3))
    light = np.exp(-density @ matrix.T) * rng.uniform(0.8, 1.0, 3)
    blurred = gaussian_filter(light, (0, *[rng.uniform(0.5, 1.2)] * 2, 0))
    noisy = blurred + rng.normal(0, rng.uniform(0.01, 0.03), cells.shape)
    return np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8)


def draw_task(cells: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3000 + seed)
    cells = change_laboratory(cells, rng)
    cells = np.stack([match_light(c, measure_background(c.reshape(-1, 3))) for c in cells])
    train = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate(COUNTS.values())]
    )
    test = np.setdiff1d(np.arange(len(labels)), train)
    said = labels[train].copy()
    wrong = rng.random(len(said)) < 0.08
    said[wrong] = rng.integers(0, len(COUNTS), wrong.sum())
    return cells[train], said, cells[test], labels[test]


def read_kept_aside(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The cells of four classes that no start has seen, (N, S, S, 3), and their labels.

    What the starts have seen is told by their own lists: groups, and with them RUN's split, may
    have changed since they were made.
    """
    splits = pl.read_parquet(run / "splits.parquet").select("image")
    table = pl.read_parquet(run / "manifest.parquet").unique("image", keep="first")
    table = splits.join(table, on="image", how="left").sort("image")
    seen = set().union(*(find_seen(model, table["sha256"]) for model in list_starts()))
    known = set(table.filter(pl.col("sha256").is_in(list(seen)))["group"])
    unseen = table.filter(~pl.col("group").is_in(list(known)))
    label = dict(unseen.select("image", "label").iter_rows())
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        place = {str(name): i for i, name in enumerate(file["image"])}
        pictures = file["cells"]
    names = [i for i in unseen["image"] if label[i] in COUNTS]
    numbers = {name: k for k, name in enumerate(COUNTS)}
    labels = np.array([numbers[label[i]] for i in names], dtype=np.int64)
    return pictures[[place[i] for i in names]], labels


@contextmanager
def mixing(told: str) -> Iterator[None]:
    """Has training mix the images and labels of a batch, if the trial's name says so.

    The training loop knows nothing of it, because it doesn't help enough to be there; so it is put
    around the batches and the loss from outside.

    Sources: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """
    give, judge = training.iterate_batches, functional.cross_entropy
    last: dict[str, Any] = {}

    def give_mixed(*words: Any, **more: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in give(*words, **more):
            if torch.is_inference_mode_enabled():  # statistics are measured on whole images
                yield images, labels
                continue
            rng = np.random.default_rng(int(torch.randint(2**31, (), generator=more["generator"])))
            other = torch.from_numpy(rng.permutation(len(labels)))
            share = rng.beta(MIXUP, MIXUP) if "mixup" in told else rng.beta(CUTMIX, CUTMIX)
            if "mixup" in told:
                images = share * images + (1 - share) * images[other]
            else:
                side = images.shape[-1]
                cut = round(side * np.sqrt(1 - share))
                top, left = rng.integers(0, side - cut + 1, 2)
                box = (..., slice(top, top + cut), slice(left, left + cut))
                images[box] = images[other][box]
                share = 1 - cut**2 / side**2
            last.update(labels=labels[other], share=share)
            yield images, labels

    def judge_mixed(logits: torch.Tensor, labels: torch.Tensor, **more: Any) -> torch.Tensor:
        both = [judge(logits, one, **more) for one in (labels, last["labels"])]
        return last["share"] * both[0] + (1 - last["share"]) * both[1]

    if "mixup" not in told and "cutmix" not in told:
        yield
        return
    training.iterate_batches, functional.cross_entropy = give_mixed, judge_mixed
    try:
        yield
    finally:
        training.iterate_batches, functional.cross_entropy = give, judge


def shrink(cells: np.ndarray, size: int) -> np.ndarray:
    if size == cells.shape[1]:
        return cells
    return np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_AREA) for c in cells])


def try_recipe(
    name: str,
    trial: tuple[FitSettings, int, bool],
    tasks: Sequence[tuple[np.ndarray, ...]],
    seeds: int = 1,
    start: str = "blood",
    precision: str = "auto",
) -> str:
    settings, size, pretrained = trial
    settings = replace(settings, precision=choose_precision(name, precision))
    init = start if pretrained else "random"
    answers, began = [], perf_counter()
    for seed, (cells, labels, test, _) in enumerate(tasks):
        said = []
        for one in range(seeds):
            own = seed + 100 * one
            network = build(name, len(COUNTS), size=size, init=init, seed=own)
            list(fit(network, shrink(cells, size), labels, settings, seed=own))
            said.append(predict(network, shrink(test, size)))
        answers.append(np.mean(said, axis=0))
    took = (perf_counter() - began) / len(tasks)
    truth, p = np.concatenate([task[3] for task in tasks]), np.concatenate(answers)
    each = ", ".join(
        f"{balanced_accuracy(t[3], a):.1%}" for t, a in zip(tasks, answers, strict=True)
    )
    shown = []
    for metric in ("balanced_accuracy", "accuracy"):
        found = interval(metric, truth, p, [str(i) for i in range(len(p))])
        shown.append(f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})")
    return f"{shown[0]} | {shown[1]} | {each} | {took:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--models", default="resnet18,efficientnet_b0,alexnet")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--start", default="blood", help="a file, in place of the shipped one")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "bfloat16"),
        help="what is trained in; auto is what training would choose on this processor",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="trials whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells, labels = read_kept_aside(given.run)
    tasks = [draw_task(cells, labels, seed) for seed in range(given.tasks)]
    n = sum(len(task[3]) for task in tasks)
    print(
        f"| model | recipe | balanced accuracy, {len(tasks)} tasks, n = {n} | accuracy | each | s |"
    )
    print("|---|---|---|---|---|---|")
    for name in given.models.split(","):
        for told, trial in TRIALS.items():
            if given.only in told:
                with mixing(told):
                    seeds = SEEDS.get(told, 1)
                    row = try_recipe(name, trial, tasks, seeds, given.start, given.precision)
                    print(f"| {name} | {told} | {row}", flush=True)


if __name__ == "__main__":
    main()
