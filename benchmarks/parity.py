"""One answer by every way: PyTorch, ONNX, Python, command line; in batches of 1, 7 and 32.

    uv run python benchmarks/parity.py ../shared/data [--images 1000] [--fields 100]

Three families: EfficientNet is the bundle that ships, ResNet-18 and AlexNet are the shipped starts,
bundled as `leuko.train` does it, with one view, so that no mean hides a difference. The pictures
are real: single cells of PBC, evenly spread, and whole fields of the Kaggle set. Everything begins
at the bytes of the files. Writes `results/parity.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.cuts import WINDOW
from leuko.data.manifest import Manifest
from leuko.data.pictures import cut_cells, stack_cells
from leuko.data.sources import scan
from leuko.judgement.calibration import apply_temperature
from leuko.learning.batches import DEVIATION, MEAN
from leuko.learning.bundle import Bundle, load_bundle, write_bundle
from leuko.learning.export import export_network, find_head
from leuko.learning.facts import Decision, Facts, Preprocessing
from leuko.learning.starts import find_start
from leuko.use.answers import Answer
from leuko.use.predictor import Predictor, find_default, load
from provenance import find_version, head, write_results

STARTS = ("resnet18", "alexnet")
BATCHES = (1, 7, 32)
PYTORCH, BATCH = 1e-5, 1e-6  # the largest differences that are allowed

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What was found for one family."""

    model: str
    cells: int
    pytorch: float
    agreement: float
    python: int
    command: int
    batches: float


def main(data: Path, images: int, fields: int) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = lay_out(data, folder, images, fields)
        manifest = scan(table)
        for model in ("efficientnet_b0", *STARTS):
            place = find_default() if model not in STARTS else bundle_start(model, folder / model)
            rows.append(compare_ways(place, manifest, table))
            print(rows[-1], flush=True)
    command = f"uv run python benchmarks/parity.py {data} --images {images} --fields {fields}"
    write_results("parity.md", tell(rows, images + fields, command))


def lay_out(data: Path, folder: Path, images: int, fields: int) -> Path:
    """A table of files, each of them a link to where the image is."""
    (folder / "pbc").symlink_to((data / "pbc").resolve())
    raw = data / "blood-cells" / "dataset-master" / "dataset-master" / "JPEGImages"
    (folder / "fields").symlink_to(raw.resolve())
    cells = sorted(p.relative_to(data) for p in (data / "pbc").glob("*/*.jpg"))
    whole = [Path("fields") / p.name for p in sorted(raw.glob("*.jpg"))]
    chosen = [c[len(c) * i // n] for c, n in ((cells, images), (whole, fields)) for i in range(n)]
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows([path.as_posix(), "cell"] for path in chosen)
    return table


def bundle_start(model: str, place: Path) -> Path:
    """A shipped start as a bundle, without thresholds."""
    start = find_start(model)
    network = build_start(model)
    last = find_head(network, len(start.classes))
    facts = Facts(
        architecture=model, head=last.name, features=last.features, classes=start.classes,
        preprocessing=Preprocessing(
            "cell", WINDOW, start.size, MEAN, DEVIATION, views=1, light="matched"
        ),
        decision=Decision(), training={}, leuko="0", created="2026-01-01",
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    exported = export_network(network, size=start.size)
    return write_bundle(place, facts, weights=weights, model=exported, card=model).path


def build_start(model: str) -> Any:
    """The network of a shipped start, in PyTorch."""
    from safetensors.torch import load_file

    from leuko.learning.models import build

    start = find_start(model)
    network = build(model, len(start.classes), size=start.size, seed=0)
    network.load_state_dict({k: v.float() for k, v in load_file(start.path).items()})
    return network.eval()


def build_bundle(bundle: Bundle) -> Any:
    """The network of a bundle, in PyTorch, from its own weights."""
    from safetensors.torch import load_file

    from leuko.learning.models import build

    facts = bundle.facts
    network = build(facts.architecture, len(facts.classes), size=facts.preprocessing.size, seed=0)
    weights = load_file(bundle.path / "weights.safetensors")
    network.load_state_dict({k: v.float() for k, v in weights.items()})
    return network.eval()


def compare_ways(place: Path, manifest: Manifest, table: Path) -> Row:
    """All ways to the same answer."""
    from leuko.learning.fit import predict

    bundle = load_bundle(place)
    prepared = bundle.facts.preprocessing
    cells = cut_cells(
        manifest, view=prepared.view, size=prepared.size, light=prepared.light,
        window=prepared.window,
    )  # fmt: skip
    cells = [cell for cell in cells if cell.leukocyte.score > 0]
    pictures = stack_cells(cells, prepared.size)
    said, evaluator = Predictor(bundle).answer_cells(
        [cell.image for cell in cells], [cell.leukocyte for cell in cells], list(pictures)
    )
    raw = predict(build_bundle(bundle), pictures, views=prepared.views)
    torch_side = apply_temperature(raw, bundle.facts.decision.temperature)
    python = collect(load(place).predict(table).to_json(), bundle.facts.classes)
    ran = subprocess.run(
        [sys.executable, "-m", "leuko.cli", "predict", "--model", str(place), "--json", str(table)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = collect(json.loads(ran.stdout), bundle.facts.classes)
    some = {b: bundle.network.answer(pictures, views=1, batch=b)[0] for b in BATCHES}
    return Row(
        model=bundle.facts.architecture,
        cells=len(cells),
        pytorch=float(np.abs(torch_side - evaluator).max()),
        agreement=float((torch_side.argmax(1) == evaluator.argmax(1)).mean()),
        python=count_same(said, evaluator, python),
        command=count_same(said, evaluator, command),
        batches=max(float(np.abs(some[b] - some[32]).max()) for b in BATCHES),
    )


def collect(
    found: dict[str, Any], classes: tuple[str, ...]
) -> dict[tuple[str, tuple[float, ...]], tuple[str, bytes]]:
    """By image and box the state and the bits of the probabilities; rejected cells have none."""
    answers = {}
    for row in found["cells"]:
        if row["x0"] is not None:
            box = tuple(row[side] for side in ("x0", "y0", "x1", "y1"))
            p = [row[f"p_{c}"] for c in classes]
            bits = b"" if p[0] is None else np.array(p, np.float64).tobytes()
            answers[row["image"], box] = (row["state"], bits)
    return answers


def count_same(
    said: list[Answer],
    evaluator: Float64,
    others: dict[tuple[str, tuple[float, ...]], tuple[str, bytes]],
) -> int:
    """Cells of the same state whose probabilities are the same, bit for bit.

    A field's cell is known by its box. What is a doubtful leukocyte in a field with certain ones
    isn't answered by prediction; training never takes it either.
    """
    same = 0
    for answer, p in zip(said, evaluator, strict=True):
        assert answer.box is not None
        bits = b"" if answer.label is None else p.tobytes()
        same += others.get((answer.image, answer.box)) == (answer.state, bits)
    return same


def tell(rows: list[Row], images: int, command: str) -> list[str]:
    fine = all(
        r.pytorch <= PYTORCH and r.agreement == 1 and r.python == r.command == r.cells
        and r.batches <= BATCH for r in rows
    )  # fmt: skip
    versions = ", ".join(f"{part} {find_version(part)}" for part in ("torch", "onnxruntime"))
    return [
        *head("One answer by every way", command),
        f"{images:,} real images: cells of PBC, evenly spread over its classes, and whole fields "
        "of the Kaggle set. Of each image the cell is taken that training would have cut out; "
        "images in which none was found have no answer to compare. Every way begins at the bytes "
        f"of the files. {versions}.", "",
        "- *Evaluator*: `cut_cells` and `Bundle.answer`, as `leuko evaluate` judges a bundle.",
        "- *PyTorch*: `leuko.learning.fit.predict` with the same weights on the same cells, as "
        "training judges its folds, then the bundle's temperature. EfficientNet answers as the "
        "mean over eight views, the others with one.",
        "- *Python*: `leuko.load(bundle).predict(table)`. *Command*: `leuko predict --json`.", "",
        "| model | cells | PyTorch: largest Δp | same class | Python: same bits | command: same "
        "bits | batches of 1, 7, 32: largest Δp |",
        "|---|---|---|---|---|---|---|",
        *(f"| {r.model} | {r.cells:,} | {r.pytorch:.1e} | {r.agreement:.2%} | "
          f"{r.python:,} of {r.cells:,} | {r.command:,} of {r.cells:,} | {r.batches:.1e} |"
          for r in rows), "",
        f"Demanded: PyTorch within {PYTORCH:g} and always the same class; Python and command the "
        f"evaluator's state and very bits; batches within {BATCH:g} (one view, so that no mean "
        "hides a difference).", "",
        f"**{'All of it holds.' if fine else 'Not all of it holds.'}**",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--fields", type=int, default=100)
    given = parser.parse_args()
    main(given.data, given.images, given.fields)
