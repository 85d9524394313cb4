"""Whether another version of the finder finds the same cells, in the same numbers.

    uv run python benchmarks/finder_change.py 26f760d ../shared/data/pbc ../shared/data/blood-cells

Takes what finds, measures and describes cells as it was at a commit, runs it and what is there now
in turns on every picture below the folders (`--every 10`: on every tenth), and prints
what differs and how long each takes. A commit before 09b7be8 needs a checkout of that time, because
both modules then knew the window of a cell. For whoever makes them faster and wants them to stay
what they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from leuko.data import leukocytes, portraits
from leuko.data.cuts import cut_cell
from leuko.data.folders import walk_files
from leuko.data.image import read_image
from leuko.data.scales import estimate_scale
from leuko.errors import ImageError

SIZE = 96  # px, of the shipped bundle's cells
# As they build upon one another. Before there was `stain`, it and how a picture tells its scale
# were part of `leukocytes`, and `scales` was something else.
FORMER = ("stain", "scales", "leukocytes", "portraits")
KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def load_former(commit: str) -> dict[str, ModuleType]:
    """The modules of `FORMER` that there were, each with the others of that time."""
    modules: dict[str, ModuleType] = {}
    for name in FORMER:
        path = f"src/leuko/data/{name}.py"
        found = subprocess.run(
            ["git", "show", f"{commit}:{path}"], capture_output=True, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        if found.returncode or (name == "scales" and "stain" not in modules):
            continue
        code = found.stdout
        for other in modules:
            code = code.replace(f"leuko.data.{other} ", f"former_{other} ")
        modules[name] = sys.modules[f"former_{name}"] = ModuleType(f"former_{name}")
        exec(compile(code, f"{commit}:{path}", "exec"), modules[name].__dict__)
    return modules


def main(commit: str, folders: list[Path], every: int) -> None:
    former = load_former(commit)
    finder, portrayer = former["leukocytes"], former["portraits"]
    paths = [p for folder in folders for p in walk_files(folder, []) if p.suffix.lower() in KINDS]
    pictures = cells = 0
    parts = ("scale", "number of cells", "box", "area or score", "portrait")
    other = dict.fromkeys(parts, 0)
    seconds: dict[str, list[float]] = {"finding": [0.0, 0.0], "describing": [0.0, 0.0]}

    def ask(what: str, *ways: Callable[[], Any]) -> list[Any]:
        told = [None, None]
        for which in (0, 1) if pictures % 2 else (1, 0):
            began = perf_counter()
            told[which] = ways[which]()
            seconds[what][which] += perf_counter() - began
        return told

    for path in paths[::every]:
        try:
            picture = read_image(path)
        except ImageError:
            continue
        pictures += 1
        scale = former.get("scales", finder).estimate_scale(picture)
        other["scale"] += scale != estimate_scale(picture)
        before, after = ask(
            "finding",
            lambda: finder.find_leukocytes(picture, scale),  # noqa: B023
            lambda: leukocytes.find_leukocytes(picture, scale),  # noqa: B023
        )
        other["number of cells"] += len(before) != len(after)
        for a, b in zip(before, after, strict=False):
            cells += 1
            other["box"] += (a.x0, a.y0, a.x1, a.y1) != (b.x0, b.y0, b.x1, b.y1)
            other["area or score"] += not np.allclose((a.area, a.score), (b.area, b.score))
            pixels = cut_cell(picture, b, SIZE, light="given")
            one, two = ask(
                "describing",
                lambda: portrayer.describe_cell(pixels),  # noqa: B023
                lambda: portraits.describe_cell(pixels),  # noqa: B023
            )
            other["portrait"] += not np.array_equal(one, two)
        if pictures % 1000 == 0:
            print(f"{pictures:,} pictures", file=sys.stderr, flush=True)
    print(f"{pictures:,} pictures, {cells:,} cells at the scale that {commit} measured. Differs:")
    for what, number in other.items():
        print(f"- {what}: {number}")
    for what, (then, now) in seconds.items():
        print(f"{what}: {now / then:.2f} of the time, {1000 * now / pictures:.1f} ms a picture")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    cv2.setNumThreads(1)  # as the commands do
    main(given.commit, given.folders, given.every)
