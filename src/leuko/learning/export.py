"""From a trained network to ``model.onnx``: the only module that writes ONNX.

The exported graph begins with the cells as bytes, so that nobody has to normalise them again; it
ends with the logits and with the features that its last layer takes. Every weight keeps its name
and its bits: nothing is folded or renamed, because the bundle compares them. ONNX Runtime folds
batch normalisation by itself when it loads.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leuko.errors import BundleError, MissingExtraError
from leuko.learning.batches import DEVIATION, MEAN, make_input
from leuko.learning.bundle import OPSET
from leuko.learning.inference import INPUT, OUTPUTS
from leuko.storage import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Head:
    """The last layer of a network.

    Attributes:
        name: As in the network.
        features: D, what it takes.
    """

    name: str
    features: int


@dataclass(frozen=True)
class ExportJob:
    """What a worker has to know to write ``model.onnx``.

    Attributes:
        weights: A safetensors file with all tensors of the network.
        model: Name of the network.
        classes: K.
        size: S in pixels.
        out: Where to write it.
    """

    weights: Path
    model: str
    classes: int
    size: int
    out: Path


def export_job(job: ExportJob, send: Callable[[Any], None]) -> Head:
    """Does one job in a worker process, because it needs PyTorch.

    Args:
        job: What to do.
        send: Takes no message here.

    Returns:
        The last layer of the network.
    """
    from safetensors.torch import load_file

    from leuko.learning.models import build

    send(None)
    network = build(job.model, job.classes, size=job.size, seed=0)
    network.load_state_dict(load_file(job.weights))
    write_atomically(job.out, export_network(network, size=job.size))
    return find_head(network, job.classes)


def find_head(network: nn.Module, classes: int) -> Head:
    """Finds the layer that gives the logits: the last linear one, with one output per class.

    Raises:
        BundleError: There is none.
    """
    from torch import nn

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1][1].out_features != classes:
        raise BundleError(
            "The network doesn't end in a linear layer with one output per class, so it has no "
            "features that a bundle could give. Train another model."
        )
    name, layer = layers[-1]
    return Head(name, layer.in_features)


def export_network(network: nn.Module, *, size: int) -> bytes:
    """Writes a network as ONNX.

    Args:
        network: As built by `leuko.learning.models.build`; it isn't changed.
        size: S in pixels.

    Returns:
        A graph that takes ``cells`` (B, S, S, 3) uint8 for any B, and gives ``logits`` (B, K) and
        ``features`` (B, D).

    Raises:
        MissingExtraError: onnx or onnxscript isn't installed.
        BundleError: PyTorch can't export this network.
    """
    import torch

    _check_extras()
    whole = _join(network).eval()
    cells = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():  # PyTorch's exporter calls parts of itself that are outdated
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                whole, (cells,), dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=list(OUTPUTS), external_data=False,
                dynamic_shapes={INPUT: {0: "batch"}},
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"PyTorch can't export this network to ONNX: {reason}") from error
        assert program is not None  # for the type checker: only the old exporter gives nothing
        proto = program.model_proto
    for info in [*proto.graph.node, *proto.graph.value_info]:
        # Where in which file each operator came from: half of the file, and paths of this machine.
        del info.metadata_props[:]
        info.doc_string = ""
    return bytes(proto.SerializeToString())


def _join(network: nn.Module) -> nn.Module:
    """Normalisation, the network without its last layer, the last layer: a copy."""
    import torch
    from torch import nn

    class Exported(nn.Module):
        def __init__(self, body: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.body, self.head = body, head
            self.register_buffer("pixel_mean", torch.tensor(MEAN))
            self.register_buffer("pixel_deviation", torch.tensor(DEVIATION))

        def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            images = make_input(cells, self.pixel_mean, self.pixel_deviation)  # type: ignore[arg-type]
            features = self.body(images)
            return self.head(features), features

    body = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    classes = [m for m in body.modules() if isinstance(m, nn.Linear)][-1].out_features
    name = find_head(body, classes).name
    above, _, last = name.rpartition(".")
    head = body.get_submodule(name)
    setattr(body.get_submodule(above), last, nn.Identity())
    return Exported(body, head)


def _check_extras() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Making a bundle needs {' and '.join(missing)}. Install with: "
            "pip install 'leuko[train]'"
        )
