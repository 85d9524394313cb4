"""What leaves the service as files: the differential of a reading, its cells, a labelled set.

Knows readings and the writers of `leuko.use`; knows nothing of the page.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Response
from numpy.typing import NDArray

from leuko.data.image import decode_image, encode_jpeg
from leuko.service import fields, reviews, shelf
from leuko.service.counts import count_reviewed
from leuko.service.examples import LARGEST_ID, Id, show_errors
from leuko.service.records import REVIEWED, SIGNED, Box, Cell
from leuko.service.refusals import Refusal
from leuko.service.reviews import Reading
from leuko.service.store import Store
from leuko.use.answers import defuse
from leuko.use.differential import FINAL, PRELIMINARY, RESEARCH_USE, Differential
from leuko.use.differential_pdf import write_pdf
from leuko.use.differential_table import write_csv
from leuko.use.fhir import write_fhir
from leuko.use.record import read_record

if TYPE_CHECKING:
    from threading import Semaphore

    from leuko.data.image import Pixels
    from leuko.learning.bundle import Bundle

File = Literal["differential.pdf", "differential.csv", "differential.json", "cells.csv", "set.zip"]
TYPES = {".pdf": "application/pdf", ".csv": "text/csv; charset=utf-8",
         ".json": "application/fhir+json", ".zip": "application/zip"}  # fmt: skip
WINDOW = 36.0  # µm, the side of a picture in a set: enough red cells to measure the scale again
QUALITY = 95  # of its JPEG
COLUMNS = ("slide", "status", "field", "cell", "x0", "y0", "x1", "y1", "label", "state", "reason",
           "machine_label", "machine_probability", "machine_state", "set")  # fmt: skip


def add_exports(router: APIRouter, store: Store, bundle: Bundle, decoding: Semaphore) -> None:
    """Adds the routes of files.

    Args:
        router: Below ``/api/v1``.
        store: Where readings are.
        bundle: Whose record goes with the differentials of its own answers.
        decoding: Held while a picture is decoded.
    """
    record = read_record(bundle.facts, bundle.id)

    @router.get(
        "/slides/{sid}/readings/{rid}/export/{file}", response_class=Response,
        summary="A reading as a file: PDF, CSV, FHIR, or a labelled set",
        responses=show_errors(404, 422),
    )  # fmt: skip
    def export(
        sid: Id,
        rid: Id,
        file: File,
        version: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    ) -> Response:
        found = reviews.load_reading(store, sid, rid, version=version)
        slide = found.recall(shelf.read_slide(store, sid))

        # The time is in it because another store has slides of the same numbers.
        key = f"slide {sid} of {slide['created']}, reading {rid}"

        def count() -> Differential:
            return count_reviewed(slide, found, record if slide["model"] == bundle.id else None)

        writers: dict[str, Callable[[], str | bytes]] = {
            "differential.pdf": lambda: write_pdf(count()),
            "differential.csv": lambda: write_csv([count()]),
            "differential.json": lambda: json.dumps(write_fhir(count(), key=key), indent=1) + "\n",
            "cells.csv": lambda: write_cells(slide, found),
            "set.zip": lambda: write_set(store, slide, list_reviewed(found), decoding),
        }
        name = f"slide-{sid}-reading-{rid}-version-{found.outline['version']}-{file}"
        written = writers[file]()
        return Response(
            written.encode("utf-8", "replace") if isinstance(written, str) else written,
            media_type=TYPES[file[file.rindex(".") :]],
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def write_cells(slide: Mapping[str, Any], reading: Reading) -> str:
    """All cells of a reading that aren't deleted, as CSV: what they are, and what the machine said.

    Args:
        slide: From `leuko.service.shelf.read_slide`.
        reading: Of this slide.
    """
    names = {field["id"]: field["name"] for field in slide["fields"]}
    status = FINAL if reading.outline["state"] == SIGNED else PRELIMINARY
    classes: Sequence[str] = slide["classes"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(defuse(f"p_{name}") for name in classes), "use"])
    for cell in reading.review.cells.values():
        if cell.deleted:
            continue
        said = cell.machine
        row = [
            slide["name"], status, names.get(cell.field), cell.id, *cell.box, cell.label,
            cell.state, cell.reason, said.label, said.probability, said.state, "|".join(said.set),
            *(said.probabilities.get(name) for name in classes), RESEARCH_USE,
        ]  # fmt: skip
        writer.writerow([defuse(value) for value in row])
    return out.getvalue()


def list_reviewed(reading: Reading) -> list[Cell]:
    """The cells whose labels a person answers for."""
    return [c for c in reading.review.cells.values() if c.state == REVIEWED and not c.deleted]


def write_set(
    store: Store, slide: Mapping[str, Any], known: Sequence[Cell], decoding: Semaphore
) -> bytes:
    """Reviewed cells as a labelled set: pictures and ``labels.csv``, in a zip.

    A picture is cut around the middle of its cell, all in one size, so that whoever reads the set
    can measure its scale. What lies beyond the border of a field is mirrored. Cells of one field
    are one group: they share its light and focus, and mustn't be on both sides of a split.

    Args:
        store: Where the images are.
        slide: From `leuko.service.shelf.read_slide`.
        known: From `list_reviewed`.
        decoding: Held while a picture is decoded.

    Raises:
        Refusal: 410 once the images are deleted; 422 if no cell was reviewed.
    """
    if not known:
        raise Refusal(
            422, "nothing_reviewed",
            "No cell of this reading was reviewed yet, so there are no labels to give away. "
            "Confirm or relabel cells first.",
        )  # fmt: skip
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "label", "group"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as package:  # JPEG doesn't get smaller
        for cell, picture in _cut_all(store, slide["id"], known, decoding):
            name = f"cell-{cell.id:06d}.jpg"  # beside the table: folders would be taken for classes
            package.writestr(name, encode_jpeg(picture, QUALITY))
            writer.writerow([name, cell.label, f"slide-{slide['id']}-field-{cell.field}"])
        package.writestr("labels.csv", table.getvalue())
    return out.getvalue()


def _cut_all(
    store: Store, slide: int, cells: Sequence[Cell], decoding: Semaphore
) -> Iterator[tuple[Cell, Pixels]]:
    """Pictures of cells, field by field, so that each field is read once."""
    for field in dict.fromkeys(cell.field for cell in cells):
        data, scale = fields.read_image(store, slide, field), fields.find_scale(store, slide, field)
        with decoding:
            pixels = decode_image(data)
            for cell in cells:
                if cell.field == field:
                    yield cell, pixels if scale is None else cut_window(pixels, cell.box, scale)
            del pixels


def cut_window(pixels: Pixels, box: Box, scale: float) -> Pixels:
    """A square around the middle of a cell, mirrored at the border of the field.

    Args:
        pixels: RGB (H, W, 3) uint8.
        box: x0, y0, x1, y1 in px.
        scale: Pixels per µm.
    """
    half = max(1, round(WINDOW * scale / 2))
    x, y = round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2)
    # Only what is shown is mirrored: to pad the whole field would copy it for each of its cells.
    rows, columns = (
        _mirror(np.arange(middle - half, middle + half), side)
        for middle, side in zip((y, x), pixels.shape[:2], strict=True)
    )
    return np.ascontiguousarray(pixels[np.ix_(rows, columns)])


def _mirror(places: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Places beyond the border of a field, as if it had a mirror there."""
    there = places % (2 * side)
    return np.where(there < side, there, 2 * side - 1 - there)
