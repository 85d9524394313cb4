"""What the shipped bundle says of cells that were cut out more closely than those it has seen.

    uv run python benchmarks/close_cuts.py RUN ../shared/data/pbc

RUN is the folder of a pretraining. Leukocytes of five classes in pictures of PBC that the shipped
start, and so the bundle, has not seen are cut along a square of so many µm around the cell, or
along the cell's box with a margin, as other collections have them. The bundle gets these pictures
alone and has to find their scale by itself. The first 60 of each class took part in choosing how it
is found, and are left out. Cuts of one width are brought to 224 px; boxes stay as
they are, so that each picture has a size of its own, or are brought to 224 px, so that each has a
scale of its own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from joint_set import list_pretrained
from leuko.data.image import read_image
from leuko.data.leukocytes import Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.scales import estimate_scale, estimate_set_scales
from leuko.judgement.metrics import exact_limits
from leuko.use.answers import PRE_CLASSIFIED, REJECTED, UNIDENTIFIED, Answer
from leuko.use.predictor import find_default, load

CLASSES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
CHOSE, MOST = 60, 120  # of each class: left out, looked at
SIDE = 224  # px
Picture = NDArray[np.uint8]
Cut = Callable[[Picture, Leukocyte], tuple[Picture, float]]  # with its px/µm


def cut_square(
    picture: Picture, cell: Leukocyte, side: float, *, brought: bool
) -> tuple[Picture, float]:
    """A square of so many px around the cell, moved inside the picture, and its px/µm."""
    length = min(round(side), *picture.shape[:2])
    x, y = (
        int(np.clip(round(middle - length / 2), 0, whole - length))
        for middle, whole in zip(cell.centre, picture.shape[1::-1], strict=True)
    )
    piece = np.ascontiguousarray(picture[y : y + length, x : x + length])
    if not brought:
        return piece, cell.scale
    how = cv2.INTER_CUBIC if length < SIDE else cv2.INTER_AREA
    whole = cv2.resize(piece, (SIDE, SIDE), interpolation=how)
    return np.asarray(whole, np.uint8), cell.scale * SIDE / length


def cut_width(micrometres: float) -> Cut:
    return lambda p, cell: cut_square(p, cell, micrometres * cell.scale, brought=True)


def cut_box(margin: float, *, brought: bool) -> Cut:
    def cut(picture: Picture, cell: Leukocyte) -> tuple[Picture, float]:
        side = max(cell.x1 - cell.x0, cell.y1 - cell.y0) * (1 + margin)
        return cut_square(picture, cell, side, brought=brought)

    return cut


CUTS: dict[str, Cut] = {
    "as PBC has them": lambda picture, cell: (picture, cell.scale),
    **{f"{width} µm wide": cut_width(width) for width in (28, 24, 20, 16, 13)},
    "box and 30 %": cut_box(0.3, brought=False),
    "box": cut_box(0.0, brought=False),
    "box and 30 %, brought to one size": cut_box(0.3, brought=True),
    "box, brought to one size": cut_box(0.0, brought=True),
}


def read_unseen(run: Path, pbc: Path) -> tuple[list[Picture], list[str]]:
    """Pictures and classes of up to `MOST` cells of each that chose nothing."""
    rng = np.random.default_rng(0)
    rows = [row for row in list_pretrained(run) if row[3] == "TEST"]
    chosen = []
    for name in CLASSES:
        own = [row for row in rows if row[1].lower() == name]
        chosen += [own[i] for i in rng.permutation(len(own))[CHOSE:][:MOST]]
    return [read_image(pbc / row[0]) for row in chosen], [row[1].lower() for row in chosen]


def show(right: int, n: int) -> str:
    low, high = exact_limits(right, n)
    return f"{right / n:.1%} ({low:.1%}–{high:.1%})" if n else "–"


def main(run: Path, pbc: Path) -> None:
    torch.set_num_threads(1)
    pictures, labels = read_unseen(run, pbc)
    ((_, scale),) = estimate_set_scales(pictures).items()
    cells = [choose_leukocyte(find_leukocytes(p, scale), p) for p in pictures]
    predictor = load(find_default())
    print(f"Bundle `{predictor.bundle.id}`; n = {len(labels)}, each in another picture.\n")
    print(
        "| cut | own scale / true one, median (5 to 95 of 100) | right | pre-classified "
        "| of these right | unidentified | rejected |\n|---|---|---|---|---|---|---|"
    )
    for told, cut in CUTS.items():
        cuts = [cut(p, c) for p, c in zip(pictures, cells, strict=True)]
        low, middle, high = np.percentile(
            [estimate_scale(piece) / true for piece, true in cuts], [5, 50, 95]
        )
        first: dict[str, Answer] = {}
        for answer in predictor.predict([piece for piece, _ in cuts]):
            first.setdefault(answer.image, answer)
        said = list(first.values())
        right = [a.label == label for a, label in zip(said, labels, strict=True)]
        named = [r for a, r in zip(said, right, strict=True) if a.state == PRE_CLASSIFIED]
        states = Counter(a.state for a in said)
        row = (
            told, f"{middle:.2f} ({low:.2f} to {high:.2f})", show(sum(right), len(right)),
            len(named), show(sum(named), len(named)), states[UNIDENTIFIED], states[REJECTED],
        )  # fmt: skip
        print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
