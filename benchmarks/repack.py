"""Exports the network of a bundle anew and writes the bundle in the present format.

    uv run python benchmarks/repack.py BUNDLE OUT

Facts, reference and card stay, and each weight has to keep its bits. Answers may differ by
rounding, since the new graph computes the same in another order: they are compared on drawn cells,
with the bundle's own number of views, and so is the time that the network takes for them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from leuko.data.drawing import draw_field
from leuko.data.leukocytes import Leukocyte
from leuko.data.morphology import KINDS
from leuko.learning.bundle import CARD, OPTIONAL, PARTS, load_bundle, take_apart, write_bundle
from leuko.learning.export import export_network
from leuko.learning.models import build
from leuko.learning.parts import read_parts

N_CELLS = 40
ROUNDING = 1e-5


def main(source: Path, out: Path) -> None:
    old = load_bundle(source)
    facts = old.facts
    weights, _ = take_apart(old)
    network = build(facts.architecture, len(facts.classes), size=facts.preprocessing.size, seed=0)
    # What has no dimension counts batches; all else is float32 in PyTorch.
    network.load_state_dict(
        {k: torch.from_numpy(v.astype("f4") if v.ndim else v) for k, v in weights.items()}
    )
    new = write_bundle(
        out, facts, weights=weights, reference=old.reference,
        model=export_network(network, size=facts.preprocessing.size),
        card=read_parts(source, PARTS, OPTIONAL)[CARD].decode(),
    )  # fmt: skip
    before, after = ({k: v.tobytes() for k, v in take_apart(b)[0].items()} for b in (old, new))
    assert before == after, "a weight changed"
    rng, cells = np.random.default_rng(0), []
    for i in range(N_CELLS):
        field = draw_field(rng, [[*KINDS][i % len(KINDS)]], height=320, width=320, centred=True)
        cells.append(
            facts.preprocessing.cut(
                field.image, Leukocyte(160, 160, 160, 160, score=1.0, scale=12.7)
            )
        )
    drawn = np.stack(cells)
    (a, _), (b, _) = old.answer(drawn), new.answer(drawn)
    off = float(np.abs(a - b).max())
    assert off <= ROUNDING, off
    assert (a.argmax(1) == b.argmax(1)).all(), "a class changed"
    times = []
    for _ in range(5):  # in turns, so that other work on the machine meets both
        marks = [time.perf_counter()]
        for bundle in (old, new):
            bundle.answer(drawn)
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    for bundle in (old, new):
        sizes = {part: len(data) for part, data in read_parts(bundle.path, PARTS, OPTIONAL).items()}
        parts = ", ".join(f"{part} {length:,}" for part, length in sizes.items())
        print(
            f"{bundle.id[:12]}, format {bundle.facts.format}: {sum(sizes.values()):,} B ({parts})"
        )
    print(f"the same weights; {N_CELLS} drawn cells: probabilities differ by {off:.1g} at most")
    print(
        f"the new one is {median(times):.2f} times as fast ({min(times):.2f} to {max(times):.2f})"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
