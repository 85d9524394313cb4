"""What is measured of single images, and that it depends on nothing but the image."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leuko.data import measurements
from leuko.data.drawing import draw_field
from leuko.data.image import encode_jpeg, encode_png, resize_image
from leuko.data.manifest import Manifest
from leuko.data.measurements import (
    Measured,
    count_trailing,
    measure_image,
    measure_images,
    measure_light,
)
from leuko.data.scales import measure_set_scales
from leuko.data.sources import scan
from leuko.errors import ImageError

Picture = NDArray[np.uint8]
SCALE = 7.0  # px per µm at 320 × 240


def draw(seed: int, *kinds: str, blur: float = 0.8) -> Picture:
    field = draw_field(np.random.default_rng(seed), kinds, mark=False, blur=blur)
    return resize_image(field.image, 240, 320)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return draw(0, "NEUTROPHIL")


# --- light --------------------------------------------------------------------------------


def test_softness_grows_with_blur_as_squares(picture: Picture) -> None:
    plain = measure_light(picture, SCALE).softness
    for sigma in (1.0, 1.5, 2.0):
        blurred = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))
        found = measure_light(blurred, SCALE).softness
        assert found == pytest.approx(np.hypot(plain, sigma * 5 / SCALE), rel=0.25)


def test_softness_does_not_depend_on_exposure_or_magnification(picture: Picture) -> None:
    plain = measure_light(picture, SCALE).softness
    dim = (picture * 0.6).astype(np.uint8)
    assert measure_light(dim, SCALE).softness == pytest.approx(plain, rel=0.1)
    large = resize_image(picture, 480, 640)
    assert measure_light(large, 2 * SCALE).softness == pytest.approx(plain, rel=0.25)


def test_exposure_is_measured(picture: Picture) -> None:
    plain = measure_light(picture, SCALE)
    dark = measure_light((picture * 0.4).astype(np.uint8), SCALE)
    bright = measure_light(np.clip(picture * 1.8, 0, 255).astype(np.uint8), SCALE)
    assert dark.background == pytest.approx(0.4 * plain.background, abs=2)
    assert dark.contrast == pytest.approx(plain.contrast, abs=0.05)
    assert bright.contrast < 0.75 * plain.contrast
    assert bright.lost_lights > 0.3
    assert plain.lost_lights == plain.lost_shadows == dark.lost_shadows == 0


def test_colours_follow_the_channels(picture: Picture) -> None:
    plain = measure_light(picture, SCALE).colours
    swapped = measure_light(np.ascontiguousarray(picture[..., ::-1]), SCALE).colours
    assert np.reshape(swapped, (3, 2)) == pytest.approx(np.reshape(plain, (3, 2))[:, ::-1])
    background, cells, nuclei = (red - blue for red, blue in np.reshape(plain, (3, 2)))
    assert nuclei < background < cells


def test_black_corners_are_not_shadows_and_have_no_edge(picture: Picture) -> None:
    turn = cv2.getRotationMatrix2D((160, 120), 25, 1.0)
    turned = np.asarray(cv2.warpAffine(picture, turn, (320, 240)))
    assert (turned.max(axis=2) == 0).mean() > 0.1
    plain, found = measure_light(picture, SCALE), measure_light(turned, SCALE)
    assert found.lost_shadows == 0
    assert found.softness == pytest.approx(plain.softness, rel=0.35)
    assert found.background == pytest.approx(plain.background, abs=4)
    shadow = picture.copy()
    shadow[100:150, 100:160] = 0  # black, but not at the border
    lost = measure_light(shadow, SCALE).lost_shadows
    assert lost == pytest.approx(50 * 60 / 240 / 320, rel=0.1)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(8, 8), (8, 160), (240, 320)])
def test_an_even_picture_has_finite_light(level: int, shape: tuple[int, int]) -> None:
    light = measure_light(np.full((*shape, 3), level, np.uint8), SCALE)
    assert light.softness == measurements.SOFTEST
    numbers = [light.background, light.contrast, light.lost_lights, *light.colours]
    assert np.isfinite(numbers).all()


# --- bytes --------------------------------------------------------------------------------


def _with_thumbnail(picture: Picture) -> bytes:
    """A JPEG whose APP1 segment holds a whole JPEG, as cameras write them."""
    data, inner = encode_jpeg(picture), encode_jpeg(picture[:16, :16].copy())
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    return data[:2] + segment + data[2:]


def _progressive(picture: Picture) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", progressive=True)
    return out.getvalue()


def test_what_follows_the_picture_is_counted(picture: Picture) -> None:
    files = [encode_jpeg(picture), encode_png(picture), _with_thumbnail(picture)]
    files.append(_progressive(picture))
    for data in files:
        assert count_trailing(data) == 0
        assert count_trailing(data + bytes(8)) == 0  # as some cameras pad
        assert count_trailing(data + bytes(1000)) == 1000
        for other in files:  # two pictures in one file
            assert count_trailing(data + other) == len(other)
    bmp = io.BytesIO()
    Image.fromarray(picture).save(bmp, "BMP")
    assert count_trailing(bmp.getvalue() + bytes(1000)) == 0
    assert count_trailing(b"") == count_trailing(files[0][:100]) == 0


def test_the_same_pixels_in_another_packing_have_one_hash(picture: Picture) -> None:
    bmp = io.BytesIO()
    Image.fromarray(picture).save(bmp, "BMP")
    png = measure_image(encode_png(picture), SCALE, 60)
    assert png.pixels == measure_image(bmp.getvalue(), SCALE, 60).pixels
    assert png.format == "PNG"
    changed = picture.copy()
    changed[0, 0, 0] ^= 1
    assert png.pixels != measure_image(encode_png(changed), SCALE, 60).pixels
    flat = np.full((20, 30, 3), 9, np.uint8)
    turned = flat.transpose(1, 0, 2).copy()  # the same bytes, another shape
    hashes = {measure_image(encode_png(p), SCALE, 60).pixels for p in (flat, turned)}
    assert len(hashes) == 2


def test_without_a_scale_it_is_estimated(picture: Picture) -> None:
    found = measure_image(encode_png(picture), None, 60)
    assert found.leukocytes
    assert found.portrait.ndim == 1
    assert np.isfinite(found.portrait).all()
    with pytest.raises(ImageError):
        measure_image(b"nothing", None, 60)


# --- sets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for kind, seeds in (("LYMPHOCYTE", (1, 2, 3)), ("MONOCYTE", (4, 5))):
        (folder / kind).mkdir()
        for seed in seeds:
            (folder / kind / f"{seed}.jpg").write_bytes(encode_jpeg(draw(seed, kind)))
    (folder / "MONOCYTE" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return scan(folder)


@pytest.fixture(scope="module")
def measured(manifest: Manifest) -> dict[str, Measured]:
    return measure_images(manifest)


def compare(one: dict[str, Measured], other: dict[str, Measured]) -> None:
    assert list(one) == list(other)
    for a, b in zip(one.values(), other.values(), strict=True):
        assert (a.pixels, a.leukocytes, a.light) == (b.pixels, b.leukocytes, b.light)
        np.testing.assert_array_equal(a.portrait, b.portrait)
        np.testing.assert_array_equal(a.sketch.points, b.sketch.points)
        np.testing.assert_array_equal(a.sketch.descriptors, b.sketch.descriptors)
        np.testing.assert_array_equal(a.sketch.flat, b.sketch.flat)


def test_readable_images_are_measured_in_their_order(
    manifest: Manifest, measured: dict[str, Measured]
) -> None:
    readable = manifest.table.filter(manifest.table["width"].is_not_null())
    assert list(measured) == readable["image"].to_list()
    assert all(m.leukocytes and m.leukocytes[0].scale > 0 for m in measured.values())


def test_processes_change_nothing(
    manifest: Manifest, measured: dict[str, Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "FEW", 0)
    monkeypatch.setattr(measurements, "PART", 2)
    told: list[tuple[int, int]] = []
    compare(measured, measure_images(manifest, workers=2, progress=lambda *n: told.append(n)))
    assert told[-1] == (5, 5)
    compare(measured, measure_images(manifest, workers=1))


def test_a_file_that_vanished_or_broke_is_left_out(
    folder: Path, measured: dict[str, Measured], tmp_path: Path
) -> None:
    for kind in ("LYMPHOCYTE", "MONOCYTE"):
        (tmp_path / kind).mkdir()
        for file in (folder / kind).glob("*.jpg"):
            (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    manifest = scan(tmp_path)
    (tmp_path / "LYMPHOCYTE" / "2.jpg").unlink()
    (tmp_path / "MONOCYTE" / "4.jpg").write_bytes(b"\xff\xd8\xff")
    found = measure_images(manifest)
    assert list(found) == ["LYMPHOCYTE/1.jpg", "LYMPHOCYTE/3.jpg", "MONOCYTE/5.jpg"]
    for image, m in found.items():
        assert m.pixels == measured[image].pixels


def test_a_set_has_one_scale_for_each_picture_size(folder: Path, manifest: Manifest) -> None:
    readable = manifest.table.filter(manifest.table["width"].is_not_null())
    rows = readable.select("path", "width", "height").rows()
    scales = measure_set_scales(folder, [*rows, ("none.png", 640, 480), ("no.png", 3, 4)])
    assert set(scales) == {(240, 320)}
    assert scales[240, 320] == pytest.approx(SCALE, rel=0.15)
    assert measure_set_scales(folder, []) == {}
