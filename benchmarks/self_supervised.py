"""Whether pretraining without labels helps: by itself, or before pretraining with them.

    uv run python benchmarks/self_supervised.py ../shared/data/pbc ../shared/data/blood-cells

AlexNet, 64 px, at most 800 cells of each of PBC's classes, whose pictures are varied widely in
every row. Without labels it is SimCLR: two changed pictures of one cell are to be more alike than
those of two cells. "As many pictures" is the control: labels alone, for as many pictures as
the other row saw in both its parts. Judged as in `pretraining.py`, at home and on the development
third of the Kaggle set; and by what matters in the end, as a start for small sets of drawn
laboratories, as in `learning.py`, from the tenth of PBC that was kept aside.

Source: Chen et al. 2020, arXiv:2002.05709.
"""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from learning import COUNTS, draw_task
from leuko.data.cuts import SURROUNDINGS, WINDOW
from leuko.judgement.comparison import interval
from leuko.learning.batches import WIDE, draw_epoch, iterate_batches
from leuko.learning.fit import FitSettings, fit, predict, schedule
from leuko.learning.models import build, choose_precision
from pretraining import SIZE, choose_third, divide, judge, read_cells, take

MODEL = "alexnet"
EPOCHS, ALONE = 12, 24  # with labels, and without: an epoch of these shows each cell twice
PAIRS, TEMPERATURE, WIDTH = 128, 0.2, 128
TASKS = 2
REACH = WINDOW / SURROUNDINGS
WITH_LABELS = FitSettings(
    epochs=EPOCHS, batch=64, precision=choose_precision(MODEL, "auto"), size=SIZE,
    augmentation=WIDE, reach=REACH,
)  # fmt: skip


def contrast(z: torch.Tensor) -> torch.Tensor:
    """Loss of (2B, D): rows 2i and 2i + 1 are one cell, all other rows are others."""
    z = functional.normalize(z, dim=1)
    alike = z @ z.T / TEMPERATURE
    alike.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z)) ^ 1
    return functional.cross_entropy(alike, partner)


def train_without_labels(network: nn.Module, cells: np.ndarray, seed: int) -> None:
    """Trains all but the last layer, in place."""
    images = torch.from_numpy(np.ascontiguousarray(cells.transpose(0, 3, 1, 2)))
    nothing = torch.zeros(len(images), dtype=torch.int64)
    last = network.classifier
    torch.manual_seed(seed)
    network.classifier = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, WIDTH))
    network.train()
    settings = FitSettings(epochs=ALONE, learning_rate=1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    steps = ALONE * (2 * len(images) // (2 * PAIRS))
    step = 0
    for epoch in range(1, ALONE + 1):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = np.repeat(draw_epoch(nothing.numpy(), balance=False, generator=generator), 2)
        order = order[: len(order) // (2 * PAIRS) * 2 * PAIRS]
        total = 0.0
        batches = iterate_batches(
            images, nothing, order, batch=2 * PAIRS, augmentation=WIDE, generator=generator,
            size=SIZE, reach=REACH,
        )  # fmt: skip
        for batch, _ in batches:
            for group in optimizer.param_groups:
                group["lr"] = schedule(step, steps, settings)
            with torch.autocast("cpu", torch.bfloat16, enabled=WITH_LABELS.precision == "bfloat16"):
                z = network(batch).float()
            loss = contrast(z)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step, total = step + 1, total + loss.item() * len(batch)
        print(f"without labels: epoch {epoch}, loss {total / len(order):.3f}", file=sys.stderr)
    network.classifier = last


def try_as_start(network: nn.Module, tasks: list[tuple[np.ndarray, ...]]) -> str:
    """Balanced accuracy of networks that were fine-tuned on small sets."""
    answers = []
    for seed, (cells, labels, test, _) in enumerate(tasks):
        own = build(MODEL, len(COUNTS), size=SIZE, seed=seed)
        body = {k: v for k, v in network.state_dict().items() if k.startswith("features")}
        own.load_state_dict(body, strict=False)
        settings = FitSettings(epochs=12, learning_rate=1e-3, precision=WITH_LABELS.precision)
        list(fit(own, cells, labels, settings, seed=seed))
        answers.append(predict(own, test))
    truth, p = np.concatenate([task[3] for task in tasks]), np.concatenate(answers)
    found = interval("balanced_accuracy", truth, p, [str(i) for i in range(len(p))])
    return f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pbc", type=Path)
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    home, away = read_cells(given.pbc, "minimal"), read_cells(given.kaggle, "classic")
    away = take(away, choose_third(away))
    train, kept = divide(home)
    labels = np.searchsorted(sorted(set(home.labels)), home.labels)
    four = kept[np.isin(home.labels[kept], list(COUNTS))]
    numbers = {name: k for k, name in enumerate(COUNTS)}
    said = np.array([numbers[c] for c in home.labels[four]])
    tasks = [draw_task(home.plain[four], said, seed) for seed in range(TASKS)]
    n = sum(len(task[3]) for task in tasks)
    print(
        f"{len(train):,} cells for training; n = {len(kept):,} at home, {len(away.labels)} "
        f"away, {n:,} of {TASKS} small sets.\n"
    )
    print("| | home, balanced | away, balanced | away, accuracy | away, loss | as a start |")
    print("|---|---|---|---|---|---|")
    shown = 2 * ALONE * len(train)
    each = len(draw_epoch(labels[train], balance=True, generator=torch.Generator()))
    more = EPOCHS + round(shown / each)
    seed = given.seed
    plain = build(MODEL, 8, size=SIZE, seed=seed)
    alone = deepcopy(plain)
    train_without_labels(alone, home.wide[train], seed)
    trials = {
        "random weights": (plain, 0),
        "without labels": (alone, 0),
        f"with labels, {EPOCHS} epochs": (plain, EPOCHS),
        f"without labels, then with, {EPOCHS} epochs": (alone, EPOCHS),
        f"with labels, {more} epochs: as many pictures": (plain, more),
    }
    for told, (begin, epochs) in trials.items():
        network = deepcopy(begin)
        if epochs:
            settings = replace(WITH_LABELS, epochs=epochs)
            for epoch in fit(network, home.wide[train], labels[train], settings, seed=seed):
                print(f"{told}: epoch {epoch.number}, loss {epoch.loss:.3f}", file=sys.stderr)
        figures = judge(network, home, kept, away) if epochs else ["–"] * 4
        print(f"| {told} | {' | '.join(figures)} | {try_as_start(network, tasks)} |", flush=True)


if __name__ == "__main__":
    main()
