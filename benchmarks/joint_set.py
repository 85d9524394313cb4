"""The set that the shipped bundle is trained on: PBC and the Kaggle set as one, with one split.

    uv run python benchmarks/joint_set.py RUN ../shared/data/pbc ../shared/data/blood-cells OUT
    uv run leuko train OUT/labels.csv --split given --groups given --recipe minimal --no-refit …
    uv run python benchmarks/joint_set.py --judge RUN-OF-TRAIN

RUN is the folder of a pretraining, of which the cleaned images and their groups are taken over;
MODEL's shipped start says by its own list what it has seen: that is TRAIN, with all that shares a
group with it, and the rest of PBC is TEST. Of the Kaggle set's groups every fifth goes to TEST.
Images are copied; labels are written in PBC's spelling. `--judge` tells the figures of the two
laboratories apart.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl

from leuko.judgement.comparison import interval
from leuko.learning.starts import find_seen
from leuko.plan import make_plan
from leuko.settings import StudySettings
from leuko.watcher import Watcher

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


if __name__ == "__main__":
    if sys.argv[1] == "--judge":
        judge(Path(sys.argv[2]))
    else:
        main(*map(Path, sys.argv[1:5]))
