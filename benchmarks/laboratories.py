"""What is lost between PBC and the Kaggle set, each way, as Markdown for results/laboratories.md.

    uv run python benchmarks/laboratories.py ../shared/data/pbc ../shared/data/blood-cells \
        --models resnet18,efficientnet_b0,alexnet --epochs 12 --most 300 > results/laboratories.md

``--most N`` keeps at most N images of each class of each set, drawn with seed 0, so that PBC trains
in minutes. The same command goes on with what was begun: the run folder is continued if it exists.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import leuko
from leuko.data.manifest import Manifest
from leuko.judgement.findings import percent, points, quantity
from leuko.judgement.transfer import WAYS
from leuko.judgement.transfer_findings import tell_transfers
from leuko.progress import Console

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def thin(manifest: Manifest, most: int, rng: np.random.Generator) -> Manifest:
    """At most so many images of each class; label rows that aren't of one class stay."""
    table = manifest.table
    dropped: set[str] = set()
    for label in manifest.classes():
        images = sorted(set(table.filter(pl.col("label") == label)["image"]))
        dropped |= {images[i] for i in rng.permutation(len(images))[most:]}
    return manifest.with_table(table.filter(~pl.col("image").is_in(dropped))) if most else manifest


def show(limits: dict[str, Any], drop: bool = False) -> str:
    say = points if drop else percent
    value, low, high = (limits[k] for k in ("value", "low", "high"))
    if value is None:
        return "–"
    if low is None:
        return say(value)
    return f"{say(value)} ({say(low)} to {say(high)})"


def print_table(results: dict[str, Any], machine: dict[str, Any], command: str) -> None:
    told, protocol = results["laboratories"], results["protocol"]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(f"# Across laboratories: {', '.join(told['sets'])}\n\n```\n{command}\n```\n")
    for name, one in told["sets"].items():
        counts = ", ".join(f"{c} {n}" for c, n in one["counts"].items())
        print(f"- {name}: {one['images']} images in {one['groups']} groups ({counts}), recipe "
              f"{one['recipe']!r}, data `{one['sha256'][:16]}`")  # fmt: skip
    for note in told["notes"]:
        print(f"- {note}")
    print(
        f"\nCommit {commit}; data `{results['data']['sha256'][:16]}`; "
        f"{quantity(protocol['seeds'], 'network')} per model and set, "
        f"{protocol['epochs']} epochs, {protocol['size']} × {protocol['size']} "
        f"pixels, view {protocol['view']}, start {protocol['init']}, "
        f"changes {protocol['augmentation']}, seed {protocol['seed']}; "
        f"torch {machine['torch']}, {machine['processor']}, one thread per job, "
        f"{sum(c['fit_seconds'] for c in results['costs'].values()) / 60:.0f} minutes of training. "
        "In %, 95 % intervals over groups and networks; the drop is in points.\n"
    )
    print("\n\n".join(tell_transfers(results)) + "\n")
    every = [*told["transfers"], *told["leave_one_out"], *told["baselines"]]
    for train, test in dict.fromkeys((t["train"], t["test"]) for t in every):
        own = [t for t in every if (t["train"], t["test"]) == (train, test)]
        print_way(f"{train} → {test}", own, list(results["costs"]))


def print_way(title: str, own: list[dict[str, Any]], models: list[str]) -> None:
    first = own[0]
    print(f"## {title}\n\nClasses {', '.join(first['classes'])}; home n = {first['n_home']} "
          f"({first['groups_home']} groups), away n = {first['n_away']} ({first['groups_away']} "
          f"groups), {first['shared']} shared images left out.\n")  # fmt: skip
    print("| model | judged | metric | home | away | drop | drop of each network |")
    print("|---|---|---|---|---|---|---|")
    for t in own:
        for way in WAYS:
            for metric in METRICS:
                home, away, drop = (t[part][way][metric] for part in ("home", "away", "drop"))
                seeds = ", ".join(points(v) for v in drop["seeds"])
                print(f"| {t['model']} | {way} | {metric.replace('_', ' ')} | {show(home)} | "
                      f"{show(away)} | {show(drop, True)} | {seeds} |")  # fmt: skip
    print("\n| model | class | n home | n away | recall home | away | drop | away, free |")
    print("|---|---|---|---|---|---|---|---|")
    for t in (t for t in own if t["model"] in models):
        for c, row in t["per_class"]["forced"].items():
            free = t["per_class"]["free"][c]["away"]
            print(f"| {t['model']} | {c} | {row['n_home']} | {row['n_away']} | "
                  f"{show(row['home'])} | {show(row['away'])} | {show(row['drop'], True)} | "
                  f"{show(free)} |")  # fmt: skip
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--models", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--init", default="random")
    parser.add_argument("--augmentation", default="wide")
    parser.add_argument("--map", default="")
    parser.add_argument("--most", type=int, default=0, help="images per class; 0 for all")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/laboratories"))
    asked = parser.parse_args()
    sets = [
        replace(thin(leuko.scan(p), asked.most, np.random.default_rng(0)), name=p.name)
        for p in asked.sets
    ]
    begun = (asked.out / "config.toml").exists()
    names = ("models", "seeds", "epochs", "folds", "size", "views", "init", "augmentation", "map")
    settings = {name: getattr(asked, name) for name in names}
    study = leuko.compare(
        sets, workers=asked.workers, watcher=Console(sys.argv[1:]), command=sys.argv,
        **{"resume" if begun else "out": asked.out}, **settings,
    )  # fmt: skip
    machine = json.loads((study.folder / "environment.json").read_text("utf-8"))
    command = "uv run python " + shlex.join(sys.argv)
    print_table(study.results, machine, command)


if __name__ == "__main__":
    main()
