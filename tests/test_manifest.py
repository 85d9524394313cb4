"""The manifest's table survives writing and reading, and refuses what isn't one."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from leuko.data.manifest import SCHEMA, Manifest, read_manifest, write_manifest
from leuko.errors import LabelTableError, StorageError


def make(**changes: object) -> Manifest:
    row = {"image": "a", "path": "x/a.png", "row": 1, "sha256": "00", "bytes": 3, "width": 8}
    row |= {"height": 9, "label_written": "NA ", "labels": ["NA"], "label": "NA", "group": "a"}
    rows = [
        row | {"split": None, "issues": []},
        row | {"image": "ü,\n", "label": None, "labels": [], "split": "T", "issues": ["no_label"]},
        row | {"image": "c", "label": "007", "labels": ["007"], "split": None, "issues": []},
    ]
    table = pl.DataFrame([r | changes for r in rows], schema=SCHEMA)
    return Manifest(table, Path("/somewhere/ä"), "set", "csv", ("one note", "“two”"))


def test_why_a_file_cannot_be_read_is_not_lost_in_the_audit() -> None:
    audited = make(issues=["unreadable:truncated", "unreadable"])
    assert {row["reason"] for row in audited.unreadable()} == {"truncated"}


def test_round_trip(tmp_path: Path) -> None:
    manifest = make()
    write_manifest(manifest, tmp_path / "manifest.parquet")
    again = read_manifest(tmp_path / "manifest.parquet")
    assert again.table.equals(manifest.table)
    assert again.table.schema == manifest.table.schema
    for name in ("root", "name", "layout", "notes"):
        assert getattr(again, name) == getattr(manifest, name)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.parquet"]


def test_an_empty_table_keeps_its_types(tmp_path: Path) -> None:
    manifest = make()
    write_manifest(manifest.with_table(manifest.table.clear()), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").table.schema == pl.Schema(SCHEMA)


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_manifest(make(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_classes_and_counts_take_rows_with_one_label() -> None:
    assert make().classes() == ["007", "NA"]
    assert make().counts() == {"007": 1, "NA": 1}
    assert make(label=None).classes() == []


def test_with_table_checks_columns() -> None:
    manifest = make()
    assert len(manifest.with_table(manifest.table.head(1))) == 1
    assert manifest.with_table(manifest.table.select(reversed(list(SCHEMA)))).table.columns == list(
        SCHEMA
    )
    with pytest.raises(LabelTableError, match="no column 'group'"):
        manifest.with_table(manifest.table.drop("group"))
    with pytest.raises(LabelTableError, match="in 'row'"):
        manifest.with_table(manifest.table.with_columns(pl.col("row").cast(pl.String)))


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other")
    write_manifest(make(), tmp_path / "good")
    (tmp_path / "half").write_bytes((tmp_path / "good").read_bytes()[:200])
    for name in ("missing", "text", "other", "half"):
        with pytest.raises(LabelTableError, match="Scan the images again"):
            read_manifest(tmp_path / name)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.parquet"
    write_manifest(make(), target)
    before = target.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(StorageError, match="no space left"):
        write_manifest(make(label=None), target)
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]
    with pytest.raises(StorageError):
        write_manifest(make(), tmp_path / "none" / "m.parquet")
