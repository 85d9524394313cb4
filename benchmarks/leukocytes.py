"""Leukocytes found in the raw blood-cells set, against its hand-drawn boxes.

    uv run python benchmarks/leukocytes.py ../shared/data/blood-cells

Every setting of the finder was chosen on every third field (0, 3, 6 … in the order of
names); the table is from the others. A found cell and a drawn box are the same if their IoU is
0.5 or more; the assignment is the one with the largest sum of IoU (Hungarian). Intervals: 2,000
bootstrap samples over fields. Time: processor time of one core, decoding not included.
Wider fields, as a smaller objective shows them, are made of these: so many by so many beside each
other, as large as they are or a quarter; each has to find its own scale.
"""

from __future__ import annotations

import argparse
import csv
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from leuko.data.image import read_image, resize_image
from leuko.data.leukocytes import Leukocyte, find_leukocytes
from leuko.data.scales import estimate_scale, estimate_set_scales

CERTAIN = 0.5
WIDER = ((2, 1.0), (3, 1.0), (4, 1.0), (1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25), (6, 0.25))
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """One field: how many were drawn and found, the IoU of the matched, seconds."""

    name: str
    drawn: int
    found: int
    overlaps: tuple[float, ...]
    seconds: float


def read_boxes(path: Path) -> NDArray[np.float64]:
    """The WBC boxes of a VOC file, (n, 4): x0, y0, x1, y1."""
    boxes = [
        [
            float(thing.findtext(f"bndbox/{side}", "nan"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        ]
        for thing in ElementTree.parse(path).getroot().iter("object")
        if thing.findtext("name") == "WBC"
    ]
    return np.array(boxes, dtype=float).reshape(-1, 4)


def intersect_boxes(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of every pair, (len(a), len(b))."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(c[:, 2:] - c[:, :2]).prod(axis=1) for c in (a, b)]
    return np.asarray(common / (areas[0][:, None] + areas[1][None] - common))


def judge_field(name: str, drawn: NDArray[np.float64], cells: list[Leukocyte], s: float) -> Outcome:
    found = np.array([[c.x0, c.y0, c.x1, c.y1] for c in cells], dtype=float).reshape(-1, 4)
    overlap = intersect_boxes(found, drawn)
    rows, columns = linear_sum_assignment(-overlap)
    matched = tuple(float(v) for v in overlap[rows, columns] if v >= 0.5)
    return Outcome(name, len(drawn), len(found), matched, s)


def summarise(outcomes: list[Outcome]) -> dict[str, tuple[float, float, float]]:
    """{measure: (value, low, high)}."""
    facts = np.array([[o.drawn, o.found, len(o.overlaps), sum(o.overlaps)] for o in outcomes])
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(facts), (2000, len(facts)))
    sums = np.concatenate([facts.sum(axis=0)[None], facts[picks].sum(axis=1)])
    measures = {
        "precision": sums[:, 2] / sums[:, 1],
        "recall": sums[:, 2] / sums[:, 0],
        "mean IoU of the matched": sums[:, 3] / sums[:, 2],
    }
    return {
        k: (float(v[0]), *map(float, np.percentile(v[1:], [2.5, 97.5])))
        for k, v in measures.items()
    }


def lay_together(
    files: list[Path], across: int, shrink: float
) -> list[tuple[str, NDArray[np.uint8], NDArray[np.float64]]]:
    """Squares of so many fields by so many, with the boxes in them; what is left over is left."""
    made = []
    for start in range(0, len(files) - across**2 + 1, across**2):
        fields = [read_image(file) for file in files[start : start + across**2]]
        height, width = fields[0].shape[:2]
        rows = [np.hstack(fields[k : k + across]) for k in range(0, across**2, across)]
        boxes = [
            shrink * (read_boxes(find_annotation(file)) + np.tile([width, height], 2) * place)
            for k, file in enumerate(files[start : start + across**2])
            for place in [np.tile([k % across, k // across], 2)]
        ]
        whole = np.vstack(rows)
        size = round(shrink * whole.shape[0]), round(shrink * whole.shape[1])
        picture = whole if shrink == 1 else resize_image(whole, *size)
        made.append((files[start].stem, picture, np.concatenate(boxes)))
    return made


def find_annotation(file: Path) -> Path:
    return file.parent.parent / "Annotations" / f"{file.stem}.xml"


def tell_wider(files: list[Path], scale: float) -> list[str]:
    """The table of wider fields."""
    lines = [
        "## Wider fields",
        "",
        "| fields, across and down | size | pictures | drawn cells | scale by itself / true one, "
        "median (least to greatest) | precision | recall | ms a picture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for across, shrink in WIDER:
        outcomes, ratios = [], []
        for name, picture, drawn in lay_together(files, across, shrink):
            start = time.process_time()
            own = estimate_scale(picture)
            cells = [c for c in find_leukocytes(picture, own) if c.score >= CERTAIN]
            outcomes.append(judge_field(name, drawn, cells, time.process_time() - start))
            ratios.append(own / (scale * shrink))
        measures = summarise(outcomes)
        lines.append(
            f"| {across} | {'whole' if shrink == 1 else f'{shrink:g} of each side'} "
            f"| {len(outcomes)} | {sum(o.drawn for o in outcomes)} "
            f"| {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            + " | ".join(
                "{:.3f} [{:.3f}, {:.3f}]".format(*measures[k]) for k in ("precision", "recall")
            )
            + f" | {1000 * float(np.median([o.seconds for o in outcomes])):.1f} |"
        )
    return lines


def count_labels(folder: Path) -> dict[str, int]:
    """{field: number of labels} of the fields with more than one."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        f"BloodImage_{int(row['Image']):05d}": len(row["Category"].split(","))
        for row in rows
        if "," in row["Category"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = next(iter(parser.parse_args().data.rglob("JPEGImages"))).parent
    files = sorted((data / "JPEGImages").glob("*.jpg"))
    held_out = [f for k, f in enumerate(files) if k % 3 and find_annotation(f).exists()]
    set_scale = next(iter(estimate_set_scales(map(read_image, files[::3])).values()))
    labels = count_labels(data)
    lines = [
        "# Leukocytes found in the raw blood-cells set",
        "",
        "```",
        "uv run python benchmarks/leukocytes.py ../shared/data/blood-cells",
        "```",
        "",
        *(line for line in (__doc__ or "").splitlines()[4:]),
        "",
        f"Scale of the set, median over the fields of the choosing third: {set_scale:.2f} px/µm.",
        "",
        "| scale | fields | drawn cells | precision | recall | mean IoU of the matched "
        "| ms a field | right number in fields with two labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for title, scale in (("one for the set", set_scale), ("each field its own", None)):
        outcomes = []
        for file in held_out:
            field = read_image(file)
            start = time.process_time()
            cells = [c for c in find_leukocytes(field, scale) if c.score >= CERTAIN]
            seconds = time.process_time() - start
            outcomes.append(
                judge_field(file.stem, read_boxes(find_annotation(file)), cells, seconds)
            )
        right = sum(
            n == sum(c.score >= CERTAIN for c in find_leukocytes(read_image(f), scale))
            for f in files
            if (n := labels.get(f.stem)) is not None
        )
        cells_text = " | ".join(
            f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in summarise(outcomes).values()
        )
        milliseconds = 1000 * float(np.median([o.seconds for o in outcomes]))
        lines.append(
            f"| {title} | {len(outcomes)} | {sum(o.drawn for o in outcomes)} | {cells_text} "
            f"| {milliseconds:.1f} | {right} of {len(labels)} |"
        )
        extra = [o.name for o in outcomes if o.found > len(o.overlaps)]
        missed = [o.name for o in outcomes if o.drawn > len(o.overlaps)]
        notes += [
            f"- {title}: found but not drawn in {', '.join(extra) or 'no field'}; "
            f"drawn but not found in {', '.join(missed) or 'no field'}."
        ]
    lines += ["", *notes, "", *REMARKS.strip().splitlines(), ""]
    lines += [*tell_wider(held_out, set_scale), ""]
    (ROOT / "results" / "leukocytes.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


REMARKS = """
What the pictures show (looked at one by one): the cells found but not drawn in BloodImage_00133,
00171, 00178 and 00327 are leukocytes at the border or crushed, which nobody drew; the second box of
BloodImage_00113 is drawn around a platelet. The one rule that was made with all fields in sight is
the one for touching cells (two nuclei of 30 µm² or more each, 120 µm² together, 9 µm apart): only
BloodImage_00313 shows such a pair, and without it recall is 0.992 and 12 of the 15 are right.
The weights in `estimate_scale` against clumps of red cells were chosen on the same third, on
synthetic fields and on PBC, but after failures in three held-out fields (42, 70, 88) had been seen.
A single field gives its scale to about 7 %, in clumps up to 25 % too large; hence
`estimate_set_scales`, which gives one scale to each picture size of a set.
How wide fields find their scale was tried on the choosing third and on PBC alone.
"""

if __name__ == "__main__":
    main()
