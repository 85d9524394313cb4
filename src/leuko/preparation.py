"""From settings and data to a run folder in which jobs can begin, or go on.

    settings + data → plan → run folder: manifest, ledger, splits, cells → jobs → their results

What a study, a study across laboratories and the training of one model have in common. Knows
folders and jobs; knows nothing of what their answers are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.cleaning import Cleaned
from leuko.data.cuts import SURROUNDINGS, WINDOW
from leuko.data.manifest import Manifest, write_manifest
from leuko.data.pictures import cut_pictures
from leuko.engine import map_jobs
from leuko.learning.folds import FoldJob, FoldResult, fit_fold
from leuko.learning.gpu import describe_gpu
from leuko.learning.models import LIBRARIES, choose_precision
from leuko.learning.starts import check_unseen, find_start
from leuko.plan import Plan, Source, check_same_images, find_name, find_root, make_plan
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
from leuko.settings import StudySettings, check_settings, resolve_settings
from leuko.storage import check_free_space, write_atomically
from leuko.watcher import Watcher

# Trainings at a time on one GPU; each keeps its own copy of PyTorch's GPU code in its memory.
GPU_WORKERS = 4


@contextmanager
def open_run(
    data: Source,
    asked: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    out: str | Path | None,
    resume: str | Path | None,
    workers: int,
    watcher: Watcher,
    command: Sequence[str],
) -> Iterator[tuple[Path, Plan]]:
    """Makes a run folder and fills it with all that is known before training, or goes on in one.

    Args:
        data: As for `leuko.compare`.
        asked: Fields of `StudySettings` that the caller asks for.
        defaults: Those that differ for a new run from what `StudySettings` says.
        out: The run folder; None takes the next free one under ``runs/``.
        resume: The folder of an interrupted run.
        workers: Processes at a time.
        watcher: Learns of the progress.
        command: As the user typed it, for the record.

    Yields:
        The run folder, locked for this process, and the plan.

    Raises:
        LeukoError: See `leuko.errors`. Before the data are known to be fit nothing is written.
    """
    if resume is not None:
        settings, data = _recall(Path(resume), data, asked)
    else:
        settings = resolve_settings({**defaults, **asked})
    if isinstance(data, Cleaned):
        settings = replace(settings, recipe=data.recipe.name)
    check_settings(
        settings, workers, has_recipe=isinstance(data, Cleaned), begun=resume is not None
    )
    environment = check_folder(settings, out=out, resume=resume, command=command)
    plan = make_plan(data, settings, watcher, workers=workers)
    if settings.init == "blood":
        hashes = plan.cleaned.manifest.table["sha256"].to_list()
        check_unseen(settings.models, {hashes[i] for s in plan.splits for i in s.test})
    where = None if data is None else str(find_root(data).resolve())
    with enter_folder(
        settings, out=out, resume=resume,
        name="demo" if data is None else find_name(data),
        record=lambda run: _record(run, plan, {**environment, "data": where}, watcher),
        check=lambda run: _check_unchanged(run, plan),
    ) as run:  # fmt: skip
        yield run, plan


def check_folder(
    settings: StudySettings,
    *,
    out: str | Path | None,
    resume: str | Path | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """Refuses early a folder that can't be used, or other software than a run began with.

    Args:
        settings: Checked.
        out, resume, command: As for `open_run`.

    Returns:
        What goes into ``environment.json``, but for the data.
    """
    if settings.init == "blood":
        starts = [find_start(model).path for model in settings.models]
    else:
        starts = [Path(settings.init)] if Path(settings.init).is_file() else []
    environment = describe_environment(list(command), starts)
    environment["gpu"] = None if settings.device == "cpu" else describe_gpu()
    if resume is None:
        check_run_folder(out)
    else:
        recorded = read_environment(Path(resume))
        check_same("versions", recorded, {k: v for k, v in environment.items() if k in PINNED})
    return environment


@contextmanager
def enter_folder(
    settings: StudySettings,
    *,
    out: str | Path | None,
    resume: str | Path | None,
    name: str,
    record: Callable[[Path], None],
    check: Callable[[Path], None],
) -> Iterator[Path]:
    """Makes a run folder, or goes on in one; it is locked for this process.

    Args:
        settings: As asked for, so that the same can be asked again.
        out, resume: As for `open_run`.
        name: Of the data, for a folder that isn't named.
        record: Writes all that is known before training into a new folder.
        check: Raises if a folder that is continued was made of something else.
    """
    if resume is None:
        run = make_run_folder(out, name)
        check_free_space(run, FREE_SPACE)
    else:
        run = Path(resume)
    with lock_run(run):
        if resume is None:
            record(run)
            write_config(run, asdict(settings))  # last, as it marks the rest as complete
        else:
            check(run)
            remove_leftovers(run)
        yield run


def run_jobs(
    jobs: Sequence[FoldJob], folder: Path, *, workers: int, watcher: Watcher
) -> dict[Path, FoldResult]:
    """Trains what isn't trained yet, and tells the watcher how far it is.

    Args:
        jobs: In the order in which they begin.
        folder: The run, for the watcher's words.
        workers: Processes at a time.
        watcher: Learns of each epoch.

    Returns:
        The result of each job, by the job's folder.
    """
    if any(job.device != "cpu" for job in jobs):
        workers = min(workers, GPU_WORKERS)
    watcher.begin(folder, sum(job.settings.epochs for job in jobs))
    try:
        done = map_jobs(
            fit_fold, jobs, workers=workers, on_message=watcher.epoch, libraries=LIBRARIES
        )
        return {job.folder: result for job, result in done}
    finally:
        watcher.end()


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


def _record(run: Path, plan: Plan, environment: dict[str, Any], watcher: Watcher) -> None:
    """Writes everything that is known before training."""
    settings = plan.settings
    write_atomically(run / "environment.json", json.dumps(environment, indent=1))
    write_manifest(plan.found, run / "manifest.parquet")
    write_atomically(run / "ledger.json", plan.cleaned.ledger.to_json())
    write_atomically(run / "splits.parquet", plan.splits_table.write_parquet)
    watcher.say("cutting out the leukocytes" if settings.view == "cell" else "scaling the fields")
    cut = partial(cut_pictures, plan.shown, view=settings.view, light=settings.light)
    images, pictures, scores = cut(size=settings.size)
    if missed := int((scores == 0).sum()):
        watcher.say(f"no leukocyte was found in {missed} images; their window is a guess")

    save_cells(run / "cells.npz", image=np.array(images), cells=pictures, scores=scores)
    if plan.has_surroundings:
        size = round(settings.size * SURROUNDINGS / WINDOW)
        images, pictures, _ = cut(size=size, window=SURROUNDINGS)
        save_cells(run / "surroundings.npz", image=np.array(images), cells=pictures)


def save_cells(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes ``cells.npz`` or its like: arrays by name, none of them of Python objects."""

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, save)


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


def make_jobs(run: Path, plan: Plan) -> list[FoldJob]:
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
                plan.fit_settings,
                precision=choose_precision(model, settings.precision, settings.device),
            ),
            init=settings.init, seed=settings.seed, device=settings.device,
            keep_weights=settings.keep_weights,
            training="surroundings.npz" if plan.has_surroundings else "cells.npz",
        )
        for split in plan.splits
        for model in settings.models
    ]  # fmt: skip


def write_history(run: Path, done: Mapping[tuple[str, int, int], FoldResult]) -> None:
    """Writes every epoch of every job as ``history.parquet``."""
    rows = [
        {"model": model, "repeat": repeat, "fold": fold, "epoch": e.number, "loss": e.loss,
         "accuracy": e.accuracy, "learning_rate": e.learning_rate}
        for (model, repeat, fold), result in sorted(done.items())
        for e in result.history
    ]  # fmt: skip
    write_atomically(run / "history.parquet", lambda p: pl.DataFrame(rows).write_parquet(p))
