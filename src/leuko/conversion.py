"""A bundle's network in eight bits, if a labelled set shows that it loses next to nothing.

    bundle + labelled set → evaluation → some groups calibrate → the others judge → file

Joins the evaluation, the quantiser and the comparison of two models on the same cells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuko.data.vocabulary import Naming
from leuko.errors import ConversionError, DataError
from leuko.evaluation import Evaluation, Source, evaluate
from leuko.judgement.comparison import Pair, compare_pair
from leuko.judgement.metrics import exact_limits
from leuko.judgement.predictions import Predictions
from leuko.learning.bundle import TEXT, take_apart
from leuko.learning.eight_bits import quantise
from leuko.learning.exchange import check_file, shape_network, write_files
from leuko.learning.graph import add_note
from leuko.learning.inference import ExportedNetwork
from leuko.use.predictor import Predictor, load
from leuko.watcher import Watcher

LOSS = 0.005  # of accuracy, more of which isn't accepted
CALIBRATING = 96  # cells that show how far activations reach
FEWEST = 200  # cells to judge on; fewer can't show that so little is lost


@dataclass(frozen=True)
class EightBits:
    """What was written, and what it is worth.

    Attributes:
        files: One for ONNX, two for OpenVINO.
        n: Cells that it was judged on.
        same: Share of them that get the same class as before, with exact 95 % limits.
        accuracy: Of eight bits (``a``) against float32 (``b``), paired, over groups.
        seen: Whether the network was trained on some of these cells: then both do too well.
    """

    files: tuple[Path, ...]
    n: int
    same: tuple[float, float, float]
    accuracy: Pair
    seen: bool


def convert_to_eight_bits(
    bundle: str | os.PathLike[str],
    data: Source,
    out: Path,
    *,
    form: str = "onnx",
    map: str | Path | Naming | None = None,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> EightBits:
    """Writes a bundle's network in eight bits for other programs.

    Args:
        bundle: The bundle, which is checked.
        data: A labelled set, as for `leuko.evaluate`.
        out, form: As for `leuko.learning.exchange.take_model`.
        map: As for `leuko.evaluate`.
        seed: Decides which cells calibrate, and the resamples.
        watcher: Learns of the progress.

    Raises:
        ConversionError: More than half a point of accuracy is lost; nothing was written.
        UnknownNameError, OutputError, StorageError: As `leuko.learning.exchange.take_model`.
        DataError: Too few cells, or the map makes one class of several of the model's.
        BundleError: The bundle isn't what was written.
        MissingExtraError: A library isn't installed.
    """
    watcher = watcher or Watcher()
    check_file(out, form)
    model = load(bundle)
    found = evaluate(model, data, map=map, seed=seed, watcher=watcher)
    calibrating, judging = _part(model, found, seed)
    cells = np.stack([cell.pixels for cell in found.cells])
    watcher.say("writing the network in eight bits")
    facts = model.bundle.facts
    made = add_note(
        quantise(take_apart(model.bundle)[1], cells[calibrating]), TEXT, facts.model_text
    )
    eight = ExportedNetwork(made, size=facts.preprocessing.size, classes=len(facts.classes))
    files, eight = shape_network(made, facts.model_text, eight, form)
    same, pair = _compare(model, eight, found, cells, judging, seed)
    if -pair.difference > LOSS:
        raise ConversionError(
            f"In eight bits the network loses {_points(-pair.difference)} points of accuracy on "
            f"{len(judging)} cells ({_points(-pair.high)} to {_points(-pair.low)}); at most "
            f"{_points(LOSS)} are accepted. Nothing was written: use it as it is."
        )
    places = write_files(out, files)
    seen = found.results["seen"]["trained"] + found.results["seen"]["start"] > 0
    return EightBits(tuple(places), len(judging), same, pair, seen)


def _part(
    model: Predictor, found: Evaluation, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the cells that calibrate, and of those that judge; no group is in both."""
    classes = found.results["classes"]
    if len(classes) != len(model.classes):
        raise DataError(
            "The map makes one class of several of the model's, so that its answers can't be "
            "compared one by one. Leave the model's classes apart."
        )
    known = [k for k, truth in enumerate(found.truth) if truth in classes]
    drawn = np.random.default_rng(seed).permutation(known)[:CALIBRATING]  # of all classes
    calibrating = drawn[: len(known) // 2]
    taken = {found.groups[k] for k in calibrating}
    judging = [k for k in known if found.groups[k] not in taken]
    if len(judging) < FEWEST:
        raise DataError(
            f"{len(judging)} cells of known classes are left to judge eight bits on, beside "
            f"{len(calibrating)} that calibrate; expected at least {FEWEST}: fewer can't show "
            "that half a point or less is lost. Give a larger set."
        )
    return calibrating, np.array(judging)


def _compare(
    model: Predictor,
    eight: ExportedNetwork,
    found: Evaluation,
    cells: NDArray[np.uint8],
    judging: NDArray[np.int64],
    seed: int,
) -> tuple[tuple[float, float, float], Pair]:
    """Agreement with its limits, and the difference in accuracy."""
    classes, views = found.results["classes"], model.bundle.facts.preprocessing.views
    truth = np.array([classes.index(found.truth[k]) for k in judging])
    images = tuple(found.cells[k].image for k in judging)
    groups = tuple(found.groups[k] for k in judging)
    plain = found.probabilities[judging]
    p, _ = eight.answer(cells[judging], views=views)
    told = [
        Predictions(name, images, groups, truth, rows[None])
        for name, rows in (("eight bits", p), ("float32", plain))
    ]
    same = plain.argmax(1) == p.argmax(1)
    low, high = exact_limits(int(same.sum()), len(same))
    return (float(same.mean()), low, high), compare_pair(*told, rng=seed)


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
