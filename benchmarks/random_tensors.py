"""How near training comes to the same network on random tensors that lie where it computes.

    uv run python benchmarks/random_tensors.py
    uv run python benchmarks/random_tensors.py --device cuda --batches 16,64,256
    uv run python benchmarks/random_tensors.py --augmentation wide

What is compared takes turns, round by round: Leuko's loop from cells in memory (augmentation,
balance, clipping, the average of the weights, the check for NaN), and forward pass, backward pass
and optimizer alone on one batch of random numbers, which is all that the device itself allows. Both
on one thread, or on a GPU; the first epoch, in which memory is found and kernels are chosen, counts
for nobody. The cells are random bytes: their time doesn't depend on what they show. Prints Markdown
with the name of the device and the versions, and writes nothing.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch.nn import functional

from leuko.data.cuts import SURROUNDINGS, WINDOW
from leuko.learning.batches import WIDE, Augmentation
from leuko.learning.fit import FitSettings, fit
from leuko.learning.gpu import check_gpu, describe_gpu, use_whole_float32
from leuko.learning.models import DEFAULT_MODELS, build, choose_memory_format, choose_precision
from leuko.run import describe_environment
from provenance import find_commit

CLASSES = 8


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def make(model: str, size: int, device: str) -> torch.nn.Module:
    return build(model, CLASSES, size=size, seed=0).to(device)


def time_training(model: str, settings: FitSettings, images: int, device: str) -> float:
    """Images per second of Leuko's loop, the median of all epochs but the first."""
    rng = np.random.default_rng(0)
    side = round(settings.size / settings.reach)
    cells = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    epochs = list(
        fit(make(model, settings.size, device), cells, np.arange(images) % CLASSES, settings,
            seed=0)
    )  # fmt: skip
    return median(epoch.images / epoch.seconds for epoch in epochs[1:])


def time_random(model: str, settings: FitSettings, images: int, device: str) -> float:
    """Images per second of one batch of random numbers, again and again."""
    network = make(model, settings.size, device).train()
    order = choose_memory_format(network)
    network.to(memory_format=order)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    shape = settings.batch, 3, settings.size, settings.size
    batch = torch.randn(shape, device=device).contiguous(memory_format=order)
    labels = torch.arange(settings.batch, device=device) % CLASSES
    steps, times = max(1, images // settings.batch), []
    for _ in range(settings.epochs):
        wait(device)
        began = perf_counter()
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = network(batch).float()
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        wait(device)
        times.append(steps * settings.batch / (perf_counter() - began))
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS))
    parser.add_argument("--batches", default="16")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures, px")
    parser.add_argument("--images", type=int, default=512, help="of one epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--augmentation", choices=("narrow", "wide"), default="narrow")
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = describe_environment([])
    where = facts["processor"]
    if given.device == "cuda":
        check_gpu()
        use_whole_float32()
        where = describe_gpu()
    wide = given.augmentation == "wide"
    print(
        f"Commit {find_commit()}; {where}; torch {facts['torch']}; {given.images} images an epoch, "
        f"{given.size} px, changes {given.augmentation}; medians of {given.rounds} rounds of "
        f"{given.epochs - 1} epochs, the rounds' range in brackets.\n"
    )
    print("| model, batch, precision | training, images/s | random tensors | training / random |")
    print("|---|---|---|---|")
    for model in given.models.split(","):
        fast = choose_precision(model, "auto", given.device)
        for precision in dict.fromkeys(("float32", fast if given.device == "cpu" else "bfloat16")):
            for batch in map(int, given.batches.split(",")):
                settings = FitSettings(
                    epochs=given.epochs, batch=batch, size=given.size, precision=precision,
                    augmentation=WIDE if wide else Augmentation(),
                    reach=WINDOW / SURROUNDINGS if wide else 1.0, frozen=False,
                )  # fmt: skip
                own, plain = [], []
                for _ in range(given.rounds):
                    own.append(time_training(model, settings, given.images, given.device))
                    plain.append(time_random(model, settings, given.images, given.device))
                shares = [a / b for a, b in zip(own, plain, strict=True)]
                print(
                    f"| {model}, {batch}, {precision} | {median(own):.0f} | {median(plain):.0f} | "
                    f"**{median(shares):.2f}** ({min(shares):.2f}–{max(shares):.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
