"""How much faster each family trains in bfloat16 than in float32, on one core.

    uv run python benchmarks/precision.py

The pictures are noise: only the time counts. Two epochs each, the second is timed; the two
precisions take turns, three times, and the medians are printed with their ratio.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch

from leuko.learning.fit import FitSettings, fit
from leuko.learning.models import build
from leuko.run import describe_environment, has_bfloat16

MODELS = ("resnet18", "efficientnet_b0", "alexnet")
SIZES = (64, 96)
IMAGES = 128


def measure(name: str, size: int, precision: str) -> float:
    """Images per second."""
    pictures = np.random.default_rng(0).integers(0, 255, (IMAGES, size, size, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % 4
    network = build(name, 4, size=size, seed=0)
    settings = FitSettings(epochs=2, precision=precision)
    return IMAGES / list(fit(network, pictures, labels, settings, seed=0))[-1].seconds


def main() -> None:
    torch.set_num_threads(1)
    machine = describe_environment([])
    print(f"{machine['processor']}, torch {machine['torch']}; multiplies bfloat16 by itself: "
          f"{'yes' if has_bfloat16() else 'no'}\n")  # fmt: skip
    print(
        "| model | size | float32, images/s | bfloat16, images/s | ratio |\n|---|---|---|---|---|"
    )
    for size in SIZES:
        for name in MODELS:
            runs = [[measure(name, size, p) for p in ("float32", "bfloat16")] for _ in range(3)]
            one, other = (median(run[k] for run in runs) for k in (0, 1))
            ratio = median(run[1] / run[0] for run in runs)
            print(f"| {name} | {size} | {one:.0f} | {other:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
