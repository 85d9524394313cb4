"""What an image file says about itself, read before any pixel is.

Every limit is checked here, on a few bytes, so that a small file that claims a huge picture
costs nothing. The formats are told by their first bytes, never by the file name. This module
decodes no pixels and knows no Pillow.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from leuko.errors import ImageError

MAX_PIXELS = 25_000_000  # microscope cameras stay below 20 megapixels
MAX_BYTES = 20 * 1024 * 1024
MIN_SIDE = 8
MAX_ASPECT = 20
_MAX_SEGMENTS = 10_000  # of a JPEG; real ones have a few dozen
_MAX_SCANS = 100  # of a progressive JPEG; each one walks over the whole picture
_MAX_TEXT = 1 << 20  # bytes of one unpacked PNG text

_REEXPORT = "Save the picture again as 8-bit RGB PNG or JPEG."
_COPY = "Take a fresh copy of the file from where it came from."

#: Stable reason codes: (what was expected, what to do next).
REASONS: dict[str, tuple[str, str]] = {
    "not_found": ("an existing file", "Check the path."),
    "is_folder": ("a file", "Name the images in the folder, or scan the folder."),
    "not_a_file": ("an ordinary file", "Copy the data into an ordinary file first."),
    "no_access": ("a file that can be read", "Check its permissions and the disk."),
    "empty": ("an image", _COPY),
    "file_too_large": (f"at most {MAX_BYTES // 2**20} MiB", "Crop it, or save it as JPEG."),
    "not_an_image": ("JPEG, PNG, BMP or TIFF", "Check what the file really is."),
    "format": ("JPEG, PNG, BMP or TIFF", _REEXPORT),
    "whole_slide": ("one field as JPEG, PNG, BMP or TIFF", "Export fields from the slide viewer."),
    "damaged_header": ("a complete header", _COPY),
    "truncated": ("a complete file", _COPY),
    "damaged": ("undamaged image data", _COPY),
    "checksum": ("chunks that match their checksums", _COPY),
    "too_many_pixels": (
        f"at most {MAX_PIXELS // 1_000_000} megapixels",
        "Cut it into fields or make it smaller.",
    ),
    "too_small": (f"sides of at least {MIN_SIDE} pixels", "Use the original picture."),
    "aspect": (f"sides that differ by at most {MAX_ASPECT} times", "Cut out the field."),
    "too_many_scans": (f"at most {_MAX_SCANS} scans", _REEXPORT),
    "metadata_bomb": ("texts of ordinary length", _REEXPORT),
    "colour_model": ("grey, RGB or palette", _REEXPORT),
    "bit_depth": ("8 bits per channel, or 16 that use their range", _REEXPORT),
    "one_bit": ("shades, not only black and white", "Save the picture without thresholding."),
    "float": ("whole numbers of 8 or 16 bits", _REEXPORT),
    "many_pages": ("one picture per file", "Save each page as a file of its own."),
    "animated": ("one picture per file", "Save the wanted frame as PNG."),
    "transparent": ("visible pixels", "Save the picture without transparency."),
    "unsupported": ("a usual variant of the format", _REEXPORT),
}


@dataclass(frozen=True)
class ImageHeader:
    """What the header of one image file says.

    Attributes:
        format: "JPEG", "PNG", "BMP" or "TIFF".
        width: Pixels, after the EXIF orientation is applied.
        height: Pixels, after the EXIF orientation is applied.
        bytes: Size of the file.
        orientation: EXIF orientation, 1 to 8; 1 where none or a wrong one is given.
        bits: Per channel: 8 or 16 (a palette counts as 8).
        inverted: Zero means white (some grey TIFF).
    """

    format: str
    width: int
    height: int
    bytes: int
    orientation: int = 1
    bits: int = 8
    inverted: bool = False


def refuse(reason: str, found: str) -> ImageError:
    """The error for one image: what was found, what was expected, what to do next."""
    expected, next_step = REASONS[reason]
    return ImageError(f"found {found}; expected {expected}. {next_step}", reason=reason)


def parse_header(data: bytes) -> tuple[ImageHeader, bytes]:
    """Reads and judges the header.

    Args:
        data: The whole file.

    Returns:
        The header, and the bytes that a decoder should see: for PNG without texts, profiles
        and other extras, which have been the way in for many attacks; else ``data`` itself.

    Raises:
        ImageError: With one of `REASONS`.
    """
    if not data:
        raise refuse("empty", "a file of 0 bytes")
    if len(data) > MAX_BYTES:
        raise refuse("file_too_large", f"{len(data) / 2**20:.1f} MiB")
    form = tell_format(data)
    if form is None:
        raise refuse("not_an_image", _describe(data))
    try:
        if form == "JPEG":
            return _parse_jpeg(data), data
        if form == "PNG":
            return _parse_png(data)
        if form == "BMP":
            return _parse_bmp(data), data
        if form == "TIFF":
            return _parse_tiff(data), data
    except (struct.error, IndexError):
        raise refuse("truncated", f"a {form} that ends within its header") from None
    raise refuse("whole_slide" if form == "BigTIFF" else "format", f"a {form} file")


def tell_format(data: bytes) -> str | None:
    """Names the format by the first bytes; None if it is no image format that is known."""
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"II*\x00", "TIFF"),
        (b"MM\x00*", "TIFF"),
        (b"II+\x00", "BigTIFF"),
        (b"MM\x00+", "BigTIFF"),
        (b"GIF8", "GIF"),
        (b"%!PS", "PostScript"),
        (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"SIMPLE  =", "FITS"),
    ):
        if data.startswith(magic):
            return name
    # "BM" alone starts many a text: the four reserved bytes and the header size must fit.
    if (
        data[:2] == b"BM"
        and data[6:10] == b"\0\0\0\0"
        and data[14:15] in b"\x0c\x28\x34\x38\x6c\x7c"
    ):
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif"):
        return "HEIC/AVIF"
    if data[128:132] == b"DICM":
        return "DICOM"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in data[:4096]):
        return "SVG"
    return None


def _describe(data: bytes) -> str:
    if not any(data[:4096]):
        return "only zero bytes"
    if b"\0" not in data[:512]:
        return "text" if all(b >= 9 for b in data[:512]) else "something that is no image"
    return "something that is no image"


def _judge_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise refuse("damaged_header", f"a picture of {width} × {height} pixels")
    if width * height > MAX_PIXELS:
        raise refuse(
            "too_many_pixels", f"{width} × {height} = {width * height / 1e6:.1f} megapixels"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise refuse("aspect", f"{width} × {height} pixels")
    if min(width, height) < MIN_SIDE:
        raise refuse("too_small", f"{width} × {height} pixels")


def _finish(
    form: str,
    width: int,
    height: int,
    data: bytes,
    orientation: int = 1,
    bits: int = 8,
    inverted: bool = False,
) -> ImageHeader:
    if orientation >= 5:  # the four that lie on their side
        width, height = height, width
    return ImageHeader(form, width, height, len(data), orientation, bits, inverted)


# JPEG


def _parse_jpeg(data: bytes) -> ImageHeader:
    orientation, frame, pos = 1, None, 2
    for _ in range(_MAX_SEGMENTS):
        if data[pos] != 0xFF:
            raise refuse("damaged_header", "a JPEG whose segments don't join")
        while data[pos] == 0xFF:
            pos += 1
        marker = data[pos]
        pos += 1
        if marker == 0xDA:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        (length,) = struct.unpack_from(">H", data, pos)
        body = data[pos + 2 : pos + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None:
                raise refuse("damaged_header", "a JPEG with two frame headers")
            frame = (marker, *struct.unpack_from(">BHHB", body))
        elif marker == 0xE1 and body[:6] == b"Exif\0\0" and orientation == 1:
            orientation = _read_orientation(body[6:])
        pos += length
    else:
        raise refuse("damaged_header", f"a JPEG of more than {_MAX_SEGMENTS} segments")
    if frame is None:
        raise refuse("damaged_header", "a JPEG without a frame header")
    marker, precision, height, width, channels = frame
    _judge_size(width, height)
    if precision != 8:
        raise refuse("bit_depth", f"a JPEG of {precision} bits")
    if marker not in (0xC0, 0xC1, 0xC2):
        raise refuse("unsupported", f"an arithmetic-coded or lossless JPEG (SOF{marker - 0xC0})")
    if channels not in (1, 3):
        # Adobe writes CMYK inverted, others don't, and the ink profile decides the colours:
        # a guess would shift the very stain colours that cells are told by.
        raise refuse("colour_model", f"a JPEG of {channels} channels (CMYK)")
    if data.count(b"\xff\xda", pos) > _MAX_SCANS:
        raise refuse("too_many_scans", "a progressive JPEG of very many scans")
    # A second picture behind the first (MPO: a phone's preview or depth map) is left alone:
    # the format declares the first one to be the picture.
    return _finish("JPEG", width, height, data, orientation)


# PNG


def _parse_png(data: bytes) -> tuple[ImageHeader, bytes]:
    # The limits first: IHDR has a fixed place.
    if data[12:16] != b"IHDR":
        raise refuse("truncated" if len(data) < 33 else "damaged_header", "a PNG without IHDR")
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    _judge_size(width, height)
    orientation, pos, ended = 1, 8, False
    keep = [data[:8]]
    while pos < len(data) and not ended:
        length, name = struct.unpack_from(">I4s", data, pos)
        end = pos + 12 + length
        if end > len(data):
            raise refuse("truncated", "a PNG that ends within a chunk")
        if zlib.crc32(data[pos + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise refuse("checksum", f"a PNG chunk {name!r} with a wrong checksum")
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            keep.append(data[pos:end])
        elif name == b"acTL":
            raise refuse("animated", "an animated PNG")
        elif name == b"eXIf":
            orientation = _read_orientation(data[pos + 8 : end - 4])
        elif name in (b"zTXt", b"iTXt"):
            _judge_text(name, data[pos + 8 : end - 4])
        ended = name == b"IEND"
        pos = end
    if not ended:
        raise refuse("truncated", "a PNG without its end")
    if depth == 1 and kind == 0:
        raise refuse("one_bit", "a PNG of 1 bit")
    header = _finish("PNG", width, height, data, orientation, 16 if depth == 16 else 8)
    return header, b"".join(keep)


def _judge_text(name: bytes, body: bytes) -> None:
    key, _, rest = body.partition(b"\0")
    if name == b"iTXt":
        packed = rest[:1] == b"\x01"
        rest = rest[2:].split(b"\0", 2)[-1]
        if not packed:
            return
    else:
        rest = rest[1:]
    try:
        if len(zlib.decompressobj().decompress(rest, _MAX_TEXT)) >= _MAX_TEXT:
            raise refuse("metadata_bomb", f"a PNG text {key[:20]!r} of more than 1 MiB")
    except zlib.error:
        return  # a broken text doesn't touch the pixels, and it is dropped


# BMP


def _parse_bmp(data: bytes) -> ImageHeader:
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", data, 18)
    _judge_size(width, abs(height))  # a negative height means: top row first
    if bits == 1:
        raise refuse("one_bit", "a BMP of 1 bit")
    if packing not in (0, 3, 6) or bits not in (4, 8, 16, 24, 32):
        # The decoder of run lengths fills what is missing without a word.
        raise refuse("unsupported", f"a BMP of {bits} bits with packing {packing}")
    if offset + (width * bits + 31) // 32 * 4 * abs(height) > len(data):
        raise refuse("truncated", "a BMP with fewer pixels than its header says")
    return _finish("BMP", width, abs(height), data)


# TIFF, and the orientation in EXIF, which is a TIFF inside


def _read_tags(data: bytes) -> tuple[dict[int, list[int]], int]:
    """Whole-number tags of the first page, and where the second page starts (0: none)."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    tags: dict[int, list[int]] = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, n = struct.unpack_from(order + "HHI", data, entry)
        if kind not in (3, 4):
            continue
        letter, size = ("H", 2) if kind == 3 else ("I", 4)
        if n * size > len(data):
            raise refuse("damaged_header", f"a TIFF tag {tag} that claims {n} values")
        place = entry + 8
        if n * size > 4:
            (place,) = struct.unpack_from(order + "I", data, entry + 8)
        tags[tag] = list(struct.unpack_from(f"{order}{n}{letter}", data, place))
    (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    return tags, following


def _read_orientation(exif: bytes) -> int:
    try:
        if exif[:4] not in (b"II*\0", b"MM\0*"):
            return 1
        # Only one entry is wanted; the rest may be as broken as it likes.
        order = "<" if exif[:2] == b"II" else ">"
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, n, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 274:
                return int(value) if kind == 3 and n == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _parse_tiff(data: bytes) -> ImageHeader:
    tags, following = _read_tags(data)

    def first(tag: int, default: int) -> int:
        return (tags.get(tag) or [default])[0]

    width, height = first(256, 0), first(257, 0)
    _judge_size(width, height)
    if following:
        raise refuse("many_pages", "a TIFF of several pages")
    if 3 in tags.get(339, []):
        raise refuse("float", "a TIFF of floating-point numbers")
    photometric = first(262, 1)
    if photometric not in (0, 1, 2, 3, 6):
        name = {5: "CMYK", 8: "LAB", 9: "LAB", 10: "LAB"}.get(photometric, str(photometric))
        raise refuse("colour_model", f"a TIFF in the colour model {name}")
    bits = set(tags.get(258) or [1])
    if bits == {1}:
        raise refuse("one_bit", "a TIFF of 1 bit")
    if bits not in ({8}, {16}) or 2 in tags.get(339, []):
        signed = "signed " if 2 in tags.get(339, []) else ""
        raise refuse("bit_depth", f"a TIFF of {signed}{'/'.join(map(str, sorted(bits)))} bits")
    for offsets, sizes in ((273, 279), (324, 325)):
        for offset, size in zip(tags.get(offsets, []), tags.get(sizes, []), strict=False):
            if offset + size > len(data):
                raise refuse("truncated", "a TIFF with fewer pixels than its header says")
    orientation = first(274, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    return _finish("TIFF", width, height, data, orientation, max(bits), photometric == 0)
