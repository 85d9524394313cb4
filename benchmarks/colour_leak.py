"""What colour alone scores on the augmented set, by the way in which the set is split."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leuko.data.manifest import Manifest
from leuko.data.pictures import cut_pictures
from leuko.data.splits import make_splits
from leuko.judgement.comparison import interval
from leuko.learning.baselines import look_up, predict_colour

if TYPE_CHECKING:
    from copies import Files

SIZE = 64
FOLDS = 5
VIEWS = {"field": "whole field", "cell": "cell cut out"}

REMARKS = """
Folds by the numbers of the file names give what random folds give: copies of the test picture are
in the training part either way. Folds by what the audit found give what folds by the true sources
give, and that is near the official TEST. With all 12,515 files there are seven times as many copies
of each picture, and random folds come still nearer to 100 %.
"""

Indices = NDArray[np.int64]


def plan(files: Files) -> dict[str, list[tuple[Indices, Indices]]]:
    """Training and test rows of each way to split."""
    train, test = (np.flatnonzero(files.split == part) for part in ("TRAIN", "TEST"))
    clean = test[~np.isin(files.source[test], files.source[train])]
    ways = {
        "official TEST from TRAIN": [(train, test)],
        "the same without cells that TRAIN shows": [(train, clean)],
    }
    numbered = np.char.add(np.char.add(files.label, "/"), files.number)
    for name, column in {
        "TRAIN, 5 random folds": files.image,
        "TRAIN, 5 folds by the numbers of the file names": numbered,
        "TRAIN, 5 folds by what the audit found": files.group,
        "TRAIN, 5 folds by the true source": files.source,
    }.items():
        splits = make_splits(
            files.label[train].tolist(), column[train].tolist(), folds=FOLDS, repeats=1, seed=0,
            images=files.image[train].tolist(),
        )  # fmt: skip
        ways[name] = [(train[s.train], train[s.test]) for s in splits]
    return ways


def answer(
    pictures: NDArray[np.uint8], labels: Indices, train: Indices, test: Indices
) -> dict[str, NDArray[np.float64]]:
    K = int(labels.max()) + 1
    return {
        "1-NN": look_up(pictures[train], labels[train], pictures[test], K),
        "ExtraTrees": predict_colour(pictures[train], labels[train], pictures[test], K, seed=0),
    }


def tabulate_colour(manifest: Manifest, files: Files) -> list[str]:
    lines = [
        "## What it means: colour alone, by the way of splitting", "",
        "A colour histogram (8 × 8 × 8 bins of a 64 px picture) with the nearest neighbour "
        "(Hellinger's distance) or with 400 extremely randomised trees, both from "
        "`leuko.learning.baselines`; they know no shape. 95 % limits by bootstrap over the true "
        "sources, whatever the folds were made by.", "",
        "| pictures | split | n | sources | classifier | accuracy | balanced accuracy |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    labels = np.unique(files.label, return_inverse=True)[1].astype(np.int64)
    for view, title in VIEWS.items():
        images, pictures, _ = cut_pictures(manifest, view=view, size=SIZE, light="given")
        place = {image: i for i, image in enumerate(images)}
        pictures = pictures[[place[image] for image in files.image]]
        for name, folds in plan(files).items():
            print(f"colour: {title}, {name}", file=sys.stderr)
            rows = np.concatenate([test for _, test in folds])
            answers = [answer(pictures, labels, train, test) for train, test in folds]
            sources = files.source[rows].tolist()
            for classifier in answers[0]:
                p = np.concatenate([a[classifier] for a in answers])
                cells = []
                for metric in ("accuracy", "balanced_accuracy"):
                    found = interval(metric, labels[rows], p, sources)
                    cells.append(f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})")
                lines.append(
                    f"| {title} | {name} | {len(rows)} | {len(set(sources))} | {classifier} "
                    f"| {' | '.join(cells)} |"
                )
    return [*lines, "", *REMARKS.strip().splitlines(), ""]
