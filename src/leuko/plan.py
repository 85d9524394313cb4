"""What a study will train and test on, decided before the first network is built.

    data → manifest → audit: groups → cleaning → splits

Nothing is written here: whoever is refused has lost no time and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.audit import find_issues
from leuko.data.cleaning import Cleaned, clean
from leuko.data.cuts import SURROUNDINGS, WINDOW
from leuko.data.manifest import Manifest, list_facts, read_manifest
from leuko.data.recipe import load_recipe
from leuko.data.sources import scan
from leuko.data.splits import Split, check_splits, make_splits
from leuko.errors import DataError, RecipeError, ResumeError, SettingsError
from leuko.learning.fit import FitSettings
from leuko.settings import StudySettings
from leuko.watcher import Watcher

Source = Manifest | Cleaned | str | Path | None


@dataclass(frozen=True)
class Plan:
    """All that is decided before training.

    Attributes:
        settings: Resolved: ``split`` is "folds", "given" or "tenth".
        cleaned: The kept rows, one per image, with their groups.
        splits: Over the rows of `cleaned`.
        names: Image ids of the cleaned rows, in the order that `splits` index.
    """

    settings: StudySettings
    cleaned: Cleaned
    splits: list[Split]
    names: list[str]

    @property
    def found(self) -> Manifest:
        """Every row, before cleaning."""
        return self.cleaned.found

    @property
    def shown(self) -> Manifest:
        """The rows whose pictures are cut out: every row, and what got its one label in cleaning.

        A person may have labelled an image that had no label, or two; no picture is cut of such a
        row as it was found.
        """
        table = self.found.table
        known = table.filter(pl.col("label").is_not_null())["image"]
        labelled = self.cleaned.manifest.table.filter(~pl.col("image").is_in(known.implode()))
        return self.found.with_table(pl.concat([table, labelled])) if len(labelled) else self.found

    @property
    def groups(self) -> list[str]:
        """The group of each cleaned row."""
        return self.cleaned.manifest.table["group"].to_list()

    @property
    def splits_table(self) -> pl.DataFrame:
        """As in ``splits.parquet``."""
        return pl.DataFrame(
            [
                {"repeat": s.repeat, "fold": s.fold, "image": self.names[i], "part": part}
                for s in self.splits
                for part, index in (("train", s.train), ("test", s.test))
                for i in index
            ]
        )

    @property
    def fit_settings(self) -> FitSettings:
        """The training protocol of every model."""
        reach = WINDOW / SURROUNDINGS if self.has_surroundings else 1.0
        return self.settings.make_protocol(balance=self.cleaned.balance, reach=reach)

    @property
    def has_surroundings(self) -> bool:
        """Whether training sees pictures with more around the cell, to move within them."""
        return self.settings.view == "cell" and self.settings.augmentation == "wide"

    @property
    def classes(self) -> list[str]:
        """K names, in alphabetical order."""
        return self.cleaned.manifest.classes()

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) in [0, K)."""
        number = {name: k for k, name in enumerate(self.classes)}
        column = self.cleaned.manifest.table["label"].to_list()
        return np.array([number[label] for label in column], dtype=np.int64)


def find_root(data: Manifest | Cleaned | str | Path) -> Path:
    """Where the images of a set lie."""
    if isinstance(data, Cleaned):
        return data.manifest.root
    return data.root if isinstance(data, Manifest) else Path(data)


def find_name(data: Manifest | Cleaned | str | Path) -> str:
    """What a set is called."""
    if isinstance(data, Cleaned):
        return data.manifest.name
    if isinstance(data, Manifest):
        return data.name
    path = Path(data).resolve()
    return path.stem if path.is_file() else path.name


def make_plan(data: Source, settings: StudySettings, watcher: Watcher, *, workers: int) -> Plan:
    """Reads, audits, cleans and splits.

    Args:
        data: As for `leuko.compare`.
        settings: Checked.
        watcher: Learns of the progress.
        workers: Processes for the audit; they change the time, never the result.

    Raises:
        DataError: The data can't be used.
        SplitError: They can't be split as asked.
    """
    cleaned = prepare(data, settings, watcher, workers=workers)
    parts = set(cleaned.manifest.table["split"].drop_nulls())
    if settings.split == "given" or (settings.split == "auto" and {"TRAIN", "TEST"} <= parts):
        cleaned, splits = _take_given_split(cleaned, settings, watcher)
        settings = replace(settings, split="given", folds=1, repeats=1)
    elif settings.split == "tenth":
        splits = _make_folds(cleaned, replace(settings, folds=10, repeats=1))[:1]
        settings = replace(settings, folds=1, repeats=1)
    else:
        splits = _make_folds(cleaned, settings)
        settings = replace(settings, split="folds")
    return Plan(settings, cleaned, splits, cleaned.manifest.table["image"].to_list())


def prepare(data: Source, settings: StudySettings, watcher: Watcher, *, workers: int) -> Cleaned:
    """Reads, audits and cleans one set; all that can be done before it is split.

    Args:
        data: As for `leuko.compare`.
        settings: Checked.
        watcher: Learns of the progress.
        workers: Processes for the audit; they change the time, never the result.

    Raises:
        DataError: The data can't be used.
    """
    cleaned = _clean(data, settings, watcher, workers)
    for note in cleaned.found.notes:
        watcher.say(note)
    _check_usable(cleaned)
    return cleaned


def _clean(data: Source, settings: StudySettings, watcher: Watcher, workers: int) -> Cleaned:
    """The kept rows, with the groups that the settings ask for."""
    if isinstance(data, Cleaned):
        if settings.groups != "cell" or data.manifest.audited:
            return data
        found = _audit(data.found, settings, watcher, workers)
        return replace(data, found=found, manifest=_take_groups(data.manifest, found.table))
    if isinstance(data, Manifest):
        manifest = data
    else:
        watcher.say("drawing the demo set" if data is None else "reading the images")
        manifest = scan(data)
    recipe = load_recipe(settings.recipe)
    own = manifest.table
    if not manifest.audited and (settings.groups == "cell" or recipe.needs_audit):
        manifest = _audit(manifest, settings, watcher, workers)
    decisions = settings.decisions or None
    cleaned = clean(manifest, recipe, seed=settings.seed, decisions=decisions)
    if settings.groups == "cell":
        return cleaned
    # Only now: which of several copies stays is decided within the groups that the audit found.
    return replace(
        cleaned,
        found=_take_groups(cleaned.found, own),
        manifest=_take_groups(cleaned.manifest, own),
    )


def _take_groups(manifest: Manifest, source: pl.DataFrame) -> Manifest:
    """The same rows, each in the group that another table says of its image."""
    group = dict(source.select("image", "group").iter_rows())
    return manifest.with_table(
        manifest.table.with_columns(
            pl.col("image").replace_strict(group, return_dtype=pl.String).alias("group")
        )
    )


def _audit(manifest: Manifest, settings: StudySettings, watcher: Watcher, workers: int) -> Manifest:
    watcher.say("looking for copies, and for the same cell in several images")
    audit = find_issues(manifest, folds=settings.folds, workers=workers, say=watcher.count)
    for issue in audit.issues:
        if issue.kind == "wrong_group":
            watcher.say(f"the set's own groups are not used: {issue.detail}")
    return audit.manifest


def _check_usable(cleaned: Cleaned) -> None:
    """Refuses what no model could be trained on, before any work is done.

    Raises:
        RecipeError: A kept row has no label, no readable image, or is there twice.
        DataError: Fewer than two classes.
    """
    table = cleaned.manifest.table
    unreadable = {row["image"] for row in cleaned.manifest.unreadable()}
    seen: set[str] = set()
    for image, label, path in table.select("image", "label", "path").iter_rows():
        if label is None:
            lacks, step = "not exactly one label", "drop_blank_labels and drop_multiple_labels"
        elif path is None:
            lacks, step = "no image", "drop_missing_images"
        elif image in unreadable:
            lacks, step = "an image that can't be read", "drop_unreadable"
        elif image in seen:
            lacks, step = "more than one row", "drop_conflicts and drop_repeated_rows"
        else:
            seen.add(image)
            continue
        raise RecipeError(
            f"After the recipe {cleaned.recipe.name!r}, {image} still has {lacks}. Add the steps "
            f"{step} to the recipe, as in the shipped ones."
        )
    classes = cleaned.manifest.classes()
    if len(classes) < 2:
        what = f"only {classes[0]}" if classes else "no image"
        raise DataError(
            f"After cleaning there is {what}; expected at least two classes to tell apart. "
            "Look at what each step dropped with: leuko clean DATA --recipe RECIPE."
        )


def check_same_images(recorded: Path, found: Manifest) -> None:
    """Refuses to continue with other images, labels, groups or parts.

    Args:
        recorded: The manifest that the run wrote when it began.
        found: The images as they are now.

    Raises:
        ResumeError: Names some that differ.
    """
    changed = sorted(
        {str(row[0]) for row in list_facts(read_manifest(recorded)) ^ list_facts(found)}
    )
    if changed:
        names = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        number = f"{len(changed)} image{'' if len(changed) == 1 else 's'}"
        raise ResumeError(
            f"This run can't be continued, because its images differ: {number} "
            f"changed since it began ({names}). Restore them, or start a new run."
        )


def _make_folds(cleaned: Cleaned, settings: StudySettings) -> list[Split]:
    table = cleaned.manifest.table
    parts = sorted(set(table["split"].drop_nulls()))
    if cleaned.found.layout == "kaggle-augmented" and settings.groups == "given":
        raise SettingsError(
            f"The numbers in the file names of the augmented set ({', '.join(parts)}) don't say "
            "which images were made from one source, so folds by these groups would leak. "
            "Use --groups cell, which looks at the pictures, or --split given."
        )
    return make_splits(
        table["label"].to_list(),
        table["group"].to_list(),
        folds=settings.folds,
        repeats=settings.repeats,
        seed=settings.seed,
        images=table["image"].to_list(),
    )


def _take_given_split(
    cleaned: Cleaned, settings: StudySettings, watcher: Watcher
) -> tuple[Cleaned, list[Split]]:
    """The set's own TRAIN and TEST. Its other parts are left out: TEST_SIMPLE may repeat TEST.

    Where the audit found a cell in both, the images of TRAIN go, so that TEST stays the one that
    others have tested on.
    """
    table = cleaned.manifest.table
    others = table.filter(~pl.col("split").is_in(["TRAIN", "TEST"]).fill_null(value=False))
    if len(others):
        names = ", ".join(sorted({part or "no part" for part in others["split"]}))
        watcher.say(f"{len(others)} images of {names} are not used: only TRAIN and TEST are")
    table = table.filter(pl.col("split").is_in(["TRAIN", "TEST"]))
    if settings.groups == "cell":
        tested = set(table.filter(pl.col("split") == "TEST")["group"])
        leaks = (pl.col("split") == "TRAIN") & pl.col("group").is_in(tested)
        if leaking := table.filter(leaks)["image"].to_list():
            watcher.say(
                f"{len(leaking)} images of TRAIN show cells of TEST and are not trained on: "
                f"{', '.join(leaking[:5])}{' …' if len(leaking) > 5 else ''}"
            )
            table = table.filter(~leaks)
    part, labels = table["split"].to_numpy(), table["label"].to_numpy()
    train, test = (np.flatnonzero(part == p).astype(np.int64) for p in ("TRAIN", "TEST"))
    for name, rows in (("TRAIN", train), ("TEST", test)):
        missing = sorted(set(cleaned.manifest.classes()) - set(labels[rows]))
        if missing or not len(rows):
            raise SettingsError(
                f"The set's own {name} part has {len(rows)} images"
                + (f" and none of {', '.join(missing)}" if missing else "")
                + "; expected every class in TRAIN and in TEST. Use --split folds."
            )
    splits = [Split(0, 0, train, test)]
    check_splits(splits, table["group"].to_list(), table["image"].to_list())
    if len(set(table["group"].to_numpy()[test])) < 2:
        raise SettingsError(
            "All images of TEST are of one group, so nothing can be said about how certain a "
            "figure is. Use --split folds."
        )
    return replace(cleaned, manifest=cleaned.manifest.with_table(table)), splits
