"""How far colours and places have to vary, for a network that starts from ImageNet's weights.

    uv run python benchmarks/widening.py RUN START ../shared/data/blood-cells

RUN is the folder of a pretraining, START the weights that it gave (``starts/….safetensors``). They
are trained for two epochs more on 800 cells of each class, with each variation in turn, and judged
on the tenth of RUN that was kept aside and on the development third of the Kaggle set (see
`pretraining.py`): as the pictures are, and with the background brought to that of RUN's pictures.
Four minutes a row on one core; `--rows 0,2` names rows, so that two can run side by side.
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

from leuko.data.cuts import SURROUNDINGS, WINDOW, place_in_cell
from leuko.data.density import measure_background
from leuko.data.pictures import cut_cells
from leuko.engine import count_cores
from leuko.learning.batches import OTHER_LABORATORIES, WIDE
from leuko.learning.fit import FitSettings, fit
from leuko.learning.models import build
from leuko.plan import prepare
from leuko.settings import StudySettings
from leuko.watcher import Watcher
from pretraining import Cells, choose_third, judge, read_cells, take

MODEL, SIZE, MOST = "efficientnet_b0", 96, 800
FAR = 2.0  # µm off the middle of its picture
# Name, variation, whether all backgrounds are made alike in training too.
ROWS = (
    ("nothing more trained", None, False),
    ("the variation as before (`OTHER_LABORATORIES`)", OTHER_LABORATORIES, False),
    ("shift 0.2 instead of 0.06", replace(OTHER_LABORATORIES, shift=0.2), False),
    ("the same, all backgrounds made alike", replace(OTHER_LABORATORIES, shift=0.2), True),
    ("shift 0.2, saturation 0.8, mixing 0.3, tint 0.2 (`WIDE` since)", WIDE, False),
    ("the same, all backgrounds made alike", WIDE, True),
    ("`WIDE`, stain 0.6, blur 1.5", replace(WIDE, stain=0.6, blur=1.5), False),
)
Pictures = NDArray[np.uint8]


def match_background(pictures: Pictures, shown: Pictures, wanted: NDArray[np.float64]) -> Pictures:
    """Pictures (N, S, S, 3) under another lamp: the background of `shown` becomes `wanted` (3,)."""
    found = np.stack([measure_background(picture.reshape(-1, 3)) for picture in shown])
    lit = pictures * (wanted / found)[:, None, None, :]
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


def read_run(run: Path) -> tuple[Cells, Cells]:
    """What RUN trained on, `MOST` of each class, and what it kept aside."""
    with np.load(run / "cells.npz") as cells, np.load(run / "surroundings.npz") as around:
        names, plain, wide = cells["image"], cells["cells"], around["cells"]
    table = pl.read_parquet(run / "manifest.parquet").unique("image", keep="first")
    told = {image: rest for image, *rest in table.select("image", "label", "group").iter_rows()}
    part = dict(pl.read_parquet(run / "splits.parquet").select("image", "part").iter_rows())
    parts = np.array([part.get(name, "") for name in names])
    every = Cells(
        wide, plain, np.array([told[name][0].lower() for name in names]),
        np.array([told[name][1] for name in names]), np.arange(len(names)),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    chosen = [
        rng.permutation(np.flatnonzero((parts == "train") & (every.labels == c)))[:MOST]
        for c in sorted(set(every.labels))
    ]
    return take(every, np.concatenate(chosen)), take(every, np.flatnonzero(parts == "test"))


def measure_offsets(kaggle: Path) -> NDArray[np.float64]:
    """How far the middle of each cell lies off the middle of its picture, in µm."""
    settings = StudySettings(recipe="classic", split="folds")
    found = prepare(kaggle, settings, Watcher(), workers=count_cores()).found
    sizes = {
        image: (height, width)
        for image, height, width in found.table.select("image", "height", "width").iter_rows()
    }
    offsets = []
    for cell in cut_cells(found, view="cell", size=SIZE):
        middle = (*cell.leukocyte.centre,) * 2
        placed = place_in_cell([middle], *sizes[cell.image], cell.leukocyte)
        offsets.append(WINDOW * np.hypot(*(placed[0, :2] - 0.5)))
    return np.array(offsets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--rows", default=",".join(map(str, range(len(ROWS)))))
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, home = read_run(given.run)
    away = read_cells(given.kaggle, "classic", SIZE)
    away = take(away, choose_third(away))
    far = measure_offsets(given.kaggle)[away.places] > FAR
    print(
        f"{len(train.labels):,} cells; n = {len(home.labels):,} at home, {len(far)} away, of which "
        f"{far.sum()} lie more than {FAR:g} µm off the middle of their picture.\n"
    )
    wanted = np.median([measure_background(p.reshape(-1, 3)) for p in home.plain], axis=0)
    matched = replace(away, plain=match_background(away.plain, away.plain, wanted))
    classes = sorted(set(home.labels))
    labels = np.searchsorted(classes, train.labels)
    every = np.arange(len(home.labels))
    for told, augmentation, alike in [ROWS[int(number)] for number in given.rows.split(",")]:
        network = build(MODEL, len(classes), size=SIZE, seed=0)
        network.load_state_dict({k: v.float() for k, v in load_file(given.start).items()})
        shown, own = train.wide, home
        if alike:
            shown = match_background(train.wide, train.plain, wanted)
            own = replace(home, plain=match_background(home.plain, home.plain, wanted))
        if augmentation is not None:
            settings = FitSettings(
                epochs=2, batch=32, learning_rate=5e-4, size=SIZE, augmentation=augmentation,
                reach=WINDOW / SURROUNDINGS,
            )  # fmt: skip
            for _ in fit(network, shown, labels, settings, seed=0):
                pass
        figures = judge(network, own, every, away) + judge(network, own, every, matched)[1:]
        print(f"| {told} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
