"""One decoder: what it accepts, what it refuses by which code, and that nothing else escapes."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, ImageOps

from leuko.data.headers import MAX_BYTES, REASONS
from leuko.data.image import (
    encode_jpeg,
    encode_png,
    read_header,
    read_image,
    resize_image,
)
from leuko.errors import ImageError, ShapeError

H, W = 48, 64
RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
SMOOTH = np.stack(
    [
        np.add.outer(np.arange(H), np.arange(W)) * 2,
        np.full((H, W), 90),
        np.tile(np.arange(W) * 3, (H, 1)),
    ],
    axis=-1,
).astype(np.uint8)
RGB = Image.fromarray(SMOOTH)


def save(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, kind: int, body: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + data + chunk(b"IEND", b"")


def png16(values: np.ndarray, kind: int, *extra: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, kind, rows, *extra)


def tiff(values: np.ndarray, photometric: int, order: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of one strip, any depth; tags as t274=6."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = {256: width, 257: height, 259: 1, 262: photometric, 277: channels, 278: height}
    entries |= {279: len(pixels)} | {int(key[1:]): value for key, value in tags.items()}
    size = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries |= {258: bits, 273: size + 2 * channels}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag in sorted(entries):
        if tag == 258 and channels > 2:
            out += struct.pack(order + "HHII", tag, 3, channels, size)
        elif tag == 258:
            out += struct.pack(order + "HHIHH", tag, 3, channels, *([bits] * channels + [0])[:2])
        else:
            out += struct.pack(order + "HHII", tag, 4, 1, entries[tag])
            if tag in (262, 259, 274, 277, 339):  # short ones
                out = out[:-12] + struct.pack(order + "HHIHH", tag, 3, 1, entries[tag], 0)
    return out + struct.pack(order + "I", 0) + struct.pack(order + "H", bits) * channels + pixels


def bmp_head(width: int, height: int, bits: int = 24, packing: int = 0) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def cmyk_jpeg(**options: object) -> bytes:
    return save(RGB.convert("CMYK"), "JPEG", **options)


def exif(orientation: int) -> bytes:
    head = struct.pack("<HHHII", 1, 274, 3, 1, orientation) + b"\0\0\0\0"
    return b"II*\0\x08\0\0\0" + head


JPEG = save(Image.fromarray(NOISE), "JPEG", quality=90)
PNG = save(RGB, "PNG")
TIFF = save(RGB, "TIFF")
BMP = save(RGB, "BMP")
LAB = tiff(SMOOTH, 8)
FLAT = b"\0" * (H * (W + 1))
MARK = JPEG.index(b"\xff\xda")
WIDE16 = np.full((H, W, 1), 40000, np.uint16)
PAGES = save(RGB, "TIFF", save_all=True, append_images=[RGB] * 4)


def webp(**options: object) -> bytes:
    return save(RGB, "WEBP", **options)


def sof(data: bytes, marker: int | None = None, precision: int | None = None, **size: int) -> bytes:
    """The JPEG with another frame header."""
    out, at = bytearray(data), data.index(b"\xff\xc0")
    out[at + 1] = marker or out[at + 1]
    out[at + 4] = precision or out[at + 4]
    for key, place in (("height", at + 5), ("width", at + 7)):
        if key in size:
            out[place : place + 2] = struct.pack(">H", size[key])
    return bytes(out)


# kind → (bytes, reason code or None for "accepted")
KINDS: dict[str, tuple[bytes, str | None]] = {
    "ok_jpeg": (JPEG, None),
    "ok_png": (PNG, None),
    "ok_tiff": (TIFF, None),
    "ok_bmp": (BMP, None),
    "ok_webp": (webp(), "format"),
    "exif_orient_invalid": (save(RGB, "JPEG", exif=b"Exif\0\0" + exif(99)), None),
    "exif_garbage": (save(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage"), None),
    "jpeg_progressive": (save(RGB, "JPEG", progressive=True), None),
    "jpeg_444": (save(RGB, "JPEG", subsampling=0), None),
    "jpeg_restarts": (save(RGB, "JPEG", restart_marker_rows=1), None),
    "jpeg_gray": (save(RGB.convert("L"), "JPEG"), None),
    "jpeg_cmyk": (cmyk_jpeg(), "colour_model"),
    "jpeg_12bit": (sof(JPEG, precision=12), "bit_depth"),
    "jpeg_arithmetic": (sof(JPEG, marker=0xC9), "unsupported"),
    "jpeg_lossless": (sof(JPEG, marker=0xC3), "unsupported"),
    "mpo": (save(RGB, "MPO", save_all=True, append_images=[RGB]), None),
    "png_rgba_opaque": (save(RGB.convert("RGBA"), "PNG"), None),
    "png_fully_transparent": (save(Image.new("RGBA", (W, H), (9, 9, 9, 0)), "PNG"), "transparent"),
    "png_palette": (save(RGB.convert("P"), "PNG"), None),
    "png_gray": (save(RGB.convert("L"), "PNG"), None),
    "png_gray_alpha": (save(RGB.convert("LA"), "PNG"), None),
    "png_1bit": (save(RGB.convert("1"), "PNG"), "one_bit"),
    "png_4bit": (png(W, H, 4, 0, b"\0" * (H * (W // 2 + 1))), None),
    "png_interlaced_rgb16_bad": (png(W, H, 16, 2, b""), "truncated"),
    "tiff_12_in_16": (tiff(WIDE16 // 10, 1), "bit_depth"),
    "png_12_in_16": (png16(WIDE16 // 10, 0), "bit_depth"),
    "tiff_float32": (save(Image.new("F", (W, H), 0.5), "TIFF"), "float"),
    "tiff_1bit": (save(RGB.convert("1"), "TIFF"), "one_bit"),
    "tiff_int32": (save(Image.new("I", (W, H), 5), "TIFF"), "bit_depth"),
    "tiff_signed16": (tiff(WIDE16, 1, t339=2), "bit_depth"),
    "tiff_cmyk": (save(RGB.convert("CMYK"), "TIFF"), "colour_model"),
    "tiff_lab": (LAB, "colour_model"),
    "tiff_5pages": (PAGES, "many_pages"),
    "tiff_big_endian": (tiff(SMOOTH, 2, ">"), None),
    "tiff_lzw": (save(RGB, "TIFF", compression="tiff_lzw"), None),
    "tiff_deflate": (save(RGB, "TIFF", compression="tiff_adobe_deflate"), None),
    "tiff_jpeg": (save(RGB, "TIFF", compression="jpeg"), None),
    "tiff_palette": (save(RGB.convert("P"), "TIFF"), None),
    "bigtiff": (b"II+\0\x08\0\0\0" + bytes(64), "whole_slide"),
    "gif": (save(RGB, "GIF"), "format"),
    "gif_animated": (save(RGB, "GIF", save_all=True, append_images=[RGB.rotate(9)]), "format"),
    "webp_animated": (webp(save_all=True, append_images=[RGB.rotate(9)]), "format"),
    "apng": (save(RGB, "PNG", save_all=True, append_images=[RGB.rotate(9)]), "animated"),
    "icc_garbage": (save(RGB, "JPEG", icc_profile=b"garbage" * 50), None),
    "icc_huge": (save(RGB, "PNG", icc_profile=bytes(3 << 20)), None),
    "trailing_garbage": (JPEG + b"garbage" * 100, None),
    "jpeg_zip_polyglot": (JPEG + b"PK\x03\x04" + bytes(40), None),
    "png_html_polyglot": (PNG + b"<script>alert(1)</script>", None),
    "empty": (b"", "empty"),
    "one_byte": (b"\xff", "not_an_image"),
    "magic_only": (b"\xff\xd8\xff", "truncated"),
    "png_magic_only": (b"\x89PNG\r\n\x1a\n", "truncated"),
    "tiff_magic_only": (b"II*\0", "truncated"),
    "bmp_magic_only": (b"BM", "not_an_image"),
    "random_64k": (b"\x01" + RNG.bytes(65536), "not_an_image"),
    "zeros_64k": (bytes(65536), "not_an_image"),
    "text": (b"hello, no image\n" * 40, "not_an_image"),
    "text_bm": (b"BM,label\n1,2\n" * 40, "not_an_image"),
    "html": (b"<!doctype html><p>no</p>", "not_an_image"),
    "json": (b'{"a": 1}', "not_an_image"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format"),
    "pdf": (b"%PDF-1.7\n", "not_an_image"),
    "zip": (b"PK\x03\x04" + bytes(100), "not_an_image"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "not_an_image"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "not_an_image"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(100), "not_an_image"),
    "elf": (b"\x7fELF" + bytes(100), "not_an_image"),
    "dicom": (bytes(128) + b"DICM" + bytes(100), "format"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "format"),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(100), "format"),
    "jpeg2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "format"),
    "fits": (b"SIMPLE  =                    T", "format"),
    **{f"jpeg_trunc_{p}": (JPEG[: len(JPEG) * p // 100], "truncated") for p in (5, 50, 90, 99)},
    "jpeg_no_eoi": (JPEG[:-2], "truncated"),
    "jpeg_half_eoi_glued": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "truncated"),
    "jpeg_half_zero_padded": (JPEG[: len(JPEG) // 2].ljust(len(JPEG), b"\0"), "truncated"),
    "jpeg_zeroed_middle": (JPEG[:2000] + bytes(1000) + JPEG[3000:], "damaged"),
    "jpeg_no_frame": (b"\xff\xd8" + JPEG[MARK:], "damaged_header"),
    "jpeg_two_frames": (
        JPEG[:MARK] + JPEG[(at := JPEG.index(b"\xff\xc0")) : at + 19] + JPEG[MARK:],
        "damaged_header",
    ),
    "jpeg_many_scans": (JPEG[:-2] + JPEG[MARK : MARK + 14] * 200, "too_many_scans"),
    **{f"png_trunc_{p}": (PNG[: len(PNG) * p // 100], "truncated") for p in (10, 50, 90)},
    "tiff_trunc_50": (TIFF[: len(TIFF) // 2], "truncated"),
    "bmp_trunc_50": (BMP[: len(BMP) // 2], "truncated"),
    "webp_trunc_50": (webp()[:60], "format"),
    "png_bitflip_1": (PNG[:90] + bytes([PNG[90] ^ 1]) + PNG[91:], "checksum"),
    "png_bad_crc": (PNG[:29] + b"\0\0\0\0" + PNG[33:], "checksum"),
    "png_0x0": (png(0, 0, 8, 2, b""), "damaged_header"),
    "png_w0": (png(0, 10, 8, 2, b""), "damaged_header"),
    "png_1x1": (png(1, 1, 8, 0, b"\0\0"), "too_small"),
    "png_7x7": (png(7, 7, 8, 0, bytes(56)), "too_small"),
    "png_1x100000": (png(1, 100_000, 8, 0, b""), "aspect"),
    "png_bomb_8kx8k": (png(8000, 8000, 8, 0, bytes(10_000_000)), "too_many_pixels"),
    "png_bomb_20kx20k": (png(20_000, 20_000, 8, 0, b""), "too_many_pixels"),
    "png_liar_4Gx4G": (png(2**32 - 1, 2**32 - 1, 8, 2, b""), "too_many_pixels"),
    "png_idat_too_long": (png(W, H, 8, 0, FLAT * 20), None),
    "png_idat_short": (png(W, H, 8, 0, FLAT[:200]), "truncated"),
    "png_ztxt_bomb": (
        png(W, H, 8, 0, FLAT, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20)))),
        "metadata_bomb",
    ),
    "png_itxt_bomb": (
        png(W, H, 8, 0, FLAT, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(9 << 20)))),
        "metadata_bomb",
    ),
    "png_ztxt_broken": (png(W, H, 8, 0, FLAT, chunk(b"zTXt", b"a\0\0nonsense")), None),
    "png_20k_texts": (png(W, H, 8, 0, FLAT, *[chunk(b"tEXt", b"a\0b")] * 20_000), None),
    "png_iccp_bomb": (
        png(W, H, 8, 0, FLAT, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(9 << 20)))),
        None,
    ),
    "jpeg_header_65500": (sof(JPEG, width=65500, height=65500), "too_many_pixels"),
    "jpeg_height_0": (sof(JPEG, height=0), "damaged_header"),
    "bmp_liar": (bmp_head(60_000, 60_000), "too_many_pixels"),
    "bmp_negative_width": (bmp_head(-64, 48), "damaged_header"),
    "bmp_1bit": (save(RGB.convert("1"), "BMP"), "one_bit"),
    "bmp_palette": (save(RGB.convert("P"), "BMP"), None),
    "bmp_rle": (bmp_head(64, 48, 8, 1) + bytes(9000), "unsupported"),
    "bmp_top_down": (bmp_head(64, -48) + bytes(64 * 48 * 3), None),
    "tiff_ifd_loop": (tiff(SMOOTH, 2)[:-1], "truncated"),
    "tiff_huge_counts": (
        tiff(SMOOTH, 2).replace(b"\x02\x01\x03\0\3\0", b"\x02\x01\x03\0\xff\xff"),
        "damaged_header",
    ),
    "tiff_bomb_81MP": (tiff(SMOOTH, 2, t256=9000, t257=9000), "too_many_pixels"),
    "too_large": (JPEG + bytes(MAX_BYTES), "file_too_large"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_outcome(kind: str) -> None:
    data, reason = KINDS[kind]
    if reason is None:
        image = read_image(data)
        header = read_header(data)
        assert image.dtype == np.uint8
        assert image.shape == (header.height, header.width, 3)
        assert image.flags.c_contiguous
        assert image.flags.writeable
    else:
        with pytest.raises(ImageError) as caught:
            read_image(data)
        assert caught.value.reason == reason, str(caught.value)
        assert reason in REASONS
        assert "expected" in str(caught.value)


def test_limits_are_judged_before_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(Image, "open", never)
    for data, reason in KINDS.values():
        if reason in ("too_many_pixels", "aspect", "too_small", "animated", "many_pages"):
            with pytest.raises(ImageError):
                read_image(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_orientation(orientation: int, form: str) -> None:
    tags = Image.Exif()
    tags[274] = orientation
    data = save(RGB, form, exif=tags, **({"quality": 95} if form == "JPEG" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = read_image(data)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= (2 if form == "JPEG" else 0)
    turns = {1: 0, 3: 2, 6: -1, 8: 1}
    if orientation in turns and form != "JPEG":  # and not only as Pillow sees it
        assert (image == np.rot90(SMOOTH, turns[orientation])).all()
    header = read_header(data)
    assert (header.height, header.width) == image.shape[:2]


def full_range(channels: int) -> np.ndarray:
    values = np.random.default_rng(3).integers(0, 65536, (H, W, channels), dtype=np.uint16)
    values[0, :6] = np.array([0, 128, 129, 257, 65406, 65535])[:, None]
    return values


def scaled(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257.0).astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda v: png16(v, 0), 1),
        (lambda v: png16(v, 2), 3),
        (lambda v: tiff(v, 1), 1),
        (lambda v: tiff(v, 1, ">"), 1),
        (lambda v: tiff(v, 2), 3),
        (lambda v: tiff(v, 2, ">"), 3),
        (lambda v: save(Image.fromarray(v[..., 0]), "TIFF", compression="tiff_lzw"), 1),
        (lambda v: tiff(65535 - v, 0), 1),
    ],
    ids=["png", "png-rgb", "tiff", "tiff-be", "tiff-rgb", "tiff-rgb-be", "tiff-lzw", "inverted"],
)
def test_16_bits_are_scaled_exactly(make: Callable[[np.ndarray], bytes], channels: int) -> None:
    values = full_range(channels)
    assert (read_image(make(values)) == scaled(values)).all()


def test_16_bits_with_transparency() -> None:
    values = full_range(4)
    alpha = scaled(values[..., 3:]).astype(int)
    white = (scaled(values[..., :3]) * alpha + 255 * (255 - alpha) + 127) // 255
    assert (read_image(png16(values, 6)) == white).all()
    grey = full_range(2)
    alpha = scaled(grey[..., 1:]).astype(int)
    white = (scaled(grey[..., :1]) * alpha + 255 * (255 - alpha) + 127) // 255
    assert (read_image(png16(grey, 4)) == white).all()
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    values = full_range(3)
    values[5, 5] = 1, 2, 3
    values[6, 6] = 1, 2, 4  # the same high bytes, but visible
    image = read_image(png16(values, 2, key))
    assert (image[5, 5] == 255).all()
    assert (image[6, 6] == 0).all()


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((H, W, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, :20, 3], pixels[:, 20:40, 3] = 255, 128
    image = read_image(save(Image.fromarray(pixels), "PNG"))
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[0, 30].tolist() == [(200 * 128 + 255 * 127 + 127) // 255, 127, 127]
    assert image[0, 60].tolist() == [255, 255, 255]
    palette = Image.fromarray(np.tile(np.arange(W, dtype=np.uint8) % 2, (H, 1)))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    image = read_image(save(palette, "PNG", transparency=1))
    assert image[0, :2].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_ordinary_formats_keep_every_value() -> None:
    for data in (PNG, TIFF, BMP, tiff(SMOOTH, 2, ">"), KINDS["tiff_lzw"][0]):
        assert (read_image(data) == SMOOTH).all()
    reference = np.asarray(Image.open(io.BytesIO(JPEG)).convert("RGB")).astype(int)
    assert np.abs(read_image(JPEG).astype(int) - reference).max() <= 3
    grey = read_image(KINDS["jpeg_gray"][0])
    assert (grey[..., 0] == grey[..., 2]).all()


def test_pages_that_loop() -> None:
    data = bytearray(tiff(SMOOTH, 2))
    end = 8 + 2 + 12 * struct.unpack_from("<H", data, 8)[0]
    data[end : end + 4] = struct.pack("<I", 8)
    with pytest.raises(ImageError) as caught:
        read_image(bytes(data))
    assert caught.value.reason == "many_pages"


def test_paths(tmp_path: Path) -> None:
    good = tmp_path / "a.jpg"
    good.write_bytes(PNG)  # told by its bytes, not by its name
    assert (read_image(str(good)) == SMOOTH).all()
    big = tmp_path / "big.png"
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    cases = {
        "none.png": "not_found",
        "folder.png": "is_folder",
        "pipe.png": "not_a_file",
        "loop.png": "no_access",
        "big.png": "file_too_large",
        "a\0b.png": "no_access",
        "x" * 300: "no_access",
    }
    for name, reason in cases.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert caught.value.reason == reason, name
    with pytest.raises(ImageError) as caught:
        read_image("/dev/zero")
    assert caught.value.reason == "not_a_file"
    if os.geteuid() != 0:
        good.chmod(0)
        with pytest.raises(ImageError) as caught:
            read_image(good)
        assert caught.value.reason == "no_access"


def test_a_message_holds_no_control_characters(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected") as caught:
        read_image(tmp_path / "a\x1b[31m\nb.png")
    assert str(caught.value).isprintable()


def test_pillow_is_left_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for data, _ in KINDS.values():
        with contextlib.suppress(ImageError):
            read_image(data)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters)


def test_a_lenient_pillow_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("jpeg_trunc_50", "png_trunc_50", "tiff_trunc_50", "bmp_trunc_50"):
        with pytest.raises(ImageError):
            read_image(KINDS[kind][0])


def test_nothing_but_image_errors_comes_out_of_mutated_files() -> None:
    """Warnings are errors here, so that one that escapes fails this as well."""
    chance = random.Random(5)
    seeds = [data for data, _ in KINDS.values() if 60 < len(data) < 20_000]
    seeds += [png16(full_range(3), 2), tiff(full_range(3), 2), tiff(full_range(1), 1)]
    accepted = refused = 0
    for number in range(8000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(chance.choice((1, 1, 2, 8))):
            # Most of what can go wrong is in the first bytes.
            at = chance.randrange(min(len(data), chance.choice((60, 400, 10**6))))
            what = chance.randrange(4)
            if what == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                data[at : at + 4] = chance.choice(
                    (b"\xff" * 4, bytes(4), b"\0\0\0\x01", b"\x7f\xff")
                )
            elif what == 2:
                del data[at : at + chance.choice((1, 2, 50, 5000))]
            else:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 40)))
            if not data:
                break
        if data[:4] == b"\x89PNG" and number % 2:  # past the checksums
            data = bytearray(mend_checksums(bytes(data)))
        try:
            image = read_image(bytes(data))
        except ImageError as error:
            refused += error.reason in REASONS
        else:
            assert image.ndim == 3
            accepted += 1
    assert accepted + refused == 8000
    assert min(accepted, refused) > 400


def mend_checksums(data: bytes) -> bytes:
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out + data[at:]


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, 8, 16)
    assert small.shape == (8, 16, 3)
    assert np.abs(small.astype(int) - 127).max() < 20  # without antialiasing: all 0 or all 255
    assert (resize_image(SMOOTH, H, W) == SMOOTH).all()


def test_encoding_round_trips() -> None:
    assert (read_image(encode_png(NOISE)) == NOISE).all()
    assert np.abs(read_image(encode_jpeg(SMOOTH, 95)).astype(int) - SMOOTH).max() < 12
    assert encode_png(NOISE[:, ::-1]) != encode_png(NOISE)


@pytest.mark.parametrize("wrong", [NOISE[..., 0], NOISE.astype(float), NOISE[:0]])
def test_wrong_arrays_are_refused(wrong: np.ndarray) -> None:
    for use in (encode_png, encode_jpeg, lambda image: resize_image(image, 9, 9)):
        with pytest.raises(ShapeError, match="expected"):
            use(wrong)
    with pytest.raises(ShapeError, match="expected"):
        resize_image(NOISE, 0, 9)
