"""The layouts in which sets of images lie: how each is told, and what its rows are.

    folder or table → rows: image, file, label as written, group, part

Each ``read_`` function takes one layout and looks at names and tables only. Knows folders; knows
nothing of what is in an image, or of which layout it was given.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from leuko.data.folders import Aside, is_file, is_folder, list_folders, stay_inside, walk_files
from leuko.data.manifest import read_manifest
from leuko.data.tables import read_table
from leuko.errors import LabelTableError, NoImagesError

SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
_GIVEN_SPLITS = {
    "train": "TRAIN", "training": "TRAIN", "test": "TEST", "testing": "TEST",
    "val": "VAL", "valid": "VAL", "validation": "VAL",
}  # fmt: skip
_AUGMENTED_NAME = re.compile(r"_(\d+)_\d+\.jpe?g", re.IGNORECASE)


@dataclass
class Row:
    """One label row, before any file is opened.

    Attributes:
        image: Its id.
        path: Of the file, below the root; None if there is none.
        label_written: As the source has it; None where it says nothing.
        labels: The classes that it names.
        row: Its number in the table, from 1; None without one.
        group: As the set says; None for the image alone.
        split: ``TRAIN``, ``TEST``, ``VAL`` or another part; None without one.
        issues: Codes, see `leuko.data.manifest`.
    """

    image: str
    path: str | None
    label_written: str | None
    labels: list[str]
    row: int | None = None
    group: str | None = None
    split: str | None = None
    issues: list[str] = field(default_factory=list)


@dataclass
class Found:
    """A set as its names and tables tell it.

    Attributes:
        rows: In the order of the source.
        root: The folder that paths begin at.
        name: What the set is called.
        layout: ``kaggle-raw``, ``kaggle-augmented``, ``class-folders``, ``csv`` or ``demo``.
        notes: Sentences for people.
    """

    rows: list[Row]
    root: Path
    name: str
    layout: str
    notes: list[str]


def is_kaggle_raw(folder: Path) -> bool:
    """Whether a folder holds the raw Kaggle set itself."""
    return is_folder(folder / "JPEGImages") and is_file(folder / "labels.csv")


def is_kaggle_augmented(folder: Path) -> bool:
    """Whether a folder holds the parts of the augmented Kaggle set."""
    return any(
        _AUGMENTED_NAME.fullmatch(file.name)
        for split in SPLITS
        if is_folder(folder / split)
        for inner in list_folders(folder / split)[:3]
        for file in walk_files(inner)
    )


def read_kaggle_raw(folder: Path) -> Found:
    """The raw Kaggle set: ``labels.csv`` beside ``JPEGImages``.

    Raises:
        LabelTableError: The table can't be read.
        NoImagesError: There are no images.
    """
    table = read_table(folder / "labels.csv", [["Image"], ["Category", "label"]])
    notes = list(table.notes)
    files: dict[str, str] = {}
    aside = Aside()
    for file in walk_files(folder / "JPEGImages", notes):
        if aside.takes(file, folder):
            continue
        if file.stem in files:
            notes.append(f"{files[file.stem]} and {file.name} have one id; the first is taken.")
            continue
        files[file.stem] = file.relative_to(folder).as_posix()
    rows = []
    for number, cells in zip(table.numbers, table.rows, strict=True):
        asked = cells["Image"]
        if asked.isascii() and asked.isdigit():
            image = f"BloodImage_{int(asked):05d}"
        else:
            image = Path(asked.replace("\\", "/")).stem if asked else f"row {number}"
        rows.append(_labelled(image, files.get(image), cells["Category"], number))
    named = {row.image for row in rows}
    rows += [
        Row(image, file, None, [], issues=["no_label"])
        for image, file in sorted(files.items())
        if image not in named
    ]
    if not files:
        raise NoImagesError(
            f"{folder / 'JPEGImages'} holds no images; expected BloodImage_NNNNN.jpg. "
            "Unpack the archive again." + "".join(f" {note}" for note in notes[:3])
        )
    readme = folder.parent.parent / "README.txt"
    demo = False
    with contextlib.suppress(OSError):
        demo = readme.read_bytes()[:9] == b"SYNTHETIC"
    if demo:
        notes.insert(0, "Synthetic demo set: every image is drawn; none shows real blood.")
    name = "Synthetic demo set" if demo else "Kaggle blood-cells, raw set"
    layout = "demo" if demo else "kaggle-raw"
    return Found(rows, folder, name, layout, notes + aside.notes())


def _labelled(
    image: str, path: str | None, written: str, number: int, whole: Collection[str] = ()
) -> Row:
    """A row of a table; commas part its labels, but for those that are known as one."""
    parts = [written] if written in whole else written.split(",")
    labels = [part.strip() for part in parts if part.strip()]
    row = Row(image, path, written, labels, number)
    if not labels:
        row.issues.append("blank_label")
    if len(labels) > 1:
        row.issues.append("many_labels")
    if path is None:
        row.issues.append("no_image")
    return row


def read_kaggle_augmented(images: Path, only: str) -> Found:
    """The augmented Kaggle set: a folder for each part, in it one for each class.

    Args:
        images: The folder of the parts.
        only: A part, or a class of it, such as ``TRAIN/MONOCYTE``; empty for all.

    Raises:
        NoImagesError: There are no images.
    """
    found = Found([], images, "Kaggle blood-cells, augmented set", "kaggle-augmented", [])
    aside = Aside()
    for split in SPLITS:
        if not is_folder(images / split):
            continue
        for file in walk_files(images / split, found.notes):
            if aside.takes(file, images):
                continue
            path = file.relative_to(images).as_posix()
            if only and not path.startswith(only + "/"):
                continue
            parts = path.split("/")
            if len(parts) < 3:
                found.notes.append(f"{path} lies in no class folder and was left out.")
                continue
            source = _AUGMENTED_NAME.fullmatch(parts[-1])
            group = f"{split}/{parts[1]}/{source[1]}" if source else None
            label = parts[1].strip()
            found.rows.append(Row(path, path, parts[1], [label], group=group, split=split))
    found.notes.append(
        "The numbers in the file names, taken as groups here, don't say which images were made "
        "from one source. The audit, and with it leuko compare, groups by what the pictures show."
    )
    if only:
        found.notes.append(f"Only {only} is taken, as the path says.")
    found.notes += aside.notes()
    return _require(found)


def read_class_folders(folder: Path, given: Path) -> Found:
    """A folder for each class, perhaps below one for each part; no row where there are no images.

    Args:
        folder: That of the classes or parts.
        given: What the user named, which may lie above.
    """
    found = Found([], folder, folder.resolve().name, "class-folders", [])
    aside = Aside()
    inner = list_folders(folder)
    splits = {f.name: _GIVEN_SPLITS.get(f.name.lower()) for f in inner}
    if None in splits.values():
        splits = {}
    for file in walk_files(folder, found.notes):
        if aside.takes(file, folder):
            continue
        path = file.relative_to(folder).as_posix()
        parts = path.split("/")
        split = splits[parts.pop(0)] if parts[0] in splits else None
        if len(parts) < 2:
            aside.strays.append(path)
            continue
        found.rows.append(Row(path, path, parts[0], [parts[0].strip()], split=split))
    found.rows.sort(key=lambda row: row.image)
    if folder != given:
        found.notes.append(f"The class folders were found in {folder}")
    empty = [f.name for f in inner if f.name not in splits and _is_empty(f)]
    if empty:
        found.notes.append(f"Empty class folders: {', '.join(empty)}")
    found.notes += aside.notes()
    return found


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds no file; one that can't be read isn't empty."""
    notes: list[str] = []
    return next(walk_files(folder, notes), None) is None and not notes


def read_csv(path: Path) -> Found:
    """A table of images and labels, also one that `leuko clean` wrote.

    Raises:
        LabelTableError: It can't be read, or names files outside of its folder.
        NoImagesError: None of the files exists.
    """
    table = read_table(path, [["image"], ["label", "category"]], optional=("group", "split"))
    notes, root = list(table.notes), path.parent
    beside = path.parent / "manifest.parquet"
    whole: set[str] = set()
    if path.name == "labels.csv" and is_file(beside):
        # Written by `leuko clean`, which copies no image: they lie where they were.
        cleaned = read_manifest(beside)
        root = cleaned.root
        whole = set(cleaned.classes())  # a class folder may be called "A, B"
        notes.append(f"The images are read from {root}, as manifest.parquet says.")
        notes.append(
            f"Already cleaned by the recipe {_name_recipe(path.parent)!r}; use --recipe prepared, "
            "so that no step is applied twice."
        )
    rows, outside = [], []
    for number, cells in zip(table.numbers, table.rows, strict=True):
        asked = cells["image"]
        inside = stay_inside(asked, root)
        if inside is None:
            outside.append(f"row {number}: {asked[:80]!r}")
            continue
        exists = bool(asked) and os.path.exists(root / inside)  # noqa: PTH110 (never raises)
        row = _labelled(
            inside or f"row {number}", inside if exists else None, cells["label"], number, whole
        )
        split = cells.get("split") or None
        row.group, row.split = cells.get("group") or None, split
        if split is not None:
            row.split = _GIVEN_SPLITS.get(split.lower(), split)
        rows.append(row)
    if outside:
        raise LabelTableError(
            f"{path} names {len(outside)} files outside of {root} ({'; '.join(outside[:3])}); "
            "expected paths relative to that folder. Move the CSV to the images, or shorten the "
            "paths."
        )
    found = Found(rows, root, path.stem, "csv", notes)
    if rows and all(row.path is None for row in rows):
        raise NoImagesError(
            f"none of the {len(rows)} files that {path} names exists, for example "
            f"{rows[0].image!r}; expected them below {root}. Correct the column image."
        )
    return _require(found)


def _name_recipe(folder: Path) -> str:
    """The recipe by which a folder was cleaned, as it was written there."""
    with contextlib.suppress(OSError, ValueError):
        return str(tomllib.loads((folder / "recipe.toml").read_text("utf-8"))["name"])
    return "unknown"


def _require(found: Found) -> Found:
    if not found.rows:
        raise NoImagesError(
            f"{found.root} holds no images; expected at least one row with an image. "
            "Check the path." + "".join(f" {note}" for note in found.notes[:3])
        )
    return found
