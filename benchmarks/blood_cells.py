"""The measured table of a finished study, as Markdown.

uv run leuko compare ../shared/data/blood-cells --repeats 2 --no-leak-meter --out runs/blood-cells
uv run python benchmarks/blood_cells.py runs/blood-cells COMMIT > results/blood-cells.md
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from leuko.judgement.findings import answer, per_class

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "ece": "ECE",
}


def show(limits: dict[str, float]) -> str:
    return f"{limits['value']:.3f} ({limits['low']:.3f}–{limits['high']:.3f})"


def show_p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def print_study(run: Path, commit: str) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    machine = json.loads((run / "environment.json").read_text("utf-8"))
    data, protocol = results["data"], results["protocol"]
    minutes = sum(row["fit_seconds"] for row in results["models"].values()) / 60
    counts = ", ".join(f"{k} {n}" for k, n in data["counts"].items())
    print(f"# ResNet, EfficientNet and AlexNet on {data['name']}\n")
    words = list(machine["command"])
    words[words.index("--out") + 1] = "runs/blood-cells"
    print(f"```\nuv run {shlex.join(words)}")
    print(
        "uv run python benchmarks/blood_cells.py runs/blood-cells COMMIT "
        "> results/blood-cells.md\n```\n"
    )
    print(
        f"{data['images']} images in {data['groups']} groups ({counts}), from {data['rows']} label "
        f"rows by the recipe {protocol['recipe']!r}. {protocol['folds']} folds, "
        f"repeats: {protocol['repeats']}; images of one cell kept together. "
        f"View {protocol['view']}, {protocol['size']} × {protocol['size']} pixels, "
        f"start {protocol['init']}, "
        f"{protocol['epochs']} epochs, seed {protocol['seed']}. Commit {commit}; data "
        f"`{data['sha256'][:16]}`; torch {machine['torch']}, {machine['processor']}, one thread "
        f"per job, {minutes:.0f} minutes of training in all.\n"
    )
    print("\n".join(answer(results)) + "\n")
    print(f"95 % intervals by bootstrap over groups, n = {data['images']}.\n")
    print("| model | " + " | ".join(METRICS.values()) + " | fit, s | images/s | weights | FLOPs |")
    print("|---|" + "---|" * (len(METRICS) + 4))
    for name, row in {**results["models"], **results["baselines"]}.items():
        cells = [show(row[m]) for m in METRICS]
        cells += [_cost(row, k) for k in ("fit_seconds", "images_per_second")]
        cells += [_count(row, k) for k in ("parameters", "flops")]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| a | b | a − b in accuracy | p | p after Holm | verdict |\n|---|---|---|---|---|---|")
    for pair in (*results["pairs"], *results["over_colour"]):
        limits = {"value": pair["difference"], "low": pair["low"], "high": pair["high"]}
        print(
            f"| {pair['a']} | {pair['b']} | {show(limits)} | {show_p(pair['p'])} | "
            f"{show_p(pair['p_holm'])} | {pair['verdict']} |"
        )
    print("\nPairs with the colour baseline stand by themselves: their p isn't adjusted.\n")
    print(f"Chosen: **{results['best']}**. {results['best_rule']}\n")
    if meter := results.get("leak_meter"):
        _print_meter(meter)
    for name, row in results["models"].items():
        _print_classes(name, row)


def _print_meter(meter: dict[str, Any]) -> None:
    print(f"## Leak meter\n\n{meter['verdict']} n = {meter['n']}, accuracy.\n")
    print("| who | random split | split by group | gain on images with a partner |")
    print("|---|---|---|---|")
    for row in meter["rows"]:
        gap = "–" if row["difference"]["value"] is None else show(row["difference"])
        print(f"| {row['who']} | {show(row['random'])} | {show(row['grouped'])} | {gap} |")
    print()


def _print_classes(name: str, row: dict[str, Any]) -> None:
    print(f"## {name}\n\n| class | n | groups | precision | recall (95 % limits) | F1 |")
    print("|---|---|---|---|---|---|")
    for found in per_class(row, {}):
        print(
            f"| {found['name']} | {found['n']} | {found['groups']} | {found['precision']:.3f} | "
            f"{found['recall']:.3f} ({found['low']:.3f}–{found['high']:.3f}) | {found['f1']:.3f} |"
        )
    print("\nLimits of recall: exact, with the groups as n.")
    labels = list(row["per_class"])
    print("\n| true ↓, answered → | " + " | ".join(labels) + " |")
    print("|---|" + "---|" * len(labels))
    for label, line in zip(labels, row["confusion"], strict=True):
        print(f"| {label} | " + " | ".join(map(str, line)) + " |")
    print()


def _cost(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.0f}" if key in row else "–"


def _count(row: dict[str, Any], key: str) -> str:
    return f"{row[key] / 1e6:.1f} M" if key in row else "–"


if __name__ == "__main__":
    print_study(Path(sys.argv[1]), sys.argv[2])
