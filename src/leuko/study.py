"""The study: models × folds × repeats on one set, under one protocol, into one run folder.

    data → manifest → groups → cleaning → splits → cells → jobs → predictions → results → report

Everything that the report shows is a file of the run folder first. PyTorch is loaded by the
worker processes only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.audit import group_same_cells
from leuko.data.cleaning import Cleaned, clean
from leuko.data.image import read_image
from leuko.data.leukocytes import (
    choose_leukocyte,
    cut_cell,
    cut_field,
    estimate_set_scales,
    find_leukocytes,
)
from leuko.data.manifest import Manifest, write_manifest
from leuko.data.sources import scan
from leuko.data.splits import Split, check_splits, make_splits
from leuko.engine import count_cores, map_jobs
from leuko.errors import DataError, MissingExtraError, SettingsError, suggest
from leuko.judgement.report import write_report
from leuko.judgement.results import judge_study
from leuko.learning.baselines import BASELINES, predict_colour, predict_majority
from leuko.learning.fit import FitSettings
from leuko.learning.folds import FoldJob, FoldResult, Progress, fit_fold
from leuko.learning.models import DEFAULT_MODELS, check_input_size
from leuko.run import (
    PINNED,
    check_same,
    describe_environment,
    lock_run,
    make_run_folder,
    read_config,
    write_config,
)
from leuko.storage import check_free_space, write_atomically

# Images per size from which the scale is measured; its median is then known to about 1 %.
SCALE_SAMPLE = 60
VIEWS = ("cell", "field")
GROUPS = ("cell", "given")
SPLITS = ("auto", "folds", "given")


@dataclass(frozen=True)
class StudySettings:
    """Everything that decides the result of a study, by the names of the command line.

    Attributes:
        models: Names, see `leuko.learning.models`.
        folds: Parts of the data; each is tested once per repeat.
        repeats: How often the data are split anew.
        recipe: Cleaning recipe: a shipped name or a TOML file.
        groups: What stays on one side of a split. ``cell``: images that show the same physical
            cell, besides what the set itself says; ``given``: only what the set says (source,
            slide or patient; else the file).
        split: ``folds``; ``given`` (train on TRAIN, test on TEST of the set); ``auto`` takes
            the given one where there is one.
        view: ``cell``: the leukocyte, cut out at one physical scale; ``field``: the whole field.
        size: Side of the square picture in pixels, the same for every model.
        init: Start of the weights: ``random``, ``imagenet`` or a safetensors file.
        epochs: Passes through the training part, each showing all classes equally often.
        batch: Images per step.
        learning_rate: Peak.
        label_smoothing: Share of the target spread over all classes.
        views: 8 averages the answer over quarter turns and mirror images; 1 doesn't.
        seed: Decides everything that is drawn.
        keep_weights: Keep each fold's weights in the run folder.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    folds: int = 5
    repeats: int = 1
    recipe: str = "classic"
    groups: str = "cell"
    split: str = "auto"
    view: str = "cell"
    size: int = 64
    init: str = "random"
    epochs: int = 22
    batch: int = 16
    learning_rate: float = 2e-3
    label_smoothing: float = 0.1
    views: int = 8
    seed: int = 0
    keep_weights: bool = False


# What is different when no data are given: the demo is to show everything within two minutes.
DEMO = {"folds": 3, "epochs": 6}


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
    watcher = watcher or Watcher()
    began = perf_counter()
    if resume is not None:
        settings, data = _recall(Path(resume), data, asked)
    else:
        settings = resolve_settings({**(DEMO if data is None else {}), **asked})
    workers = workers or count_cores()
    check_settings(settings, workers)

    if resume is None:
        name = "demo" if data is None else _name(data)
        run = make_run_folder(out, name)
    else:
        run = Path(resume)
    with lock_run(run):
        environment = describe_environment(list(command))
        if resume is not None:
            recorded = json.loads((run / "environment.json").read_text("utf-8"))
            check_same("versions", recorded, {k: environment[k] for k in PINNED})
        cleaned = _prepare_data(data, settings, watcher)
        splits, names = _split(cleaned, settings)
        plan = _Plan(run, settings, cleaned, splits, names)
        if resume is None:
            where = None if data is None else str(_path_of(data).resolve())
            write_config(run, {"data": where, **asdict(settings)})
            write_atomically(run / "environment.json", json.dumps(environment, indent=1))
            _record(plan, watcher)
        else:
            check_same("images", *_hashes_of(plan))
        return _work(plan, workers, watcher, began)


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the first network is built."""

    run: Path
    settings: StudySettings
    cleaned: Cleaned
    splits: list[Split]
    names: list[str]  # image ids of the cleaned rows, in the order that splits index

    @property
    def found(self) -> Manifest:
        return self.cleaned.found

    @property
    def classes(self) -> list[str]:
        return self.cleaned.manifest.classes()

    @property
    def labels(self) -> NDArray[np.int64]:
        number = {name: k for k, name in enumerate(self.classes)}
        column = self.cleaned.manifest.table["label"].to_list()
        return np.array([number[label] for label in column], dtype=np.int64)


# --- settings -------------------------------------------------------------------------------------


def resolve_settings(asked: Mapping[str, Any]) -> StudySettings:
    """Fills in the defaults.

    Raises:
        SettingsError: An unknown name or a value of the wrong type.
    """
    known = {f.name: f for f in fields(StudySettings)}
    for name in asked:
        if name not in known:
            raise SettingsError(f"There is no setting {name!r}. {suggest(name, list(known))}")
    values: dict[str, Any] = {k: tuple(v) if k == "models" else v for k, v in asked.items()}
    settings = replace(StudySettings(), **values)
    for name, value in asdict(settings).items():
        default = getattr(StudySettings(), name)
        right = isinstance(value, type(default)) or (
            isinstance(default, float) and isinstance(value, int)
        )
        if not right or (isinstance(value, bool) and not isinstance(default, bool)):
            raise SettingsError(
                f"{name} is {value!r}; expected {type(default).__name__}, as in {default!r}."
            )
    return settings


def check_settings(settings: StudySettings, workers: int = 1) -> None:
    """Refuses what can't work, before anything is read or written.

    Raises:
        SettingsError: A value out of its range.
        UnknownNameError: A model that doesn't exist.
        InputSizeError: `size` is too small for a model.
        MissingExtraError: PyTorch isn't installed.
    """
    if not settings.models:
        raise SettingsError("No models were named; expected at least one, as in --models resnet18.")
    if len(set(settings.models)) < len(settings.models):
        raise SettingsError(
            f"A model is named twice in {', '.join(settings.models)}; name it once."
        )
    limits: dict[str, tuple[float, float]] = {
        "folds": (2, 1000), "repeats": (1, 1000), "size": (16, 1024), "epochs": (1, 100_000),
        "batch": (2, 4096), "learning_rate": (1e-8, 10), "label_smoothing": (0, 0.9),
        "seed": (0, 2**31 - 1),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:  # false for NaN too
            raise SettingsError(f"{name} is {value}; expected a number from {low:g} to {high:g}.")
    if workers < 1:
        raise SettingsError(f"workers is {workers}; expected at least 1.")
    choices = {"view": VIEWS, "groups": GROUPS, "split": SPLITS, "views": (1, 8)}
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in allowed:
            raise SettingsError(
                f"{name} is {value!r}; expected one of: {', '.join(map(str, allowed))}."
            )
    for model in settings.models:
        check_input_size(model, settings.size)
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError(
            "leuko compare trains networks and needs PyTorch and torchvision, which aren't "
            "installed. Install them with: pip install 'leuko[train]'"
        )


def _recall(
    run: Path, data: Any, asked: Mapping[str, Any]
) -> tuple[StudySettings, Manifest | Cleaned | str | Path | None]:
    """The settings of a run that is continued; refuses others."""
    recorded = read_config(run)
    before = recorded.pop("data", None)
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in asked.items()}
    if data is not None and not isinstance(data, Manifest | Cleaned):
        now["data"] = str(Path(data).resolve())
    check_same("settings", {**recorded, "data": before}, now)
    settings = resolve_settings(recorded)
    return settings, data if isinstance(data, Manifest | Cleaned) else before


# --- data -----------------------------------------------------------------------------------------


def _path_of(data: Manifest | Cleaned | str | Path) -> Path:
    if isinstance(data, Cleaned):
        return data.manifest.root
    return data.root if isinstance(data, Manifest) else Path(data)


def _name(data: Manifest | Cleaned | str | Path) -> str:
    if isinstance(data, Cleaned):
        return data.manifest.name
    return data.name if isinstance(data, Manifest) else Path(data).resolve().stem


def _prepare_data(
    data: Manifest | Cleaned | str | Path | None,
    settings: StudySettings,
    watcher: Watcher,
) -> Cleaned:
    """Reads and cleans, unless that is done, and keeps images of one cell together."""
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
    # The augmented Kaggle set says itself which images come from one source, and turned and
    # sheared copies aren't what the search for a second photograph is made for.
    if settings.groups == "given" or cleaned.found.layout == "kaggle-augmented":
        return cleaned
    watcher.say("looking for the same cell in several images")
    found = group_same_cells(cleaned.found)
    group = dict(found.table.select("image", "group").iter_rows())
    kept = cleaned.manifest.table.with_columns(
        pl.col("image").replace_strict(group, return_dtype=pl.String).alias("group")
    )
    return replace(cleaned, found=found, manifest=cleaned.manifest.with_table(kept))


def _split(cleaned: Cleaned, settings: StudySettings) -> tuple[list[Split], list[str]]:
    """Row indices of each fold's parts, checked against leaks."""
    table = cleaned.manifest.table
    names, groups = table["image"].to_list(), table["group"].to_list()
    labels, given = table["label"].to_list(), table["split"].to_list()
    if len(set(labels)) < 2:
        what = f"only {labels[0]}" if labels else "no image"
        raise DataError(
            f"After cleaning there is {what}; expected at least two classes to tell apart. "
            "Look at what each step dropped with: leuko clean DATA --recipe RECIPE."
        )
    has_given = {"TRAIN", "TEST"} <= set(given)
    if settings.split == "given" and not has_given:
        raise SettingsError(
            "--split given needs a set that says which images are TRAIN and which TEST; this "
            "one doesn't. Use --split folds."
        )
    if settings.split == "given" or (settings.split == "auto" and has_given):
        # TEST_SIMPLE repeats sources of TEST; counting them again would not add information.
        train = np.array([i for i, s in enumerate(given) if s == "TRAIN"], dtype=np.int64)
        test = np.array([i for i, s in enumerate(given) if s == "TEST"], dtype=np.int64)
        splits = [Split(0, 0, train, test)]
        check_splits(splits, groups, names)
        return splits, names
    splits = make_splits(
        labels,
        groups,
        folds=settings.folds,
        repeats=settings.repeats,
        seed=settings.seed,
        images=names,
    )
    return splits, names


def cut_pictures(
    manifest: Manifest, *, view: str, size: int, watcher: Watcher | None = None
) -> tuple[list[str], NDArray[np.uint8], NDArray[np.float64]]:
    """Decodes every image that has one label and cuts out what the networks will see.

    Args:
        manifest: Rows that can't be read are left out.
        view: ``cell`` or ``field``.
        size: S in pixels.
        watcher: Told how many fields showed no leukocyte.

    Returns:
        Image ids, N of them; pictures (N, S, S, 3); scores (N,) of the leukocytes, 0 where
        none was found and the window is a guess, 1 throughout for fields.
    """
    from concurrent.futures import ThreadPoolExecutor

    usable = manifest.table.filter(
        pl.col("label").is_not_null()
        & pl.col("path").is_not_null()
        & ~pl.col("issues").list.eval(pl.element().str.starts_with("unreadable")).list.any()
    ).unique("image", keep="first", maintain_order=True)
    rows = list(zip(usable["path"], usable["width"], usable["height"], strict=True))
    scales = _measure_scales(manifest.root, rows) if view == "cell" else {}

    def cut(row: tuple[str, int, int]) -> tuple[NDArray[np.uint8], float]:
        path, width, height = row
        image = read_image(manifest.root / path)
        if view == "field":
            return cut_field(image, size), 1.0
        found = find_leukocytes(image, scale=scales[height, width])
        chosen = replace(choose_leukocyte(found, image), scale=scales[height, width])
        return cut_cell(image, chosen, size), chosen.score

    with ThreadPoolExecutor(count_cores()) as pool:
        cut_out = list(pool.map(cut, rows))
    pictures = np.stack([c for c, _ in cut_out]) if cut_out else np.zeros((0, size, size, 3), "u1")
    scores = np.array([s for _, s in cut_out])
    if watcher is not None and (missed := int((scores == 0).sum())):
        watcher.say(f"no leukocyte was found in {missed} images; their window is a guess")
    return usable["image"].to_list(), pictures.astype(np.uint8), scores


def _measure_scales(
    root: Path, rows: Sequence[tuple[str, int, int]]
) -> dict[tuple[int, int], float]:
    """Pixels per micrometre for each (height, width), from a sample of the images."""
    by_size: dict[tuple[int, int], list[str]] = {}
    for path, width, height in rows:
        by_size.setdefault((width, height), []).append(path)
    sample = [
        root / path
        for paths in by_size.values()
        for path in paths[:: -(-len(paths) // SCALE_SAMPLE)]
    ]
    return estimate_set_scales(read_image(path) for path in sample)


# --- the run folder -------------------------------------------------------------------------------


def _record(plan: _Plan, watcher: Watcher) -> None:
    """Writes everything that is known before training."""
    run, settings = plan.run, plan.settings
    jobs = len(plan.splits) * len(settings.models)
    # Checkpoints of the jobs at work are the largest thing by far; weights are kept on wish.
    check_free_space(run, int(1e9 + (1e8 * jobs if settings.keep_weights else 0)))
    write_manifest(plan.found, run / "manifest.parquet")
    write_atomically(run / "ledger.json", plan.cleaned.ledger.to_json())
    rows = [
        {"repeat": s.repeat, "fold": s.fold, "image": plan.names[i], "part": part}
        for s in plan.splits
        for part, index in (("train", s.train), ("test", s.test))
        for i in index
    ]
    write_atomically(run / "splits.parquet", lambda p: pl.DataFrame(rows).write_parquet(p))
    watcher.say("cutting out the leukocytes" if settings.view == "cell" else "scaling the fields")
    images, pictures, scores = cut_pictures(
        plan.found, view=settings.view, size=settings.size, watcher=watcher
    )

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, image=np.array(images), cells=pictures, scores=scores)

    write_atomically(run / "cells.npz", save)


def _hashes_of(plan: _Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Content of the images of a run that is continued: as recorded, as they are now."""
    from leuko.data.manifest import read_manifest

    recorded = read_manifest(plan.run / "manifest.parquet")
    return {"content": hash_data(recorded)}, {"content": hash_data(plan.found)}


def hash_data(manifest: Manifest) -> str:
    """One SHA-256 for what a set says and holds: image ids, bytes, labels and groups."""
    rows = manifest.table.select("image", "sha256", "label_written", "group").rows()
    text = json.dumps(sorted(rows, key=repr), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _work(plan: _Plan, workers: int, watcher: Watcher, began: float) -> Study:
    """Trains what isn't trained yet, then writes predictions, results and report."""
    run, settings = plan.run, plan.settings
    jobs = _make_jobs(plan)
    watcher.begin(run, len(jobs) * settings.epochs)
    done: dict[tuple[str, int, int], FoldResult] = {}
    try:
        for job, result in map_jobs(fit_fold, jobs, workers=workers, on_message=watcher.epoch):
            done[job.model, job.repeat, job.fold] = result
    finally:
        watcher.end()
    _write_history(run, done)
    watcher.say("judging")
    predictions = _collect(plan, jobs, done)
    write_atomically(run / "predictions.parquet", predictions.write_parquet)
    results = _summarise(plan, predictions, done, began)
    write_atomically(run / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    watcher.say("drawing the report")
    write_report(run)
    return Study(run, results)


def _make_jobs(plan: _Plan) -> list[FoldJob]:
    """Fold by fold, so that the time left can be told from the first ones of each model."""
    settings = plan.settings
    with np.load(plan.run / "cells.npz", allow_pickle=False) as file:
        position = {str(image): i for i, image in enumerate(file["image"])}
    rows = np.array([position[name] for name in plan.names], dtype=np.int64)
    fit_settings = FitSettings(
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        label_smoothing=settings.label_smoothing,
        views=settings.views,
        balance=plan.cleaned.balance,
    )
    return [
        FoldJob(
            run=plan.run.resolve(), model=model, repeat=split.repeat, fold=split.fold, rows=rows,
            labels=plan.labels, train=split.train, test=split.test, classes=len(plan.classes),
            settings=fit_settings, init=settings.init, seed=settings.seed,
            keep_weights=settings.keep_weights,
        )
        for split in plan.splits
        for model in settings.models
    ]  # fmt: skip


def _collect(
    plan: _Plan,
    jobs: Sequence[FoldJob],
    done: Mapping[tuple[str, int, int], FoldResult],
) -> pl.DataFrame:
    """All answers of the models and the two baselines, one row per image, model and repeat."""
    settings = plan.settings
    with np.load(plan.run / "cells.npz", allow_pickle=False) as file:
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
    began: float,
) -> dict[str, Any]:
    """The content of ``results.json``."""
    settings, found, kept = plan.settings, plan.found, plan.cleaned.manifest
    costs = {}
    for model in settings.models:
        results = [r for (name, _, _), r in done.items() if name == model]
        seconds = sum(e.seconds for r in results for e in r.history)
        shown = sum(e.images for r in results for e in r.history)
        costs[model] = {
            "fit_seconds": seconds,
            "images_per_second": shown / seconds,
            "parameters": results[0].parameters,
            "flops": results[0].flops,
        }
    given = len(plan.splits) == 1
    return {
        "data": {
            "name": found.name,
            "layout": found.layout,
            "rows": len(found),
            "images": kept.table["image"].n_unique(),
            "classes": plan.classes,
            "counts": kept.counts(),
            "groups": kept.table["group"].n_unique(),
            "dropped": {s.name: len(s.dropped) for s in plan.cleaned.ledger.steps},
            "set_aside": found.unreadable(),
            "sha256": hash_data(found),
            "notes": list(found.notes),
        },
        "protocol": {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
            **({"folds": 1, "repeats": 1, "split": "given"} if given else {"split": "folds"}),
            "balance": plan.cleaned.balance,
            "fit": asdict(FitSettings())
            | {"epochs": settings.epochs, "batch": settings.batch, "views": settings.views,
               "learning_rate": settings.learning_rate, "balance": plan.cleaned.balance,
               "label_smoothing": settings.label_smoothing},
        },
        **judge_study(predictions, plan.classes, settings.models, BASELINES, costs,
                      seed=settings.seed),
        "times": {"seconds": perf_counter() - began},
    }  # fmt: skip
