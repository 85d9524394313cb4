"""The set that the shipped bundle is trained on: PBC and the Kaggle set as one, with one split.

    uv run python benchmarks/joint_set.py RUN ../shared/data/pbc ../shared/data/blood-cells OUT
    uv run leuko train OUT/labels.csv --split given --groups given --recipe minimal --no-refit …
    uv run python benchmarks/joint_set.py --judge RUN-OF-TRAIN
    uv run python benchmarks/joint_set.py --spoilt RUN-OF-TRAIN BUNDLE BUNDLE…

RUN is the folder of a pretraining, of which the cleaned images and their groups are taken over;
MODEL's shipped start says by its own list what it has seen: that is TRAIN, with all that shares a
group with it, and the rest of PBC is TEST. Of the Kaggle set's groups every fifth goes to TEST.
Images are copied; labels are written in PBC's spelling. `--judge` tells the figures of the two
laboratories apart, `--spoilt` what bundles say of the test cells of PBC as other laboratories and
cameras might show them; of two bundles also how often the second is right where the first isn't.
"""

from __future__ import annotations

import csv
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from leuko.judgement.comparison import interval
from leuko.judgement.metrics import exact_limits
from leuko.learning.batches import OTHER_LABORATORIES, change_cells
from leuko.learning.bundle import load_bundle
from leuko.learning.starts import find_seen
from leuko.plan import make_plan
from leuko.settings import StudySettings
from leuko.watcher import Watcher
from spoilt import add_noise, end_cells

MODEL = "efficientnet_b0"


def list_pretrained(run: Path) -> list[tuple[str, str, str, str]]:
    """Path within the set, label, group and part of each image of the pretraining.

    The part comes from what the start has seen, not from RUN's own split: groups, and with them
    splits, may have changed since the start was made.
    """
    splits = pl.read_parquet(run / "splits.parquet").select("image")
    manifest = pl.read_parquet(run / "manifest.parquet").unique("image", keep="first")
    rows = splits.join(manifest, on="image", how="left").sort("image")
    seen = find_seen(MODEL, rows["sha256"])
    known = set(rows.filter(pl.col("sha256").is_in(list(seen)))["group"])
    return [
        (path, label, group, "TRAIN" if group in known else "TEST")
        for path, label, group in rows.select("path", "label", "group").iter_rows()
    ]


def list_kaggle(folder: Path) -> tuple[Path, list[tuple[str, str, str, str]]]:
    """The root, and the same of the Kaggle set, cleaned by the classic recipe."""
    plan = make_plan(folder, StudySettings(), Watcher(), workers=2)
    table = plan.cleaned.manifest.table.sort("image")
    place = {group: i for i, group in enumerate(sorted(set(table["group"])))}
    return plan.cleaned.manifest.root, [
        (path, label.lower(), group, "TEST" if place[group] % 5 == 0 else "TRAIN")
        for path, label, group in table.select("path", "label", "group").iter_rows()
    ]


def main(run: Path, pbc: Path, kaggle: Path, out: Path) -> None:
    out.mkdir(parents=True)
    root, others = list_kaggle(kaggle)
    parts = {"pbc": (pbc, list_pretrained(run)), "kaggle": (root, others)}
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "group", "split"])
        for name, (source, rows) in parts.items():
            for path, label, group, part in rows:
                place = f"{name}/{Path(path).parent.name}/{Path(path).name}"
                target = out / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, target)
                table.writerow([place, label, f"{name}: {group}", part])


def judge(run: Path) -> None:
    """The answers of a finished training by laboratory, before calibration, as Markdown."""
    table = pl.read_parquet(run / "predictions.parquet")
    classes = [c.removeprefix("p_") for c in table.columns if c.startswith("p_")]
    print("| test cells | n | accuracy | balanced accuracy |\n|---|---|---|---|")
    for name in ("", "pbc", "kaggle"):
        part = table.filter(pl.col("group").str.starts_with(name))
        truth = np.array([classes.index(label) for label in part["label"]])
        p = part.select(f"p_{c}" for c in classes).to_numpy()
        cells = []
        for metric in ("accuracy", "balanced_accuracy"):
            v = interval(metric, truth, p, part["group"].to_list())
            cells.append(f"{v.value:.1%} ({v.low:.1%}–{v.high:.1%})")
        print(f"| {name or 'all'} | {len(part):,} | {' | '.join(cells)} |")


def judge_spoilt(run: Path, bundles: list[Path]) -> None:
    """Accuracy of bundles, of their likeliest class, on test cells as they are and changed."""
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        names, pictures = file["image"].astype(str), file["cells"]
    answers = pl.read_parquet(run / "predictions.parquet")
    answers = answers.filter(pl.col("image").str.starts_with("pbc"))
    truth = dict(answers.select("image", "label").iter_rows())
    rows = [i for i, name in enumerate(names) if name in truth]
    labels, cells = np.array([truth[names[i]] for i in rows]), pictures[rows]
    rng = np.random.default_rng(1)
    shown = {
        "as they are": cells,
        "ending 11 to 14 µm around the middle": end_cells(cells, rng),
        "noise of 5 to 15 levels": add_noise(cells, rng, 5, 15),
        "noise of 15 to 25 levels": add_noise(cells, rng, 15, 25),
        "noise of 25 to 50 levels": add_noise(cells, rng, 25, 50),
        "blurred by a third of a micrometre": np.stack(
            [cv2.GaussianBlur(cell, (0, 0), 1.5) for cell in cells]
        ),
        "changed as `OTHER_LABORATORIES`, none ending": change_cells(
            cells, replace(OTHER_LABORATORIES, cut_out=0.0), seed=77
        ),
    }
    loaded = [load_bundle(path) for path in bundles]
    heads = ["test cells", *map(str, bundles), "only one right"]
    print(f"n = {len(labels):,}\n\n| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for told, changed in shown.items():
        right = [
            np.array(bundle.facts.classes)[bundle.answer(changed)[0].argmax(1)] == labels
            for bundle in loaded
        ]
        told_right = []
        for one in right:
            low, high = exact_limits(int(one.sum()), len(one))
            told_right.append(f"{one.mean():.1%} ({low:.1%}–{high:.1%})")
        pairs = f"{(right[0] & ~right[-1]).sum()}, {(right[-1] & ~right[0]).sum()}"
        print(f"| {told} | {' | '.join(told_right)} | {pairs} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--spoilt":
        judge_spoilt(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    elif sys.argv[1] == "--judge":
        judge(Path(sys.argv[2]))
    else:
        main(*map(Path, sys.argv[1:5]))
