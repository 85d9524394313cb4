"""The pictures that networks see: decoded, found, cut out at one scale, of one size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.image import read_image
from leuko.data.leukocytes import (
    WINDOW,
    choose_leukocyte,
    cut_cell,
    cut_field,
    find_leukocytes,
)
from leuko.data.manifest import Manifest
from leuko.data.scales import measure_set_scales
from leuko.engine import count_cores

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
    usable = manifest.table.filter(
        pl.col("label").is_not_null()
        & pl.col("path").is_not_null()
        & ~pl.col("issues").list.eval(pl.element().str.starts_with("unreadable")).list.any()
    ).unique("image", keep="first", maintain_order=True)
    rows = list(zip(usable["path"], usable["width"], usable["height"], strict=True))
    scales = measure_set_scales(manifest.root, rows) if view == "cell" else {}

    def cut(row: tuple[str, int, int]) -> tuple[NDArray[np.uint8], float]:
        path, width, height = row
        image = read_image(manifest.root / path)
        if view == "field":
            return cut_field(image, size), 1.0
        found = find_leukocytes(image, scale=scales[height, width])
        chosen = replace(choose_leukocyte(found, image), scale=scales[height, width])
        return cut_cell(image, chosen, size, window), chosen.score

    with ThreadPoolExecutor(count_cores()) as pool:
        cut_out = list(pool.map(cut, rows))
    pictures = np.stack([c for c, _ in cut_out]) if cut_out else np.zeros((0, size, size, 3), "u1")
    scores = np.array([s for _, s in cut_out])
    return usable["image"].to_list(), pictures.astype(np.uint8), scores
