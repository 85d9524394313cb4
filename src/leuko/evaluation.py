"""How far a bundle can be trusted on a labelled set: its answers, judged. Needs no PyTorch.

    data → manifest → groups → one cell per image → the bundle's answers → judgement → page

Nothing is cleaned: every image that has one label and can be read is judged, and each that isn't
is listed with its reason. The cell of an image is the one that training would have cut out, pixel
by pixel; where none is found, the window that training would have guessed is answered, and the
answer is rejected as in prediction.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.audit import find_issues
from leuko.data.leukocytes import CERTAIN
from leuko.data.manifest import Manifest, hash_data, sort_labels, write_manifest
from leuko.data.pictures import Cell, cut_cells
from leuko.data.sources import scan
from leuko.data.vocabulary import Naming, Vocabulary, match_classes, parse_naming
from leuko.engine import count_cores, refuse_in_worker
from leuko.errors import DataError, UnknownNameError, suggest
from leuko.judgement.calibration import find_sets
from leuko.judgement.evaluation import (
    FORCED,
    Answers,
    judge_answers,
    judge_forced,
    judge_metrics,
)
from leuko.judgement.evaluation_page import Shown, write_evaluation_page
from leuko.judgement.findings import quantity
from leuko.judgement.pointing import ELSEWHERE, describe_attention
from leuko.learning.bundle import Bundle
from leuko.learning.seen import Seen, find_seen_by
from leuko.plan import find_name
from leuko.run import check_run_folder, describe_environment, make_run_folder
from leuko.storage import write_atomically
from leuko.use.answers import Answer, write_table
from leuko.use.attention import judge_bundle
from leuko.use.predictor import Predictor, load
from leuko.watcher import Watcher

MODEL = "model"  # the bundle's name in a map of classes
GROUPS = ("cell", "given")
PART = 512  # cells at a time; a multiple of the network's batch, so that parts don't show

Source = Manifest | str | Path | None


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        results: As in ``evaluation.json``.
        answers: One per image, N of them, as `leuko.load` would give it.
        probabilities: (N, K), calibrated, of the model's own classes; of rejected cells too.
        truth: What each shows, in the words common to the set and the model.
        said: The likeliest class of each in the same words.
        groups: Its group.
        cells: The pictures that the network saw.
        folder: Where page and tables were written; None if nowhere.
    """

    results: dict[str, Any]
    answers: tuple[Answer, ...]
    probabilities: NDArray[np.float64]
    truth: tuple[str, ...]
    said: tuple[str, ...]
    groups: tuple[str, ...]
    cells: tuple[Cell, ...]
    folder: Path | None = None

    def to_csv(self) -> str:
        """The table of `leuko predict`, with ``truth`` and ``group``."""
        more = {"truth": self.truth, "group": self.groups}
        return write_table(self.answers, self.results["bundle"]["classes"], more)


def evaluate(
    bundle: Predictor | Bundle | str | os.PathLike[str] | None = None,
    data: Source = None,
    *,
    out: str | Path | None = None,
    write: bool = False,
    map: str | Path | Naming | None = None,
    groups: str = "cell",
    seed: int = 0,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Evaluation:
    """Judges a bundle on a labelled set.

    Args:
        bundle: A path, or what `leuko.load` or `leuko.train` gave; None for the model that ships
            with Leuko.
        data: As for `leuko.scan`; None for the synthetic demo set.
        out: The folder for page and tables; it must not exist.
        write: Write into the next free folder under ``runs/`` if `out` is left out.
        map: Which class is which, where the names differ: a file, or a dict. The set is called
            as its folder, the bundle ``model``; see `leuko.data.vocabulary`.
        groups: ``cell``: look which images show the same cell, and resample them together;
            ``given``: only what the set says.
        seed: Decides the resamples.
        workers: Processes for the search of groups; they don't change the result.
        watcher: Learns of the progress.
        command: As typed, for the page.

    Raises:
        DataError: The set has no image of a class that the model knows.
        BundleError: The bundle isn't what was written.
        LeukoError: See `leuko.errors`.
    """
    refuse_in_worker("leuko.evaluate")
    if groups not in GROUPS:
        raise UnknownNameError(f"groups is {groups!r}. {suggest(groups, list(GROUPS))}")
    watcher = watcher or Watcher()
    write = write or out is not None
    if write:
        check_run_folder(out)
    naming = parse_naming(str(map)) if isinstance(map, str | Path) else map
    model = _take_model(bundle)
    if isinstance(data, Manifest):
        manifest = data
    else:
        watcher.say("drawing the demo set" if data is None else "reading the images")
        manifest = scan(data)
    for note in manifest.notes:
        watcher.say(note)
    name = "demo" if data is None else find_name(data)
    found = _gather(model, manifest, name, naming)
    grouped = _group(manifest, groups, workers, watcher)
    evaluation = _judge(model, found, grouped, groups, seed, watcher)
    if write:
        watcher.say("drawing the page")
        folder = make_run_folder(out, f"evaluate-{name}")
        evaluation = replace(evaluation, folder=folder)
        _write(evaluation, grouped, list(command))
    return evaluation


def _take_model(bundle: Predictor | Bundle | str | os.PathLike[str] | None) -> Predictor:
    if isinstance(bundle, Predictor):
        return bundle
    return Predictor(bundle) if isinstance(bundle, Bundle) else load(bundle)


# --- which images, and what they show -------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """A set as it is judged.

    Attributes:
        name: As a map calls it.
        manifest: As it was read.
        labels: What each image that can be judged shows, in the set's words.
        set_aside: The images that can't be judged: ``image``, ``reason``, ``detail``.
        vocabulary: Of the set and the model.
    """

    name: str
    manifest: Manifest
    labels: dict[str, str]
    set_aside: list[dict[str, str]]
    vocabulary: Vocabulary

    @property
    def named(self) -> dict[str, str]:
        """The set's classes in common words."""
        return self.vocabulary.names[self.name]


def _gather(model: Predictor, manifest: Manifest, name: str, naming: Naming | None) -> _Set:
    """Every image has one label and can be read, or is set aside with the reason.

    Raises:
        DataError: No image is left of a class that the model knows.
        UnknownNameError: The map names what there isn't.
    """
    labels, aside = sort_labels(manifest)
    name = name if name != MODEL else "data"
    own = sorted(set(labels.values()))
    # The model comes first, so that a class is called as the model calls it.
    vocabulary = match_classes(
        {MODEL: model.classes, name: own}, naming, {name: manifest.classes()}
    )
    if not vocabulary.shared([MODEL], [name]):
        raise DataError(
            f"{manifest.name} has {', '.join(own) if own else 'no image with one label'}; "
            f"the model knows {', '.join(model.classes)}. Expected a class in common. "
            f"Say which is which with a map of classes (--map), with the tables [{name}] and "
            f"[{MODEL}]."
        )
    return _Set(name, manifest, labels, aside, vocabulary)


def _group(manifest: Manifest, groups: str, workers: int | None, watcher: Watcher) -> Manifest:
    """The set with the groups that are asked for."""
    if groups == "given" or manifest.audited:
        return manifest
    watcher.say("looking for copies, and for the same cell in several images")
    workers = count_cores() if workers is None else workers
    return find_issues(manifest, workers=workers, say=watcher.count).manifest


# --- answers --------------------------------------------------------------------------------------


def _judge(
    model: Predictor, found: _Set, grouped: Manifest, groups: str, seed: int, watcher: Watcher
) -> Evaluation:
    """Answers every image and judges the answers."""
    table = found.manifest.table.filter(
        pl.col("image").is_in(list(found.labels)) & pl.col("label").is_not_null()
    )
    cells = _cut(model, found.manifest.with_table(table), watcher)
    answers, probabilities = _answer(model, cells, watcher)
    group_of = dict(grouped.table.select("image", "group").iter_rows())
    own = tuple(group_of[cell.image] for cell in cells)
    truth = tuple(found.named[found.labels[cell.image]] for cell in cells)
    watcher.say("judging")
    classes, columns = _join_classes(model, found.vocabulary)
    known = np.array([t in classes for t in truth])
    arranged = _arrange(model, answers, probabilities, truth, own, classes, columns)
    judged = arranged.pick(known)
    said = tuple(classes[k] for k in arranged.probabilities.argmax(axis=1))
    named = [i for i, answer in enumerate(answers) if answer.label is not None]
    decision = model.bundle.facts.decision
    calibrated = None
    if decision.cells is not None and len(classes) == len(model.classes):
        calibrated = [decision.cells[c] for c in model.classes]
    seen = _see(model, found)
    common = [c for c in classes if c in set(truth)]
    results = {
        "bundle": _describe_bundle(model),
        "data": _describe_data(found, grouped, groups, cells, truth),
        "classes": classes,
        **judge_answers(judged, classes, target=decision.coverage, calibrated=calibrated,
                        seed=seed),
        "forced": judge_forced(judged, classes, common, seed) if len(common) < len(classes)
        else None,
        "common": common,
        "absent": [c for c in classes if c not in common],
        "unknown": _tell_unknown(answers, said, truth, classes),
        "attention": judge_bundle(
            model.bundle, found.manifest.with_table(table), [cells[i] for i in named],
            probabilities[named], [own[i] for i in named], seed=seed,
        ),
        "names": found.named,
        "seen": _tell_seen(model, seen, found, grouped, cells, judged, known, seed),
        "seed": seed,
    }  # fmt: skip
    results["warnings"] = _warn(results)
    return Evaluation(results, tuple(answers), probabilities, truth, said, own, tuple(cells))


def _cut(model: Predictor, manifest: Manifest, watcher: Watcher) -> list[Cell]:
    prepared = model.bundle.facts.preprocessing
    return cut_cells(
        manifest, view=prepared.view, size=prepared.size, window=prepared.window,
        light=prepared.light,
        progress=lambda done, total: watcher.count("cells cut out", done, total),
    )  # fmt: skip


def _answer(
    model: Predictor, cells: Sequence[Cell], watcher: Watcher
) -> tuple[list[Answer], NDArray[np.float64]]:
    """The predictor's answers, and probabilities (N, K) of every cell, rejected or not."""
    answers: list[Answer] = []
    parts: list[NDArray[np.float64]] = []
    for start in range(0, len(cells), PART):
        part = cells[start : start + PART]
        found, p = model.answer_cells(
            [c.image for c in part], [c.leukocyte for c in part], [c.pixels for c in part]
        )
        answers += found
        parts.append(p)
        watcher.count("cells answered", len(answers), len(cells))
    return answers, np.concatenate(parts)


def _join_classes(
    model: Predictor, vocabulary: Vocabulary
) -> tuple[list[str], NDArray[np.float64]]:
    """The model's classes in common words, and a matrix (K, C) that adds up those that are one."""
    common = [vocabulary.names[MODEL][c] for c in model.classes]
    classes = list(dict.fromkeys(common))
    columns = np.zeros((len(common), len(classes)))
    columns[np.arange(len(common)), [classes.index(c) for c in common]] = 1
    return classes, columns


def _arrange(
    model: Predictor,
    answers: Sequence[Answer],
    p: NDArray[np.float64],
    truth: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    columns: NDArray[np.float64],
) -> Answers:
    """Answers as arrays; the truth is 0 where the model doesn't know the class."""
    number = {c: k for k, c in enumerate(classes)}
    thresholds, sets = model.bundle.facts.decision.thresholds, None
    if thresholds is not None:
        inside = find_sets(p, np.array([thresholds[c] for c in model.classes]))
        sets = inside.astype(np.float64) @ columns > 0
    one_to_one = columns.shape[0] == columns.shape[1]
    return Answers(
        np.array([number.get(t, 0) for t in truth], np.int64),
        p if one_to_one else p @ columns,
        tuple(groups),
        tuple(answer.state for answer in answers),
        sets,
    )


# --- what is said beside the numbers --------------------------------------------------------------


def _describe_bundle(model: Predictor) -> dict[str, Any]:
    facts = model.bundle.facts
    return {
        "id": model.bundle.id, "architecture": facts.architecture, "classes": list(facts.classes),
        "view": facts.preprocessing.view, "size": facts.preprocessing.size,
        "views": facts.preprocessing.views, "created": facts.created, "leuko": facts.leuko,
        "trained_on": facts.training.get("data", {}).get("name", ""),
    }  # fmt: skip


def _describe_data(
    found: _Set, grouped: Manifest, groups: str, cells: Sequence[Cell], truth: Sequence[str]
) -> dict[str, Any]:
    manifest = found.manifest
    counts = Counter(truth)
    return {
        "name": manifest.name, "layout": manifest.layout, "sha256": hash_data(manifest),
        "rows": len(manifest), "images": manifest.table["image"].n_unique(),
        "answered": len(cells), "groups": groups, "audited": grouped.audited,
        "counts": {c: counts[c] for c in sorted(counts)},
        "set_aside": found.set_aside,
        "no_cell": [c.image for c in cells if c.leukocyte.score <= 0],
        "several_cells": [
            c.image for c in cells
            if not c.cut_out and sum(score >= CERTAIN for score in c.scores) > 1
        ],
        "notes": list(manifest.notes),
    }  # fmt: skip


def _tell_unknown(
    answers: Sequence[Answer], said: Sequence[str], truth: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """What was said of cells whose class the model doesn't know; no answer can be right."""
    told: dict[str, Any] = {}
    for name in sorted(set(truth) - set(classes)):
        own = [i for i, t in enumerate(truth) if t == name]
        told[name] = {
            "n": len(own),
            "states": dict(Counter(answers[i].state for i in own).most_common()),
            "answers": dict(Counter(said[i] for i in own).most_common()),
        }
    return told


def _see(model: Predictor, found: _Set) -> Seen:
    """Which of the images the bundle has seen."""
    table = found.manifest.table.filter(pl.col("sha256").is_not_null())
    return find_seen_by(model.bundle.facts, table["sha256"].to_list())


def _tell_seen(
    model: Predictor,
    seen: Seen,
    found: _Set,
    grouped: Manifest,
    cells: Sequence[Cell],
    judged: Answers,
    known: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    """How much of the set the bundle has seen, and what it is worth on the rest."""
    hashes = dict(found.manifest.table.select("image", "sha256").iter_rows())
    used = [hashes[cell.image] for cell in cells]
    trained_groups = {
        group
        for group, sha256 in grouped.table.select("group", "sha256").iter_rows()
        if sha256 in seen.all_trained
    }
    group_of = dict(grouped.table.select("image", "group").iter_rows())
    related = np.array([group_of[cell.image] in trained_groups for cell in cells], bool)
    recorded = model.bundle.facts.training.get("data", {}).get("sha256")
    rest = ~related[known]
    told: dict[str, Any] = {
        "of": len(cells),
        "trained": sum(h in seen.trained for h in used),
        "start": sum(h in seen.start for h in used),
        "related": int(related.sum()),
        "calibrated": sum(h in seen.calibrated for h in used),
        "only_calibrated": sum(
            h in seen.calibrated and not r for h, r in zip(used, related, strict=True)
        ),
        "listed": seen.listed,
        "same_set": recorded in (hash_data(found.manifest), hash_data(grouped)),
        "unseen": None,
    }
    own = judged.pick(rest)
    if related.any() and len(set(own.groups)) > 1:
        told["unseen"] = {"n": len(own.y_true), **judge_metrics(own, FORCED, seed)}
    return told


def _warn(results: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a number."""
    said: list[str] = []
    seen, data = results["seen"], results["data"]
    if seen["related"]:
        told = quantity(seen["related"], "image")
        said.append(
            f"The model was trained on {told} of {seen['of']:,} here, or on others of the same "
            "cell. Its figures on them say nothing about new cells; they are too good."
        )
    elif seen["same_set"] and not seen["listed"]:
        said.append(
            "This is the set that the model was made from. Unless all its images were kept from "
            "training, its figures are too good."
        )
    if seen["only_calibrated"]:
        others = " others" if seen["related"] else ""
        said.append(
            f"Temperature and thresholds of the model come from {seen['only_calibrated']:,}"
            f"{others} of {seen['of']:,} images here, so calibration, coverage and states are a "
            "little too good. Accuracy isn't touched by that."
        )
    if data["layout"] == "demo":
        said.append("The demo set is drawn by a program: its figures say nothing about blood.")
    attention = results["attention"]
    if attention is not None and attention["verdict"] == ELSEWHERE:
        said.append(describe_attention("The model", attention))
    if unknown := results["unknown"]:
        number = sum(one["n"] for one in unknown.values())
        said.append(
            f"{quantity(number, 'image')} of {', '.join(unknown)} can't be right, as the model "
            "doesn't know the class, and are left out of the figures; see unknown."
        )
    return said


def _write(evaluation: Evaluation, grouped: Manifest, command: list[str]) -> None:
    """Writes the folder: numbers, answers, manifest, the page last."""
    folder = evaluation.folder
    assert folder is not None
    facts = json.dumps(evaluation.results, indent=1, ensure_ascii=False)
    environment = describe_environment(command)
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
    write_manifest(grouped, folder / "manifest.parquet")
    write_atomically(folder / "answers.csv", evaluation.to_csv())
    write_atomically(folder / "evaluation.json", facts + "\n")
    columns = zip(
        evaluation.answers, evaluation.probabilities, evaluation.truth, evaluation.said,
        evaluation.cells, strict=True,
    )  # fmt: skip
    shown = [Shown(a.image, t, s, float(p.max()), a.state, c.pixels) for a, p, t, s, c in columns]
    write_evaluation_page(folder, evaluation.results, shown, environment)
