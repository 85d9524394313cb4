"""Where in a cell a network finds what its answer rests on: the only door to captum.

Knows networks and pictures; knows nothing of cells' places in them, files or verdicts.

The networks average their last feature map and end in one linear layer, so a logit is the mean,
over the map, of what each place adds to it. Gradient times activation of that map, summed over the
channels, is exactly this: for such a network it is Grad-CAM and the class activation map at once
(Selvaraju et al. 2017, section 3.1, doi:10.1109/ICCV.2017.74). It is taken of the logit less the
mean of all logits, because what is added to all classes alike changes no answer.

AlexNet's last layer before the average is a pooling that leaves 2 × 2 places of a 96-pixel
picture. Its maxima belong to places of the map before, and the gradient leads back to them; so
there the finer map of 5 × 5 is as exact, and it is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import MissingExtraError
from leuko.learning.batches import make_input, turn_back, turn_views
from leuko.learning.export import find_head

if TYPE_CHECKING:
    import torch
    from torch import nn


def explain(
    network: nn.Module,
    cells: NDArray[np.uint8],
    classes: NDArray[np.int64],
    *,
    views: int,
    batch: int = 64,
) -> NDArray[np.float32] | None:
    """What each place of a cell adds to the logit of one class.

    Args:
        network: As `leuko.learning.fit.fit` left it; gives (B, K) logits.
        cells: (N, S, S, 3).
        classes: (N,): the class to explain for each cell, in [0, K).
        views: As for `leuko.learning.fit.predict`; the maps of all views are averaged.
        batch: Cells at a time.

    Returns:
        (N, h, w). The mean over h and w is the class's logit less the mean of all logits, but for
        the biases of the last layer. None if the network doesn't end in an averaged map, or its
        map has only one place.

    Raises:
        MissingExtraError: captum isn't installed.
    """
    import torch

    try:
        from captum.attr import LayerGradientXActivation
    except ImportError as error:
        raise MissingExtraError(
            "Maps of what a network looks at need captum, which isn't installed. Install it with: "
            "pip install 'leuko[train]'"
        ) from error
    network.eval()
    layer = find_map(network, cells.shape[1])
    if layer is None:
        return None

    def centre(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(images)
        return logits - logits.mean(1, keepdim=True)

    method = LayerGradientXActivation(centre, layer)
    parts = []
    with _begin_gradients_at(network, layer):
        for start in range(0, len(cells), batch):
            part = slice(start, start + batch)
            target = torch.from_numpy(np.asarray(classes[part], dtype=np.int64))
            maps = []
            for number, view in enumerate(turn_views(cells[part], views)):
                images = make_input(torch.from_numpy(view))
                found: Any = method.attribute(images, target=target)  # (B, D, h, w)
                places = found.shape[2] * found.shape[3]
                maps.append(turn_back((found.sum(1) * places).detach().numpy(), number))
            parts.append(np.mean(maps, axis=0))
    return np.concatenate(parts).astype(np.float32)


@contextmanager
def _begin_gradients_at(network: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Lets gradients reach back to the output of a layer and no further.

    Beyond it they would be thrown away, and what they need of every layer before would be kept: 1.9
    GB for 64 cells in EfficientNet-B0.
    """
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    # A copy, because a layer that works in place may follow, which isn't allowed to change a leaf.
    begin = layer.register_forward_hook(
        lambda _layer, _given, result: result.detach().requires_grad_().clone()
    )
    try:
        yield
    finally:
        begin.remove()
        for weight in learning:
            weight.requires_grad_(True)


def find_map(network: nn.Module, size: int) -> nn.Module | None:
    """The layer whose output, averaged over its places, is what the last layer takes.

    Where that layer is a maximum pooling, the one before it. None if there is no such layer, or
    one with a single place.

    Args:
        network: In evaluation mode.
        size: S, the side of its pictures in pixels.
    """
    import torch

    calls = _watch(network, size)
    taken = next(given for layer, given, _ in reversed(calls) if layer is _find_last(network))
    fitting = [
        number
        for number, (_, _, result) in enumerate(calls)
        if result.ndim == 4
        and result.shape[:2] == taken.shape
        and torch.allclose(result.mean((2, 3)), taken, rtol=1e-4, atol=1e-5)
    ]
    for number in fitting:
        layer, given, _ = calls[number]
        if isinstance(layer, torch.nn.MaxPool2d):
            return next((m for m, _, r in reversed(calls[:number]) if _are_equal(r, given)), None)
    wide = [n for n in fitting if calls[n][2].shape[2] * calls[n][2].shape[3] > 1]
    return calls[wide[-1]][0] if wide else None


def _watch(network: nn.Module, size: int) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """Every layer with what it took and gave for a picture of noise, in the order of ending."""
    import torch

    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def note(layer: nn.Module, given: Any, result: Any) -> None:
        if given and isinstance(given[0], torch.Tensor) and isinstance(result, torch.Tensor):
            calls.append((layer, given[0], result))

    hooks = [layer.register_forward_hook(note) for layer in network.modules()]
    try:
        with torch.no_grad():
            network(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _find_last(network: nn.Module) -> nn.Module:
    from torch import nn

    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return network.get_submodule(find_head(network, layers[-1].out_features).name)


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a.shape == b.shape and torch.equal(a, b)
