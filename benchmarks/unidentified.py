"""How many of the cells that it was tested on the shipped bundle leaves to a person, or rejects.

    uv run python benchmarks/unidentified.py ../shared/data

A bundle that was trained before `leuko train` counted as use does says too low a share of
unidentified cells: without those that are strange to the network or may be no leukocyte. The bundle
lists the images that it was tested and calibrated on, so they are found in the folder of the data
by their hashes; all of them have to be there. They are judged by `leuko.evaluate`, with the
bundle's own thresholds, which come from these cells, so that the share is a little low. Writes
`src/leuko/weights/measured/default.json`, which a differential reads beside the bundle: changed
facts would make another bundle of it.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from pathlib import Path

import polars as pl

import leuko
from leuko.learning.seen import find_seen_by
from leuko.learning.starts import unpack_hashes
from leuko.storage import write_atomically
from leuko.use.answers import REJECTED, UNIDENTIFIED, count_states
from provenance import ROOT

SETS = ("pbc", "blood-cells/dataset-master/dataset-master")
OUT = ROOT / "src" / "leuko" / "weights" / "measured" / "default.json"


def main(data: Path) -> None:
    model = leuko.load()
    facts = model.bundle.facts
    listed = unpack_hashes(base64.b64decode(facts.training["seen"]["calibrated"]))
    states: Counter[str] = Counter()
    images = {}
    for place in SETS:
        manifest = leuko.scan(data / place)
        table = manifest.table.filter(pl.col("sha256").is_not_null())
        tested = find_seen_by(facts, table["sha256"].to_list()).calibrated
        chosen = manifest.with_table(table.filter(pl.col("sha256").is_in(list(tested))))
        found = leuko.evaluate(model, chosen, groups="given")
        states.update(count_states(found.answers))
        images[place] = len(found.answers)
        print(place, images[place], dict(states), flush=True)
    n = sum(images.values())
    if n != len(listed):
        sys.exit(f"Found {n:,} images of the {len(listed):,} that the bundle was tested on.")
    told = {
        "bundle": model.bundle.id,
        "images": images,
        "unidentified": states[UNIDENTIFIED] / n,
        "rejected": states[REJECTED] / n,
        "command": "uv run python benchmarks/unidentified.py ../shared/data",
    }
    OUT.parent.mkdir(exist_ok=True)
    write_atomically(OUT, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
