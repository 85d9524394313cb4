"""Pictures of single cells, where the model looked, and which labelled cells look like one.

Likeness is the cosine between the features of the model's last layer. Only cells of the same model
are compared, and of other slides only what was signed: a second reader doesn't see the first one's
labels here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, select

from leuko.data.cuts import place_in_cell
from leuko.data.image import decode_image, encode_png
from leuko.data.leukocytes import Leukocyte
from leuko.data.scales import estimate_scale
from leuko.judgement.explanation import draw_map, enlarge
from leuko.service import tables
from leuko.service.examination import PORTRAIT, cut_portrait, place_portrait, reencode, shrink
from leuko.service.fields import find_scale, no_image, read_image
from leuko.service.records import REVIEWED, SIGNED
from leuko.service.refusals import Refusal
from leuko.service.reviews import load_reading
from leuko.service.shelf import find_slide, images_gone
from leuko.service.store import Store
from leuko.use.maps import map_cells

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle

Pixels = NDArray[np.uint8]
OTHERS = 20  # signed readings of other slides that are searched, the latest


def read_portrait(store: Store, slide: int, reading: int, cell: int, size: int | None) -> bytes:
    """JPEG of a cell with a margin.

    Args:
        store: Where.
        slide: Of the reading.
        reading: That has the cell.
        cell: Its id.
        size: Longest side in px at most; None as it is kept.

    Raises:
        Refusal: 404; 410 once images are deleted.
    """
    with store.read() as connection:
        row = _find_cell(connection, slide, reading, cell)
    if size is None or size == PORTRAIT:
        return bytes(row.image)
    if size < PORTRAIT:
        return reencode(bytes(row.image), size)
    pixels = decode_image(read_image(store, slide, row.field))
    return cut_portrait(pixels, (row.x0, row.y0, row.x1, row.y1), size=size)


@dataclass(frozen=True)
class View:
    """A cell as the network saw it.

    Attributes:
        seen: (S, S, 3), its input.
        portrait: What people see of it.
        frame: x0, y0, x1, y1 of the portrait within the input, as fractions of its side.
        label: Class that the map is of: its place among the bundle's.
    """

    seen: Pixels
    portrait: Pixels
    frame: tuple[float, float, float, float]
    label: int


def cut_view(
    store: Store, bundle: Bundle, slide: int, reading: int, cell: int, *, label: str | None,
    size: int,
) -> View:  # fmt: skip
    """Cuts a cell out as it was for the network.

    Args:
        store: Where.
        bundle: Of the model.
        slide: Of the reading.
        reading: That has the cell.
        cell: Its id.
        label: Class that the map is to be of; None takes the machine's.
        size: Longest side of the portrait in px.

    Raises:
        Refusal: 404 without the cell, without a map, or with another model; 410 once images are
            deleted; 422, no such class.
    """
    with store.read() as connection:
        row = _find_cell(connection, slide, reading, cell)
        model = find_slide(connection, slide).model
    if bundle.network.map is None or model != bundle.id:
        raise Refusal(
            404, "no_map",
            "There is no map: this model gives none." if model == bundle.id else
            "There is no map: this slide was answered by another model than the one in use.",
        )  # fmt: skip
    wanted = row.label if label is None else label
    if wanted not in bundle.facts.classes:
        raise Refusal(
            422, "unknown_class", f"The model has no class of this name. It has: "
            f"{', '.join(bundle.facts.classes)}."
        )  # fmt: skip
    pixels = decode_image(read_image(store, slide, row.field))
    box = row.x0, row.y0, row.x1, row.y1
    scale = find_scale(store, slide, row.field) or estimate_scale(pixels)
    cell_there = Leukocyte(*box, score=1.0, scale=scale)
    height, width = pixels.shape[:2]
    left, top, right, bottom = place_portrait(box, height, width)
    prepared = bundle.facts.preprocessing
    if prepared.view == "field":
        frame = left / width, top / height, right / width, bottom / height
    else:
        sides = [(left, top, right, bottom)]
        placed = place_in_cell(sides, height, width, cell_there, prepared.window)[0]
        frame = placed[0], placed[1], placed[2], placed[3]
    return View(
        prepared.cut(pixels, cell_there),
        shrink(np.ascontiguousarray(pixels[top:bottom, left:right]), size),
        frame,
        bundle.facts.classes.index(wanted),
    )


def draw_attention(bundle: Bundle, view: View) -> bytes:
    """PNG of a portrait with what speaks for a class; for the network's turn.

    What the network didn't see of it stays cold.

    Args:
        bundle: Of the model.
        view: From `cut_view`.
    """
    heat = map_cells(bundle, view.seen[None], np.array([view.label]))[0]
    return encode_png(draw_map(view.portrait, _frame(heat, view), mark=False))


def _frame(heat: NDArray[np.float32], view: View) -> NDArray[np.float64]:
    """The part of a map that a portrait shows, as large as the portrait."""
    height, width = view.portrait.shape[:2]
    x0, y0, x1, y1 = view.frame
    side = len(view.seen)
    rows = np.floor((y0 + (np.arange(height) + 0.5) / height * (y1 - y0)) * side).astype(int)
    columns = np.floor((x0 + (np.arange(width) + 0.5) / width * (x1 - x0)) * side).astype(int)
    fine = enlarge(heat, side, side)
    shown = fine[np.clip(rows, 0, side - 1)][:, np.clip(columns, 0, side - 1)]
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
    return np.where(inside, shown, 0.0)


def find_similar(
    store: Store, slide: int, reading: int, cell: int, most: int
) -> list[dict[str, Any]]:
    """Reviewed cells that the model sees as alike, the likest first.

    Args:
        store: Where.
        slide: Of the reading.
        reading: That has the cell.
        cell: Its id.
        most: How many at most.

    Returns:
        For each its ``slide``, ``reading``, ``cell``, ``label``, and ``likeness`` in [-1, 1].

    Raises:
        Refusal: 404; 410 once images are deleted.
    """
    with store.read() as connection:
        own = _read_features(_find_cell(connection, slide, reading, cell).features)
        places = [(slide, reading), *_list_signed(connection, slide)]
    labels: dict[int, tuple[int, int, str]] = {}
    for above, one in places:
        for known in load_reading(store, above, one).review.cells.values():
            if known.state == REVIEWED and not known.deleted and known.id != cell:
                labels.setdefault(known.id, (above, one, str(known.label)))
    if not labels:
        return []
    seen = select(tables.portraits.c.cell, tables.portraits.c.features).where(
        tables.portraits.c.cell.in_(labels), tables.portraits.c.image.is_not(None)
    )
    with store.read() as connection:
        rows = connection.execute(seen).all()
    if not rows:
        return []
    likeness = np.stack([_read_features(row.features) for row in rows]) @ own
    best = np.argsort(-likeness, kind="stable")[:most]
    return [
        {
            **dict(zip(("slide", "reading", "label"), labels[rows[i].cell], strict=True)),
            "cell": rows[i].cell,
            "likeness": round(float(likeness[i]), 4),
        }
        for i in best
    ]


def _find_cell(connection: Connection, slide: int, reading: int, cell: int) -> Row[Any]:
    above = find_slide(connection, slide)
    cells, portraits = tables.cells, tables.portraits
    row = connection.execute(
        select(cells, portraits.c.image, portraits.c.features)
        .join(portraits)
        .where(
            cells.c.id == cell, cells.c.slide == slide,
            cells.c.reading.is_(None) | (cells.c.reading == reading),
        )
    ).first()  # fmt: skip
    if row is None:
        raise Refusal(404, "no_cell", f"Reading {reading} has no cell {cell}.")
    if row.image is None:
        raise images_gone(above) if above.images_deleted else no_image(row.field)
    return row


def _list_signed(connection: Connection, slide: int) -> list[tuple[int, int]]:
    """Signed readings of other slides of the same model that have their images."""
    slides, readings = tables.slides, tables.readings
    asked = (
        select(slides.c.id, readings.c.id)
        .join(readings)
        .where(
            slides.c.id != slide, slides.c.images_deleted.is_(None), readings.c.state == SIGNED,
            slides.c.model == select(slides.c.model).where(slides.c.id == slide).scalar_subquery(),
        )
        .order_by(readings.c.signed_at.desc())
        .limit(OTHERS)
    )  # fmt: skip
    return [(a, b) for a, b in connection.execute(asked)]


def _read_features(data: bytes) -> NDArray[np.float32]:
    """(D,) of length 1."""
    features = np.frombuffer(data, "<f2").astype(np.float32)
    return features / max(float(np.linalg.norm(features)), 1e-12)
