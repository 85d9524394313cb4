"""The leak meter: what a random split of a set is worth, beside a split by group.

Three classifiers answer for the same images twice, once in folds drawn at random, once in folds
that keep each group on one side: colour without morphology, a look-up of the most similar training
picture, and a small network. What the random folds give on top is not knowledge of cells, but
recognition of cells that were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.splits import Split, make_splits
from leuko.errors import DataError, SplitError
from leuko.judgement.leaks import judge_leaks
from leuko.learning.baselines import look_up, predict_colour
from leuko.learning.fit import FitSettings
from leuko.learning.folds import FoldJob, FoldResult
from leuko.learning.models import ARCHITECTURES, choose_precision

MOST = 2_000  # images; of a larger set whole groups are drawn, since a leak shows in a few hundred
NETWORK = "alexnet"  # trains five times as fast as the others, and remembers as well
SMALL_NETWORK = "resnet18"  # for pictures that AlexNet can't digest
EPOCHS = 8
KINDS = ("random", "grouped")

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Meter:
    """What is to be measured.

    Attributes:
        rows: (N,) rows of the pictures that take part.
        labels: (N,) of those, in [0, K).
        groups: N names.
        images: N ids.
        classes: K names.
        splits: Over the N; the folds drawn at random, and those by group.
    """

    rows: IntArray
    labels: IntArray
    groups: tuple[str, ...]
    images: tuple[str, ...]
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Split]]

    @property
    def folds(self) -> int:
        """How many of each kind."""
        return len(self.splits["random"])


def plan_meter(
    labels: IntArray,
    groups: Sequence[str],
    images: Sequence[str],
    classes: Sequence[str],
    *,
    folds: int,
    seed: int,
) -> Meter | None:
    """Draws the images and both kinds of folds.

    Args:
        labels: (N,), in [0, K).
        groups: N names.
        images: N ids.
        classes: K names; one that has fewer groups than folds is left out.
        folds: As in the study.
        seed: Decides what is drawn.

    Returns:
        None where no two classes have enough groups.
    """
    names = np.asarray(groups, dtype=str)
    kept = [k for k in range(len(classes)) if len(set(names[labels == k])) >= folds]
    if len(kept) < 2:
        return None
    rows = _draw(np.flatnonzero(np.isin(labels, kept)), names, seed)
    renumbered = np.searchsorted(kept, labels[rows]).astype(np.int64)
    ids, own = [images[i] for i in rows], [groups[i] for i in rows]
    written = [classes[kept[k]] for k in renumbered]
    asked: dict[str, Any] = {"folds": folds, "repeats": 1, "seed": seed, "images": ids}
    try:
        splits = {
            "random": make_splits(written, ids, **asked),
            "grouped": make_splits(written, own, **asked),
        }
    except (SplitError, DataError):
        return None
    return Meter(rows, renumbered, tuple(own), tuple(ids), tuple(classes[k] for k in kept), splits)


def _draw(rows: IntArray, groups: NDArray[np.str_], seed: int) -> IntArray:
    """Whole groups until there are enough images; all of them in a set that is small enough."""
    if len(rows) <= MOST:
        return rows
    names, index = np.unique(groups[rows], return_inverse=True)
    order = np.random.default_rng([seed, 7]).permutation(len(names))
    sizes = np.bincount(index)[order].cumsum()
    chosen = order[: np.searchsorted(sizes, MOST) + 1]
    return rows[np.isin(index, chosen)]


def make_meter_jobs(
    meter: Meter, run: Path, settings: FitSettings, *, size: int, seed: int, device: str = "cpu"
) -> list[FoldJob]:
    """The network's jobs; ``cells.npz`` in the run folder holds the pictures.

    Args:
        meter: From `plan_meter`; its rows are rows of ``cells.npz``.
        run: The run folder.
        settings: Those of the meter.
        size: Side of the pictures.
        seed: Of the study.
        device: Where the network is trained, as the study's are.
    """
    model = NETWORK if size >= ARCHITECTURES[NETWORK].smallest else SMALL_NETWORK
    settings = replace(settings, precision=choose_precision(model, settings.precision, device))
    return [
        FoldJob(
            run=run.resolve(), model=model, repeat=split.repeat, fold=split.fold, rows=meter.rows,
            labels=meter.labels, train=split.train, test=split.test, classes=len(meter.classes),
            settings=settings, init="random", seed=seed, keep_weights=False, part=f"meter-{kind}",
            device=device,
        )
        for kind in KINDS
        for split in meter.splits[kind]
    ]  # fmt: skip


def read_meter(
    meter: Meter,
    pictures: NDArray[np.uint8],
    jobs: Sequence[FoldJob],
    done: Mapping[Path, FoldResult],
    *,
    seed: int,
) -> dict[str, Any]:
    """The ``leak_meter`` of ``results.json``.

    Args:
        meter: From `plan_meter`.
        pictures: (N, S, S, 3) of the meter's rows.
        jobs: From `make_meter_jobs`; empty where no network was trained.
        done: Their results by folder.
        seed: Decides trees and resamples.
    """
    K, shape = len(meter.classes), (len(meter.labels), len(meter.classes))
    answers: dict[str, dict[str, NDArray[np.float64]]] = {}
    for kind in KINDS:
        colour, nearest = np.zeros(shape), np.zeros(shape)
        for s in meter.splits[kind]:
            known = meter.labels[s.train]
            train, test = pictures[s.train], pictures[s.test]
            colour[s.test] = predict_colour(train, known, test, K, seed=seed)
            nearest[s.test] = look_up(train, known, test, K)
        answers.setdefault("colour histogram", {})[kind] = colour
        answers.setdefault("nearest neighbour", {})[kind] = nearest
    for job in jobs:
        who = f"network ({job.model}, {pictures.shape[1]} px, {job.settings.epochs} epochs)"
        kind = job.part.removeprefix("meter-")
        given = answers.setdefault(who, {}).setdefault(kind, np.zeros(shape))
        given[job.test] = done[job.folder].probabilities
    return judge_leaks(
        answers, meter.labels, meter.images, meter.groups, classes=len(meter.classes),
        split=f"{meter.folds} folds", seed=seed,
    )  # fmt: skip
