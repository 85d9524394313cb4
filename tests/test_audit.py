"""Each planted fault is found where it was planted, and a clean set has none."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from leuko.data.audit import Audit, add_issues, check_spelling, find_issues, judge_given_groups
from leuko.data.copies import Pair
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg, encode_png, resize_image
from leuko.data.issues import KINDS, Issue
from leuko.data.manifest import SCHEMA, Manifest
from leuko.data.sources import scan
from leuko.data.synthetic import INNER, write_demo_set

Picture = NDArray[np.uint8]
FEW = {"NEUTROPHIL": 6, "EOSINOPHIL": 4, "LYMPHOCYTE": 4, "MONOCYTE": 2, "BASOPHIL": 1}
# Of the kinds that are matters of degree or true of many sound sets.
BALANCE = {"imbalance", "small_class"}


def photograph(scene: int, *kinds: str, visit: int = 0, stage: tuple[int, int] = (0, 0)) -> Picture:
    """One leukocyte stands in the middle; several stand somewhere."""
    field = draw_field(
        np.random.default_rng([9, scene]),
        kinds,
        stage=stage,
        camera=np.random.default_rng([9, scene, visit]),
        blur=0.8,
        mark=False,
        centred=len(kinds) == 1,
    )
    return resize_image(field.image, 240, 320)


def turn(picture: Picture, degrees: float) -> Picture:
    matrix = cv2.getRotationMatrix2D((159.5, 119.5), degrees, 1.0)
    return np.asarray(cv2.warpAffine(picture, matrix, (320, 240)))


def multiply(picture: Picture, gain: float) -> Picture:
    return np.clip(picture * gain, 0, 255).astype(np.uint8)


# --- a set with one fault of each kind ----------------------------------------------------


def plant(folder: Path) -> None:
    """Writes 30 sound images, and those with faults; ``labels.csv`` names all but one."""
    rows: list[tuple[str, str, str]] = []

    def add(name: str, data: bytes, label: str | None = "NEUTROPHIL", split: str = "") -> None:
        (folder / name).write_bytes(data)
        if label is not None:
            rows.append((name, label, split))

    for scene in range(30):
        kind = "NEUTROPHIL" if scene < 22 else "LYMPHOCYTE" if scene < 28 else "BASOPHIL"
        picture = photograph(scene, kind)
        add(f"{scene}.png", encode_png(picture), kind, "train" if scene < 20 else "")
        if scene == 0:
            add("bytes.png", encode_png(picture), kind)
        elif scene == 1:
            tiff = folder / "packing.bmp"
            assert cv2.imwrite(str(tiff), np.ascontiguousarray(picture[..., ::-1]))
            rows.append(("packing.bmp", kind, ""))
        elif scene == 2:
            add("encoded.jpg", encode_jpeg(picture, 60), kind)
        elif scene == 3:
            add("turned.png", encode_png(turn(picture, 50)), kind, "test")
        elif scene == 4:
            again = photograph(scene, kind, visit=1, stage=(40, -30))
            add("again.png", encode_png(again), "LYMPHOCYTE")

    def new(scene: int, *kinds: str) -> Picture:
        return photograph(100 + scene, *(kinds or ("NEUTROPHIL",)))

    jpeg = encode_jpeg(new(0))
    add("cut.jpg", jpeg[: len(jpeg) // 2] + b"\xff\xd9")
    add("padded.jpg", encode_jpeg(new(1)) + bytes(500))
    add("broken.png", b"This is no picture.")
    add("png.jpg", encode_png(new(2)))
    add("blank.png", encode_png(new(3)), "")
    add("two.png", encode_png(new(4, "NEUTROPHIL", "LYMPHOCYTE")), "NEUTROPHIL, LYMPHOCYTE")
    add("spelt.png", encode_png(new(5)), "Neutrophils")
    add("empty.png", encode_png(photograph(106)))
    add("more.png", encode_png(new(7, "NEUTROPHIL", "NEUTROPHIL")))
    add("blurred.png", encode_png(np.asarray(cv2.GaussianBlur(new(8), (0, 0), 3))))
    add("dark.png", encode_png(multiply(new(9), 0.4)))
    add("bright.png", encode_png(multiply(new(10), 1.8)))
    add("swapped.png", encode_png(np.ascontiguousarray(new(11)[..., ::-1])))
    rows.append(("missing.png", "NEUTROPHIL", ""))
    lines = [f'{name},"{label}",{split}' for name, label, split in rows]
    (folder / "labels.csv").write_text("\n".join(["image,label,split", *lines]) + "\n")


PLANTED = {
    "unreadable": {"broken.png"},
    "damaged": {"cut.jpg", "padded.jpg"},
    "wrong_extension": {"png.jpg"},
    "no_image": {"missing.png"},
    "no_label": {"blank.png"},
    "many_labels": {"two.png"},
    "spelling": {"spelt.png"},
    "exact_duplicate": {"0.png", "bytes.png", "1.png", "packing.bmp"},
    "near_duplicate": {"2.png", "encoded.jpg"},
    "turned_copy": {"3.png", "turned.png"},
    "same_cell": {"4.png", "again.png"},
    "label_conflict": {"4.png", "again.png"},
    "split_leak": {"3.png", "turned.png"},
    "no_leukocyte": {"empty.png"},
    "more_leukocytes": {"more.png"},
    "blurred": {"blurred.png"},
    "underexposed": {"dark.png"},
    "overexposed": {"bright.png"},
    "unusual_colour": {"swapped.png"},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("planted")
    plant(folder)
    return find_issues(scan(folder / "labels.csv"))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found_where_it_is_and_nowhere_else(kind: str, planted: Audit) -> None:
    found = {image for i in planted.issues if i.kind == kind for image in i.images}
    assert found == PLANTED[kind]


def test_faults_of_the_whole_set_name_no_image(planted: Audit) -> None:
    assert {i.kind for i in planted.issues} == {*PLANTED, *BALANCE}
    assert [i.images for i in planted.issues if i.kind in BALANCE] == [(), ()]
    details = {i.kind: i.detail for i in planted.issues if i.kind in BALANCE}
    assert "BASOPHIL 2" in details["imbalance"]
    assert details["small_class"] == "BASOPHIL has 2 groups of images; 5 folds need 5"


def test_codes_are_written_on_the_rows(planted: Audit) -> None:
    rows = planted.manifest.table.select("image", "issues").rows()
    for kind, images in PLANTED.items():
        assert {image for image, codes in rows if kind in codes} == images
    assert all(len(set(codes)) == len(codes) for _, codes in rows)
    assert planted.manifest.audited
    sound = dict(rows)["10.png"]
    assert sound == []


def test_groups_are_joined(planted: Audit) -> None:
    assert {frozenset(group) for group in planted.groups} == {
        frozenset(("0.png", "bytes.png")),
        frozenset(("1.png", "packing.bmp")),
        frozenset(("2.png", "encoded.jpg")),
        frozenset(("3.png", "turned.png")),
        frozenset(("4.png", "again.png")),
    }


def test_issues_are_in_the_order_of_the_kinds_the_worst_first(planted: Audit) -> None:
    order = list(KINDS)
    places = [(order.index(i.kind), -i.score) for i in planted.issues]
    assert places == sorted(places)
    assert all(0 <= i.score <= 1 and i.detail for i in planted.issues)


def test_json_has_the_keys_that_programs_rely_on(planted: Audit) -> None:
    told = json.loads(json.dumps(planted.to_json()))
    assert (
        told["images"]
        == planted.manifest.table.filter(pl.col("path").is_not_null())["image"].n_unique()
    )
    assert told["rows"] == len(planted.manifest)
    assert len(told["issues"]) == len(planted.issues)
    for issue in told["issues"]:
        assert {"kind", "images", "detail"} <= set(issue)
        assert issue["kind"] in told["looked_for"]
    assert "likely_wrong_label" not in told["looked_for"]
    assert sorted(map(sorted, told["groups"])) == sorted(map(sorted, planted.groups))
    assert planted.count()["exact_duplicate"] == 2


def test_scores_have_one_row_per_measured_image(planted: Audit) -> None:
    scores = planted.scores
    assert scores["image"].to_list() == list(planted.measured)
    values = scores.drop("image").to_numpy()
    assert ((values >= 0) & (values <= 1)).all()
    worst = {kind: scores["image"][int(scores[kind].arg_max() or 0)] for kind in scores.columns[1:]}
    assert {kind: {image} for kind, image in worst.items()} == {
        kind: PLANTED[kind] for kind in worst
    }


def test_issues_that_are_added_later_are_sorted_in(planted: Audit) -> None:
    issue = Issue("likely_wrong_label", ("10.png",), "models say MONOCYTE", 0.9)
    audit = add_issues(planted, [issue])
    assert len(audit.issues) == len(planted.issues) + 1
    after = [i.kind for i in audit.issues]
    assert after == sorted(after, key=list(KINDS).index)
    codes = dict(audit.manifest.table.select("image", "issues").iter_rows())
    assert codes["10.png"] == ["likely_wrong_label"]
    assert add_issues(audit, []).manifest.table.equals(audit.manifest.table)


def test_a_file_that_vanished_since_the_scan_is_an_issue(tmp_path: Path) -> None:
    for scene in range(3):
        picture = photograph(200 + scene, "LYMPHOCYTE")
        (tmp_path / f"{scene}.png").write_bytes(encode_png(picture))
    lines = ["image,label", *(f"{scene}.png,LYMPHOCYTE" for scene in range(3))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    manifest = scan(tmp_path / "labels.csv")
    (tmp_path / "1.png").unlink()
    said: list[str] = []
    audit = find_issues(manifest, folds=1, say=lambda what, done, total: said.append(what))
    assert [(i.kind, i.images) for i in audit.issues] == [("unreadable", ("1.png",))]
    assert list(dict.fromkeys(said)) == ["measuring images", "comparing pictures"]


# --- rows alone ---------------------------------------------------------------------------


def make_manifest(rows: list[tuple[str, str, list[str]]], layout: str = "csv") -> Manifest:
    """Rows of image, written label, labels."""
    base = {name: [None] * len(rows) for name in SCHEMA} | {
        "image": [row[0] for row in rows],
        "label_written": [row[1] for row in rows],
        "labels": [row[2] for row in rows],
        "group": [row[0] for row in rows],
        "issues": [[] for _ in rows],
    }
    return Manifest(pl.DataFrame(base, schema=SCHEMA), Path(), "made", layout)


def test_spellings_are_told_as_they_are_written() -> None:
    manifest = make_manifest([
        ("a", "Monocyte", ["Monocyte"]),
        ("b", "Monocyte", ["Monocyte"]),
        ("c", "MONOCYTE", ["Monocyte"]),  # as scan merges what differs in case only
        ("d", "monocytes, Basophil", ["Monocyte", "Basophil"]),
        ("e", "Basophil", ["Basophil"]),
        ("f", "Basophil", ["Eosinophil"]),  # a person has changed it
        ("g", "", []),
    ])  # fmt: skip
    (issue,) = check_spelling(manifest)
    assert issue.images == ("c", "d")
    assert issue.detail == "one class in 3 spellings: 'Monocyte' 2, 'MONOCYTE' 1, 'monocytes' 1"


def test_groups_of_a_set_are_believed_if_their_pictures_are_alike() -> None:
    rows = [(f"{group}_{k}", "X", ["X"]) for group in range(10) for k in range(4)]
    manifest = make_manifest(rows, "kaggle-augmented")
    named = pl.Series("group", [row[0].split("_")[0] for row in rows])
    manifest = manifest.with_table(manifest.table.with_columns(named))

    def pair(a: str, b: str) -> Pair:
        return Pair(a, b, "turned_copy", 0.9, 10.0, 0.9, np.eye(2, 3), (), conflict=False)

    alike = [pair(f"{g}_0", f"{g}_{k}") for g in range(10) for k in (1, 2)]
    assert judge_given_groups(manifest, alike) == (True, [])
    mixed = [pair(f"{g}_0", f"{(g + 1) % 10}_1") for g in range(10)]
    trusted, (issue,) = judge_given_groups(manifest, [*mixed, alike[0]])
    assert not trusted
    assert issue.kind == "wrong_group"
    assert "only 2 of them (5%)" in issue.detail
    # Elsewhere a group may be a patient, which no picture shows.
    assert judge_given_groups(replace(manifest, layout="csv"), mixed) == (True, [])


# --- the demo set -------------------------------------------------------------------------


def read_pairs(folder: Path) -> set[frozenset[str]]:
    with (folder / "pairs.csv").open(newline="") as file:
        return {frozenset((row["first"], row["second"])) for row in csv.DictReader(file)}


def check_demo(folder: Path) -> Audit:
    """Only the faults that the demo set has on purpose are found."""
    audit = find_issues(scan(folder))
    found: dict[str, list[Issue]] = {}
    for issue in audit.issues:
        found.setdefault(issue.kind, []).append(issue)
    twice = read_pairs(folder)
    assert {k: len(v) for k, v in found.items() if k not in BALANCE} == {
        "no_image": 1,
        "no_label": 1,
        "many_labels": 6,
        "same_cell": len(twice),
    }
    assert {frozenset(issue.images) for issue in found["same_cell"]} == twice
    assert {frozenset(group) for group in audit.groups} == twice
    return audit


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_small_demo_set_has_only_its_own_faults(seed: int, tmp_path: Path) -> None:
    check_demo(write_demo_set(tmp_path / "set", seed=seed, counts=FEW))


def test_the_demo_set_has_only_its_own_faults(tmp_path: Path) -> None:
    audit = check_demo(write_demo_set(tmp_path / "set"))
    assert {i.kind for i in audit.issues if not KINDS[i.kind].hard} == BALANCE


def test_drawn_boxes_are_counted_against_labels(tmp_path: Path) -> None:
    folder = write_demo_set(tmp_path / "set", seed=4, counts={"LYMPHOCYTE": 3}, pairs=0)
    manifest = scan(folder)
    one = manifest.table.filter(pl.col("label") == "LYMPHOCYTE")["image"][0]
    file = folder / INNER / "Annotations" / f"{one}.xml"
    text = file.read_text()
    start, end = text.index("\t<object>"), text.index("</object>") + len("</object>\n")
    assert "WBC" in text[start:end]
    file.write_text(text[:end] + text[start:end] + text[end:])
    other = manifest.table.filter(pl.col("label") == "LYMPHOCYTE")["image"][1]
    (folder / INNER / "Annotations" / f"{other}.xml").write_text("no annotation")
    audit = find_issues(manifest)
    (issue,) = [i for i in audit.issues if i.kind == "box_count"]
    assert issue.images == (one,)
    assert issue.detail == "2 drawn, 1 labelled"
    assert len(issue.evidence["boxes"][0]) == 2
    assert other not in audit.drawn


# --- real images --------------------------------------------------------------------------


def test_real_fields(real_data: Path) -> None:
    manifest = scan(real_data / "blood-cells")
    wanted = ("00204", "00205", "00206", "00276", "00277", "00278", "00100", "00300")
    part = manifest.table.filter(pl.col("image").str.slice(-5).is_in(wanted))
    audit = find_issues(manifest.with_table(part))
    assert [(p.a[-5:], p.b[-5:], p.kind) for p in audit.pairs] == [
        ("00204", "00277", "same_cell"),
        ("00205", "00276", "same_cell"),
        ("00206", "00278", "same_cell"),
    ]
    assert [p.conflict for p in audit.pairs] == [False, False, True]
    assert {i.kind for i in audit.issues} - BALANCE <= {
        "same_cell", "label_conflict", "box_count", "more_leukocytes",
    }  # fmt: skip
