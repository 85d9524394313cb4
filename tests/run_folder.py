"""Writes a run folder of made-up numbers, so that report and figures can be tested without a study.

Everything in it is TEST DATA: the cells are coloured discs and the probabilities are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

FOUND = {"NEUTROPHIL": 60, "EOSINOPHIL": 35, "LYMPHOCYTE": 33, "MONOCYTE": 20, "BASOPHIL": 3}
MODELS = {"resnet18": 1.9, "efficientnet_b0": 1.8, "alexnet": 1.2}
BASELINES = {"majority": 0.0, "colour": 0.6}


def draw_cell(number: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A disc in a disc: enough to see that the right picture stands at the right place."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    picture = np.full((size, size, 3), (236, 205, 205), float)
    radius = np.hypot(x - rng.normal(0, 0.03), y - rng.normal(0, 0.03))
    body = [(225, 190, 215), (240, 150, 140), (190, 210, 240), (205, 200, 225), (170, 160, 220)]
    picture[radius < 0.38] = body[number % 5]
    for turn in range(1 + number % 4):
        angle = turn * 2 + rng.normal(0, 0.3)
        lobe = np.hypot(x - 0.13 * np.cos(angle), y - 0.13 * np.sin(angle))
        picture[lobe < 0.15] = (110, 60, 150)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def write_run(
    folder: Path,
    *,
    found: Mapping[str, int] = FOUND,
    models: Mapping[str, float] = MODELS,
    layout: str = "kaggle-raw",
    name: str = "blood-cells",
    repeats: int = 1,
    size: int = 48,
    seed: int = 0,
    image: str = "BloodImage_{:05d}",
    drop: Sequence[str] = ("BASOPHIL",),
) -> Path:
    """Writes all files of a finished run but figures and report; ``drop``: classes to drop."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    labels = [c for c, n in found.items() for _ in range(n)]
    ids = [image.format(i) for i in range(len(labels))]
    classes = [c for c in found if c not in drop]
    number = {c: i for i, c in enumerate(found)}
    _write_manifest(folder, ids, labels)
    cells = np.stack([draw_cell(number[c], size, rng) for c in labels])
    np.savez_compressed(folder / "cells.npz", image=np.array(ids), cells=cells)
    kept = [i for i, c in enumerate(labels) if c in classes]
    _write_ledger(folder, found, drop, ids, labels)
    truth = np.array([classes.index(labels[i]) for i in kept])
    predictions, splits, history, outcome = [], [], [], {}
    for model, skill in {**models, **BASELINES}.items():
        tables = []
        for repeat in range(repeats):
            fold = np.arange(len(kept)) % 5
            noise = rng.gumbel(size=(len(kept), len(classes)))
            logits = noise + skill * 2 * np.eye(len(classes))[truth]
            if model == "majority":
                logits = np.zeros_like(logits) + np.log(np.bincount(truth) / len(truth))
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            columns = {f"p_{c}": p[:, k] for k, c in enumerate(classes)}
            facts = {"image": [ids[i] for i in kept], "group": [f"g{i}" for i in kept]}
            facts["label"] = [labels[i] for i in kept]
            table = pl.DataFrame({**facts, **columns}).with_columns(
                pl.lit(model).alias("model"), pl.lit(repeat).alias("repeat"),
                pl.Series("fold", fold),
            )  # fmt: skip
            tables.append(table)
            if model in models:
                history += _curve(model, repeat, rng)
        predictions += tables
        said = np.concatenate([t.select(f"p_{c}" for c in classes).to_numpy() for t in tables])
        outcome[model] = _judge(np.tile(truth, repeats), said, classes, model in models, rng)
    for repeat in range(repeats):
        for f in range(5):
            for place, i in enumerate(kept):
                part = "test" if place % 5 == f else "train"
                splits.append({"repeat": repeat, "fold": f, "image": ids[i], "part": part})
    pl.concat(predictions).write_parquet(folder / "predictions.parquet")
    pl.DataFrame(splits).write_parquet(folder / "splits.parquet")
    pl.DataFrame(history).write_parquet(folder / "history.parquet")
    counts = {c: found[c] for c in classes}
    _write_texts(folder, name, layout, counts, outcome, list(models), repeats, size)
    return folder


def _write_manifest(folder: Path, ids: Sequence[str], labels: Sequence[str]) -> None:
    extra = [("blank_1", ["blank_label", "no_image"]), ("two_1", ["many_labels"])]
    pl.DataFrame(
        {
            "image": [*ids, *(e[0] for e in extra)],
            "path": [*(f"{i}.jpg" for i in ids), None, "two_1.jpg"],
            "row": list(range(1, len(ids) + 3)),
            "label": [*labels, None, None],
            "label_written": [*labels, "", "NEUTROPHIL, EOSINOPHIL"],
            "issues": [*([] for _ in ids), *(e[1] for e in extra)],
        },
        schema_overrides={"issues": pl.List(pl.String), "label": pl.String},
    ).write_parquet(folder / "manifest.parquet")


def _write_ledger(
    folder: Path,
    found: Mapping[str, int],
    drop: Sequence[str],
    ids: Sequence[str],
    labels: Sequence[str],
) -> None:
    """Five steps, in the fields of ``leuko.data.cleaning.Step``."""

    def row(place: int, image: str, written: str, reason: str) -> dict[str, Any]:
        return {"row": place, "image": image, "label_written": written, "reason": reason}

    full, images = dict(found), len(ids) + 1
    left = {c: n for c, n in found.items() if c not in drop}
    gone = [row(i, ids[i], c, f"{c} is too rare") for i, c in enumerate(labels) if c in drop]
    rows = [
        ("drop_blank_labels", "A row without a label teaches nothing.", full, full, images, images,
         [row(900, "blank_1", "", "the label is blank")]),
        ("drop_multiple_labels", "Two labels are no single answer.", full, full, images,
         images - 1, [row(901, "two_1", "NEUTROPHIL, EOSINOPHIL", "2 labels")]),
        ("drop_classes", "Too few images to learn from.", full, left, images - 1,
         images - 1 - len(gone), gone),
        ("repeat_rare", "The rarer classes are trained several times over.", left, left,
         images - 1 - len(gone), images - 1 - len(gone), []),
    ]  # fmt: skip
    top = max(left.values(), default=1)
    steps = [
        {"name": n, "reason": why, "parameters": {}, "counts_before": before, "dropped": dropped,
         "counts_after": after, "images_before": was, "images_after": now}
        for n, why, before, after, was, now, dropped in rows
    ]  # fmt: skip
    for step in steps:
        step |= {"rows_before": images, "rows_after": images, "note": "", "factors": {}}
    steps[-1]["factors"] = {c: top / n for c, n in left.items()}
    ledger = {"recipe": "classic", "seed": 0, "steps": steps}
    (folder / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")


def _curve(model: str, repeat: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {"model": model, "repeat": repeat, "fold": fold, "epoch": epoch, "learning_rate": 1e-3,
         "loss": float(1.5 * np.exp(-epoch / 8) + 0.3 + rng.normal(0, 0.04)),
         "accuracy": float(0.95 - 0.65 * np.exp(-epoch / 8) + rng.normal(0, 0.015))}
        for fold in range(5) for epoch in range(1, 25)
    ]  # fmt: skip


def _judge(
    truth: np.ndarray,
    p: np.ndarray,
    classes: Sequence[str],
    trained: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    said, K = p.argmax(axis=1), len(classes)
    table = np.zeros((K, K), int)
    np.add.at(table, (truth, said), 1)
    right = np.diag(table)
    recall = right / np.maximum(table.sum(axis=1), 1)
    precision = right / np.maximum(table.sum(axis=0), 1)
    f1 = 2 * right / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)

    def around(value: float, half: float = 0.05) -> dict[str, float]:
        return {"value": float(value), "low": max(0, value - half), "high": min(1, value + half)}

    judged = {
        "accuracy": around((truth == said).mean()),
        "balanced_accuracy": around(recall.mean()),
        "macro_f1": around(f1.mean()),
        "auroc": around(0.93 if trained else 0.5, 0.02),
        "ece": around(0.04 + 0.02 * rng.random(), 0.015),
        "n": len(truth),
        "per_class": {
            c: {"precision": float(precision[k]), "recall": float(recall[k]), "f1": float(f1[k]),
                "n": int(table[k].sum())} for k, c in enumerate(classes)
        },
        "confusion": table.tolist(),
    }  # fmt: skip
    costs = {
        "fit_seconds": float(40 + 60 * rng.random()),
        "images_per_second": float(200 + 100 * rng.random()),
        "parameters": int(4e6 + 5e7 * rng.random()),
        "flops": int(1e8 + 1e9 * rng.random()),
    }
    return {**judged, **costs} if trained else judged


def _write_texts(
    folder: Path,
    name: str,
    layout: str,
    counts: Mapping[str, int],
    outcome: Mapping[str, Any],
    models: Sequence[str],
    repeats: int,
    size: int,
) -> None:
    def pair(a: str, b: str) -> dict[str, Any]:
        d = outcome[a]["accuracy"]["value"] - outcome[b]["accuracy"]["value"]
        low, high = d - 0.05, d + 0.05
        verdict = "better" if low > 0 else "worse" if high < 0 else "tie"
        return {"a": a, "b": b, "difference": d, "low": low, "high": high, "p": 0.031,
                "p_holm": 0.062, "verdict": verdict, "metric": "accuracy"}  # fmt: skip

    pairs = [pair(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]
    images = sum(counts.values())
    results = {
        "data": {"name": name, "layout": layout, "images": images, "rows": images + 2,
                 "classes": list(counts), "counts": dict(counts), "sha256": "ab" * 32,
                 "dropped": {"drop_blank_labels": 1, "drop_multiple_labels": 1, "drop_classes": 3},
                 "notes": ["The raw set was taken; dataset2 lies beside it."]},
        "protocol": {"folds": 5, "repeats": repeats, "groups": "cell", "view": "cell", "size": size,
                     "seed": 0, "recipe": "classic", "init": "random", "epochs": 24,
                     "models": list(models)},
        "baselines": {b: outcome[b] for b in BASELINES},
        "models": {m: outcome[m] for m in models},
        "pairs": pairs,
        "over_colour": [pair(m, "colour") for m in models],
        "best": max(models, key=lambda m: outcome[m]["accuracy"]["value"]),
        "best_rule": "The cheapest of those that tie with the highest balanced accuracy.",
        "times": {"started": "2026-01-01T00:00:00Z", "seconds": 312.4},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    environment = {"command": ["leuko", "compare", "blood-cells"], "leuko": "0.1.0",
                   "python": "3.11.9", "torch": "2.13.0", "threads": 2,
                   "processor": {"name": "test", "cores": 2}}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (folder / "config.toml").write_text('folds = 5\nrecipe = "classic"\n', encoding="utf-8")
