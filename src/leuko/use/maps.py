"""What a bundle looked at in a cell, without PyTorch: its map, and the picture of it.

The bundle's network gives the map that its features are the mean of; with the weights of its last
layer follows what each place adds to the logit of a class (`leuko.judgement.explanation`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuko.data.image import encode_png, resize_image
from leuko.errors import BundleError, OutputError
from leuko.judgement.explanation import activate, draw_map, find_hottest
from leuko.learning.batches import turn_back, turn_views
from leuko.learning.bundle import Bundle
from leuko.storage import fill_folder, write_atomically
from leuko.use.answers import Answer, defuse

SIDE = 288  # px, of a drawn map


@dataclass(frozen=True)
class CellMap:
    """What an answer rests on.

    Attributes:
        answer: As `leuko.use.predictor.Predictor.predict` gives it.
        label: The class that is explained.
        heat: (h, w): what each place adds to the logit of that class, less the mean over all
            classes. Positive speaks for it.
        cell: (S, S, 3), as the network saw it.
    """

    answer: Answer
    label: str
    heat: NDArray[np.float32]
    cell: NDArray[np.uint8]

    @property
    def hottest(self) -> tuple[float, float]:
        """x, y of the middle of the hottest place, as fractions of the side of `cell`."""
        return find_hottest(self.heat)

    def draw(self, side: int = SIDE) -> NDArray[np.uint8]:
        """The cell in grey with its map over it, RGB (side, side, 3)."""
        return draw_map(resize_image(self.cell, side, side), self.heat)

    def to_png(self, side: int = SIDE) -> bytes:
        """The same as a PNG file."""
        return encode_png(self.draw(side))


def map_cells(
    bundle: Bundle, cells: NDArray[np.uint8], classes: NDArray[np.integer], *, batch: int = 32
) -> NDArray[np.float32]:
    """Maps of one class for each cell, averaged over the views that the answer is averaged over.

    Args:
        bundle: Checked.
        cells: (N, S, S, 3), as ``preprocessing.cut`` of the bundle cuts them.
        classes: (N,), in [0, K).
        batch: Cells at a time.

    Returns:
        (N, h, w), see `leuko.judgement.explanation.activate`.

    Raises:
        BundleError: The features of this bundle's network aren't the mean of a map, or of a map
            of one place only.
    """
    if bundle.network.map == (1, 1):
        raise BundleError(
            "The map of this bundle's network has a single place, so it can't tell one part of a "
            f"cell from another. Train with more than --size {bundle.facts.preprocessing.size}."
        )
    views, (weight, _) = bundle.facts.preprocessing.views, bundle.head
    parts = [bundle.network.look(cells[:0])[:, 0]]  # refuses early, and gives the shape of none
    for start in range(0, len(cells), batch):
        part = slice(start, start + batch)
        seen = [
            turn_back(activate(bundle.network.look(view), weight, classes[part]), number)
            for number, view in enumerate(turn_views(cells[part], views))
        ]
        parts.append(np.mean(seen, axis=0))
    return np.concatenate(parts).astype(np.float32)


def write_maps(folder: Path, maps: Iterable[CellMap]) -> Path:
    """Writes a PNG for each map, and ``maps.csv``, which says what each shows.

    Args:
        folder: Made if need be; see `check_folder`.
        maps: From `leuko.use.predictor.Predictor.explain`.

    Returns:
        The path of the table.

    Raises:
        StorageError: A file can't be written.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "image", "cell", "label", "probability", "x", "y"])
    with fill_folder(folder):
        for number, one in enumerate(maps, start=1):
            a = one.answer
            stem = re.sub(r"[^\w-]+", "_", Path(a.image).stem)[:60]
            name = f"{number:05d}-{stem}-{a.cell}.png"
            write_atomically(folder / name, one.to_png())
            x, y = (round(side, 3) for side in one.hottest)
            told = [name, a.image, a.cell, one.label, a.probability, x, y]
            writer.writerow([defuse(value) for value in told])
        return write_atomically(folder / "maps.csv", table.getvalue())


def check_folder(folder: Path) -> None:
    """Refuses early a folder for maps that holds something.

    Raises:
        OutputError: It isn't a folder, or isn't empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder} exists; nothing is overwritten. Choose another folder.")
