"""Reads the files of a bundle, from a folder or a zip, and distrusts them.

Each file is read once and only those bytes are used, so that nothing can be exchanged between the
check and the use. Nothing here runs code: numbers come from safetensors, facts from JSON. Knows
formats; knows nothing of what a bundle means.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import BundleError

MOST_BYTES = 2_000_000_000  # of one part; ONNX itself ends there
SUMS = "SHA256SUMS"
# What damaged bytes raise in zipfile, which doesn't translate the faults of what unpacks, or of
# names and places that can't be.
_UNZIPPING = (
    OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error,
    lzma.LZMAError, ValueError, struct.error,
)  # fmt: skip
_TORCH_PICKLE = re.compile(rb"[^/]*/?data\.pkl")


def read_parts(
    path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """Reads exactly these files.

    Args:
        path: The folder or zip.
        names: Of all files that must be there; a folder without the first isn't taken for a bundle.
        optional: Of those that may be there; no other may be.

    Raises:
        BundleError: Something is missing, or there is something else.
    """
    if path.is_dir():
        _check_folder(path, names[0])
        parts = _read_folder(path)
    elif path.is_file():
        parts = _read_zip(path)
    else:
        raise BundleError(
            f"There is no bundle at {path}; expected a folder or a zip that leuko train wrote, or "
            "the word default for the model that ships with Leuko."
        )
    others = sorted(set(parts) - {*names, *optional})
    for name in others:
        if is_pickle(name, parts[name]):
            raise BundleError(
                f"{path} holds a pickle, {name}, which could run code when it is opened; a bundle "
                "never holds one. Don't use this bundle, and ask who gave it to you."
            )
    if others:
        raise BundleError(
            f"{path} holds {others[0]}, which doesn't belong to a bundle; expected "
            f"{', '.join(names)} only. Take it out if you know where it comes from."
        )
    missing = [name for name in names if name not in parts]
    if missing:
        raise BundleError(
            f"{path} is no whole bundle: {', '.join(missing)} is missing. Copy it again."
        )
    return parts


def is_pickle(name: str, data: bytes) -> bool:
    """Whether a file is a pickle, by its name or its first bytes, also packed as PyTorch does."""
    if name.lower().endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz", ".bin")):
        return True
    packed = data[:4] == b"PK\x03\x04" and _TORCH_PICKLE.search(data[:200]) is not None
    return packed or (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def check_sums(parts: dict[str, bytes]) -> str:
    """Compares each part with its SHA-256.

    Returns:
        The SHA-256 of the list of all hashes, by which a bundle can be told from any other.

    Raises:
        BundleError: Names the part that differs.
    """
    listed: dict[str, str] = {}
    for line in _decode(SUMS, parts[SUMS]).splitlines():
        digest, _, name = line.partition("  ")
        if name in listed or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BundleError(f"{SUMS} isn't a list of hashes: {line[:80]!r}. Copy it again.")
        listed[name] = digest
    expected = set(parts) - {SUMS}
    if set(listed) != expected:
        odd = ", ".join(sorted(set(listed) ^ expected))
        raise BundleError(f"{SUMS} doesn't list exactly the parts of the bundle: {odd}.")
    for name in sorted(expected):
        if hashlib.sha256(parts[name]).hexdigest() != listed[name]:
            raise BundleError(
                f"{name} isn't what was written: its SHA-256 differs from the one in {SUMS}. It "
                "was damaged or changed; get the bundle again from where it was made."
            )
    return hashlib.sha256(parts[SUMS]).hexdigest()


def write_sums(parts: dict[str, bytes]) -> bytes:
    """The list of hashes, in the form that ``sha256sum --check`` reads."""
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(parts.items())
    ]
    return "".join(lines).encode()


def read_json(name: str, data: bytes) -> dict[str, Any]:
    """A JSON object in which no key is there twice and every number is finite.

    Raises:
        BundleError: Anything else.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise BundleError(f"{name} holds {twice[0]!r} twice; nobody can say which one counts.")
        return dict(found)

    def refuse(constant: str) -> float:
        raise BundleError(f"{name} holds {constant}, which is no number.")

    try:
        facts = json.loads(_decode(name, data), object_pairs_hook=pairs, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{name} can't be read as JSON: {error}. Copy the bundle again."
        ) from None
    if not isinstance(facts, dict):
        raise BundleError(f"{name} holds no object; expected one, with the facts of a bundle.")
    return facts


def read_tensors(name: str, data: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """Tensors and texts of a safetensors file.

    Raises:
        BundleError: It is damaged, or holds a name twice, or NaN, or another type than float32,
            uint8 and whole numbers, or float64 for answers.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    header = _read_header(name, data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{name} can't be read as safetensors ({error}). It is damaged; get the bundle again."
        ) from None
    for key, tensor in tensors.items():
        if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
            raise BundleError(f"The tensor {key!r} of {name} holds NaN or infinite values.")
    texts = header.get("__metadata__", {})
    return tensors, {str(k): str(v) for k, v in texts.items()}


def write_tensors(tensors: dict[str, NDArray[Any]], texts: dict[str, str]) -> bytes:
    """Bytes of a safetensors file."""
    from safetensors.numpy import save

    return bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=texts))


def _read_header(name: str, data: bytes) -> dict[str, Any]:
    """The header alone; the library would take the last of two tensors of one name."""
    if len(data) < 8:
        raise BundleError(f"{name} ends too early; it was cut off. Copy the bundle again.")
    length = struct.unpack("<Q", data[:8])[0]
    if length > len(data) - 8:
        raise BundleError(f"{name} ends too early; it was cut off. Copy the bundle again.")
    return read_json(name, data[8 : 8 + length])


def _check_folder(path: Path, first: str) -> None:
    """Any other folder, such as one of images, is told from a bundle that is damaged."""
    try:
        there = first in {file.name for file in path.iterdir()}
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}).") from None
    if not there:
        raise BundleError(
            f"There is no bundle in {path}: {first} is missing. Expected a folder or a zip that "
            "leuko train wrote, or the word default for the model that ships with Leuko."
        )


def _read_folder(path: Path) -> dict[str, bytes]:
    parts = {}
    try:
        for file in sorted(path.iterdir()):
            if file.is_symlink() or not file.is_file():
                raise BundleError(
                    f"{file} is no ordinary file; a bundle holds nothing else. Copy its parts "
                    "themselves into the folder."
                )
            if file.stat().st_size > MOST_BYTES:
                raise _too_large(file.name)
            parts[file.name] = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}).") from None
    return parts


def _read_zip(path: Path) -> dict[str, bytes]:
    """The files of a zip; one folder around all of them is allowed, as packing often makes it."""
    parts: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as packed:
            members = [m for m in packed.infolist() if not m.is_dir()]
            tops = {m.filename.split("/")[0] if "/" in m.filename else "" for m in members}
            around = tops.pop() + "/" if len(tops) == 1 and "" not in tops else ""
            for member in members:
                name = member.filename.removeprefix(around)
                if name in parts:
                    raise BundleError(f"{path} holds {name} twice; nobody can say which counts.")
                if member.file_size > MOST_BYTES:
                    raise _too_large(name)
                parts[name] = packed.read(member)
    except _UNZIPPING as error:
        raise BundleError(
            f"{path} can't be read as a zip ({error}); expected a bundle that leuko train wrote."
        ) from None
    return parts


def _too_large(name: str) -> BundleError:
    return BundleError(f"{name} has more than {MOST_BYTES / 1e9:.0f} GB; no part of a bundle has.")


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{name} isn't text in UTF-8. Copy the bundle again.") from None
