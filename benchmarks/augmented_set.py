"""The augmented Kaggle set, split as it came: per image and per source, as Markdown.

    uv run leuko compare ../shared/data/blood-cells/dataset2-master --no-leak-meter --out RUN
    uv run python benchmarks/augmented_set.py RUN > results/augmented_set.md

TEST's pictures are views of some seventy originals: the many pictures of one are no independent
cases. So beside each picture's answer stands that of its source: the mean of its views'
probabilities. A source is what the audit found to show one cell, see results/copies.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

from leuko.judgement.comparison import interval
from leuko.judgement.findings import points
from leuko.judgement.metrics import exact_limits

METRICS = ("accuracy", "balanced_accuracy")


def merge_views(table: pl.DataFrame, classes: list[str]) -> pl.DataFrame:
    """One row a source: its label and the mean of its pictures' probabilities."""
    means = table.group_by("group", "label").agg(pl.col(f"p_{c}").mean() for c in classes)
    return means.sort("group", "label")


def judge(table: pl.DataFrame, classes: list[str]) -> list[str]:
    truth = np.array([classes.index(label) for label in table["label"]])
    p = table.select(f"p_{c}" for c in classes).to_numpy()
    cells = []
    for metric in METRICS:
        v = interval(metric, truth, p, table["group"].to_list())
        cells.append(f"{v.value:.1%} ({v.low:.1%}–{v.high:.1%})")
    for k in range(len(classes)):
        own = truth == k
        right = int((p[own].argmax(axis=1) == k).sum())
        sources = table.filter(pl.Series(own))["group"].n_unique()
        low, high = exact_limits(right / own.sum() * sources, sources)
        cells.append(f"{right} of {own.sum()} ({low:.0%}–{high:.0%})")
    return cells


def print_missed(answers: pl.DataFrame, models: list[str], classes: list[str]) -> None:
    """The sources that the mean of all models answers wrongly, those of most pictures first."""
    own = answers.filter(pl.col("model").is_in(models))
    means = own.group_by("group", "label").agg(
        pl.col("image").n_unique().alias("pictures"),
        pl.col("image").min().alias("first"),
        *(pl.col(f"p_{c}").mean() for c in classes),
    )
    pictures = int(means["pictures"].sum())
    print("\n| source, first picture | label | answer of all | p | p of the label | views |")
    print("|---|---|---|---|---|---|")
    for row in means.sort("pictures", "group", descending=[True, False]).iter_rows(named=True):
        said = max(classes, key=lambda c: row[f"p_{c}"])
        if said != row["label"]:
            print(
                f"| {row['first']} | {row['label']} | {said} | {row[f'p_{said}']:.2f} | "
                f"{row['p_' + row['label']]:.2f} | {row['pictures']} of {pictures} |"
            )


def main(run: Path) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    machine = json.loads((run / "environment.json").read_text("utf-8"))
    protocol, classes = results["protocol"], list(results["data"]["classes"])
    answers = pl.read_parquet(run / "predictions.parquet")
    groups = pl.read_parquet(run / "manifest.parquet").select("image", "group")
    answers = answers.drop("group", strict=False).join(
        groups.unique("image", keep="first"), on="image", how="left"
    )
    splits = pl.read_parquet(run / "splits.parquet")
    parts = splits.join(groups.unique("image", keep="first"), on="image", how="left")
    told = ", ".join(
        f"{name.upper()} {part.height:,} pictures of {part['group'].n_unique()} sources"
        for name in ("train", "test")
        for part in [parts.filter(pl.col("part") == name)]
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print("# The augmented Kaggle set, split as it came\n\n```")
    print((__doc__ or "").split("\n\n")[1].replace("    ", ""))
    print("```\n")
    print(
        f"{told}. Start {protocol['init']}, {protocol['size']} px, {protocol['epochs']} epochs, "
        f"statistics frozen: {protocol['frozen']}, seed {protocol['seed']}. Commit {commit}; data "
        f"`{results['data']['sha256'][:16]}`; torch {machine['torch']}, {machine['processor']}. "
        "95 % intervals by bootstrap over sources; of recall exact ones with the sources as n, "
        "since views of one source are alike.\n"
    )
    print(f"| model | of | accuracy | balanced accuracy | recall {' | recall '.join(classes)} |")
    print("|---|---|---|---|" + "---|" * len(classes))
    for model in results["models"]:
        own = answers.filter(pl.col("model") == model)
        for name, table in (("pictures", own), ("sources", merge_views(own, classes))):
            print(f"| {model} | {table.height} {name} | {' | '.join(judge(table, classes))} |")
    print("\n| a | b | pictures: a − b in accuracy | p | p after Holm | verdict |")
    print("|---|---|---|---|---|---|")
    for pair in (*results["pairs"], *results["over_colour"]):
        limits = " to ".join(points(pair[key]) for key in ("low", "high"))
        print(
            f"| {pair['a']} | {pair['b']} | {points(pair['difference'])} ({limits}) | "
            f"{pair['p']:.3f} | {pair['p_holm']:.3f} | {pair['verdict']} |"
        )
    print("\nPairs with the colour baseline stand by themselves: their p isn't adjusted.")
    colour = results["baselines"]["colour"]
    print(
        f"\nThe colour baseline, which knows no morphology: {colour['accuracy']['value']:.1%} "
        f"({colour['accuracy']['low']:.1%}–{colour['accuracy']['high']:.1%}) of the pictures."
    )
    print_missed(answers, list(results["models"]), classes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
