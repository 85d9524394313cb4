"""How the training defaults were chosen: on PBC cells, never on the set that is reported.

    uv run python benchmarks/defaults.py ../shared/data/pbc            # schedule and rate
    uv run python benchmarks/defaults.py ../shared/data/pbc --colour   # how far colours change

A training set with the class counts of one fold of the raw Kaggle set (149 neutrophils, 70
eosinophils, 26 lymphocytes, 16 monocytes) is drawn from PBC, another laboratory's cells, and made
as hard as the Kaggle set looks: little colour, soft focus, sensor noise, and 8 % of the training
labels wrong. The test cells keep their labels. About a minute a row on one core.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from leuko.data.image import read_image, resize_image
from leuko.errors import NoImagesError
from leuko.judgement.comparison import interval
from leuko.judgement.metrics import balanced_accuracy
from leuko.learning.batches import Augmentation
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build, choose_precision

COUNTS = {"neutrophil": 149, "eosinophil": 70, "lymphocyte": 26, "monocyte": 16}
SIZE = 64
TRIALS = [
    ("resnet18", FitSettings(epochs=10, batch=32, learning_rate=1e-3)),
    ("resnet18", FitSettings(epochs=10, batch=32, learning_rate=3e-3)),
    ("resnet18", FitSettings(epochs=10, batch=16, learning_rate=1e-3)),
    ("efficientnet_b0", FitSettings(epochs=10, batch=32, learning_rate=1e-3)),
    ("efficientnet_b0", FitSettings(epochs=10, batch=32, learning_rate=3e-3)),
    ("efficientnet_b0", FitSettings(epochs=10, batch=16, learning_rate=2e-3)),
    ("alexnet", FitSettings(epochs=20, batch=32, learning_rate=3e-4)),
    ("alexnet", FitSettings(epochs=20, batch=32, learning_rate=1e-3)),
    ("alexnet", FitSettings(epochs=20, batch=32, learning_rate=2e-3)),
    ("alexnet", FitSettings(epochs=20, batch=16, learning_rate=1e-3)),
    ("alexnet", FitSettings(epochs=60, batch=32, learning_rate=1e-3)),
]
COLOURS = {
    "as before": Augmentation(brightness=0.15, contrast=0.15, saturation=0.2, stain=0.1),
    "a third (default)": Augmentation(),
}
SEEDS = (0, 1)


def read_cells(folder: Path, kind: str, rng: np.random.Generator) -> np.ndarray:
    """800 cells of one kind, without the outer eighth that holds red cells: (800, S, S, 3)."""
    paths = sorted((folder / kind).glob("*.jpg"))
    if len(paths) < 800:
        raise NoImagesError(f"{folder / kind} has {len(paths)} images; expected 800 or more.")
    cells = []
    for i in rng.permutation(len(paths))[:800]:
        image = read_image(paths[i])
        margin = image.shape[0] // 8
        inner = np.ascontiguousarray(image[margin:-margin, margin:-margin])
        cells.append(resize_image(inner, SIZE, SIZE))
    return np.stack(cells)


def spoil(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes most of the colour and some of the sharpness away, and adds noise."""
    pixels = cells.astype(np.float32)
    grey = pixels.mean(-1, keepdims=True)
    pixels = gaussian_filter(grey + 0.3 * (pixels - grey), (0, 1.0, 1.0, 0))
    return (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)


def draw_task(folder: Path, seed: int) -> tuple[np.ndarray, ...]:
    """Training pictures with labels, 8 % of them wrong; test pictures with the true ones."""
    rng = np.random.default_rng(2000 + seed)
    cells = spoil(np.concatenate([read_cells(folder, kind, rng) for kind in COUNTS]), rng)
    labels = np.repeat(np.arange(4), 800)
    train = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate(COUNTS.values())]
    )
    test = rng.permutation(np.setdiff1d(np.arange(len(labels)), train))[:1000]
    said = labels[train].copy()
    wrong = rng.random(len(said)) < 0.08
    said[wrong] = rng.integers(0, 4, wrong.sum())
    return cells[train], said, cells[test], labels[test]


def answer(task: tuple[np.ndarray, ...], name: str, settings: FitSettings, seed: int) -> np.ndarray:
    cells, labels, test, _ = task
    settings = replace(settings, precision=choose_precision(name, "auto"))
    network = build(name, 4, size=SIZE, seed=seed)
    list(fit(network, cells, labels, settings, seed=seed))
    return predict(network, test)


def try_schedules(folder: Path) -> None:
    task = draw_task(folder, 0)
    print("| model | epochs | batch | learning rate | balanced accuracy, n = 1,000 | s |")
    print("|---|---|---|---|---|---|")
    for name, settings in TRIALS:
        began = perf_counter()
        p = answer(task, name, settings, 0)
        took = perf_counter() - began
        found = interval("balanced_accuracy", task[3], p, [str(i) for i in range(len(p))])
        print(
            f"| {name} | {settings.epochs} | {settings.batch} | {settings.learning_rate:g} "
            f"| {found.value:.1%} ({found.low:.1%}–{found.high:.1%}) | {took:.0f} |",
            flush=True,
        )


def try_colours(folder: Path) -> None:
    """Every setting on the same drawn tasks; limits over the cells, both tasks together."""
    print(f"| model | colours change | balanced accuracy, {len(SEEDS)} tasks of 1,000 | each |")
    print("|---|---|---|---|")
    tasks = [draw_task(folder, seed) for seed in SEEDS]
    truth = np.concatenate([task[3] for task in tasks])
    for name in ("resnet18", "efficientnet_b0", "alexnet"):
        for told, augmentation in COLOURS.items():
            settings = FitSettings(epochs=12, augmentation=augmentation)
            answers = [answer(t, name, settings, k) for k, t in zip(SEEDS, tasks, strict=True)]
            p = np.concatenate(answers)
            found = interval("balanced_accuracy", truth, p, [str(i) for i in range(len(p))])
            each = ", ".join(
                f"{balanced_accuracy(t[3], a):.1%}" for t, a in zip(tasks, answers, strict=True)
            )
            limits = f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"
            print(f"| {name} | {told} | {limits} | {each} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    (try_colours if "--colour" in sys.argv else try_schedules)(Path(sys.argv[1]))
