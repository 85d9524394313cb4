"""The study across laboratories: train on one set, test on the others, each way.

    sets → routes → trials → jobs → answers → home, away, drop → report

With three or more sets also: train on all but one, test on that one. What is trained and tested on
is decided in `leuko.routes`; here it is done, into one run folder that can be continued.
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

from leuko.data.cleaning import Cleaned
from leuko.data.manifest import Manifest, hash_data, write_manifest
from leuko.data.pictures import cut_pictures
from leuko.data.vocabulary import Naming, parse_naming, write_naming
from leuko.engine import count_cores
from leuko.errors import SettingsError
from leuko.judgement.transfer import Side, flatten_transfers, judge_transfer
from leuko.judgement.transfer_page import write_transfer_report
from leuko.learning.baselines import BASELINES, predict_colour, predict_majority
from leuko.learning.folds import FoldJob, FoldResult
from leuko.learning.models import choose_precision, describe_changes
from leuko.learning.starts import check_unseen
from leuko.plan import check_same_images, find_root
from leuko.preparation import check_folder, enter_folder, run_jobs, save_cells
from leuko.routes import Exchange, Route, Set, Trial, count_shared, name_sets, plan_routes
from leuko.run import check_same, read_config, read_environment
from leuko.settings import LaboratorySettings, check_settings, resolve_laboratories
from leuko.storage import write_atomically
from leuko.watcher import Watcher

Answers = dict[tuple[str, Route, int], NDArray[np.float64]]  # by model, route, number of the trial


@dataclass(frozen=True)
class LaboratoryStudy:
    """A finished study across laboratories.

    Attributes:
        folder: The run folder.
        results: The content of ``results.json``.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def transfers(self) -> list[dict[str, Any]]:
        """Every model from every set to every other, then from all but one to that one."""
        told = self.results["laboratories"]
        return [*told["transfers"], *told["leave_one_out"]]

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the report once more from the files of the run; returns where it is."""
        written = write_transfer_report(self.folder)
        if path is None:
            return written
        return write_atomically(Path(path), written.read_bytes())


def is_laboratory_run(run: Path) -> bool:
    """Whether a run that is to be continued is one across several sets."""
    return "seeds" in read_config(run)


def compare_laboratories(
    sets: Set | Sequence[Set] | None,
    *,
    out: str | Path | None,
    resume: str | Path | None,
    workers: int | None,
    watcher: Watcher,
    command: Sequence[str],
    asked: Mapping[str, Any],
) -> LaboratoryStudy:
    """Trains on each set, and on all but one, and judges at home and away.

    Args:
        sets: Two or more, each as for `leuko.compare`; None takes those of the run.
        out, resume, workers, watcher, command: As for `leuko.compare`.
        asked: Fields of `LaboratorySettings`.

    Raises:
        LeukoError: See `leuko.errors`; what was finished stays in the run folder.
    """
    began = perf_counter()
    asked = dict(asked)
    if isinstance(asked.get("map"), Mapping):
        asked["map"] = write_naming(asked["map"])
    elif "map" in asked:
        asked["map"] = str(asked["map"])
    if sets is None or not isinstance(sets, Sequence) or isinstance(sets, str):
        sets = [] if sets is None else [sets]
    if resume is not None:
        settings, sets = _recall(Path(resume), sets, asked)
    else:
        settings = resolve_laboratories(asked)
    workers = count_cores() if workers is None else workers
    cleaned = all(isinstance(data, Cleaned) for data in sets)
    check_settings(settings, workers, has_recipe=cleaned, begun=resume is not None)
    naming = parse_naming(settings.map) if settings.map else {}
    names = name_sets(sets)
    environment = check_folder(settings, out=out, resume=resume, command=command)
    exchange = plan_routes(sets, settings, naming, watcher, workers=workers)
    if settings.init == "blood":
        hashes = exchange.images["sha256"].to_list()
        tested = {hashes[i] for t in exchange.trials for i in (*t.home, *t.away)}
        check_unseen(settings.models, tested)
    where = [str(find_root(data).resolve()) for data in sets]
    with enter_folder(
        settings, out=out, resume=resume, name="-".join(names),
        record=lambda run: _record(run, exchange, naming, {**environment, "data": where}, watcher),
        check=lambda run: _check_unchanged(run, exchange, naming),
    ) as run:  # fmt: skip
        return _work(run, exchange, naming, workers, watcher, began, resumed=resume is not None)


def _recall(
    run: Path, sets: Sequence[Set], asked: Mapping[str, Any]
) -> tuple[LaboratorySettings, Sequence[Set]]:
    """The settings and sets of a run that is continued; refuses others."""
    recorded = resolve_laboratories(read_config(run))
    before = read_environment(run).get("data")
    wanted = resolve_laboratories({**asdict(recorded), **asked})
    if any(isinstance(data, Manifest | Cleaned) for data in sets):
        where = before
    else:
        where = [str(Path(str(data)).resolve()) for data in sets] if sets else before
    check_same(
        "settings",
        {**asdict(recorded), "data": before},
        {**asdict(wanted), "data": where},
    )
    if not sets and not isinstance(before, list):
        raise SettingsError(f"{run} doesn't say which sets it compares. Name them: A B --resume.")
    return recorded, sets or [Path(one) for one in before or []]


# --- the run folder -------------------------------------------------------------------------------


def _folder_of(run: Path, exchange: Exchange, name: str) -> Path:
    """Where what is known of one set lies; numbered, as names may hold anything."""
    return run / "sets" / str(1 + list(exchange.cleaned).index(name))


def _describe_vocabulary(exchange: Exchange, naming: Naming) -> dict[str, Any]:
    return {"map": naming, "names": exchange.vocabulary.names}


def _record(
    run: Path, exchange: Exchange, naming: Naming, environment: dict[str, Any], watcher: Watcher
) -> None:
    """Writes everything that is known before training."""
    settings = exchange.settings
    write_atomically(run / "environment.json", json.dumps(environment, indent=1))
    vocabulary = _describe_vocabulary(exchange, naming)
    write_atomically(run / "vocabulary.json", json.dumps(vocabulary, indent=1, ensure_ascii=False))
    write_atomically(run / "images.parquet", exchange.images.write_parquet)
    write_atomically(run / "splits.parquet", exchange.splits_table.write_parquet)
    stacks, weights = [], []
    for name, cleaned in exchange.cleaned.items():
        folder = _folder_of(run, exchange, name)
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(cleaned.found, folder / "manifest.parquet")
        write_atomically(folder / "ledger.json", cleaned.ledger.to_json())
        watcher.say(f"{name}: cutting out what the networks will see")
        ids, pictures, scores = cut_pictures(
            cleaned.manifest, view=settings.view, size=settings.size, light=settings.light
        )
        place = {image: i for i, image in enumerate(ids)}
        order = [place[i] for i in exchange.images.filter(pl.col("set") == name)["image"]]
        stacks.append(pictures[order])
        weights.append(scores[order])
        if missed := int((scores == 0).sum()):
            watcher.say(f"no leukocyte was found in {missed} images; their window is a guess")
    ids = [f"{one}/{image}" for one, image in exchange.images.select("set", "image").iter_rows()]
    save_cells(
        run / "cells.npz", image=np.array(ids), cells=np.concatenate(stacks),
        scores=np.concatenate(weights),
    )  # fmt: skip


def _check_unchanged(run: Path, exchange: Exchange, naming: Naming) -> None:
    """Refuses to continue with other images, labels, groups, cleaning, class names or splits.

    Raises:
        ResumeError: Says what differs.
    """
    recorded: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for name, cleaned in exchange.cleaned.items():
        folder = _folder_of(run, exchange, name)
        check_same_images(folder / "manifest.parquet", cleaned.found)
        key = f"cleaning of {name}"
        recorded[key] = hashlib.sha256((folder / "ledger.json").read_bytes()).hexdigest()[:12]
        now[key] = hashlib.sha256(cleaned.ledger.to_json().encode()).hexdigest()[:12]
    vocabulary = json.loads((run / "vocabulary.json").read_text("utf-8"))
    recorded |= {"class names": vocabulary["names"], "map": vocabulary["map"]}
    now |= {"class names": exchange.vocabulary.names, "map": naming}
    for what, table in (("images", exchange.images), ("splits", exchange.splits_table)):
        recorded[what] = pl.read_parquet(run / f"{what}.parquet").equals(table)
        now[what] = True
    check_same("cleaning, class names and splits", recorded, now)


# --- the work -------------------------------------------------------------------------------------


def _work(
    run: Path,
    exchange: Exchange,
    naming: Naming,
    workers: int,
    watcher: Watcher,
    began: float,
    *,
    resumed: bool,
) -> LaboratoryStudy:
    """Trains what isn't trained yet, then writes answers, results and report."""
    planned = {(m, t.route, t.number): _make_job(run, exchange, m, t)
               for t in exchange.trials for m in exchange.settings.models}  # fmt: skip
    finished = run_jobs(list(planned.values()), run, workers=workers, watcher=watcher)
    done = {key: finished[job.folder] for key, job in planned.items()}
    _write_history(run, done)
    watcher.say("asking the baselines")
    answers = {key: result.probabilities for key, result in done.items()}
    answers |= _ask_baselines(run, exchange)
    predictions = _collect(exchange, answers)
    write_atomically(run / "predictions.parquet", predictions.write_parquet)
    watcher.say("judging")
    results = _summarise(exchange, naming, predictions, done)
    results["times"] = {"seconds": perf_counter() - began, "resumed": resumed}
    told = results["laboratories"]
    rows = flatten_transfers([*told["transfers"], *told["leave_one_out"], *told["baselines"]])
    write_atomically(run / "laboratories.csv", lambda p: pl.DataFrame(rows).write_csv(p))
    write_atomically(run / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    watcher.say("drawing the report")
    write_transfer_report(run)
    return LaboratoryStudy(run, results)


def _number_labels(exchange: Exchange, route: Route, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) classes of these images, as the networks of a route number them."""
    number = {name: k for k, name in enumerate(route.classes)}
    return np.array([number[c] for c in exchange.images["label"].to_numpy()[rows]], dtype=np.int64)


def _make_job(run: Path, exchange: Exchange, model: str, trial: Trial) -> FoldJob:
    """One training; asked about the images at home first, then about those away."""
    s = exchange.settings
    rows = np.concatenate([trial.train, trial.home, trial.away])
    place = np.arange(len(rows), dtype=np.int64)
    fit = replace(exchange.fit_settings, precision=choose_precision(model, s.precision, s.device))
    return FoldJob(
        run=run.resolve(), model=model, repeat=trial.repeat, fold=trial.fold, rows=rows,
        labels=_number_labels(exchange, trial.route, rows), train=place[: len(trial.train)],
        test=place[len(trial.train) :], classes=len(trial.route.classes), settings=fit,
        init=s.init, seed=s.seed, keep_weights=s.keep_weights, device=s.device,
        part=f"fits/route-{1 + exchange.routes.index(trial.route)}",
    )  # fmt: skip


def _ask_baselines(run: Path, exchange: Exchange) -> Answers:
    """What knows no morphology, on the same images: how far do its answers travel?"""
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        cells = file["cells"]
    answers: Answers = {}
    for t in exchange.trials:
        known, K = _number_labels(exchange, t.route, t.train), len(t.route.classes)
        asked = np.concatenate([t.home, t.away])
        answers["majority", t.route, t.number] = predict_majority(known, K, len(asked))
        answers["colour", t.route, t.number] = predict_colour(
            cells[t.train], known, cells[asked], K, seed=exchange.settings.seed
        )
    return answers


def _collect(exchange: Exchange, answers: Answers) -> pl.DataFrame:
    """Every answer: one row per image, side, model and trial; null for classes not known."""
    every = exchange.vocabulary.classes(list(exchange.cleaned))
    parts = []
    for model in (*exchange.settings.models, *BASELINES):
        for t in exchange.trials:
            p = answers[model, t.route, t.number]
            sides = ["home"] * len(t.home) + ["away"] * len(t.away)
            column = {c: p[:, k] for k, c in enumerate(t.route.classes)}
            parts.append(
                exchange.images[np.concatenate([t.home, t.away])]
                .select(
                    pl.lit(model).alias("model"), pl.lit(t.route.name).alias("train"),
                    pl.lit(t.number, dtype=pl.Int64).alias("seed"), pl.Series("part", sides),
                    "set", "image", "group", "label",
                )
                .with_columns(
                    pl.Series(f"p_{c}", column[c]) if c in column
                    else pl.lit(None, dtype=pl.Float64).alias(f"p_{c}")
                    for c in every
                )
            )  # fmt: skip
    return pl.concat(parts)


def _write_history(run: Path, done: Mapping[tuple[str, Route, int], FoldResult]) -> None:
    rows = [
        {"model": model, "train": route.name, "seed": number, "epoch": e.number, "loss": e.loss,
         "accuracy": e.accuracy, "learning_rate": e.learning_rate}
        for (model, route, number), result in done.items()
        for e in result.history
    ]  # fmt: skip
    write_atomically(run / "history.parquet", lambda p: pl.DataFrame(rows).write_parquet(p))


# --- results --------------------------------------------------------------------------------------


def _summarise(
    exchange: Exchange,
    naming: Naming,
    predictions: pl.DataFrame,
    done: Mapping[tuple[str, Route, int], FoldResult],
) -> dict[str, Any]:
    """The content of ``results.json``."""
    settings, common = exchange.settings, exchange.common
    sets = {name: _describe_set(exchange, name) for name in exchange.cleaned}
    counts = dict(exchange.images.group_by("label").len().sort("label").iter_rows())
    hashes = [one["sha256"] for one in sets.values()]
    judged = {
        (route, model): _judge_route(exchange, predictions, route, model)
        for route in exchange.routes
        for model in (*settings.models, *BASELINES)
    }
    entries = [(route, model, e) for (route, model), some in judged.items() for e in some]
    return {
        "data": {
            "name": ", ".join(sets), "layout": "laboratories",
            "images": exchange.images.height, "classes": common,
            "counts": {c: counts[c] for c in common},
            "set_aside": [{**row, "set": n} for n, one in sets.items() for row in one["set_aside"]],
            "sha256": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        },
        "protocol": {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
            "fit": asdict(exchange.fit_settings),
        },
        "laboratories": {
            "sets": sets, "common": common, "map": naming, "notes": list(exchange.notes),
            "shared": [{"train": a, "test": b, "images": n}
                       for (a, b), n in exchange.shared.items()],
            "transfers": [e for r, m, e in entries if m not in BASELINES and len(r.sources) == 1],
            "leave_one_out": [e for r, m, e in entries
                              if m not in BASELINES and len(r.sources) > 1],
            "baselines": [e for _, m, e in entries if m in BASELINES],
        },
        "costs": {model: _add_up(settings, model, done) for model in settings.models},
    }  # fmt: skip


def _judge_route(
    exchange: Exchange, predictions: pl.DataFrame, route: Route, model: str
) -> list[dict[str, Any]]:
    """One entry per target."""
    rows = predictions.filter((pl.col("model") == model) & (pl.col("train") == route.name))
    home = rows.filter(pl.col("part") == "home")
    told = []
    for target in route.targets:
        away = rows.filter((pl.col("part") == "away") & (pl.col("set") == target))
        common = sorted(set(away["label"]))
        lacking = exchange.images.filter(
            (pl.col("set") == target) & ~pl.col("label").is_in(list(route.classes))
        )
        told.append({
            "train": route.name, "test": target, "model": model, "trained_on": list(route.sources),
            **judge_transfer(
                _arrange(home, route), _arrange(away, route), route.classes, common,
                seed=exchange.settings.seed,
            ),
            "not_asked": dict(lacking.group_by("label").len().sort("label").iter_rows()),
            "shared": count_shared(exchange.images, route.sources, target),
        })  # fmt: skip
    return told


def _arrange(rows: pl.DataFrame, route: Route) -> Side:
    number = {name: k for k, name in enumerate(route.classes)}
    return Side.from_rows(
        [f"{one}/{image}" for one, image in rows.select("set", "image").iter_rows()],
        rows["group"].to_list(),
        np.array([number[label] for label in rows["label"]], dtype=np.int64),
        rows["seed"].to_numpy(),
        rows.select([f"p_{c}" for c in route.classes]).to_numpy(),
    )


def _describe_set(exchange: Exchange, name: str) -> dict[str, Any]:
    """What is known of one set, with the counts of its classes by their common names."""
    cleaned = exchange.cleaned[name]
    found, images = cleaned.found, exchange.images.filter(pl.col("set") == name)
    dropped: dict[str, int] = {}
    for step in cleaned.ledger.steps:
        dropped[step.name] = dropped.get(step.name, 0) + len(step.dropped)
    return {
        "layout": found.layout, "rows": len(found), "images": images.height,
        "classes": exchange.vocabulary.classes([name]),
        "counts": dict(images.group_by("label").len().sort("label").iter_rows()),
        "names": exchange.vocabulary.names[name], "groups": images["group"].n_unique(),
        "recipe": cleaned.recipe.name, "dropped": dropped, "set_aside": found.unreadable(),
        "sha256": hash_data(found), "notes": list(found.notes),
    }  # fmt: skip


def _add_up(
    settings: LaboratorySettings,
    model: str,
    done: Mapping[tuple[str, Route, int], FoldResult],
) -> dict[str, Any]:
    """What all trainings of one model took."""
    results = [r for (name, _, _), r in done.items() if name == model]
    seconds = sum(e.seconds for r in results for e in r.history)
    return {
        "trainings": len(results), "fit_seconds": seconds,
        "images_per_second": sum(e.images for r in results for e in r.history) / seconds,
        "parameters": results[0].parameters, "flops": results[0].flops,
        "notes": describe_changes(
            model, settings.init,
            choose_precision(model, settings.precision, settings.device),
        ),
    }  # fmt: skip
