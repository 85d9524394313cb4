"""Shows images of a set on a page without scripts: each read once, made small, embedded once.

Pictures are JPEGs as data URIs; boxes are drawn over them by the page, in px of the image itself.
This module knows no issue and no words of the audit.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leuko.data.image import encode_jpeg, read_image, resize_image
from leuko.errors import ImageError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in px of the image, half open

THUMBNAIL = 200  # px, the long side
QUALITY = 80  # of the JPEGs; about 6 kB for a thumbnail of a smear
MARGIN = 1.5  # side of a close-up over the longer side of the box
SMALLEST = 64  # px, the side of a close-up
MOST_BOXES = 30  # of one sort on one picture


@dataclass(frozen=True)
class Picture:
    """One embedded picture.

    Attributes:
        name: Of the page's element that holds it, such as "p7".
        view: The part of the image that it shows: x, y, width, height in px of the image.
        uri: A data URI; empty where nothing can be shown.
        fault: Why nothing can be shown.
    """

    name: str
    view: tuple[int, int, int, int] = (0, 0, 1, 1)
    uri: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Frame:
    """A box on a picture: its sort ("found", "drawn" or "marked"), x, y, width, height, a word."""

    sort: str
    x: int
    y: int
    width: int
    height: int
    text: str = ""


@dataclass(frozen=True)
class Shot:
    """A picture with what is known of its image."""

    image: str
    label: str
    picture: Picture
    frames: tuple[Frame, ...]
    alt: str


@dataclass
class Album:
    """The pictures of one page.

    Attributes:
        files: The image's file by its id; ids without a file are missing.
        labels: Its label as the page writes it.
        leukocytes: Found boxes, each with a score in [0, 1] as the fifth number.
        drawn: Boxes drawn by hand.
    """

    files: Mapping[str, Path]
    labels: Mapping[str, str]
    leukocytes: Mapping[str, Sequence[Sequence[float]]]
    drawn: Mapping[str, Sequence[Sequence[float]]]
    _pictures: dict[tuple[Any, ...], Picture] = field(default_factory=dict)

    def pictures(self) -> list[Picture]:
        """What the page has to hold, each picture once."""
        return [picture for picture in self._pictures.values() if picture.uri]

    def size(self) -> int:
        """Characters that the pictures take."""
        return sum(len(picture.uri) for picture in self._pictures.values())

    def take(
        self,
        image: str,
        marked: Sequence[Sequence[float]] = (),
        *,
        close: bool = False,
        scores: bool = False,
        side: int = THUMBNAIL,
    ) -> Shot:
        """The image as a small picture with its boxes; a file that can't be read is no error.

        Args:
            image: Its id.
            marked: Boxes that the shot is about.
            close: Show the marked cell, or else the surest leukocyte, large and without boxes;
                the whole image where there is neither.
            scores: Write each leukocyte's score to its box.
            side: Long side of the picture in px.
        """
        found = sorted(self.leukocytes.get(image, ()), key=lambda box: -box[4])
        drawn = self.drawn.get(image, ())
        around = next((tuple(box[:4]) for box in (*marked, *found)), None) if close else None
        layers = (("drawn", drawn), ("found", found), ("marked", marked))
        frames = [
            _frame(sort, box, f"{box[4]:.2f}" if scores and sort == "found" else "")
            for sort, boxes in (() if around else layers)
            for box in boxes[:MOST_BOXES]
        ]
        sorts = {"found": found, "drawn by hand": drawn, "marked": marked}
        counts = [f"{len(boxes)} {what}" for what, boxes in sorts.items() if boxes]
        alt = f"{image}; boxes: {', '.join(counts)}" if counts else image
        label = self.labels.get(image, "(not in the table)")
        return Shot(image, label, self._embed(image, around, side), tuple(frames), alt)

    def _embed(self, image: str, around: tuple[float, ...] | None, side: int) -> Picture:
        key = (image, around, side)
        if key not in self._pictures:
            self._pictures[key] = self._read(f"p{len(self._pictures)}", *key)
        return self._pictures[key]

    def _read(self, name: str, image: str, around: tuple[float, ...] | None, side: int) -> Picture:
        if image not in self.files:
            return Picture(name, fault="no file")
        try:
            pixels = read_image(self.files[image])
        except ImageError as error:
            return Picture(name, fault=f"can't be read: {error.reason.replace('_', ' ')}")
        height, width = pixels.shape[:2]
        x, y, w, h = _window(width, height, around)
        part = pixels[y : y + h, x : x + w]
        shrink = min(1.0, side / max(w, h))
        small = resize_image(part, max(1, round(h * shrink)), max(1, round(w * shrink)))
        text = base64.b64encode(encode_jpeg(small, QUALITY)).decode("ascii")
        return Picture(name, (x, y, w, h), f"data:image/jpeg;base64,{text}")


def _frame(sort: str, box: Sequence[float], text: str) -> Frame:
    x0, y0, x1, y1 = (round(edge) for edge in box[:4])
    return Frame(sort, x0, y0, max(1, x1 - x0), max(1, y1 - y0), text)


def _window(width: int, height: int, around: tuple[float, ...] | None) -> tuple[int, int, int, int]:
    """x, y, width and height of what is shown: a square around a box, moved into the image."""
    if around is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = around
    side = max(SMALLEST, round(MARGIN * max(x1 - x0, y1 - y0)))
    w, h = min(width, side), min(height, side)
    x = min(max(0, round((x0 + x1 - w) / 2)), width - w)
    y = min(max(0, round((y0 + y1 - h) / 2)), height - h)
    return x, y, w, h
