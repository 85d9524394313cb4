"""Whether the shipped network in eight bits would be worth having: what it loses, what it gains.

    uv run python benchmarks/int8.py ../shared/data/pbc

What is quantised, and how the limits of activations are found, is varied on cells that the network
was trained on; what `leuko.learning.eight_bits` does is then judged on cells that it hasn't seen,
beside the same network in float32. One view; speed on all cores, in turns. Writes
`results/int8.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from leuko.data.image import read_image
from leuko.data.scales import estimate_scale
from leuko.engine import count_cores
from leuko.judgement.metrics import exact_limits
from leuko.learning.bundle import Bundle, take_apart
from leuko.learning.eight_bits import quantise
from leuko.learning.exchange import shape_network
from leuko.learning.inference import BATCH, INPUT, OUTPUTS, ExportedNetwork
from leuko.learning.seen import find_seen_by
from leuko.use.cutting import find_cells
from leuko.use.predictor import load
from provenance import find_version, head, write_results

CALIBRATING, CHOOSING, ROUNDS = 96, 2000, 5
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def main(data: Path) -> None:
    bundle = load().bundle
    model = take_apart(bundle)[1]
    known, (unseen, truth) = choose_cells(bundle, data)
    calibrating, choosing = known[::2][:CALIBRATING], known[1::2]
    plain = open_bare(model)
    rows = []
    for told, settings in {
        "all convolutions and products": {"spare": False, "limits": "MinMax"},
        "without the first, depthwise ones and gates": {"limits": "MinMax"},
        "the same, limits by percentile": {},
    }.items():
        eight = open_bare(quantise(model, calibrating, **settings))
        rows.append(f"| {told} | {tell_share(eight(choosing) == plain(choosing))} |")
    chosen = quantise(model, calibrating)
    said, expected = open_bare(chosen)(unseen), plain(unseen)
    change = 100.0 * ((said == truth).astype(float) - (expected == truth))
    low, high = np.quantile(list(draw_means(change)), (0.025, 0.975))
    has = "has" if has_vnni() else "lacks"
    versions = ", ".join(f"{name} {find_version(name)}" for name in ("onnxruntime", "openvino"))
    write_results("int8.md", [
        *head("Eight bits instead of 32", f"uv run python benchmarks/int8.py {data}"),
        f"EfficientNet-B0 of bundle `{bundle.id[:12]}`, one view, {count_cores()} cores; "
        f"{versions}; the processor {has} instructions for eight bits (AVX-512 VNNI).", "",
        "## What is quantised, chosen on cells that the network was trained on", "",
        f"Calibrated on {len(calibrating)} of them, compared on {len(choosing):,} others; exact "
        "95 % limits. No label takes part.", "",
        "| in eight bits | same class as float32 |", "|---|---|", *rows, "",
        "## What the last of these loses", "",
        f"n = {len(unseen):,} cells of PBC that it hasn't seen: {tell_share(said == expected)} get "
        f"the same class; accuracy {100 * np.mean(said == truth):.2f} % instead of "
        f"{100 * np.mean(expected == truth):.2f} %, a difference of {change.mean():+.2f} points "
        f"(95 % limits by bootstrap over cells {low:+.2f} to {high:+.2f}). {len(chosen) / 1e6:.1f} "
        f"MB instead of {len(model) / 1e6:.1f} (in half precision).", "",
        "## How fast", "",
        f"The {len(unseen):,} cells in batches of {BATCH}, {ROUNDS} rounds in turns, times as fast "
        "as float32 in ONNX Runtime: median and range.", "",
        "| network | in ONNX Runtime | in OpenVINO |", "|---|---|---|",
        *tell_speed({"float32": model, "eight bits": chosen}, bundle, unseen), "",
    ])  # fmt: skip


def choose_cells(
    bundle: Bundle, data: Path
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Cells that the network knows, of all classes in turn; cells it doesn't, and their labels."""
    files = sorted(data.glob("*/*.jpg"))
    hashes = {path: sha256(path.read_bytes()).hexdigest() for path in files}
    seen = find_seen_by(bundle.facts, hashes.values()).all_trained
    trained = [path for path in files if hashes[path] in seen]
    rng = np.random.default_rng(0)
    drawn = [trained[i] for i in rng.permutation(len(trained))[: CHOOSING + 2 * CALIBRATING]]
    known = [cell for path in drawn if (cell := cut_cell(bundle, path)) is not None]
    cells, labels = [], []
    for path in files:
        if hashes[path] not in seen and (cell := cut_cell(bundle, path)) is not None:
            cells.append(cell)
            labels.append(bundle.facts.classes.index(path.parent.name))
    return np.stack(known), (np.stack(cells), np.array(labels))


def cut_cell(bundle: Bundle, path: Path) -> NDArray[np.uint8] | None:
    picture = read_image(path)
    found = find_cells(picture, estimate_scale(picture))
    return bundle.facts.preprocessing.cut(picture, found[0]) if found else None


def open_bare(model: bytes) -> Run:
    """Classes of cells by one session on all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    session = onnxruntime.InferenceSession(model, options)

    def run(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
        parts = [cells[i : i + BATCH] for i in range(0, len(cells), BATCH)]
        return np.concatenate([session.run(OUTPUTS[:1], {INPUT: p})[0] for p in parts]).argmax(1)

    return run


def open_openvino(model: bytes, bundle: Bundle) -> Run:
    size, classes = bundle.facts.preprocessing.size, len(bundle.facts.classes)
    plain = ExportedNetwork(model, size=size, classes=classes)
    _, network = shape_network(model, bundle.facts.model_text, plain, "openvino")
    return lambda cells: network.answer(cells, views=1)[0].argmax(1)


def tell_speed(models: dict[str, bytes], bundle: Bundle, cells: NDArray[np.uint8]) -> Iterator[str]:
    runs = {
        (told, engine): run
        for told, model in models.items()
        for engine, run in (
            ("ONNX Runtime", open_bare(model)), ("OpenVINO", open_openvino(model, bundle)),
        )
    }  # fmt: skip
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run(cells[:BATCH])
    for _ in range(ROUNDS):
        for key, run in runs.items():
            begun = perf_counter()
            run(cells)
            times[key].append(perf_counter() - begun)
    base = times["float32", "ONNX Runtime"]
    for told in models:
        ratios = [
            [a / b for a, b in zip(base, times[told, engine], strict=True)]
            for engine in ("ONNX Runtime", "OpenVINO")
        ]
        shown = [f"{median(r):.2f} ({min(r):.2f}–{max(r):.2f})" for r in ratios]
        yield f"| {told} | {' | '.join(shown)} |"


def tell_share(right: Sequence[bool] | NDArray[np.bool_]) -> str:
    low, high = exact_limits(int(np.sum(right)), len(right))
    return f"{100 * np.mean(right):.2f} % ({100 * low:.2f}–{100 * high:.2f})"


def draw_means(values: NDArray[np.float64]) -> Iterator[float]:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        yield float(values[rng.integers(0, len(values), len(values))].mean())


def has_vnni() -> bool:
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "avx512_vnni" in facts.read_text("ascii")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    main(parser.parse_args().data)
