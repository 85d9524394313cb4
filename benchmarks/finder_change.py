"""Whether another version of the finder finds the same cells: boxes, numbers, scales.

    uv run python benchmarks/finder_change.py 26f760d ../shared/data/pbc ../shared/data/blood-cells

Takes `leuko.data.leukocytes` as it was at a commit, runs both on every picture below the folders,
and prints what differs. For whoever makes the finder faster and wants it to stay what it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from leuko.data import leukocytes as present
from leuko.data.folders import walk_files
from leuko.data.image import read_image
from leuko.errors import ImageError

KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def load_former(commit: str) -> ModuleType:
    path = "src/leuko/data/leukocytes.py"
    code = subprocess.run(
        ["git", "show", f"{commit}:{path}"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    ).stdout  # fmt: skip
    module = ModuleType("former")
    sys.modules["former"] = module  # dataclasses look their module up
    exec(compile(code, f"{commit}:{path}", "exec"), module.__dict__)
    return module


def main(commit: str, folders: list[Path]) -> None:
    former = load_former(commit)
    paths = [p for folder in folders for p in walk_files(folder, []) if p.suffix.lower() in KINDS]
    pictures = cells = 0
    other = dict.fromkeys(("scale", "number of cells", "box", "area or score"), 0)
    for path in paths:
        try:
            picture = read_image(path)
        except ImageError:
            continue
        pictures += 1
        scale = former.estimate_scale(picture)
        other["scale"] += scale != present.estimate_scale(picture)
        before = former.find_leukocytes(picture, scale)
        after = present.find_leukocytes(picture, scale)
        other["number of cells"] += len(before) != len(after)
        for a, b in zip(before, after, strict=False):
            cells += 1
            other["box"] += (a.x0, a.y0, a.x1, a.y1) != (b.x0, b.y0, b.x1, b.y1)
            other["area or score"] += not np.allclose((a.area, a.score), (b.area, b.score))
        if pictures % 1000 == 0:
            print(f"{pictures:,} pictures", file=sys.stderr, flush=True)
    print(f"{pictures:,} pictures, {cells:,} cells at the scale that {commit} measured. Differs:")
    for what, number in other.items():
        print(f"- {what}: {number}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    main(given.commit, given.folders)
