"""One pass over the images of a set: everything that the audit needs to know of each of them.

Each image is decoded once. What is measured is kept small, so that a hundred thousand images fit
into memory: leukocytes, a sketch for comparing, a portrait of the chosen cell, a few numbers about
light and focus. This module judges nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.cuts import cut_cell
from leuko.data.density import LOGARITHM
from leuko.data.headers import tell_format
from leuko.data.image import decode_image, read_bytes, resize_image
from leuko.data.leukocytes import Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.likeness import choose_landmarks, sketch_picture
from leuko.data.manifest import Manifest
from leuko.data.portraits import describe_cell
from leuko.data.registration import Sketch
from leuko.data.scales import measure_set_scales
from leuko.engine import map_jobs
from leuko.errors import ImageError

FEW = 200  # images below which starting processes takes longer than they save
PART = 64  # images of one job
PORTRAIT = 64  # px, the side of the cut-out that is described
FINEST = 5.0  # px per µm at which focus and colour are measured; finer pictures are reduced
EDGES = (0.5, 1.0)  # px, the two blurs between which softness is measured
SOFTEST = 10.0  # px, where there is no edge at all
STRAY = 16  # bytes after the end of a picture that mean nothing

_END_OF_PNG = b"IEND\xaeB`\x82"
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

FloatArray = NDArray[np.float64]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Light:
    """Focus, exposure and colour of one image, where it was photographed at all.

    Attributes:
        softness: Blur of the sharpest edges, as the standard deviation in px at about 5 px/µm; a
            sharp photograph has about 0.6, 10 is the most.
        background: Brightness of the empty background, in [0, 255]: the largest of its channels.
        contrast: Green density of the densest hundredth, cells, over the background; about 1.
        lost_shadows: Share of pixels that are black in every channel.
        lost_lights: Share of pixels that are at the upper end in every channel.
        colours: (6,) log ratios red : green and blue : green of background, red cells (the
            middle of what is dense) and nuclei (the densest of all).
    """

    softness: float
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


def _measure_job(part: Part, _send: Callable[[Any], None]) -> list[tuple[str, Measured]]:
    return measure_part(part)


def measure_part(part: Part) -> list[tuple[str, Measured]]:
    """Measures some images: id, path, pixels per µm or None, landmarks."""
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
    cell = cut_cell(pixels, chosen, PORTRAIT, light="given")
    return Measured(
        format=tell_format(data[:32]) or "",
        trailing=count_trailing(data),
        pixels=hashlib.sha256(shape.tobytes() + pixels.tobytes()).hexdigest(),
        leukocytes=tuple(leukocytes),
        sketch=sketch,
        portrait=describe_cell(cell).astype(np.float32),
        light=measure_light(pixels, chosen.scale),
    )


def count_trailing(data: bytes) -> int:
    """Bytes after the end of a JPEG's or PNG's picture; 0 for other formats and a few stray bytes.

    A camera may pad a file by a few zeros; more is another file or a broken copy.
    """
    end = len(data)
    if data.startswith(b"\xff\xd8\xff"):
        end = _find_end_of_jpeg(data)
    elif data.startswith(b"\x89PNG") and (at := data.find(_END_OF_PNG)) >= 0:
        end = at + len(_END_OF_PNG)
    rest = len(data) - end
    return rest if rest > STRAY else 0


def _find_end_of_jpeg(data: bytes) -> int:
    """Where the first picture ends: its segments are walked, because thumbnails end in them."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # a scan lasts until a marker that is neither a restart nor an escape
            found = _AFTER_SCAN.search(data, at)
            if found is None:
                break
            at = found.start()
    return len(data)


def measure_light(pixels: NDArray[np.uint8], scale: float) -> Light:
    """Focus, exposure and colour.

    Args:
        pixels: RGB, (H, W, 3), uint8.
        scale: Pixels per µm, so that the same blur is the same number at any magnification.
    """
    import cv2

    shrink = min(1.0, FINEST / max(scale, 1e-3), 640 / max(pixels.shape[:2]))
    small = resize_image(pixels, *(max(8, round(side * shrink)) for side in pixels.shape[:2]))
    planes = [np.asarray(plane, dtype=np.uint8) for plane in cv2.split(small)]
    brightest = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    darkest = np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    seen = _find_lit(brightest)
    red, green, blue = (plane[seen].astype(np.intp) for plane in planes)
    # Everything else follows from how many pixels have which green, and what else they have.
    counts = np.bincount(green, minlength=256)
    sums = np.stack([np.bincount(green, c, minlength=256) for c in (red, green, blue)], axis=1)
    background = [
        float(_find_level(np.bincount(c, minlength=256), 0.92)) for c in (red, green, blue)
    ]

    def mix(least: float, most: float) -> FloatArray:
        """Mean colour (3,) of the pixels whose green lies between two of its quantiles."""
        levels = slice(_find_level(counts, least), _find_level(counts, most) + 1)
        return np.asarray(sums[levels].sum(axis=0) / counts[levels].sum())

    colours: list[float] = []
    for colour in (np.array(background), mix(0.25, 0.45), mix(0.0, 0.02)):
        r, g, b = np.log(np.maximum(colour, 4))
        colours += [float(r - g), float(b - g)]
    densest = max(_find_level(counts, 0.01), 4)
    return Light(
        softness=_measure_softness(planes[1], seen),
        background=max(background),
        contrast=float(np.log(max(background[1], 4) / densest)),
        lost_shadows=float((brightest[seen] <= 3).mean()),
        lost_lights=float((darkest[seen] >= 252).mean()),
        colours=tuple(colours),
    )


def _find_lit(brightest: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """False in black corners, as turning a picture leaves them, and near them.

    Black that doesn't touch the border is a shadow.
    """
    import cv2

    black = (brightest <= 12).astype(np.uint8)
    lit = np.ones(black.shape, dtype=bool)
    if not black.any():
        return lit
    parts = cv2.connectedComponents(black, None, 8)[1]
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    outside = np.zeros(parts.max() + 1, dtype=np.uint8)
    outside[border] = 1
    outside[0] = 0
    dark = cv2.dilate(outside[parts], np.ones((13, 13), np.uint8))
    return np.asarray(dark == 0) if (dark == 0).sum() >= 64 else lit


def _find_level(counts: NDArray[np.intp], share: float) -> int:
    """The grey level, 0 to 255, up to which this share of the counted pixels lies."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, max(1.0, share * total[-1])))


def _measure_softness(green: NDArray[np.uint8], seen: NDArray[np.bool_]) -> float:
    """Standard deviation of the blur in px that the sharpest edges look as if they had.

    An edge that is blurred by s, and once more by t, has its strongest Laplacian in proportion to
    1 / (s² + t²), so s follows from two values of t. How strong the edge is falls out, and with it
    stain and exposure.
    """
    import cv2

    density = -LOGARITHM[green]
    steepest = []
    for spread in EDGES:
        detail = cv2.Laplacian(cv2.GaussianBlur(density, (0, 0), spread), cv2.CV_32F)
        sizes = np.abs(detail[seen])
        place = int(0.997 * (len(sizes) - 1))
        steepest.append(float(np.partition(sizes, place)[place]) + 1e-5)
    ratio = steepest[0] / steepest[1]
    square = (EDGES[1] ** 2 - EDGES[0] ** 2 * ratio) / max(ratio - 1, 1e-3)
    return float(np.sqrt(np.clip(square, 0.0, SOFTEST**2)))
