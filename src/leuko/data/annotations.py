"""Boxes around cells, as Pascal VOC files give them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from leuko.errors import AnnotationError


@dataclass(frozen=True)
class Box:
    """Where one thing lies in a field: pixels, half open, the corner of the image is (0, 0)."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


def read_boxes(path: str | os.PathLike[str]) -> list[Box]:
    """Reads the boxes of a Pascal VOC file, in the order of the file.

    VOC counts pixels from 1 and includes the last one; the result counts from 0, half open.

    Raises:
        AnnotationError: The file can't be read, is no VOC file, or declares entities.
    """
    try:
        data = Path(path).read_bytes()
        _refuse_doctype(data)
        boxes = []
        for item in ElementTree.fromstring(data).iter("object"):
            edges = {edge.tag: float(edge.text or "nan") for edge in item.find("bndbox") or ()}
            box = Box(
                (item.findtext("name") or "").strip(),
                max(0.0, edges["xmin"] - 1),
                max(0.0, edges["ymin"] - 1),
                edges["xmax"],
                edges["ymax"],
            )
            if not (box.name and box.x0 <= box.x1 < 1e6 and box.y0 <= box.y1 < 1e6):
                raise ValueError(f"a box {box}")
            boxes.append(box)
        return boxes
    except (OSError, ValueError, KeyError, expat.ExpatError, ElementTree.ParseError) as error:
        raise AnnotationError(
            f"{path} can't be used ({type(error).__name__}: {error}); expected a Pascal VOC file "
            "with object/name and object/bndbox. Correct or remove it."
        ) from None


def _refuse_doctype(data: bytes) -> None:
    """Entities are the way in for attacks by XML, and VOC needs none."""

    def refuse(*_: object) -> None:
        raise ValueError("a document type declaration")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
