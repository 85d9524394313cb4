"""What the networks of a study look at: the maps of all folds in one file, every model judged.

    maps of the folds, leukocytes of the images → maps.npz → attention of each model

Every map is of a cell that its network was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.manifest import Manifest
from leuko.data.pictures import locate_cells
from leuko.judgement.explanation import mask_cells, take_aim
from leuko.judgement.pointing import judge_aim
from leuko.learning.folds import MAPS, FoldJob, read_maps
from leuko.storage import write_atomically

GRID = 96  # side of the masks, whatever that of the pictures is

Maps = dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]


def judge_attention(
    run: Path,
    jobs: Sequence[FoldJob],
    manifest: Manifest,
    names: Sequence[str],
    groups: Sequence[str],
    *,
    view: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Writes ``maps.npz`` and judges what each model looks at.

    Args:
        run: The run folder.
        jobs: Finished, of one study.
        manifest: The one that the pictures were cut from.
        names, groups: Of the N images that the jobs' `test` points into.
        view: ``cell`` or ``field``.
        seed: Decides the resamples.

    Returns:
        For each model that has maps what `judge_aim` says; images in which no leukocyte was found
        are left out.
    """
    maps = _collect(jobs)
    if not maps:
        return {}
    every = np.unique(np.concatenate([rows for rows, _ in maps.values()]))
    images = [names[i] for i in every]
    found = locate_cells(manifest, images, view=view)
    boxes = np.full((len(images), max(1, *(len(b) for b in found.values())), 4), np.nan)
    for row, image in zip(boxes, images, strict=True):
        row[: len(found[image])] = found[image]
    places = {model: np.searchsorted(every, rows) for model, (rows, _) in maps.items()}
    arrays: dict[str, NDArray[Any]] = {
        "models": np.array(list(maps)), "image": np.array(images), "boxes": boxes,
    }  # fmt: skip
    for number, (model, (_, heat)) in enumerate(maps.items()):
        arrays |= {f"rows_{number}": places[model], f"maps_{number}": heat}

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(run / MAPS, save)
    judged = {
        model: judge_maps(heat, boxes[places[model]], [groups[i] for i in rows], seed=seed)
        for model, (rows, heat) in maps.items()
    }
    return {model: attention for model, attention in judged.items() if attention is not None}


def judge_maps(
    maps: NDArray[np.float32],
    boxes: Iterable[NDArray[np.float64]],
    groups: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any] | None:
    """Judges whether maps lie on the cells.

    Args:
        maps: (N, h, w).
        boxes: For each of the N pictures those of its leukocytes, (n, 4), from
            `leuko.data.pictures.locate_cells`; rows of NaN stand for none.
        groups: N names.
        seed: Decides the resamples.

    Returns:
        What `judge_aim` says of the pictures that show a leukocyte; None if none does.
    """
    masks = np.stack([mask_cells(own, GRID) for own in boxes])
    seen = masks.any(axis=(1, 2))
    if not seen.any():
        return None
    own = [group for group, one in zip(groups, seen, strict=True) if one]
    return judge_aim(take_aim(maps[seen], masks[seen]), own, maps.shape[1:], seed=seed)


def read_study_maps(run: Path) -> dict[str, tuple[list[str], NDArray[np.float32]]]:
    """What `judge_attention` wrote: per model the images (M) and their maps (M, h, w).

    Empty where a run has no maps.
    """
    if not (run / MAPS).exists():
        return {}
    with np.load(run / MAPS, allow_pickle=False) as file:
        images = file["image"]
        return {
            str(model): (images[file[f"rows_{n}"]].tolist(), file[f"maps_{n}"])
            for n, model in enumerate(file["models"])
        }


def _collect(jobs: Sequence[FoldJob]) -> Maps:
    """Per model the rows of its explained images, in order, and their maps."""
    parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for job in jobs:
        if job.explained and (found := read_maps(job)) is not None:
            parts.setdefault(job.model, []).append((job.test[found[0]], found[1]))
    maps: Maps = {}
    for model, several in parts.items():
        rows = np.concatenate([r for r, _ in several])
        order = np.argsort(rows)
        maps[model] = rows[order], np.concatenate([m for _, m in several])[order]
    return maps
