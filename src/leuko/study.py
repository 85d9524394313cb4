"""The study: models × folds × repeats on one set, under one protocol, into one run folder.

    plan → cells → jobs → predictions → results → report

Everything that the report shows is a file of the run folder first. PyTorch is loaded by the
worker processes only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, overload

import numpy as np
import polars as pl

from leuko.data.cleaning import Cleaned
from leuko.data.manifest import Manifest, hash_data, write_manifest
from leuko.data.pictures import cut_pictures
from leuko.engine import count_cores, map_jobs, refuse_in_worker
from leuko.judgement.report import write_report
from leuko.judgement.results import judge_study
from leuko.laboratories import LaboratoryStudy, compare_laboratories, is_laboratory_run
from leuko.learning.baselines import BASELINES, predict_colour, predict_majority
from leuko.learning.folds import FoldJob, FoldResult, fit_fold
from leuko.learning.models import choose_precision, describe_changes
from leuko.meter import EPOCHS as METER_EPOCHS
from leuko.meter import Meter, make_meter_jobs, plan_meter, read_meter
from leuko.plan import Plan, check_same_images, find_name, find_root, make_plan
from leuko.run import (
    FREE_SPACE,
    PINNED,
    check_run_folder,
    check_same,
    describe_environment,
    lock_run,
    make_run_folder,
    read_config,
    read_environment,
    remove_leftovers,
    write_config,
)
from leuko.settings import DEMO, StudySettings, check_settings, resolve_settings
from leuko.storage import check_free_space, write_atomically
from leuko.watcher import Watcher


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


Source = Manifest | Cleaned | str | Path | None


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
    if resume is not None:
        run = Path(resume)
        settings, data = _recall(run, data, asked)
    else:
        settings = resolve_settings({**(DEMO if data is None else {}), **asked})
    if isinstance(data, Cleaned):
        settings = replace(settings, recipe=data.recipe.name)
    workers = count_cores() if workers is None else workers
    check_settings(settings, workers, has_recipe=isinstance(data, Cleaned))
    environment = describe_environment(list(command), settings.init)
    if resume is not None:
        recorded = read_environment(run)
        check_same("versions", recorded, {k: v for k, v in environment.items() if k in PINNED})
    else:
        check_run_folder(out)

    # Nothing is written before the data are known to be fit for use.
    plan = make_plan(data, settings, watcher, workers=workers)
    if resume is None:
        run = make_run_folder(out, "demo" if data is None else find_name(data))
        check_free_space(run, FREE_SPACE)
    with lock_run(run):
        if resume is None:
            where = None if data is None else str(find_root(data).resolve())
            _record(run, plan, {**environment, "data": where}, watcher)
            # Last, as it marks the rest as complete; as asked for, so that the same can be asked
            # again.
            write_config(run, asdict(settings))
        else:
            _check_unchanged(run, plan)
            remove_leftovers(run)
        return _work(run, plan, workers, watcher, began, resumed=resume is not None)


# --- what is continued ---------------------------------------------------------------------------


def _recall(
    run: Path, data: Any, asked: Mapping[str, Any]
) -> tuple[StudySettings, Manifest | Cleaned | str | Path | None]:
    """The settings and data of a run that is continued; refuses others."""
    recorded = resolve_settings(read_config(run))
    before = read_environment(run).get("data")
    wanted = resolve_settings({**asdict(recorded), **asked})
    given = data if isinstance(data, Manifest | Cleaned) else None
    where = before if given is not None or data is None else str(Path(data).resolve())
    check_same(
        "settings",
        {**asdict(recorded), "data": before},
        {**asdict(wanted), "data": where},
    )
    return recorded, before if given is None else given


# --- the run folder -------------------------------------------------------------------------------


def _record(run: Path, plan: Plan, environment: dict[str, Any], watcher: Watcher) -> None:
    """Writes everything that is known before training."""
    settings = plan.settings
    write_atomically(run / "environment.json", json.dumps(environment, indent=1))
    write_manifest(plan.found, run / "manifest.parquet")
    write_atomically(run / "ledger.json", plan.cleaned.ledger.to_json())
    write_atomically(run / "splits.parquet", plan.splits_table.write_parquet)
    watcher.say("cutting out the leukocytes" if settings.view == "cell" else "scaling the fields")
    images, pictures, scores = cut_pictures(plan.found, view=settings.view, size=settings.size)
    if missed := int((scores == 0).sum()):
        watcher.say(f"no leukocyte was found in {missed} images; their window is a guess")

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, image=np.array(images), cells=pictures, scores=scores)

    write_atomically(run / "cells.npz", save)


def _check_unchanged(run: Path, plan: Plan) -> None:
    """Refuses to continue with other images, labels, groups, cleaning or splits.

    Raises:
        ResumeError: Says what differs.
    """
    check_same_images(run / "manifest.parquet", plan.found)
    recorded = {
        "ledger": hashlib.sha256((run / "ledger.json").read_bytes()).hexdigest()[:12],
        "splits": pl.read_parquet(run / "splits.parquet").equals(plan.splits_table),
    }
    ledger = hashlib.sha256(plan.cleaned.ledger.to_json().encode()).hexdigest()[:12]
    check_same("cleaning and splits", recorded, {"ledger": ledger, "splits": True})


def _work(
    run: Path, plan: Plan, workers: int, watcher: Watcher, began: float, *, resumed: bool
) -> Study:
    """Trains what isn't trained yet, then writes predictions, results and report."""
    jobs = _make_jobs(run, plan)
    meter = _plan_meter(plan)
    metering = [] if meter is None else _make_meter_jobs(run, plan, meter, jobs[0])
    every = [*jobs, *metering]
    watcher.begin(run, sum(job.settings.epochs for job in every))
    finished: dict[Path, FoldResult] = {}
    try:
        for job, result in map_jobs(fit_fold, every, workers=workers, on_message=watcher.epoch):
            finished[job.folder] = result
    finally:
        watcher.end()
    done = {(job.model, job.repeat, job.fold): finished[job.folder] for job in jobs}
    _write_history(run, done)
    watcher.say("judging")
    predictions = _collect(run, plan, jobs, done)
    write_atomically(run / "predictions.parquet", predictions.write_parquet)
    results = _summarise(plan, predictions, done)
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


def _make_jobs(run: Path, plan: Plan) -> list[FoldJob]:
    """Fold by fold, so that the time left can be told from the first ones of each model."""
    settings = plan.settings
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        position = {str(image): i for i, image in enumerate(file["image"])}
    rows = np.array([position[name] for name in plan.names], dtype=np.int64)
    return [
        FoldJob(
            run=run.resolve(), model=model, repeat=split.repeat, fold=split.fold, rows=rows,
            labels=plan.labels, train=split.train, test=split.test, classes=len(plan.classes),
            settings=replace(
                plan.fit_settings, precision=choose_precision(model, settings.precision)
            ),
            init=settings.init, seed=settings.seed,
            keep_weights=settings.keep_weights,
        )
        for split in plan.splits
        for model in settings.models
    ]  # fmt: skip


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
    settings = replace(plan.fit_settings, epochs=min(METER_EPOCHS, plan.settings.epochs))
    pictures = replace(meter, rows=job.rows[meter.rows])  # rows of cells.npz, not of the study
    return make_meter_jobs(
        pictures, run, settings, size=plan.settings.size, seed=plan.settings.seed
    )


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


def _write_history(run: Path, done: Mapping[tuple[str, int, int], FoldResult]) -> None:
    rows = [
        {"model": model, "repeat": repeat, "fold": fold, "epoch": e.number, "loss": e.loss,
         "accuracy": e.accuracy, "learning_rate": e.learning_rate}
        for (model, repeat, fold), result in sorted(done.items())
        for e in result.history
    ]  # fmt: skip
    write_atomically(run / "history.parquet", lambda p: pl.DataFrame(rows).write_parquet(p))


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
                model, settings.init, choose_precision(model, settings.precision)
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
