"""The three families by one list of names, and any other backbone as ``timm:NAME``.

Knows networks and their starting weights; knows nothing of images on disk, folds or losses.
PyTorch is imported by the functions that build a network, never by those that check a name,
so that a wrong option is answered at once.

Every network is the published convolutional body with one new linear layer for the classes
of the study. AlexNet gives up its two fully connected layers of 4,096 (54 of its 61 million
weights): they were made for a 6 × 6 map of features, which an image of 64 to 128 pixels doesn't
give, and repeating a 1 × 1 or 2 × 2 map until it is 6 × 6 adds weights but no information.
Its body also starts from He's initialisation: with PyTorch's default the signal shrinks in each
of its layers, which have no normalisation to restore it (``tests/test_models.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leuko.errors import InputSizeError, MissingExtraError, UnknownNameError, WeightsError, suggest
from leuko.learning.starts import find_start
from leuko.run import has_bfloat16

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """What has to be known of a network before it is built.

    Attributes:
        name: As given on the command line.
        family: ``resnet``, ``efficientnet``, ``alexnet`` or ``timm``.
        smallest: Smallest side of a square input in pixels that leaves at least one position
            in each feature map.
    """

    name: str
    family: str
    smallest: int


_RESNETS = ("resnet18", "resnet34", "resnet50")
_EFFICIENTNETS = (*(f"efficientnet_b{i}" for i in range(8)), "efficientnet_v2_s")

# ResNet and EfficientNet halve an image five times; 32 pixels leave one position. AlexNet's
# third pooling needs 63: (((63 + 4 - 11) // 4 + 1 - 3) // 2 + 1 - 3) // 2 + 1 = 3.
ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture(name, "resnet", 32) for name in _RESNETS},
    **{name: Architecture(name, "efficientnet", 32) for name in _EFFICIENTNETS},
    "alexnet": Architecture("alexnet", "alexnet", 63),
}

DEFAULT_MODELS = ("resnet18", "efficientnet_b0", "alexnet")
STARTS = ("random", "imagenet", "blood")
# Slow to import, and needed by every job that runs a network: see `leuko.engine.map_jobs`.
LIBRARIES = (
    "torch", "torchvision", "torch.utils.flop_counter", "captum.attr", "safetensors.torch",
    "leuko.learning.folds",
)  # fmt: skip


def find_architecture(name: str) -> Architecture:
    """Looks a name up.

    Args:
        name: One of `ARCHITECTURES`, or ``timm:`` and the name of a timm model.

    Raises:
        UnknownNameError: No such network; the message suggests the nearest name.
    """
    if name.startswith("timm:") and len(name) > len("timm:"):
        # What timm's hundreds of networks accept can only be found by trying; build() tries.
        return Architecture(name, "timm", 1)
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise UnknownNameError(
            f"There is no model {name!r}. {suggest(name, list(ARCHITECTURES))} "
            "Any model of timm is available as timm:NAME."
        ) from None


def check_input_size(name: str, size: int) -> None:
    """Refuses an image size that the network can't digest.

    Raises:
        InputSizeError: `size` is below the network's smallest.
        UnknownNameError: No such network.
    """
    architecture = find_architecture(name)
    if size < architecture.smallest:
        raise InputSizeError(
            f"{name} needs images of at least {architecture.smallest} x {architecture.smallest} "
            f"pixels, but the study's size is {size}. Every model of a study sees the same images: "
            f"use --size {architecture.smallest} or more, or leave {name} out."
        )


def check_start(init: str, models: Sequence[str] = ()) -> None:
    """Refuses a start of the weights that is neither a known word nor a file.

    Args:
        init: As for `build`.
        models: Names of the networks that are to start from it.

    Raises:
        WeightsError: No such file, or no start is shipped for one of the models.
    """
    if init == "blood":
        for model in models:
            find_start(model)
    if init not in STARTS and not Path(init).is_file():
        raise WeightsError(
            f"There is no file of weights at {init}. --init takes blood, random, imagenet or "
            "the path of a .safetensors file."
        )


def describe_changes(name: str, init: str, precision: str = "float32") -> list[str]:
    """What is different from the published network, in sentences for the report."""
    family = find_architecture(name).family
    changes = ["Trained in bfloat16."] if precision == "bfloat16" else []
    changes += ["The last layer is a new linear one for the classes of the study."]
    if family == "alexnet":
        changes.append(
            "The two fully connected layers of 4,096 are left out and the last feature map is "
            "averaged: 2.5 instead of 61 million weights."
        )
        if init == "random":
            changes.append("The convolutions start from He's initialisation, not PyTorch's own.")
    if family == "efficientnet":
        changes.append("Dropout before the last layer is 0.2 in every size.")
    return changes


def build(name: str, classes: int, *, size: int, init: str = "random", seed: int) -> nn.Module:
    """Builds a network with `classes` outputs.

    Args:
        name: See `find_architecture`.
        classes: K; the network gives (B, K) logits.
        size: Side of the square input in pixels, for the check of the smallest size.
        init: ``blood`` (weights that ship with the package, see `leuko.learning.starts`);
            ``random``; ``imagenet`` (weights of torchvision or timm, downloaded if need be); or
            the path of a safetensors file. All but the last layer is taken from a file.
        seed: Decides the random weights.

    Raises:
        MissingExtraError: PyTorch, torchvision or timm isn't installed.
        InputSizeError: `size` is too small for the network.
        UnknownNameError: No such network.
        WeightsError: The starting weights can't be had or don't fit.
    """
    architecture = find_architecture(name)
    check_input_size(name, size)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "Training needs PyTorch, which isn't installed. Install it with: "
            "pip install 'leuko[train]'"
        ) from error
    # Networks draw their weights from PyTorch's global generator and take no other;
    # fork_rng gives the caller's state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture.family == "timm":
            network = _build_timm(name, classes, size, pretrained=init == "imagenet")
        else:
            network = _build_torchvision(architecture, classes, pretrained=init == "imagenet")
    from leuko.learning.layers import quicken

    quicken(network)
    if init == "blood":
        _load_start(network, find_start(name).path)
    elif init not in STARTS:
        _load_start(network, Path(init))
    return network


def _build_torchvision(architecture: Architecture, classes: int, *, pretrained: bool) -> nn.Module:
    import torch
    import torchvision
    from torch import nn

    make = getattr(torchvision.models, architecture.name)
    network: nn.Module
    try:
        network = make(weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise WeightsError(
            f"ImageNet weights for {architecture.name} aren't in the cache "
            f"({torch.hub.get_dir()}) and could not be downloaded ({error}). Connect to the "
            "internet once, or start with --init random or --init FILE."
        ) from error
    if architecture.family == "resnet":
        network.fc = nn.Linear(network.fc.in_features, classes)  # type: ignore[union-attr, arg-type]
    elif architecture.family == "efficientnet":
        head = network.classifier
        network.classifier = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(head[1].in_features, classes),  # type: ignore[index, union-attr]
        )
    else:
        if not pretrained:
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(256, classes))
    return network


def _build_timm(name: str, classes: int, size: int, *, pretrained: bool) -> nn.Module:
    import torch

    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs timm, which isn't installed. Install it with: pip install 'leuko[train]'"
        ) from error
    backbone = name.removeprefix("timm:")
    if not timm.is_model(backbone):
        raise UnknownNameError(
            f"timm has no model {backbone!r}. {suggest(backbone, timm.list_models())}"
        )
    try:
        network: nn.Module = timm.create_model(backbone, pretrained=pretrained, num_classes=classes)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"timm could not give pretrained weights for {backbone} ({error}). "
            "Connect to the internet once, or start with --init random."
        ) from error
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        raise InputSizeError(
            f"{name} does not accept images of {size} x {size} pixels: {error}. "
            "Choose another --size."
        ) from error
    return network.train()


def _load_start(network: nn.Module, path: Path) -> None:
    """Puts a file's tensors into a network, but for the last layer: it names other classes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_start(str(path))
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} can't be read as safetensors: {error}. Leuko never loads pickled weights "
            "(.pt, .pth), because a pickle can run code."
        ) from error
    own = network.state_dict()
    last = list(own)[-2:]  # weight and bias of the layer that names the classes
    unknown = sorted(set(given) - set(own))
    missing = sorted(set(own) - set(given) - set(last))
    given = {k: v for k, v in given.items() if k not in last}
    wrong = [k for k in given if k in own and given[k].shape != own[k].shape]
    broken = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    for what, names in (
        ("tensors that the network doesn't have", unknown),
        ("no tensors for parts of the network", missing),
        ("tensors of another shape", wrong),
        ("tensors with NaN or infinite values", broken),
    ):
        if names:
            raise WeightsError(
                f"{path} holds {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}. "
                "It was made for another network; choose the model that it belongs to."
            )
    fitting = {k: v.to(own[k].dtype) for k, v in given.items()}
    network.load_state_dict(fitting, strict=False)


def choose_memory_format(network: nn.Module) -> torch.memory_format:
    """The order of pixels and channels in memory in which a network trains fastest on a processor.

    Measured on one core with 64-pixel images: EfficientNet, whose convolutions see one channel
    each, gains a third from channels last; ResNet and AlexNet lose a fifth by it.
    """
    import torch
    from torch import nn

    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return torch.channels_last if depthwise else torch.contiguous_format


def choose_precision(name: str, asked: str, device: str = "cpu") -> str:
    """What a network trains in: ``float32`` or ``bfloat16``.

    Measured on one core of a processor that multiplies bfloat16 by itself, with 64- and 96-pixel
    images: each of the three families gains a fifth to seven tenths by it
    (``benchmarks/precision.py``). Other backbones aren't known, and neither are GPUs.

    Args:
        name: See `find_architecture`.
        asked: ``float32``, ``bfloat16`` or ``auto``.
        device: ``cpu`` or ``cuda``.
    """
    if asked != "auto" or device != "cpu":
        return asked.replace("auto", "float32")
    gains = find_architecture(name).family != "timm"
    return "bfloat16" if gains and has_bfloat16() else "float32"


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_flops(network: nn.Module, size: int) -> int:
    """Floating-point operations of one forward pass of one (3, size, size) image.

    A multiplication and an addition count as two, as PyTorch's own counter does.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    network.train(training)
    return int(counter.get_total_flops())
