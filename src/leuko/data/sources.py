"""Where images come from: folders and tables as people have them, read into a manifest.

`scan` tells by itself what it was given. It reads and checks every image once, decides nothing
about what is kept, and changes no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from leuko.data.folders import (
    Aside,
    holds_images,
    is_file,
    is_folder,
    is_image,
    list_folders,
    stay_inside,
    walk_files,
    walk_folders,
)
from leuko.data.headers import tell_format
from leuko.data.image import decode_image, read_bytes
from leuko.data.manifest import SCHEMA, Manifest, read_manifest
from leuko.data.repeats import flag_repeats, join_groups
from leuko.data.tables import read_table
from leuko.errors import DataError, ImageError, LabelTableError, NoImagesError

Progress = Callable[[int, int], None]

_SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
_GIVEN_SPLITS = {
    "train": "TRAIN", "training": "TRAIN", "test": "TEST", "testing": "TEST",
    "val": "VAL", "valid": "VAL", "validation": "VAL",
}  # fmt: skip
_AUGMENTED_NAME = re.compile(r"_(\d+)_\d+\.jpe?g", re.IGNORECASE)


def scan(
    path: str | os.PathLike[str] | None = None,
    *,
    demo_folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Reads a labelled set of images as it is.

    Recognised are the two layouts of the Kaggle set ``blood-cells``, a folder of class folders
    (also below ``train`` and ``test``), a CSV ``image,label[,group]``, and what ``leuko clean``
    wrote. Every image is hashed and decoded; one that can't be read stays as a row with the issue
    ``unreadable:REASON``. Images with the same bytes share a group.

    Args:
        path: Folder or CSV; None: the embedded, synthetic demo set.
        demo_folder: Where the demo set is written; left out, the user's cache folder.
        threads: For reading; left out, one per processor core, at most 8.
        progress: Called with (images done, images in all).

    Raises:
        NoImagesError: Nothing to read where images were expected.
        LabelTableError: The table of labels can't be used, or there are images but no labels.
    """
    if path is None:
        from leuko.data.synthetic import INNER, make_demo_set

        found = _read_kaggle_raw(make_demo_set(demo_folder) / INNER)
    else:
        found = _recognise(Path(path))
    facts = _read_files(found, threads or min(8, os.cpu_count() or 1), progress)
    return _make_manifest(found, facts)


# Recognising


@dataclass
class _Row:
    image: str
    path: str | None
    label_written: str | None
    labels: list[str]
    row: int | None = None
    group: str | None = None
    split: str | None = None
    issues: list[str] = field(default_factory=list)


@dataclass
class _Found:
    rows: list[_Row]
    root: Path
    name: str
    layout: str
    notes: list[str]


def _recognise(path: Path) -> _Found:
    if is_file(path):
        return _recognise_file(path)
    if not is_folder(path):
        raise NoImagesError(
            f"{path} is neither a folder nor a file; expected a folder of images or a CSV. "
            "Check the path."
        )
    try:
        with os.scandir(path):
            pass
    except OSError as error:
        raise NoImagesError(
            f"{path} can't be read ({error.strerror}). Check its permissions."
        ) from None
    for folder in (path, path.resolve().parent):
        if _is_kaggle_raw(folder) and (folder == path or _is_part_of_raw(path)):
            return _read_kaggle_raw(folder)
    full = path.resolve()
    for levels, images in enumerate((full, full.parent, full.parent.parent)):
        only = full.relative_to(images).parts
        if (not only or only[0] in _SPLITS) and _is_kaggle_augmented(images):
            return _read_kaggle_augmented(images, "/".join(only) if levels else "")
    if is_file(path / "manifest.parquet") and is_file(path / "labels.csv"):
        return _read_csv(path / "labels.csv")
    return _recognise_below(path)


def _is_part_of_raw(path: Path) -> bool:
    return path.resolve().name in ("JPEGImages", "Annotations")


def _recognise_file(path: Path) -> _Found:
    if path.name == "labels.csv" and _is_kaggle_raw(path.parent):
        return _read_kaggle_raw(path.parent)
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(4096)
        form = tell_format(start)
        if form is not None:
            raise NoImagesError(
                f"{path} is one image ({form}); expected a folder of images or a CSV. "
                "Name the folder that it lies in."
            )
        if start[:4] in (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf") or start[:2] == b"\x1f\x8b":
            raise NoImagesError(
                f"{path} is an archive; expected a folder. Unpack it and name the folder."
            )
    return _read_csv(path)


def _recognise_below(path: Path) -> _Found:
    """Looks up to three folders deeper for the Kaggle set; else class folders or a CSV."""
    below = list(walk_folders(path, depth=3))
    raw = [folder for folder in below if _is_kaggle_raw(folder)]
    augmented = [folder for folder in below if _is_kaggle_augmented(folder)]
    if raw:
        found = _read_kaggle_raw(raw[0])
        for other in raw[1:]:
            found.notes.append(f"{path} holds a second raw set, which was left out: {other}")
        for other in augmented[:1]:
            given = other.parent if other.name == "images" else other
            found.notes.insert(
                0,
                f"{path} holds both Kaggle sets. The raw one is taken ({raw[0]}). "
                f"For the augmented one give the path {given}",
            )
        return found
    if augmented:
        return _read_kaggle_augmented(augmented[0], "")
    if is_folder(path / "JPEGImages") or path.name == "JPEGImages":
        raise LabelTableError(
            f"{path} looks like the raw Kaggle set but has no labels.csv beside JPEGImages; "
            "expected a table with the columns Image and Category. Copy it there."
        )
    folder = path
    while True:  # a lone folder around the class folders is no class
        inner = list_folders(folder)
        if len(inner) != 1 or holds_images(folder) or holds_images(inner[0]):
            break
        folder = inner[0]
    tables = sorted(
        p for place in dict.fromkeys((path, folder)) for p in place.glob("*.csv")
        if is_file(p) and not p.name.startswith(".")
    )  # fmt: skip
    if any(next(walk_files(inner), None) for inner in list_folders(folder)):
        found = _read_class_folders(folder, path)
        if found.rows:
            return _prefer_table(found, tables)
    if len(tables) == 1:
        return _read_csv(tables[0])
    if len(tables) > 1:
        raise LabelTableError(
            f"{path} holds {len(tables)} CSV files ({', '.join(t.name for t in tables[:5])}); "
            "expected one, or class folders. Name the CSV with the labels."
        )
    notes: list[str] = []
    images = sum(is_image(file) for file in walk_files(path, notes))
    if images:
        raise LabelTableError(
            f"{path} holds {images} images but no labels; expected one folder per class, or a "
            "CSV with the columns image and label. Add either."
        )
    raise NoImagesError(
        f"{path} holds no images; expected JPEG, PNG, BMP or TIFF in class folders, the Kaggle "
        "set, or a CSV. Check the path." + "".join(f" {note}" for note in notes[:3])
    )


def _prefer_table(folders: _Found, tables: Sequence[Path]) -> _Found:
    """The class folders, or the table of labels that lies beside them.

    A table counts that can be read and names images that are there. Where it says what the folders
    say, the folders are taken; where there is but one folder, its name tells nothing apart.

    Raises:
        LabelTableError: Both could be the labels, and they differ.
    """
    told = {row.path: [label.casefold() for label in row.labels] for row in folders.rows}
    for table in tables:
        try:
            found = _read_csv(table)
        except DataError:
            continue
        said = [
            (os.path.relpath(found.root / row.path, folders.root).replace(os.sep, "/"), row.labels)
            for row in found.rows
            if row.path is not None
        ]
        if all(told.get(path) == [label.casefold() for label in labels] for path, labels in said):
            continue
        names = sorted({row.label_written or "" for row in folders.rows})
        if len(names) == 1:
            found.notes.insert(0, f"The labels are those of {table}, not the name of its folder.")
            return found
        raise LabelTableError(
            f"{folders.root} holds both folders ({', '.join(names[:5])}"
            f"{', …' if len(names) > 5 else ''}) and {table.name}, which give other labels; "
            f"expected one of them. Name {table} for the labels in it, or move it away to take "
            "the folders as classes."
        )
    return folders


def _is_kaggle_raw(folder: Path) -> bool:
    return is_folder(folder / "JPEGImages") and is_file(folder / "labels.csv")


def _is_kaggle_augmented(folder: Path) -> bool:
    return any(
        _AUGMENTED_NAME.fullmatch(file.name)
        for split in _SPLITS
        if is_folder(folder / split)
        for inner in list_folders(folder / split)[:3]
        for file in walk_files(inner)
    )


# Layouts


def _read_kaggle_raw(folder: Path) -> _Found:
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
        _Row(image, file, None, [], issues=["no_label"])
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
    return _Found(rows, folder, name, layout, notes + aside.notes())


def _labelled(
    image: str, path: str | None, written: str, number: int, whole: Collection[str] = ()
) -> _Row:
    """A row of a table; commas part its labels, but for those that are known as one."""
    parts = [written] if written in whole else written.split(",")
    labels = [part.strip() for part in parts if part.strip()]
    row = _Row(image, path, written, labels, number)
    if not labels:
        row.issues.append("blank_label")
    if len(labels) > 1:
        row.issues.append("many_labels")
    if path is None:
        row.issues.append("no_image")
    return row


def _read_kaggle_augmented(images: Path, only: str) -> _Found:
    found = _Found([], images, "Kaggle blood-cells, augmented set", "kaggle-augmented", [])
    aside = Aside()
    for split in _SPLITS:
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
            found.rows.append(_Row(path, path, parts[1], [label], group=group, split=split))
    found.notes.append(
        "The numbers in the file names, taken as groups here, don't say which images were made "
        "from one source. The audit, and with it leuko compare, groups by what the pictures show."
    )
    if only:
        found.notes.append(f"Only {only} is taken, as the path says.")
    found.notes += aside.notes()
    return _require(found)


def _read_class_folders(folder: Path, given: Path) -> _Found:
    found = _Found([], folder, folder.resolve().name, "class-folders", [])
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
        found.rows.append(_Row(path, path, parts[0], [parts[0].strip()], split=split))
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


def _read_csv(path: Path) -> _Found:
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
    found = _Found(rows, root, path.stem, "csv", notes)
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


def _require(found: _Found) -> _Found:
    if not found.rows:
        raise NoImagesError(
            f"{found.root} holds no images; expected at least one row with an image. "
            "Check the path." + "".join(f" {note}" for note in found.notes[:3])
        )
    return found


# Reading the files, and what only the whole set shows


@dataclass(frozen=True)
class _Facts:
    sha256: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    issue: str | None = None


def _read_facts(path: Path) -> _Facts:
    data = b""
    try:
        data = read_bytes(path)
        height, width, _ = decode_image(data).shape
    except ImageError as error:
        known = hashlib.sha256(data).hexdigest() if data or error.reason == "empty" else None
        return _Facts(known, len(data) if known else None, issue=f"unreadable:{error.reason}")
    return _Facts(hashlib.sha256(data).hexdigest(), len(data), width, height)


def _read_files(found: _Found, threads: int, progress: Progress | None) -> dict[str, _Facts]:
    paths = sorted({row.path for row in found.rows if row.path is not None})
    facts = {}
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda path: _read_facts(found.root / path), paths)
        for done, (path, fact) in enumerate(zip(paths, results, strict=True), start=1):
            facts[path] = fact
            if progress is not None:
                progress(done, len(paths))
    return facts


def _make_manifest(found: _Found, facts: dict[str, _Facts]) -> Manifest:
    notes = found.notes + _unify_spelling(found.rows)
    nothing = _Facts()
    records: list[dict[str, Any]] = []
    for row in found.rows:
        fact = facts[row.path] if row.path is not None else nothing
        record = {
            "image": row.image,
            "path": row.path,
            "row": row.row,
            "sha256": fact.sha256,
            "bytes": fact.bytes,
            "width": fact.width,
            "height": fact.height,
            "label_written": row.label_written,
            "labels": row.labels,
            "label": row.labels[0] if len(row.labels) == 1 else None,
            "group": row.group or row.image,
            "split": row.split,
            "issues": row.issues + ([fact.issue] if fact.issue else []),
        }
        records.append(record)
    flag_repeats(records)
    join_groups(records)
    table = pl.DataFrame(records, schema=SCHEMA)
    root = found.root.resolve()
    return Manifest(table, root, found.name, found.layout, tuple(notes))


def _unify_spelling(rows: list[_Row]) -> list[str]:
    """Merges class names that differ only in case into the most frequent spelling."""
    counts = Counter(label for row in rows for label in row.labels)
    chosen: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        chosen.setdefault(label.casefold(), label)
    changed: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for i, label in enumerate(row.labels):
            best = chosen[label.casefold()]
            if best != label:
                changed[label, best] += 1
                row.labels[i] = best
                if "spelling" not in row.issues:
                    row.issues.append("spelling")
    return [f"The class {a!r} is taken as {b!r} ({n} ×)." for (a, b), n in sorted(changed.items())]
