"""The manifest: the table of images that flows through everything.

One row per label row, or per image that no label row names. This module knows the schema, and how
the table is written and read; it doesn't know where images come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from leuko.errors import LabelTableError
from leuko.storage import write_atomically

#: Column → type. What they mean:
#:
#: image: id; the file's stem in the raw Kaggle layout, else its path. Several rows may share it.
#: path: relative to the root, with "/"; null where no file was found.
#: row: 1-based label row in the table file; null without one.
#: sha256, bytes, width, height: of the file; size in pixels after the EXIF orientation.
#: label_written: the label as the source has it.  labels: parsed.  label: the only one, or null.
#: group: images that must stay on one side of a split.  split: as the set gives it.
#: issues: codes such as "blank_label", "no_image", "no_label", "many_labels", "label_conflict",
#:     "repeated_row", "same_bytes", "spelling", "unreadable:REASON".
SCHEMA: dict[str, pl.DataType] = {
    "image": pl.String(),
    "path": pl.String(),
    "row": pl.Int64(),
    "sha256": pl.String(),
    "bytes": pl.Int64(),
    "width": pl.Int64(),
    "height": pl.Int64(),
    "label_written": pl.String(),
    "labels": pl.List(pl.String()),
    "label": pl.String(),
    "group": pl.String(),
    "split": pl.String(),
    "issues": pl.List(pl.String()),
}

_KEY = "leuko"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A set of images with their labels.

    Attributes:
        table: Columns as in `SCHEMA`.
        root: Folder that ``path`` is relative to.
        name: Of the set, for people.
        layout: "kaggle-raw", "kaggle-augmented", "class-folders", "csv" or "demo".
        notes: What was decided while reading, in sentences for people.
        audited: The issues hold what the audit found, and the groups join what it joined.
    """

    table: pl.DataFrame
    root: Path
    name: str
    layout: str
    notes: tuple[str, ...] = ()
    audited: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def classes(self) -> list[str]:
        """The classes of the rows with one label, in alphabetical order."""
        return sorted(self.table["label"].drop_nulls().unique().to_list())

    def counts(self) -> dict[str, int]:
        """Rows with exactly this one label, per class, in alphabetical order."""
        found = self.table["label"].drop_nulls().to_list()
        return {name: found.count(name) for name in sorted(set(found))}

    def unreadable(self) -> list[dict[str, str]]:
        """The files that should have been readable and weren't: ``image`` and ``reason``."""
        reasons = {}
        for image, issues in self.table.select("image", "issues").iter_rows():
            # The audit adds the bare word to what reading found.
            if codes := sorted((i for i in issues if i.startswith("unreadable")), key=len):
                reasons[image] = codes[-1].removeprefix("unreadable:")
        return [{"image": image, "reason": reason} for image, reason in reasons.items()]

    def with_table(self, table: pl.DataFrame) -> Manifest:
        """The same set with other rows.

        Raises:
            LabelTableError: A column is missing or has another type.
        """
        _check_schema(table, "the new table")
        return dataclasses.replace(self, table=table.select(list(SCHEMA)))


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Writes the manifest as one Parquet file; all that isn't in the table goes into its metadata.

    The file appears whole or not at all.

    Raises:
        StorageError: It can't be written.
    """
    facts = {
        "version": _VERSION,
        "root": str(manifest.root),
        "name": manifest.name,
        "layout": manifest.layout,
        "notes": list(manifest.notes),
        "audited": manifest.audited,
    }
    metadata = {_KEY: json.dumps(facts)}
    write_atomically(Path(path), lambda part: manifest.table.write_parquet(part, metadata=metadata))


def read_manifest(path: str | Path) -> Manifest:
    """Reads what `write_manifest` wrote.

    Raises:
        LabelTableError: It is missing, damaged, or no manifest.
    """
    path = Path(path)
    try:
        facts = json.loads(pl.read_parquet_metadata(path)[_KEY])
        table = pl.read_parquet(path)
        if facts["version"] != _VERSION:
            raise LabelTableError(
                f"{path} is a manifest of version {facts['version']}; expected {_VERSION}. "
                "Read it with the Leuko that wrote it, or scan the images again."
            )
        root, name, layout = Path(facts["root"]), str(facts["name"]), str(facts["layout"])
        notes = tuple(str(note) for note in facts["notes"])
        audited = facts.get("audited", False) is True  # unknown to older files
    except (OSError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise LabelTableError(
            f"{path} is no manifest that can be read ({type(error).__name__}: {error}); expected "
            "a file written by leuko.data.manifest.write_manifest. Scan the images again."
        ) from None
    _check_schema(table, str(path))
    return Manifest(table.select(list(SCHEMA)), root, name, layout, notes, audited)


def list_facts(manifest: Manifest) -> set[tuple[Any, ...]]:
    """What decides a result: ids, bytes, labels, groups and parts of all rows."""
    return set(manifest.table.select("image", "sha256", "label_written", "group", "split").rows())


def hash_data(manifest: Manifest) -> str:
    """One SHA-256 for what a set says and holds: ids, bytes, labels, groups, parts."""
    text = json.dumps(sorted(list_facts(manifest), key=repr), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sort_labels(manifest: Manifest) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What each image shows, and those of which that can't be said.

    Returns:
        The one label of each image that has one and can be read; and of every other image
        ``image``, ``reason`` (a code) and ``detail`` (a sentence).
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in manifest.table.iter_rows(named=True):
        rows.setdefault(row["image"], []).append(row)
    labels: dict[str, str] = {}
    aside: list[dict[str, str]] = []
    for image, same in rows.items():
        fault = _find_fault(same)
        if fault is None:
            labels[image] = next(row["label"] for row in same if row["label"] is not None)
        else:
            aside.append({"image": image, "reason": fault[0], "detail": fault[1]})
    return labels, aside


def _find_fault(rows: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Why an image can't be judged: a code and a sentence; None if it can."""
    codes = [code for row in rows for code in row["issues"] or ()]
    unreadable = [code for code in codes if code.startswith("unreadable:")]
    if unreadable:
        reason = unreadable[0].removeprefix("unreadable:")
        return reason, f"the file can't be read ({reason})"
    if all(row["path"] is None for row in rows):
        return "no_image", "there is no such file"
    named = [row["labels"] for row in rows if row["labels"]]
    several = [labels for labels in named if len(labels) > 1]
    if several:
        return "many_labels", f"it has {len(several[0])} labels: {', '.join(several[0])}"
    single = sorted({labels[0] for labels in named})
    if len(single) > 1:
        return "label_conflict", f"its rows contradict each other: {', '.join(single)}"
    return None if single else ("no_label", "it has no label")


def _check_schema(table: pl.DataFrame, where: str) -> None:
    for column, kind in SCHEMA.items():
        found = table.schema.get(column)
        if found != kind:
            raise LabelTableError(
                f"{where} has {'no column' if found is None else f'the type {found} in'} "
                f"{column!r}; expected {kind}. Keep the columns as leuko.scan makes them."
            )
