"""The command line: parse, call one function of the library, print.

Nothing heavy is imported before a command has been parsed, so that help and a wrong option are
answered at once. Results for programs go to stdout with ``--json``; text for people and progress
go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Env, Toml

import leuko
from leuko.errors import LeukoError, SettingsError

DATA_HELP = (
    "A Kaggle blood-cells folder in either layout, a folder of class folders, a CSV with columns "
    "image,label[,group], or nothing for the embedded synthetic demo set."
)

app = App(
    name="leuko",
    help="Classifies white blood cells in blood-smear images, and says how far the result can be "
    "trusted. Research use only, not for diagnosis.",
    version=leuko.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    help_epilogue="Every command takes --debug (show tracebacks) and --config FILE.toml. "
    "A setting comes from, first to last: default, file, environment (LEUKO_SIZE=96), command "
    "line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 done but some files were set aside.",
)
_study = Group("Study", sort_key=1)
_across = Group("Across laboratories", sort_key=2)
_training = Group("Training", sort_key=3)
_output = Group("Output", sort_key=4)

Data = Annotated[Path | None, Parameter(help=DATA_HELP)]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", group=_output, help="Print the result as JSON.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Protocol:
    """Settings that compare, train and pretrain have in common; None leaves the default.

    The names are those of `leuko.settings.StudySettings`.

    Parameters
    ----------
    recipe:
        Cleaning: classic, minimal, prepared, strict or a TOML file.
        [default: classic; pretrain: strict]
    groups:
        cell: images of the same physical cell stay together; given: only what the set says.
        [default: cell]
    split:
        folds; given: the set's own TRAIN and TEST; tenth: one tenth of the groups is tested, once,
        for large sets; auto: given where there is one. [default: auto; pretrain: tenth]
    view:
        cell: the leukocyte, cut out; field: the whole field. [default: cell]
    size:
        Side of the square picture in pixels, the same for all models. [default: 96]
    seed:
        Decides everything that is drawn. [default: 0]
    decisions:
        A CSV in which a person decided about single images; leuko audit writes one to fill in.
    init:
        blood (pretrained on blood cells), random, imagenet or a safetensors file.
        [default: blood; pretrain: random]
    augmentation:
        narrow: training pictures change as those of one laboratory do; wide: as those of many.
        [default: narrow; pretrain: wide]
    small:
        Share of the epochs, the first ones, at two thirds of the picture side.
        [default: 0; pretrain: 0.67]
    frozen:
        Keep the statistics of batch normalisation of the start. [default: no]
    epochs:
        Passes through the training part. [default: 8; demo: 4; pretrain: 12]
    batch:
        Images per step. [default: 16; pretrain: 64]
    learning_rate:
        Its peak. [default: 0.001; pretrain: 0.002]
    label_smoothing:
        Share of each target spread over all classes. [default: 0.1]
    precision:
        float32, bfloat16, or auto for the faster one of this processor. [default: auto]
    views:
        8: average over quarter turns and mirror images; 1: don't. [default: 8]
    """

    recipe: Annotated[str | None, Parameter(group=_study)] = None
    groups: Annotated[str | None, Parameter(group=_study)] = None
    split: Annotated[str | None, Parameter(group=_study)] = None
    view: Annotated[str | None, Parameter(group=_study)] = None
    size: Annotated[int | None, Parameter(group=_study)] = None
    seed: Annotated[int | None, Parameter(group=_study)] = None
    decisions: Annotated[Path | None, Parameter(group=_study)] = None
    init: Annotated[str | None, Parameter(group=_training)] = None
    augmentation: Annotated[str | None, Parameter(group=_training)] = None
    small: Annotated[float | None, Parameter(group=_training)] = None
    frozen: Annotated[bool | None, Parameter(group=_training)] = None
    epochs: Annotated[int | None, Parameter(group=_training)] = None
    batch: Annotated[int | None, Parameter(group=_training)] = None
    learning_rate: Annotated[float | None, Parameter(group=_training)] = None
    label_smoothing: Annotated[float | None, Parameter(group=_training)] = None
    precision: Annotated[str | None, Parameter(group=_training)] = None
    views: Annotated[int | None, Parameter(group=_training)] = None

    def ask(self, **more: Any) -> dict[str, Any]:
        """What was asked for, here and in `more`; paths as text."""
        given = {**{f.name: getattr(self, f.name) for f in fields(self)}, **more}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in given.items()
            if value is not None
        }


NOTHING_ASKED = Protocol()


@app.command
def compare(
    *data: Annotated[Path, Parameter(help=DATA_HELP + " Several: across laboratories.")],
    models: Annotated[str | None, Parameter(group=_study)] = None,
    folds: Annotated[int | None, Parameter(group=_study)] = None,
    repeats: Annotated[int | None, Parameter(group=_study)] = None,
    seeds: Annotated[int | None, Parameter(group=_across)] = None,
    map_: Annotated[Path | None, Parameter(name="--map", group=_across)] = None,
    workers: Annotated[int | None, Parameter(group=_training)] = None,
    leak_meter: Annotated[bool | None, Parameter(group=_study)] = None,
    keep_weights: Annotated[bool | None, Parameter(group=_output, negative="")] = None,
    out: Annotated[Path | None, Parameter(group=_output)] = None,
    resume: Annotated[Path | None, Parameter(group=_output)] = None,
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
    except KeyboardInterrupt:
        console.advise()
        raise
    if "laboratories" in result.results:
        console.conclude_laboratories(result)
    else:
        console.conclude(result)
    if as_json:
        sys.stdout.write(json.dumps(result.results, indent=1) + "\n")
    return 3 if result.results["data"]["set_aside"] else 0


@app.command
def pretrain(
    data: Data = None,
    /,
    *,
    model: str,
    workers: Annotated[int | None, Parameter(group=_training)] = None,
    credit: Annotated[str, Parameter(group=_output)] = "",
    out: Annotated[Path | None, Parameter(group=_output)] = None,
    resume: Annotated[Path | None, Parameter(group=_output)] = None,
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
        Names, separated by commas; several are trained side by side.
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
    _check_early({**asked, "models": _split_names(model)})
    from leuko.pretraining import pretrain as pretrain_models
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    try:
        result = pretrain_models(
            data, model=_split_names(model), out=out, resume=resume, workers=workers,
            watcher=console, command=["leuko", *sys.argv[1:]], credit=credit, **asked,
        )  # fmt: skip
    except KeyboardInterrupt:
        console.advise()
        raise
    console.conclude(result.study)
    for path in result.starts.values():
        console.say(f"a start for --init: {path}")
    if as_json:
        sys.stdout.write(json.dumps(result.study.results, indent=1) + "\n")
    return 3 if result.study.results["data"]["set_aside"] else 0


@app.command
def train(
    data: Data = None,
    /,
    *,
    model: Annotated[str | None, Parameter(group=_training)] = None,
    folds: Annotated[int | None, Parameter(group=_study)] = None,
    refit: Annotated[bool, Parameter(group=_training)] = True,
    half: Annotated[bool, Parameter(group=_training, negative="")] = False,
    workers: Annotated[int | None, Parameter(group=_training)] = None,
    coverage: Annotated[float, Parameter(group=_study)] = 0.95,
    licence: Annotated[str | None, Parameter(group=_output)] = None,
    credits: Annotated[str | None, Parameter(group=_output)] = None,
    out: Annotated[Path | None, Parameter(group=_output)] = None,
    run: Annotated[Path | None, Parameter(group=_output)] = None,
    resume: Annotated[Path | None, Parameter(group=_output)] = None,
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
        needs a single split.
    half:
        Round the weights to half precision before they are judged; the bundle gets smaller.
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    coverage:
        Share of the cells of each class whose set of classes is to hold the true one.
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
        Continue an interrupted run in this folder.
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
    except KeyboardInterrupt:
        console.advise()
        raise
    console.conclude_training(bundle)
    if as_json:
        sys.stdout.write(json.dumps(bundle.facts.to_json(), indent=1) + "\n")
    return 0


@app.command
def predict(
    images: list[Path],
    /,
    *,
    model: Path | None = None,
    scale: float | None = None,
    out: Annotated[Path | None, Parameter(group=_output)] = None,
    as_json: AsJson = False,
) -> int:
    """Find the leukocytes in images and classify them. Needs no PyTorch.

    Whole fields give an answer per cell, pictures cut around one cell give one. Each answer is
    pre-classified, unidentified (the model isn't sure) or rejected (no leukocyte). Files that can't
    be read are listed. Prints CSV unless --out or --json is given.

    Parameters
    ----------
    images:
        Images, folders, and CSV files with a column image.
    model:
        A bundle that leuko train wrote. [default: the one that ships with Leuko]
    scale:
        Pixels per µm. [default: measured from the red cells, once for each picture size]
    out:
        Where the answers go: .csv, .parquet or .json.
    as_json:
        Print the answers as JSON.
    """
    from leuko.progress import Console
    from leuko.use.answers import check_kind
    from leuko.use.predictor import load

    if out is not None:
        check_kind(out)
    if scale is not None and not 0 < scale < 1000:
        raise SettingsError(f"--scale is {scale}; expected pixels per µm, such as 12.7.")
    console = Console(sys.argv[1:])

    def tell(done: int, total: int) -> None:
        console.count("images", done, total)

    found = load(model).predict(images, scale=scale, progress=tell)
    if out is not None:
        found.write(out)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    elif out is None:
        sys.stdout.write(found.to_csv())
    console.conclude_predictions(found, out)
    return 3 if found.set_aside else 0


@app.command
def export(bundle: Path, /, *, to: str = "onnx", out: Path | None = None) -> int:
    """Take the network out of a bundle, after checking it, for other programs.

    Parameters
    ----------
    bundle:
        That leuko train wrote.
    to:
        onnx.
    out:
        The file, which must not exist. [default: NAME.onnx in the current folder]
    """
    from leuko.errors import UnknownNameError, suggest
    from leuko.learning.bundle import take_model

    if to != "onnx":
        raise UnknownNameError(f"There is no format {to!r}. {suggest(to, ['onnx'])}")
    place = Path(f"{bundle.resolve().stem}.onnx") if out is None else out
    sys.stdout.write(f"{take_model(bundle, place)}\n")
    return 0


@app.command
def audit(
    data: Data = None,
    /,
    *,
    out: Path | None = None,
    split: Annotated[bool, Parameter(negative="")] = False,
    study: Path | None = None,
    folds: int = 5,
    seed: int = 0,
    workers: int | None = None,
    as_json: AsJson = False,
) -> int:
    """Look for everything that is wrong with a set, before any model is believed.

    Damaged files, copies however turned or recoloured, the same cell in two photographs,
    contradicting and likely wrong labels, blur, exposure, classes too small … Writes a page with
    the pictures, and a table in which a person can decide about each image.

    Parameters
    ----------
    data:
        What to look at.
    out:
        Folder for the page and the tables, which must not exist. [default: runs/audit-NAME-1 …]
    split:
        Also measure what a random split of this set is worth beside a split by group; trains
        small networks for some minutes.
    study:
        A finished run folder of leuko compare on the same set: also list the labels that its
        models dispute.
    folds:
        That a study would use; classes that are too small for it are named.
    seed:
        Decides folds and trees.
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    as_json:
        Print audit.json.
    """
    from leuko.inspection import audit as inspect
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    found = inspect(
        data, out=out, write=True, folds=folds, split=split, study=study, seed=seed,
        workers=workers, watcher=console, command=["leuko", *sys.argv[1:]],
    )  # fmt: skip
    console.conclude_audit(found)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    return 3 if found.manifest.unreadable() else 0


@app.command
def clean(
    data: Data = None,
    /,
    *,
    recipe: str = "classic",
    decisions: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> int:
    """Clean a set by a recipe, and show what each step dropped and why.

    No image is changed, copied or deleted: the result is a manifest, a CSV of labels that every
    command reads, the ledger and the recipe as it was used.

    Parameters
    ----------
    data:
        What to clean.
    recipe:
        classic, minimal, prepared, strict or a TOML file.
    decisions:
        A CSV in which a person decided about single images; leuko audit writes one to fill in.
    out:
        Folder for the result, which must not exist; without it the ledger is only shown.
    seed:
        Decides which images a step that drops a share takes.
    as_json:
        Print the ledger as JSON.
    """
    from leuko.data.cleaning import clean as clean_set
    from leuko.data.cleaning import write_clean
    from leuko.data.recipe import load_recipe
    from leuko.data.sources import scan as scan_set

    steps = load_recipe(recipe)
    manifest = scan_set(data)
    for note in manifest.notes:
        _say(note)
    if steps.needs_audit and not manifest.audited:
        from leuko.data.audit import find_issues
        from leuko.engine import count_cores
        from leuko.progress import Console

        _say("looking for copies and damage, as the recipe needs it")
        say = Console(sys.argv[1:]).count
        manifest = find_issues(manifest, workers=count_cores(), say=say).manifest
    cleaned = clean_set(manifest, steps, seed=seed, decisions=decisions)
    if as_json:
        sys.stdout.write(cleaned.ledger.to_json() + "\n")
    else:
        _say(cleaned.ledger.describe())
    if out is not None:
        write_clean(cleaned, out)
        _say(f"written to {out}")
    unreadable = manifest.unreadable()
    for row in unreadable:
        _say(f"set aside: {row['image']} ({row['reason']})")
    return 3 if unreadable else 0


@app.command
def fetch(name: str = "blood-cells", /) -> int:
    """Download a public set. There is one: blood-cells, from Kaggle.

    Parameters
    ----------
    name:
        Of the set.
    """
    from leuko.data.downloads import fetch as fetch_set

    sys.stdout.write(f"{fetch_set(name)}\n")
    return 0


@app.command
def demo(folder: Path, /, *, seed: int = 0) -> int:
    """Draw the synthetic demo set into a folder.

    Its layout and its faults are those of the Kaggle set. The cells are drawn by a program: what
    is measured on them says nothing about blood.

    Parameters
    ----------
    folder:
        Must not exist.
    seed:
        Decides what is drawn.
    """
    from leuko.data.synthetic import write_demo_set
    from leuko.errors import OutputError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder. Choose another.")
    sys.stdout.write(f"{write_demo_set(folder, seed=seed)}\n")
    return 0


@app.command
def report(run: Path, /) -> int:
    """Write the figures and the report of a finished run once more, from its files.

    Parameters
    ----------
    run:
        A run folder of leuko compare.
    """
    from leuko.judgement.transfer_page import write_any_report

    sys.stdout.write(f"{write_any_report(run)}\n")
    return 0


@app.command
def doctor(*, as_json: AsJson = False) -> int:
    """Show versions, processor, memory and what is installed, for a bug report."""
    from leuko.engine import count_cores
    from leuko.run import describe_environment
    from leuko.storage import free_bytes

    facts = describe_environment([])
    del facts["command"], facts["threads"]
    facts["cores"] = count_cores()
    facts["free_gigabytes"] = round(free_bytes(Path.cwd()) / 1e9, 1)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return 0
    for key, value in facts.items():
        sys.stdout.write(f"{key:15} {'not installed' if value is None else value}\n")
    if facts["torch"] is None:
        sys.stdout.write("\nTraining needs PyTorch: pip install 'leuko[train]'\n")
    return 0


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code instead of raising.

    Args:
        tokens: The words after ``leuko``; None takes them from the process.
    """
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        words, config = _take_config(words)
        app.config = config
        code = app(
            words, exit_on_error=False, print_error=True, result_action="return_value",
        )  # fmt: skip
        return code if isinstance(code, int) else 0
    except CycloptsError:
        return 2  # cyclopts has printed what was wrong
    except LeukoError as error:
        if debug:
            raise
        _say(f"leuko: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        _say("leuko: stopped.")
        return 130
    except BrokenPipeError:
        # The reader of stdout went away, as in `leuko … | head`; that's no fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        _say(
            f"leuko: a fault in Leuko itself: {type(error).__name__}: {error}\n"
            "Please report it; the same command with --debug shows where it happened."
        )
        return 1


def _take_config(words: list[str]) -> tuple[list[str], list[Any]]:
    """Takes ``--config FILE`` out of the words; gives the sources of settings, strongest first."""
    sources: list[Any] = [Env("LEUKO_", command=False)]
    rest, path = [], None
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            path = next(remaining, None)
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
            continue
        if not path:
            raise SettingsError("--config needs the path of a TOML file.")
    if path is not None:
        try:
            tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(f"There is no file {path}; --config takes a TOML file.") from error
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} can't be read as TOML: {error}.") from error
        sources.append(Toml(path, must_exist=True, use_commands_as_keys=False))
    return rest, sources


def _check_early(asked: dict[str, Any]) -> None:
    """Answers a wrong model name or size before polars and SciPy are loaded."""
    from leuko.learning.models import DEFAULT_MODELS, check_input_size

    for model in asked.get("models", DEFAULT_MODELS):
        check_input_size(model, asked.get("size", 10_000))


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
