"""Where the shipped models look in the raw blood-cells set, against its hand-drawn boxes.

    uv run python benchmarks/explanation.py ../shared/data/blood-cells

Writes `results/explanation.md`. Nothing was chosen on these numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from leuko.data.audit import find_issues, read_drawn
from leuko.data.cuts import WINDOW, place_in_cell
from leuko.data.image import read_image, resize_image
from leuko.data.pictures import cut_cells
from leuko.data.scales import measure_set_scales
from leuko.data.sources import scan
from leuko.judgement.explanation import cover_cells, mask_cells, take_aim
from leuko.judgement.pointing import judge_aim, judge_cover
from leuko.learning.attention import explain
from leuko.learning.batches import Augmentation
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build
from leuko.learning.starts import find_start
from leuko.use.maps import map_cells
from leuko.use.predictor import load
from provenance import head, write_results

SIZE = 96
GRID = 96
STARTS = ("resnet18", "efficientnet_b0", "alexnet")
HEAD = [
    "| model | map | n (groups) | hottest place on the cell, % | by chance, % | middle, % | "
    "heat on the cell, % | cell's share, % |",
    "|---|---|---|---|---|---|---|---|",
]
NEEDS = [
    "| model | n (groups) | kept, only the cell seen, % | kept, cell covered, % | "
    "difference, points | verdict | without the cell most |",
    "|---|---|---|---|---|---|---|",
]

Pixels = NDArray[np.uint8]
Boxes = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Cells:
    """The cells of the set: pictures, drawn boxes as fractions of their side, labels, groups."""

    pictures: Pixels
    boxes: Boxes
    labels: list[str]
    groups: list[str]
    images: list[str]


def load_start(name: str) -> nn.Module:
    start = find_start(name)
    network = build(name, len(start.classes), size=SIZE, seed=0)
    network.load_state_dict({k: v.float() for k, v in load_file(start.path).items()})
    return network.eval()


def read_set(root: Path) -> tuple[Cells, Any, dict[str, Any]]:
    manifest = find_issues(scan(root)).manifest
    drawn = read_drawn(manifest)
    facts = {
        image: (label, group, height, width)
        for image, label, group, height, width in manifest.table.select(
            "image", "label", "group", "height", "width"
        ).iter_rows()
        if label is not None
    }
    pictures, boxes, labels, groups, images = [], [], [], [], []
    for cell in cut_cells(manifest, view="cell", size=SIZE, light="matched"):
        label, group, height, width = facts[cell.image]
        own = [(b.x0, b.y0, b.x1, b.y1) for b in drawn.get(cell.image, ())]
        if not own or not cell.leukocyte.score:
            continue
        placed = place_in_cell(own, height, width, cell.leukocyte)
        middle = place_in_cell([(*cell.leukocyte.centre,) * 2], height, width, cell.leukocyte)[0]
        nearest = min(placed, key=lambda b: np.hypot(*((b[:2] + b[2:]) / 2 - middle[:2])))
        pictures.append(cell.pixels)
        boxes.append(nearest[None])
        labels.append(label)
        groups.append(group)
        images.append(cell.image)
    return Cells(np.stack(pictures), boxes, labels, groups, images), manifest, drawn


def read_fields(
    manifest: Any, drawn: dict[str, Any], images: Sequence[str]
) -> tuple[Pixels, Boxes]:
    """Whole fields, at as many pixels per µm as the cells have."""
    rows = {
        image: (path, width, height)
        for image, path, width, height in manifest.table.select(
            "image", "path", "width", "height"
        ).iter_rows()
        if path is not None
    }
    scales = measure_set_scales(manifest.root, [rows[image] for image in images])
    fields, boxes = [], []
    for image in images:
        path, width, height = rows[image]
        shrink = SIZE / WINDOW / scales[height, width]
        fields.append(
            resize_image(
                read_image(manifest.root / path), round(height * shrink), round(width * shrink)
            )
        )
        sides = np.array([width, height, width, height])
        boxes.append(np.array([(b.x0, b.y0, b.x1, b.y1) for b in drawn[image]]) / sides)
    return np.stack(fields), boxes


def tell(name: str, maps: NDArray[np.float32], boxes: Boxes, groups: list[str]) -> list[str]:
    lines = []
    for round_, where in ((True, "round"), (False, "box")):
        masks = np.stack([mask_cells(own, GRID, round_=round_) for own in boxes])
        judged = judge_aim(take_aim(maps, masks), groups, maps.shape[1:], seed=0)
        lines.append(row(f"{name}, {where}", judged))
    return lines


def row(name: str, judged: dict[str, Any]) -> str:
    def limits(key: str) -> str:
        return "{value:.1f} ({low:.1f}–{high:.1f})".format(
            **{k: 100 * v for k, v in judged[key].items()}
        )

    chance, middle, area = (f"{100 * judged[k]['value']:.1f}" for k in ("chance", "middle", "area"))
    h, w = judged["map"]
    return (
        f"| {name} | {h} × {w} | {judged['n']} ({judged['groups']}) | {limits('pointing')} | "
        f"{chance} | {middle} | {limits('energy')} | {area} |"
    )


def look(network: nn.Module, pictures: Pixels, views: int) -> NDArray[np.float32]:
    answers = predict(network, pictures, views=views, batch=16).argmax(axis=1)
    maps = explain(network, pictures, answers, views=views, batch=16)
    assert maps is not None
    return maps


def need(
    name: str, answer: Callable[[Pixels], NDArray[np.float64]], classes: Sequence[str],
    pictures: Pixels, boxes: Boxes, groups: Sequence[str],
) -> str:  # fmt: skip
    """Whether the answers stay with all around the cell covered, and with the cell covered."""
    masks = np.stack([mask_cells(own, GRID) for own in boxes])
    alone, without = (answer(part) for part in cover_cells(pictures, masks))
    judged = judge_cover(answer(pictures), alone, without, groups, seed=0)
    shown = [
        "{value:.1f} ({low:.1f}–{high:.1f})".format(**{k: 100 * v for k, v in judged[key].items()})
        for key in ("alone", "without")
    ]
    gap = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(
        **{k: 100 * v for k, v in judged["needs_cell"].items()}
    )
    counts = np.bincount(without.argmax(axis=1), minlength=len(classes))
    often = int(counts.argmax())
    return (
        f"| {name} | {len(pictures)} ({len(set(groups))}) | {' | '.join(shown)} | {gap} | "
        f"{judged['verdict']} | {classes[often]}, {counts[often]} of {len(pictures)} |"
    )


def plant(cells: Cells, name: str, *, marked: bool, seed: int = 0) -> tuple[str, str, float]:
    """Trains on half of the neutrophils and eosinophils, judges the maps of the other half.

    Marked: labels are drawn by lot, and a square in the corner tells them by its colour.
    """
    rng = np.random.default_rng(seed)
    kinds = ("NEUTROPHIL", "EOSINOPHIL")
    some = [i for i, label in enumerate(cells.labels) if label in kinds]
    some = [*rng.permutation([i for i in some if cells.labels[i] == kinds[0]])[:80],
            *rng.permutation([i for i in some if cells.labels[i] == kinds[1]])[:80]]  # fmt: skip
    some = [int(i) for i in rng.permutation(some)]
    pictures = cells.pictures[some].copy()
    labels = np.array([kinds.index(cells.labels[i]) for i in some], np.int64)
    if marked:
        labels = rng.permutation(labels)
        for picture, label in zip(pictures, labels, strict=True):
            picture[3:15, 3:15] = ((0, 160, 0), (220, 0, 0))[label]
    network = build(name, 2, size=SIZE, init="blood", seed=seed)
    still = Augmentation(rotation=0, scale=0, shift=0)
    settings = FitSettings(epochs=6, batch=16, views=1, learning_rate=1e-3, average=0.9,
                           augmentation=still)  # fmt: skip
    for _ in fit(network, pictures[:80], labels[:80], settings, seed=seed):
        pass
    tested = pictures[80:]
    right = float((predict(network, tested, views=1).argmax(axis=1) == labels[80:]).mean())
    boxes = [cells.boxes[i] for i in some[80:]]
    groups = [cells.groups[i] for i in some[80:]]
    maps = look(network, tested, 1)
    masks = np.stack([mask_cells(own, GRID) for own in boxes])
    judged = judge_aim(take_aim(maps, masks), groups, maps.shape[1:], seed=0)
    told = f"{name}, {'planted mark' if marked else 'honest'}"
    answer = partial(predict, network, views=1)
    return row(told, judged), need(told, answer, kinds, tested, boxes, groups), right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    torch.set_num_threads(1)
    cells, manifest, drawn = read_set(root)
    print(len(cells.images), "cells", flush=True)
    model = load()
    p, _ = model.bundle.answer(cells.pictures)
    own = map_cells(model.bundle, cells.pictures, p.argmax(axis=1))
    table = tell("default bundle", own, cells.boxes, cells.groups)
    networks = {name: load_start(name) for name in STARTS}
    for name, network in networks.items():
        table += tell(f"{name}, start", look(network, cells.pictures, 8), cells.boxes, cells.groups)
        print(table[-2], flush=True)
    own_cells = cells.pictures, cells.boxes, cells.groups
    covered = [
        need("default bundle", lambda x: model.bundle.answer(x)[0], model.classes, *own_cells)
    ]
    for name, network in networks.items():
        answer = partial(predict, network, batch=16)
        covered.append(need(f"{name}, start", answer, find_start(name).classes, *own_cells))
        print(covered[-1], flush=True)
    fields, boxes = read_fields(manifest, drawn, cells.images)
    whole = []
    for name, network in networks.items():
        known = find_start(name).classes
        labelled = np.array([known.index(label.lower()) for label in cells.labels])
        answered = predict(network, fields, views=1, batch=16).argmax(axis=1)
        commonest = known[int(np.bincount(answered).argmax())]
        for classes, what in ((labelled, "labelled"), (answered, f"answered: most {commonest}")):
            maps = explain(network, fields, classes, views=1, batch=16)
            assert maps is not None
            whole += tell(f"{name}, {what}", maps, boxes, cells.groups)
            print(whole[-2], flush=True)
    planted, needed = [], []
    for name in STARTS:
        for marked in (True, False):
            line, needs, right = plant(cells, name, marked=marked)
            planted.append(line)
            needed.append(f"{needs} {100 * right:.1f} |")
            print(needed[-1], flush=True)
    lines = [
        *head("Where the models look", "uv run python benchmarks/explanation.py "
              "../shared/data/blood-cells"),
        "Every number is explained in [docs/explanation.md](../docs/explanation.md). The cell is "
        "the hand-drawn box, taken as round (the ellipse in it) or whole. In brackets: 95 % "
        "intervals by bootstrap over groups. Nothing was chosen on these images.", "",
        "## Cells cut out, 20 µm wide", "",
        "The starts were trained on PBC only and have never seen this set; the default bundle was "
        "trained on most of it, and its row says where it looks, not how well it would elsewhere.",
        "", *HEAD, *table, "",
        "The middle of the picture lies on the cell nearly always, because that is how cells are "
        "cut out: this view can show that a model looks elsewhere, not that it finds the cell.", "",
        f"## Whole fields at the scale of the cells, {fields.shape[2]} × {fields.shape[1]} pixels",
        "",
        "The same starts, run over whole fields that they were not made for: here the cell may be "
        "anywhere, and the middle helps nobody. One view; the cell is every drawn leukocyte. "
        "*Labelled*: the map of the class that the field is labelled as, that is, where the "
        "network sees this class. *Answered*: the map of the class that the network names for the "
        "whole field, of which red cells and platelets are the most part; these rows were made "
        "first, and the others when they turned out to point at those.", "",
        *HEAD, *whole, "",
        "## What the answer needs", "",
        "The same cells and eight views, with all outside of the drawn cell covered by the colour "
        "of the empty slide, and with the cell covered: how many answers stay what they were, "
        "means over the classes that were answered. This is what the verdict rests on.", "",
        *NEEDS, *covered, "",
        "## A planted mark", "",
        "80 neutrophils and eosinophils to train on from the starts, 80 to judge. Planted: labels "
        "are drawn by lot, and a square in the upper left corner tells them by its colour. Honest: "
        "the labels as they are, no mark.", "",
        NEEDS[0] + " right, % |", NEEDS[1] + "---|", *needed, "", *HEAD, *planted,
    ]  # fmt: skip
    write_results("explanation.md", lines)


if __name__ == "__main__":
    main()
