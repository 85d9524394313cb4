"""What people hand over, as a list of pictures: files, folders, tables, bytes, arrays, lists.

Knows where pictures come from; knows nothing of cells or models.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.folders import Aside, is_folder, stay_inside, walk_files
from leuko.data.image import decode_image, read_header, read_image
from leuko.data.tables import read_table
from leuko.errors import ImageError, LabelTableError, NoImagesError, ShapeError


@dataclass(frozen=True)
class Item:
    """One picture that isn't read yet.

    Attributes:
        name: As it is called in the answers: the path as given, or ``image-3`` for the third.
        source: A path, bytes, an array (H, W, 3) uint8, or a picture of Pillow.
    """

    name: str
    source: Any

    def read(self) -> NDArray[np.uint8]:
        """Decodes it: RGB (H, W, 3).

        Raises:
            ImageError: It can't be read.
        """
        if isinstance(self.source, np.ndarray):
            return self.source
        if isinstance(self.source, bytes):
            return decode_image(self.source, name=self.name)
        if isinstance(self.source, Path):
            return read_image(self.source)
        return decode_image(_pack(self.name, self.source), name=self.name)

    def measure(self) -> tuple[int, int]:
        """Width and height, without decoding a file.

        Raises:
            ImageError: It can't be read, as far as the header shows it.
        """
        if isinstance(self.source, np.ndarray):
            return self.source.shape[1], self.source.shape[0]
        if isinstance(self.source, bytes | Path):
            header = read_header(self.source)
            return header.width, header.height
        return int(self.source.width), int(self.source.height)


def gather(given: Any) -> tuple[list[Item], list[str]]:
    """Lists the pictures in what was handed over.

    Args:
        given: A path of an image, of a folder (all images below) or of a CSV with a column
            ``image``; bytes of a file; an array (H, W, 3) uint8; a picture of Pillow; or any
            iterable of these.

    Returns:
        The pictures in order, and sentences about what was left out of folders.

    Raises:
        NoImagesError: A folder or table without images, or nothing at all.
        ShapeError: An array of another shape or type, or something else altogether.
    """
    items: list[Item] = []
    notes: list[str] = []
    for one in [given] if _is_single(given) else given:
        _add(one, items, notes)
    if not items:
        raise NoImagesError(
            "There is no image in what was given; expected images, a folder or a CSV with a "
            "column image." + "".join(f" {note}." for note in notes)
        )
    return items, notes


def check_named(paths: Iterable[Path]) -> None:
    """Refuses paths that a person has named and that don't exist, before any work is done.

    `gather` lists a picture that isn't there with those that can't be read, as a table may name
    one among thousands; what was typed is rather misspelt.

    Raises:
        NoImagesError: Names the first ones.
    """
    missing = [str(path) for path in paths if not _exists(path)]
    if not missing:
        return
    rest = len(missing) - 3
    told = ", ".join([*missing[:3], *([f"… ({rest} more)"] if rest > 0 else [])])
    advice = "Check the path."
    if any(sign in name for name in missing for sign in "*?["):
        advice = "If it is a pattern, no file fits it; the shell fills in patterns without quotes."
    elif os.sep == "/" and any("\\" in name for name in missing):
        advice = "Folders are separated by / here, not by a backslash."
    raise NoImagesError(
        f"There is no {told}; expected an image, a folder or a CSV with a column image. {advice}"
    )


def _exists(path: Path) -> bool:
    """Whether something is there; what may not be looked at is for the reader to refuse."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _is_single(given: Any) -> bool:
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray):
        return True
    return _is_pillow(given) or not isinstance(given, Iterable)


def _is_pillow(given: Any) -> bool:
    return all(hasattr(given, name) for name in ("save", "mode", "width", "height"))


def _add(one: Any, items: list[Item], notes: list[str]) -> None:
    number = f"image-{len(items) + 1}"
    if isinstance(one, str | os.PathLike):
        path = Path(one)
        if is_folder(path):
            items += _list_folder(path, notes)
        elif path.suffix.lower() in (".csv", ".tsv"):
            items += _list_table(path, notes)
        else:
            items.append(Item(os.fspath(one), path))
    elif isinstance(one, bytes | bytearray | memoryview):
        items.append(Item(number, bytes(one)))
    elif isinstance(one, np.ndarray):
        if one.ndim != 3 or one.shape[2] != 3 or one.dtype != np.uint8 or one.size == 0:
            raise ShapeError(
                f"{number} is an array {one.shape} of {one.dtype}; expected (H, W, 3) uint8 in "
                "the order red, green, blue. Several pictures go into a list."
            )
        items.append(Item(number, one))
    elif _is_pillow(one):
        items.append(Item(number, one))
    else:
        raise ShapeError(
            f"{number} is {type(one).__name__}; expected a path, bytes, an array (H, W, 3) uint8 "
            "or a picture of Pillow."
        )


def _list_folder(folder: Path, notes: list[str]) -> list[Item]:
    aside = Aside()
    found = [file for file in walk_files(folder, notes) if not aside.takes(file, folder)]
    notes += aside.notes()
    if not found:
        raise NoImagesError(f"{folder} holds no image, and no folder below it does.")
    return [Item(file.as_posix(), file) for file in found]


def _list_table(path: Path, notes: list[str]) -> list[Item]:
    table = read_table(path, [["image", "path", "file"]])
    notes += table.notes
    items = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        inside = stay_inside(row["image"], path.parent) if row["image"] else None
        if inside is None:
            raise LabelTableError(
                f"{path}, row {number} names {row['image'][:80]!r}; expected a file below "
                f"{path.parent}. Move the CSV to the images, or shorten the paths."
            )
        items.append(Item(row["image"], path.parent / inside))
    return items


def _pack(name: str, picture: Any) -> bytes:
    """A picture of Pillow as PNG, so that modes and transparency meet the policy of all images."""
    out = io.BytesIO()
    try:
        picture.save(out, "PNG")
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(
            f"{name}: a picture of the mode {picture.mode!r} ({error}); expected RGB or grey. "
            "Convert it with .convert('RGB').",
            reason="unsupported",
        ) from None
    return out.getvalue()
