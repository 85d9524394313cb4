"""Reading a table of labels as people save them: any separator, encoding and line end.

Values stay text: a class named "NA" or "007" is a name. This module knows no images.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LabelTableError

_MAX_BYTES = 64 * 1024 * 1024
_SEPARATORS = ",;\t|"
# Excel's own first line, which says what separates the values.
_EXCEL = re.compile(r"\s*\"?sep=([,;\t|])\"?[ \t,;|]*(\r\n|\r|\n)", re.IGNORECASE)


@dataclass(frozen=True)
class LabelTable:
    """The wanted columns of a table, as text without surrounding blanks.

    Attributes:
        rows: One dict per row that isn't wholly empty; absent optional columns are left out.
        numbers: 1-based number of each row below the header; empty rows count.
        notes: What was found out while reading.
    """

    rows: tuple[dict[str, str], ...]
    numbers: tuple[int, ...]
    notes: tuple[str, ...]


def read_table(
    path: Path,
    columns: Sequence[Sequence[str]],
    optional: Sequence[str] = (),
    *,
    others: bool = False,
) -> LabelTable:
    """Reads a table with a header row.

    Byte-order marks, UTF-16, cp1252 and latin-1, the separators comma, semicolon, tab and bar,
    Excel's first line ``sep=;``, quotes and all line ends are understood; column names are matched
    without case.

    Args:
        path: Of the file.
        columns: What is needed; each entry lists the names that one column may have, and the
            first of them is its name in the result.
        optional: Further columns to take where they exist.
        others: Take all other columns with a name too, under it as it is written.

    Raises:
        LabelTableError: It is no table, or a column is missing, or a row has too many values.
    """
    text, notes = _decode(path, _load(path))
    said = _EXCEL.match(text)
    text = text[said.end() :] if said else text
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise LabelTableError(
            f"{path} is empty; expected a header and rows. "
            f"Write the columns {_spell(columns)} into its first row."
        )
    separator = said[1] if said else _choose_separator(lines[0], columns)
    try:
        records = list(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=separator,
                skipinitialspace=True,
                strict=True,
            )
        )
    except csv.Error as error:
        raise LabelTableError(
            f"{path} is no table that can be read ({error}); expected one row per label. "
            "Look for a quotation mark that is never closed."
        ) from None
    start = next(i for i, record in enumerate(records) if any(cell.strip() for cell in record))
    header = [cell.strip() for cell in records[start]]
    places = _find_columns(path, header, columns, optional)
    if others:
        left = [name for i, name in enumerate(header) if name and i not in places.values()]
        places |= _find_columns(path, header, [], left)
    rows, numbers = [], []
    for number, record in enumerate(records[start + 1 :], start=1):
        if not any(cell.strip() for cell in record):
            continue
        if any(cell.strip() for cell in record[len(header) :]):
            raise LabelTableError(
                f"{path}, row {number} has {len(record)} values; expected {len(header)}, as in "
                f"the header. Put values that contain {separator!r} in quotation marks."
            )
        cells = record + [""] * (len(header) - len(record))
        rows.append({name: cells[place].strip() for name, place in places.items()})
        numbers.append(number)
    return LabelTable(tuple(rows), tuple(numbers), tuple(notes))


def _load(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LabelTableError(
                f"{path} has more than {_MAX_BYTES // 2**20} MiB; expected a table of labels. "
                "Check that it is the right file."
            )
        return path.read_bytes()
    except OSError as error:
        raise LabelTableError(
            f"{path} can't be read ({error.strerror}); expected a table of labels. "
            "Check the path and its permissions."
        ) from None


def _decode(path: Path, data: bytes) -> tuple[str, list[str]]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif b"\0" in data:
        raise LabelTableError(
            f"{path} isn't a text file; expected a table of labels as CSV. "
            "Save the table as CSV (UTF-8)."
        )
    else:
        # cp1252 leaves five bytes without a meaning; latin-1 never fails.
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        notes = []
        if encoding != "utf-8-sig":
            notes.append(f"{path.name} was read as {encoding}, because it isn't UTF-8.")
        return text, notes
    raise LabelTableError(
        f"{path} begins like UTF-16 but isn't; expected UTF-8. Save the table as CSV (UTF-8)."
    )


def _choose_separator(header: str, columns: Sequence[Sequence[str]]) -> str:
    def score(separator: str) -> tuple[int, int]:
        cells = [c.strip(" \t\"'").casefold() for c in header.split(separator)]
        found = sum(any(name.casefold() in cells for name in names) for names in columns)
        return found, len(cells)

    return max(_SEPARATORS, key=score)


def _find_columns(
    path: Path, header: list[str], columns: Sequence[Sequence[str]], optional: Sequence[str]
) -> dict[str, int]:
    folded = [name.casefold() for name in header]
    places: dict[str, int] = {}
    for names in [*columns, *([name] for name in optional)]:
        found = [i for i, name in enumerate(folded) if name in {n.casefold() for n in names}]
        if len(found) > 1:
            raise LabelTableError(
                f"{path} has {len(found)} columns named {_spell([names])}; expected one. "
                "Remove or rename the others."
            )
        if found:
            places[names[0]] = found[0]
        elif names[0] not in optional:
            raise LabelTableError(
                f"{path} has no column {_spell([names])}; found: "
                f"{', '.join(repr(name[:40]) for name in header[:12])}; expected "
                f"{_spell(columns)}. Name the columns in the first row."
            )
    return places


def _spell(columns: Sequence[Sequence[str]]) -> str:
    return " and ".join(" or ".join(repr(name) for name in names) for names in columns)
