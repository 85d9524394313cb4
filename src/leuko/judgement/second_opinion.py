"""A second opinion on the labels of a study: ``labels`` in ``results.json``, and its issues.

The table of a study is always the one as labelled. What is computed here without the disputed
images is a sensitivity analysis: it leaves out what the models find hard, so that every figure
rises, whether the labels were wrong or the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from leuko.data.issues import Issue
from leuko.judgement.comparison import interval
from leuko.judgement.findings import listing
from leuko.judgement.results import arrange
from leuko.learning.opinions import (
    DOUBTED,
    LEAST_IMAGES,
    Judged,
    Opinion,
    collect_own,
    compare_opinions,
    judge_opinion,
    list_cases,
    read_labels,
)

METRICS = ("accuracy", "balanced_accuracy")
NOTE = (
    "Optimistic by construction: the images left out are those on which a model and the label "
    "disagree most, whichever of the two is wrong. The result of the study is the table of all "
    "images as labelled."
)
ASSUMPTIONS = (
    "The estimate assumes that a model errs as often as its calibrated probabilities say, and that "
    "a wrong label is any other class with the same chance. Sure mistakes of a model from another "
    "laboratory make it too high; labels confused alike again and again, which the study's own "
    "models learn too, make it too low. The interval is a bootstrap over groups, with the models "
    "as they are."
)


def hear_opinions(
    predictions: pl.DataFrame,
    classes: Sequence[str],
    models: Sequence[str],
    foreign: Sequence[Opinion] = (),
    *,
    seed: int,
    decisions: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The ``labels`` of ``results.json``.

    Args:
        predictions: As in ``predictions.parquet``.
        classes: K names; the columns ``p_CLASS`` in this order.
        models: Names of the trained models.
        foreign: Opinions of classifiers that never saw this laboratory, from
            `leuko.learning.opinions.translate_foreign`.
        seed: Decides parts and resamples.
        decisions: The decisions that were applied before the study, as in ``results.json``.

    Returns:
        None for fewer than `LEAST_IMAGES` images. Otherwise ``n``, ``threshold`` (the calibrated
        probability of a label, below which it is disputed), ``opinions``, ``between`` (pairs of
        opinions), ``disputed``, ``without_disputed`` (null where nothing is disputed, or too
        little is left), ``decisions`` and ``assumptions``.
    """
    labels = read_labels(predictions, classes)
    if len(labels.images) < LEAST_IMAGES:
        return None
    opinions = [*collect_own(predictions, classes, models), *foreign]
    judged = [judge_opinion(opinion, labels, seed=seed) for opinion in opinions]
    cases = list_cases(judged, labels)
    left_out = {case.image for case in cases}
    return {
        "n": len(labels.images),
        "threshold": DOUBTED,
        "opinions": [_tell(j) for j in judged],
        "between": [asdict(pair) for pair in compare_opinions(judged, labels, seed=seed)],
        "disputed": [
            {**asdict(case), "by": list(case.by), "kinds": list(case.kinds)} for case in cases
        ],
        "without_disputed": _judge_without(left_out, predictions, classes, models, seed),
        "decisions": {"applied": decisions is not None, **(decisions or {})},
        "assumptions": ASSUMPTIONS,
    }


def _tell(judged: Judged) -> dict[str, Any]:
    return {
        "name": judged.opinion.name,
        "kind": judged.opinion.kind,
        "n": judged.asked,
        "none_of_these": judged.none,
        "agreement": asdict(judged.agreement),
        "kappa": judged.kappa and asdict(judged.kappa),
        "wrong": judged.wrong and asdict(judged.wrong),
        "disputed": int(judged.disputed.sum()),
        "reason": judged.reason,
    }


def _judge_without(
    left_out: set[str],
    predictions: pl.DataFrame,
    classes: Sequence[str],
    models: Sequence[str],
    seed: int,
) -> dict[str, Any] | None:
    """The metrics of each model without some images; classes that are gone are averaged over."""
    kept = predictions.filter(~pl.col("image").is_in(list(left_out)))
    if not left_out or kept["group"].n_unique() < 2:
        return None
    n = kept["image"].n_unique()
    told: dict[str, dict[str, Any]] = {}
    for model in models:
        a = arrange(kept, model, classes)
        told[model] = {
            metric: {
                **asdict(interval(metric, a.y_true, a.probabilities, a.groups, rng=seed)),
                "n": n,
            }
            for metric in METRICS
        }
    return {"n": n, "left_out": len(left_out), "models": told, "note": NOTE}


def describe_disputes(told: Mapping[str, Any]) -> list[Issue]:
    """One issue per disputed label, from the ``labels`` of ``results.json``."""
    kind_of = {opinion["name"]: opinion["kind"] for opinion in told["opinions"]}
    issues = []
    for case in told["disputed"]:
        voices = {kind: [by for by in case["by"] if kind_of[by] == kind]
                  for kind in ("own", "foreign")}  # fmt: skip
        said = []
        if voices["own"]:
            said.append(f"{listing(voices['own'])} (of the study, out of fold)")
        if voices["foreign"]:
            said.append(f"{listing(voices['foreign'])} (never saw this laboratory)")
        detail = (
            f"labelled {case['label']}; rather {case['suggested']} according to "
            f"{'; and '.join(said)}"
        )
        evidence = {"suggested": case["suggested"], "by": list(case["by"])}
        issues.append(
            Issue("disputed_label", (case["image"],), detail, float(case["score"]), evidence)
        )
    return issues
