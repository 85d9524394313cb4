"""How far colours and places have to vary, for a network that starts from ImageNet's weights.

    uv run python benchmarks/widening.py RUN START ../shared/data/blood-cells

RUN is the folder of a pretraining, START the weights that it gave (``starts/….safetensors``). They
are trained for two epochs more on 800 cells of each class, with each variation in turn, and judged
on the tenth of RUN that was kept aside and on the development third of the Kaggle set (see
`pretraining.py`): as the pictures are, and with the background brought to that of RUN's pictures.
Three minutes a row on one core; `--only` names rows, so that two can run side by side.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from leuko.data.leukocytes import WINDOW, measure_background
from leuko.data.pictures import SURROUNDINGS
from leuko.learning.batches import ELSEWHERE, WIDE
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build
from pretraining import Cells, choose_third, read_cells

MODEL, SIZE, MOST = "efficientnet_b0", 96, 800
ROWS = {
    "nothing more trained": None,
    "as before": ELSEWHERE,
    "shift 0.2": replace(ELSEWHERE, shift=0.2),
    "**shift 0.2, saturation 0.8, mixing 0.3, tint 0.2 (`WIDE`)**": WIDE,
    "the same, stain 0.6, blur 1.5": replace(WIDE, stain=0.6, blur=1.5),
}
Pictures = NDArray[np.uint8]


def match_background(pictures: Pictures, wanted: NDArray[np.float64]) -> Pictures:
    """Pictures (N, S, S, 3) under another lamp: each background becomes `wanted` (3,)."""
    found = np.stack([measure_background(list(p.reshape(-1, 3)[::3].T)) for p in pictures])
    lit = pictures * (wanted / found)[:, None, None, :]
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


def judge(told: str, network: nn.Module, home: Cells, away: Cells) -> None:
    classes = sorted(set(home.labels))
    common = sorted(set(away.labels) & set(classes))
    columns = [classes.index(c) for c in common]
    wanted = np.median([measure_background(list(p.reshape(-1, 3).T)) for p in home.plain], axis=0)
    kept = np.array(classes)[predict(network, home.plain, views=1).argmax(1)] == home.labels
    figures = [f"{np.mean([kept[home.labels == c].mean() for c in classes]):.1%}"]
    for pictures in (away.plain, match_background(away.plain, wanted)):
        p = predict(network, pictures)
        free = np.array(classes)[p.argmax(1)] == away.labels
        right = np.array(common)[p[:, columns].argmax(1)] == away.labels
        balanced = np.mean([right[away.labels == c].mean() for c in common])
        figures += [f"{value:.1%}" for value in (free.mean(), right.mean(), balanced)]
    print(f"| {told} | {' | '.join(figures)} |", flush=True)


def read_run(run: Path) -> tuple[Cells, Cells]:
    """What RUN trained on, `MOST` of each class, and what it kept aside."""
    with np.load(run / "cells.npz") as cells, np.load(run / "surroundings.npz") as around:
        names, plain, wide = cells["image"], cells["cells"], around["cells"]
    label = dict(pl.read_parquet(run / "manifest.parquet").select("image", "label").iter_rows())
    part = dict(pl.read_parquet(run / "splits.parquet").select("image", "part").iter_rows())
    labels = np.array([label[name].lower() for name in names])
    parts = np.array([part.get(name, "") for name in names])
    rng = np.random.default_rng(0)
    chosen = [
        rng.permutation(np.flatnonzero((parts == "train") & (labels == c)))[:MOST]
        for c in sorted(set(labels))
    ]
    return tuple(
        Cells(wide[rows], plain[rows], labels[rows], rows, rows)
        for rows in (np.concatenate(chosen), np.flatnonzero(parts == "test"))
    )  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--only", default="", help="rows with this in their name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, home = read_run(given.run)
    away = read_cells(given.kaggle, "classic", SIZE)
    third = choose_third(away)
    away = Cells(*(getattr(away, name)[third] for name in Cells.__dataclass_fields__))
    classes = sorted(set(home.labels))
    print(f"{len(train.labels):,} cells; n = {len(home.labels):,} at home, {third.sum()} away.\n")
    for told, augmentation in ROWS.items():
        if given.only not in told:
            continue
        network = build(MODEL, len(classes), size=SIZE, seed=0)
        network.load_state_dict({k: v.float() for k, v in load_file(given.start).items()})
        if augmentation is not None:
            settings = FitSettings(
                epochs=2, batch=32, learning_rate=5e-4, size=SIZE, augmentation=augmentation,
                reach=WINDOW / SURROUNDINGS,
            )  # fmt: skip
            labels = np.searchsorted(classes, train.labels)
            for epoch in fit(network, train.wide, labels, settings, seed=0):
                print(f"epoch {epoch.number}, loss {epoch.loss:.3f}", flush=True)
        judge(told, network, home, away)


if __name__ == "__main__":
    main()
