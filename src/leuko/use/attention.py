"""What a bundle looks at, and whether its answers need the cell: without PyTorch.

    cells that it named → maps, answers with the cell covered and with all else covered → verdict

The counterpart of `leuko.judgement.attention`, which judges the networks of a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.manifest import Manifest
from leuko.data.pictures import Cell, locate_cells
from leuko.judgement.attention import judge_maps
from leuko.judgement.explanation import cover_cells, mask_cells
from leuko.learning.bundle import Bundle
from leuko.use.maps import map_cells

MOST_MAPS = 200  # cells that are looked at: enough for limits of a few points


def judge_bundle(
    bundle: Bundle,
    manifest: Manifest,
    cells: Sequence[Cell],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any] | None:
    """Judges what a bundle needs in at most `MOST_MAPS` cells, evenly spread over those given.

    Args:
        bundle: Checked.
        manifest: The one that the cells were cut from.
        cells: N cells that it gave a class.
        probabilities: (N, K), what it answered.
        groups: N names; cells of one group are resampled together.
        seed: Decides the resamples.

    Returns:
        What `leuko.judgement.attention.judge_maps` says; None without cells, where no leukocyte is
        found, and where the network has no map or one of a single place.
    """
    shape = bundle.network.map
    if shape is None or shape == (1, 1) or not cells:
        return None
    rows = np.unique(np.linspace(0, len(cells) - 1, min(MOST_MAPS, len(cells))).astype(int))
    prepared, answers = bundle.facts.preprocessing, probabilities[rows]
    pixels = np.stack([cells[i].pixels for i in rows])
    maps = map_cells(bundle, pixels, answers.argmax(axis=1))
    images = [cells[i].image for i in rows]
    located = locate_cells(manifest, images, view=prepared.view, window=prepared.window)
    boxes = [located[image] for image in images]
    masks = np.stack([mask_cells(own, pixels.shape[1]) for own in boxes])
    alone, without = (bundle.answer(part)[0] for part in cover_cells(pixels, masks))
    return judge_maps(maps, answers, alone, without, boxes, [groups[i] for i in rows], seed=seed)
