"""Judges the leak meter: what random folds give on top of folds by group, with its limits.

Only an image that shares a group with another can profit from a random split, because only its
cell can be met in training. So the gain is measured on those images; the others, and what changes
with every training, would only blur it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from leuko.judgement.comparison import compare_pair, interval
from leuko.judgement.metrics import Float64, IntArray
from leuko.judgement.predictions import Predictions

METRIC = "accuracy"
FEWEST = 10  # images with a partner, and 5 groups of them, below which a gain can't be judged
KINDS = ("random", "grouped")


def judge_leaks(
    answers: Mapping[str, Mapping[str, Float64]],
    y_true: IntArray,
    images: Sequence[str],
    groups: Sequence[str],
    *,
    classes: int,
    split: str,
    seed: int,
) -> dict[str, Any]:
    """Accuracy in random folds and in folds by group, and what the random ones give on top.

    Args:
        answers: For each classifier {"random": (N, K), "grouped": (N, K)}: out-of-fold answers
            for the same images.
        y_true: (N,), in [0, K).
        images: N ids.
        groups: N names; limits come from resampling whole groups.
        classes: K.
        split: How the folds were made, for people.
        seed: Decides the resamples.

    Returns:
        ``split``, ``n``, ``groups``, ``partners`` (images that share a group with another),
        ``classes``, ``metric``, ``majority`` (share of the largest class), ``rows`` [{who, random,
        grouped: each {value, low, high}, difference: the same over the images with a partner,
        null where they are too few}] and ``verdict``, a sentence.
    """
    sizes = Counter(groups)
    shared = np.array([sizes[g] > 1 for g in groups])
    enough = shared.sum() >= FEWEST and len({g for g in groups if sizes[g] > 1}) >= FEWEST // 2
    rows = []
    for who, given in answers.items():
        limits = {k: asdict(interval(METRIC, y_true, given[k], groups, rng=seed)) for k in KINDS}
        gap: dict[str, float | None] = {"value": None, "low": None, "high": None}
        if enough:
            names = [name for name, has in zip(images, shared, strict=True) if has]
            own = [name for name, has in zip(groups, shared, strict=True) if has]
            pair = compare_pair(
                *(
                    Predictions(k, tuple(names), tuple(own), y_true[shared], given[k][None, shared])
                    for k in KINDS
                ),
                metric=METRIC,
                rng=seed,
            )
            gap = {"value": pair.difference, "low": pair.low, "high": pair.high}
        rows.append({"who": who, **limits, "difference": gap})
    counts = np.bincount(y_true, minlength=classes)
    return {
        "split": split,
        "n": len(y_true),
        "groups": len(sizes),
        "partners": int(shared.sum()),
        "classes": classes,
        "metric": METRIC,
        "majority": float(counts.max() / counts.sum()),
        "rows": rows,
        "verdict": tell_leaks(rows, len(y_true), int(shared.sum())),
    }


def tell_leaks(rows: Sequence[Mapping[str, Any]], n: int, partners: int) -> str:
    """The meter in a sentence or two that its numbers support."""
    few = f"{partners} of {n} images share a cell or a source with another"
    if not partners:
        return f"None of the {n} images shares a cell or a source with another: nothing can leak."
    if any(row["difference"]["value"] is None for row in rows):
        return (
            f"Only {few}: too few to measure what a random split gives away. Both columns differ "
            "by chance and by training."
        )
    leaking = [row for row in rows if row["difference"]["low"] > 0]
    if not leaking:
        return (
            f"{few}. On those no classifier gains from a random split beyond its limits, which "
            "doesn't show that nothing leaks: only that it is too little to be seen."
        )
    worst = max(leaking, key=lambda row: row["difference"]["value"])
    gap = worst["difference"]
    return (
        f"{few}. On those a random split makes the {worst['who']} look {100 * gap['value']:.1f} "
        f"points better than it is (95 % interval {100 * gap['low']:.1f} to "
        f"{100 * gap['high']:.1f}): it meets cells again that it was trained on. Only the split by "
        "group says what to expect of new cells."
    )
