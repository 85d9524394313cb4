"""Reading one image: one decoder and one policy for every door.

Cleaning, training, prediction, command line and service all read through `read_image`, so that
the same bytes always give the same pixels or the same reason code. This module knows nothing of
folders, labels or cells.

JPEG goes through libjpeg with warnings as errors: other decoders accept half a file with an end
marker glued on. PNG, BMP and TIFF go through Pillow, after `leuko.data.headers` has judged the
header and removed what isn't pixels. Colour profiles are not applied: values are taken as written.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leuko.data.headers import MAX_BYTES, REASONS, ImageHeader, parse_header, refuse
from leuko.errors import ImageError, ShapeError

__all__ = [
    "REASONS",
    "ImageHeader",
    "decode_image",
    "encode_jpeg",
    "encode_png",
    "read_bytes",
    "read_header",
    "read_image",
    "resize_image",
]

Source = str | os.PathLike[str] | bytes
Pixels = NDArray[np.uint8]

# warnings.catch_warnings changes the whole process: two threads inside would undo each other's
# filters. Only TIFF needs it, so only TIFF waits here.
_QUIET = threading.Lock()
_ROWS_AT_A_TIME = 256
# 12- and 14-bit cameras often write their values unscaled into 16 bits; read as 16 bits the
# picture would be nearly black. A bright-field image whose brightest pixel is a quarter of the
# range doesn't occur otherwise.
_LEAST_OF_16_BITS = (1 << 14) >> 8  # its high byte


def read_image(source: Source) -> Pixels:
    """Reads one image as everyone here sees it.

    EXIF orientation is applied, 16 bits are scaled by 1/257, transparency is laid on white, grey
    becomes RGB. Limits are judged from the header, before pixels are decoded.

    Args:
        source: A path, or the bytes of a file.

    Returns:
        RGB, (H, W, 3), uint8.

    Raises:
        ImageError: The image can't be used; ``.reason`` is a key of `REASONS`.
    """
    return decode_image(_load(source), name=_name(source))


def read_header(source: Source) -> ImageHeader:
    """Reads and judges the header of one image; no pixel is decoded.

    Args:
        source: A path, or the bytes of a file.

    Raises:
        ImageError: As for `read_image`, as far as the header shows it.
    """
    data = _load(source)
    try:
        return parse_header(data)[0]
    except ImageError as error:
        raise _named(error, _name(source)) from None


def decode_image(data: bytes, *, name: str = "image") -> Pixels:
    """Same as `read_image` for bytes that are at hand; ``name`` begins the error message."""
    try:
        header, payload = parse_header(data)
        pixels = _decode_jpeg(payload) if header.format == "JPEG" else _decode(header, payload)
        if header.format != "TIFF":  # Pillow turns TIFF, and only TIFF, by itself
            pixels = _turn(pixels, header.orientation)
        if pixels.shape != (header.height, header.width, 3):
            raise refuse("damaged_header", f"pixels of shape {pixels.shape}")
    except ImageError as error:
        raise _named(error, name) from None
    return np.ascontiguousarray(pixels)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads an ordinary file of at most 20 MiB; never waits for a pipe or a device.

    Raises:
        ImageError: With ``not_found``, ``is_folder``, ``not_a_file``, ``no_access`` or
            ``file_too_large``.
    """
    name = _name(path)
    try:
        # Not blocking: between a check and the opening the file could become a pipe.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        if stat.S_ISDIR(Path(path).stat().st_mode):
            raise refuse("is_folder", "a folder")
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise refuse("not_a_file", "a pipe, device or socket")
            if facts.st_size > MAX_BYTES:
                raise refuse("file_too_large", f"{facts.st_size / 2**20:.1f} MiB")
            return file.read(MAX_BYTES + 1)
    except ImageError as error:
        raise _named(error, name) from None
    except FileNotFoundError:
        raise _named(refuse("not_found", "nothing at this path"), name) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        detail = getattr(error, "strerror", None) or str(error)
        raise _named(refuse("no_access", f"a file that can't be read ({detail})"), name) from None


def resize_image(image: Pixels, height: int, width: int) -> Pixels:
    """Resizes with antialiasing: bilinear, its support scaled with the reduction (Pillow).

    Args:
        image: (H, W, 3), uint8.
        height: Of the result, pixels.
        width: Of the result, pixels.

    Raises:
        ShapeError: ``image`` has another shape or type, or a side is below 1.
    """
    _check(image)
    if height < 1 or width < 1:
        raise ShapeError(f"found a wanted size of {height} × {width}; expected at least 1 × 1.")
    if image.shape[:2] == (height, width):
        return image.copy()
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def encode_png(image: Pixels) -> bytes:
    """Writes (H, W, 3) uint8 as PNG; no metadata."""
    _check(image)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG")
    return out.getvalue()


def encode_jpeg(image: Pixels, quality: int = 90) -> bytes:
    """Writes (H, W, 3) uint8 as JPEG, colour at full resolution; no metadata.

    Args:
        image: RGB, (H, W, 3), uint8.
        quality: 1 to 100.
    """
    import simplejpeg

    _check(image)
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444"
    )
    return bytes(data)


def _check(image: Pixels) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(
            f"found an image of shape {image.shape} and type {image.dtype}; "
            "expected (H, W, 3) and uint8."
        )


def _load(source: Source) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    return read_bytes(source)


def _name(source: Source) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return "image"
    # A name may hold line breaks or terminal codes; the message must not.
    return "".join(c if c.isprintable() else "�" for c in os.fspath(source))


def _named(error: ImageError, name: str) -> ImageError:
    return ImageError(f"{name}: {error}", reason=error.reason)


def _decode_jpeg(data: bytes) -> Pixels:
    import simplejpeg

    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    except Exception as error:
        text = str(error)
        reason = "truncated" if "remature end" in text else "damaged"
        raise refuse(reason, f"a JPEG with damaged data ({text})") from None


def _decode(header: ImageHeader, data: bytes) -> Pixels:
    def opened() -> Image.Image:
        return Image.open(io.BytesIO(data), formats=(header.format,))

    try:
        if header.format != "TIFF":
            return _to_rgb(opened, header)
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _to_rgb(opened, header)
    except ImageError:
        raise
    except Exception as error:
        # Pillow reports damage by OSError, SyntaxError, ValueError, EOFError, struct.error,
        # KeyError, MemoryError, DecompressionBombError and more.
        text = " ".join(str(error).split())[:200] or type(error).__name__
        reason = "truncated" if "truncated" in text else "damaged"
        raise refuse(reason, f"a {header.format} with damaged data ({text})") from None


def _to_rgb(opened: Callable[[], Image.Image], header: ImageHeader) -> Pixels:
    image = opened()
    if header.bits == 16:
        high, low = _read_16_bits(opened, image)
        if header.inverted:
            high, low = 255 - high, 255 - low
        if high[..., :3].max() < _LEAST_OF_16_BITS:
            raise refuse("bit_depth", "16 bits of which at most the lower 14 are used")
        pixels = _scale_16_bits(high, low)
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
    elif image.mode in ("L", "P", "RGB", "RGBX", "YCbCr"):
        pixels = np.array(image.convert("RGB"))
    else:
        raise refuse("unsupported", f"a {header.format} of the kind {image.mode!r}")
    if pixels.shape[2] == 4:
        return _lay_on_white(pixels)
    return pixels


def _read_16_bits(opened: Callable[[], Image.Image], image: Image.Image) -> tuple[Pixels, Pixels]:
    """The high and the low bytes of each channel, each (H, W, 1, 3 or 4).

    Pillow keeps 16 bits for grey only; of colours it unpacks the high byte. Decoded a second
    time with the byte order swapped, it unpacks the low byte.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)[..., None]
        high, low = (grey >> 8).astype(np.uint8), (grey & 255).astype(np.uint8)
    else:
        raw = _raw_mode(image)
        if raw == "LA;16B":  # four bytes a pixel: grey high, grey low, alpha high, alpha low
            both = np.asarray(_with_raw_mode(image, "RGBA"))
            return both[..., [0, 0, 0, 2]], both[..., [1, 1, 1, 3]]
        swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
        if raw[:-1] not in ("RGB;16", "RGBX;16", "RGBA;16"):
            raise refuse("unsupported", f"16-bit pixels packed as {raw!r}")
        high = np.asarray(image)
        image.close()  # at 25 megapixels each copy counts
        low = np.asarray(_with_raw_mode(opened(), raw[:-1] + swapped[raw[-1]]))
    if key is not None:  # one colour of a PNG that means "transparent"
        hidden = (high == np.asarray(key) >> 8) & (low == np.asarray(key) & 255)
        alpha = np.where(hidden.all(axis=-1, keepdims=True), 0, 255).astype(np.uint8)
        colours = [0, 0, 0] if high.shape[2] == 1 else [0, 1, 2]
        high = np.concatenate([high[..., colours], alpha], axis=-1)
        low = np.concatenate([low[..., colours], alpha], axis=-1)
    return high, low


def _raw_mode(image: Image.Image) -> str:
    args = image.tile[0].args  # type: ignore[attr-defined]
    return str(args if isinstance(args, str) else args[0])


def _with_raw_mode(image: Image.Image, raw: str) -> Image.Image:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]
    return image


def _scale_16_bits(high: Pixels, low: Pixels) -> Pixels:
    """Rounds v / 257, so that 65535 becomes 255; a strip at a time, to need little memory."""
    out = np.empty(high.shape, np.uint8)
    for top in range(0, len(high), _ROWS_AT_A_TIME):
        strip = slice(top, top + _ROWS_AT_A_TIME)
        # v = 256 high + low = 257 high + rest, so v / 257 rounds to high, or to a neighbour.
        rest = low[strip].astype(np.int16) - high[strip]
        out[strip] = high[strip] + (rest > 128) - (rest < -128).astype(np.uint8)
    return out


def _lay_on_white(pixels: Pixels) -> Pixels:
    if not pixels[..., 3].any():
        raise refuse("transparent", "a picture that is transparent everywhere")
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), _ROWS_AT_A_TIME):
        strip = slice(top, top + _ROWS_AT_A_TIME)
        alpha = pixels[strip, :, 3:].astype(np.uint16)
        mixed = pixels[strip, :, :3] * alpha + 255 * (255 - alpha) + 127  # fits into 16 bits
        out[strip] = (mixed + 1 + (mixed >> 8)) >> 8  # mixed // 255, exactly
    return out


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Brings an image that was stored in one of the eight EXIF orientations upright."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
