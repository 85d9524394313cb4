"""Sets as people have them: what scan makes of each, and one clear message where it can't."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leuko.data import synthetic
from leuko.data.annotations import Box, read_boxes
from leuko.data.downloads import fetch
from leuko.data.image import encode_jpeg, encode_png
from leuko.data.manifest import Manifest
from leuko.data.sources import scan
from leuko.errors import (
    AnnotationError,
    DownloadError,
    LabelTableError,
    LeukoError,
    MissingExtraError,
    NoImagesError,
    UnknownNameError,
)


def draw(path: Path, seed: int = 0) -> Path:
    """A small image of its own; the type follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    path.write_bytes(encode_png(pixels) if path.suffix == ".png" else encode_jpeg(pixels))
    return path


def write_raw(folder: Path, images: int = 5) -> Path:
    inner = folder / "dataset-master" / "dataset-master"
    for number in range(images):
        draw(inner / "JPEGImages" / f"BloodImage_{number:05d}.jpg", number)
    (inner / "Annotations").mkdir()
    lines = [",Image,Category", ",0,NEUTROPHIL", ",1,", ",7,", ',2,"A, B"', ",3,MONOCYTE"]
    (inner / "labels.csv").write_bytes("\r\n".join([*lines, ",9,MONOCYTE"]).encode())
    return inner


def write_augmented(folder: Path) -> Path:
    images = folder / "dataset2-master" / "dataset2-master" / "images"
    seed = 100
    for split in ("TRAIN", "TEST", "TEST_SIMPLE"):
        for kind in ("NEUTROPHIL", "EOSINOPHIL"):
            for name in ("_17_1.jpeg", "_17_22.jpeg", "_3_5.jpeg"):
                draw(images / split / kind / name, seed := seed + 1)
    return images


def issues(manifest: Manifest) -> dict[str, list[str]]:
    rows = zip(manifest.table["image"], manifest.table["issues"].to_list(), strict=True)
    return {image: found for image, found in rows if found}


def column(manifest: Manifest, name: str) -> list[object]:
    return manifest.table[name].to_list()


# The Kaggle set


def test_raw_layout(tmp_path: Path) -> None:
    inner = write_raw(tmp_path)
    manifest = scan(tmp_path)
    assert (manifest.layout, manifest.root) == ("kaggle-raw", inner.resolve())
    assert column(manifest, "row") == [1, 2, 3, 4, 5, 6, None]
    assert column(manifest, "image") == [f"BloodImage_0000{n}" for n in (0, 1, 7, 2, 3, 9, 4)]
    assert column(manifest, "label") == ["NEUTROPHIL", *[None] * 3, *["MONOCYTE"] * 2, None]
    assert column(manifest, "labels")[3] == ["A", "B"]
    assert column(manifest, "label_written")[1:4] == ["", "", "A, B"]
    assert issues(manifest) == {
        "BloodImage_00001": ["blank_label"],
        "BloodImage_00007": ["blank_label", "no_image"],
        "BloodImage_00002": ["many_labels"],
        "BloodImage_00009": ["no_image"],
        "BloodImage_00004": ["no_label"],
    }
    first = manifest.table.row(0, named=True)
    data = (inner / "JPEGImages/BloodImage_00000.jpg").read_bytes()
    assert first["sha256"] == hashlib.sha256(data).hexdigest()
    assert (first["bytes"], first["width"], first["height"]) == (len(data), 20, 16)
    assert first["path"] == "JPEGImages/BloodImage_00000.jpg"
    assert first["group"] == first["image"]


@pytest.mark.parametrize(
    "given",
    ["..", ".", "dataset-master", "dataset-master/dataset-master"]
    + [f"dataset-master/dataset-master/{name}" for name in ("JPEGImages", "labels.csv")],
)
def test_raw_layout_from_above_and_below(tmp_path: Path, given: str) -> None:
    write_raw(tmp_path / "up" / "set")
    manifest = scan(tmp_path / "up" / "set" / given)
    assert (manifest.layout, len(manifest)) == ("kaggle-raw", 7)


def test_augmented_layout_keeps_split_and_source(tmp_path: Path) -> None:
    images = write_augmented(tmp_path)
    for given in (tmp_path, images, images.parent, images.parent.parent):
        manifest = scan(given)
        assert (manifest.layout, manifest.root) == ("kaggle-augmented", images.resolve())
    assert len(manifest) == 18
    row = next(r for r in manifest.table.to_dicts() if r["image"] == "TRAIN/NEUTROPHIL/_17_22.jpeg")
    assert (row["group"], row["split"], row["label"]) == (
        "TRAIN/NEUTROPHIL/17",
        "TRAIN",
        "NEUTROPHIL",
    )
    assert manifest.table["group"].n_unique() == 12
    only = scan(images / "TEST")
    assert set(column(only, "split")) == {"TEST"}
    assert column(only, "group")[0] == "TEST/EOSINOPHIL/17"
    assert len(scan(images / "TEST" / "NEUTROPHIL")) == 3


def test_of_both_kaggle_sets_the_raw_one_is_taken(tmp_path: Path) -> None:
    write_raw(tmp_path)
    images = write_augmented(tmp_path)
    manifest = scan(tmp_path)
    assert manifest.layout == "kaggle-raw"
    assert str(images.parent) in manifest.notes[0]
    assert scan(images.parent).layout == "kaggle-augmented"


def test_the_real_set(real_data: Path) -> None:
    manifest = scan(real_data / "blood-cells")
    assert len(manifest) == 411
    assert manifest.table["path"].n_unique() - 1 == 367
    found = Counter(issue for row in manifest.table["issues"].to_list() for issue in row)
    assert found == {"blank_label": 44, "no_image": 44, "many_labels": 15}
    folder = real_data / "blood-cells/dataset-master/dataset-master/Annotations"
    boxes = [box for file in sorted(folder.iterdir()) for box in read_boxes(file)]
    assert {box.name for box in boxes} == {"RBC", "WBC", "Platelets"}
    assert all(0 <= b.x0 < b.x1 <= 640 and 0 <= b.y0 < b.y1 <= 480 for b in boxes)


def test_raw_without_labels_is_named(tmp_path: Path) -> None:
    inner = write_raw(tmp_path)
    (inner / "labels.csv").unlink()
    for given in (inner, inner / "JPEGImages"):
        with pytest.raises(LabelTableError, match=r"no labels\.csv"):
            scan(given)


# Class folders


def test_class_folders(tmp_path: Path) -> None:
    for n, name in enumerate(["b/2.png", "b/1.png", "a/1.jpg", "a/deep/er/3.png", "a/noname"]):
        draw(tmp_path / "set" / name, n)
    (tmp_path / "set/a/.DS_Store").write_bytes(b"x")
    (tmp_path / "set/a/notes.txt").write_text("x")
    (tmp_path / "set/a/bad.png").write_text("no image")
    (tmp_path / "set/a/new.webp").write_bytes(b"RIFF0000WEBP")
    (tmp_path / "set/c").mkdir()
    above = scan(tmp_path)  # a lone folder around is no class
    draw(tmp_path / "set" / "stray.png", 9)
    manifest = scan(tmp_path / "set")
    assert column(above, "image") == column(manifest, "image")
    assert (manifest.layout, manifest.name) == ("class-folders", "set")
    wanted = ["a/1.jpg", "a/bad.png", "a/deep/er/3.png", "a/new.webp", "a/noname", "b/1.png"]
    assert column(manifest, "image") == [*wanted, "b/2.png"]
    assert column(manifest, "group") == column(manifest, "image")
    assert manifest.counts() == {"a": 5, "b": 2}
    assert issues(manifest) == {
        "a/bad.png": ["unreadable:not_an_image"],
        "a/new.webp": ["unreadable:format"],
    }
    told = " ".join(manifest.notes)
    for word in ("a/.DS_Store", "a/notes.txt", "stray.png", "Empty class folders: c"):
        assert word in told


def test_given_splits_are_no_classes(tmp_path: Path) -> None:
    for n, name in enumerate(["train/a/1.png", "train/b/1.png", "test/a/1.png", "val/b/2.png"]):
        draw(tmp_path / name, n)
    manifest = scan(tmp_path)
    assert column(manifest, "split") == ["TEST", "TRAIN", "TRAIN", "VAL"]
    assert manifest.counts() == {"a": 2, "b": 2}


def test_splits_have_one_name_each_however_they_are_written(tmp_path: Path) -> None:
    names = {"Training": "TRAIN", "TESTING": "TEST", "Valid": "VAL", "validation": "VAL"}
    for n, name in enumerate(names):
        draw(tmp_path / "set" / name / "a" / "1.png", n)
    manifest = scan(tmp_path / "set")
    assert {image.split("/")[0]: s for image, s in manifest.table["image", "split"].rows()} == names
    draw(tmp_path / "p.png")
    draw(tmp_path / "q.png", 1)
    (tmp_path / "l.csv").write_text("image,label,split\np.png,N,train\nq.png,N,Site B\n")
    assert column(scan(tmp_path / "l.csv"), "split") == ["TRAIN", "Site B"]


def test_linked_class_folders_are_read_and_loops_are_told(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "1.png", 1)
    draw(tmp_path / "elsewhere" / "deep" / "2.png", 2)
    draw(tmp_path / "set" / "a" / "3.png", 3)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path)
    manifest = scan(tmp_path / "set")
    assert column(manifest, "image") == ["a/3.png", "b/1.png", "b/deep/2.png"]
    assert issues(manifest) == {}
    loops = [note for note in manifest.notes if "leads back to" in note]
    assert len(loops) == 2
    assert "a/up leads back" in loops[0]
    assert "b/deep/back leads back" in loops[1]


def forbid(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Makes folders unreadable, for root too."""
    secret = {str(folder) for folder in folders}

    def guard(real: Callable[..., object]) -> Callable[..., object]:
        def look(path: object = ".", *args: object, **options: object) -> object:
            name = "" if isinstance(path, int) else os.fspath(path)  # type: ignore[call-overload]
            for folder in secret:
                inside = name.startswith(folder + "/")
                if inside or (name == folder and real not in stats):
                    raise PermissionError(13, "Permission denied", name)
            return real(path, *args, **options)

        return look

    stats = (os.stat, os.lstat)
    for name in ("scandir", "listdir", "stat", "lstat"):
        monkeypatch.setattr(os, name, guard(getattr(os, name)))


def test_folders_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw")
    augmented = write_augmented(tmp_path / "augmented")
    for n, name in enumerate(["a/1.png", "b/2.png"]):
        draw(tmp_path / "set" / name, n)
        draw(tmp_path / "lost" / name, n)
    secret = [tmp_path / "set" / "b", tmp_path / "lost" / "a", tmp_path / "lost" / "b"]
    secret += [raw / "JPEGImages", augmented / "TEST" / "EOSINOPHIL"]
    forbid(monkeypatch, *secret)
    for given, lost in ((tmp_path / "set", secret[0]), (tmp_path / "augmented", secret[4])):
        manifest = scan(given)
        assert f"{lost} can't be read (Permission denied) and was left out." in manifest.notes
        assert not any("Empty" in note for note in manifest.notes)
    for given, lost in ((tmp_path / "lost", secret[1]), (raw, secret[3])):
        with pytest.raises(NoImagesError) as caught:
            scan(given)
        assert f"{lost} can't be read" in str(caught.value)
    with pytest.raises(NoImagesError, match="can't be read"):
        scan(secret[0])


def test_order_does_not_depend_on_the_folder_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(12):
        draw(tmp_path / "ab"[n % 2] / f"{n * 7 % 12}.png", n)
    expected = scan(tmp_path, threads=1).table
    walk = os.walk

    def backwards(*args: object, **options: object) -> object:
        for place, folders, names in walk(*args, **options):  # type: ignore[call-overload]
            folders.reverse()
            yield place, folders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert scan(tmp_path, threads=3).table.equals(expected)


def test_same_bytes_share_a_group_and_conflicts_are_flagged(tmp_path: Path) -> None:
    for name, seed in {"a/1.png": 1, "a/2.png": 1, "b/3.png": 1, "b/4.png": 2}.items():
        draw(tmp_path / name, seed)
    for name in ("a/e1.png", "b/e2.png"):  # unreadable files are nobody's duplicates
        (tmp_path / name).write_bytes(b"")
    manifest = scan(tmp_path)
    groups = dict(zip(manifest.table["image"], manifest.table["group"], strict=True))
    assert len({groups[n] for n in ("a/1.png", "a/2.png", "b/3.png")}) == 1
    assert len(set(groups.values())) == 4
    assert issues(manifest)["b/3.png"] == ["label_conflict", "same_bytes"]
    assert issues(manifest)["a/e1.png"] == ["unreadable:empty"]
    assert "b/4.png" not in issues(manifest)


def test_class_names_that_differ_in_case_are_merged(tmp_path: Path) -> None:
    for n, name in enumerate(["Mono/1.png", "Mono/2.png", "MONO/3.png", "other/4.png"]):
        draw(tmp_path / name, n)
    manifest = scan(tmp_path)
    assert manifest.counts() == {"Mono": 3, "other": 1}
    assert issues(manifest) == {"MONO/3.png": ["spelling"]}
    assert column(manifest, "label_written")[0] == "MONO"
    assert any("'MONO' is taken as 'Mono'" in note for note in manifest.notes)


def test_odd_files_stay_rows_and_block_nothing(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "<img src=x onerror=alert(1)>\n=cmd.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    bad = os.fsencode(tmp_path / "a") + b"/\xff.png"
    Path(os.fsdecode(bad)).write_bytes(b"x")
    manifest = scan(tmp_path)
    assert len(manifest) == 3
    assert issues(manifest) == {
        "a/gone.png": ["unreadable:not_found"],
        "a/pipe.png": ["unreadable:not_a_file"],
    }
    assert any("aren't UTF-8" in note for note in manifest.notes)


# CSV

PLAIN = "image,label,group\na.png,N,p1\nsub/b.png,E,p1\nc.png,N,p2\n"


def write_images(folder: Path) -> None:
    for seed, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        draw(folder / name, seed)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace("/", "\\").encode(),
        PLAIN.replace(",", " , ").replace("\n", " \n").encode(),
        PLAIN.replace("a.png", '"a.png"').replace("image", "Image").encode(),
        ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n")).encode("utf-8-sig"),
        ('"sep=|"\n' + PLAIN.replace(",", "|")).encode(),
        ("SEP=\t\n" + PLAIN.replace(",", "\t")).encode("utf-16"),
        ("\n" + PLAIN.replace("c.png", "./sub/../c.png") + "\n,,\n").encode(),
        PLAIN.replace("image,label,group", "x,group,LABEL,image")
        .replace("a.png,N,p1", "1,p1,N,a.png")
        .replace("sub/b.png,E,p1", "2,p1,E,sub/b.png")
        .replace("c.png,N,p2", "3,p2,N,c.png")
        .encode(),
    ],
)
def test_csv_as_people_save_them(tmp_path: Path, data: bytes) -> None:
    write_images(tmp_path)
    (tmp_path / "my.csv").write_bytes(data)
    manifest = scan(tmp_path / "my.csv")
    assert manifest.layout == "csv"
    assert column(manifest, "image") == ["a.png", "sub/b.png", "c.png"]
    assert column(manifest, "label") == ["N", "E", "N"]
    assert column(manifest, "group") == ["p1", "p1", "p2"]
    assert issues(manifest) == {}


def test_a_folder_with_one_csv_and_flat_images(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with pytest.raises(LabelTableError, match="1 images but no labels"):
        scan(tmp_path)
    (tmp_path / "l.csv").write_text("image,label\na.png,N\n")
    assert scan(tmp_path).layout == "csv"
    (tmp_path / "m.csv").write_text("image,label\na.png,N\n")
    with pytest.raises(LabelTableError, match="2 CSV files"):
        scan(tmp_path)


def test_a_table_beside_folders_is_not_passed_over(tmp_path: Path) -> None:
    for number, name in enumerate(("one/0.png", "one/1.png", "two/2.png")):
        draw(tmp_path / name, number)
    table = tmp_path / "labels.csv"
    table.write_text("image,label\none/0.png,ONE\none/1.png,one\ntwo/2.png,Two\n")
    assert scan(tmp_path).layout == "class-folders", "both say the same"
    table.write_text("image,label\none/0.png,N\none/1.png,E\ntwo/2.png,N\n")
    with pytest.raises(LabelTableError, match=r"both folders \(one, two\) and labels\.csv"):
        scan(tmp_path)
    assert column(scan(table), "label") == ["N", "E", "N"]
    table.write_text("name,age\none/0.png,7\n")
    assert scan(tmp_path).layout == "class-folders", "no table of labels"


def test_a_lone_folder_of_images_beside_a_table_is_no_class(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "0.png", 0)
    draw(tmp_path / "images" / "1.png", 1)
    (tmp_path / "labels.csv").write_text("image,label\nimages/0.png,N\nimages/1.png,E\n")
    manifest = scan(tmp_path)
    assert column(manifest, "label") == ["N", "E"]
    assert "labels.csv, not the name of its folder" in manifest.notes[0]


def test_labels_stay_text(tmp_path: Path) -> None:
    for n in range(5):
        draw(tmp_path / f"{n}.png", n)
    text = "image,label\n0.png,NA\n1.png,007\n2.png,1e5\n3.png,Größe\n4.png,null\n"
    (tmp_path / "l.csv").write_bytes(text.encode("cp1252"))
    manifest = scan(tmp_path / "l.csv")
    assert column(manifest, "label") == ["NA", "007", "1e5", "Größe", "null"]
    assert column(manifest, "group") == column(manifest, "image")
    assert "cp1252" in manifest.notes[0]


def test_rows_with_faults_are_kept_and_flagged(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = ["a.png,N", "a.png,E", "c.png,N", "./c.png,n", "none.png,N", "sub/b.png,", ",N"]
    (tmp_path / "l.csv").write_text("\n".join(["image,label", *rows, 'sub/b.png,"N, N"']))
    manifest = scan(tmp_path / "l.csv")
    assert [r["issues"] for r in manifest.table.to_dicts()] == [
        ["label_conflict"],
        ["label_conflict"],
        [],
        ["spelling", "repeated_row"],
        ["no_image"],
        ["blank_label"],
        ["no_image"],
        ["many_labels"],
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image,label\n../x.png,N\n", "outside"),
        ("image,label\nsub/../../x.png,N\n", "outside"),
        ("image,label\n/etc/passwd,N\n", "outside"),
        ("image,label\nC:\\x.png,N\n", "outside"),
        ("image,label\n..\\x.png,N\n", "outside"),
        ("image,label\n\\\\host\\share\\x.png,N\n", "outside"),
        ("picture,label\na.png,N\n", "no column 'image'; found: 'picture', 'label'"),
        ("image;class\na.png;N\n", "no column 'label' or 'category'"),
        ("image,label,label\na.png,N,N\n", "2 columns"),
        ("image,label\na.png,N, E\n", "row 1 has 3 values"),
        ('image,label\na.png,"N\n', "quotation mark"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("just a text\nof two lines\n", "no column 'image'"),
        ("image,label\na.png\0,N\n", "isn't a text file"),
        ("image,label\n" + "x" * 200_000 + ",N\n", "no table that can be read"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, told: str) -> None:
    write_images(tmp_path)
    (tmp_path / "l.csv").write_text(text, newline="")
    with pytest.raises(LabelTableError) as caught:
        scan(tmp_path / "l.csv")
    assert told in str(caught.value)
    assert "expected" in str(caught.value)


def test_absolute_paths_inside_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "l.csv").write_text(f"image,label\n{tmp_path.resolve()}/sub/b.png,N\n")
    assert column(scan(tmp_path / "l.csv"), "image") == ["sub/b.png"]


def test_absolute_paths_through_a_link_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path / "here")
    link = tmp_path / "link"
    link.symlink_to("here")
    (tmp_path / "here/l.csv").write_text(f"image,label\n{link}/sub/b.png,N\n")
    assert column(scan(link / "l.csv"), "image") == ["sub/b.png"]


# Nothing to read


def test_what_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text("x")
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04")
    draw(tmp_path / "one.png")
    (tmp_path / "l.csv").write_text("image,label\nx.png,N\ny.png,N\n")
    (tmp_path / "h.csv").write_text("image,label\n")
    for name, told in {
        "empty": "holds no images",
        "texts": "holds no images",
        "deep": "holds no images",
        "missing": "neither a folder nor a file",
        "set.zip": "is an archive",
        "one.png": "is one image",
        "l.csv": "none of the 2 files",
        "h.csv": "holds no images",
    }.items():
        with pytest.raises(NoImagesError) as caught:
            scan(tmp_path / name)
        assert told in str(caught.value), name


# The demo set, downloads, boxes


def test_demo_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write(folder: Path, *, seed: int = 0) -> Path:
        calls.append(folder)
        write_raw(folder)
        (folder / "README.txt").write_text(synthetic.NOTICE)
        return folder

    monkeypatch.setattr(synthetic, "write_demo_set", write)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        manifest = scan(None)
        assert manifest.layout == "demo"
        assert "ynthetic" in manifest.name + manifest.notes[0]
    assert len(calls) == 1  # found again
    assert len(list((tmp_path / "cache" / "leuko").iterdir())) == 1
    assert scan(None, demo_folder=tmp_path / "mine").root.is_relative_to(tmp_path / "mine")
    assert scan(tmp_path / "mine").layout == "demo"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # can't be written
    monkeypatch.setattr(synthetic.tempfile, "tempdir", str(tmp_path))
    assert scan(None).layout == "demo"


def test_progress_counts_files(tmp_path: Path) -> None:
    write_raw(tmp_path)
    seen: list[tuple[int, int]] = []
    scan(tmp_path, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(n, 5) for n in range(1, 6)]


def test_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnknownNameError, match="blood-cells"):
        fetch("blood-cell")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MissingExtraError, match=r"leuko\[fetch\].*kaggle\.com.*leuko compare"):
        fetch("blood-cells")
    fake = types.ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", fake)

    def download(handle: str) -> str:
        print("Downloading", handle)
        return str(tmp_path)

    fake.dataset_download = download  # type: ignore[attr-defined]
    assert fetch("blood-cells") == tmp_path
    out = capsys.readouterr()
    assert out.out == ""
    assert "paultimothymooney/blood-cells" in out.err

    def fail(handle: str) -> str:
        raise ConnectionError("no route to host\n")

    fake.dataset_download = fail  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"no route to host.*kaggle\.com.*leuko compare"):
        fetch("blood-cells")


VOC = (
    "<annotation><object><name> WBC </name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>30</xmax>"
    "<ymax>40</ymax></bndbox></object></annotation>"
)


def test_boxes_are_half_open(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC)
    assert read_boxes(tmp_path / "a.xml") == [Box("WBC", 0.0, 10.0, 30.0, 40.0)]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + VOC.replace(" WBC ", "&x;"),
        "<!DOCTYPE a>" + VOC,
        VOC[:-9],
        VOC.replace("30", "wide"),
        VOC.replace("30", "nan"),
        VOC.replace("30", "-5"),
        VOC.replace("<xmin>1</xmin>", ""),
        VOC.replace(" WBC ", ""),
        "",
    ],
)
def test_boxes_that_are_refused(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "a.xml").write_bytes(text.encode(encoding))
        with pytest.raises(AnnotationError, match="expected a Pascal VOC"):
            read_boxes(tmp_path / "a.xml")


def test_every_refusal_is_ours(tmp_path: Path) -> None:
    for path in ("/dev/null", "/dev/zero", tmp_path / "a\0b", "x" * 5000):
        with pytest.raises(LeukoError):
            scan(path)
