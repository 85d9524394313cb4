"""Folders as people have them: which files are images, what is set aside, what leads outside.

The order never depends on the file system: names are sorted. Hidden files and folders, and what
operating systems leave behind, are passed over.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from leuko.data.headers import tell_format

# Names that promise a picture: such a file is an image, readable or not. Formats that can't be
# read are in the list so that nobody's pictures are left out silently.
_IMAGE_NAMES = re.compile(
    r".*\.(jpe?g|jpe|jfif|mpo|a?png|bmp|dib|tiff?|gif|webp|hei[cf]|avif|jp2|j2k|svs|ndpi|dcm|svg"
    r"|eps|psd)",
    re.IGNORECASE | re.DOTALL,
)


def list_folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name, links included; none where it can't be read."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in inside if not is_hidden(path.name) and is_folder(path)]


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but false instead of an error where looking is forbidden."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """As `Path.is_file`, but false instead of an error where looking is forbidden."""
    return os.path.isfile(path)  # noqa: PTH113


def walk_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders below, the nearest first."""
    level = [folder]
    for _ in range(depth):
        level = [inner for outer in level for inner in list_folders(outer)]
        yield from level


def walk_files(folder: Path, notes: list[str] | None = None) -> Iterator[Path]:
    """All files below, by name, but for those in hidden folders; links are followed.

    Args:
        folder: Where to begin.
        notes: Gets a sentence for each folder that can't be read, and for each link that leads
            back to where it lies.
    """
    told = [] if notes is None else notes

    def fail(error: OSError) -> None:
        told.append(f"{error.filename} can't be read ({error.strerror}) and was left out.")

    # Of each place the folders that it lies in, so that a loop is seen.
    chains: dict[str, tuple[str, ...]] = {str(folder): (os.path.realpath(folder),)}
    for place, inner, names in os.walk(folder, onerror=fail, followlinks=True):
        chain = chains.pop(place)
        kept = []
        for name in sorted(name for name in inner if not is_hidden(name)):
            path = os.path.join(place, name)  # noqa: PTH118 (the key that os.walk gives back)
            real = os.path.realpath(path)
            if any(Path(outer).is_relative_to(real) for outer in chain):
                told.append(f"{path} leads back to {real} and was left out.")
                continue
            chains[path] = (*chain, real)
            kept.append(name)
        inner[:] = kept
        for name in sorted(names):
            yield Path(place, name)


def is_hidden(name: str) -> bool:
    """Whether a name is hidden, or left behind by an operating system."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def is_image(file: Path) -> bool:
    """Whether a file is meant to be an image, by its name or else by its first bytes."""
    if is_hidden(file.name):
        return False
    if _IMAGE_NAMES.fullmatch(file.name):
        return True
    if not is_file(file):  # never open a pipe
        return False
    try:
        with file.open("rb") as opened:
            return tell_format(opened.read(512)) in ("JPEG", "PNG", "BMP", "TIFF")
    except OSError:
        return False


def holds_images(folder: Path) -> bool:
    """Whether a folder holds images itself, not further below; false where it can't be read."""
    try:
        inside = list(folder.iterdir())
    except OSError:
        return False
    return any(is_image(path) for path in inside if not is_folder(path))


def stay_inside(asked: str, root: Path) -> str | None:
    """The path relative to the root with "/", or None if it leads outside."""
    path = asked.replace("\\", "/")
    if "\0" in path or PureWindowsPath(asked).drive:
        return None
    if path.startswith("/"):
        path = posixpath.normpath(path)
        for base in (root.resolve(), root.absolute()):  # as it is called, perhaps by a link
            if path.startswith(within := base.as_posix().rstrip("/") + "/"):
                return path.removeprefix(within)
        return None
    path = posixpath.normpath(path) if path else ""
    return None if path == ".." or path.startswith("../") else path


class Aside:
    """Counts the files that are no images, so that they can be named."""

    def __init__(self) -> None:
        self.hidden: list[str] = []
        self.others: list[str] = []
        self.strays: list[str] = []
        self.odd: list[str] = []

    def takes(self, file: Path, root: Path) -> bool:
        """Whether a file is no image that can be used; if so, it is counted."""
        name = file.relative_to(root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            self.odd.append(ascii(name))
            return True
        if is_hidden(file.name):
            self.hidden.append(name)
        elif not is_image(file):
            self.others.append(name)
        else:
            return False
        return True

    def notes(self) -> list[str]:
        """One sentence per kind of files set aside."""
        kinds = (
            (self.hidden, "hidden files"),
            (self.others, "files that are no images"),
            (self.strays, "images outside of the class folders"),
            (self.odd, "files whose names aren't UTF-8"),
        )
        return [
            f"Set aside: {len(names)} {kind} ({', '.join(map(ascii, names[:10]))}"
            f"{', …' if len(names) > 10 else ''})"
            for names, kind in kinds
            if names
        ]
