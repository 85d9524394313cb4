"""From which laboratories to which: what each training sees, and what it is judged on.

    sets → cleaned, by themselves → common names → routes → trials

A route trains on one set, or on several together, and tests on others. A trial is one training of
a route: the only place where the images that are trained on and those that are judged are written
down. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.cleaning import Cleaned
from leuko.data.manifest import Manifest
from leuko.data.splits import make_splits
from leuko.data.vocabulary import Naming, Vocabulary, match_classes
from leuko.errors import DataError, SettingsError
from leuko.judgement.findings import quantity
from leuko.learning.fit import FitSettings
from leuko.plan import find_name, find_root, prepare
from leuko.settings import LaboratorySettings
from leuko.watcher import Watcher

FEWEST = 2  # classes that both sides of a route must have, else there is nothing to tell apart

IntArray = NDArray[np.int64]
Set = Manifest | Cleaned | str | Path


@dataclass(frozen=True)
class Route:
    """Where training images come from, and where the networks are taken.

    Attributes:
        sources: Names of the sets that are trained on.
        targets: Names of the sets that are tested on, each by itself.
        classes: K common names: all classes of the sources, in alphabetical order.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people: "pbc", "pbc + raabin"."""
        return " + ".join(self.sources)


@dataclass(frozen=True)
class Trial:
    """One training of each model: which images it sees, and which it is judged on.

    Every image of every side is a row of `Exchange.images`, with its set and its file's SHA-256;
    whoever has to know what a network may have seen asks here.

    Attributes:
        route: From where to where.
        number: The seed's number, from 0.
        repeat, fold: Which split of the sources; `fold` is the part that is held out.
        train: Rows that are trained on.
        home: Rows of the sources that are held out: no group of them is trained on.
        away: Rows of the targets, of classes that the sources have too.
    """

    route: Route
    number: int
    repeat: int
    fold: int
    train: IntArray
    home: IntArray
    away: IntArray


@dataclass(frozen=True)
class Exchange:
    """Several sets, brought together.

    Attributes:
        settings: Resolved.
        cleaned: Per set, in the order given.
        vocabulary: What their classes are called in common.
        images: One row per kept image of every set: ``set``, ``image``, ``sha256``, ``group``
            (the same in two sets where they share a file), ``written`` (the class as the set
            calls it) and ``label`` (in common).
        routes: What is trained and tested; single sets first, then all but one.
        trials: Route by route, then by number.
        shared: Per pair of sets (a, b): images of b that are also in a, or show a cell that is.
        notes: What was matched and left out, in sentences.
    """

    settings: LaboratorySettings
    cleaned: dict[str, Cleaned]
    vocabulary: Vocabulary
    images: pl.DataFrame
    routes: tuple[Route, ...]
    trials: tuple[Trial, ...]
    shared: dict[tuple[str, str], int]
    notes: tuple[str, ...]

    @property
    def fit_settings(self) -> FitSettings:
        """The training protocol of every model; rare classes are repeated if a recipe says so."""
        balance = any(cleaned.balance for cleaned in self.cleaned.values())
        return self.settings.make_protocol(balance=balance)

    @property
    def common(self) -> list[str]:
        """The classes that all sets have."""
        return sorted(set.intersection(*(set(v.values()) for v in self.vocabulary.names.values())))

    @property
    def splits_table(self) -> pl.DataFrame:
        """As in ``splits.parquet``: which image is on which side of which trial."""
        parts = [
            self.images[rows].select(
                pl.lit(trial.route.name).alias("train"),
                pl.lit(trial.number, dtype=pl.Int64).alias("seed"),
                pl.lit(trial.repeat, dtype=pl.Int64).alias("repeat"),
                pl.lit(trial.fold, dtype=pl.Int64).alias("fold"),
                "set", "image", pl.lit(part).alias("part"),
            )
            for trial in self.trials
            for part, rows in (("train", trial.train), ("home", trial.home), ("away", trial.away))
        ]  # fmt: skip
        return pl.concat(parts)


def name_sets(sets: Sequence[Set]) -> list[str]:
    """What each set is called: its folder's name, with the one above where two are alike.

    Raises:
        SettingsError: Fewer than two sets, or one of them twice.
    """
    if len(sets) < 2:
        raise SettingsError(
            f"Found {len(sets)} sets; expected two or more, as in leuko compare A B."
        )
    roots = [find_root(data).resolve() for data in sets]
    for i, data in enumerate(sets):
        if isinstance(data, str | Path) and roots[i] in roots[:i]:
            raise SettingsError(f"{data} is named twice; expected different sets.")
    names = [find_name(data) for data in sets]
    twice = {name for name in names if names.count(name) > 1}
    names = [f"{r.parent.name}-{n}" if n in twice else n for n, r in zip(names, roots, strict=True)]
    return [n if n not in names[:i] else f"{n}-{i + 1}" for i, n in enumerate(names)]


def plan_routes(
    sets: Sequence[Set],
    settings: LaboratorySettings,
    naming: Naming,
    watcher: Watcher,
    *,
    workers: int,
) -> Exchange:
    """Cleans each set by itself, brings their classes together and decides who is tested on what.

    Args:
        sets: Two or more.
        settings: Checked.
        naming: What the classes are called in common, as far as a person said.
        watcher: Learns of the progress.
        workers: Processes for the audit; they change the time, never the result.

    Raises:
        DataError: A set can't be used, or no two sets have two classes in common.
        UnknownNameError: The map names a set or class that there isn't.
        SplitError: A set can't be split as asked.
    """
    names = name_sets(sets)
    cleaned = {}
    for name, data in zip(names, sets, strict=True):
        watcher.say(f"{name}:")
        cleaned[name] = prepare(data, settings, watcher, workers=workers)
    vocabulary = match_classes(
        {name: one.manifest.classes() for name, one in cleaned.items()},
        naming,
        {name: one.found.classes() for name, one in cleaned.items()},
    )
    images = _gather(cleaned, vocabulary)
    places = _sets_by_place(images)
    shared = {
        (a, b): count_shared(images, [a], b) for a in names for b in names if a != b
    }  # fmt: skip
    routes, left_out = _find_routes(names, vocabulary, images, places)
    notes = [*vocabulary.describe(), *_tell_shared(names, shared), *left_out]
    for note in notes:
        watcher.say(note)
    if not routes:
        had = "; ".join(f"{name}: {', '.join(vocabulary.classes([name]))}" for name in names)
        raise DataError(
            f"No two of these sets have {FEWEST} classes in common ({had}). Say which class is "
            "which with --map MAP.toml, see docs/laboratories.md."
        )
    trials = [t for route in routes for t in _make_trials(route, images, places, settings)]
    return Exchange(
        settings, cleaned, vocabulary, images, tuple(routes), tuple(trials), shared, tuple(notes)
    )


# --- one table of all sets ------------------------------------------------------------------------


def _gather(cleaned: dict[str, Cleaned], vocabulary: Vocabulary) -> pl.DataFrame:
    """The kept images of every set, with groups that reach over sets where files do."""
    found = pl.concat(
        [
            one.found.table.select(
                pl.lit(name).alias("set"), "sha256",
                pl.concat_str([pl.lit(f"{name}/"), "group"]).alias("group"),
            )
            for name, one in cleaned.items()
        ]
    )  # fmt: skip
    joined = _join_groups(found)
    parts = []
    for name, one in cleaned.items():
        group = pl.concat_str([pl.lit(f"{name}/"), "group"])
        parts.append(
            one.manifest.table.select(
                pl.lit(name).alias("set"), "image", "sha256",
                group.replace(joined).alias("group"),
                pl.col("label").alias("written"),
                pl.col("label").replace_strict(
                    vocabulary.names[name], return_dtype=pl.String
                ).alias("label"),
            )
        )  # fmt: skip
    return pl.concat(parts)


def _join_groups(found: pl.DataFrame) -> dict[str, str]:
    """Groups of different sets that hold the same file, each with the name they get together.

    Rows that cleaning drops count too: if a copy of a dropped picture is in another set, what
    else its group shows is there as well.
    """
    head: dict[str, str] = {}

    def find(group: str) -> str:
        while head.get(group, group) != group:
            group = head[group]
        return group

    files = found.filter(pl.col("sha256").is_not_null() & pl.col("group").is_not_null()).unique(
        maintain_order=True
    )
    files = files.filter(pl.col("set").n_unique().over("sha256") > 1)
    first: dict[str, str] = {}
    for _, sha256, group in files.iter_rows():
        a, b = find(first.setdefault(sha256, group)), find(group)
        head[max(a, b)] = min(a, b)
    return {group: find(group) for group in files["group"].unique(maintain_order=True)}


def _sets_by_place(images: pl.DataFrame) -> dict[str, set[str]]:
    """Per set the groups of its kept images."""
    return {
        str(name): set(part["group"])
        for (name,), part in images.group_by("set", maintain_order=True)
    }


def count_shared(images: pl.DataFrame, sources: Sequence[str], target: str) -> int:
    """How many images of a set are in any of the sources too, or show a cell that is.

    Args:
        images: Of `Exchange`.
        sources, target: Names of sets.
    """
    own = images.filter(pl.col("set").is_in(list(sources)))["group"].unique()
    return images.filter((pl.col("set") == target) & pl.col("group").is_in(own.implode())).height


def _tell_shared(names: Sequence[str], shared: dict[tuple[str, str], int]) -> list[str]:
    """Which sets overlap, in sentences; one if none does."""
    said = [
        f"{quantity(shared[a, b], 'image')} of {b} not tested on when {a} is trained on: the file "
        "is in both, or shows the same cell as one that is"
        for a in names for b in names if a != b and shared[a, b]
    ]  # fmt: skip
    return said or ["no file is in two sets (copies that are not identical were not looked for)"]


# --- routes and trials ----------------------------------------------------------------------------


def _find_routes(
    names: Sequence[str],
    vocabulary: Vocabulary,
    images: pl.DataFrame,
    places: dict[str, set[str]],
) -> tuple[list[Route], list[str]]:
    """Each set to the others, and all but one to that one; and what had to be left out."""
    asked: list[tuple[tuple[str, ...], tuple[str, ...]]]
    asked = [((name,), tuple(n for n in names if n != name)) for name in names]
    if len(names) > 2:
        asked += [(tuple(n for n in names if n != name), (name,)) for name in names]
    routes, left_out = [], []
    for sources, targets in asked:
        classes = vocabulary.classes(sources)
        usable = []
        for target in targets:
            rows = _select_away(images, places, sources, target, classes)
            kept = sorted(set(images["label"].to_numpy()[rows]))
            if len(kept) >= FEWEST and len(set(images["group"].to_numpy()[rows])) >= FEWEST:
                usable.append(target)
                continue
            left_out.append(
                f"{' + '.join(sources)} → {target} is left out: what can be tested on has "
                f"{', '.join(kept) if kept else 'no class'} in common; expected {FEWEST} classes"
            )
        if usable:
            routes.append(Route(sources, tuple(usable), tuple(classes)))
    return routes, left_out


def _select_away(
    images: pl.DataFrame,
    places: dict[str, set[str]],
    sources: Sequence[str],
    target: str,
    classes: Sequence[str],
) -> IntArray:
    """Rows of a target that may be tested on: of a known class, and not in a source."""
    known = set().union(*(places[name] for name in sources))
    fits = (
        (pl.col("set") == target)
        & pl.col("label").is_in(list(classes))
        & ~pl.col("group").is_in(known)
    )
    return images.select(fits.arg_true()).to_series().to_numpy().astype(np.int64)


def _select_sources(images: pl.DataFrame, sources: Sequence[str]) -> IntArray:
    """Rows of the sources; a file that several of them have counts once, for the first."""
    place = {name: i for i, name in enumerate(sources)}
    rows = images.with_row_index("row").filter(pl.col("set").is_in(list(sources)))
    order = pl.col("set").replace_strict(place, return_dtype=pl.Int64)
    first = (order == order.min().over("sha256")) | pl.col("sha256").is_null()
    return rows.filter(first)["row"].to_numpy().astype(np.int64)


def _make_trials(
    route: Route, images: pl.DataFrame, places: dict[str, set[str]], settings: LaboratorySettings
) -> list[Trial]:
    """One trial per seed: each holds another fold of the sources out."""
    own = _select_sources(images, route.sources)
    away = np.concatenate(
        [_select_away(images, places, route.sources, t, route.classes) for t in route.targets]
    )
    part = images[own]
    splits = make_splits(
        part["label"].to_list(),
        part["group"].to_list(),
        folds=settings.folds,
        repeats=ceil(settings.seeds / settings.folds),
        seed=settings.seed,
        images=[f"{one}/{image}" for one, image in part.select("set", "image").iter_rows()],
    )
    return [
        Trial(route, number, split.repeat, split.fold, own[split.train], own[split.test], away)
        for number, split in enumerate(splits[: settings.seeds])
    ]
