"""Writes a bundle again in the present format, and checks that it answers as before, bit by bit.

    uv run python benchmarks/repack.py BUNDLE OUT

Facts, weights, reference and card stay; half precision that loses nothing is kept in model.onnx
too. The answers are compared on noise: N_CELLS cells, the bundle's
own number of views, features too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from leuko.learning.bundle import CARD, OPTIONAL, PARTS, load_bundle, take_apart, write_bundle
from leuko.learning.parts import read_parts

N_CELLS = 64


def main(source: Path, out: Path) -> None:
    old = load_bundle(source)
    card = read_parts(source, PARTS, OPTIONAL)[CARD].decode()
    weights, model = take_apart(old)
    new = write_bundle(
        out, old.facts, weights=weights, model=model, card=card, reference=old.reference
    )
    kept, _ = take_apart(new)
    before, after = ({k: v.tobytes() for k, v in one.items()} for one in (weights, kept))
    assert before == after, "a weight changed"
    size = old.facts.preprocessing.size
    cells = np.random.default_rng(0).integers(0, 256, (N_CELLS, size, size, 3)).astype(np.uint8)
    answers = [[part.tobytes() for part in bundle.answer(cells)] for bundle in (old, new)]
    assert answers[0] == answers[1], "an answer changed"
    for bundle in (old, new):
        sizes = {part: len(data) for part, data in read_parts(bundle.path, PARTS, OPTIONAL).items()}
        print(f"{bundle.id[:12]} format {bundle.facts.format}: {sum(sizes.values()):,} bytes")
        for part, length in sizes.items():
            print(f"  {part}: {length:,}")
    print(f"the same weights; the same answers to {N_CELLS} cells, bit by bit")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
