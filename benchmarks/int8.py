"""Whether the shipped network in eight bits would be worth having: what it loses, what it gains.

    uv run python benchmarks/int8.py ../shared/data/pbc

ONNX Runtime's own quantisation: weights of each channel by themselves, activations by what 256
cells show that the network was trained on. What is quantised is varied, because networks of this
family are known to suffer in their depthwise convolutions and in their gates (squeeze-and-excite).
Judged on cells of PBC that the network hasn't seen, one view, against the same network in float32;
speed on two threads of one session, in turns. Writes `results/int8.md`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from leuko.data.image import read_image
from leuko.data.leukocytes import estimate_scale
from leuko.engine import count_cores
from leuko.judgement.metrics import exact_limits
from leuko.learning.bundle import MODEL, OPTIONAL, PARTS, Bundle
from leuko.learning.inference import BATCH, INPUT
from leuko.learning.parts import read_parts
from leuko.learning.seen import find_seen_by
from leuko.use.cutting import find_cells
from leuko.use.predictor import load
from provenance import head, write_results

CALIBRATION, ROUNDS, LOGITS = 256, 5, "logits"
GATE = 16  # a gate's convolutions have so many times fewer channels on one side
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def main(data: Path) -> None:
    bundle = load().bundle
    seen, unseen, truth = choose_cells(bundle, data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain, names = write_float(bundle, folder)
        engines = {"float32": plain}
        for told, (left_out, method) in {
            "all convolutions and products": ((), "MinMax"),
            "all but depthwise, gates and the first": ((*names["all"],), "MinMax"),
            "the same, limits by percentile": ((*names["all"],), "Percentile"),
        }.items():
            engines[told] = quantise(plain, seen, left_out, method)
        rows = compare(engines, unseen, truth)
    has = "has" if has_vnni() else "lacks"
    write_results("int8.md", [
        *head("Eight bits instead of 32", f"uv run python benchmarks/int8.py {data}"),
        f"EfficientNet-B0 of bundle `{bundle.id[:12]}`, one view, batches of {BATCH}, "
        f"{count_cores()} cores; n = {len(unseen):,} cells of PBC that the network hasn't seen, "
        f"calibrated on {len(seen)} that it has. onnxruntime {onnxruntime.__version__}, openvino "
        f"{openvino.__version__}; the processor {has} instructions for eight bits (AVX-512 VNNI). "
        f"Speed: median of {ROUNDS} rounds in turns, float32 in ONNX Runtime is 1. 95 % limits: "
        "exact for the share, by bootstrap over cells for the difference.", "",
        "| in eight bits | same class as float32 | accuracy minus float32's, points | MB "
        "| speed, ONNX Runtime | speed, OpenVINO |",
        "|---|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def choose_cells(
    bundle: Bundle, data: Path
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Cells to calibrate with, which the network knows; cells it doesn't, and their labels."""
    files = sorted(data.glob("*/*.jpg"))
    hashes = {path: sha256(path.read_bytes()).hexdigest() for path in files}
    known = find_seen_by(bundle.facts, bundle.path, hashes.values()).all_trained
    trained = [path for path in files if hashes[path] in known]
    trained = [trained[len(trained) * i // CALIBRATION] for i in range(CALIBRATION)]
    others = [path for path in files if hashes[path] not in known]
    classes = [name.lower() for name in bundle.facts.classes]
    cut = [(cut_cell(bundle, path), classes.index(path.parent.name)) for path in others]
    found = [(cell, label) for cell, label in cut if cell is not None]
    calibrating = [cell for path in trained if (cell := cut_cell(bundle, path)) is not None]
    return (
        np.stack(calibrating), np.stack([cell for cell, _ in found]),
        np.array([label for _, label in found]),
    )  # fmt: skip


def cut_cell(bundle: Bundle, path: Path) -> NDArray[np.uint8] | None:
    picture = read_image(path)
    found = find_cells(picture, estimate_scale(picture))
    return bundle.facts.preprocessing.cut(picture, found[0]) if found else None


def write_float(bundle: Bundle, folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """The network with whole numbers instead of halves and batch normalisation folded."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "float.onnx")
    onnxruntime.InferenceSession(read_parts(bundle.path, PARTS, OPTIONAL)[MODEL], options)
    graph = onnx.load(folder / "float.onnx").graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    left_out = [convolutions[0].name]
    for node in convolutions:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        outputs, inputs, height, _ = shapes[node.input[1]]
        few, many = sorted((outputs, inputs))
        if groups > 1 or (height == 1 and many >= GATE * few):
            left_out.append(node.name)
    return folder / "float.onnx", {"all": left_out}


def quantise(plain: Path, cells: NDArray[np.uint8], left_out: tuple[str, ...], how: str) -> Path:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(np.array_split(cells, len(cells) // 16))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: part}

    out = plain.with_name(f"{how}-{len(left_out)}.onnx")
    quantize_static(
        str(plain), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[how], nodes_to_exclude=list(left_out),
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
    )  # fmt: skip
    return out


def open_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda cells: np.asarray(session.run([LOGITS], {INPUT: cells})[0])


def open_openvino(path: Path) -> Run:
    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(cells: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer({INPUT: cells})
        return np.array(request.get_tensor(LOGITS).data)

    return run


def compare(
    engines: dict[str, Path], cells: NDArray[np.uint8], truth: NDArray[np.int64]
) -> list[str]:
    runs = {
        (told, name): make(path)
        for told, path in engines.items()
        for name, make in (("onnxruntime", open_onnxruntime), ("openvino", open_openvino))
    }
    parts = [cells[i : i + BATCH] for i in range(0, len(cells), BATCH)]
    times: dict[Any, list[float]] = {key: [] for key in runs}
    said: dict[Any, NDArray[np.int64]] = {}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            begun = perf_counter()
            said[key] = np.concatenate([run(part) for part in parts]).argmax(1)
            times[key].append(perf_counter() - begun)
    base = "float32", "onnxruntime"
    rows = []
    for told, path in engines.items():
        ours = said[told, "onnxruntime"]
        same = ours == said[base]
        low, high = exact_limits(int(same.sum()), len(same))
        difference = 100 * ((ours == truth).astype(float) - (said[base] == truth))
        limits = np.quantile(list(draw_means(difference)), (0.025, 0.975))
        speeds = [
            f"{median(a / b for a, b in zip(times[base], times[told, name], strict=True)):.2f}"
            for name in ("onnxruntime", "openvino")
        ]
        size = path.stat().st_size / 1e6
        rows.append(
            f"| {told} | {100 * same.mean():.2f} % ({100 * low:.2f}–{100 * high:.2f}) | "
            f"{difference.mean():+.2f} ({limits[0]:+.2f} to {limits[1]:+.2f}) | {size:.1f} | "
            f"{' | '.join(speeds)} |"
        )
    return rows


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
