"""Pictures that are no blood cells, or spoilt ones: made or drawn here, none is used for fitting.

Each maker takes a generator and gives one RGB picture (H, W, 3) uint8. Between scores was chosen
with the `DEVELOPMENT` kinds in sight; the `TEST` kinds were made when that was settled, and the
chosen score was run on them once then, and again for each bundle since (`results/outliers.md`). No
kind is in both. Photographs are crops of the pictures that scikit-learn and Matplotlib ship; what
is made from cells takes a real one that no model was fitted to. `end_cells` and `add_noise` change
cells that are cut out already, all of a set at once.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from leuko.data.density import EMPTY
from leuko.data.drawing import draw_field
from leuko.data.morphology import make_noise

Picture = NDArray[np.uint8]
Maker = Callable[[np.random.Generator], Picture]
Spoiler = Callable[[np.random.Generator, Picture], Picture]
SIDE = 256


# --- nothing of blood ------------------------------------------------------------------------


def make_static(rng: np.random.Generator) -> Picture:
    return rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def make_gradient(rng: np.random.Generator) -> Picture:
    a, b, c = rng.uniform(0, 255, (3, 3))
    y, x = np.mgrid[0:SIDE, 0:SIDE][..., None] / SIDE
    return _bytes(a + (b - a) * x + (c - a) * y)


def make_stripes(rng: np.random.Generator) -> Picture:
    a, b = rng.uniform(0, 255, (2, 3))
    turn, width = rng.uniform(0, np.pi), rng.uniform(4, 40)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    wave = (np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / width) > 0)[..., None]
    return _bytes(np.where(wave, a, b))


def make_flower(rng: np.random.Generator) -> Picture:
    return _crop(rng, _photograph("sklearn.datasets", "images/flower.jpg"))


def make_discs(rng: np.random.Generator) -> Picture:
    """Coloured discs on a ground of any colour: balloons, buttons, cells of a computer game."""
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 14))):
        x, y, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(10, 60)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng))
    return np.asarray(picture)


def make_document(rng: np.random.Generator) -> Picture:
    picture = Image.new("RGB", (320, 320), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    size = int(rng.integers(9, 26))
    font = ImageFont.load_default(size)
    letters = list("abcdefghijklmnopqrstuvwxyz     ABCDE0123456789.,")
    for line in range(int(rng.uniform(4, 12)), 320, int(size * 1.4)):
        draw.text((8, line), "".join(rng.choice(letters, 60)), fill=(20, 20, 30), font=font)
    return np.asarray(picture)


def make_chart(rng: np.random.Generator) -> Picture:
    picture = Image.new("RGB", (320, 240), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.line((30, 10, 30, 220, 310, 220), fill=(0, 0, 0), width=2)
    if rng.random() < 0.5:
        for i in range(8):
            height = rng.uniform(10, 200)
            draw.rectangle((40 + 33 * i, 220 - height, 62 + 33 * i, 219), fill=_colour(rng))
    else:
        for _ in range(3):
            y = np.clip(110 + np.cumsum(rng.normal(0, 14, 28)), 12, 218)
            points = [(30 + 10 * i, float(v)) for i, v in enumerate(y)]
            draw.line(points, fill=_colour(rng), width=3)
    return np.asarray(picture)


def make_screen(rng: np.random.Generator) -> Picture:
    picture = Image.new("RGB", (400, 300), _colour(rng, 200, 255))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 400, 26), fill=_colour(rng))
    for _ in range(int(rng.integers(4, 10))):
        x, y = rng.uniform(0, 320), rng.uniform(30, 260)
        draw.rounded_rectangle(
            (x, y, x + rng.uniform(30, 160), y + rng.uniform(16, 70)), 6, fill=_colour(rng),
            outline=(90, 90, 90),
        )  # fmt: skip
        draw.text((x + 6, y + 4), "Settings", fill=(0, 0, 0), font=ImageFont.load_default(13))
    return np.asarray(picture)


def make_photograph(rng: np.random.Generator) -> Picture:
    return _crop(rng, _photograph("sklearn.datasets", "images/china.jpg"))


def make_face(rng: np.random.Generator) -> Picture:
    return _crop(rng, _photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"))


def make_clouds(rng: np.random.Generator) -> Picture:
    """Smooth noise on several scales in two colours: marble, wood, clouds."""
    mixed = sum(make_noise(rng, SIDE, SIDE, grain) for grain in (3, 9, 27, 60))
    share = 1 / (1 + np.exp(-1.5 * np.asarray(mixed)))[..., None]
    a, b = rng.uniform(0, 255, (2, 3))
    return _bytes(a + (b - a) * share)


def make_tissue(rng: np.random.Generator) -> Picture:
    """A section stained with haematoxylin and eosin: crowded small nuclei in pink strands."""
    pink = np.array([232, 165, 195]) + rng.normal(0, 8, 3)
    strands = sum(make_noise(rng, SIDE, SIDE, grain) for grain in (4, 12, 30))
    picture = pink + 18 * np.asarray(strands)[..., None]
    canvas = Image.fromarray(_bytes(picture))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(60, 180))):
        x, y = rng.uniform(0, SIDE, 2)
        a, b = rng.uniform(4, 11), rng.uniform(3, 9)
        fill = tuple(int(v) for v in np.array([110, 70, 145]) + rng.normal(0, 14, 3))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=fill)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(1.0)))


def make_skin(rng: np.random.Generator) -> Picture:
    base = np.array([rng.uniform(140, 235), rng.uniform(100, 180), rng.uniform(80, 150)])
    canvas = Image.fromarray(_bytes(base + 7 * make_noise(rng, SIDE, SIDE, 3)[..., None]))
    draw = ImageDraw.Draw(canvas)
    x, y, r = rng.uniform(60, 190), rng.uniform(60, 190), rng.uniform(15, 45)
    draw.ellipse((x - r, y - 0.8 * r, x + r, y + 0.8 * r), fill=(95, 55, 40))
    for _ in range(int(rng.integers(2, 12))):
        ends = tuple(float(v) for v in rng.uniform(0, SIDE, 4))
        draw.line(ends, fill=(50, 35, 30), width=1)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(1.2)))


def make_scan(rng: np.random.Generator) -> Picture:
    """Crops of a slice of magnetic resonance, in grey."""
    data = files("matplotlib") / "mpl-data" / "sample_data" / "s1045.ima.gz"
    values = np.frombuffer(gzip.decompress(data.read_bytes()), np.uint16).reshape(256, 256)
    grey = _bytes(values.astype(float) * 255 / values.max())
    picture = np.repeat(np.kron(grey, np.ones((2, 2), np.uint8))[..., None], 3, axis=2)
    return _crop(rng, picture)


def make_empty_field(rng: np.random.Generator) -> Picture:
    """Red cells only."""
    return draw_field(rng, []).image


def make_plain(rng: np.random.Generator) -> Picture:
    """One colour and the noise of a camera."""
    return _bytes(rng.uniform(0, 255, 3) + rng.normal(0, 3, (SIDE, SIDE, 3)))


# --- made when the scores had been chosen ------------------------------------------------------


def make_handwriting(rng: np.random.Generator) -> Picture:
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng, 225, 255))
    draw = ImageDraw.Draw(picture)
    ink = _colour(rng, 0, 90)
    for line in range(24, SIDE, 34):
        x = np.linspace(6, SIDE - 6, 140)
        y = line + 9 * np.sin(x / rng.uniform(2, 5) + rng.uniform(0, 6)) * rng.uniform(0.4, 1)
        y += rng.normal(0, 1.2, 140)
        draw.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=ink, width=2)
    return np.asarray(picture)


def make_plan(rng: np.random.Generator) -> Picture:
    """A street map: blocks, parks, a river."""
    picture = Image.new("RGB", (SIDE, SIDE), (242, 239, 233))
    draw = ImageDraw.Draw(picture)
    for x in range(0, SIDE, int(rng.integers(24, 48))):
        draw.line((x, 0, x + rng.uniform(-30, 30), SIDE), fill=(255, 255, 255), width=7)
        draw.line((0, x, SIDE, x + rng.uniform(-30, 30)), fill=(250, 215, 140), width=5)
    for fill in ((200, 230, 190), (170, 205, 230)):
        corners = [(float(a), float(b)) for a, b in rng.uniform(0, SIDE, (5, 2))]
        draw.polygon(corners, fill=fill)
    return np.asarray(picture)


def make_sky(rng: np.random.Generator) -> Picture:
    picture = rng.normal(8, 3, (SIDE, SIDE, 3))
    for _ in range(int(rng.integers(40, 200))):
        y, x = rng.integers(2, SIDE - 2, 2)
        size = int(rng.integers(1, 3))
        picture[y : y + size, x : x + size] = rng.uniform(120, 255)
    return _bytes(picture)


def make_bricks(rng: np.random.Generator) -> Picture:
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng, 170, 210))
    draw = ImageDraw.Draw(picture)
    height, width = int(rng.integers(14, 30)), int(rng.integers(34, 70))
    for row, y in enumerate(range(0, SIDE, height)):
        for x in range(-width * (row % 2) // 2, SIDE, width):
            shade = tuple(int(v + rng.normal(0, 12)) for v in (150, 75, 55))
            draw.rectangle((x + 2, y + 2, x + width - 2, y + height - 2), fill=shade)
    return np.asarray(picture)


def make_code(rng: np.random.Generator) -> Picture:
    """A square of black and white modules."""
    modules = rng.integers(0, 2, (29, 29), np.uint8) * 255
    return np.repeat(np.kron(modules, np.ones((8, 8), np.uint8))[..., None], 3, axis=2)


def make_relief(rng: np.random.Generator) -> Picture:
    """A height map in the colours of an atlas."""
    height = sum(make_noise(rng, SIDE, SIDE, grain) for grain in (6, 20, 50))
    share = np.clip((np.asarray(height) + 3) / 6, 0, 1)
    stops = np.array([[40, 80, 160], [80, 160, 90], [210, 200, 120], [140, 95, 60], [250] * 3])
    picture = [np.interp(share, np.linspace(0, 1, 5), stops[:, c]) for c in range(3)]
    return _bytes(np.stack(picture, 2))


def make_gel(rng: np.random.Generator) -> Picture:
    picture = np.full((SIDE, SIDE), rng.uniform(20, 60))
    for lane in range(10, SIDE - 20, 30):
        for y in rng.uniform(20, SIDE - 20, int(rng.integers(2, 7))):
            rows = np.exp(-((np.arange(SIDE) - y) ** 2) / (2 * rng.uniform(2, 6)))
            picture[:, lane : lane + 20] += rng.uniform(60, 190) * rows[:, None]
    return np.repeat(_bytes(picture)[..., None], 3, axis=2)


def make_glow(rng: np.random.Generator) -> Picture:
    """Fluorescence: green and blue spots on black."""
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = np.zeros((SIDE, SIDE, 3))
    for _ in range(int(rng.integers(5, 25))):
        cy, cx, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(6, 26)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r**2))
        picture[..., int(rng.integers(1, 3))] += rng.uniform(90, 220) * spot
    return _bytes(picture + rng.normal(0, 3, picture.shape))


def make_rods(rng: np.random.Generator) -> Picture:
    """Gram's stain: violet rods on pale pink. Near to blood in colour."""
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng, 228, 246))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(40, 140))):
        x, y, turn = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0, np.pi)
        ends = (x, y, x + 11 * np.cos(turn), y + 11 * np.sin(turn))
        draw.line(ends, fill=(90 + int(rng.integers(30)), 50, 140), width=5)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)))


def make_mosaic(rng: np.random.Generator) -> Picture:
    """Coloured glass: the cells of random points."""
    points = rng.uniform(0, SIDE, (40, 2))
    colours = rng.integers(0, 256, (40, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return colours[distance.argmin(2)].astype(np.uint8)


def spoil_motion(rng: np.random.Generator, cell: Picture) -> Picture:
    """The stage moved by 4 to 7 µm during the exposure."""
    steps = int(rng.uniform(4, 7) * cell.shape[1] / 27.0)
    moved = np.stack([np.roll(cell, k, axis=1) for k in range(steps)]).astype(float)
    return _bytes(moved.mean(0))


def spoil_depth(_: np.random.Generator, cell: Picture) -> Picture:
    """Two levels of each colour."""
    return np.where(cell > 127, 255, 0).astype(np.uint8)


def spoil_order(_: np.random.Generator, cell: Picture) -> Picture:
    """Green and blue exchanged."""
    return np.ascontiguousarray(cell[..., [0, 2, 1]])


def spoil_pepper(rng: np.random.Generator, cell: Picture) -> Picture:
    """A quarter of the pixels black or white."""
    spoilt = cell.copy()
    spoilt[rng.random(cell.shape[:2]) < 0.13] = 0
    spoilt[rng.random(cell.shape[:2]) < 0.13] = 255
    return spoilt


def spoil_hue(rng: np.random.Generator, cell: Picture) -> Picture:
    """All in one hue, from black to that hue to white."""
    grey = np.asarray(Image.fromarray(cell).convert("L"))
    hue = rng.uniform(40, 215, 3)
    return _bytes(np.stack([np.interp(grey, (0, 128, 255), (0, h, 255)) for h in hue], 2))


def spoil_bars(rng: np.random.Generator, cell: Picture) -> Picture:
    """Black bars across, a third of the picture, as of a scanner that skips lines."""
    spoilt = cell.copy()
    step = int(rng.integers(9, 16))
    for y in range(0, cell.shape[0], step):
        spoilt[y : y + step // 3] = 0
    return spoilt


def spoil_shape(_: np.random.Generator, cell: Picture) -> Picture:
    """Stretched fourfold: a wrong pixel aspect."""
    side = cell.shape[0]
    wide = np.asarray(Image.fromarray(cell).resize((4 * side, side), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(wide[:, 3 * side // 2 : 5 * side // 2])


def spoil_compression(_: np.random.Generator, cell: Picture) -> Picture:
    """JPEG at quality 2."""
    out = io.BytesIO()
    Image.fromarray(cell).save(out, "JPEG", quality=2)
    return np.asarray(Image.open(out).convert("RGB"))


# --- spoilt pictures of real cells -----------------------------------------------------------


def spoil_focus(rng: np.random.Generator, cell: Picture) -> Picture:
    """Blurred until a nucleus is a cloud: σ of 1.5 to 3 µm."""
    unit = cell.shape[1] / 27.0  # px per µm, of a PBC picture
    blur = ImageFilter.GaussianBlur(rng.uniform(1.5, 3.0) * unit)
    return np.asarray(Image.fromarray(cell).filter(blur))


def spoil_channels(_: np.random.Generator, cell: Picture) -> Picture:
    """Red and blue exchanged."""
    return np.ascontiguousarray(cell[..., ::-1])


def spoil_sign(_: np.random.Generator, cell: Picture) -> Picture:
    """The negative."""
    return 255 - cell


def spoil_colour(rng: np.random.Generator, cell: Picture) -> Picture:
    """Every hue turned by a quarter to three quarters of the circle."""
    turned = np.array(Image.fromarray(cell).convert("HSV"))
    turned[..., 0] += np.uint8(rng.integers(64, 192))
    return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))


def spoil_noise(rng: np.random.Generator, cell: Picture) -> Picture:
    return _bytes(cell + rng.normal(0, rng.uniform(60, 110), cell.shape))


def spoil_exposure(rng: np.random.Generator, cell: Picture) -> Picture:
    """So dark or so bright that hardly a tenth of the range is left."""
    if rng.random() < 0.5:
        return _bytes(cell * rng.uniform(0.03, 0.12))
    return _bytes(255 - (255 - cell.astype(float)) * rng.uniform(0.03, 0.12))


def spoil_blocks(rng: np.random.Generator, cell: Picture) -> Picture:
    """Mosaic: 10 to 16 squares a side."""
    side = int(rng.integers(10, 17))
    small = Image.fromarray(cell).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(cell.shape[1::-1], Image.Resampling.NEAREST))


def spoil_grey(_: np.random.Generator, cell: Picture) -> Picture:
    return np.repeat(np.asarray(Image.fromarray(cell).convert("L"))[..., None], 3, axis=2)


def spoil_pieces(rng: np.random.Generator, cell: Picture) -> Picture:
    """Cut into squares of an eighth, and put together in another order."""
    step = cell.shape[0] // 8
    tiles = [
        cell[y * step : (y + 1) * step, x * step : (x + 1) * step]
        for y in range(8)
        for x in range(8)
    ]
    order = rng.permutation(64)
    rows = [np.concatenate([tiles[k] for k in order[8 * y : 8 * y + 8]], 1) for y in range(8)]
    return np.ascontiguousarray(np.concatenate(rows, 0))


def spoil_size(rng: np.random.Generator, cell: Picture) -> Picture:
    """A fifth to a third of the size, on the ground of its border: another magnification."""
    side = cell.shape[0]
    small = int(side * rng.uniform(0.18, 0.33))
    ground = np.median(cell[:8].reshape(-1, 3), axis=0)
    picture = np.tile(ground.astype(np.uint8), (side, side, 1))
    start = (side - small) // 2
    picture[start : start + small, start : start + small] = np.asarray(
        Image.fromarray(cell).resize((small, small), Image.Resampling.BOX)
    )
    return picture


DEVELOPMENT: dict[str, Maker] = {
    "static": make_static,
    "gradient": make_gradient,
    "stripes": make_stripes,
    "flower": make_flower,
    "discs": make_discs,
    "document": make_document,
    "chart": make_chart,
    "screen": make_screen,
    "photograph": make_photograph,
    "face": make_face,
    "clouds": make_clouds,
    "tissue": make_tissue,
    "skin": make_skin,
    "scan": make_scan,
    "empty field": make_empty_field,
    "plain": make_plain,
}
SPOILT_DEVELOPMENT: dict[str, Spoiler] = {
    "any hue": spoil_colour,
    "grain": spoil_noise,
    "pieces": spoil_pieces,
    "out of focus": spoil_focus,
    "red and blue exchanged": spoil_channels,
    "negative": spoil_sign,
    "wrong exposure": spoil_exposure,
    "blocks": spoil_blocks,
    "grey": spoil_grey,
    "wrong magnification": spoil_size,
}
TEST: dict[str, Maker] = {
    "handwriting": make_handwriting,
    "street map": make_plan,
    "night sky": make_sky,
    "bricks": make_bricks,
    "code": make_code,
    "relief": make_relief,
    "gel": make_gel,
    "fluorescence": make_glow,
    "bacteria": make_rods,
    "coloured glass": make_mosaic,
}
SPOILT_TEST: dict[str, Spoiler] = {
    "moved": spoil_motion,
    "two levels": spoil_depth,
    "green and blue exchanged": spoil_order,
    "salt and pepper": spoil_pepper,
    "one hue": spoil_hue,
    "black bars": spoil_bars,
    "stretched": spoil_shape,
    "quality 2": spoil_compression,
}


def _colour(rng: np.random.Generator, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in rng.integers(low, high + 1, 3))
    return r, g, b


def _crop(rng: np.random.Generator, picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    side = int(rng.uniform(0.25, 0.6) * min(height, width))
    y, x = int(rng.integers(height - side)), int(rng.integers(width - side))
    return np.ascontiguousarray(picture[y : y + side, x : x + side])


@cache
def _photograph(package: str, name: str) -> Picture:
    return np.asarray(Image.open(Path(str(files(package))) / name).convert("RGB"))


def _bytes(values: NDArray[np.floating]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# --- cells as they are cut out, all of a set at once -----------------------------------------


def end_cells(cells: Picture, rng: np.random.Generator) -> Picture:
    """Cells (N, S, S, 3) of 20 µm in grey light, on an empty slide beyond a square of 11 to 14."""
    middle, side = cells.shape[1] // 2, cells.shape[1]
    ended = np.full_like(cells, round(EMPTY))
    for whole, part in zip(cells, ended, strict=True):
        half = int(rng.uniform(26, 34) * side / 96)
        kept = slice(middle - half, middle + half)
        part[kept, kept] = whole[kept, kept]
    return ended


def add_noise(cells: Picture, rng: np.random.Generator, low: float, high: float) -> Picture:
    """Cells (N, S, S, 3) under noise of so many levels, in each cell another."""
    noise = rng.normal(0, 1, cells.shape) * rng.uniform(low, high, (len(cells), 1, 1, 1))
    return np.asarray(np.clip(cells + noise, 0, 255).astype(np.uint8))
