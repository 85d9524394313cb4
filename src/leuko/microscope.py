"""A bundle for a new microscope, from 20 to 100 labelled cells, without PyTorch.

    labelled images → cells → features of the bundle's network → new last layer → bundle

Joins what the floors below find: `leuko.use.adaptation` decides on arrays, this module knows sets
and bundles. What is written is an ordinary bundle; only its last layer, its temperature and its
thresholds can differ from the old one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import leuko
from leuko.data.cleaning import Cleaned
from leuko.data.manifest import hash_data
from leuko.data.pictures import cut_pictures
from leuko.data.portraits import describe_cell
from leuko.data.vocabulary import Naming, match_classes, parse_naming
from leuko.engine import count_cores, refuse_in_worker
from leuko.errors import AdaptationError
from leuko.judgement.adaptation_page import write_adaptation_page
from leuko.judgement.outliers import FEATURES_KEPT, Reference, add_examples, score_portraits
from leuko.learning.batches import turn_views
from leuko.learning.bundle import Bundle, check_place, load_bundle, take_apart, write_bundle
from leuko.learning.card import write_card
from leuko.learning.facts import Decision, Facts, Outliers
from leuko.learning.graph import replace_tensors
from leuko.learning.head import Head
from leuko.learning.seen import add_seen
from leuko.plan import Source, find_name, prepare
from leuko.settings import StudySettings
from leuko.use.adaptation import LEAST, Adaptation, Examples, adapt_head
from leuko.watcher import Watcher

RECIPE = "minimal"  # a few labelled cells: nothing is dropped but what can't be used
MOST = 400  # cells; with more of them a network should be trained
BATCH = 32  # cells at a time
OWN = "bundle"  # what its classes are called by in a map


@dataclass(frozen=True)
class Adapted:
    """What `adapt` gives.

    Attributes:
        bundle: The new bundle, checked.
        adaptation: Head, figures and curve.
        facts: As in ``training.adaptation`` of the bundle and ``leuko adapt --json``.
    """

    bundle: Bundle
    adaptation: Adaptation
    facts: dict[str, Any]


def adapt(
    bundle: str | Path,
    data: Source,
    *,
    out: str | Path,
    map: Naming | str | Path | None = None,
    recipe: str = RECIPE,
    groups: str = "cell",
    seed: int = 0,
    report: str | Path | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> Adapted:
    """Fits a bundle to a new microscope.

    Args:
        bundle: A folder or zip from `leuko.train`; it isn't changed.
        data: Labelled images from the new microscope, as for `leuko.compare`.
        out: The new bundle: a folder, or one file where the name ends in ``.zip``; must not exist.
        map: Which class of the set is which of the bundle's, where their names don't say it: per
            set, per class the bundle's class; or the path of a file that says so, as for
            `leuko.compare`. The set is called as its folder.
        recipe: Of cleaning.
        groups: ``cell``: images of the same cell are never on both sides of a split; ``given``:
            only what the set says.
        seed: Decides what is drawn.
        report: Where a page with figures is written; None for none.
        workers: Processes of the search for images of the same cell.
        watcher: Learns of the progress.

    Raises:
        AdaptationError: Too few labelled cells, or a class that the bundle doesn't have.
        LeukoError: See `leuko.errors`.
    """
    refuse_in_worker("leuko.adapt")
    watcher = watcher or Watcher()
    check_place(Path(out))
    if report is not None:
        check_place(Path(report))
    old = load_bundle(bundle)
    workers = count_cores() if workers is None else workers
    settings = StudySettings(recipe=recipe, groups=groups, seed=seed)
    cleaned = prepare(data, settings, watcher, workers=workers)
    naming = parse_naming(str(map)) if isinstance(map, str | Path) else map
    labels, notes = match_labels(old.facts.classes, cleaned, _call(data, cleaned), naming)
    for note in notes:
        watcher.say(note)
    examples, images, cells = read_examples(old, cleaned, labels, watcher, seed=seed)
    found = adapt_head(
        examples, old.head, old.facts.classes, temperature=old.facts.decision.temperature,
        coverage=old.facts.decision.coverage, seed=seed, prepare=lambda head: _round(old, head),
        tick=lambda done, total: watcher.count("fitting and judging", done, total),
    )  # fmt: skip
    if found.ignored.any():
        rare = zip(old.facts.classes, found.ignored, strict=True)
        told_rare = ", ".join(f"{name} {n}" for name, n in rare if n)
        notes.append(f"took no part, as {LEAST} different cells of a class are needed: {told_rare}")
        watcher.say(notes[-1])
    watcher.say("writing and checking the bundle")
    told = describe(old, cleaned, found, notes, seed=seed)
    made = write_adapted(
        old, found, told, out, cells=cells, features=examples.features.mean(1),
        seen=_list_seen(old, cleaned, found, images, examples.labels),
    )  # fmt: skip
    if report is not None:
        write_adaptation_page(
            Path(report), {**told, "bundle": {"path": str(out), "id": made.id}}, cells=cells,
            labels=[old.facts.classes[k] for k in examples.labels], images=images,
        )  # fmt: skip
    return Adapted(made, found, told)


def match_labels(
    classes: tuple[str, ...], cleaned: Cleaned, name: str, naming: Naming | None
) -> tuple[NDArray[np.int64], list[str]]:
    """The bundle's class of each image of a set.

    Args:
        classes: Of the bundle.
        cleaned: The set.
        name: What a map calls the set.
        naming: A person's map.

    Returns:
        (N,) places in `classes`, in the order of the cleaned rows; sentences that say what was
        matched.

    Raises:
        AdaptationError: A class that the bundle doesn't have.
        UnknownNameError: The map names something that there isn't.
    """
    there = cleaned.manifest.classes()
    known = {name: cleaned.found.classes()}
    both = match_classes({OWN: classes, name: there}, naming, known)
    place = {common: k for k, common in enumerate(both.names[OWN].values())}
    odd = [c for c in there if both.names[name][c] not in place]
    if odd:
        raise AdaptationError(
            f"The set has the class {odd[0]!r}, which the bundle doesn't know; its classes are "
            f"{', '.join(classes)}. Say which one it is with --map (a TOML file: "
            f"[{name}] {odd[0]!r} = '…'), leave its images out, or train a model of your own with "
            "leuko train."
        )
    labels = [place[both.names[name][c]] for c in cleaned.manifest.table["label"].to_list()]
    notes = [
        f"{c} is taken as {both.names[name][c]}"
        for c in there
        if both.names[name][c].casefold() != c.casefold()
    ]
    absent = [c for c in classes if place[both.names[OWN][c]] not in set(labels)]
    if absent:
        notes.append(
            f"no labelled cells of {', '.join(absent)}: what the model knows of these classes "
            "stays as it was"
        )
    return np.array(labels, np.int64), notes


def read_examples(
    bundle: Bundle, cleaned: Cleaned, labels: NDArray[np.int64], watcher: Watcher, *, seed: int = 0
) -> tuple[Examples, list[str], NDArray[np.uint8]]:
    """The features of a set's cells, of each view.

    Args:
        bundle: Whose network looks at them.
        cleaned: The set.
        labels: (N,) in the order of its rows.
        watcher: Learns of the progress.
        seed: Decides which cells are taken where there are more than are needed.

    Returns:
        Examples; their image ids; their cells (N, S, S, 3) as the network sees them.
    """
    table = cleaned.manifest.table
    rows = np.arange(len(table))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
        watcher.say(
            f"{MOST} of the {len(table):,} labelled cells are used, drawn at random; with so many "
            "a network trained on them (leuko train) may be better"
        )
    watcher.say(f"looking at {len(rows):,} labelled cells")
    prepared = bundle.facts.preprocessing
    part = cleaned.manifest.with_table(table[rows])
    names, cells, _ = cut_pictures(
        part, view=prepared.view, size=prepared.size, window=prepared.window, light=prepared.light
    )
    place = {name: i for i, name in enumerate(names)}
    cells = cells[[place[name] for name in part.table["image"]]]
    features = see_features(
        bundle, cells, lambda done, total: watcher.count("looking at cells", done, total)
    )
    examples = Examples(features, labels[rows], tuple(part.table["group"].to_list()))
    return examples, part.table["image"].to_list(), cells


def see_features(
    bundle: Bundle, cells: NDArray[np.uint8], tick: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """What the network says of cells before its last layer, of each view.

    Args:
        bundle: Whose network.
        cells: (N, S, S, 3), cut as `Preprocessing.cut` does.
        tick: Called with (cells done, cells in all).

    Returns:
        (N, V, D).
    """
    views = bundle.facts.preprocessing.views
    found = np.empty((len(cells), views, bundle.facts.features), np.float32)
    for start in range(0, len(cells), BATCH):
        part = slice(start, start + BATCH)
        for v, turned in enumerate(turn_views(cells[part], views)):
            found[part, v] = bundle.network.answer(turned, views=1)[1]
        if tick is not None:
            tick(min(start + BATCH, len(cells)), len(cells))
    return found


def write_adapted(
    old: Bundle,
    found: Adaptation,
    told: dict[str, Any],
    out: str | Path,
    *,
    cells: NDArray[np.uint8],
    features: NDArray[np.floating],
    seen: dict[str, Any],
) -> Bundle:
    """Writes the bundle with its new last layer, and with the cells of the new microscope known.

    Args:
        old: The bundle that was adapted.
        found: What was found.
        told: For ``training.adaptation``.
        out: The new bundle; must not exist.
        cells: (N, S, S, 3), those that were labelled.
        features: (N, D), theirs.
        seen: For ``training.seen``.

    Raises:
        BundleError: The old bundle was exchanged meanwhile.
        OutputError, StorageError: It can't be written there.
    """
    weights, model = take_apart(old)
    reference, outliers = _widen(old, cells, features)
    facts = replace(
        old.facts, decision=replace(_decide(old.facts, found), outliers=outliers),
        leuko=leuko.__version__,
        training={**old.facts.training, "adaptation": told, "seen": seen},
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
    )  # fmt: skip
    if found.changed:
        for kind, value in zip(("weight", "bias"), found.head, strict=True):
            name = f"{old.facts.head}.{kind}"
            weights[name] = value.astype(weights[name].dtype)
            model = replace_tensors(model, {f"head.{kind}": weights[name]})
    return write_bundle(
        out, facts, weights=weights, model=model, card=write_card(facts), reference=reference
    )


def _list_seen(
    old: Bundle,
    cleaned: Cleaned,
    found: Adaptation,
    images: list[str],
    labels: NDArray[np.integer],
) -> dict[str, Any]:
    """Which images the new bundle has seen: a layer that was fitted to cells was trained on them.

    What counts as a cell comes from all of them, so their states are never those of new ones.
    """
    sha256 = dict(cleaned.manifest.table.select("image", "sha256").iter_rows())
    taught = found.changed & (found.ignored[labels] == 0)
    return add_seen(
        old.facts.training.get("seen"),
        [sha256[image] for image, one in zip(images, taught, strict=True) if one],
        [sha256[image] for image in images],
    )


def _widen(
    old: Bundle, cells: NDArray[np.uint8], features: NDArray[np.floating]
) -> tuple[Reference | None, Outliers | None]:
    """What cells are like, with those that a person has labelled: nearly all of them are known."""
    limits = old.facts.decision.outliers
    if old.reference is None or limits is None:
        return None, None
    portraits = np.stack([describe_cell(cell) for cell in cells])
    usual = float(np.quantile(score_portraits(old.reference, portraits), FEATURES_KEPT))
    limits = replace(limits, portraits=max(limits.portraits, usual))
    return add_examples(old.reference, features), limits


def describe(
    old: Bundle, cleaned: Cleaned, found: Adaptation, notes: list[str], *, seed: int
) -> dict[str, Any]:
    """What a bundle, a page and ``leuko adapt --json`` say of an adaptation."""
    classes = old.facts.classes
    count = {n: int(c) for n, c in zip(classes, found.counts, strict=True) if c}
    ignored = {n: int(c) for n, c in zip(classes, found.ignored, strict=True) if c}
    thresholds = None
    if found.thresholds is not None:
        thresholds = dict(zip(classes, found.thresholds.tolist(), strict=True))
    return {
        "base": old.id,
        "data": {
            "name": cleaned.found.name, "layout": cleaned.found.layout,
            "sha256": hash_data(cleaned.found), "recipe": cleaned.recipe.name,
            "cells": int(found.counts.sum()), "counts": count, "ignored": ignored,
        },
        "changed": found.changed, "calibrated": found.calibrated, "reason": found.reason,
        "layer_tested": not found.changed and _is_layer_tested(old.facts),
        "strength": found.strength, "seed": seed, "notes": notes,
        "balanced_accuracy": {
            name: asdict(getattr(found.judged, name)) for name in ("before", "after", "gain")
        },
        "accuracy": {name: asdict(value) for name, value in found.accuracy.items()},
        "recall": {
            name: {"before": float(found.recalls[0, k]), "after": float(found.recalls[1, k])}
            for k, name in enumerate(classes)
            if found.counts[k]
        },
        "certainty": found.judged.certainty,
        "temperature": found.temperature, "thresholds": thresholds,
        "curve": [{"labels": p.labels, **asdict(p.value)} for p in found.curve],
        "doubled": asdict(found.doubled) if found.doubled else None,
        "outlook": found.outlook,
    }  # fmt: skip


def _is_layer_tested(facts: Facts) -> bool:
    """Whether the figures of a bundle are those of its last layer."""
    told = facts.training.get("adaptation")
    return told is None or (isinstance(told, Mapping) and told.get("layer_tested") is True)


def _decide(facts: Facts, found: Adaptation) -> Decision:
    if not found.calibrated:
        return facts.decision
    decision = replace(facts.decision, temperature=found.temperature)
    if found.thresholds is None:
        return decision
    cells = dict(zip(facts.classes, found.counts.tolist(), strict=True))
    thresholds = dict(zip(facts.classes, found.thresholds.tolist(), strict=True))
    return replace(decision, thresholds=thresholds, cells=cells)


def _round(bundle: Bundle, head: Head) -> Head:
    """To the precision of the bundle's weights, so that it can be kept in it."""
    weights, _ = take_apart(bundle)
    kind = weights[f"{bundle.facts.head}.weight"].dtype
    return head[0].astype(kind).astype(np.float32), head[1].astype(np.float32)


def _call(data: Source, cleaned: Cleaned) -> str:
    return cleaned.found.name if data is None else find_name(data)
