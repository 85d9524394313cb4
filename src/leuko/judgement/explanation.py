"""Class activation maps: which part of a cell an answer rests on, and whether that is the cell.

Pure functions on arrays: no network, no file. A network whose last feature map is averaged and
goes through one linear layer gives, for a class, the mean over the map of what each place adds to
its logit. So the map follows from what an exported network gives, without PyTorch and without a
gradient; that it is what Grad-CAM finds is tested against captum.

    feature map, last layer → map of a class ┬→ overlay
                                             └→ hottest place, share of the heat → on the cell?

Coordinates are fractions of the picture's side, so that a map of 3 × 3 and a picture of 96 × 96
pixels speak of the same places. What this module refuses to know: which answers are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuko.data.density import measure_background
from leuko.errors import ShapeError

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

# Cividis in steps of a ninth: from blue to yellow through grey, its lightness rises evenly, and
# it looks the same to people who don't see red or green. Nuñez et al. 2018,
# doi:10.1371/journal.pone.0199239.
RAMP = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120),
    (165, 156, 116), (195, 180, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """Where the heat of N maps lies, against the cells; all arrays are (N,).

    Attributes:
        hit: 1 where the middle of the hottest place lies on the cell, else 0.
        chance: Share of the map's places whose middle lies on the cell: what a place drawn blindly
            would hit.
        energy: Share of the positive heat that lies on the cell, in [0, 1].
        area: Share of the picture that is cell: what heat spread evenly would give.
        middle: 1 where the middle of the picture lies on the cell: what a model would hit that
            always points there, as it may where every cell was cut out around its middle.
    """

    hit: NDArray[np.float64]
    chance: NDArray[np.float64]
    energy: NDArray[np.float64]
    area: NDArray[np.float64]
    middle: NDArray[np.float64]


def activate(
    features: Floats, weight: Floats, classes: NDArray[np.integer] | None = None
) -> NDArray[np.float32]:
    """Class activation maps, centred over the classes.

    What is added to all classes alike changes no answer, so of each place the mean over the
    classes is taken away. The biases of the last layer belong to no place and are left out.

    Args:
        features: The last feature map, (B, D, h, w).
        weight: Of the last layer, (K, D).
        classes: (B,): one class for each picture; None for all of them.

    Returns:
        (B, K, h, w), or (B, h, w) with `classes`. Positive where a place speaks for the class
        more than for the average one. The mean over h and w is the logit of the class less the
        mean of all logits, but for the biases.

    Raises:
        ShapeError: The arrays don't fit each other.

    Source: Zhou et al. 2016, doi:10.1109/CVPR.2016.319.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"Found a feature map {features.shape} and a last layer {weight.shape}; expected "
            "(B, D, h, w) and (K, D) with the same D."
        )
    centred = weight - weight.mean(axis=0)
    if classes is None:
        found = np.einsum("bdhw,kd->bkhw", features, centred, optimize=True)
        return np.asarray(found, np.float32)
    if classes.shape != features.shape[:1]:
        raise ShapeError(f"Found {len(classes)} classes for {len(features)} feature maps.")
    found = np.einsum("bdhw,bd->bhw", features, centred[classes], optimize=True)
    return np.asarray(found, np.float32)


def enlarge(heat: Floats, height: int, width: int) -> NDArray[np.float64]:
    """A map as large as the picture, bilinear between the middles of its places.

    Args:
        heat: (h, w).
        height, width: Of the result, in pixels.
    """
    rows, columns = (_weigh(n, m) for n, m in zip(heat.shape, (height, width), strict=True))
    return np.asarray(rows @ heat.astype(np.float64) @ columns.T)


def find_hottest(heat: Floats) -> tuple[float, float]:
    """The middle of the hottest place of a map (h, w): x, y as fractions of the side."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    return (float(column) + 0.5) / heat.shape[1], (float(row) + 0.5) / heat.shape[0]


def mask_cells(
    boxes: Sequence[Sequence[float]] | Floats, size: int, *, round_: bool = True
) -> Mask:
    """Which pixels of a picture lie on a cell, (size, size).

    Args:
        boxes: x0, y0, x1, y1 of each cell as fractions of the side; rows with NaN are left out.
        size: Side of the picture in pixels.
        round_: Cells are round: of each box the ellipse that fits into it. False takes all of it.
    """
    middles = (np.arange(size) + 0.5) / size
    mask = np.zeros((size, size), bool)
    for x0, y0, x1, y1 in boxes:
        across = np.abs(2 * middles - x0 - x1) / max(x1 - x0, 1e-9)
        down = np.abs(2 * middles - y0 - y1) / max(y1 - y0, 1e-9)
        if round_:
            mask |= down[:, None] ** 2 + across[None] ** 2 <= 1
        else:
            mask |= np.maximum(down[:, None], across[None]) <= 1
    return mask


def cover_cells(pictures: Pixels, masks: Mask) -> tuple[Pixels, Pixels]:
    """The same pictures with all but the cell covered, and with the cell covered.

    Covered is what then has the colour of the picture's own empty slide.

    Args:
        pictures: (N, S, S, 3) uint8.
        masks: (N, S, S), True on the cell.

    Returns:
        Two arrays of the shape of `pictures`.

    Raises:
        ShapeError: The arrays don't fit each other.

    Source: Zeiler and Fergus 2014, section 4.2, arXiv:1311.2901, who covered one place after
        another.
    """
    if pictures.ndim != 4 or masks.shape != pictures.shape[:3]:
        raise ShapeError(
            f"Found pictures {pictures.shape} and masks {masks.shape}; expected (N, S, S, 3) and "
            "(N, S, S)."
        )
    slides = np.array([measure_background(picture.reshape(-1, 3)) for picture in pictures])
    empty = np.rint(slides).astype(np.uint8)[:, None, None]
    inside = masks[..., None]
    return np.where(inside, pictures, empty), np.where(inside, empty, pictures)


def take_aim(maps: Floats, masks: Mask) -> Aim:
    """Measures for each map whether its heat lies on the cell.

    Args:
        maps: (N, h, w).
        masks: (N, S, S), True on the cell.

    Raises:
        ShapeError: The arrays don't fit each other.

    Source: the pointing game of Zhang et al. 2018, doi:10.1007/s11263-017-1059-x, without its
        tolerance; the share of the heat of Wang et al. 2020, arXiv:1910.01279, section 4.3.
    """
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks):
        raise ShapeError(
            f"Found maps {maps.shape} and masks {masks.shape}; expected (N, h, w) and (N, S, S)."
        )
    (_, h, w), (height, width) = maps.shape, masks.shape[1:]
    rows = ((np.arange(h) + 0.5) / h * height).astype(int)
    columns = ((np.arange(w) + 0.5) / w * width).astype(int)
    on_cell = masks[:, rows][:, :, columns].reshape(len(maps), -1).astype(np.float64)  # (N, h*w)
    hottest = maps.reshape(len(maps), -1).argmax(axis=1)
    area = masks.mean(axis=(1, 2))
    energy = area.copy()  # of a map without positive heat: it points nowhere
    for i, (heat, mask) in enumerate(zip(maps, masks, strict=True)):
        positive = np.maximum(enlarge(heat, height, width), 0)
        if positive.any():
            energy[i] = positive[mask].sum() / positive.sum()
    middle = masks[:, height // 2, width // 2].astype(np.float64)
    return Aim(on_cell[np.arange(len(maps)), hottest], on_cell.mean(axis=1), energy, area, middle)


def draw_map(picture: Pixels, heat: Floats, *, mark: bool = True) -> Pixels:
    """Lays a map over the picture that it explains.

    The picture keeps its light and dark and loses its colours, because stained cells are purple
    and pink themselves; the colour is that of the heat, from blue (nothing speaks for the class)
    to yellow (the most of this picture).

    Args:
        picture: RGB (H, W, 3) uint8.
        heat: (h, w), positive where a place speaks for the class.
        mark: Whether the hottest place gets a ring.

    Returns:
        RGB (H, W, 3) uint8.

    Raises:
        ShapeError: `picture` or `heat` has another shape or type.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or heat.ndim != 2:
        raise ShapeError(
            f"Found a picture {picture.shape} of {picture.dtype} and a map {heat.shape}; expected "
            "(H, W, 3) uint8 and (h, w)."
        )
    height, width = picture.shape[:2]
    large = np.maximum(enlarge(heat, height, width), 0)
    share = large / max(float(large.max()), 1e-12)  # (H, W) in [0, 1]
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(share, steps, channel) for channel in zip(*RAMP, strict=True)], 2)
    grey = picture.astype(np.float64) @ (0.299, 0.587, 0.114)
    cover = (0.35 + 0.35 * share)[..., None]
    drawn = np.clip((1 - cover) * grey[..., None] + cover * colour, 0, 255)
    if mark:
        _draw_ring(drawn, *find_hottest(heat))
    return np.asarray(np.rint(drawn), np.uint8)


def _draw_ring(drawn: NDArray[np.float64], x: float, y: float) -> None:
    """A white ring with a dark rim, seen on every ground."""
    height, width = drawn.shape[:2]
    side = max(height, width)
    down, across = np.mgrid[:height, :width] + 0.5
    away = np.hypot(across - x * width, down - y * height)
    radius, pen = max(4.0, 0.055 * side), max(0.8, 0.01 * side)
    drawn[np.abs(away - radius) <= 2 * pen] = (20, 20, 20)
    drawn[np.abs(away - radius) <= pen] = (255, 255, 255)


def _weigh(places: int, pixels: int) -> NDArray[np.float64]:
    """(pixels, places): how much each place counts at each pixel; rows sum to 1."""
    at = np.clip((np.arange(pixels) + 0.5) / pixels * places - 0.5, 0, places - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(places)[None])))
