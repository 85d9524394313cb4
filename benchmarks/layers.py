"""How long gradients take in the layers that Leuko exchanges, and a whole step, on one core.

    uv run python benchmarks/layers.py
    uv run python benchmarks/layers.py --passes resnet18

EfficientNet-B0 as torchvision makes it beside the same after `leuko.learning.layers.quicken`:
all its depthwise convolutions forward and back, then a whole forward and backward pass. Processor
time; the two take turns, and medians are printed. The pictures are noise: only the time counts.
`--passes` times each convolution of a network by itself, in PyTorch's own code: forward, the
gradient of its input, that of its weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from time import process_time

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import efficientnet_b0, get_model

from leuko.engine import keep_freed_memory
from leuko.learning.layers import quicken
from leuko.run import describe_environment

PRECISIONS = ("float32", "bfloat16")


def measure(works: list[Callable[[], None]], rounds: int) -> list[float]:
    """Median of the milliseconds of each, which take turns; a first round isn't counted."""
    times: list[list[float]] = [[] for _ in works]
    for index in range(rounds + 1):
        for work, own in zip(works, times, strict=True):
            begun = process_time()
            work()
            if index:
                own.append(1e3 * (process_time() - begun))
    return [median(own) for own in times]


def list_convolutions(
    network: nn.Module, images: torch.Tensor
) -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """Each convolution with a picture of the size that it gets."""
    found: list[tuple[nn.Conv2d, torch.Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda m, x, _: found.append((m, torch.randn_like(x[0]))))
        for m in network.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


def pass_through(layers: list[tuple[nn.Conv2d, torch.Tensor]], precision: str) -> None:
    """Forward and back through each layer by itself."""
    dtype = getattr(torch, precision)
    for layer, x in layers:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = layer(x.to(dtype).requires_grad_())
        y.backward(torch.ones_like(y, memory_format=torch.channels_last))


def step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: str) -> None:
    """A whole pass without an optimizer."""
    dtype = getattr(torch, precision)
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(images).float()
    functional.cross_entropy(logits, labels).backward()


def print_passes(name: str, sizes: list[int], batch: int, rounds: int) -> None:
    """A row for each different convolution of a network, as torchvision makes it."""
    network = get_model(name, num_classes=4).to(memory_format=torch.channels_last)
    print("| picture, channels | kernel, stride, groups | precision | forward, ms | of its input "
          "| of its weights | GFLOP/s of the three |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for size in sizes:
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        rows = {}
        for layer, x in list_convolutions(network, images):
            rows[tuple(x.shape), layer.weight.shape, layer.stride, layer.groups] = (layer, x)
        for (shape, weight, stride, groups), (layer, x) in rows.items():
            for precision in PRECISIONS:
                dtype = getattr(torch, precision)
                a, w = x.to(dtype), layer.weight.detach().to(dtype)
                y = functional.conv2d(a, w, None, stride, layer.padding, 1, groups)

                def turn_back(*wanted: bool, a=a, w=w, y=y, layer=layer) -> None:
                    torch.ops.aten.convolution_backward(
                        y, a, w, None, layer.stride, layer.padding, (1, 1), False, (0, 0),
                        layer.groups, [*wanted, False],
                    )  # fmt: skip

                times = measure([
                    lambda a=a, w=w, layer=layer: functional.conv2d(
                        a, w, None, layer.stride, layer.padding, 1, layer.groups),
                    lambda f=turn_back: f(True, False),
                    lambda f=turn_back: f(False, True),
                ], rounds)  # fmt: skip
                work = 2e-6 * y.numel() * weight[1] * weight[2] * weight[3]
                each, rates = zip(*((f"{t:.2f}", f"{work / t:.0f}") for t in times), strict=True)
                print(f"| {shape[2]}, {shape[1]} to {weight[0]} "
                      f"| {weight[2]}, {stride[0]}, {groups} | {precision} "
                      f"| {' | '.join(each)} | {', '.join(rates)} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 96, 128])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", metavar="MODEL", help="each convolution by itself")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    machine = describe_environment([])
    print(f"{machine['processor']}, torch {machine['torch']}, batches of {args.batch}\n")
    if args.passes:
        print_passes(args.passes, args.sizes, args.batch, args.rounds)
        return
    print(
        "| size | precision | depthwise convolutions, torchvision's, ms | Leuko's | a whole step, "
        "torchvision's, ms | Leuko's | times as fast |\n|---|---|---|---|---|---|---|"
    )
    own = efficientnet_b0(num_classes=4).train().to(memory_format=torch.channels_last)
    quick = deepcopy(own)
    quicken(quick)
    for size in args.sizes:
        images = torch.randn(args.batch, 3, size, size).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.arange(args.batch) % 4
        for precision in PRECISIONS:
            layers, steps = [], []
            for network in (own, quick):
                alone = [p for p in list_convolutions(network, images) if p[0].groups > 1]
                layers.append(lambda alone=alone: pass_through(alone, precision))  # noqa: B023
                steps.append(lambda n=network: step(n, images, labels, precision))  # noqa: B023
            a, b = measure(layers, args.rounds)
            c, d = measure(steps, args.rounds)
            print(f"| {size} | {precision} | {a:.0f} | {b:.0f} | {c:.0f} | {d:.0f} "
                  f"| {c / d:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
