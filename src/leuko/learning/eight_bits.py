"""A network in eight bits: the only module that quantises.

ONNX Runtime's static quantisation: the weights of each output channel by themselves, activations
within limits that cells show. What is known to suffer stays as it is: the first convolution,
depthwise ones, and those of the gates (squeeze-and-excite); what that is worth stands in
``results/int8.md``. Whether a result is good enough is for others to judge.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import MissingExtraError
from leuko.learning.inference import BATCH, INPUT

GATE = 16  # a gate's convolutions have so many times fewer channels on one side


def quantise(
    model: bytes, cells: NDArray[np.uint8], *, spare: bool = True, limits: str = "Percentile"
) -> bytes:
    """Writes a network anew in eight bits.

    Args:
        model: The bytes of ``model.onnx`` of a bundle.
        cells: (N, S, S, 3) that show how far activations reach; about a hundred.
        spare: Whether what is known to suffer stays as it is.
        limits: How the limits of activations follow from those of the cells: of ONNX Runtime's
            ``CalibrationMethod``.

    Returns:
        A file of ONNX with the same input and outputs.

    Raises:
        MissingExtraError: The library for ONNX files isn't installed.
    """
    try:
        import onnx
        from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
    except ImportError:
        raise MissingExtraError(
            "Eight bits need the library for ONNX files: pip install 'leuko[train]'"
        ) from None
    with tempfile.TemporaryDirectory() as scratch, _silence():
        plain, out = Path(scratch) / "plain.onnx", Path(scratch) / "eight.onnx"
        options = SessionOptions()
        # Folds batch normalisation, and works half precision out.
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(plain)
        InferenceSession(model, options)
        quantize_static(
            str(plain), str(out), _Reader(cells), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[limits],
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=_list_sensitive(onnx.load(plain).graph) if spare else [],
        )  # fmt: skip
        return out.read_bytes()


class _Reader:
    """Batches of cells, one after the other, as ONNX Runtime asks for them."""

    def __init__(self, cells: NDArray[np.uint8]) -> None:
        self._parts = iter(np.array_split(cells, max(1, len(cells) // BATCH)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT: part}


def _list_sensitive(graph: Any) -> list[str]:
    """Names of the convolutions that stay as they are."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found: list[str] = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        outputs, inputs, height, _ = shapes[node.input[1]]
        few, many = sorted((outputs, inputs))
        if not found or groups > 1 or (height == 1 and many >= GATE * few):
            found.append(node.name)
    return found


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what the quantiser prints, which is meant for those who develop it, to itself."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(former)
