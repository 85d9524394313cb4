"""One model for use: judged on folds, calibrated on their answers, trained on everything, bundled.

    plan → folds → temperature, thresholds, metrics
              └→ fit on everything → ONNX → parity → bundle

The folds come first, because what is said of a model has to come from cells that a model of the
same recipe never saw. PyTorch is loaded by worker processes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import leuko
from leuko.data.cuts import WINDOW
from leuko.data.manifest import hash_data
from leuko.data.portraits import describe_cell
from leuko.engine import count_cores, map_jobs, refuse_in_worker
from leuko.errors import BundleError, ResumeError, SettingsError, ShapeError
from leuko.judgement.calibration import (
    COVERAGE,
    apply_temperature,
    cross_calibrate,
    fit_temperature,
    fit_thresholds,
)
from leuko.judgement.metrics import measure
from leuko.judgement.outliers import (
    Reference,
    choose_feature_limit,
    fit_reference,
    score_features,
    score_portraits,
)
from leuko.judgement.predictions import Predictions
from leuko.judgement.results import judge_model
from leuko.learning.batches import DEVIATION, MEAN
from leuko.learning.bundle import MODEL, WEIGHTS, Bundle, check_place, write_bundle
from leuko.learning.card import write_card
from leuko.learning.export import ExportJob, Head, export_job
from leuko.learning.facts import Decision, Facts, Outliers, Preprocessing
from leuko.learning.folds import FoldJob, FoldResult, read_features
from leuko.learning.inference import ExportedNetwork
from leuko.learning.models import LIBRARIES
from leuko.learning.parts import read_tensors
from leuko.learning.seen import describe_seen
from leuko.plan import Plan, Source
from leuko.preparation import make_jobs, open_run, run_jobs, write_history
from leuko.run import check_same, read_environment
from leuko.settings import DEMO
from leuko.storage import write_atomically
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED
from leuko.use.predictor import judge_answer
from leuko.watcher import Watcher

PARITY = 1e-5  # largest difference of a probability between PyTorch and ONNX Runtime
MINIMUM = 0.5  # probability below which no class is named: something else is as likely
CHOICES = "training.json"  # in the run folder: what is asked for beside the settings of a study
DEFAULTS = {"half": False, "refit": True, "coverage": COVERAGE}
NOT_STATED = "not stated"
# Layout of the set → its licence and whom to name.
_KNOWN = {
    "kaggle": (
        "MIT",
        "BCCD (Shenggan/BCCD_Dataset, cosmicad/dataset), labels by dhruvp/wbc-classification",
    ),
    "demo": ("MIT, as Leuko itself", "drawn by Leuko; no blood was photographed"),
}


def train(
    data: Source = None,
    *,
    model: str | None = None,
    out: str | Path | None = None,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    coverage: float | None = None,
    refit: bool | None = None,
    half: bool | None = None,
    licence: str | None = None,
    credits: str | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
    **asked: Any,
) -> Bundle:
    """Trains one model on a set and bundles it for use.

    Args:
        data: As for `leuko.compare`.
        model: Name of the network; None for ``efficientnet_b0``, or that of the run continued.
        out: The bundle: a folder, or one file where the name ends in ``.zip``; must not exist.
            None puts it into the run folder.
        run: The run folder; None takes the next free one under ``runs/``.
        resume: The folder of an interrupted run, which is continued.
        coverage: That sets of classes are to have, in (0, 1); None for 0.95, or that of the run
            continued.
        refit: Whether the model is trained once more on everything after it was judged. False
            keeps the very model that was judged; it needs a single split, and suits large sets.
            None for True, or as the run continued was begun.
        half: Whether weights are rounded to half precision, before they are judged: a bundle
            becomes a quarter smaller. None for False, or as the run continued was begun.
        licence: Of the data; None for what is known of the set.
        credits: Whom to name for the data; None for what is known of the set.
        workers: Processes at a time, each with one thread; None takes one per core.
        watcher: Learns of the progress.
        command: As the user typed it, for the record.
        **asked: Fields of `StudySettings`, as for `leuko.compare`.

    Returns:
        The bundle, checked.

    Raises:
        LeukoError: See `leuko.errors`; what was finished stays in the run folder.
    """
    refuse_in_worker("leuko.train")
    watcher = watcher or Watcher()
    workers = count_cores() if workers is None else workers
    if coverage is not None and not 0 < coverage < 1:
        raise ShapeError(f"coverage is {coverage}; expected a number between 0 and 1.")
    if out is not None:
        check_place(Path(out))
    if model is not None:
        asked["models"] = (model,)
    defaults = {
        **(DEMO if data is None else {}), "models": ("efficientnet_b0",), "leak_meter": False,
    }  # fmt: skip
    opened = open_run(
        data, asked, defaults=defaults, out=run, resume=resume, workers=workers, watcher=watcher,
        command=command,
    )  # fmt: skip
    with opened as (folder, plan):
        if len(plan.settings.models) != 1 or plan.settings.repeats != 1:
            raise ResumeError(
                f"{folder} compares {', '.join(plan.settings.models)}; training needs one model "
                "and one repeat. Continue it with leuko compare, or start a new run."
            )
        place = folder / "bundle" if out is None else Path(out)
        check_place(place)
        choices = _recall(folder, {"half": half, "refit": refit, "coverage": coverage})
        coverage = float(choices["coverage"])
        jobs = [
            replace(job, half=choices["half"], features=True) for job in make_jobs(folder, plan)
        ]
        if not choices["refit"] and len(jobs) > 1:
            raise SettingsError(
                f"There are {len(jobs)} folds, so no single model was judged that could be kept. "
                "Use --split tenth or --split given with --no-refit."
            )
        write_atomically(folder / CHOICES, json.dumps(choices))
        if choices["refit"]:
            final = _make_final(jobs[0])
            every = [*jobs, final]
        else:
            final = replace(jobs[0], keep_weights=True)
            jobs = every = [final]
        done = run_jobs(every, folder, workers=workers, watcher=watcher)
        write_history(folder, {(j.model, j.repeat, j.fold): done[j.folder] for j in jobs})
        answers, parts = _collect(plan, jobs, done)
        watcher.say("calibrating and judging")
        reference, outliers, places = _learn_outliers(jobs, final)
        everything = np.ones(len(parts), bool)
        decision = replace(_decide(plan, answers, everything, coverage), outliers=outliers)
        metrics = _judge(plan, answers, parts, coverage, decision, places)
        write_answers(folder, answers, plan.classes)
        watcher.say("exporting to ONNX, and comparing its answers with PyTorch's")
        head, exported, parity = _export(folder, plan, final, done[final.folder])
        facts = _describe(
            folder, plan, final, head=head, decision=decision, licence=licence, credits=credits,
            measured={"metrics": metrics, "parity": parity, "seen": _list_seen(plan, jobs, final)},
        )  # fmt: skip
        weights, _ = read_tensors("weights", (final.folder / WEIGHTS).read_bytes())
        return write_bundle(
            place, facts, weights=weights, model=exported, card=write_card(facts),
            reference=reference,
        )  # fmt: skip


def _recall(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """How the run is judged and bundled; refuses another way than it was begun in.

    Args:
        folder: Of the run.
        asked: By the names of `DEFAULTS`; None where nothing was asked for.

    Raises:
        ResumeError: Names what differs; or jobs are finished and nobody recorded how.
    """
    path = folder / CHOICES
    wanted = {name: value for name, value in asked.items() if value is not None}
    if path.exists():
        try:
            recorded = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ResumeError(f"{path} can't be read: {error}. Start a new run.") from error
        if not isinstance(recorded, dict) or _list_types(recorded) != _list_types(DEFAULTS):
            raise ResumeError(
                f"{path} holds {json.dumps(recorded):.200}; expected something like "
                f"{json.dumps(DEFAULTS)}. Put right what was changed, or start a new run."
            )
        check_same("way of training", recorded, wanted)
        return recorded
    if done := len([*folder.glob("*/*/result.json")]):
        raise ResumeError(
            f"{folder} has {done} finished trainings and no {CHOICES}: it was begun by leuko "
            "compare, or by a version that didn't record whether weights are rounded before they "
            "are judged (--half) and trained once more (--no-refit). Start a new run; or, if you "
            f"know how it was begun, write it into that file, such as {json.dumps(DEFAULTS)}."
        )
    return {**DEFAULTS, **wanted}


def _list_types(choices: Mapping[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in choices.items()}


def _make_final(job: FoldJob) -> FoldJob:
    """Trains on everything. It answers for everything too, to compare ONNX with: no test."""
    everything = np.arange(len(job.rows))
    return replace(
        job, fold=0, repeat=0, train=everything, test=everything, keep_weights=True, part="final"
    )


def _collect(
    plan: Plan, jobs: Sequence[FoldJob], done: dict[Path, FoldResult]
) -> tuple[Predictions, NDArray[np.int64]]:
    """The answers of the folds, and for each the part that it is in for cross-calibration."""
    rows = np.concatenate([job.test for job in jobs])
    parts = np.concatenate([np.full(len(job.test), job.fold) for job in jobs])
    if len(jobs) == 1:  # a given split has one test part: halve it by groups
        groups = sorted({plan.groups[i] for i in rows})
        turn = np.random.default_rng(plan.settings.seed).permutation(len(groups))
        half = {group: int(t) % 2 for group, t in zip(groups, turn, strict=True)}
        parts = np.array([half[plan.groups[i]] for i in rows])
    answers = Predictions(
        plan.settings.models[0],
        tuple(plan.names[i] for i in rows),
        tuple(plan.groups[i] for i in rows),
        plan.labels[rows],
        np.concatenate([done[job.folder].probabilities for job in jobs])[None],
    )
    return answers, parts.astype(np.int64)


def _decide(
    plan: Plan, answers: Predictions, chosen: NDArray[np.bool_], coverage: float
) -> Decision:
    """Temperature and thresholds from the folds' answers to the chosen cells, (N,)."""
    y, raw = answers.y_true[chosen], answers.probabilities[0][chosen]
    temperature = fit_temperature(y, raw)
    thresholds = fit_thresholds(y, apply_temperature(raw, temperature), coverage)
    counts = np.bincount(y, minlength=len(plan.classes))
    return Decision(
        temperature=temperature,
        minimum=MINIMUM,
        coverage=coverage,
        thresholds=dict(zip(plan.classes, thresholds.tolist(), strict=True)),
        cells=dict(zip(plan.classes, counts.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _Places:
    """Where the test cells lie, each seen by a network that had not seen it; all (N,).

    Attributes:
        certainty: That it is a leukocyte; 0 where none was found.
        portraits: How far its picture lies from those of cells, as a share of its fold's limit.
        features: How far its features lie from known ones.
    """

    certainty: NDArray[np.float64]
    portraits: NDArray[np.float64]
    features: NDArray[np.float64]


def _learn_outliers(jobs: Sequence[FoldJob], final: FoldJob) -> tuple[Reference, Outliers, _Places]:
    """What cells are like for the final network; limits from cells that no network had seen."""
    certainty, portraits, features = [], [], []
    with np.load(final.run / "cells.npz", allow_pickle=False) as file:
        cells, scores = file["cells"], file["scores"]
    for job in jobs:
        found = read_features(job)
        own, limit = fit_reference(found["portraits"], found["features"])
        rows = job.rows[job.test]
        certainty.append(scores[rows])
        with ThreadPoolExecutor(count_cores()) as pool:
            seen = np.stack([*pool.map(describe_cell, cells[rows])])
        portraits.append(score_portraits(own, seen) / limit)
        features.append(score_features(own, found["test_features"]))
    places = _Places(*(np.concatenate(part) for part in (certainty, portraits, features)))
    found = read_features(final)
    reference, limit = fit_reference(found["portraits"], found["features"])
    return reference, Outliers(limit, choose_feature_limit(places.features)), places


def _find_states(
    plan: Plan,
    answers: Predictions,
    parts: NDArray[np.int64],
    coverage: float,
    decision: Decision,
    places: _Places,
) -> NDArray[np.str_]:
    """What use would make of each cell, (N,); all limits come from the other parts.

    But for the threshold of a class that has enough cells for one only in all parts together: in
    use it has one, and without it, it would be in the set of every cell.
    """
    whole = decision.thresholds or {}
    states = np.empty(len(parts), dtype="U20")
    for part in np.unique(parts):
        here = parts == part
        own = _decide(plan, answers, ~here, coverage)
        known = {c: t or whole.get(c, 0.0) for c, t in (own.thresholds or {}).items()}
        own = replace(own, thresholds=known)
        limit = choose_feature_limit(places.features[~here])
        calibrated = apply_temperature(answers.probabilities[0][here], own.temperature)
        scores = np.stack([places.portraits[here], places.features[here] / limit], axis=1)
        states[here] = [
            judge_answer(certainty, p, score, own, plan.classes)[1] if certainty else REJECTED
            for certainty, p, score in zip(
                places.certainty[here].tolist(), calibrated, scores, strict=True
            )
        ]
    return states


def _judge(
    plan: Plan,
    answers: Predictions,
    parts: NDArray[np.int64],
    coverage: float,
    decision: Decision,
    places: _Places,
) -> dict[str, Any]:
    """Metrics of calibrated answers; calibration of each part comes from the other parts."""
    y, raw = answers.y_true, answers.probabilities[0]
    calibrated, sets = cross_calibrate(y, raw, parts, coverage)
    judged = judge_model(
        replace(answers, probabilities=calibrated[None]), plan.classes, seed=plan.settings.seed
    )
    held = sets[np.arange(len(y)), y]
    states = _find_states(plan, answers, parts, coverage, decision, places)
    named = states == PRE_CLASSIFIED
    right = calibrated.argmax(axis=1) == y
    return {
        **judged,
        "ece_before": measure("ece", y, raw),
        "coverage": {
            "target": coverage,
            "observed": float(held.mean()),
            "per_class": {
                name: float(held[y == k].mean())
                for k, name in enumerate(plan.classes)
                if (y == k).any()
            },
        },
        "unidentified": float((states == UNIDENTIFIED).mean()),
        "rejected": float((states == REJECTED).mean()),
        "accuracy_of_the_rest": float(right[named].mean()) if named.any() else 0.0,
    }


def _describe(
    folder: Path,
    plan: Plan,
    final: FoldJob,
    *,
    head: Head,
    decision: Decision,
    licence: str | None,
    credits: str | None,
    measured: dict[str, Any],
) -> Facts:
    """All that ``bundle.json`` says."""
    settings, found, kept = plan.settings, plan.found, plan.cleaned.manifest
    known = next((v for k, v in _KNOWN.items() if found.layout.startswith(k)), None)
    environment = read_environment(folder)
    judged = {
        "given": "tested on the set's own TEST part",
        "tenth": "tested on a tenth of the groups",
    }.get(settings.split, f"{settings.folds} folds, split by groups")
    if final.part == "fits":
        judged += "; this very model was tested, and not trained again on the test part"
    return Facts(
        architecture=final.model,
        head=head.name,
        features=head.features,
        classes=tuple(plan.classes),
        preprocessing=Preprocessing(
            view=settings.view, window=WINDOW, size=settings.size, mean=MEAN,
            deviation=DEVIATION, views=settings.views, light=settings.light,
        ),
        decision=decision,
        training={
            "data": {
                "name": found.name, "layout": found.layout, "sha256": hash_data(found),
                "rows": len(found), "images": len(kept.table["image"].unique()),
                "groups": len(kept.table["group"].unique()), "counts": kept.counts(),
                "licence": licence or (known[0] if known else NOT_STATED),
                "credits": credits or (known[1] if known else NOT_STATED),
                "notes": list(found.notes),
            },
            "recipe": json.loads(plan.cleaned.ledger.to_json()),
            "protocol": {
                **json.loads(json.dumps(asdict(settings))),
                "fit": asdict(final.settings), "judged": judged, "half": final.half,
                "refit": final.part != "fits",
            },
            **measured,
            "environment": {k: v for k, v in environment.items() if k not in ("command", "data")},
        },
        leuko=leuko.__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
    )  # fmt: skip


def _list_seen(plan: Plan, jobs: Sequence[FoldJob], final: FoldJob) -> dict[str, str]:
    """Which images the network was trained on, and which calibrated it."""
    hashes = plan.cleaned.manifest.table["sha256"].to_list()
    return describe_seen(
        [hashes[i] for i in final.train], [hashes[i] for job in jobs for i in job.test]
    )


def _export(
    folder: Path, plan: Plan, final: FoldJob, result: FoldResult
) -> tuple[Head, bytes, dict[str, Any]]:
    """Exports the final network and compares its answers with PyTorch's on all cells.

    Raises:
        BundleError: They differ by more than rounding.
    """
    size, views = plan.settings.size, plan.settings.views
    job = ExportJob(
        weights=final.folder / WEIGHTS, model=final.model, classes=final.classes, size=size,
        out=final.folder / MODEL,
    )  # fmt: skip
    (_, head), *_ = map_jobs(
        export_job, [job], workers=1, on_message=lambda _: None, libraries=LIBRARIES
    )
    model = job.out.read_bytes()
    with np.load(folder / "cells.npz", allow_pickle=False) as file:
        cells = file["cells"][final.rows[final.test]]
    given, _ = ExportedNetwork(model, size=size, classes=final.classes).answer(cells, views=views)
    off = float(np.abs(given - result.probabilities).max())
    if not off <= PARITY:
        raise BundleError(
            f"The exported network answers otherwise than PyTorch: probabilities differ by up to "
            f"{off:.2g}, expected at most {PARITY:g}. No bundle was written; please report it with "
            f"the versions in {folder / 'environment.json'}."
        )
    same = bool((given.argmax(1) == result.probabilities.argmax(1)).all())
    return head, model, {"cells": len(cells), "largest_difference": off, "same_classes": same}


def write_answers(folder: Path, answers: Predictions, classes: Sequence[str]) -> Path:
    """Writes what the folds answered as ``predictions.parquet``, one row per image."""
    table = pl.DataFrame(
        {
            "image": answers.images,
            "group": answers.groups,
            "label": [classes[k] for k in answers.y_true],
            **{f"p_{c}": answers.probabilities[0][:, k] for k, c in enumerate(classes)},
        }
    )
    return write_atomically(folder / "predictions.parquet", table.write_parquet)
