"""From a trained network to ``model.onnx``: the only module that writes ONNX.

The exported graph begins with the cells as bytes, so that nobody has to normalise them again; it
ends with the logits, with the features that its last layer takes, and with the map that these are
the mean of, from which follows where a network looked. Every weight keeps its name
and its bits: nothing is folded or renamed, because the bundle compares them. ONNX Runtime folds
batch normalisation by itself when it loads, if no convolution before it has a bias that has to be
computed; the exporter writes one of zeros, which is taken out again.
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
from leuko.learning.inference import INPUT, MAP, OUTPUTS
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


def export_job(job: ExportJob, _send: Callable[[Any], None]) -> Head:
    """Does one job in a worker process, because it needs PyTorch.

    Args:
        job: What to do.
        _send: Nothing is told on the way.

    Returns:
        The last layer of the network.
    """
    from safetensors.torch import load_file

    from leuko.learning.models import build

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
        A graph that takes ``cells`` (B, S, S, 3) uint8 for any B, and gives ``logits`` (B, K),
        ``features`` (B, D) and, where the network's last pooling takes the mean of a whole map,
        that ``map`` (B, D, h, w).

    Raises:
        MissingExtraError: onnx or onnxscript isn't installed.
        BundleError: PyTorch can't export this network.
    """
    import torch

    _check_extras()
    whole = _join(network, size).eval()
    cells = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    outputs = list(OUTPUTS if whole.pool is None else (*OUTPUTS, MAP))
    with warnings.catch_warnings():  # PyTorch's exporter calls parts of itself that are outdated
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                whole, (cells,), dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=outputs, external_data=False,
                dynamic_shapes={INPUT: {0: "batch"}},
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"PyTorch can't export this network to ONNX: {reason}") from error
        assert program is not None  # for the type checker: only the old exporter gives nothing
        proto = program.model_proto
    _drop_zero_biases(proto.graph)
    for info in [*proto.graph.node, *proto.graph.value_info]:
        # Where in which file each operator came from: half of the file, and paths of this machine.
        del info.metadata_props[:]
        info.doc_string = ""
    return bytes(proto.SerializeToString())


def _drop_zero_biases(graph: Any) -> None:
    """Takes away biases that are worked out as zeros of the input's type, and what only they used.

    With them no batch normalisation is folded, and inference takes about twice as long.
    """
    made = {name: node for node in graph.node for name in node.output}

    def follow(name: str, kind: str) -> str:
        node = made.get(name)
        return node.input[0] if node is not None and node.op_type == kind else ""

    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            zero = made.get(follow(follow(node.input[2], "Expand"), "CastLike"))
            values = [a.t for a in zero.attribute] if zero and zero.op_type == "Constant" else []
            if len(values) == 1 and not any(values[0].raw_data):
                del node.input[2]
    kept = {output.name for output in graph.output}
    for place in reversed(range(len(graph.node))):  # users come after what they use
        if kept.isdisjoint(graph.node[place].output):
            del graph.node[place]
        else:
            kept.update(graph.node[place].input)


def _join(network: nn.Module, size: int) -> Any:
    """Normalisation, the network without pooling and last layer, these two: a copy."""
    import torch
    from torch import nn

    class Exported(nn.Module):
        def __init__(self, body: nn.Module, pool: nn.Module | None, head: nn.Module) -> None:
            super().__init__()
            self.body, self.pool, self.head = body, pool, head
            self.shape: tuple[int, ...] = ()  # D, h, w
            self.register_buffer("pixel_mean", torch.tensor(MEAN))
            self.register_buffer("pixel_deviation", torch.tensor(DEVIATION))

        def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, ...]:
            images = make_input(cells, self.pixel_mean, self.pixel_deviation)  # type: ignore[arg-type]
            features = self.body(images)
            if self.pool is None:
                return self.head(features), features
            # Without its pooling a network flattens the whole map before the last layer.
            found = features.reshape(-1, *self.shape)
            features = self.pool(found).flatten(1)
            return self.head(features), features, found

    # A pooling to one place is exported as a list of all places and an index into it.
    class Mean(nn.Module):
        def forward(self, found: torch.Tensor) -> torch.Tensor:
            return found.mean((2, 3), keepdim=True)

    body = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    classes = [m for m in body.modules() if isinstance(m, nn.Linear)][-1].out_features
    head = _take_out(body, find_head(body, classes).name)
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    pools = [n for n, m in body.named_modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    means = [n for n in pools if body.get_submodule(n).output_size in (1, (1, 1))]
    for name in means:
        _replace(body, name, Mean())
    if not pools:
        return Exported(body, None, head)
    seen: list[torch.Tensor] = []
    pool = body.get_submodule(pools[-1])
    hook = pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        features = body(images)
        hook.remove()
        same = len(seen) == 1 and torch.equal(pool(seen[0]).flatten(1), features)
        if not same or pools[-1] not in means:
            return Exported(body, None, head)
        _take_out(body, pools[-1])
        flat = body(images)
    if flat.shape != seen[0].flatten(1).shape:  # it takes more than the pooling's result
        _replace(body, pools[-1], pool)
        return Exported(body, None, head)
    whole = Exported(body, pool, head)
    whole.shape = tuple(seen[0].shape[1:])
    return whole


def _take_out(network: nn.Module, name: str) -> nn.Module:
    """Replaces a layer by one that does nothing; gives the layer."""
    from torch import nn

    layer = network.get_submodule(name)
    _replace(network, name, nn.Identity())
    return layer


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(network.get_submodule(above), last, layer)


def _check_extras() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Making a bundle needs {' and '.join(missing)}. Install with: "
            "pip install 'leuko[train]'"
        )
