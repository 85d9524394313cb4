"""The study: models × folds × repeats on one set, under one protocol, into one run folder.

    data → manifest → groups → cleaning → splits → cells → jobs → predictions → results → report

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
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.audit import group_same_cells
from leuko.data.cleaning import Cleaned, clean
from leuko.data.manifest import Manifest, read_manifest, write_manifest
from leuko.data.pictures import cut_pictures
from leuko.data.sources import scan
from leuko.data.splits import Split, check_splits, make_splits
from leuko.engine import count_cores, map_jobs, refuse_in_worker
from leuko.errors import (
    DataError,
    RecipeError,
    ResumeError,
    SettingsError,
)
from leuko.judgement.report import write_report
from leuko.judgement.results import judge_study
from leuko.learning.baselines import BASELINES, predict_colour, predict_majority
from leuko.learning.fit import FitSettings
from leuko.learning.folds import FoldJob, FoldResult, Progress, fit_fold
from leuko.learning.models import describe_changes
from leuko.run import (
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

# Checkpoints of the jobs at work are the largest thing by far: some 180 MB for ResNet-18.
FREE_SPACE = 500_000_000


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


class Watcher:
    """Learns what a study is doing. Does nothing; subclass it to show progress."""

    def begin(self, folder: Path, epochs: int) -> None:
        """The run folder exists; `epochs` are to be trained in all, those done before included."""

    def say(self, text: str) -> None:
        """A sentence for people."""

    def epoch(self, progress: Progress) -> None:
        """One more epoch of one job is done."""

    def end(self) -> None:
        """Nothing more will be said."""


def compare(
    data: Manifest | Cleaned | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
    **asked: Any,
) -> Study:
    """Compares models on one set: the main job.

    Args:
        data: A path as for `leuko.scan`, a manifest, a cleaned manifest, or None for the
            synthetic demo set.
        out: The run folder; None takes the next free one under ``runs/``.
        resume: The folder of an interrupted run, which is continued.
        workers: Processes at a time, each with one thread; None takes one per core. It changes
            the time, never the result.
        watcher: Learns of the progress.
        command: As the user typed it, for the record.
        **asked: Fields of `StudySettings`.

    Returns:
        The study; its folder holds results, figures and report.

    Raises:
        LeukoError: See `leuko.errors`; what was finished stays in the run folder.
    """
    refuse_in_worker("leuko.compare")
    watcher = watcher or Watcher()
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
    plan = _plan(data, settings, watcher)
    if resume is None:
        run = make_run_folder(out, "demo" if data is None else _name(data))
        check_free_space(run, FREE_SPACE)
    with lock_run(run):
        if resume is None:
            where = None if data is None else str(_path_of(data).resolve())
            _record(run, plan, {**environment, "data": where}, watcher)
            # Last, as it marks the rest as complete; as asked for, so that the same can be asked
            # again.
            write_config(run, asdict(settings))
        else:
            _check_unchanged(run, plan)
            remove_leftovers(run)
        return _work(run, plan, workers, watcher, began, resumed=resume is not None)


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the first network is built."""

    settings: StudySettings
    cleaned: Cleaned
    splits: list[Split]
    names: list[str]  # image ids of the cleaned rows, in the order that splits index

    @property
    def found(self) -> Manifest:
        return self.cleaned.found

    @property
    def splits_table(self) -> pl.DataFrame:
        """As in ``splits.parquet``."""
        return pl.DataFrame(
            [
                {"repeat": s.repeat, "fold": s.fold, "image": self.names[i], "part": part}
                for s in self.splits
                for part, index in (("train", s.train), ("test", s.test))
                for i in index
            ]
        )

    @property
    def fit_settings(self) -> FitSettings:
        s = self.settings
        return FitSettings(
            epochs=s.epochs, batch=s.batch, learning_rate=s.learning_rate,
            label_smoothing=s.label_smoothing, precision=s.precision, views=s.views,
            balance=self.cleaned.balance,
        )  # fmt: skip

    @property
    def classes(self) -> list[str]:
        return self.cleaned.manifest.classes()

    @property
    def labels(self) -> NDArray[np.int64]:
        number = {name: k for k, name in enumerate(self.classes)}
        column = self.cleaned.manifest.table["label"].to_list()
        return np.array([number[label] for label in column], dtype=np.int64)


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


# --- data -----------------------------------------------------------------------------------------


def _path_of(data: Manifest | Cleaned | str | Path) -> Path:
    if isinstance(data, Cleaned):
        return data.manifest.root
    return data.root if isinstance(data, Manifest) else Path(data)


def _name(data: Manifest | Cleaned | str | Path) -> str:
    if isinstance(data, Cleaned):
        return data.manifest.name
    return data.name if isinstance(data, Manifest) else Path(data).resolve().stem


def _plan(
    data: Manifest | Cleaned | str | Path | None, settings: StudySettings, watcher: Watcher
) -> _Plan:
    """Reads, cleans, groups and splits."""
    if isinstance(data, Cleaned):
        cleaned = data
    else:
        if isinstance(data, Manifest):
            manifest = data
        else:
            watcher.say("drawing the demo set" if data is None else "reading the images")
            manifest = scan(data)
        cleaned = clean(manifest, settings.recipe, seed=settings.seed)
    for note in cleaned.found.notes:
        watcher.say(note)
    _check_usable(cleaned)
    # The augmented Kaggle set says itself which images come from one source, and turned and
    # sheared copies aren't what the search for a second photograph is made for.
    if cleaned.found.layout == "kaggle-augmented":
        settings = replace(settings, groups="given")
    if settings.groups == "cell":
        watcher.say("looking for the same cell in several images")
        cleaned = _group(cleaned)
    parts = set(cleaned.manifest.table["split"].drop_nulls())
    if settings.split == "given" or (settings.split == "auto" and {"TRAIN", "TEST"} <= parts):
        cleaned, splits = _take_given_split(cleaned, watcher)
        settings = replace(settings, split="given", folds=1, repeats=1)
    else:
        splits = _make_folds(cleaned, settings)
        settings = replace(settings, split="folds")
    return _Plan(settings, cleaned, splits, cleaned.manifest.table["image"].to_list())


def _check_usable(cleaned: Cleaned) -> None:
    """Refuses what no model could be trained on, before any work is done.

    Raises:
        RecipeError: A kept row has no label, no readable image, or is there twice.
        DataError: Fewer than two classes.
    """
    table = cleaned.manifest.table
    unreadable = {row["image"] for row in cleaned.manifest.unreadable()}
    seen: set[str] = set()
    for image, label, path in table.select("image", "label", "path").iter_rows():
        if label is None:
            lacks, step = "not exactly one label", "drop_blank_labels and drop_multiple_labels"
        elif path is None:
            lacks, step = "no image", "drop_missing_images"
        elif image in unreadable:
            lacks, step = "an image that can't be read", "drop_unreadable"
        elif image in seen:
            lacks, step = "more than one row", "drop_conflicts and drop_repeated_rows"
        else:
            seen.add(image)
            continue
        raise RecipeError(
            f"After the recipe {cleaned.recipe.name!r}, {image} still has {lacks}. Add the steps "
            f"{step} to the recipe, as in the shipped ones."
        )
    classes = cleaned.manifest.classes()
    if len(classes) < 2:
        what = f"only {classes[0]}" if classes else "no image"
        raise DataError(
            f"After cleaning there is {what}; expected at least two classes to tell apart. "
            "Look at what each step dropped with: leuko clean DATA --recipe RECIPE."
        )


def _group(cleaned: Cleaned) -> Cleaned:
    found = group_same_cells(cleaned.found)
    group = dict(found.table.select("image", "group").iter_rows())
    kept = cleaned.manifest.table.with_columns(
        pl.col("image").replace_strict(group, return_dtype=pl.String).alias("group")
    )
    return replace(cleaned, found=found, manifest=cleaned.manifest.with_table(kept))


def _make_folds(cleaned: Cleaned, settings: StudySettings) -> list[Split]:
    table = cleaned.manifest.table
    parts = sorted(set(table["split"].drop_nulls()))
    if cleaned.found.layout == "kaggle-augmented" and len(parts) > 1:
        raise SettingsError(
            f"The augmented set numbers its sources within each part ({', '.join(parts)}), so the "
            "same cell may be in two parts under two numbers, and folds across them would leak. "
            "Use --split given, or give the path of one part."
        )
    return make_splits(
        table["label"].to_list(),
        table["group"].to_list(),
        folds=settings.folds,
        repeats=settings.repeats,
        seed=settings.seed,
        images=table["image"].to_list(),
    )


def _take_given_split(cleaned: Cleaned, watcher: Watcher) -> tuple[Cleaned, list[Split]]:
    """The set's own TRAIN and TEST. Its other parts are left out: TEST_SIMPLE may repeat TEST."""
    table = cleaned.manifest.table
    others = table.filter(~pl.col("split").is_in(["TRAIN", "TEST"]).fill_null(value=False))
    if len(others):
        names = ", ".join(sorted({part or "no part" for part in others["split"]}))
        watcher.say(f"{len(others)} images of {names} are not used: only TRAIN and TEST are")
    table = table.filter(pl.col("split").is_in(["TRAIN", "TEST"]))
    part, labels = table["split"].to_numpy(), table["label"].to_numpy()
    train, test = (np.flatnonzero(part == p).astype(np.int64) for p in ("TRAIN", "TEST"))
    for name, rows in (("TRAIN", train), ("TEST", test)):
        missing = sorted(set(cleaned.manifest.classes()) - set(labels[rows]))
        if missing or not len(rows):
            raise SettingsError(
                f"The set's own {name} part has {len(rows)} images"
                + (f" and none of {', '.join(missing)}" if missing else "")
                + "; expected every class in TRAIN and in TEST. Use --split folds."
            )
    splits = [Split(0, 0, train, test)]
    check_splits(splits, table["group"].to_list(), table["image"].to_list())
    if len(set(table["group"].to_numpy()[test])) < 2:
        raise SettingsError(
            "All images of TEST are of one group, so nothing can be said about how certain a "
            "figure is. Use --split folds."
        )
    return replace(cleaned, manifest=cleaned.manifest.with_table(table)), splits


# --- the run folder -------------------------------------------------------------------------------


def _record(run: Path, plan: _Plan, environment: dict[str, Any], watcher: Watcher) -> None:
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


def _check_unchanged(run: Path, plan: _Plan) -> None:
    """Refuses to continue with other images, labels, groups, cleaning or splits.

    Raises:
        ResumeError: Says what differs.
    """
    before, now = (_rows(m) for m in (read_manifest(run / "manifest.parquet"), plan.found))
    changed = sorted({str(row[0]) for row in before ^ now})
    if changed:
        names = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        raise ResumeError(
            f"This run can't be continued, because its images differ: {quantity(changed)} "
            f"changed since it began ({names}). Restore them, or start a new run."
        )
    recorded = {
        "ledger": hashlib.sha256((run / "ledger.json").read_bytes()).hexdigest()[:12],
        "splits": pl.read_parquet(run / "splits.parquet").equals(plan.splits_table),
    }
    ledger = hashlib.sha256(plan.cleaned.ledger.to_json().encode()).hexdigest()[:12]
    check_same("cleaning and splits", recorded, {"ledger": ledger, "splits": True})


def quantity(images: Sequence[str]) -> str:
    """ "1 image", "12 images"."""
    return f"{len(images)} image{'' if len(images) == 1 else 's'}"


def _rows(manifest: Manifest) -> set[tuple[Any, ...]]:
    return set(manifest.table.select("image", "sha256", "label_written", "group", "split").rows())


def hash_data(manifest: Manifest) -> str:
    """One SHA-256 for what a set says and holds: ids, bytes, labels, groups, parts."""
    text = json.dumps(sorted(_rows(manifest), key=repr), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _work(
    run: Path, plan: _Plan, workers: int, watcher: Watcher, began: float, *, resumed: bool
) -> Study:
    """Trains what isn't trained yet, then writes predictions, results and report."""
    jobs = _make_jobs(run, plan)
    watcher.begin(run, len(jobs) * plan.settings.epochs)
    done: dict[tuple[str, int, int], FoldResult] = {}
    try:
        for job, result in map_jobs(fit_fold, jobs, workers=workers, on_message=watcher.epoch):
            done[job.model, job.repeat, job.fold] = result
    finally:
        watcher.end()
    _write_history(run, done)
    watcher.say("judging")
    predictions = _collect(run, plan, jobs, done)
    write_atomically(run / "predictions.parquet", predictions.write_parquet)
    results = _summarise(plan, predictions, done)
    results["times"] = {"seconds": perf_counter() - began, "resumed": resumed}
    write_atomically(run / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    watcher.say("drawing the report")
    write_report(run)
    return Study(run, results)


def _make_jobs(run: Path, plan: _Plan) -> list[FoldJob]:
    """Fold by fold, so that the time left can be told from the first ones of each model."""
    settings = plan.settings
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        position = {str(image): i for i, image in enumerate(file["image"])}
    rows = np.array([position[name] for name in plan.names], dtype=np.int64)
    return [
        FoldJob(
            run=run.resolve(), model=model, repeat=split.repeat, fold=split.fold, rows=rows,
            labels=plan.labels, train=split.train, test=split.test, classes=len(plan.classes),
            settings=plan.fit_settings, init=settings.init, seed=settings.seed,
            keep_weights=settings.keep_weights,
        )
        for split in plan.splits
        for model in settings.models
    ]  # fmt: skip


def _collect(
    run: Path,
    plan: _Plan,
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
    plan: _Plan,
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
            "notes": describe_changes(model, settings.init),
        }
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
        },
        "protocol": {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
            "fit": asdict(plan.fit_settings),
        },
        **judge_study(predictions, plan.classes, settings.models, BASELINES, costs,
                      seed=settings.seed),
    }  # fmt: skip
