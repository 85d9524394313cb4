"""The demo set: synthetic fields in the Kaggle set's raw layout, with its kinds of faults.

What is in a field is drawn by `leuko.data.drawing`; here is the plan of the set, what is wrong
with its labels, its files, and where it is kept.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from leuko.data import drawing, morphology
from leuko.data.drawing import MARGIN, MARK, NOTICE, SyntheticField, draw_field, lay_out
from leuko.data.morphology import KINDS
from leuko.errors import OutputError, SettingsError, StorageError, UnknownNameError, suggest

INNER = Path("dataset-master") / "dataset-master"  # where the Kaggle archive keeps the raw set
# The set is another one as soon as one of these is.
DRAWN_BY = (morphology.__file__, drawing.__file__, __file__)

DEMO_COUNTS: Mapping[str, int] = {
    "NEUTROPHIL": 72,
    "EOSINOPHIL": 40,
    "LYMPHOCYTE": 28,
    "MONOCYTE": 20,
    "BASOPHIL": 3,
}
"""Images with exactly one label in the demo set, second photographs included."""

BLANK_WITHOUT_IMAGE = 5
BLANK_WITH_IMAGE = 1
LABEL_WITHOUT_IMAGE = "MONOCYTE"
MANY_LABELS: tuple[str, ...] = (
    "NEUTROPHIL, EOSINOPHIL",
    "NEUTROPHIL,NEUTROPHIL",
    "NEUTROPHIL, NEUTROPHIL",
    "EOSINOPHIL, LYMPHOCYTE",
    "EOSINOPHIL,EOSINOPHIL",
    "MONOCYTE, LYMPHOCYTE",
)
PAIR_KINDS: tuple[str, ...] = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE")


@dataclass(frozen=True)
class _Row:
    """A label row to be: what it says, what is drawn (None: no image), and which scene."""

    written: str
    kinds: tuple[str, ...] | None
    scene: int
    stage: tuple[int, int] = (0, 0)
    again: int | None = None  # number of the pair of which this is the second photograph


def _scene(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, 1])


def _plan_rows(seed: int, counts: Mapping[str, int], pairs: int) -> list[_Row]:
    """The label table in its order, faults strewn in as in the real one."""
    rng = np.random.default_rng([seed, 0])
    plan: list[tuple[str, tuple[str, ...] | None]] = []
    twice = [kind for kind in PAIR_KINDS if counts.get(kind, 0) >= 2][:pairs]
    for kind in KINDS:
        plan += [(kind, (kind,))] * (counts.get(kind, 0) - twice.count(kind))
    plan += [(text, tuple(k.strip() for k in text.split(","))) for text in MANY_LABELS]
    plan += [("", None)] * BLANK_WITHOUT_IMAGE + [("", ())] * BLANK_WITH_IMAGE
    plan += [(LABEL_WITHOUT_IMAGE, None)]
    order = rng.permutation(len(plan))
    rows = [_Row(plan[i][0], plan[i][1], scene=n) for n, i in enumerate(order)]
    for number, kind in enumerate(twice):
        first = next(r for r in rows if r.kinds == (kind,) and r.again is None)
        ((x, y, _),) = lay_out(
            _scene(seed, first.scene), [kind], 480, 640, centred=False
        ).leukocytes
        dx, dy = (int(v) for v in rng.integers(20, MARGIN // 2 + 20, 2))
        # Towards the middle: the cell must not leave the field.
        dx, dy = (dx if x < 320 else -dx), (dy if y < 240 else -dy)
        second = _Row(kind, (kind,), first.scene, (dx, dy), again=number)
        # The slide was walked twice: the cell comes back a while later.
        place = rows.index(first) + max(1, len(rows) // 4)
        rows.insert(min(place, len(rows)), second)
    return rows


def _format_annotation(name: str, field: SyntheticField) -> str:
    """Pascal VOC as in the Kaggle set: pixels count from 1 and the last one is included."""
    height, width = field.image.shape[:2]
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **texts: object) -> None:
        for key, text in texts.items():
            ElementTree.SubElement(parent, key).text = str(text)

    add(root, folder="JPEGImages", filename=f"{name}.jpg", path=f"JPEGImages/{name}.jpg")
    add(ElementTree.SubElement(root, "source"), database="synthetic", annotation=NOTICE)
    add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    add(root, segmented=0)
    for box in field.boxes:
        item = ElementTree.SubElement(root, "object")
        cut = box.x0 == 0 or box.y0 == 0 or box.x1 == width or box.y1 == height
        add(item, name=box.name, pose="Unspecified", truncated=int(cut), difficult=0)
        corners: dict[str, Any] = {"xmin": box.x0 + 1, "ymin": box.y0 + 1}
        corners |= {"xmax": box.x1, "ymax": box.y1}
        add(ElementTree.SubElement(item, "bndbox"), **corners)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _write_field(inner: Path, name: str, row: _Row, seed: int, number: int) -> SyntheticField:
    assert row.kinds is not None
    field = draw_field(
        _scene(seed, row.scene),
        row.kinds,
        stage=row.stage,
        camera=np.random.default_rng([seed, number, 2]),
    )
    Image.fromarray(field.image).save(
        inner / "JPEGImages" / f"{name}.jpg", quality=88, comment=NOTICE.encode()
    )
    text = _format_annotation(name, field)
    (inner / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8", newline="\n")
    return field


def write_demo_set(
    folder: Path,
    *,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    pairs: int = len(PAIR_KINDS),
) -> Path:
    """Writes a synthetic set in the Kaggle set's raw layout, with its kinds of faults.

    The same seed writes the same bytes (with the same Pillow). Besides the images with one label
    there are always: ``BLANK_WITHOUT_IMAGE`` blank rows without an image, ``BLANK_WITH_IMAGE``
    blank rows with one (a field without leukocytes), one row that is labelled
    ``LABEL_WITHOUT_IMAGE`` and has none, and one field per entry of ``MANY_LABELS``. ``pairs.csv``
    names the fields that show the same cells, photographed twice.

    Args:
        folder: Is made; must not hold a set already.
        seed: Decides everything.
        counts: Images with exactly one label per kind, second photographs included; left out,
            ``DEMO_COUNTS``.
        pairs: Fields that are photographed twice, at most 3; only of kinds with two images.

    Returns:
        The folder; in it ``dataset-master/dataset-master/{JPEGImages,Annotations,labels.csv}``.

    Raises:
        UnknownNameError: A kind that isn't drawn here.
        SettingsError: A negative count.
        OutputError: The folder holds a set already.
        StorageError: It can't be written.
    """
    counts = DEMO_COUNTS if counts is None else counts
    for kind, count in counts.items():
        if kind not in KINDS:
            raise UnknownNameError(
                f"no synthetic leukocyte of kind {kind!r}. {suggest(kind, list(KINDS))}"
            )
        if count < 0:
            raise SettingsError(f"{count} images of {kind}: a count is 0 or more.")
    folder = Path(folder)
    inner = folder / INNER
    if inner.exists():
        raise OutputError(f"{folder} holds a set already. Name another folder, or remove it first.")
    rows = _plan_rows(seed, counts, pairs)
    try:
        for part in ("JPEGImages", "Annotations"):
            (inner / part).mkdir(parents=True)
        for number, row in enumerate(rows):
            if row.kinds is not None:
                _write_field(inner, f"BloodImage_{number:05d}", row, seed, number)
        _write_tables(folder, inner, rows)
    except OSError as error:
        raise StorageError(f"the demo set can't be written to {folder}: {error}.") from error
    return folder


def _write_tables(folder: Path, inner: Path, rows: Sequence[_Row]) -> None:
    with (inner / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Image", "Category"])
        writer.writerows(["", number, row.written] for number, row in enumerate(rows))
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "kind", "dx", "dy"])
        for number, row in enumerate(rows):
            if row.again is not None:
                first = next(n for n, r in enumerate(rows) if r.scene == row.scene)
                names = [f"BloodImage_{n:05d}" for n in (first, number)]
                writer.writerow([*names, row.written, *row.stage])
    (folder / "README.txt").write_text(_README, encoding="utf-8", newline="\n")


def make_demo_set(folder: str | os.PathLike[str] | None = None) -> Path:
    """Writes the demo set, or finds it where it was written before.

    Args:
        folder: For the set; left out, a folder in the user's cache that belongs to exactly
            this version of the drawing code.

    Returns:
        The folder of the set.
    """
    if folder is not None:
        folder = Path(folder)
        if not (folder / INNER / "labels.csv").is_file():
            write_demo_set(folder, seed=0)
        return folder
    code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in DRAWN_BY)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leuko"
    target = base / f"demo-{code}"
    if (target / "README.txt").is_file():
        return target
    try:
        base.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="demo-", dir=base))
    except OSError:  # a home that can't be written, as in many containers
        part = target = Path(tempfile.mkdtemp(prefix="leuko-demo-"))
    write_demo_set(part, seed=0)
    if part != target:
        try:
            part.rename(target)  # whole or not at all, also with two programs at once
        except OSError:
            if not (target / "README.txt").is_file():
                return part
    return target


_README = f"""{NOTICE}

SYNTHETIC DEMO SET. Every image in this folder was drawn by leuko.data.synthetic. Nothing was
photographed; nothing that is measured here says how well a network does on real blood.

dataset-master/dataset-master/JPEGImages   640 x 480 smear fields; each says {MARK} in a corner
dataset-master/dataset-master/Annotations  Pascal VOC boxes: WBC, RBC, Platelets
dataset-master/dataset-master/labels.csv   columns: empty, Image, Category
pairs.csv                                  fields that show the same cells, photographed twice
                                           (dx, dy: how far the second is shifted, px)

The layout is that of the Kaggle set paultimothymooney/blood-cells, and so are the faults in
labels.csv: blank rows, a label without an image, rows with two labels, a handful of basophils.
They are meant.
"""
