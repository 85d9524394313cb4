"""The first half of an answer: pictures are read, their cells found, cut out and described.

    items → one scale per size → read → find → cut out → portrait

In threads of this process, or in processes of their own: finding and describing are many small
steps in Python, of which threads run one at a time. What this module refuses to know: networks,
classes, limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.leukocytes import CERTAIN, Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.portraits import describe_cell
from leuko.data.scales import estimate_set_scales, is_cut_out, sample_sizes
from leuko.engine import count_cores, stream_jobs
from leuko.errors import ImageError
from leuko.learning.facts import Preprocessing
from leuko.use.answers import SetAside
from leuko.use.inputs import Item

PART = 64  # pictures that are read while those before them are answered
FEW = 300  # pictures below which processes take longer to start than they save
SHARE = 16  # pictures that a process cuts at a time

Pixels = NDArray[np.uint8]
Portrait = NDArray[np.float32]
Scales = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Found:
    """A cell of a picture, and what the network will see of it.

    Attributes:
        leukocyte: Where it lies in the picture.
        pixels: (S, S, 3), as the preprocessing cuts.
        portrait: From `leuko.data.portraits.describe_cell`, where the bundle compares portraits.
    """

    leukocyte: Leukocyte
    pixels: Pixels
    portrait: Portrait | None


@dataclass(frozen=True)
class Prepared:
    """Pictures that were read and cut, half of the way to an answer.

    Attributes:
        items: Their names; what they were made from is let go.
        ready: The cells of each.
    """

    items: Sequence[Item]
    ready: Sequence[list[Found] | SetAside]


@dataclass(frozen=True)
class Cutter:
    """How a bundle wants its cells.

    Attributes:
        preprocessing: Of the bundle.
        portrayed: Whether it compares portraits.
    """

    preprocessing: Preprocessing
    portrayed: bool

    def measure_scales(
        self, items: Sequence[Item], each: Callable[..., Iterable[Any]] = map
    ) -> Scales:
        """One scale for each size of pictures; a picture that can't be read has no say.

        Args:
            items: The pictures.
            each: What maps a function over them.
        """
        # A single picture is measured where it is cut: decoded and looked at once, not twice.
        if self.preprocessing.view == "field" or len(items) == 1:
            return {}

        def measure(item: Item) -> tuple[Item, int, int] | None:
            with suppress(ImageError):
                return (item, *item.measure())
            return None

        def pictures(chosen: Iterable[Item]) -> Iterator[Pixels]:
            for item in chosen:
                with suppress(ImageError):
                    yield item.read()

        sizes = [size for size in each(measure, items) if size is not None]
        return estimate_set_scales(pictures(sample_sizes(sizes)))

    def cut(self, item: Item, scales: Scales, scale: float | None) -> list[Found] | SetAside:
        """Reads one picture and cuts out its cells.

        Args:
            item: The picture.
            scales: From `measure_scales`; a picture of another size is measured by itself.
            scale: Pixels per µm, where it is known.
        """
        try:
            picture = item.read()
        except ImageError as error:
            return SetAside(item.name, error.reason, str(error))
        height, width = picture.shape[:2]
        if self.preprocessing.view == "field":
            whole = Leukocyte(0.0, 0.0, float(width), float(height), score=1.0, scale=1.0)
            return [self._look_at(picture, whole)]
        found = find_cells(picture, scale or scales.get((height, width)))
        return [self._look_at(picture, cell) for cell in found]

    def _look_at(self, picture: Pixels, cell: Leukocyte) -> Found:
        pixels = self.preprocessing.cut(picture, cell)
        return Found(cell, pixels, describe_cell(pixels) if self.portrayed else None)


def find_cells(picture: Pixels, scale: float | None) -> list[Leukocyte]:
    """The leukocytes to answer for, the most certain first.

    In a picture that was cut around one cell, that one. In a field all that are certain; if none
    is, the likeliest one, for which `Leukocyte.score` is low. Where nothing is found, none.

    Args:
        picture: RGB (H, W, 3) uint8.
        scale: Pixels per µm; None measures it in this picture.
    """
    found = find_leukocytes(picture, scale=scale)
    if not found:
        return []
    height, width = picture.shape[:2]
    if is_cut_out(height, width, found[0].scale):
        chosen = choose_leukocyte(found, picture)
        return [chosen] if chosen.score > 0 else []
    return [cell for cell in found if cell.score >= CERTAIN] or found[:1]


def stream_cells(
    cutter: Cutter, items: Sequence[Item], scale: float | None, *, workers: int = 1
) -> Iterator[Prepared]:
    """Cuts part by part and in order, the next ones while the caller is at work.

    Args:
        cutter: How.
        items: The pictures.
        scale: Pixels per µm; None measures it first, over all of them.
        workers: Processes; 1 for threads of this one, and few pictures or such as lie in memory
            are cut in threads in any case.

    Raises:
        TrainingError: A worker process was killed.
    """
    with ThreadPoolExecutor(count_cores()) as pool:
        scales = {} if scale else cutter.measure_scales(items, pool.map)
        if workers < 2 or len(items) < FEW or not all(isinstance(i.source, Path) for i in items):
            yield from _cut_in_threads(pool, cutter, items, scales, scale)
            return
    parts = [items[start : start + SHARE] for start in range(0, len(items), SHARE)]
    done = stream_jobs(
        partial(_cut_part, cutter, scales, scale), parts,
        workers=workers, ahead=4 * workers, libraries=(__name__,),
    )  # fmt: skip
    for part, ready in zip(parts, done, strict=True):
        yield Prepared(part, ready)


def _cut_in_threads(
    pool: ThreadPoolExecutor,
    cutter: Cutter,
    items: Sequence[Item],
    scales: Scales,
    scale: float | None,
) -> Iterator[Prepared]:
    def begin(start: int) -> list[Future[list[Found] | SetAside]]:
        part = items[start : start + PART]
        return [pool.submit(cutter.cut, item, scales, scale) for item in part]

    ahead = begin(0)
    for start in range(0, len(items), PART):
        ready = [future.result() for future in ahead]
        ahead = begin(start + PART)
        yield Prepared(items[start : start + PART], ready)


def _cut_part(
    cutter: Cutter, scales: Scales, scale: float | None, part: Sequence[Item], _send: object
) -> list[list[Found] | SetAside]:
    return [cutter.cut(item, scales, scale) for item in part]
