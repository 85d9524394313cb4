"""How the time of the search for copies grows with the number of pictures, up to 100,000.

    uv run python benchmarks/likeness_growth.py ../shared/data/pbc [--sizes 3000 10000 30000 100000]

The sketches of PBC's cells are taken once and then repeated, each time moved by up to 12 px and
with noise on every descriptor, at most eight times each; so no picture has to be drawn, and the
search and the comparison of pairs, the only parts of the audit that could grow faster than the
number of images, are measured alone. Prints Markdown. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from leuko.data.image import read_image
from leuko.data.likeness import FEWEST, find_likenesses, sketch_picture
from leuko.data.registration import COARSE, Sketch

SIZES = (3_000, 10_000, 30_000, 100_000)
MOST_COPIES = 8
NOISE = 6  # of 255, on each number of a descriptor


def repeat(sketch: Sketch, rng: np.random.Generator) -> Sketch:
    """The same picture again, moved and a little different."""
    dx, dy = (int(v) for v in rng.integers(-4, 5, 2))  # px of the flattened picture
    flat = np.full_like(sketch.flat, np.nan)
    height, width = flat.shape
    flat[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = sketch.flat[
        max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)
    ]
    points = sketch.points + np.array([dx * COARSE, dy * COARSE, 0, 0], np.float32)
    noisy = sketch.descriptors + rng.normal(0, NOISE, sketch.descriptors.shape)
    return replace(
        sketch, points=points, flat=flat, descriptors=noisy.clip(0, 255).astype(np.uint8)
    )


def make_set(originals: list[Sketch], size: int) -> tuple[list[Sketch], list[int]]:
    """`size` sketches of a quarter as many originals, or of all; and which each was made from."""
    rng = np.random.default_rng([size, 5])
    number = min(len(originals), max(size // 4, -(-size // MOST_COPIES)))
    chosen = rng.permutation(len(originals))[:number].tolist()
    sketches = [originals[i] for i in chosen]
    owners = list(chosen)
    while len(sketches) < size:
        i = chosen[len(sketches) % number]
        sketches.append(repeat(originals[i], rng))
        owners.append(i)
    return sketches, owners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    given = parser.parse_args()
    files = sorted(given.data.glob("*/*.jpg"))[: max(given.sizes) // 4]
    originals = []
    for done, file in enumerate(files):
        originals.append(sketch_picture(read_image(file), FEWEST))
        if done % 2000 == 0:
            sys.stderr.write(f"sketched {done} of {len(files)}\n")
    print(
        "| pictures | originals | landmarks | s | s of processor | ms per picture | pairs | right |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    times = []
    for size in given.sizes:
        sketches, owners = make_set(originals, size)
        wall, used = perf_counter(), process_time()
        pairs = find_likenesses(sketches, threads=2)
        wall, used = perf_counter() - wall, process_time() - used
        right = sum(owners[p.a] == owners[p.b] for p in pairs)
        times.append(used)
        landmarks = sum(len(s.points) for s in sketches)
        print(
            f"| {size:,} | {len(Counter(owners)):,} | {landmarks:,} | {wall:.0f} | {used:.0f} | "
            f"{1000 * used / size:.1f} | {len(pairs):,} | {right / max(1, len(pairs)):.4f} |",
            flush=True,
        )
    if len(times) < 2:
        return
    sizes = np.array(given.sizes, dtype=float)
    slope = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    line = np.polyfit(np.log(sizes), np.log(sizes * np.log(sizes)), 1)[0]
    print(f"\nTime grows as N to the power of {slope:.2f}; N log N would give {line:.2f} here.")


if __name__ == "__main__":
    main()
