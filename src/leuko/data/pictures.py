"""The pictures that networks see: decoded, found, cut out at one scale, of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.cuts import WINDOW, cut_cell, cut_field, place_in_cell
from leuko.data.image import read_image
from leuko.data.leukocytes import CERTAIN, Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.manifest import Manifest
from leuko.data.scales import is_cut_out, measure_set_scales
from leuko.engine import count_cores


@dataclass(frozen=True)
class Cell:
    """What the networks see of one image.

    Attributes:
        image: Its id.
        pixels: (S, S, 3).
        leukocyte: What was cut around, at the scale of the set; its score is 0 where none was
            found and the window is a guess. For a field the whole picture, with score 1.
        scores: Of all leukocytes that were found in the image, the most certain first.
        cut_out: The image was made around one cell; others in it are neighbours.
    """

    image: str
    pixels: NDArray[np.uint8]
    leukocyte: Leukocyte
    scores: tuple[float, ...]
    cut_out: bool


def cut_pictures(
    manifest: Manifest, *, view: str, size: int, light: str, window: float = WINDOW
) -> tuple[list[str], NDArray[np.uint8], NDArray[np.float64]]:
    """Decodes every image that has one label and cuts out what the networks will see.

    Args:
        manifest: Rows that can't be read are left out.
        view: ``cell`` or ``field``.
        size: S in pixels.
        light: One of `leuko.data.cuts.LIGHTS`. There is no default: who judges a network has to
            show it what it was trained on.
        window: Side of the square around a cell in µm.

    Returns:
        Image ids, N of them; pictures (N, S, S, 3); scores (N,) of the leukocytes, 0 where
        none was found and the window is a guess, 1 throughout for fields.
    """
    cells = cut_cells(manifest, view=view, size=size, window=window, light=light)
    scores = np.array([cell.leukocyte.score for cell in cells])
    return [cell.image for cell in cells], stack_cells(cells, size), scores


def cut_cells(
    manifest: Manifest,
    *,
    view: str,
    size: int,
    light: str,
    window: float = WINDOW,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """One cell of every image that has one label, with where it was cut out.

    Args:
        manifest, view, size, light, window: As for `cut_pictures`.
        progress: Called with (images done, images in all).
    """
    usable = _find_usable(manifest)
    rows = list(zip(usable["path"], usable["width"], usable["height"], strict=True))
    scales = measure_set_scales(manifest.root, rows) if view == "cell" else {}

    def cut(name: str, row: tuple[str, int, int]) -> Cell:
        path, width, height = row
        image = read_image(manifest.root / path)
        if view == "field":
            whole = Leukocyte(0.0, 0.0, float(width), float(height), score=1.0, scale=1.0)
            return Cell(name, cut_field(image, size, light=light), whole, (), cut_out=True)
        scale = scales[height, width]
        found = find_leukocytes(image, scale=scale)
        chosen = replace(choose_leukocyte(found, image), scale=scale)
        scores = tuple(sorted((leukocyte.score for leukocyte in found), reverse=True))
        pixels = cut_cell(image, chosen, size, window, light=light)
        return Cell(name, pixels, chosen, scores, is_cut_out(height, width, scale))

    cells = []
    with ThreadPoolExecutor(count_cores()) as pool:
        for cell in pool.map(cut, usable["image"], rows):
            cells.append(cell)
            if progress is not None:
                progress(len(cells), len(rows))
    return cells


def stack_cells(cells: Sequence[Cell], size: int) -> NDArray[np.uint8]:
    """Their pictures, (N, S, S, 3)."""
    if not cells:
        return np.zeros((0, size, size, 3), np.uint8)
    return np.stack([cell.pixels for cell in cells]).astype(np.uint8)


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
            return np.asarray(np.array([_box(c) for c in found]).reshape(-1, 4) / np.array(sides))
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
