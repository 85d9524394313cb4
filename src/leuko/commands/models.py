"""Commands that use a trained model: predict, evaluate, differential, adapt, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from leuko.commands.options import OUTPUT, AsJson, Data
from leuko.errors import SettingsError


def predict(
    images: list[Path],
    /,
    *,
    model: Path | None = None,
    scale: float | None = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    maps: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
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
        A bundle that leuko train wrote; default names the one that ships with Leuko.
        [default: that one]
    scale:
        Pixels per µm. [default: measured from the red cells, once for each picture size]
    out:
        Where the answers go: .csv, .parquet or .json.
    maps:
        A new folder for pictures of what each answer rests on, one a cell, and a table of them.
    as_json:
        Print the answers as JSON.
    """
    from leuko.engine import count_cores
    from leuko.progress import Console
    from leuko.use.answers import check_kind
    from leuko.use.inputs import check_named
    from leuko.use.maps import check_folder, write_maps
    from leuko.use.predictor import load

    if out is not None:
        check_kind(out)
    if maps is not None:
        check_folder(maps)
    _check_scale(scale)
    check_named(images)
    console = Console(sys.argv[1:])
    predictor = load(model)

    def tell(done: int, total: int) -> None:
        console.count("images", done, total)

    def tell_maps(done: int, total: int) -> None:
        console.count("images explained", done, total)

    found = predictor.predict(images, scale=scale, progress=tell, workers=count_cores())
    if maps is not None:
        write_maps(maps, predictor.explain(images, scale=scale, progress=tell_maps))
    if out is not None:
        found.write(out)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    elif out is None:
        sys.stdout.write(found.to_csv())
    console.conclude_predictions(found, out)
    return 3 if found.set_aside else 0


def differential(
    folder: Path,
    /,
    *,
    model: Path | None = None,
    reference: Path | None = None,
    several: Annotated[bool, Parameter(negative="")] = False,
    above: Annotated[list[str] | None, Parameter(negative="")] = None,
    below: Annotated[list[str] | None, Parameter(negative="")] = None,
    target: int = 200,
    scale: float | None = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    as_json: AsJson = False,
) -> int:
    """Count the leukocytes of a slide: percentages with exact limits. Needs no PyTorch.

    Beside each percentage stands the one corrected for the model's own errors. Doubtful cells are
    unidentified and no part of the percentages; what was rejected, and files that can't be read,
    are listed. Prints CSV unless --out or --json is given.

    Parameters
    ----------
    folder:
        Images of one slide; with --several, a folder for each slide.
    model:
        A bundle that leuko train wrote; default names the one that ships with Leuko.
        [default: that one]
    reference:
        A CSV of reference counts: columns class,count or slide,class,count, or one per class. If
        its slides are folders in FOLDER, each is one slide.
    several:
        Each folder in FOLDER is a slide.
    above:
        CLASS=PERCENT: a slide with more has a sign; how often is it found? Needs several slides
        with a reference. May be given again.
    below:
        CLASS=PERCENT: likewise, for a slide with less.
    target:
        Leukocytes wanted on each slide.
    scale:
        Pixels per µm. [default: measured from the red cells, once for each picture size]
    out:
        A file .csv, .html, .pdf, .json or .fhir.json; or a new folder for all of them.
    as_json:
        Print the differential as JSON.
    """
    from leuko.engine import count_cores
    from leuko.progress import Console
    from leuko.use.reference import ABOVE, BELOW, parse_threshold
    from leuko.use.slides import check_place
    from leuko.use.slides import differential as count

    _check_scale(scale)
    if out is not None:
        check_place(out)
    thresholds = [parse_threshold(text, ABOVE) for text in above or ()]
    thresholds += [parse_threshold(text, BELOW) for text in below or ()]
    console = Console(sys.argv[1:])

    def tell(slide: str, done: int, total: int) -> None:
        console.count(f"images of {slide}", done, total)

    found = count(
        folder, model=model, reference=reference, target=target, scale=scale, several=several,
        thresholds=thresholds, progress=tell, workers=count_cores(),
    )  # fmt: skip
    written = found.write(out) if out is not None else []
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    elif out is None:
        sys.stdout.write(found.to_csv())
    console.conclude_differential(found, out if len(written) > 1 else next(iter(written), None))
    return 3 if any(one.set_aside for one in found) else 0


def _check_scale(scale: float | None) -> None:
    if scale is not None and not 0 < scale < 1000:
        raise SettingsError(f"--scale is {scale}; expected pixels per µm, such as 12.7.")


def evaluate(
    bundle: Path,
    data: Data = None,
    /,
    *,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    groups: str = "cell",
    seed: int = 0,
    workers: int | None = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    as_json: AsJson = False,
) -> int:
    """Judge a trained model on a labelled set. Needs no PyTorch.

    Accuracy, calibration, coverage, what is left to a person: every figure with its limits, and a
    page with the surest mistakes. Each image that has one label is judged by the cell that training
    would have cut out of it; the others are listed. Warns if the model was trained on the set.

    Parameters
    ----------
    bundle:
        That leuko train wrote; default names the one that ships with Leuko.
    data:
        A labelled set, as for leuko compare.
    map_:
        TOML or CSV that says which class of the set is which of the model, where names differ; the
        set is called as its folder, the model "model".
    groups:
        cell: images of the same physical cell are resampled together; given: only what the set
        says.
    seed:
        Decides the resamples.
    workers:
        Processes for the search of groups; changes the time, never the result.
        [default: one per core]
    out:
        Folder for page and tables, which must not exist. [default: runs/evaluate-NAME-1 …]
    as_json:
        Print evaluation.json.
    """
    from leuko.evaluation import evaluate as judge
    from leuko.progress import Console
    from leuko.use.predictor import find_bundle

    console = Console(sys.argv[1:])
    found = judge(
        find_bundle(bundle), data, out=out, write=True, map=map_, groups=groups, seed=seed,
        workers=workers, watcher=console, command=["leuko", *sys.argv[1:]],
    )  # fmt: skip
    console.conclude_evaluation(found)
    if as_json:
        sys.stdout.write(json.dumps(found.results, indent=1) + "\n")
    return 3 if found.results["data"]["set_aside"] else 0


def adapt(
    bundle: Path,
    data: Path,
    /,
    *,
    out: Annotated[Path, Parameter(group=OUTPUT)],
    map: Path | None = None,
    recipe: str = "minimal",
    groups: str = "cell",
    seed: int = 0,
    report: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    as_json: AsJson = False,
) -> int:
    """Fit a bundle to a new microscope, from 20 to 100 labelled cells. Needs no PyTorch.

    Fits the last layer, the temperature and the thresholds; tells by cross-validation what was
    gained, and what more labels would give. Without a gain the last layer stays as it was.

    Parameters
    ----------
    bundle:
        That leuko train wrote, or default for the one that ships with Leuko; it isn't changed.
    data:
        Labelled images of the new microscope: class folders, a CSV with columns
        image,label[,group], or a Kaggle blood-cells folder.
    out:
        The new bundle: a folder, or one file where the name ends in .zip; must not exist.
    map:
        Which class of the set is which of the bundle's: TOML with a table named as the set's
        folder, or a CSV with the columns set,class,common.
    recipe:
        Cleaning: classic, minimal, prepared, strict or a TOML file.
    groups:
        cell: images of the same physical cell stay together; given: only what the set says.
    seed:
        Decides everything that is drawn.
    report:
        Where to write a page with the learning curve; must not exist.
    as_json:
        Print what was found as JSON.
    """
    from leuko.microscope import adapt as fit_to_microscope
    from leuko.progress import Console
    from leuko.use.predictor import find_bundle

    console = Console(sys.argv[1:])
    found = fit_to_microscope(
        find_bundle(bundle), data, out=out, map=map, recipe=recipe, groups=groups, seed=seed,
        report=report, watcher=console,
    )  # fmt: skip
    if as_json:
        facts = {"bundle": str(found.bundle.path), "id": found.bundle.id, **found.facts}
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    console.conclude_adaptation(found, report)
    return 0


def export(
    bundle: Path,
    /,
    *,
    to: str = "onnx",
    int8: Path | None = None,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    seed: int = 0,
    out: Path | None = None,
) -> int:
    """Take the network out of a bundle, after checking it, for other programs.

    Parameters
    ----------
    bundle:
        That leuko train wrote; default names the one that ships with Leuko.
    to:
        onnx, or openvino (its XML, and a BIN beside it; needs leuko[openvino]).
    int8:
        A labelled set. Some of its cells calibrate the network in eight bits, the others judge it;
        it is written if it loses at most half a point of accuracy. Needs leuko[train].
    map_:
        With --int8: which class is which, where names differ; see leuko evaluate.
    seed:
        With --int8: decides which cells calibrate.
    out:
        The file, which must not exist. [default: NAME.onnx or NAME.xml in the current folder]
    """
    from leuko.learning.exchange import FORMS, take_model
    from leuko.use.predictor import find_bundle

    bundle = find_bundle(bundle)
    place = Path(f"{bundle.resolve().stem}{FORMS.get(to, '')}") if out is None else out
    if int8 is None:
        for path in take_model(bundle, place, form=to):
            sys.stdout.write(f"{path}\n")
        return 0
    from leuko.conversion import convert_to_eight_bits
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    made = convert_to_eight_bits(bundle, int8, place, form=to, map=map_, seed=seed, watcher=console)
    for path in made.files:
        sys.stdout.write(f"{path}\n")
    console.conclude_conversion(made)
    return 0
