"""Where images come from: folders and tables as people have them, read into a manifest.

`scan` tells by itself what it was given. It reads and checks every image once, decides nothing
about what is kept, and changes no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from leuko.data.folders import (
    holds_images,
    is_file,
    is_folder,
    is_image,
    list_folders,
    walk_files,
    walk_folders,
)
from leuko.data.headers import tell_format
from leuko.data.image import decode_image, read_bytes
from leuko.data.layouts import (
    SPLITS,
    Found,
    Row,
    is_kaggle_augmented,
    is_kaggle_raw,
    read_class_folders,
    read_csv,
    read_kaggle_augmented,
    read_kaggle_raw,
)
from leuko.data.manifest import SCHEMA, Manifest
from leuko.data.repeats import flag_repeats, join_groups
from leuko.errors import DataError, ImageError, LabelTableError, NoImagesError

Progress = Callable[[int, int], None]


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

        found = read_kaggle_raw(make_demo_set(demo_folder) / INNER)
    else:
        found = _recognise(Path(path))
    facts = _read_files(found, threads or min(8, os.cpu_count() or 1), progress)
    return _make_manifest(found, facts)


# Recognising


def _recognise(path: Path) -> Found:
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
        if is_kaggle_raw(folder) and (folder == path or _is_part_of_raw(path)):
            return read_kaggle_raw(folder)
    full = path.resolve()
    for levels, images in enumerate((full, full.parent, full.parent.parent)):
        only = full.relative_to(images).parts
        if (not only or only[0] in SPLITS) and is_kaggle_augmented(images):
            return read_kaggle_augmented(images, "/".join(only) if levels else "")
    if is_file(path / "manifest.parquet") and is_file(path / "labels.csv"):
        return read_csv(path / "labels.csv")
    return _recognise_below(path)


def _is_part_of_raw(path: Path) -> bool:
    return path.resolve().name in ("JPEGImages", "Annotations")


def _recognise_file(path: Path) -> Found:
    if path.name == "labels.csv" and is_kaggle_raw(path.parent):
        return read_kaggle_raw(path.parent)
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
    return read_csv(path)


def _recognise_below(path: Path) -> Found:
    """Looks up to three folders deeper for the Kaggle set; else class folders or a CSV."""
    below = list(walk_folders(path, depth=3))
    raw = [folder for folder in below if is_kaggle_raw(folder)]
    augmented = [folder for folder in below if is_kaggle_augmented(folder)]
    if raw:
        found = read_kaggle_raw(raw[0])
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
        return read_kaggle_augmented(augmented[0], "")
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
        found = read_class_folders(folder, path)
        if found.rows:
            return _prefer_table(found, tables)
    if len(tables) == 1:
        return read_csv(tables[0])
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


def _prefer_table(folders: Found, tables: Sequence[Path]) -> Found:
    """The class folders, or the table of labels that lies beside them.

    A table counts that can be read and names images that are there. Where it says what the folders
    say, the folders are taken; where there is but one folder, its name tells nothing apart.

    Raises:
        LabelTableError: Both could be the labels, and they differ.
    """
    told = {row.path: [label.casefold() for label in row.labels] for row in folders.rows}
    for table in tables:
        try:
            found = read_csv(table)
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


def _read_files(found: Found, threads: int, progress: Progress | None) -> dict[str, _Facts]:
    paths = sorted({row.path for row in found.rows if row.path is not None})
    facts = {}
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda path: _read_facts(found.root / path), paths)
        for done, (path, fact) in enumerate(zip(paths, results, strict=True), start=1):
            facts[path] = fact
            if progress is not None:
                progress(done, len(paths))
    return facts


def _make_manifest(found: Found, facts: dict[str, _Facts]) -> Manifest:
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


def _unify_spelling(rows: list[Row]) -> list[str]:
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
