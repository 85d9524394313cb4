"""Synthetic fields: the boxes are right, the faults are as promised, the same seed repeats."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from leuko.data import drawing, morphology, synthetic
from leuko.data.drawing import draw_cell, draw_field
from leuko.data.morphology import KINDS
from leuko.data.synthetic import write_demo_set
from leuko.errors import OutputError, SettingsError, UnknownNameError

FEW = {"NEUTROPHIL": 3, "EOSINOPHIL": 2, "LYMPHOCYTE": 1, "MONOCYTE": 1, "BASOPHIL": 1}


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


def _inner(folder: Path) -> Path:
    return folder / "dataset-master" / "dataset-master"


def _rows(folder: Path) -> list[tuple[str, str]]:
    with (_inner(folder) / "labels.csv").open(newline="") as file:
        return [(row[1], row[2]) for row in list(csv.reader(file))[1:]]


def _has_image(folder: Path, number: str) -> bool:
    return (_inner(folder) / "JPEGImages" / f"BloodImage_{int(number):05d}.jpg").exists()


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_set(tmp_path_factory.mktemp("demo") / "set", seed=5, counts=FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_the_box_holds_the_whole_leukocyte(kind: str) -> None:
    for seed in range(3):
        with_cell = draw_field(_rng(seed), [kind], camera=_rng(9), blur=0, mark=False)
        (box,) = with_cell.leukocytes
        assert box.kind == kind
        assert 0 <= box.x0 < box.x1 <= 640
        assert 0 <= box.y0 < box.y1 <= 480
        assert 70 < max(box.x1 - box.x0, box.y1 - box.y0) < 260
        pixels = with_cell.image.astype(int)
        # Violet: much bluer than red and than green, which no red cell and no background is.
        violet = (pixels[..., 2] - pixels[..., 0] > 35) & (pixels[..., 2] - pixels[..., 1] > 45)
        parts, _ = ndimage.label(violet)  # the largest is the leukocyte, not a platelet
        violet = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        rows, columns = np.nonzero(violet)
        assert rows.size > 400
        assert rows.min() >= box.y0 - 2
        assert rows.max() < box.y1 + 2
        assert columns.min() >= box.x0 - 2
        assert columns.max() < box.x1 + 2


def test_the_box_is_tight() -> None:
    scene = drawing.lay_out(_rng(3), ["MONOCYTE"], 480, 640, centred=True)
    ((x, y, cell),) = scene.leukocytes
    (box,) = draw_field(_rng(3), ["MONOCYTE"], centred=True).leukocytes
    covered = cell.body > 0.5
    reach = cell.body.shape[0] // 2
    part = covered[
        box.y0 - int(y) + reach : box.y1 - int(y) + reach,
        box.x0 - int(x) + reach : box.x1 - int(x) + reach,
    ]
    assert part.sum() == covered.sum()
    assert part[0].any()
    assert part[-1].any()
    assert part[:, 0].any()
    assert part[:, -1].any()


def test_a_field_is_a_function_of_its_generator() -> None:
    one, two, other = (draw_field(_rng(seed), ["EOSINOPHIL"]) for seed in (1, 1, 2))
    assert one.image.shape == (480, 640, 3)
    assert one.image.dtype == np.uint8
    np.testing.assert_array_equal(one.image, two.image)
    assert one.boxes == two.boxes
    assert not np.array_equal(one.image, other.image)


def test_kinds_are_drawn_as_asked() -> None:
    field = draw_field(_rng(4), ["NEUTROPHIL", "LYMPHOCYTE"])
    assert [box.kind for box in field.leukocytes] == ["NEUTROPHIL", "LYMPHOCYTE"]
    assert {box.name for box in draw_field(_rng(4), []).boxes} <= {"RBC", "Platelets"}
    assert draw_field(_rng(4), [], height=200, width=300).image.shape == (200, 300, 3)


def test_the_mark_is_written_outside_the_leukocyte() -> None:
    marked = draw_field(_rng(6), ["MONOCYTE"], camera=_rng(0))
    plain = draw_field(_rng(6), ["MONOCYTE"], camera=_rng(0), mark=False)
    rows, columns = np.nonzero((marked.image != plain.image).any(axis=2))
    assert rows.size > 50
    (box,) = marked.leukocytes
    inside = (rows >= box.y0) & (rows < box.y1) & (columns >= box.x0) & (columns < box.x1)
    assert not inside.any()


def test_a_moved_stage_shows_the_same_cells_again() -> None:
    first = draw_field(_rng(7), ["NEUTROPHIL"], camera=_rng(1), centred=True)
    second = draw_field(_rng(7), ["NEUTROPHIL"], camera=_rng(2), centred=True, stage=(24, -15))
    (a,), (b,) = first.leukocytes, second.leukocytes
    assert (b.x0 - a.x0, b.y0 - a.y0, b.x1 - a.x1, b.y1 - a.y1) == (24, -15, 24, -15)
    one = first.image[a.y0 : a.y1, a.x0 : a.x1].mean(axis=2).ravel()
    two = second.image[b.y0 : b.y1, b.x0 : b.x1].mean(axis=2).ravel()
    assert np.corrcoef(one, two)[0, 1] > 0.9
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_picture_has_the_size_asked_for(kind: str) -> None:
    cell = draw_cell(_rng(8), kind, size=48)
    assert cell.shape == (48, 48, 3)
    assert cell.dtype == np.uint8
    assert cell.std() > 5
    np.testing.assert_array_equal(cell, draw_cell(_rng(8), kind, size=48))


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="EOSINOPHIL"):
        draw_field(_rng(0), ["EOSINOPHILE"])
    with pytest.raises(SettingsError, match="stage"):
        draw_field(_rng(0), [], stage=(500, 0))
    with pytest.raises(SettingsError, match="too small"):
        draw_field(_rng(0), [], height=8)
    with pytest.raises(UnknownNameError, match="BLAST"):
        write_demo_set(tmp_path / "a", counts={"BLAST": 3})
    with pytest.raises(SettingsError, match="-1"):
        write_demo_set(tmp_path / "a", counts={"MONOCYTE": -1})
    assert not (tmp_path / "a").exists()


def test_the_demo_set_has_the_faults_promised(demo: Path) -> None:
    rows = _rows(demo)
    with_image = [label for number, label in rows if _has_image(demo, number)]
    without = [label for number, label in rows if not _has_image(demo, number)]
    assert [int(number) for number, _ in rows] == list(range(len(rows)))
    many = [label for label in with_image if "," in label]
    assert sorted(many) == sorted(synthetic.MANY_LABELS)
    assert with_image.count("") == synthetic.BLANK_WITH_IMAGE
    assert Counter(without) == {
        "": synthetic.BLANK_WITHOUT_IMAGE,
        synthetic.LABEL_WITHOUT_IMAGE: 1,
    }
    assert Counter(label for label in with_image if label in KINDS) == FEW
    raw = (_inner(demo) / "labels.csv").read_bytes()
    assert raw.startswith(b",Image,Category\r\n,0,")
    assert raw.count(b"\n") == raw.count(b"\r\n") == len(rows) + 1


def test_the_full_demo_set_is_planned_as_stated() -> None:
    counts = synthetic.DEMO_COUNTS
    rows = synthetic._plan_rows(0, counts, 3)
    single = [row for row in rows if row.kinds is not None and len(row.kinds) == 1]
    assert Counter(row.written for row in single) == counts
    four = [row for row in single if row.written != "BASOPHIL"]
    assert len(four) == 160
    scenes = {(row.written, row.scene) for row in four}
    assert min(Counter(kind for kind, _ in scenes).values()) >= 20
    assert sum(row.again is not None for row in rows) == 3
    assert len(rows) == 163 + 6 + 5 + 1 + 1


def test_labels_and_boxes_agree(demo: Path) -> None:
    for number, label in _rows(demo):
        name = f"BloodImage_{int(number):05d}"
        xml = _inner(demo) / "Annotations" / f"{name}.xml"
        assert xml.exists() == _has_image(demo, number)
        if not xml.exists():
            continue
        root = ElementTree.parse(xml).getroot()
        names = [item.findtext("name") for item in root.iter("object")]
        assert names.count("WBC") == len([part for part in label.split(",") if part.strip()])
        for box in root.iter("bndbox"):
            x0, y0, x1, y1 = (int(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x0 <= x1 <= 640
            assert 1 <= y0 <= y1 <= 480


def test_the_cached_set_depends_on_every_module_that_draws() -> None:
    modules = (synthetic, drawing, morphology)
    assert {Path(module.__file__) for module in modules} == set(map(Path, synthetic.DRAWN_BY))
    homes = {getattr(value, "__module__", None) for m in modules for value in vars(m).values()}
    drawn_by = {module.__name__ for module in modules}
    assert {home for home in homes if str(home).startswith("leuko.data")} == drawn_by


def test_everything_says_that_it_is_synthetic(demo: Path) -> None:
    assert "SYNTHETIC" in (demo / "README.txt").read_text()
    for path in _inner(demo).rglob("*.xml"):
        assert ElementTree.parse(path).findtext("source/database") == "synthetic"
    for path in _inner(demo).rglob("*.jpg"):
        with Image.open(path) as image:
            assert b"SYNTHETIC" in image.info["comment"]
            assert image.size == (640, 480)


def test_pairs_show_the_same_cell(demo: Path) -> None:
    with (demo / "pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert [pair["kind"] for pair in pairs].count("NEUTROPHIL") == 1
    assert len(pairs) == 2  # LYMPHOCYTE has one image only
    labels = {f"BloodImage_{int(number):05d}": label for number, label in _rows(demo)}
    for pair in pairs:
        assert pair["first"] != pair["second"]
        assert labels[pair["first"]] == labels[pair["second"]] == pair["kind"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, demo: Path) -> None:
    again = write_demo_set(tmp_path / "again", seed=5, counts=FEW)
    assert _digests(again) == _digests(demo)
    other = write_demo_set(tmp_path / "other", seed=6, counts={"MONOCYTE": 1})
    assert _digests(other) != _digests(demo)


def test_a_set_is_never_overwritten(demo: Path) -> None:
    before = _digests(demo)
    with pytest.raises(OutputError, match="holds a set already"):
        write_demo_set(demo, seed=1, counts=FEW)
    assert _digests(demo) == before
