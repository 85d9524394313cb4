"""The pictures that networks see: decoded, found, cut out at one scale, of one size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.image import read_image
from leuko.data.leukocytes import (
    WINDOW,
    Leukocyte,
    choose_leukocyte,
    cut_cell,
    cut_field,
    find_leukocytes,
    place_in_cell,
)
from leuko.data.manifest import Manifest
from leuko.data.scales import measure_set_scales
from leuko.engine import count_cores

CERTAIN = 0.5  # score of a leukocyte in a field, as measured in results/leukocytes.md
SURROUNDINGS = 28.0  # µm, the side of a window in which a cell can be moved, turned and shrunk


def cut_pictures(
    manifest: Manifest, *, view: str, size: int, window: float = WINDOW
) -> tuple[list[str], NDArray[np.uint8], NDArray[np.float64]]:
    """Decodes every image that has one label and cuts out what the networks will see.

    Args:
        manifest: Rows that can't be read are left out.
        view: ``cell`` or ``field``.
        size: S in pixels.
        window: Side of the square around a cell in µm.

    Returns:
        Image ids, N of them; pictures (N, S, S, 3); scores (N,) of the leukocytes, 0 where
        none was found and the window is a guess, 1 throughout for fields.
    """
    usable = _find_usable(manifest)
    rows = list(zip(usable["path"], usable["width"], usable["height"], strict=True))
    scales = measure_set_scales(manifest.root, rows) if view == "cell" else {}

    def cut(row: tuple[str, int, int]) -> tuple[NDArray[np.uint8], float]:
        path, width, height = row
        image = read_image(manifest.root / path)
        if view == "field":
            return cut_field(image, size), 1.0
        chosen = _choose(image, scales[height, width])
        return cut_cell(image, chosen, size, window), chosen.score

    with ThreadPoolExecutor(count_cores()) as pool:
        cut_out = list(pool.map(cut, rows))
    pictures = np.stack([c for c, _ in cut_out]) if cut_out else np.zeros((0, size, size, 3), "u1")
    scores = np.array([s for _, s in cut_out])
    return usable["image"].to_list(), pictures.astype(np.uint8), scores


def locate_cells(
    manifest: Manifest, images: Sequence[str], *, view: str, window: float = WINDOW
) -> dict[str, NDArray[np.float64]]:
    """Where the leukocytes lie in the pictures of `cut_pictures`.

    Args:
        manifest: The one that was given to `cut_pictures`.
        images: Ids of some of its images.
        view, window: As for `cut_pictures`.

    Returns:
        For each image the boxes (n, 4): x0, y0, x1, y1 as fractions of the picture's side. In a
        cell's picture that of the one cell; in a field those of all that are certain. None
        (n = 0) where none was found.
    """
    usable = _find_usable(manifest)
    known = list(zip(usable["path"], usable["width"], usable["height"], strict=True))
    scales = measure_set_scales(manifest.root, known)
    place = dict(zip(usable["image"], known, strict=True))

    def locate(image: str) -> NDArray[np.float64]:
        path, width, height = place[image]
        scale = scales[height, width]
        field = read_image(manifest.root / path)
        if view == "field":
            found = [c for c in find_leukocytes(field, scale=scale) if c.score >= CERTAIN]
            sides = (width, height, width, height)
            return np.array([_box(c) for c in found]).reshape(-1, 4) / sides
        chosen = _choose(field, scale)
        return place_in_cell([_box(chosen)] if chosen.score else [], height, width, chosen, window)

    with ThreadPoolExecutor(count_cores()) as pool:
        return dict(zip(images, pool.map(locate, images), strict=True))


def _find_usable(manifest: Manifest) -> pl.DataFrame:
    """The images that have one label and can be read, each once."""
    return manifest.table.filter(
        pl.col("label").is_not_null()
        & pl.col("path").is_not_null()
        & ~pl.col("issues").list.eval(pl.element().str.starts_with("unreadable")).list.any()
    ).unique("image", keep="first", maintain_order=True)


def _choose(image: NDArray[np.uint8], scale: float) -> Leukocyte:
    found = find_leukocytes(image, scale=scale)
    return replace(choose_leukocyte(found, image), scale=scale)


def _box(cell: Leukocyte) -> tuple[float, float, float, float]:
    return cell.x0, cell.y0, cell.x1, cell.y1
