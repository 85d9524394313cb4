"""Writing files so that a crash, a full disk or a second process costs nothing.

A file appears under its final name only when it is complete and on the disk.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from leuko.errors import StorageError


def write_atomically(path: Path, content: bytes | str | Callable[[Path], None]) -> Path:
    """Writes a file under a temporary name, flushes it to the disk and renames it.

    Args:
        path: The final name; an older file of that name stays intact until the rename.
        content: The bytes or text (UTF-8), or a function that writes to the path it is given.

    Raises:
        StorageError: The disk is full, the folder is read-only or the write failed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_storage_faults(path):
        try:
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_storage_faults(path: Path) -> Iterator[None]:
    """Turns a failed write into one clear `StorageError` that names the path and the free space."""
    try:
        yield
    except OSError as error:
        raise StorageError(_describe(path, error)) from error
    except Exception as error:
        # safetensors and polars report a full disk as errors of their own kind, with the
        # system's number only in the text.
        if "os error" not in str(error) and "No space left" not in str(error):
            raise
        raise StorageError(_describe(path, error)) from error


def _describe(path: Path, error: Exception) -> str:
    number = getattr(error, "errno", None)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        text in str(error) for text in ("os error 28", "No space left", "os error 27")
    )
    if full:
        return (
            f"{path} could not be written: no space left ({free_bytes(path) / 1e6:.0f} MB free). "
            "Nothing that was written before is lost. Free some space and run it again: a run that "
            "was begun goes on with --resume, another folder that was begun is deleted first."
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{path} could not be written: the folder is read-only for this user. "
            "Choose another folder with --out."
        )
    return f"{path} could not be written: {error}."


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder for files that belong together, and on a full disk leaves none of them.

    What is half there would be refused when the same is asked for again. Nothing is removed from a
    folder that held something before.
    """
    with explain_storage_faults(folder):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    try:
        yield folder
    except StorageError:
        if empty:
            for inside in folder.iterdir():
                if inside.is_dir() and not inside.is_symlink():
                    shutil.rmtree(inside, ignore_errors=True)
                else:
                    inside.unlink(missing_ok=True)
            if new:
                folder.rmdir()
        raise


def free_bytes(path: Path) -> int:
    """Free space of the file system that holds `path` or its nearest existing parent."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_free_space(path: Path, needed: int) -> None:
    """Refuses to begin work whose results won't fit.

    Raises:
        StorageError: Fewer than `needed` bytes are free.
    """
    free = free_bytes(path)
    if free < needed:
        raise StorageError(
            f"{path} has {free / 1e6:.0f} MB free, but this run needs about {needed / 1e6:.0f} MB. "
            "Free some space or choose another folder with --out."
        )
