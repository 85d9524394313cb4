"""The study: models × folds × repeats on one set, under one protocol, into one run folder.

    plan → cells → jobs → predictions → results → report

Everything that the report shows is a file of the run folder first. PyTorch is loaded by the
worker processes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, overload

import numpy as np
import polars as pl

from leuko.data.decisions import write_decisions
from leuko.data.manifest import hash_data
from leuko.data.steps import normalise_spelling
from leuko.engine import count_cores, map_jobs, refuse_in_worker
from leuko.judgement.attention import cover_pictures, judge_attention
from leuko.judgement.report import write_report
from leuko.judgement.results import judge_study
from leuko.judgement.second_opinion import describe_disputes, hear_opinions
from leuko.laboratories import LaboratoryStudy, compare_laboratories, is_laboratory_run
from leuko.learning.baselines import BASELINES, predict_colour, predict_majority
from leuko.learning.batches import Augmentation
from leuko.learning.folds import FoldJob, FoldResult
from leuko.learning.models import LIBRARIES, choose_precision, describe_changes
from leuko.learning.opinions import Opinion, translate_foreign
from leuko.learning.starts import AnswerJob, answer_job, find_seen, find_start, list_starts
from leuko.meter import EPOCHS as METER_EPOCHS
from leuko.meter import Meter, make_meter_jobs, plan_meter, read_meter
from leuko.plan import Plan, Source
from leuko.preparation import make_jobs, open_run, run_jobs, write_history
from leuko.settings import DEMO, StudySettings
from leuko.storage import write_atomically
from leuko.watcher import Watcher

EXPLAINED = 200  # maps of each model and fold, of the first repeat: enough for limits of 3 points


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: The run folder.
        results: The content of ``results.json``.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def best(self) -> str:
        """The model that the stated rule chose."""
        return str(self.results["best"])

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the report once more from the files of the run; returns where it is."""
        written = write_report(self.folder)
        if path is None:
            return written
        return write_atomically(Path(path), written.read_bytes())


@overload
def compare(data: list[Any] | tuple[Any, ...], **asked: Any) -> LaboratoryStudy: ...
@overload
def compare(data: Source = None, **asked: Any) -> Study: ...


def compare(
    data: Source | list[Any] | tuple[Any, ...] = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
    **asked: Any,
) -> Study | LaboratoryStudy:
    """Compares models on one set: the main job. Or across several, see `leuko.laboratories`.

    Args:
        data: A path as for `leuko.scan`, a manifest, a cleaned manifest, or None for the
            synthetic demo set. A list of two or more of them: train on one laboratory's images,
            test on the others'.
        out: The run folder; None takes the next free one under ``runs/``.
        resume: The folder of an interrupted run, which is continued.
        workers: Processes at a time, each with one thread; None takes one per core. It changes
            the time, never the result.
        watcher: Learns of the progress.
        command: As the user typed it, for the record.
        **asked: Fields of `StudySettings`; for several sets those of `LaboratorySettings`, whose
            `map` may also be a mapping of set → class → common name.

    Returns:
        The study; its folder holds results, figures and report.

    Raises:
        LeukoError: See `leuko.errors`; what was finished stays in the run folder.
    """
    refuse_in_worker("leuko.compare")
    watcher = watcher or Watcher()
    if isinstance(data, list | tuple) and len(data) == 1:
        data = data[0]
    if isinstance(data, list | tuple) or (resume is not None and is_laboratory_run(Path(resume))):
        return compare_laboratories(
            data, out=out, resume=resume, workers=workers, watcher=watcher, command=command,
            asked=asked,
        )  # fmt: skip
    began = perf_counter()
    workers = count_cores() if workers is None else workers
    opened = open_run(
        data, asked, defaults=DEMO if data is None else {}, out=out, resume=resume,
        workers=workers, watcher=watcher, command=command,
    )  # fmt: skip
    with opened as (run, plan):
        return _work(run, plan, workers, watcher, began, resumed=resume is not None)


def _work(
    run: Path, plan: Plan, workers: int, watcher: Watcher, began: float, *, resumed: bool
) -> Study:
    """Trains what isn't trained yet, then writes predictions, results and report."""
    jobs = [replace(job, explained=0 if job.repeat else EXPLAINED) for job in make_jobs(run, plan)]
    cover_pictures(run, jobs, plan.shown, plan.names, view=plan.settings.view)
    meter = _plan_meter(plan)
    metering = [] if meter is None else _make_meter_jobs(run, plan, meter, jobs[0])
    finished = run_jobs([*jobs, *metering], run, workers=workers, watcher=watcher)
    done = {(job.model, job.repeat, job.fold): finished[job.folder] for job in jobs}
    write_history(run, done)
    watcher.say("judging")
    predictions = _collect(run, plan, jobs, done)
    write_atomically(run / "predictions.parquet", predictions.write_parquet)
    results = _summarise(plan, predictions, done)
    looked = judge_attention(run, jobs, plan.names, plan.groups, seed=plan.settings.seed)
    for model, attention in looked.items():
        results["models"][model]["attention"] = attention
    if labels := _hear_opinions(run, plan, predictions, results["data"]["decisions"], workers):
        results["labels"] = labels
    if meter is not None:
        with np.load(run / "cells.npz", allow_pickle=False) as file:
            pictures = file["cells"][metering[0].rows]
        seed = plan.settings.seed
        results["leak_meter"] = read_meter(meter, pictures, metering, finished, seed=seed)
    results["times"] = {"seconds": perf_counter() - began, "resumed": resumed}
    write_atomically(run / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    watcher.say("drawing the report")
    write_report(run)
    return Study(run, results)


def _plan_meter(plan: Plan) -> Meter | None:
    """What the leak meter measures: the images that are trained on, in folds of its own.

    For a set with a split of its own: what folds of its training part would be worth.
    """
    settings = plan.settings
    if not settings.leak_meter:
        return None
    given = settings.split == "given"
    part = plan.splits[0].train if given else np.arange(len(plan.names))
    meter = plan_meter(
        plan.labels[part],
        [plan.groups[i] for i in part],
        [plan.names[i] for i in part],
        plan.classes,
        folds=StudySettings.folds if given else settings.folds,
        seed=settings.seed,
    )
    return meter and replace(meter, rows=part[meter.rows])


def _make_meter_jobs(run: Path, plan: Plan, meter: Meter, job: FoldJob) -> list[FoldJob]:
    # The meter's small network starts from random weights, whatever the study starts from.
    settings = replace(
        plan.fit_settings, epochs=min(METER_EPOCHS, plan.settings.epochs), reach=1.0, small=0.0,
        frozen=False, augmentation=Augmentation(),
    )  # fmt: skip
    pictures = replace(meter, rows=job.rows[meter.rows])  # rows of cells.npz, not of the study
    return make_meter_jobs(
        pictures, run, settings, size=plan.settings.size, seed=plan.settings.seed,
        device=plan.settings.device,
    )  # fmt: skip


def _collect(
    run: Path,
    plan: Plan,
    jobs: Sequence[FoldJob],
    done: Mapping[tuple[str, int, int], FoldResult],
) -> pl.DataFrame:
    """All answers of the models and the two baselines, one row per image, model and repeat."""
    settings = plan.settings
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        pictures = file["cells"][jobs[0].rows]
    labels, K = plan.labels, len(plan.classes)
    answers = {key: result.probabilities for key, result in done.items()}
    for s in plan.splits:
        known, seed = labels[s.train], settings.seed
        answers["majority", s.repeat, s.fold] = predict_majority(known, K, len(s.test))
        answers["colour", s.repeat, s.fold] = predict_colour(
            pictures[s.train], known, pictures[s.test], K, seed=seed
        )
    table = plan.cleaned.manifest.table
    parts = []
    for model in (*settings.models, *BASELINES):
        for s in plan.splits:
            p = answers[model, s.repeat, s.fold]
            part = table[s.test].select("image", "group", "label")
            parts.append(
                part.with_columns(
                    pl.lit(model).alias("model"),
                    pl.lit(s.repeat, dtype=pl.Int64).alias("repeat"),
                    pl.lit(s.fold, dtype=pl.Int64).alias("fold"),
                    *(pl.Series(f"p_{c}", p[:, k]) for k, c in enumerate(plan.classes)),
                )
            )
    first = ["model", "repeat", "fold", "image", "group", "label"]
    return pl.concat(parts).select(*first, pl.selectors.starts_with("p_"))


def _hear_opinions(
    run: Path,
    plan: Plan,
    predictions: pl.DataFrame,
    decisions: Mapping[str, Any] | None,
    workers: int,
) -> dict[str, Any] | None:
    """Who disputes which label; the cases go into a table in which a person can decide."""
    foreign = _ask_starts(run, plan, workers)
    told = hear_opinions(
        predictions, plan.classes, plan.settings.models, foreign,
        seed=plan.settings.seed, decisions=decisions,
    )  # fmt: skip
    table = run / "disputed.csv"
    if told is not None and not table.exists():  # after a resumption it may hold decisions
        write_decisions(describe_disputes(told), plan.found, table)
    return told


def _ask_starts(run: Path, plan: Plan, workers: int) -> list[Opinion]:
    """What the shipped starts say: they have never seen this laboratory, or have no opinion.

    Only of pictures of the size that they were trained on, and of models of this study.
    """
    settings, table = plan.settings, plan.cleaned.manifest.table
    known = {normalise_spelling(name) for name in plan.classes}
    starts = [
        start
        for start in (find_start(m) for m in settings.models if m in list_starts())
        if start.size == settings.size
        and settings.view == "cell"
        and len(known & {normalise_spelling(name) for name in start.classes}) > 1
        and not find_seen(start.model, table["sha256"].to_list())
    ]
    if not starts:
        return []
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        position = {str(image): i for i, image in enumerate(file["image"])}
    rows = np.array([position[name] for name in plan.names], dtype=np.int64)
    jobs = [AnswerJob(s.model, run / "cells.npz", rows, settings.views) for s in starts]
    answers = map_jobs(
        answer_job, jobs, workers=workers, on_message=lambda _: None, libraries=LIBRARIES
    )
    return [
        translate_foreign(f"{model}, pretrained elsewhere", plan.names, classes, p, plan.classes)
        for model, (classes, p) in sorted((job.model, found) for job, found in answers)
    ]


def _summarise(
    plan: Plan,
    predictions: pl.DataFrame,
    done: Mapping[tuple[str, int, int], FoldResult],
) -> dict[str, Any]:
    """The content of ``results.json``."""
    settings, found, kept = plan.settings, plan.found, plan.cleaned.manifest
    costs: dict[str, dict[str, Any]] = {}
    for model in settings.models:
        results = [r for (name, _, _), r in done.items() if name == model]
        seconds = sum(e.seconds for r in results for e in r.history)
        shown = sum(e.images for r in results for e in r.history)
        costs[model] = {
            "fit_seconds": seconds,
            "images_per_second": shown / seconds,
            "parameters": results[0].parameters,
            "flops": results[0].flops,
            "notes": describe_changes(
                model,
                settings.init,
                choose_precision(model, settings.precision, settings.device),
            ),
        }
    decisions = plan.cleaned.decisions
    dropped: dict[str, int] = {}
    for step in plan.cleaned.ledger.steps:
        dropped[step.name] = dropped.get(step.name, 0) + len(step.dropped)
    return {
        "data": {
            "name": found.name,
            "layout": found.layout,
            "rows": len(found),
            "images": kept.table["image"].n_unique(),
            "classes": plan.classes,
            "counts": kept.counts(),
            "groups": kept.table["group"].n_unique(),
            "dropped": dropped,
            "set_aside": found.unreadable(),
            "sha256": hash_data(found),
            "notes": list(found.notes),
            "decisions": decisions and decisions.to_json(),
        },
        "protocol": {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
            "fit": asdict(plan.fit_settings),
        },
        **judge_study(predictions, plan.classes, settings.models, BASELINES, costs,
                      seed=settings.seed),
    }  # fmt: skip
