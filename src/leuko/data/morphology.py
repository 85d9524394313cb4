"""The shapes of single leukocytes: nucleus, granules and cytoplasm as densities of dyes.

A cell is drawn as coverages in [0, 1] from signed distances, warped by smooth noise; a nucleus is
lobes joined by strands, a granulocyte's cytoplasm is scattered dots. What comes out are densities
of four dyes; what colour they have is in `DYES`, and how a slide strengthens or shifts it is up to
`leuko.data.drawing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FloatArray: TypeAlias = NDArray[np.float32]

KINDS: tuple[str, ...] = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "BASOPHIL")

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


# --- shapes and textures ------------------------------------------------------------------


def make_noise(rng: np.random.Generator, height: int, width: int, grain: float) -> FloatArray:
    """Smooth noise (height, width), mean 0, standard deviation about 0.7; grain in px."""
    rows, columns = int(height / grain) + 2, int(width / grain) + 2
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def soften(signed: FloatArray, edge: float) -> FloatArray:
    """Coverage in [0, 1] from a signed distance (px, positive inside); edge px wide."""
    t = np.clip(signed / edge + 0.5, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def _join(a: FloatArray, b: FloatArray, blend: float) -> FloatArray:
    """Union of two signed distances with a fillet of blend px, as nuclear lobes flow together."""
    h = np.clip(0.5 + 0.5 * (a - b) / blend, 0.0, 1.0)
    return np.asarray(b + (a - b) * h + blend * h * (1.0 - h), np.float32)


def measure_outline(
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


def make_bumps(rng: np.random.Generator, count: int, size: float) -> list[complex]:
    """Harmonics for measure_outline; together at most 0.18, so that a blob stays on its patch."""
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
class DrawnLeukocyte:
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
        self.u = self.x + make_noise(rng, size, size, radius * 0.42) * np.float32(warp * radius)
        self.v = self.y + make_noise(rng, size, size, radius * 0.42) * np.float32(warp * radius)
        signed, self.rho = measure_outline(self.x, self.y, radius, make_bumps(rng, 4, lumps))
        self.signed = signed
        self.body = soften(signed, 3.0)

    def noise(self, grain: float) -> FloatArray:
        return make_noise(self.rng, self.size, self.size, grain)

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

    def finish(self, kind: str, layers: Mapping[int, NDArray[np.floating]]) -> DrawnLeukocyte:
        density = np.zeros((4, self.size, self.size), np.float32)
        for dye, layer in layers.items():
            density[dye] = layer * self.body
        return DrawnLeukocyte(kind, self.radius, self.body, np.maximum(density, 0.0))


def _chromatin(clay: _Clay, nucleus: FloatArray, clumps: float, grain: float) -> FloatArray:
    """Density of a nucleus: clumped chromatin and a denser membrane; about 1 inside."""
    cover = soften(nucleus, 3.5)
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


def _draw_neutrophil(rng: np.random.Generator) -> DrawnLeukocyte:
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
    free = 1.0 - soften(nucleus, 3.5)
    return clay.finish(
        "NEUTROPHIL",
        {
            AZURE: _chromatin(clay, nucleus, 0.22, 9.0) * rng.uniform(0.6, 1.05)
            + free * (lilac * haze + 0.6 * grains),
            EOSIN: free * (pink * haze + 0.5 * grains),
            BLUE: free * haze * blue,
        },
    )


def _draw_eosinophil(rng: np.random.Generator) -> DrawnLeukocyte:
    clay = _Clay(rng, rng.uniform(62, 98), lumps=0.045, warp=0.055)
    r = clay.radius
    nucleus = _lobes(clay, 3 if rng.random() < 0.14 else 2)
    cell = clay.signed - 2.0
    granules = _dots(
        rng, clay.size, clay.size, rng.uniform(7.5, 9.5), (2.9, 4.3), lambda i, j: cell[i, j] > 1.0
    )
    # Granules lie above and below the nucleus too, where they only shimmer through.
    free = 1.0 - 0.82 * soften(nucleus, 4.0)
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


def _draw_lymphocyte(rng: np.random.Generator) -> DrawnLeukocyte:
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
    free = 1.0 - soften(nucleus, 3.5)
    edge = 0.6 + 0.6 * np.clip(clay.rho, 0, 1.1) ** 4  # the rim is bluest at the membrane
    return clay.finish(
        "LYMPHOCYTE",
        {
            AZURE: _chromatin(clay, nucleus, 0.16, 13.0) * rng.uniform(0.65, 1.1)
            + free * rng.uniform(0.0, 0.12),
            BLUE: free * edge * (1.0 + 0.2 * clay.noise(9)) * rng.uniform(0.22, 0.62),
        },
    )


def _draw_monocyte(rng: np.random.Generator) -> DrawnLeukocyte:
    clay = _Clay(rng, rng.uniform(72, 110), lumps=0.05, warp=0.08)
    r = clay.radius
    start, span = rng.uniform(0, 2 * np.pi), rng.uniform(1.3, 3.1)
    points = _arc(start, span, 8, rng.uniform(0.32, 0.46) * r)
    shift = rng.uniform(0.05, 0.2) * r
    points = [(x - shift * np.cos(start), y - shift * np.sin(start)) for x, y in points]
    nucleus = clay.inside(clay.stroke(points, rng.uniform(0.33, 0.42) * r), 5.0)
    free = 1.0 - soften(nucleus, 4.0)
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
    nuclear = soften(nucleus, 4.5) * np.clip(lace, 0.3, 1.5) + 0.1 * np.exp(-(nucleus**2) / 16)
    return clay.finish(
        "MONOCYTE",
        {
            AZURE: nuclear * rng.uniform(0.58, 1.0) + cytoplasm * rng.uniform(0.03, 0.14),
            EOSIN: cytoplasm * rng.uniform(0.0, 0.16),
            BLUE: cytoplasm * rng.uniform(0.08, 0.36),
        },
    )


def _draw_basophil(rng: np.random.Generator) -> DrawnLeukocyte:
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


DRAW: Mapping[str, Callable[[np.random.Generator], DrawnLeukocyte]] = {
    "NEUTROPHIL": _draw_neutrophil,
    "EOSINOPHIL": _draw_eosinophil,
    "LYMPHOCYTE": _draw_lymphocyte,
    "MONOCYTE": _draw_monocyte,
    "BASOPHIL": _draw_basophil,
}
