"""One pass over the images of a set: everything that the audit needs to know of each of them.

Each image is decoded once. What is measured is kept small, so that a hundred thousand images fit
into memory: leukocytes, a sketch for comparing, a portrait of the chosen cell, a few numbers about
light and focus. This module judges nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.headers import tell_format
from leuko.data.image import decode_image, read_bytes, read_image, resize_image
from leuko.data.leukocytes import (
    Leukocyte,
    choose_leukocyte,
    cut_cell,
    estimate_set_scales,
    find_leukocytes,
)
from leuko.data.likeness import Sketch, choose_landmarks, sketch_picture
from leuko.data.manifest import Manifest
from leuko.data.portraits import describe_cell
from leuko.engine import map_jobs
from leuko.errors import ImageError

SCALE_SAMPLE = 60  # images of one size, evenly spaced: their median is certain to about 1 %
FEW = 200  # images below which starting processes takes longer than they save
PART = 64  # images of one job
PORTRAIT = 64  # px, the side of the cut-out that is described

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Light:
    """Focus, exposure and colour of one image, where it was photographed at all.

    Attributes:
        sharpness: Log of the strongest fine detail: the 99th percentile of the Laplacian of the
            green density at about 5 px/µm. One unit less is a blur of about half the detail.
        background: Brightness of the empty background, in [0, 255]: the largest of its channels.
        contrast: Green density of the densest hundredth, cells, over the background; about 1.
        lost_shadows: Share of pixels that are black in every channel.
        lost_lights: Share of pixels that are at the upper end in every channel.
        colours: (6,) log ratios red : green and blue : green of background, red cells (the
            middle of what is dense) and nuclei (the densest of all).
    """

    sharpness: float
    background: float
    contrast: float
    lost_shadows: float
    lost_lights: float
    colours: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """What is known of one image that could be read.

    Attributes:
        format: As in `leuko.data.headers.ImageHeader`.
        trailing: Bytes after the end of the picture.
        pixels: SHA-256 of size and pixels; the same for files that differ in their packing only.
        leukocytes: From the most to the least certain.
        sketch: For `leuko.data.likeness`.
        portrait: (D,) of the cell that stands for the image, see `leuko.data.portraits`.
        light: Focus, exposure, colour.
    """

    format: str
    trailing: int
    pixels: str
    leukocytes: tuple[Leukocyte, ...]
    sketch: Sketch
    portrait: NDArray[np.float32]
    light: Light


def measure_images(
    manifest: Manifest, *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Measured]:
    """Measures every readable image of a set once.

    Args:
        manifest: Rows that can't be read, and rows without an image, are left out.
        workers: Processes; they don't change the result. Small sets are measured in this one.
        progress: Called with (images done, images in all).

    Returns:
        By image id, in the order of the manifest.
    """
    files: dict[str, tuple[str, int, int]] = {}
    columns = ("image", "path", "width", "height")
    for image, path, width, height in manifest.table.select(columns).iter_rows():
        if path is not None and width is not None:
            files.setdefault(image, (path, width, height))
    scales = measure_set_scales(manifest.root, list(files.values()))
    landmarks = choose_landmarks(len(files))
    todo = [
        (image, str(manifest.root / path), scales.get((height, width)), landmarks)
        for image, (path, width, height) in files.items()
    ]
    measured: dict[str, Measured] = {}
    parts = [todo[i : i + PART] for i in range(0, len(todo), PART)]
    if len(todo) < FEW or workers < 2:
        results: Iterator[list[tuple[str, Measured]]] = (measure_part(part) for part in parts)
    else:
        done = map_jobs(_measure_job, parts, workers=workers, on_message=lambda _: None)
        results = (result for _, result in done)
    for result in results:
        measured.update(result)
        if progress is not None:
            progress(len(measured), len(todo))
    return {image: measured[image] for image in files if image in measured}


Part = Sequence[tuple[str, str, float | None, int]]


def _measure_job(part: Part, send: Callable[[Any], None]) -> list[tuple[str, Measured]]:
    send(None)  # ends this process if the one that waits for it is gone
    return measure_part(part)


def measure_part(part: Part) -> list[tuple[str, Measured]]:
    """Measures some images: id, path, pixels per µm or None, landmarks."""
    import cv2

    cv2.setNumThreads(1)  # processes side by side use the cores better than threads inside each
    found = []
    for image, path, scale, landmarks in part:
        with suppress(ImageError):  # it was readable when the set was scanned, and isn't now
            found.append((image, measure_image(read_bytes(path), scale, landmarks)))
    return found


def measure_image(data: bytes, scale: float | None, landmarks: int) -> Measured:
    """Measures one image.

    Args:
        data: The file.
        scale: Pixels per µm, or None to estimate it from this picture.
        landmarks: See `leuko.data.likeness.choose_landmarks`.

    Raises:
        ImageError: It can't be read.
    """
    pixels = decode_image(data)
    shape = np.array(pixels.shape, dtype=np.int64)
    leukocytes = find_leukocytes(pixels, scale)
    chosen = choose_leukocyte(leukocytes, pixels)
    if scale is not None:
        chosen = replace(chosen, scale=scale)
    sketch = sketch_picture(pixels, landmarks)
    return Measured(
        format=tell_format(data[:32]) or "",
        trailing=count_trailing(data),
        pixels=hashlib.sha256(shape.tobytes() + pixels.tobytes()).hexdigest(),
        leukocytes=tuple(leukocytes),
        sketch=sketch,
        portrait=describe_cell(cut_cell(pixels, chosen, PORTRAIT)).astype(np.float32),
        light=measure_light(pixels, chosen.scale),
    )


def count_trailing(data: bytes) -> int:
    """Bytes after the end marker of a JPEG or PNG; 0 for other formats and a few stray bytes.

    A camera may pad a file by a few zeros; more is another file or a broken copy.
    """
    marker = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}.get(data[:3])
    at = data.rfind(marker) if marker else -1
    rest = len(data) - at - len(marker) if marker and at >= 0 else 0
    return rest if rest > 16 else 0


def measure_light(pixels: NDArray[np.uint8], scale: float) -> Light:
    """Focus, exposure and colour.

    Args:
        pixels: RGB, (H, W, 3), uint8.
        scale: Pixels per µm, so that the same blur is the same number at any magnification.
    """
    from scipy import ndimage

    shrink = min(1.0, 5.0 / max(scale, 1e-3), 640 / max(pixels.shape[:2]))
    height, width = (max(8, round(side * shrink)) for side in pixels.shape[:2])
    small = resize_image(pixels, height, width)
    lit = small.max(axis=2) > 12
    corner = ndimage.binary_opening(~lit, iterations=2)  # black where nothing was photographed
    seen = ~ndimage.binary_dilation(corner, iterations=5) if corner.any() else np.ones_like(lit)
    if seen.sum() < 64:
        seen = np.ones_like(seen)
    shown = small[seen].astype(np.float32)  # (n, 3)
    background = np.percentile(shown, 92, axis=0)
    density = -np.log(np.maximum(small[..., 1], 4) / np.float32(255))
    detail = np.abs(ndimage.laplace(ndimage.gaussian_filter(density, 0.7)))[seen]
    green = -np.log(np.maximum(shown[:, 1], 4) / max(background[1], 4))
    order = np.argsort(green, kind="stable")
    dense = shown[order[-max(8, len(order) // 50) :]].mean(axis=0)
    middle = shown[order[int(0.55 * len(order)) : int(0.75 * len(order)) + 1]].mean(axis=0)
    colours: list[float] = []
    for colour in (background, middle, dense):
        red, green_, blue = np.log(np.maximum(colour, 4))
        colours += [float(red - green_), float(blue - green_)]
    return Light(
        sharpness=float(np.log(np.percentile(detail, 99) + 1e-4)),
        background=float(background.max()),
        contrast=float(np.percentile(green, 99)),
        lost_shadows=float((shown <= 3).all(axis=1).mean()),
        lost_lights=float((shown >= 252).all(axis=1).mean()),
        colours=tuple(colours),
    )


def measure_set_scales(
    root: Path, rows: Iterable[tuple[str | Path, int, int]]
) -> dict[tuple[int, int], float]:
    """One scale for each picture size of a set, from up to `SCALE_SAMPLE` of its images.

    Args:
        root: Folder that the paths are relative to.
        rows: (path, width, height) of each image; files that can't be read are left out.

    Returns:
        {(height, width): pixels per µm}; hand the value to `find_leukocytes`.
    """
    by_size: dict[tuple[int, int], list[str | Path]] = defaultdict(list)
    for path, width, height in rows:
        by_size[height, width].append(path)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for same in by_size.values():
            for path in same[:: -(-len(same) // SCALE_SAMPLE)]:
                with suppress(ImageError):
                    yield read_image(root / path)

    return estimate_set_scales(pictures())
