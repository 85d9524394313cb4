"""Commands that train: compare, train, pretrain, and the report of what was trained.

Thin: parse, call one function of the library, print.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from leuko.commands.options import (
    ACROSS,
    DATA_HELP,
    NOTHING_ASKED,
    OUTPUT,
    STUDY,
    TRAINING,
    AsJson,
    Data,
    Protocol,
)
from leuko.errors import DataError, SettingsError, StorageError


def compare(
    *data: Annotated[Path, Parameter(help=DATA_HELP + " Several: across laboratories.")],
    models: Annotated[str | None, Parameter(group=STUDY)] = None,
    folds: Annotated[int | None, Parameter(group=STUDY)] = None,
    repeats: Annotated[int | None, Parameter(group=STUDY)] = None,
    seeds: Annotated[int | None, Parameter(group=ACROSS)] = None,
    map_: Annotated[Path | None, Parameter(name="--map", group=ACROSS)] = None,
    workers: Annotated[int | None, Parameter(group=TRAINING)] = None,
    leak_meter: Annotated[bool | None, Parameter(group=STUDY)] = None,
    keep_weights: Annotated[bool | None, Parameter(group=OUTPUT, negative="")] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    resume: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    protocol: Protocol = NOTHING_ASKED,
    as_json: AsJson = False,
) -> int:
    """Compare ResNet, EfficientNet and AlexNet on one set, and write a report.

    Cleans the data by a recipe, splits them so that no cell is on both sides, trains every model
    on every fold under one protocol, and says which is better or whether the data can't tell.

    With two or more sets: trains on one and tests on the others, each way, and with three or more
    on all but one and tests on that one; says what is lost on the way.

    Parameters
    ----------
    data:
        What to compare on.
    models:
        Names, separated by commas: resnet18/34/50, efficientnet_b0 to b7, efficientnet_v2_s,
        alexnet, timm:NAME. [default: resnet18,efficientnet_b0,alexnet]
    folds:
        Parts of the data; each is tested once per repeat. [default: 5; demo: 2]
    repeats:
        How often the data are split anew. [default: 1]
    seeds:
        Networks trained per model and set. [default: 3]
    map_:
        What each set's classes are called in common: a TOML file with a table per set, or a CSV
        with the columns set,class,common. [default: matched by their names]
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    leak_meter:
        Measure what a random split would pretend. [default: yes]
    keep_weights:
        Keep each fold's weights in the run folder.
    out:
        The run folder, which must not exist. [default: runs/NAME-1, -2, …]
    resume:
        Continue an interrupted run in this folder.
    as_json:
        Print results.json.
    """
    asked = protocol.ask(
        models=None if models is None else _split_names(models), folds=folds, repeats=repeats,
        seeds=seeds, map=map_, leak_meter=leak_meter, keep_weights=keep_weights,
    )  # fmt: skip
    if out is not None and resume is not None:
        raise SettingsError("--out makes a new run and --resume continues one; give one of them.")
    _check_early(asked)
    from leuko import study
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    try:
        result: Any = study.compare(
            list(data) or None,
            out=out,
            resume=resume,
            workers=workers,
            watcher=console,
            command=["leuko", *sys.argv[1:]],
            **asked,
        )
    except (KeyboardInterrupt, StorageError):
        console.advise()
        raise
    if "laboratories" in result.results:
        console.conclude_laboratories(result)
    else:
        console.conclude(result)
    if as_json:
        sys.stdout.write(json.dumps(result.results, indent=1) + "\n")
    return 3 if result.results["data"]["set_aside"] else 0


def pretrain(
    data: Data = None,
    /,
    *,
    model: str | None = None,
    workers: Annotated[int | None, Parameter(group=TRAINING)] = None,
    credit: Annotated[str, Parameter(group=OUTPUT)] = "",
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    resume: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    protocol: Protocol = NOTHING_ASKED,
    as_json: AsJson = False,
) -> int:
    """Train a start for other studies on a large set of blood cells.

    Copies and contradictions are dropped first, a tenth is kept aside by group, and colour, stain,
    focus, scale, light and compression are varied so widely that another microscope is no surprise.
    The result is a file for --init, with a card.

    Parameters
    ----------
    data:
        Thousands of labelled cells.
    model:
        Names, separated by commas; several are trained side by side. With --resume those of the
        run.
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    credit:
        Authors and licence of the data, for the card.
    out:
        The run folder, which must not exist. [default: runs/NAME-1, -2, …]
    resume:
        Continue an interrupted run in this folder.
    as_json:
        Print results.json.
    """
    asked = protocol.ask()
    if out is not None and resume is not None:
        raise SettingsError("--out makes a new run and --resume continues one; give one of them.")
    models = _split_names(model or "")
    _check_early({**asked, "models": models})
    from leuko.pretraining import pretrain as pretrain_models
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    try:
        result = pretrain_models(
            data, model=models, out=out, resume=resume, workers=workers,
            watcher=console, command=["leuko", *sys.argv[1:]], credit=credit, **asked,
        )  # fmt: skip
    except (KeyboardInterrupt, StorageError):
        console.advise()
        raise
    console.conclude(result.study)
    for path in result.starts.values():
        console.say(f"a start for --init: {path}")
    if as_json:
        sys.stdout.write(json.dumps(result.study.results, indent=1) + "\n")
    return 3 if result.study.results["data"]["set_aside"] else 0


def train(
    data: Data = None,
    /,
    *,
    model: Annotated[str | None, Parameter(group=TRAINING)] = None,
    folds: Annotated[int | None, Parameter(group=STUDY)] = None,
    refit: Annotated[bool | None, Parameter(group=TRAINING)] = None,
    half: Annotated[bool | None, Parameter(group=TRAINING, negative="")] = None,
    workers: Annotated[int | None, Parameter(group=TRAINING)] = None,
    coverage: Annotated[float | None, Parameter(group=STUDY)] = None,
    licence: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    credits: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    run: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    resume: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    protocol: Protocol = NOTHING_ASKED,
    as_json: AsJson = False,
) -> int:
    """Train one model for use, and write it as a bundle.

    Cleans and splits as compare does. Folds come first: what is said of the model, its temperature
    and its thresholds come from cells that a model of the same recipe never saw. Then it is
    trained on everything, exported, compared with PyTorch, and written with a card.

    Parameters
    ----------
    data:
        What to train on.
    model:
        One name: resnet18/34/50, efficientnet_b0 to b7, efficientnet_v2_s, alexnet, timm:NAME.
        [default: efficientnet_b0]
    folds:
        Parts of the data; each is tested once. [default: 5; demo: 2]
    refit:
        Train once more on everything after judging; no-refit keeps the model that was judged, and
        needs a single split. [default: refit]
    half:
        Round the weights to half precision before they are judged; the bundle gets smaller.
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    coverage:
        Share of the cells of each class whose set of classes is to hold the true one.
        [default: 0.95]
    licence:
        Of the data, for the card. [default: what is known of the set]
    credits:
        Whom to name for the data. [default: what is known of the set]
    out:
        The bundle: a folder, or one file if it ends in .zip; must not exist.
        [default: bundle in the run folder]
    run:
        The run folder, which must not exist. [default: runs/NAME-1, -2, …]
    resume:
        Continue an interrupted run in this folder, as it was begun.
    as_json:
        Print bundle.json.
    """
    asked = protocol.ask(folds=folds)
    if run is not None and resume is not None:
        raise SettingsError("--run makes a new run and --resume continues one; give one of them.")
    _check_early({**asked, "models": (model,) if model else ()})
    from leuko import training
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    try:
        bundle = training.train(
            data, model=model, out=out, run=run, resume=resume, coverage=coverage,
            refit=refit, half=half, licence=licence, credits=credits, workers=workers,
            watcher=console, command=["leuko", *sys.argv[1:]], **asked,
        )  # fmt: skip
    except (KeyboardInterrupt, StorageError):
        console.advise()
        raise
    console.conclude_training(bundle)
    if as_json:
        sys.stdout.write(json.dumps(bundle.facts.to_json(), indent=1) + "\n")
    return 0


def report(run: Path, /) -> int:
    """Write the figures and the report of a finished run once more, from its files.

    Parameters
    ----------
    run:
        A run folder of leuko compare.
    """
    from leuko.judgement.transfer_page import write_any_report

    if not run.exists():
        raise DataError(f"There is no folder {run}; expected the run folder of a leuko compare.")
    sys.stdout.write(f"{write_any_report(run)}\n")
    return 0


def _check_early(asked: dict[str, Any]) -> None:
    """Answers a wrong model name or size before polars and SciPy are loaded."""
    from leuko.learning.models import DEFAULT_MODELS, check_input_size

    for model in asked.get("models", DEFAULT_MODELS):
        check_input_size(model, asked.get("size", 10_000))


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
