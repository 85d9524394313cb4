"""Which images show the same cell: the kind of each pair, the groups, contradicting labels."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from leuko.data.copies import (
    Pair,
    describe_conflicts,
    describe_copies,
    find_pairs,
    join_groups,
    join_sets,
)
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg, encode_png, resize_image
from leuko.data.issues import Issue
from leuko.data.manifest import SCHEMA, Manifest
from leuko.data.measurements import measure_images
from leuko.data.sources import scan

Picture = NDArray[np.uint8]
KINDS = ("NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL")
STAGES = ((45, -40), (-55, 30), (20, -50))  # px at 640 × 480


def photograph(scene: int, visit: int = 0, stage: tuple[int, int] = (0, 0)) -> Picture:
    field = draw_field(
        np.random.default_rng([5, scene]),
        [KINDS[scene % 3]],
        stage=stage,
        camera=np.random.default_rng([5, scene, visit]),
        mark=False,
    )
    return resize_image(field.image, 240, 320)


def turn(picture: Picture, degrees: float, *, mirrored: bool = False) -> Picture:
    if mirrored:
        picture = np.ascontiguousarray(picture[:, ::-1])
    matrix = cv2.getRotationMatrix2D((159.5, 119.5), -degrees, 1.0)  # clockwise, as y goes down
    return np.asarray(cv2.warpAffine(picture, matrix, (320, 240)))


def encode_bmp(picture: Picture) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "BMP")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes; some of them photographed twice, copied, re-encoded, turned."""
    folder = tmp_path_factory.mktemp("slide")
    scenes = [photograph(scene) for scene in range(8)]
    files = {f"s{scene}.png": encode_png(picture) for scene, picture in enumerate(scenes)}
    labels = {name: KINDS[int(name[1]) % 3] for name in files}

    def add(name: str, data: bytes, label: str) -> None:
        files[name], labels[name] = data, label

    for scene in (0, 1, 2):  # the slide was walked twice
        again = photograph(scene, 1, STAGES[scene])
        add(f"s{scene}again.png", encode_png(again), "MONOCYTE" if scene == 1 else KINDS[scene])
    add("s3bytes.png", files["s3.png"], "MONOCYTE")
    add("s3pixels.bmp", encode_bmp(scenes[3]), KINDS[0])
    add("s4jpeg.jpg", encode_jpeg(scenes[4], 60), KINDS[1])
    add("s5small.png", encode_png(resize_image(scenes[5], 180, 240)), KINDS[2])
    add("s6turned.jpg", encode_jpeg(turn(scenes[6], 40)), KINDS[0])
    add("s6mirrored.jpg", encode_jpeg(turn(scenes[6], 110, mirrored=True)), KINDS[0])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lines = [f"{name},{label}" for name, label in labels.items()]
    (folder / "labels.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return scan(folder / "labels.csv")


@pytest.fixture(scope="module")
def pairs(manifest: Manifest) -> list[Pair]:
    return find_pairs(manifest, measure_images(manifest))


@pytest.fixture(scope="module")
def issues(pairs: list[Pair]) -> dict[str, list[Issue]]:
    found: dict[str, list[Issue]] = {}
    for issue in describe_copies(pairs):
        found.setdefault(issue.kind, []).append(issue)
    return found


def test_exactly_the_planted_pairs_are_found_with_their_kinds(pairs: list[Pair]) -> None:
    found = {(p.a, p.b): p.kind for p in pairs}
    linked = ("s6turned.jpg", "s6mirrored.jpg")  # each with s6, and perhaps with each other
    found.pop(linked, None)
    assert found == {
        ("s0.png", "s0again.png"): "same_cell",
        ("s1.png", "s1again.png"): "same_cell",
        ("s2.png", "s2again.png"): "same_cell",
        ("s3.png", "s3bytes.png"): "exact_duplicate",
        ("s3.png", "s3pixels.bmp"): "exact_duplicate",
        ("s4.png", "s4jpeg.jpg"): "near_duplicate",
        ("s5.png", "s5small.png"): "near_duplicate",
        ("s6.png", "s6turned.jpg"): "turned_copy",
        ("s6.png", "s6mirrored.jpg"): "turned_copy",
    }
    assert all(0.85 <= p.score <= 1 and 0 < p.overlap <= 1 for p in pairs)


def test_the_movement_of_the_stage_is_measured(pairs: list[Pair]) -> None:
    again = [p for p in pairs if p.kind == "same_cell"]
    for pair, (dx, dy) in zip(again, STAGES, strict=True):
        moved = pair.matrix @ (160, 120, 1) - (160, 120)
        assert np.abs(np.abs(moved) - np.abs([dx / 2, dy / 2])).max() < 3
        assert len(pair.cells) == 1
        ((box, other),) = pair.cells
        middles = [np.array([(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, 1]) for b in (box, other)]
        assert np.abs(pair.matrix @ middles[0] - middles[1][:2]).max() < 15


def test_each_set_of_copies_is_one_issue(issues: dict[str, list[Issue]]) -> None:
    sets = {kind: {frozenset(i.images) for i in found} for kind, found in issues.items()}
    assert sets["exact_duplicate"] == {frozenset(("s3.png", "s3bytes.png", "s3pixels.bmp"))}
    assert sets["turned_copy"] == {frozenset(("s6.png", "s6turned.jpg", "s6mirrored.jpg"))}
    assert len(sets["same_cell"]) == 3
    assert len(sets["near_duplicate"]) == 2
    for found in issues.values():
        for issue in found:
            boxes = issue.evidence["boxes"]
            assert len(boxes) == len(issue.images)
            assert all(len(box) == 4 for of_image in boxes for box in of_image)


def test_details_tell_the_movement(pairs: list[Pair]) -> None:
    def tell(a: str, b: str) -> str:
        (issue,) = describe_copies([p for p in pairs if (p.a, p.b) == (a, b)])
        return issue.detail

    assert "turned by about 40°" in tell("s6.png", "s6turned.jpg")
    assert "mirrored" not in tell("s6.png", "s6turned.jpg")
    assert "mirrored and turned by about 110°" in tell("s6.png", "s6mirrored.jpg")
    assert "moved by (" in tell("s0.png", "s0again.png")
    assert tell("s3.png", "s3bytes.png") == "2 files with the same pixels"


def test_contradicting_labels_are_named(manifest: Manifest, pairs: list[Pair]) -> None:
    conflicts = describe_conflicts(manifest, pairs)
    found = {frozenset(issue.images) for issue in conflicts}
    assert found == {
        frozenset(("s1.png", "s1again.png")),
        frozenset(("s3.png", "s3bytes.png")),
    }
    (first,) = [i for i in conflicts if "s1.png" in i.images]
    assert first.detail == "s1.png is LYMPHOCYTE, s1again.png is MONOCYTE"
    assert [len(boxes) for boxes in first.evidence["boxes"]] == [1, 1]


def test_rows_of_one_image_can_contradict_each_other() -> None:
    base = {name: [None, None] for name in SCHEMA} | {
        "image": ["a.png", "a.png"],
        "label_written": ["X", "Y"],
        "labels": [["X"], ["Y"]],
        "issues": [["label_conflict"], ["label_conflict"]],
    }
    manifest = Manifest(pl.DataFrame(base, schema=SCHEMA), Path(), "two", "csv")
    (issue,) = describe_conflicts(manifest, [])
    assert (issue.images, issue.detail) == (("a.png",), "a.png is labelled X and Y")


def test_threads_change_nothing(manifest: Manifest, pairs: list[Pair]) -> None:
    again = find_pairs(manifest, measure_images(manifest), threads=2)
    assert [(p.a, p.b, p.kind, p.score, p.cells) for p in again] == [
        (p.a, p.b, p.kind, p.score, p.cells) for p in pairs
    ]


# --- groups -------------------------------------------------------------------------------


def make_manifest(groups: dict[str, str]) -> Manifest:
    base = {name: [None] * len(groups) for name in SCHEMA} | {
        "image": list(groups),
        "group": list(groups.values()),
        "labels": [[]] * len(groups),
        "issues": [[]] * len(groups),
    }
    return Manifest(pl.DataFrame(base, schema=SCHEMA), Path(), "made", "csv")


def link(a: str, b: str) -> Pair:
    return Pair(a, b, "same_cell", 0.95, 20.0, 0.5, np.eye(2, 3), (), conflict=False)


def groups_of(manifest: Manifest) -> list[str]:
    return manifest.table["group"].to_list()


def test_groups_are_joined_through_a_third_image() -> None:
    manifest = make_manifest({"a": "a", "b": "b", "c": "c", "d": "slide 1", "e": "slide 1"})
    joined = join_groups(manifest, [link("a", "c"), link("e", "c")], trust_given=True)
    assert groups_of(joined) == ["a", "b", "a", "a", "a"]
    assert groups_of(join_groups(manifest, [], trust_given=True)) == groups_of(manifest)


def test_wrong_groups_of_a_set_count_for_nothing() -> None:
    manifest = make_manifest({"a": "1", "b": "1", "c": "2", "d": "2"})
    joined = join_groups(manifest, [link("b", "c")], trust_given=False)
    assert groups_of(joined) == ["a", "b", "b", "d"]


def test_grouping_twice_changes_nothing(manifest: Manifest, pairs: list[Pair]) -> None:
    for trust in (True, False):
        once = join_groups(manifest, pairs, trust_given=trust)
        assert join_groups(once, pairs, trust_given=trust).table.equals(once.table)
        # Three second photographs, two of s3, one of s4, one of s5, two of s6.
        assert once.table["group"].n_unique() == manifest.table["image"].n_unique() - 9


def test_sets_are_joined_in_order_of_appearance() -> None:
    assert join_sets([(5, 5), (1, 2), (3, 4), (2, 4)]) == [[5], [1, 2, 3, 4]]
    assert join_sets([]) == []
    chain = [(i, i + 1) for i in range(5000)]
    assert join_sets(reversed(chain)) != []
    assert len(join_sets(chain)) == len(join_sets(reversed(chain))) == 1
