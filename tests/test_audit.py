"""Fields that show the same physical leukocyte are found, and only those."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leuko.data import audit
from leuko.data.audit import (
    SameCell,
    find_same_cells,
    group_same_cells,
    measure_set_scales,
)
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg, encode_png
from leuko.data.manifest import SCHEMA, Manifest
from leuko.data.sources import scan

KINDS = ("NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL")
SHIFTS = ((0, 0), (45, -40), (-55, 30))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes, three of them photographed twice, one file twice, one that can't be read."""
    folder = tmp_path_factory.mktemp("slide")
    lines = ["image,label"]
    for scene in range(6):
        kind = KINDS[scene % 3]
        for visit in range(2 if scene < 3 else 1):
            drawn = draw_field(
                np.random.default_rng(scene),
                [kind],
                stage=SHIFTS[scene] if visit else (0, 0),
                camera=np.random.default_rng([scene, visit]),
            )
            name = f"s{scene}v{visit}.png"
            (folder / name).write_bytes(encode_png(drawn.image))
            label = "MONOCYTE" if (scene, visit) == (1, 1) else kind
            lines.append(f"{name},{label}")
    shutil.copy(folder / "s4v0.png", folder / "again.png")
    lines.append("again.png,LYMPHOCYTE")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines.append("broken.png,LYMPHOCYTE")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def manifest(slide: Path) -> Manifest:
    return scan(slide / "labels.csv")


@pytest.fixture(scope="module")
def pairs(manifest: Manifest) -> list[SameCell]:
    return find_same_cells(manifest)


def test_finds_exactly_the_second_photographs(pairs: list[SameCell]) -> None:
    found = {frozenset((p.image_a, p.image_b)) for p in pairs}
    assert found == {
        frozenset(("s0v0.png", "s0v1.png")),
        frozenset(("s1v0.png", "s1v1.png")),
        frozenset(("s2v0.png", "s2v1.png")),
        frozenset(("s4v0.png", "again.png")),
    }
    assert all(0.85 <= p.score <= 1.001 for p in pairs)


def test_says_how_far_the_stage_was_moved(pairs: list[SameCell]) -> None:
    by_image = {p.image_a: p for p in pairs}
    for scene in (1, 2):
        pair = by_image[f"s{scene}v0.png"]
        assert np.abs(np.abs(pair.shift) - np.abs(SHIFTS[scene])).max() < 9
        assert len(pair.cells) == 1


def test_names_contradicting_labels(pairs: list[SameCell], manifest: Manifest) -> None:
    assert [p.image_a for p in pairs if p.conflict] == ["s1v0.png"]
    table = group_same_cells(manifest, pairs).table
    told = table.filter(pl.col("issues").list.contains("label_conflict"))["image"].to_list()
    assert sorted(told) == ["s1v0.png", "s1v1.png"]


def test_groups_are_joined_through_a_third_image() -> None:
    names = ["a", "b", "c", "d", "e"]
    base = {name: [None] * 5 for name in SCHEMA} | {
        "image": names,
        "group": ["a", "b", "c", "d", "d"],
        "labels": [[]] * 5,
        "issues": [[]] * 5,
    }
    manifest = Manifest(pl.DataFrame(base, schema=SCHEMA), Path(), "five", "csv")

    def pair(a: str, b: str) -> SameCell:
        return SameCell(a, b, 0.95, 20.0, 0.5, (0.0, 0.0), ())

    grouped = group_same_cells(manifest, [pair("a", "c"), pair("e", "c")])
    assert grouped.table["group"].to_list() == ["a", "b", "a", "a", "a"]
    assert group_same_cells(manifest, []).table["group"].to_list() == base["group"]


def test_grouping_twice_changes_nothing(manifest: Manifest, pairs: list[SameCell]) -> None:
    once = group_same_cells(manifest, pairs)
    assert group_same_cells(once, pairs).table.equals(once.table)
    assert once.table["group"].n_unique() == manifest.table["group"].n_unique() - 3


def test_a_set_has_one_scale_for_each_picture_size(manifest: Manifest) -> None:
    table = manifest.table.filter(manifest.table["width"].is_not_null())
    rows = table.select("path", "width", "height").rows()
    scales = measure_set_scales(manifest.root, [*rows, ("none.png", 640, 480), ("no.png", 3, 4)])
    assert set(scales) == {(height, width) for _, width, height in rows}
    assert all(scale > 0 for scale in scales.values())
    assert measure_set_scales(manifest.root, []) == {}


def test_landmarks_do_not_depend_on_the_number_of_threads(manifest: Manifest) -> None:
    from threadpoolctl import threadpool_limits

    fields = audit._read_fields(manifest)
    described = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            described.append(audit._describe(fields)[0])
    assert described[0].shape[1] == 16
    np.testing.assert_array_equal(*described)


def test_a_re_encoded_picture_without_cells_is_a_copy(tmp_path: Path) -> None:
    drawn = draw_field(np.random.default_rng(9), []).image
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "a.png").write_bytes(encode_png(drawn))
    (tmp_path / "A" / "b.jpg").write_bytes(encode_jpeg(drawn, quality=70))
    (tmp_path / "A" / "c.png").write_bytes(
        encode_png(draw_field(np.random.default_rng(10), []).image)
    )
    found = find_same_cells(scan(tmp_path))
    assert [(p.image_a, p.image_b) for p in found] == [("A/a.png", "A/b.jpg")]


def test_real_fields(real_data: Path) -> None:
    manifest = scan(real_data / "blood-cells")
    wanted = ("00204", "00205", "00206", "00276", "00277", "00278")
    part = manifest.with_table(
        manifest.table.filter(pl.col("image").str.slice(-5).is_in([*wanted, "00100", "00300"]))
    )
    found = find_same_cells(part)
    assert [(p.image_a[-5:], p.image_b[-5:]) for p in found] == [
        ("00204", "00277"),
        ("00205", "00276"),
        ("00206", "00278"),
    ]
    assert [p.conflict for p in found] == [False, False, True]
