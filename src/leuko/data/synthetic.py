"""Draws smear fields whose cells are known exactly: the demo set, and every test's images.

Nothing here was photographed. A field is drawn the way a smear absorbs light: each cell adds
density to one or more of four dyes, and the camera sees ``light · exp(-dyes @ stain)``. That makes
overlapping red cells darker where they overlap, as under a microscope, and keeps slide (the
scene and its stain) and camera (exposure, focus, noise) apart, so that one scene can be
photographed twice.

The physical scale is that of the Kaggle blood-cells set: a red cell is about 95 px across at
640 × 480, a leukocyte 90 to 225 px. Stain and exposure vary from field to field, so that colour
alone doesn't tell the kinds apart.

This module refuses to know how images are read, cleaned or learnt from.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from leuko.errors import OutputError, SettingsError, StorageError, UnknownNameError, suggest

FloatArray: TypeAlias = NDArray[np.float32]
ImageArray: TypeAlias = NDArray[np.uint8]

KINDS: tuple[str, ...] = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "BASOPHIL")
MARK = "SYNTHETIC"
NOTICE = "SYNTHETIC image drawn by Leuko; it shows no real blood and no patient."

DEMO_COUNTS: Mapping[str, int] = {
    "NEUTROPHIL": 72,
    "EOSINOPHIL": 40,
    "LYMPHOCYTE": 28,
    "MONOCYTE": 20,
    "BASOPHIL": 3,
}
"""Images with exactly one label in the demo set, second photographs included."""

BLANK_WITHOUT_IMAGE = 5
BLANK_WITH_IMAGE = 1
LABEL_WITHOUT_IMAGE = "MONOCYTE"
MANY_LABELS: tuple[str, ...] = (
    "NEUTROPHIL, EOSINOPHIL",
    "NEUTROPHIL,NEUTROPHIL",
    "NEUTROPHIL, NEUTROPHIL",
    "EOSINOPHIL, LYMPHOCYTE",
    "EOSINOPHIL,EOSINOPHIL",
    "MONOCYTE, LYMPHOCYTE",
)
PAIR_KINDS: tuple[str, ...] = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE")

MARGIN = 80  # px drawn around the field, so that the stage can move without a bare edge
PAPER = np.array([199.0, 200.0, 196.0], np.float32)  # empty background of the real set

# Absorbance of each dye per unit of density, in red, green and blue; read off the real fields.
HAEM, AZURE, EOSIN, BLUE = range(4)
DYES = np.array(
    [
        [0.11, 0.30, 0.335],  # haemoglobin
        [0.76, 0.90, 0.06],  # azure bound to DNA: violet
        [0.10, 0.82, 0.50],  # eosin: orange-red granules
        [0.62, 0.42, 0.02],  # methylene blue in the cytoplasm
    ],
    np.float32,
)


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


# --- shapes and textures ------------------------------------------------------------------


def _noise(rng: np.random.Generator, height: int, width: int, grain: float) -> FloatArray:
    """Smooth noise (height, width), mean 0, standard deviation about 0.7; grain in px."""
    rows, columns = int(height / grain) + 2, int(width / grain) + 2
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _soft(signed: FloatArray, edge: float) -> FloatArray:
    """Coverage in [0, 1] from a signed distance (px, positive inside); edge px wide."""
    t = np.clip(signed / edge + 0.5, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def _join(a: FloatArray, b: FloatArray, blend: float) -> FloatArray:
    """Union of two signed distances with a fillet of blend px, as nuclear lobes flow together."""
    h = np.clip(0.5 + 0.5 * (a - b) / blend, 0.0, 1.0)
    return np.asarray(b + (a - b) * h + blend * h * (1.0 - h), np.float32)


def _outline(
    x: FloatArray, y: FloatArray, radius: float, bumps: Sequence[complex]
) -> tuple[FloatArray, FloatArray]:
    """Signed distance and relative radius of a blob: bumps are its harmonics 2, 3, …"""
    r = np.hypot(x, y) + np.float32(1e-3)
    z = (x + 1j * y) / r
    swell = np.ones_like(r)
    power = z
    for bump in bumps:
        power = power * z
        swell += (power * np.complex64(bump)).real
    edge = swell * np.float32(radius)
    return edge - r, r / edge


def _bumps(rng: np.random.Generator, count: int, size: float) -> list[complex]:
    """Harmonics for _outline; together at most 0.18, so that a blob stays on its patch."""
    sizes = rng.normal(0.0, size, (count, 2)) / np.arange(1, count + 1)[:, None]
    sizes *= min(1.0, 0.18 / float(np.hypot(sizes[:, 0], sizes[:, 1]).sum()))
    return [complex(a, b) for a, b in sizes]


def _dots(
    rng: np.random.Generator,
    height: int,
    width: int,
    spacing: float,
    radius: tuple[float, float],
    keep: Callable[[int, int], bool],
) -> FloatArray:
    """Scattered discs, (height, width) in [0, 1], one about every spacing px where keep allows."""
    scale = 2  # drawn at double size and reduced: Pillow's ellipses have hard edges
    canvas = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    rows, columns = int(height / spacing / 0.87) + 1, int(width / spacing) + 1
    jitter = rng.uniform(-0.42, 0.42, (rows, columns, 2)) * spacing
    radii = rng.uniform(*radius, (rows, columns))
    tones = rng.integers(150, 256, (rows, columns))
    for i in range(rows):
        for j in range(columns):
            x = (j + 0.5 * (i % 2)) * spacing + jitter[i, j, 0]
            y = i * spacing * 0.87 + jitter[i, j, 1]
            if 0 <= x < width and 0 <= y < height and keep(int(y), int(x)):
                x, y, r = x * scale, y * scale, radii[i, j] * scale
                draw.ellipse((x - r, y - r, x + r, y + r), fill=int(tones[i, j]))
    small = canvas.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255.0


# --- the five kinds -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Leukocyte:
    """density: (4, S, S) of the dyes; body: (S, S) coverage of the whole cell; radius in px."""

    kind: str
    radius: float
    body: FloatArray
    density: FloatArray


class _Clay:
    """What every kind starts from: a grid, a warp that makes circles organic, a cell outline."""

    def __init__(
        self, rng: np.random.Generator, radius: float, *, lumps: float = 0.035, warp: float = 0.05
    ) -> None:
        self.rng, self.radius = rng, radius
        self.size = size = 2 * int(radius * 1.22) + 1
        axis = np.arange(size, dtype=np.float32) - size // 2
        self.x, self.y = np.meshgrid(axis, axis)
        self.u = self.x + _noise(rng, size, size, radius * 0.42) * np.float32(warp * radius)
        self.v = self.y + _noise(rng, size, size, radius * 0.42) * np.float32(warp * radius)
        signed, self.rho = _outline(self.x, self.y, radius, _bumps(rng, 4, lumps))
        self.signed = signed
        self.body = _soft(signed, 3.0)

    def noise(self, grain: float) -> FloatArray:
        return _noise(self.rng, self.size, self.size, grain)

    def disc(self, x: float, y: float, radius: float) -> FloatArray:
        distance = np.hypot(self.u - np.float32(x), self.v - np.float32(y))
        return np.asarray(np.float32(radius) - distance, np.float32)

    def stroke(self, points: Sequence[tuple[float, float]], radius: float) -> FloatArray:
        """Signed distance to a line of round pen strokes through points (px from the centre)."""
        best = np.full_like(self.u, 1e9)
        for (ax, ay), (bx, by) in pairwise(points):
            dx, dy = bx - ax, by - ay
            px, py = self.u - np.float32(ax), self.v - np.float32(ay)
            t = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0.0, 1.0)
            np.minimum(best, np.hypot(px - t * dx, py - t * dy), out=best)
        return np.asarray(np.float32(radius) - best, np.float32)

    def inside(self, field: FloatArray, inset: float) -> FloatArray:
        """Keeps a nucleus within the cell membrane, inset px away from it."""
        return np.asarray(np.minimum(field, self.signed - np.float32(inset)), np.float32)

    def finish(self, kind: str, layers: Mapping[int, NDArray[np.floating]]) -> _Leukocyte:
        density = np.zeros((4, self.size, self.size), np.float32)
        for dye, layer in layers.items():
            density[dye] = layer * self.body
        return _Leukocyte(kind, self.radius, self.body, np.maximum(density, 0.0))


def _chromatin(clay: _Clay, nucleus: FloatArray, clumps: float, grain: float) -> FloatArray:
    """Density of a nucleus: clumped chromatin and a denser membrane; about 1 inside."""
    cover = _soft(nucleus, 3.5)
    texture = 1.0 + clumps * (0.7 * clay.noise(grain) + 0.5 * clay.noise(grain * 0.45))
    rim = 0.18 * np.exp(-np.square(nucleus - 3.0) / 12.0)
    return np.asarray(cover * np.clip(texture + rim, 0.35, 1.7), np.float32)


def _arc(start: float, span: float, count: int, radius: float) -> list[tuple[float, float]]:
    angles = start + np.linspace(-0.5, 0.5, count) * span
    return [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles]


def _lobes(clay: _Clay, count: int) -> FloatArray:
    """A segmented nucleus: count lobes along an arc, joined by thin strands."""
    rng, r = clay.rng, clay.radius
    lobe = {2: 0.37, 3: 0.305, 4: 0.265, 5: 0.235}[count] * r * rng.uniform(0.92, 1.08)
    ring = rng.uniform(0.36, 0.47) * r
    step = lobe * rng.uniform(1.65, 2.1) / ring
    points = _arc(rng.uniform(0, 2 * np.pi), step * (count - 1), count, ring)
    points = [(x + rng.normal(0, 0.035) * r, y + rng.normal(0, 0.035) * r) for x, y in points]
    nucleus = clay.stroke(points, 0.075 * r)
    for x, y in points:
        nucleus = _join(nucleus, clay.disc(x, y, lobe * rng.uniform(0.85, 1.12)), 0.05 * r)
    return clay.inside(nucleus, 4.0)


def _draw_neutrophil(rng: np.random.Generator) -> _Leukocyte:
    clay = _Clay(rng, rng.uniform(62, 98), warp=0.055)
    r = clay.radius
    if rng.random() < 0.12:  # a band cell: the nucleus isn't segmented yet
        points = _arc(rng.uniform(0, 2 * np.pi), rng.uniform(2.4, 3.6), 8, 0.46 * r)
        nucleus = clay.inside(clay.stroke(points, 0.2 * r), 4.0)
    else:
        nucleus = _lobes(clay, int(rng.choice([2, 3, 4, 5], p=[0.16, 0.40, 0.33, 0.11])))
    grains = np.clip(clay.noise(3.2) + 0.2, 0.0, 0.9) * rng.uniform(0.08, 0.20)
    haze = 1.0 + 0.25 * clay.noise(16)
    pink, lilac, blue = rng.uniform((0.02, 0.03, 0.0), (0.24, 0.15, 0.18))
    free = 1.0 - _soft(nucleus, 3.5)
    return clay.finish(
        "NEUTROPHIL",
        {
            AZURE: _chromatin(clay, nucleus, 0.22, 9.0) * rng.uniform(0.6, 1.05)
            + free * (lilac * haze + 0.6 * grains),
            EOSIN: free * (pink * haze + 0.5 * grains),
            BLUE: free * haze * blue,
        },
    )


def _draw_eosinophil(rng: np.random.Generator) -> _Leukocyte:
    clay = _Clay(rng, rng.uniform(62, 98), lumps=0.045, warp=0.055)
    r = clay.radius
    nucleus = _lobes(clay, 3 if rng.random() < 0.14 else 2)
    cell = clay.signed - 2.0
    granules = _dots(
        rng, clay.size, clay.size, rng.uniform(7.5, 9.5), (2.9, 4.3), lambda i, j: cell[i, j] > 1.0
    )
    # Granules lie above and below the nucleus too, where they only shimmer through.
    free = 1.0 - 0.82 * _soft(nucleus, 4.0)
    strength = rng.uniform(0.28, 0.75)
    hue = rng.uniform(0.0, 0.22)
    shade = 1.0 + 0.15 * clay.noise(r * 0.5)
    return clay.finish(
        "EOSINOPHIL",
        {
            AZURE: _chromatin(clay, nucleus, 0.18, 10.0) * rng.uniform(0.6, 1.05)
            + free * (0.05 + hue * granules),
            EOSIN: free * shade * (0.10 + strength * granules),
        },
    )


def _draw_lymphocyte(rng: np.random.Generator) -> _Leukocyte:
    large = rng.random() < 0.45
    radius = rng.uniform(62, 86) if large else rng.uniform(48, 66)
    clay = _Clay(rng, radius, lumps=0.03, warp=0.05)
    share = rng.uniform(0.66, 0.78) if large else rng.uniform(0.80, 0.92)
    turn, off = rng.uniform(0, 2 * np.pi), (1.0 - share) * rng.uniform(0.2, 0.75) * radius
    cx, cy = off * np.cos(turn), off * np.sin(turn)
    nucleus = clay.disc(cx, cy, share * radius)
    if rng.random() < 0.35:  # a shallow dent
        dent = clay.disc(cx - radius * 1.25 * np.cos(turn), cy - radius * 1.25 * np.sin(turn), 0.55)
        nucleus = np.minimum(nucleus, -(dent + 0.5 * radius))
    nucleus = clay.inside(nucleus, 2.0)
    free = 1.0 - _soft(nucleus, 3.5)
    edge = 0.6 + 0.6 * np.clip(clay.rho, 0, 1.1) ** 4  # the rim is bluest at the membrane
    return clay.finish(
        "LYMPHOCYTE",
        {
            AZURE: _chromatin(clay, nucleus, 0.16, 13.0) * rng.uniform(0.65, 1.1)
            + free * rng.uniform(0.0, 0.12),
            BLUE: free * edge * (1.0 + 0.2 * clay.noise(9)) * rng.uniform(0.22, 0.62),
        },
    )


def _draw_monocyte(rng: np.random.Generator) -> _Leukocyte:
    clay = _Clay(rng, rng.uniform(72, 110), lumps=0.05, warp=0.08)
    r = clay.radius
    start, span = rng.uniform(0, 2 * np.pi), rng.uniform(1.3, 3.1)
    points = _arc(start, span, 8, rng.uniform(0.32, 0.46) * r)
    shift = rng.uniform(0.05, 0.2) * r
    points = [(x - shift * np.cos(start), y - shift * np.sin(start)) for x, y in points]
    nucleus = clay.inside(clay.stroke(points, rng.uniform(0.33, 0.42) * r), 5.0)
    free = 1.0 - _soft(nucleus, 4.0)
    # Ridges of noise: the open, lacy chromatin.
    lace = 1.12 - 0.45 * np.abs(clay.noise(12)) + 0.10 * clay.noise(5)
    glass = 1.0 + 0.22 * clay.noise(2.6) + 0.25 * clay.noise(18)
    holes = np.zeros_like(free)
    if rng.random() < 0.6:
        holes = _dots(
            rng,
            clay.size,
            clay.size,
            26.0,
            (2.5, 6.0),
            lambda i, j: clay.signed[i, j] > 10 and nucleus[i, j] < -4 and rng.random() < 0.55,
        )
    cytoplasm = free * glass * (1.0 - 0.85 * holes)
    nuclear = _soft(nucleus, 4.5) * np.clip(lace, 0.3, 1.5) + 0.1 * np.exp(-(nucleus**2) / 16)
    return clay.finish(
        "MONOCYTE",
        {
            AZURE: nuclear * rng.uniform(0.58, 1.0) + cytoplasm * rng.uniform(0.03, 0.14),
            EOSIN: cytoplasm * rng.uniform(0.0, 0.16),
            BLUE: cytoplasm * rng.uniform(0.08, 0.36),
        },
    )


def _draw_basophil(rng: np.random.Generator) -> _Leukocyte:
    clay = _Clay(rng, rng.uniform(66, 88), lumps=0.045, warp=0.09)
    nucleus = _lobes(clay, int(rng.choice([2, 3])))
    granules = sum(
        _dots(rng, clay.size, clay.size, gap, radii, lambda i, j: clay.signed[i, j] > 1.0)
        for gap, radii in ((13.0, (2.5, 6.0)), (9.0, (1.5, 4.0)))
    )
    granules = np.minimum(granules, 1.25)
    haze = 1.0 + 0.25 * clay.noise(14)
    return clay.finish(
        "BASOPHIL",
        {
            AZURE: 0.42 * _chromatin(clay, nucleus, 0.2, 9.0)
            + 0.14 * haze
            + granules * rng.uniform(0.42, 0.65),
            EOSIN: 0.08 * haze + 0.12 * granules,
        },
    )


_DRAW: Mapping[str, Callable[[np.random.Generator], _Leukocyte]] = {
    "NEUTROPHIL": _draw_neutrophil,
    "EOSINOPHIL": _draw_eosinophil,
    "LYMPHOCYTE": _draw_lymphocyte,
    "MONOCYTE": _draw_monocyte,
    "BASOPHIL": _draw_basophil,
}


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
class _Scene:
    """A piece of the slide, larger than a field by MARGIN on each side; px from the field's 0."""

    leukocytes: list[tuple[float, float, _Leukocyte]]
    red_cells: list[_RedCell]
    platelets: list[tuple[int, int, FloatArray]]  # left, top, density of azure
    stain: FloatArray  # (4, 3)


def _place_leukocytes(
    rng: np.random.Generator, kinds: Sequence[str], height: int, width: int, *, centred: bool
) -> list[tuple[float, float, _Leukocyte]]:
    """Leukocytes apart from each other; mostly whole, sometimes cut by the field's border."""
    placed: list[tuple[float, float, _Leukocyte]] = []
    for kind in kinds:
        cell = _DRAW[kind](rng)
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
    leukocytes: Sequence[tuple[float, float, _Leukocyte]],
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
                _bumps(rng, 4, 0.045),
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
        signed, _ = _outline(*np.meshgrid(axis, axis), radius, _bumps(rng, 3, 0.07))
        grain = 1.0 + 0.35 * _noise(rng, axis.size, axis.size, 4.0)
        density = _soft(signed, 6.0) * grain * rng.uniform(0.18, 0.5)
        if np.all(np.hypot(others[:, 0] - x, others[:, 1] - y) > 0.95 * others[:, 2] + radius):
            platelets.append((int(x) - reach, int(y) - reach, np.asarray(density, np.float32)))
    return platelets


def _lay_out(
    rng: np.random.Generator, kinds: Sequence[str], height: int, width: int, *, centred: bool
) -> _Scene:
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
    return _Scene(leukocytes, red_cells, platelets, stain.astype(np.float32))


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
    signed, rho = _outline(x, y, cell.radius, cell.bumps)
    (depth, width), (ox, oy) = cell.pallor, cell.centre
    r2 = (np.square(x / cell.radius - ox) + np.square(y / cell.radius - oy)) / (width * width)
    layer = 1.0 - depth * np.exp(-np.square(r2)) + 0.16 * np.exp(-np.square((rho - 0.9) / 0.09))
    layer *= _soft(signed, 5.0) * np.float32(cell.amount)
    if cell.spot:
        r = np.hypot(x - cell.spot[0], y - cell.spot[1])
        layer += 0.55 * np.exp(-np.square((r - 7) / 2.2)) - 0.8 * np.exp(-np.square(r / 5))
    _stamp(canvas, np.asarray(layer, np.float32), left, top)


def _absorb(scene: _Scene, height: int, width: int, dx: int, dy: int) -> FloatArray:
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


def _find_boxes(scene: _Scene, height: int, width: int, dx: int, dy: int) -> tuple[Box, ...]:
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
        if kind not in _DRAW:
            raise UnknownNameError(
                f"no synthetic leukocyte of kind {kind!r}. {suggest(kind, list(KINDS))}"
            )
    if min(height, width) < 32:
        raise SettingsError(f"a field of {width} × {height} px is too small: at least 32 × 32 px.")
    dx, dy = stage
    if max(abs(dx), abs(dy)) > MARGIN:
        raise SettingsError(f"stage {stage} moves out of what is drawn: at most ±{MARGIN} px.")
    scene = _lay_out(rng, kinds, height, width, centred=centred)
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


# --- the demo set -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A label row to be: what it says, what is drawn (None: no image), and which scene."""

    written: str
    kinds: tuple[str, ...] | None
    scene: int
    stage: tuple[int, int] = (0, 0)
    again: int | None = None  # number of the pair of which this is the second photograph


def _scene(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, 1])


def _plan_rows(seed: int, counts: Mapping[str, int], pairs: int) -> list[_Row]:
    """The label table in its order, faults strewn in as in the real one."""
    rng = np.random.default_rng([seed, 0])
    plan: list[tuple[str, tuple[str, ...] | None]] = []
    twice = [kind for kind in PAIR_KINDS if counts.get(kind, 0) >= 2][:pairs]
    for kind in KINDS:
        plan += [(kind, (kind,))] * (counts.get(kind, 0) - twice.count(kind))
    plan += [(text, tuple(k.strip() for k in text.split(","))) for text in MANY_LABELS]
    plan += [("", None)] * BLANK_WITHOUT_IMAGE + [("", ())] * BLANK_WITH_IMAGE
    plan += [(LABEL_WITHOUT_IMAGE, None)]
    order = rng.permutation(len(plan))
    rows = [_Row(plan[i][0], plan[i][1], scene=n) for n, i in enumerate(order)]
    for number, kind in enumerate(twice):
        first = next(r for r in rows if r.kinds == (kind,) and r.again is None)
        ((x, y, _),) = _lay_out(
            _scene(seed, first.scene), [kind], 480, 640, centred=False
        ).leukocytes
        dx, dy = (int(v) for v in rng.integers(20, MARGIN // 2 + 20, 2))
        # Towards the middle: the cell must not leave the field.
        dx, dy = (dx if x < 320 else -dx), (dy if y < 240 else -dy)
        second = _Row(kind, (kind,), first.scene, (dx, dy), again=number)
        # The slide was walked twice: the cell comes back a while later.
        place = rows.index(first) + max(1, len(rows) // 4)
        rows.insert(min(place, len(rows)), second)
    return rows


def _format_annotation(name: str, field: SyntheticField) -> str:
    """Pascal VOC as in the Kaggle set: pixels count from 1 and the last one is included."""
    height, width = field.image.shape[:2]
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **texts: object) -> None:
        for key, text in texts.items():
            ElementTree.SubElement(parent, key).text = str(text)

    add(root, folder="JPEGImages", filename=f"{name}.jpg", path=f"JPEGImages/{name}.jpg")
    add(ElementTree.SubElement(root, "source"), database="synthetic", annotation=NOTICE)
    add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    add(root, segmented=0)
    for box in field.boxes:
        item = ElementTree.SubElement(root, "object")
        cut = box.x0 == 0 or box.y0 == 0 or box.x1 == width or box.y1 == height
        add(item, name=box.name, pose="Unspecified", truncated=int(cut), difficult=0)
        corners: dict[str, Any] = {"xmin": box.x0 + 1, "ymin": box.y0 + 1}
        corners |= {"xmax": box.x1, "ymax": box.y1}
        add(ElementTree.SubElement(item, "bndbox"), **corners)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _write_field(inner: Path, name: str, row: _Row, seed: int, number: int) -> SyntheticField:
    assert row.kinds is not None
    field = draw_field(
        _scene(seed, row.scene),
        row.kinds,
        stage=row.stage,
        camera=np.random.default_rng([seed, number, 2]),
    )
    Image.fromarray(field.image).save(
        inner / "JPEGImages" / f"{name}.jpg", quality=88, comment=NOTICE.encode()
    )
    text = _format_annotation(name, field)
    (inner / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8", newline="\n")
    return field


def write_demo_set(
    folder: Path,
    *,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    pairs: int = len(PAIR_KINDS),
) -> Path:
    """Writes a synthetic set in the Kaggle set's raw layout, with its kinds of faults.

    The same seed writes the same bytes (with the same Pillow). Besides the images with one label
    there are always: ``BLANK_WITHOUT_IMAGE`` blank rows without an image, ``BLANK_WITH_IMAGE``
    blank rows with one (a field without leukocytes), one row that is labelled
    ``LABEL_WITHOUT_IMAGE`` and has none, and one field per entry of ``MANY_LABELS``. ``pairs.csv``
    names the fields that show the same cells, photographed twice.

    Args:
        folder: Is made; must not hold a set already.
        seed: Decides everything.
        counts: Images with exactly one label per kind, second photographs included; left out,
            ``DEMO_COUNTS``.
        pairs: Fields that are photographed twice, at most 3; only of kinds with two images.

    Returns:
        The folder; in it ``dataset-master/dataset-master/{JPEGImages,Annotations,labels.csv}``.

    Raises:
        UnknownNameError: A kind that isn't drawn here.
        SettingsError: A negative count.
        OutputError: The folder holds a set already.
        StorageError: It can't be written.
    """
    counts = DEMO_COUNTS if counts is None else counts
    for kind, count in counts.items():
        if kind not in _DRAW:
            raise UnknownNameError(
                f"no synthetic leukocyte of kind {kind!r}. {suggest(kind, list(KINDS))}"
            )
        if count < 0:
            raise SettingsError(f"{count} images of {kind}: a count is 0 or more.")
    folder = Path(folder)
    inner = folder / "dataset-master" / "dataset-master"
    if inner.exists():
        raise OutputError(f"{folder} holds a set already. Name another folder, or remove it first.")
    rows = _plan_rows(seed, counts, pairs)
    try:
        for part in ("JPEGImages", "Annotations"):
            (inner / part).mkdir(parents=True)
        for number, row in enumerate(rows):
            if row.kinds is not None:
                _write_field(inner, f"BloodImage_{number:05d}", row, seed, number)
        _write_tables(folder, inner, rows)
    except OSError as error:
        raise StorageError(f"the demo set can't be written to {folder}: {error}.") from error
    return folder


def _write_tables(folder: Path, inner: Path, rows: Sequence[_Row]) -> None:
    with (inner / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Image", "Category"])
        writer.writerows(["", number, row.written] for number, row in enumerate(rows))
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "kind", "dx", "dy"])
        for number, row in enumerate(rows):
            if row.again is not None:
                first = next(n for n, r in enumerate(rows) if r.scene == row.scene)
                names = [f"BloodImage_{n:05d}" for n in (first, number)]
                writer.writerow([*names, row.written, *row.stage])
    (folder / "README.txt").write_text(_README, encoding="utf-8", newline="\n")


_README = f"""{NOTICE}

SYNTHETIC DEMO SET. Every image in this folder was drawn by leuko.data.synthetic. Nothing was
photographed; nothing that is measured here says how well a network does on real blood.

dataset-master/dataset-master/JPEGImages   640 x 480 smear fields; each says {MARK} in a corner
dataset-master/dataset-master/Annotations  Pascal VOC boxes: WBC, RBC, Platelets
dataset-master/dataset-master/labels.csv   columns: empty, Image, Category
pairs.csv                                  fields that show the same cells, photographed twice
                                           (dx, dy: how far the second is shifted, px)

The layout is that of the Kaggle set paultimothymooney/blood-cells, and so are the faults in
labels.csv: blank rows, a label without an image, rows with two labels, a handful of basophils.
They are meant.
"""
