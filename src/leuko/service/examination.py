"""From an uploaded file, or a box that a person drew, to cells for the store.

    bytes → pixels → scale → cells, portraits → network → answers

Pixels are gone before the network is asked, so that few pictures are decoded at a time. Knows
pictures and the model; knows nothing of slides or databases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leuko.data.image import decode_image, encode_jpeg, resize_image
from leuko.data.leukocytes import Leukocyte
from leuko.data.scales import estimate_scale
from leuko.errors import ImageError
from leuko.service.fields import Picture
from leuko.service.records import LONGEST_NAME, Box, Machine, clean_text
from leuko.service.refusals import Refusal
from leuko.service.shelf import Finding
from leuko.use.answers import REJECTED, UNIDENTIFIED
from leuko.use.cutting import find_cells
from leuko.use.predictor import judge_cell, score_cells

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle

Pixels = NDArray[np.uint8]
MARGIN = 0.3  # of a portrait, on each side, as a share of the cell's longer side
PORTRAIT = 256  # px, the longest side of one
SMALLEST = 4  # px, of a drawn box


@dataclass(frozen=True)
class Draft:
    """A picture whose cells are found, but not yet named.

    Attributes:
        name, data, sha256: As for `leuko.service.fields.Picture`.
        width, height: In px.
        own_scale: Pixels per µm, measured in this picture.
        cut_scale: At which its cells were found; None if that matters to none.
        cells: Found at that scale.
        inputs: (N, S, S, 3), what the network will see of them.
        portraits: JPEG, what people will see of them.
    """

    name: str
    data: bytes
    sha256: str
    width: int
    height: int
    own_scale: float
    cut_scale: float | None
    cells: tuple[Leukocyte, ...]
    inputs: Pixels
    portraits: tuple[bytes, ...]


def examine(
    bundle: Bundle, data: bytes, name: str, choose_scale: Callable[[tuple[int, int], float], float]
) -> Draft | Picture:
    """Decodes a file and finds its cells.

    Args:
        bundle: Of the model, for what the network is to see.
        data: The file.
        name: As it came; becomes plain text.
        choose_scale: (width, height) and the scale measured here → the scale to take.

    Returns:
        A draft to be answered, or a picture that is set aside.
    """
    name = clean_text(name, LONGEST_NAME) or "without a name"
    digest = hashlib.sha256(data).hexdigest()
    try:
        pixels = decode_image(data, name=name)
    except ImageError as error:
        return Picture(name, b"", digest, aside=(error.reason, str(error)))
    height, width = pixels.shape[:2]
    prepared = bundle.facts.preprocessing
    own = estimate_scale(pixels)
    cut = None
    if prepared.view == "field":
        found = [Leukocyte(0.0, 0.0, float(width), float(height), score=1.0, scale=own)]
    else:
        cut = choose_scale((width, height), own)
        found = find_cells(pixels, cut)
    return _draft(bundle, pixels, own, found, cut=cut, name=name, data=data, sha256=digest)


def answer(bundle: Bundle, draft: Draft) -> Picture:
    """Has the network name the cells of a draft."""
    return Picture(
        draft.name, draft.data, draft.sha256, draft.width, draft.height, draft.own_scale,
        findings=name_cells(bundle, draft), cut_scale=draft.cut_scale,
    )  # fmt: skip


def place_boxes(bundle: Bundle, data: bytes, boxes: Sequence[Box], scale: float | None) -> Draft:
    """Prepares cells that a person marked.

    Args:
        bundle: Of the model.
        data: The field's bytes.
        boxes: x0, y0, x1, y1 in px of the field.
        scale: Pixels per µm; None measures it.

    Raises:
        Refusal: 422, a box lies outside or is too small.
    """
    pixels = decode_image(data)
    height, width = pixels.shape[:2]
    scale = scale or estimate_scale(pixels)
    cells = []
    for x0, y0, x1, y1 in boxes:
        inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        if not inside or min(x1 - x0, y1 - y0) < SMALLEST:
            raise Refusal(
                422, "invalid_box",
                f"The box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) doesn't fit; expected x0 < x1 ≤ {width} "
                f"and y0 < y1 ≤ {height}, at least {SMALLEST} px wide and high.",
            )  # fmt: skip
        cells.append(Leukocyte(x0, y0, x1, y1, score=1.0, scale=scale))
    return _draft(bundle, pixels, scale, cells)


def name_cells(bundle: Bundle, draft: Draft) -> tuple[Finding, ...]:
    """What the network says of the cells of a draft, with their portraits."""
    if not draft.cells:
        return ()
    probabilities, features = bundle.answer(draft.inputs)
    scores = score_cells(bundle, draft.inputs, features)
    return tuple(
        Finding(_round(cell), _describe(bundle, cell, row, far), portrait, seen)
        for cell, row, far, portrait, seen in zip(
            draft.cells, probabilities, scores, draft.portraits, features, strict=True
        )
    )


def cut_portrait(pixels: Pixels, box: Box, *, size: int = PORTRAIT) -> bytes:
    """JPEG of a cell with a margin: what lies in `place_portrait`.

    Args:
        pixels: Of its field.
        box: Of the cell.
        size: Longest side in px; smaller ones stay as they are.
    """
    left, top, right, bottom = place_portrait(box, *pixels.shape[:2])
    return encode_jpeg(shrink(np.ascontiguousarray(pixels[top:bottom, left:right]), size))


def place_portrait(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a square around a cell, moved inwards at the border.

    Args:
        box: Of the cell.
        height: Of the field, in px.
        width: Of the field.
    """
    x0, y0, x1, y1 = box
    side = round((1 + 2 * MARGIN) * max(x1 - x0, y1 - y0))
    wide, high = max(1, min(side, width)), max(1, min(side, height))
    left = int(min(max(0, round((x0 + x1 - wide) / 2)), width - wide))
    top = int(min(max(0, round((y0 + y1 - high) / 2)), height - high))
    return left, top, left + wide, top + high


def shrink(pixels: Pixels, longest: int) -> Pixels:
    """A picture whose longer side is at most so many px."""
    height, width = pixels.shape[:2]
    by = longest / max(height, width)
    if by >= 1:
        return pixels
    return resize_image(pixels, max(1, round(height * by)), max(1, round(width * by)))


@lru_cache(maxsize=4)
def reencode(data: bytes, longest: int | None) -> bytes:
    """An image as JPEG, made anew from its pixels; nothing else of the file gets through."""
    pixels = decode_image(data)
    return encode_jpeg(pixels if longest is None else shrink(pixels, longest))


def _draft(
    bundle: Bundle, pixels: Pixels, scale: float, cells: Sequence[Leukocyte], *,
    cut: float | None = None, name: str = "", data: bytes = b"", sha256: str = "",
) -> Draft:  # fmt: skip
    height, width = pixels.shape[:2]
    portraits = tuple(cut_portrait(pixels, _round(cell)) for cell in cells)
    inputs = _cut(bundle, pixels, cells)
    return Draft(name, data, sha256, width, height, scale, cut, tuple(cells), inputs, portraits)


def _cut(bundle: Bundle, pixels: Pixels, cells: Sequence[Leukocyte]) -> Pixels:
    prepared = bundle.facts.preprocessing
    cut = [prepared.cut(pixels, cell) for cell in cells]
    return np.stack(cut) if cut else np.zeros((0, prepared.size, prepared.size, 3), np.uint8)


def _round(cell: Leukocyte) -> Box:
    x0, y0, x1, y1 = (round(float(side), 1) for side in (cell.x0, cell.y0, cell.x1, cell.y1))
    return x0, y0, x1, y1


def _describe(
    bundle: Bundle, cell: Leukocyte, row: NDArray[np.float64], far: NDArray[np.float64]
) -> Machine:
    classes = bundle.facts.classes
    chosen, state, reason = judge_cell(cell, row, far, bundle)
    if state == REJECTED:
        # A person looks at every doubtful cell here, and none may be lost on the way to their eyes.
        state = UNIDENTIFIED
    best = int(row.argmax())
    probabilities = dict(zip(classes, row.tolist(), strict=True))
    return Machine(classes[best], float(row[best]), probabilities, chosen, state, reason)
