"""What the networks of a study look at, and need: covered pictures, maps, a judgement of each.

    leukocytes of the images → covered.npz → jobs of the folds → maps.npz → attention of each model

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
from leuko.judgement.explanation import cover_cells, mask_cells, take_aim
from leuko.judgement.pointing import judge_aim, judge_cover
from leuko.learning.folds import COVERED, MAPS, Explained, FoldJob, read_explained
from leuko.storage import write_atomically

GRID = 96  # side of the masks, whatever that of the pictures is


def cover_pictures(
    run: Path, jobs: Sequence[FoldJob], manifest: Manifest, names: Sequence[str], *, view: str
) -> None:
    """Writes ``covered.npz``, which the jobs that explain need; a run that goes on has it.

    Args:
        run: The run folder, with its ``cells.npz``.
        jobs: Of one study.
        manifest: The one that the pictures were cut from.
        names: Of the N images that the jobs' `test` points into.
        view: ``cell`` or ``field``.
    """
    explained = [job for job in jobs if job.explained]
    if not explained or (run / COVERED).exists():
        return
    rows = explained[0].rows
    chosen = np.unique(np.concatenate([job.test[job.explained_rows] for job in explained]))
    chosen = chosen[np.argsort(rows[chosen])]  # jobs look a picture up by its row
    images = [names[i] for i in chosen]
    found = locate_cells(manifest, images, view=view)
    boxes = np.full((len(images), max(1, *(len(b) for b in found.values())), 4), np.nan)
    for row, image in zip(boxes, images, strict=True):
        row[: len(found[image])] = found[image]
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        pictures = file["cells"][rows[chosen]]
    masks = np.stack([mask_cells(own, pictures.shape[1]) for own in boxes])
    alone, without = cover_cells(pictures, masks)
    _save(
        run / COVERED, row=rows[chosen], image=np.array(images), boxes=boxes, alone=alone,
        without=without,
    )  # fmt: skip


def judge_attention(
    run: Path, jobs: Sequence[FoldJob], names: Sequence[str], groups: Sequence[str], *, seed: int
) -> dict[str, dict[str, Any]]:
    """Writes ``maps.npz`` and judges what each model looks at, and whether it needs the cell.

    Args:
        run: The run folder, with the ``covered.npz`` that `cover_pictures` wrote.
        jobs: Finished, of one study.
        names, groups: Of the N images that the jobs' `test` points into.
        seed: Decides the resamples.

    Returns:
        For each model that has maps what `judge_maps` says; images in which no leukocyte was found
        are left out.
    """
    found = _collect(jobs)
    if not found:
        return {}
    with np.load(run / COVERED, allow_pickle=False) as file:
        images, boxes = file["image"], file["boxes"]
    place = {str(image): i for i, image in enumerate(images)}
    arrays: dict[str, NDArray[Any]] = {
        "models": np.array(list(found)), "image": images, "boxes": boxes
    }  # fmt: skip
    judged = {}
    for number, (model, told) in enumerate(found.items()):
        places = np.array([place[names[i]] for i in told.rows], np.int64)
        arrays |= {f"rows_{number}": places, f"maps_{number}": told.maps}
        judged[model] = judge_maps(
            told.maps, told.answers, told.alone, told.without, boxes[places],
            [groups[i] for i in told.rows], seed=seed,
        )  # fmt: skip
    _save(run / MAPS, **arrays)
    return {model: attention for model, attention in judged.items() if attention is not None}


def judge_maps(
    maps: NDArray[np.float32],
    answers: NDArray[np.float64],
    alone: NDArray[np.float64],
    without: NDArray[np.float64],
    boxes: Iterable[NDArray[np.float64]],
    groups: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any] | None:
    """Judges whether answers need the cell, and says where their maps lie.

    Args:
        maps: (N, h, w) of the class that was answered.
        answers, alone, without: (N, K) probabilities of the pictures as they are, with all but the
            cell covered and with the cell covered.
        boxes: For each of the N pictures those of its leukocytes, (n, 4), from
            `leuko.data.pictures.locate_cells`; rows of NaN stand for none.
        groups: N names.
        seed: Decides the resamples.

    Returns:
        What `judge_aim` and `judge_cover` say of the pictures that show a leukocyte; None if none
        does.
    """
    masks = np.stack([mask_cells(own, GRID) for own in boxes])
    seen = np.asarray(masks.any(axis=(1, 2)))
    if not seen.any():
        return None
    own = [group for group, one in zip(groups, seen, strict=True) if one]
    aim = take_aim(maps[seen], masks[seen])
    return {
        **judge_aim(aim, own, maps.shape[1:], seed=seed),
        **judge_cover(answers[seen], alone[seen], without[seen], own, seed=seed),
    }


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


def _collect(jobs: Sequence[FoldJob]) -> dict[str, Explained]:
    """Per model what was explained in all folds, in the order of the images; `rows` are theirs."""
    parts: dict[str, list[tuple[NDArray[np.int64], Explained]]] = {}
    for job in jobs:
        if job.explained and (found := read_explained(job)) is not None:
            parts.setdefault(job.model, []).append((job.test[found.rows], found))
    collected = {}
    for model, several in parts.items():
        rows = np.concatenate([r for r, _ in several])
        order = np.argsort(rows)
        rest = {
            name: np.concatenate([getattr(one, name) for _, one in several])[order]
            for name in ("maps", "answers", "alone", "without")
        }
        collected[model] = Explained(rows[order], **rest)
    return collected


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, save)
