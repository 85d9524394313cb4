"""Training: one loop, a generator of epoch records.

The loop sees the training part of one fold and nothing else. There is no test image in its
signature, so nothing can be chosen on one: the number of epochs is fixed by the settings, and
the weights that count are a running average, not the best of several looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import NonFiniteLossError, WeightsError
from leuko.learning.batches import (
    Augmentation,
    count_batches,
    draw_epoch,
    iterate_batches,
    make_input,
    turn_views,
)
from leuko.learning.models import choose_memory_format
from leuko.storage import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class FitSettings:
    """One training protocol.

    Attributes:
        epochs: Passes; with `balance` each shows every class as often as the largest.
        batch: Images per step.
        learning_rate: Its peak, for AdamW.
        weight_decay: Applied to weights of two and more dimensions only.
        warmup: Share of all steps in which the rate rises from zero; then it falls as a cosine.
        label_smoothing: Share of each target that is spread over all classes.
        average: Decay per step of the running average of the weights.
        clip: Largest norm of the gradient.
        balance: Whether the rarer classes are trained several times over.
        precision: ``float32``, or ``bfloat16`` for the convolutions and products while training;
            weights, averages, loss and predictions stay float32.
        views: 1, or 8 to average the prediction over quarter turns and mirror images.
        augmentation: How far training images may differ from the pictures taken.
        size: Side of the images that the network sees, in px; 0 for that of the cells.
        reach: Side of the part of a cell's picture that is shown, see `iterate_batches`.
        small: Share of the epochs, the first ones, that are trained at two thirds of `size`.
        frozen: Whether the statistics of batch normalisation stay what they are. For networks
            that were trained before: the few images of a small set are a poor measure of them.
    """

    epochs: int
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    average: float = 0.99
    clip: float = 1.0
    balance: bool = True
    precision: str = "float32"
    views: int = 8
    augmentation: Augmentation = field(default_factory=Augmentation)
    size: int = 0
    reach: float = 1.0
    small: float = 0.0
    frozen: bool = False

    def size_of(self, epoch: int, stored: int) -> int:
        """Side of the images in an epoch, counted from 1; cells are `stored` px wide."""
        size = self.size or stored
        return reduce_size(size) if epoch <= self.small * self.epochs else size


def reduce_size(size: int) -> int:
    """Two thirds of a side, as a multiple of 32: the networks halve an image five times."""
    return max(32, round(size / 48) * 32)


@dataclass(frozen=True)
class Epoch:
    """What is known after one pass.

    Attributes:
        number: From 1.
        loss: Mean over the images of the epoch, as augmented and smoothed.
        accuracy: In [0, 1], of the augmented training images while the weights still changed.
        learning_rate: At the last step.
        images: How many were shown.
        seconds: How long it took.
    """

    number: int
    loss: float
    accuracy: float
    learning_rate: float
    images: int
    seconds: float


def fit(
    network: nn.Module,
    cells: NDArray[np.uint8],
    labels: NDArray[np.int64],
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    at_step: Callable[[], None] | None = None,
) -> Iterator[Epoch]:
    """Trains `network` in place, on its own device; exhausted, it holds the averaged weights.

    Args:
        network: Gives (B, K) logits for (B, 3, S, S).
        cells: (N, S, S, 3).
        labels: (N,), in [0, K).
        settings: The protocol.
        seed: Decides order, augmentation and dropout. Each epoch has a generator of its own,
            made from the seed and its number.
        checkpoint: Written atomically after each epoch. If it exists already, training goes on
            from it: records of the epochs done are yielded again, and the rest is, on the same
            number of threads of a processor, bit for bit what it would have been.
        at_step: Called before each step; an exception that it raises ends the training.

    Yields:
        One record per epoch.

    Raises:
        NonFiniteLossError: The loss or the gradient is NaN or infinite.
        WeightsError: The checkpoint can't be read or belongs to another training.
    """
    import torch
    from torch.nn import functional

    device = next(network.parameters()).device
    images = torch.from_numpy(np.ascontiguousarray(cells.transpose(0, 3, 1, 2))).to(device)
    targets = torch.from_numpy(labels).to(device)
    order_in_memory = choose_memory_format(network)
    network.train().to(memory_format=order_in_memory)  # type: ignore[call-overload]
    if settings.frozen:
        for layer in _list_normalisation(network):
            layer.eval()
    optimizer = _make_optimizer(network, settings)
    own = network.state_dict()  # the tensors themselves, which change in place
    averaged = {name: value.clone() for name, value in own.items()}
    counters = [name for name, value in own.items() if not value.is_floating_point()]
    history: list[Epoch] = []
    stamp = {"settings": asdict(settings), "seed": seed, "images": len(labels)}
    if checkpoint is not None and checkpoint.exists():
        history = _load_checkpoint(checkpoint, network, optimizer, averaged, stamp)
        yield from history

    step = 0
    for number in range(1, settings.epochs + 1):
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        order = draw_epoch(labels, balance=settings.balance, generator=generator)
        steps = count_batches(len(order), settings.batch)
        if number <= len(history):
            step += steps
            continue
        # Dropout draws from the global generator and takes no other.
        torch.manual_seed(seed * 100_003 + number)
        started, loss_sum, right = perf_counter(), 0.0, 0
        batches = iterate_batches(
            images,
            targets,
            order,
            batch=settings.batch,
            augmentation=settings.augmentation,
            generator=generator,
            size=settings.size_of(number, images.shape[-1]),
            reach=settings.reach,
        )
        for batch, target in batches:
            if at_step is not None:
                at_step()
            rate = schedule(step, steps * settings.epochs, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(
                device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
            ):
                logits = network(batch.contiguous(memory_format=order_in_memory)).float()
            loss = functional.cross_entropy(
                logits, target, label_smoothing=settings.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            # A GPU is waited for once in each step, for all that is asked of it.
            hits = (logits.argmax(1) == target).sum()
            loss_now, norm_now, hits_now = torch.stack(
                [loss.detach().double(), norm.double(), hits.double()]
            ).tolist()
            _check_finite(loss_now, norm_now, number, step, rate, batch)
            optimizer.step()
            _average(averaged, own, settings.average, step)
            loss_sum += loss_now * len(target)
            right += int(hits_now)
            step += 1
        for name in counters:  # of batches: not averaged, so the last ones are enough
            averaged[name].copy_(own[name])
        count = len(order)
        history.append(
            Epoch(number, loss_sum / count, right / count, rate, count, perf_counter() - started)
        )
        if checkpoint is not None:
            _save_checkpoint(checkpoint, network, optimizer, averaged, history, stamp)
        yield history[-1]
    network.load_state_dict(averaged)
    network.eval()
    if not settings.frozen:
        _refresh_normalisation(network, images, labels, settings, seed)


def schedule(step: int, total: int, settings: FitSettings) -> float:
    """Learning rate at a step: linear rise, then half a cosine down to a hundredth."""
    rise = max(1, round(settings.warmup * total))
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def predict(
    network: nn.Module, cells: NDArray[np.uint8], *, views: int = 8, batch: int = 64
) -> NDArray[np.float64]:
    """Class probabilities of cells: the first of what `answer` gives."""
    return answer(network, cells, views=views, batch=batch)[0]


def answer(
    network: nn.Module, cells: NDArray[np.uint8], *, views: int = 8, batch: int = 64
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Class probabilities of cells, and the features that they follow from.

    Args:
        network: As `fit` left it.
        cells: (N, S, S, 3).
        views: 1, or 8 for the mean over quarter turns and mirror images.
        batch: Images at a time; it doesn't change the result beyond rounding.

    Returns:
        (N, K), rows sum to 1; and (N, D), what the last linear layer takes, the mean over views.
        Without a linear layer D is 0.
    """
    import torch

    order_in_memory = choose_memory_format(network)
    network.eval().to(memory_format=order_in_memory)  # type: ignore[call-overload]
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    taken: list[torch.Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, x: taken.append(x[0])) if layers else None
    rows, features = [], []
    with torch.inference_mode():
        for start in range(0, len(cells), batch):
            taken.clear()
            answers = [
                network(
                    make_input(torch.from_numpy(view)).contiguous(memory_format=order_in_memory)
                )
                for view in turn_views(cells[start : start + batch], views)
            ]
            rows.append(torch.stack([a.double().softmax(1) for a in answers]).mean(0))
            features.append(
                torch.stack(taken).mean(0) if taken else torch.zeros((len(rows[-1]), 0))
            )
    if hook is not None:
        hook.remove()
    return torch.cat(rows).numpy(), torch.cat(features).float().numpy()


def round_to_half(network: nn.Module) -> None:
    """Rounds what has two or more dimensions to half precision; it stays float32 in memory.

    Nearly all weights are of this kind, so that a file of them can be half as large and lose
    nothing. Whoever rounds has to judge the rounded network, not the one before.
    """
    import torch

    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point() and value.ndim >= 2:
                value.copy_(value.half().float())


def _make_optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    import torch

    # Decay pulls towards zero; for biases and normalisation layers zero means nothing.
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        fused=True,
    )


def _list_normalisation(network: nn.Module) -> list[torch.nn.BatchNorm2d]:
    import torch

    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def _average(
    averaged: dict[str, torch.Tensor], own: dict[str, torch.Tensor], decay: float, step: int
) -> None:
    import torch

    # Early on the average must forget the random start quickly.
    keep = min(decay, (1 + step) / (10 + step))
    floats = [name for name, value in averaged.items() if value.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([averaged[n] for n in floats], [own[n] for n in floats], 1 - keep)


def _refresh_normalisation(
    network: nn.Module,
    images: torch.Tensor,
    labels: NDArray[np.int64],
    settings: FitSettings,
    seed: int,
) -> None:
    """Measures the statistics of batch normalisation anew, for the averaged weights.

    The running statistics belong to weights that were never used together, and after the few
    hundred steps of a small set they still lag behind: EfficientNet, with the most such layers,
    then answers with one class for every image.

    Source: Izmailov et al. 2018, section 3.2, arXiv:1803.05407.
    """
    import torch

    layers = _list_normalisation(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    generator = torch.Generator().manual_seed(seed * 100_003)
    order = draw_epoch(labels, balance=settings.balance, generator=generator)
    with torch.inference_mode():
        targets = torch.from_numpy(labels).to(images.device)
        for batch, _ in iterate_batches(
            images, targets, order, batch=4 * settings.batch,
            augmentation=settings.augmentation, generator=generator,
            size=settings.size, reach=settings.reach,
        ):  # fmt: skip
            network(batch.contiguous(memory_format=choose_memory_format(network)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def _check_finite(
    loss: float, norm: float, epoch: int, step: int, rate: float, batch: torch.Tensor
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    if not bool(batch.isfinite().all()):
        cause = "the images of this batch hold NaN or infinite values"
    elif math.isfinite(loss):
        cause = "the gradient overflowed"
    else:
        cause = "the weights grew until the output overflowed"
    raise NonFiniteLossError(
        f"Training stopped in epoch {epoch}, step {step + 1}: the loss is {loss}, the norm of the "
        f"gradient {norm}, at a learning rate of {rate:.2g}; {cause}. Nothing after the last "
        "checkpoint was kept. Lower --learning-rate, or look at the pictures in cells.npz."
    )


def _save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, torch.Tensor],
    history: list[Epoch],
    stamp: dict[str, Any],
) -> None:
    """safetensors, not torch.save: it holds numbers only, so opening it can't run code."""
    from safetensors.torch import save_file

    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in averaged.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items()}
    facts = json.dumps({"history": [asdict(e) for e in history], "stamp": stamp})
    write_atomically(path, lambda p: save_file(tensors, p, metadata={"leuko": facts}))


def _load_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, torch.Tensor],
    stamp: dict[str, Any],
) -> list[Epoch]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["leuko"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The checkpoint {path} can't be read: {error}. Delete it to train this fold again."
        ) from error
    if facts["stamp"] != json.loads(json.dumps(stamp)):
        raise WeightsError(
            f"The checkpoint {path} belongs to a training with other settings or images. "
            "Delete it to train this fold again."
        )
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    )
    for name, value in averaged.items():
        value.copy_(tensors[f"average.{name}"])
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            # The fused optimizer walks through memory, so its state has to lie as the weights do,
            # and where they are.
            weight = parameters[int(index)]
            place = torch.empty_like(weight) if key != "step" else value.to(weight.device)
            state.setdefault(int(index), {})[key] = place.copy_(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return [Epoch(**record) for record in facts["history"]]
