"""From answers to ``results.json``: every number with its limits, every pair with its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from leuko.judgement.comparison import choose_best, compare_models, interval
from leuko.judgement.metrics import confusion, per_class
from leuko.judgement.predictions import Predictions

MANY_GROUPS = 0.9  # groups per image, from which on both are about the same
INTERVALS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece")


def judge_study(
    predictions: pl.DataFrame,
    classes: Sequence[str],
    models: Sequence[str],
    baselines: Sequence[str],
    costs: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
) -> dict[str, Any]:
    """The judged part of ``results.json``.

    Args:
        predictions: As in ``predictions.parquet``.
        classes: K names; the columns ``p_CLASS`` in this order.
        models: Names of the trained models.
        baselines: Names of the classifiers that know no morphology.
        costs: Per trained model ``fit_seconds``, ``images_per_second``, ``parameters``, ``flops``
            and ``notes``.
        seed: Decides the resamples.

    Returns:
        ``baselines``, ``models``, ``pairs`` (trained models against each other), ``over_colour``
        (each against the colour baseline), ``best`` and ``best_rule``.
    """
    answers = {name: arrange(predictions, name, classes) for name in (*models, *baselines)}
    judged = {name: judge_model(a, classes, seed=seed) for name, a in answers.items()}
    pairs = compare_models([answers[m] for m in models], seed=seed)
    against = [compare_models([answers[m], answers["colour"]], seed=seed)[0] for m in models]
    best, rule = choose_best(
        {m: judged[m]["balanced_accuracy"]["value"] for m in models},
        pairs,
        {m: (costs[m]["flops"], costs[m]["parameters"]) for m in models},
    )
    return {
        "baselines": {b: judged[b] for b in baselines},
        "models": {m: {**judged[m], **costs[m]} for m in models},
        "pairs": [pair.to_json() for pair in pairs],
        "over_colour": [pair.to_json() for pair in against],
        "best": best,
        "best_rule": rule,
    }


def judge_model(answers: Predictions, classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Metrics with their limits, and the classes one by one.

    With several repeats the confusion counts the answers of all of them, and precision, recall
    and F1 are those of the pooled answers; n stays the number of images.
    """
    R = len(answers.probabilities)
    pooled = answers.probabilities.reshape(-1, len(classes))
    truth = np.tile(answers.y_true, R)
    rows = per_class(truth, pooled, classes)
    groups = np.array(answers.groups, object)
    for row in rows.values():
        row["n"] = int(row["n"]) // R
        del row["predicted"]
    return {
        **{
            name: asdict(
                interval(name, answers.y_true, answers.probabilities, answers.groups, rng=seed)
            )
            for name in INTERVALS
        },
        "n": len(answers.y_true),
        "per_class": rows,
        "groups_per_class": {
            c: len(set(groups[answers.y_true == k])) for k, c in enumerate(classes)
        },
        "confusion": confusion(truth, pooled).tolist(),
        **_judge_groups(answers, seed),
    }


def _judge_groups(answers: Predictions, seed: int) -> dict[str, Any]:
    """``by_group``: one answer per group, the mean over its pictures.

    Where a set holds many pictures of one source, as an augmented one does, this is the figure
    that counts cells. Empty where fewer than a tenth of the images share a group.
    """
    groups = answers.by_group()
    if len(groups.images) > MANY_GROUPS * len(answers.images):
        return {}
    limits = {
        name: asdict(interval(name, groups.y_true, groups.probabilities, groups.groups, rng=seed))
        for name in INTERVALS[:2]
    }
    return {"by_group": {**limits, "n": len(groups.images)}}


def arrange(predictions: pl.DataFrame, name: str, classes: Sequence[str]) -> Predictions:
    """One model's rows of ``predictions.parquet``, by image and repeat."""
    rows = predictions.filter(pl.col("model") == name)
    number = {c: k for k, c in enumerate(classes)}
    return Predictions.from_rows(
        name,
        rows["image"].to_list(),
        rows["group"].to_list(),
        np.array([number[label] for label in rows["label"]], dtype=np.int64),
        rows["repeat"].to_numpy(),
        rows.select([f"p_{c}" for c in classes]).to_numpy(),
    )
