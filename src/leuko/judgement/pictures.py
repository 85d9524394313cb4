"""Draws cells and fields as they are: samples, averages, mistakes, boxes.

Pictures are laid out in page pixels, so that one picture pixel is a whole number of page pixels
and nothing is resampled. Which pictures are shown is decided elsewhere.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.canvas import (
    DPI,
    INK,
    MODEL_COLOURS,
    QUIET,
    WIDTH,
    arrange,
    new_figure,
    plain,
    short_names,
    styled,
)  # fmt: skip

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass
class _Sheet:
    """A page of pictures in pixels: one picture pixel is a whole number of page pixels."""

    width: int
    height: int
    tiles: list[tuple[int, int, Pixels]] = field(default_factory=list)
    words: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)

    def put(self, x: int, y: int, pixels: Pixels) -> None:
        self.tiles.append((x, y, pixels))

    def write(self, x: float, y: float, text: str, **how: Any) -> None:
        self.words.append((x, y, text, how))

    def figure(self) -> Figure:
        canvas = np.full((self.height, self.width, 3), 255, np.uint8)
        for x, y, pixels in self.tiles:
            canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        figure = new_figure(self.width / DPI, self.height / DPI, constrained=False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        extent = (0.0, float(self.width), float(self.height), 0.0)
        axes.imshow(canvas, extent=extent, interpolation="none", aspect="auto")
        for left, top, text, how in self.words:
            axes.text(left, top, text, va="top", **how)
        return figure


def _enlarge(pixels: Pixels, target: int) -> Pixels:
    """Each pixel as a square of whole pixels, so that the side is near ``target``, never less
    than its own size."""
    factor = max(1, round(target / max(pixels.shape[:2])))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _check_stack(pixels: NDArray[Any], what: str) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ShapeError(
            f"The pictures of {what} have the shape {pixels.shape}; expected (n, S, S, 3). "
            "Pass the RGB pictures of one class as one array."
        )


@styled
def draw_samples(
    pictures: Mapping[str, Pixels],
    images: Mapping[str, Sequence[str]],
    counts: Mapping[str, int] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Samples of each class, one row a class, pixel for pixel as the networks see them.

    Args:
        pictures: Per class (n, S, S, 3) RGB; as many as fit into a row are drawn.
        images: Per class the image ids, (n,), in the same order.
        counts: Per class how many there are in all.
        notes: Per class a remark of a few words, such as "dropped in cleaning".
    """
    classes = list(pictures)
    names, left, gap, width = short_names(classes, 15), 170, 10, round(WIDTH * DPI)
    for c in classes:
        _check_stack(pictures[c], c)
    side = max((_enlarge(p[0], 135).shape[0] for p in pictures.values() if len(p)), default=135)
    longest = max((len(i) for c in classes for i in images[c]), default=0)
    # 5.5 pt DejaVu takes about 7 page pixels a character; an id of up to 20 is shown whole
    pitch = max(side + gap, 7 * min(longest, 20) + gap)
    columns = max(1, (width - left + gap) // pitch)
    step = side + 34
    sheet = _Sheet(max(width, left + side), max(1, len(classes)) * step + 4)
    for row, c in enumerate(classes):
        y = row * step + 4
        sheet.write(2, y + 2, names[c], weight="bold", size=8)
        if counts is not None and c in counts:
            sheet.write(2, y + 24, f"n = {counts[c]:,}", size=7, color=QUIET)
        if notes is not None and c in notes:
            note = "\n".join(textwrap.wrap(plain(notes[c], 60), 19))
            sheet.write(2, y + 44, note, size=6.5, color=QUIET, linespacing=1.3)
        shown = zip(pictures[c][:columns], images[c], strict=False)
        for place, (pixels, image) in enumerate(shown):
            x = left + place * pitch
            sheet.put(x, y, _enlarge(pixels, 135))
            sheet.write(x + 1, y + side + 5, plain(image, pitch // 7 - 1), size=5.5, color=QUIET)
    return sheet.figure()


@styled
def draw_average_pictures(
    means: Mapping[str, Floats],
    deviations: Mapping[str, Floats] | None = None,
    counts: Mapping[str, int] | None = None,
) -> Figure:
    """The average picture of each class and, below it, where the pictures of a class differ.

    Args:
        means: Per class (S, S, 3), grey levels in [0, 255].
        deviations: Per class (S, S), standard deviation in grey levels; darker is larger.
        counts: Per class how many pictures were averaged.
    """
    classes, width, gap = list(means), round(WIDTH * DPI), 14
    sides = [m.shape[0] for m in means.values()]
    columns = min(5, max(1, len(classes)), max(1, (width + gap) // (max(sides, default=1) + gap)))
    pitch = (width + gap) // max(columns, 4)  # few classes: no larger than four in a row
    names = short_names(classes, (pitch - gap) // 11)
    factor = max(1, (pitch - gap) // max(sides, default=1))
    side = factor * max(sides, default=1)
    block = 44 + (side + 8) * (2 if deviations else 1) + (38 if deviations else 12)
    sheet = _Sheet(max(width, side), max(1, math.ceil(len(classes) / columns)) * block)
    top = max((float(d.max()) for d in (deviations or {}).values()), default=1.0) or 1.0

    def put(x: int, y: int, values: Floats) -> None:
        pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        sheet.put(x, y, pixels.repeat(factor, axis=0).repeat(factor, axis=1))

    for number, c in enumerate(classes):
        row, column = divmod(number, columns)
        x, y = column * pitch, row * block
        sheet.write(x + 1, y + 2, names[c], weight="bold", size=8)
        if counts is not None and c in counts:
            sheet.write(x + 1, y + 22, f"n = {counts[c]:,}", size=6.5, color=QUIET)
        put(x, y + 44, means[c])
        if deviations:
            dark = 255 - deviations[c] / top * 235
            put(x, y + side + 78, np.repeat(dark[..., None], 3, axis=2))
            if column == 0:
                scale = f"standard deviation: white is 0, the darkest {top:.0f} grey levels"
                sheet.write(1, y + side + 56, scale, size=6.5, color=QUIET)
    return sheet.figure()


@styled
def draw_mistakes(
    pictures: Pixels,
    truths: Sequence[str],
    predictions: Sequence[str],
    probabilities: Sequence[float],
    images: Sequence[str],
    notes: Sequence[str] = (),
) -> Figure:
    """Wrong answers as pictures, in the order given; under each: truth → answer, probability, id.

    Args:
        pictures: (n, S, S, 3) RGB.
        truths: Labels, (n,).
        predictions: What the model said, (n,).
        probabilities: The probability that the model gave its answer, (n,), in [0, 1].
        images: Image ids, (n,).
        notes: A remark of a few words for each, (n,), or none.
    """
    _check_stack(pictures, "the mistakes")
    width, gap, target = round(WIDTH * DPI), 16, 150
    side = _enlarge(pictures[0], target).shape[0] if len(pictures) else target
    pitch = max(side + gap, 170)
    columns = max(1, min((width + gap) // pitch, max(6, 1)))
    rows = max(1, math.ceil(len(pictures) / columns))
    step = side + (86 if notes else 68)
    sheet = _Sheet(max(width, pitch), rows * step)
    if not len(pictures):
        sheet.write(0, 10, "No wrong answer.", size=8)
    pitch = max(pitch, (width + gap) // columns)
    # 6.5 pt bold DejaVu takes about 10 page pixels a character; two go for the arrow
    names = short_names(list(dict.fromkeys([*truths, *predictions])), pitch // 10 - 3)
    for number, pixels in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = column * pitch, row * step
        sheet.put(x, y, _enlarge(pixels, target))
        sheet.write(x + 1, y + side + 5, names[truths[number]], size=6.5)
        said = f"→ {names[predictions[number]]}"
        sheet.write(x + 1, y + side + 21, said, size=6.5, weight="bold", color=MODEL_COLOURS[1])
        below = f"{probabilities[number]:.2f} · {plain(images[number], 18)}"
        sheet.write(x + 1, y + side + 38, below, size=5.8, color=QUIET)
        if notes:
            sheet.write(x + 1, y + side + 54, plain(notes[number], 24), size=5.8, color=QUIET)
    return sheet.figure()


@dataclass(frozen=True)
class Look:
    """One cell and what a model looked at in it.

    Attributes:
        picture: RGB (S, S, 3).
        overlay: The same with the map laid over it.
        truth, answer: Classes.
        probability: Of the answer, in [0, 1].
        image: Its id.
    """

    picture: Pixels
    overlay: Pixels
    truth: str
    answer: str
    probability: float
    image: str


@styled
def draw_attention(rows: Mapping[str, Sequence[Look]]) -> Figure:
    """Cells beside what a model looked at in them; a line of pairs under each heading.

    Args:
        rows: Per heading as many cells as are to be shown; as many as fit are drawn.
    """
    width, gap, target = round(WIDTH * DPI), 16, 96
    some = [look for looks in rows.values() for look in looks]
    side = _enlarge(some[0].picture, target).shape[0] if some else target
    pair = 2 * side + 4
    columns = max(1, (width + gap) // (pair + gap))
    pitch, step = max(pair + gap, (width + gap) // columns), side + 96
    sheet = _Sheet(max(width, pair), max(1, len(rows)) * step)
    classes = dict.fromkeys(name for look in some for name in (look.truth, look.answer))
    names = short_names(list(classes), pair // 10 - 3)
    for number, (heading, looks) in enumerate(rows.items()):
        y = number * step
        sheet.write(1, y + 2, heading, weight="bold", size=7.5)
        if not looks:
            sheet.write(1, y + 30, "None.", size=7, color=QUIET)
        for column, look in enumerate(looks[:columns]):
            x, top = column * pitch, y + 26
            sheet.put(x, top, _enlarge(look.picture, target))
            sheet.put(x + side + 4, top, _enlarge(look.overlay, target))
            sheet.write(x + 1, top + side + 4, names[look.truth], size=6.5)
            if look.answer != look.truth:
                said = f"→ {names[look.answer]}"
                sheet.write(x + 1, top + side + 20, said, size=6.5, weight="bold",
                            color=MODEL_COLOURS[1])  # fmt: skip
            below = f"{look.probability:.2f} · {plain(look.image, 18)}"
            sheet.write(x + 1, top + side + 37, below, size=5.8, color=QUIET)
    return sheet.figure()


@styled
def draw_boxes(
    fields: Sequence[Pixels],
    boxes: Sequence[Sequence[tuple[float, float, float, float]]],
    titles: Sequence[str] | None = None,
) -> Figure:
    """Fields with a box around each leukocyte.

    Args:
        fields: RGB images, each (H, W, 3).
        boxes: Per field (x0, y0, x1, y1) in pixels of the field, half open.
        titles: Per field a line of text, such as the image id.
    """
    rows, columns = arrange(len(fields), 3)
    ratio = max((f.shape[0] / f.shape[1] for f in fields), default=0.75)
    figure = new_figure(WIDTH, rows * (WIDTH / columns * ratio + 0.25))
    for number, pixels in enumerate(fields):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="none")
        for place, (x0, y0, x1, y1) in enumerate(boxes[number], start=1):
            for colour, line in (("white", 2.6), (INK, 1.1)):  # seen on light and on dark
                frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False)
                frame.set(edgecolor=colour, linewidth=line)
                axes.add_patch(frame)
            axes.annotate(
                str(place), (x0, y0), (1, 1), textcoords="offset points", size=6, va="bottom",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip
        if titles is not None:
            axes.set_title(plain(titles[number], 34), fontsize=7, fontweight="normal")
    return figure
