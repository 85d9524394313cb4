"""Draws smear fields whose cells are known exactly: every synthetic image comes from here.

Nothing here was photographed. A field is drawn the way a smear absorbs light: each cell adds
density to one or more of four dyes, and the camera sees ``light · exp(-dyes @ stain)``. That makes
overlapping red cells darker where they overlap, as under a microscope, and keeps slide (the
scene and its stain) and camera (exposure, focus, noise) apart, so that one scene can be
photographed twice.

The physical scale is that of the Kaggle blood-cells set: a red cell is about 95 px across at
640 × 480, a leukocyte 90 to 225 px. Stain and exposure vary from field to field, so that colour
alone doesn't tell the kinds apart. The shapes of single leukocytes are in `leuko.data.morphology`.

This module refuses to know files, and how images are read, cleaned or learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from leuko.data.morphology import (
    AZURE,
    DRAW,
    DYES,
    EOSIN,
    HAEM,
    KINDS,
    DrawnLeukocyte,
    FloatArray,
    make_bumps,
    make_noise,
    measure_outline,
    soften,
)
from leuko.errors import SettingsError, UnknownNameError, suggest

ImageArray: TypeAlias = NDArray[np.uint8]

MARK = "SYNTHETIC"
NOTICE = "SYNTHETIC image drawn by Leuko; it shows no real blood and no patient."

MARGIN = 80  # px drawn around the field, so that the stage can move without a bare edge
PAPER = np.array([199.0, 200.0, 196.0], np.float32)  # empty background of the real set


@dataclass(frozen=True)
class Box:
    """Where one thing lies in a field: integer pixels, half open, clipped to the image.

    Attributes:
        name: ``WBC``, ``RBC`` or ``Platelets``, as in the Kaggle set's annotations.
        kind: For a leukocyte one of ``KINDS``, else None.
    """

    name: str
    x0: int
    y0: int
    x1: int
    y1: int
    kind: str | None = None


@dataclass(frozen=True)
class SyntheticField:
    """A drawn field: image (H, W, 3) uint8 RGB and the boxes of everything that can be seen."""

    image: ImageArray
    boxes: tuple[Box, ...]

    @property
    def leukocytes(self) -> tuple[Box, ...]:
        """The boxes of the leukocytes, in the order in which their kinds were asked for."""
        return tuple(box for box in self.boxes if box.name == "WBC")


# --- the scene ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _RedCell:
    x: float
    y: float
    radius: float
    bumps: list[complex]
    pallor: tuple[float, float]  # depth and relative width
    centre: tuple[float, float]  # of the pallor, relative to the radius
    amount: float
    spot: tuple[float, float] | None  # a refractile drying mark


@dataclass(frozen=True)
class Scene:
    """A piece of the slide, larger than a field by MARGIN on each side; px from the field's 0."""

    leukocytes: list[tuple[float, float, DrawnLeukocyte]]
    red_cells: list[_RedCell]
    platelets: list[tuple[int, int, FloatArray]]  # left, top, density of azure
    stain: FloatArray  # (4, 3)


def _place_leukocytes(
    rng: np.random.Generator, kinds: Sequence[str], height: int, width: int, *, centred: bool
) -> list[tuple[float, float, DrawnLeukocyte]]:
    """Leukocytes apart from each other; mostly whole, sometimes cut by the field's border."""
    placed: list[tuple[float, float, DrawnLeukocyte]] = []
    for kind in kinds:
        cell = DRAW[kind](rng)
        inset = cell.radius * (0.72 if rng.random() < 0.15 else 1.06)
        x, y = width / 2.0, height / 2.0
        for _ in range(40):
            if centred:
                break
            x = float(rng.uniform(min(inset, width / 2), max(width - inset, width / 2)))
            y = float(rng.uniform(min(inset, height / 2), max(height - inset, height / 2)))
            if all(np.hypot(x - a, y - b) > 1.15 * (cell.radius + c.radius) for a, b, c in placed):
                break
        placed.append((round(x), round(y), cell))
    return placed


def _place_red_cells(
    rng: np.random.Generator,
    leukocytes: Sequence[tuple[float, float, DrawnLeukocyte]],
    height: int,
    width: int,
) -> list[_RedCell]:
    """Red cells in loose clumps; leukocytes push them aside."""
    area = (height + 2 * MARGIN) * (width + 2 * MARGIN)
    wanted = int(area * rng.uniform(5.5e-5, 1.15e-4))
    size, pallor_depth, dried = rng.uniform(44, 50), rng.uniform(0.3, 0.85), rng.uniform(0, 0.3)
    mark = (0 if rng.random() < 0.5 else width, 0 if rng.random() < 0.5 else height)
    cells: list[_RedCell] = []
    where = np.empty((wanted, 2))
    for _ in range(wanted * 3):
        n = len(cells)
        if n == wanted:
            break
        x = float(rng.uniform(-MARGIN, width + MARGIN))
        y = float(rng.uniform(-MARGIN, height + MARGIN))
        if n and rng.random() < 0.55:
            turn, step = rng.uniform(0, 2 * np.pi), size * rng.uniform(1.15, 2.0)
            x, y = where[rng.integers(n)] + step * np.array([np.cos(turn), np.sin(turn)])
        if any(np.hypot(x - a, y - b) < c.radius + 0.72 * size for a, b, c in leukocytes):
            continue
        if abs(x - mark[0]) < 80 + size and abs(y - mark[1]) < 18 + size:
            continue  # one corner stays free for the word SYNTHETIC
        if n and np.min(np.hypot(*(where[:n] - (x, y)).T)) < size * 1.05:
            continue
        where[n] = x, y
        depth = min(max(pallor_depth * rng.normal(1.0, 0.45), 0.0), 0.9)
        spot = rng.normal(0, 0.28, 2) * size if rng.random() < dried else None
        cells.append(
            _RedCell(
                float(x),
                float(y),
                size * min(max(rng.normal(1.0, 0.075), 0.8), 1.2),
                make_bumps(rng, 4, 0.045),
                (depth, float(rng.uniform(0.36, 0.56))),
                (float(rng.normal(0, 0.09)), float(rng.normal(0, 0.09))),
                float(rng.uniform(0.8, 1.12)),
                None if spot is None else (float(spot[0]), float(spot[1])),
            )
        )
    return cells


def _place_platelets(
    rng: np.random.Generator,
    others: NDArray[np.floating],
    height: int,
    width: int,
) -> list[tuple[int, int, FloatArray]]:
    """Platelets between the other cells, which come as (n, 3): x, y and radius, px."""
    platelets: list[tuple[int, int, FloatArray]] = []
    for _ in range(int(rng.integers(3, 13))):
        radius = rng.uniform(7, 14)
        x, y = rng.uniform(-MARGIN, width + MARGIN), rng.uniform(-MARGIN, height + MARGIN)
        reach = int(radius * 1.6) + 2
        axis = np.arange(-reach, reach + 1, dtype=np.float32)
        signed, _ = measure_outline(*np.meshgrid(axis, axis), radius, make_bumps(rng, 3, 0.07))
        grain = 1.0 + 0.35 * make_noise(rng, axis.size, axis.size, 4.0)
        density = soften(signed, 6.0) * grain * rng.uniform(0.18, 0.5)
        if np.all(np.hypot(others[:, 0] - x, others[:, 1] - y) > 0.95 * others[:, 2] + radius):
            platelets.append((int(x) - reach, int(y) - reach, np.asarray(density, np.float32)))
    return platelets


def lay_out(
    rng: np.random.Generator, kinds: Sequence[str], height: int, width: int, *, centred: bool
) -> Scene:
    """Decides the slide: its cells, their places, its stain. Arguments as in `draw_field`."""
    leukocytes = _place_leukocytes(rng, kinds, height, width, centred=centred)
    red_cells = _place_red_cells(rng, leukocytes, height, width)
    others = [(c.x, c.y, 0.8 * c.radius) for c in red_cells]
    others += [(x, y, c.radius) for x, y, c in leukocytes]
    platelets = _place_platelets(rng, np.reshape(others, (-1, 3)), height, width)
    # Stain: strength of each dye, and how far its colour drifts with pH and age of the dye.
    strength = np.exp(rng.normal(0.0, [[0.12], [0.20], [0.28], [0.28]]))
    drift = np.exp(rng.normal(0.0, 0.07, (4, 3)))
    stain = DYES * (strength * drift)
    mixed = rng.uniform(0.0, 0.45)  # eosin that has taken up azure looks lilac, not orange
    stain[EOSIN] = (1 - mixed) * stain[EOSIN] + mixed * 0.8 * stain[AZURE]
    return Scene(leukocytes, red_cells, platelets, stain.astype(np.float32))


# --- the picture --------------------------------------------------------------------------


def _stamp(canvas: FloatArray, patch: FloatArray, left: int, top: int) -> None:
    """Adds a patch to a canvas, as far as it lies on it."""
    height, width = canvas.shape[-2:]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[-1], width), min(top + patch.shape[-2], height)
    if x0 < x1 and y0 < y1:
        canvas[..., y0:y1, x0:x1] += patch[..., y0 - top : y1 - top, x0 - left : x1 - left]


def _paint_red_cell(canvas: FloatArray, cell: _RedCell, dx: int, dy: int) -> None:
    """Adds haemoglobin to a canvas of half the field's resolution."""
    reach = int(cell.radius * 0.5 * 1.2) + 2
    cx, cy = 0.5 * (cell.x + dx), 0.5 * (cell.y + dy)
    left, top = round(cx) - reach, round(cy) - reach
    if left > canvas.shape[1] or top > canvas.shape[0] or left < -2 * reach or top < -2 * reach:
        return
    axis = np.arange(2 * reach + 1, dtype=np.float32)
    x, y = np.meshgrid(2 * (axis + left - cx), 2 * (axis + top - cy))
    signed, rho = measure_outline(x, y, cell.radius, cell.bumps)
    (depth, width), (ox, oy) = cell.pallor, cell.centre
    r2 = (np.square(x / cell.radius - ox) + np.square(y / cell.radius - oy)) / (width * width)
    layer = 1.0 - depth * np.exp(-np.square(r2)) + 0.16 * np.exp(-np.square((rho - 0.9) / 0.09))
    layer *= soften(signed, 5.0) * np.float32(cell.amount)
    if cell.spot:
        r = np.hypot(x - cell.spot[0], y - cell.spot[1])
        layer += 0.55 * np.exp(-np.square((r - 7) / 2.2)) - 0.8 * np.exp(-np.square(r / 5))
    _stamp(canvas, np.asarray(layer, np.float32), left, top)


def _absorb(scene: Scene, height: int, width: int, dx: int, dy: int) -> FloatArray:
    """What the slide absorbs in red, green and blue: (3, height, width), natural log, ≥ 0."""
    half = np.zeros((height // 2 + 1, width // 2 + 1), np.float32)
    for cell in scene.red_cells:
        _paint_red_cell(half, cell, dx, dy)
    full = Image.fromarray(half).resize(
        (width, height),
        Image.Resampling.BILINEAR,
        (0.25, 0.25, width / 2 + 0.25, height / 2 + 0.25),
    )
    haem = np.maximum(np.asarray(full, np.float32), 0.0)
    # Two layers of cells absorb less than twice as much: they are flattened where they overlap.
    haem = np.minimum(haem, 0.66 + 0.36 * haem)
    absorbance = np.asarray(scene.stain[HAEM][:, None, None] * haem, np.float32)
    for left, top, density in scene.platelets:
        _stamp(absorbance, scene.stain[AZURE][:, None, None] * density, left + dx, top + dy)
    for x, y, cell_ in scene.leukocytes:
        reach = cell_.body.shape[0] // 2
        patch = np.tensordot(scene.stain.T, cell_.density, 1)
        _stamp(absorbance, patch, int(x) + dx - reach, int(y) + dy - reach)
    return absorbance


def _photograph(
    rng: np.random.Generator, absorbance: FloatArray, blur: float | None
) -> Image.Image:
    """Light, exposure, white balance, focus and sensor noise."""
    height, width = absorbance.shape[1:]
    tone = np.log(PAPER * rng.uniform(0.86, 1.08)) + rng.normal(0.0, 0.015, 3)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    tilt_x, tilt_y = rng.normal(0.0, 0.03, 2).astype(np.float32)
    fall = np.float32(rng.uniform(0.02, 0.09))
    light = tilt_x * x + tilt_y * y - fall * (x * x + y * y)
    pixels = absorbance * np.float32(-rng.uniform(0.8, 1.2))  # contrast
    pixels += light + tone.astype(np.float32)[:, None, None]
    np.minimum(np.exp(pixels, out=pixels), 255.0, out=pixels)
    picture = Image.merge("RGB", [Image.fromarray(plane) for plane in pixels.astype(np.uint8)])
    focus = float(rng.choice([0.0, 0.8, 1.3, 2.2], p=[0.35, 0.3, 0.25, 0.1]))
    sigma = focus if blur is None else blur
    passes = 1 if sigma < 1.5 else 2  # one box is square, which shows only when it's wide
    reach = 0.5 * (float(np.sqrt(12 * sigma**2 / passes + 1)) - 1)
    for _ in range(passes if sigma > 0 else 0):
        picture = picture.filter(ImageFilter.BoxBlur(reach))
    # Sensor noise: the number of ones in 32 random bits is normal enough, and five times faster.
    ones = np.bitwise_count(rng.integers(0, 2**32, (height, width), np.uint32))
    levels = 128.5 + (np.arange(33) - 16) / np.sqrt(8) * rng.uniform(0.8, 2.2)
    shade = Image.fromarray(levels.astype(np.uint8)[ones])
    return ImageChops.add(picture, Image.merge("RGB", [shade] * 3), 1, -128)


@cache
def _mark() -> ImageArray:
    """The word SYNTHETIC as a mask, (h, w) in [0, 255]."""
    font = ImageFont.load_default(size=11)
    left, top, right, bottom = map(int, font.getbbox(MARK))
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), MARK, fill=255, font=font)
    return np.asarray(mask)


def _write_mark(picture: Image.Image, absorbance: FloatArray) -> None:
    """Writes SYNTHETIC into the emptiest corner."""
    mask = _mark()
    (h, w), (width, height) = mask.shape, picture.size
    if w + 8 > width or h + 8 > height:
        return
    corners = [(x, y) for y in (height - h - 4, 4) for x in (5, width - w - 5)]
    load = [float(absorbance[1, y : y + h, x : x + w].max()) for x, y in corners]
    x, y = corners[int(np.argmin(load))]
    picture.paste((92, 92, 92), (x, y), Image.fromarray(mask))


def _box(
    name: str, x0: float, y0: float, x1: float, y1: float, height: int, width: int
) -> tuple[str, int, int, int, int] | None:
    """A box clipped to the field; None if less than a quarter of it can be seen."""
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    right, bottom = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
    seen = max(right - left, 0) * max(bottom - top, 0)
    return (name, left, top, right, bottom) if seen >= 0.25 * (x1 - x0) * (y1 - y0) else None


def _find_boxes(scene: Scene, height: int, width: int, dx: int, dy: int) -> tuple[Box, ...]:
    boxes: list[Box] = []
    for x, y, cell in scene.leukocytes:
        reach = cell.body.shape[0] // 2
        rows, columns = np.nonzero(cell.body > 0.5)
        ox, oy = int(x) + dx - reach, int(y) + dy - reach
        found = _box(
            "WBC",
            ox + columns.min(),
            oy + rows.min(),
            ox + columns.max() + 1,
            oy + rows.max() + 1,
            height,
            width,
        )
        if found:
            boxes.append(Box(*found, kind=cell.kind))
    turns = np.exp(1j * np.linspace(0, 2 * np.pi, 48, endpoint=False))
    harmonics = turns ** np.arange(2, 6)[:, None]
    for red in scene.red_cells:
        swell = 1.0 + (np.array(red.bumps) @ harmonics).real
        edge = turns * swell * red.radius + complex(red.x + dx, red.y + dy)
        x, y = edge.real, edge.imag
        found = _box("RBC", x.min(), y.min(), x.max(), y.max(), height, width)
        if found:
            boxes.append(Box(*found))
    for left, top, density in scene.platelets:
        rows, columns = np.nonzero(density > 0.05)
        if rows.size:
            ox, oy = left + dx, top + dy
            found = _box(
                "Platelets",
                ox + columns.min(),
                oy + rows.min(),
                ox + columns.max() + 1,
                oy + rows.max() + 1,
                height,
                width,
            )
            if found:
                boxes.append(Box(*found))
    return tuple(boxes)


def draw_field(
    rng: np.random.Generator,
    kinds: Sequence[str],
    *,
    height: int = 480,
    width: int = 640,
    stage: tuple[int, int] = (0, 0),
    camera: np.random.Generator | None = None,
    blur: float | None = None,
    mark: bool = True,
    centred: bool = False,
) -> SyntheticField:
    """Draws one smear field with the leukocytes asked for.

    Args:
        rng: Decides the slide: cells, their places, stain. The same state draws the same slide.
        kinds: One entry of ``KINDS`` per leukocyte; may be empty.
        height: Of the image, px.
        width: Of the image, px.
        stage: How far (dx, dy) the slide is moved under the lens, px, within ±``MARGIN``: the same
            ``rng`` state with another stage and camera photographs the same cells again.
        camera: Decides exposure, focus and noise; left out, ``rng`` does.
        blur: Standard deviation of the focus blur, px; left out, the camera decides.
        mark: Whether the word SYNTHETIC is written into the emptiest corner.
        centred: Whether the leukocyte stands in the middle (for one leukocyte).

    Returns:
        The image and its boxes. Cells of which less than a quarter can be seen have no box.

    Raises:
        UnknownNameError: A kind that isn't drawn here.
        SettingsError: A size or a shift that can't be drawn.
    """
    for kind in kinds:
        if kind not in DRAW:
            raise UnknownNameError(
                f"no synthetic leukocyte of kind {kind!r}. {suggest(kind, list(KINDS))}"
            )
    if min(height, width) < 32:
        raise SettingsError(f"a field of {width} × {height} px is too small: at least 32 × 32 px.")
    dx, dy = stage
    if max(abs(dx), abs(dy)) > MARGIN:
        raise SettingsError(f"stage {stage} moves out of what is drawn: at most ±{MARGIN} px.")
    scene = lay_out(rng, kinds, height, width, centred=centred)
    absorbance = _absorb(scene, height, width, dx, dy)
    picture = _photograph(rng if camera is None else camera, absorbance, blur)
    if mark:
        _write_mark(picture, absorbance)
    return SyntheticField(np.asarray(picture), _find_boxes(scene, height, width, dx, dy))


def draw_cell(rng: np.random.Generator, kind: str, size: int = 96) -> ImageArray:
    """Draws one leukocyte with its surroundings, 240 px of a field reduced to (size, size, 3)."""
    field = draw_field(rng, [kind], height=240, width=240, mark=False, centred=True)
    picture = Image.fromarray(field.image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
