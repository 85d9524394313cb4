"""Cuts cells out of their fields, at one physical scale and in one light.

    field, place of a cell ┬→ window of so many µm ─────→ resized ┬→ what the networks see
                           └→ light of the empty slide around it ─┘

What this module refuses to know: how cells are found, classes, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leuko.data.density import match_light, measure_background
from leuko.data.image import resize_image
from leuko.data.leukocytes import Leukocyte
from leuko.data.scales import estimate_scale
from leuko.data.stain import Field, check_field
from leuko.errors import SettingsError

WINDOW = 20.0  # µm, the side of the square that cut_cell cuts
SURROUNDINGS = 28.0  # µm, the side of a window in which a cell can be moved, turned and shrunk
# matched: the empty slide is brought to one grey; given: as the camera gave the picture.
LIGHTS = ("matched", "given")
SAMPLED = 256  # px: of more the light is measured on every second, third … row and column


def cut_cell(
    field: Field, leukocyte: Leukocyte, size: int, window: float = WINDOW, *, light: str
) -> Field:
    """Cuts one cell out, with its surroundings, at the common physical scale.

    The window is a square of `window` µm around the middle of the cell. Near the border it
    moves inwards, because padding would show what was never there; only where the field
    itself is smaller than the window is it laid on an empty slide, on which nothing can be taken
    for a cell's. A cell that is wider than the window (a smudge, a giant cell) loses its rim, so
    that size stays comparable.

    Args:
        field: RGB uint8, (H, W, 3).
        leukocyte: A cell of this field.
        size: Side of the result in px.
        window: Side of the square in µm.
        light: One of `LIGHTS`; ``matched``: see `leuko.data.density.match_light`. The light is
            measured within `SURROUNDINGS` of the cell, whatever the window, because it changes
            across a field.

    Returns:
        RGB uint8, (size, size, 3).

    Raises:
        ShapeError: The field is no picture.
        SettingsError: There is no such light.
    """
    check_field(field)
    scale = leukocyte.scale or estimate_scale(field)
    side = max(1, round(window * scale))
    piece = _take(field, leukocyte, side)
    background = _measure_light(_take(field, leukocyte, max(1, round(SURROUNDINGS * scale))))
    missing_x, missing_y = side - piece.shape[1], side - piece.shape[0]
    if missing_x or missing_y:
        whole = np.empty((side, side, 3), np.uint8)
        whole[:] = np.rint(background)
        top, left = missing_y // 2, missing_x // 2
        whole[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        piece = whole
    cell = resize_image(np.ascontiguousarray(piece), size, size)
    return _light(cell, background, light)


def place_in_cell(
    boxes: Sequence[Sequence[float]],
    height: int,
    width: int,
    leukocyte: Leukocyte,
    window: float = WINDOW,
) -> NDArray[np.float64]:
    """Where boxes of a field lie in the picture that `cut_cell` cuts of one of its cells.

    Args:
        boxes: (n, 4): x0, y0, x1, y1 in px of the field.
        height, width: Of the field, in px.
        leukocyte: The cell; its scale has to be known.
        window: As for `cut_cell`.

    Returns:
        (n, 4), the same as fractions of the picture's side; outside [0, 1] beyond its edge.
    """
    side = max(1, round(window * leukocyte.scale))
    x, y = leukocyte.centre
    # A side larger than the field: the field lies in the middle of the picture.
    left = _place(x, side, width) if side <= width else -((side - width) // 2)
    top = _place(y, side, height) if side <= height else -((side - height) // 2)
    corner = np.array([left, top, left, top], dtype=np.float64)
    return (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) - corner) / side


def cut_field(field: Field, size: int, *, light: str) -> Field:
    """The whole field as a square: squashed, not cropped, because a cell may touch the border.

    Every field of one set is squashed alike (4 : 3 becomes 1 : 1), nothing is added or lost.

    Args:
        field: RGB uint8, (H, W, 3).
        size: Side of the result in px.
        light: As for `cut_cell`, measured in the whole field.

    Returns:
        RGB uint8, (size, size, 3).

    Raises:
        ShapeError, SettingsError: As for `cut_cell`.
    """
    check_field(field)
    return _light(resize_image(field, size, size), _measure_light(field), light)


def _measure_light(around: Field) -> NDArray[np.float64]:
    """The light of the empty slide in a piece of a field, (3,)."""
    step = -(-max(around.shape[:2]) // SAMPLED)
    return measure_background(around[::step, ::step].reshape(-1, 3))


def _light(cell: Field, background: NDArray[np.float64], light: str) -> Field:
    """A picture in one of `LIGHTS`, by the light of its empty slide."""
    if light not in LIGHTS:
        raise SettingsError(f"light is {light!r}; expected one of: {', '.join(LIGHTS)}.")
    return cell if light == "given" else match_light(cell, background)


def _take(field: Field, leukocyte: Leukocyte, side: int) -> Field:
    """The square of `side` px around a cell, moved inside the field; what there is of it."""
    height, width = field.shape[:2]
    x, y = leukocyte.centre
    left, top = _place(x, side, width), _place(y, side, height)
    return field[top : top + side, left : left + side]


def _place(centre: float, side: int, length: int) -> int:
    """First pixel of a window of `side` around `centre`, moved inside [0, length)."""
    if side >= length:
        return 0
    return int(min(max(0, round(centre - side / 2)), length - side))
