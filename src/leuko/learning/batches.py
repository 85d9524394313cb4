"""From decoded cells to augmented batches: everything that happens to pixels while training.

Cells are decoded and cut once and then kept as bytes in memory; each batch is augmented as a
whole on tensors, every image with parameters of its own. Randomness comes from a generator
that is made anew from the seed and the epoch, so an epoch is the same after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# Mean and standard deviation of ImageNet, which the pretrained starts expect. From a random
# start any fixed numbers do; these keep one preprocessing for every start.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """How far one training image may differ from the picture taken.

    Attributes:
        rotation: Largest angle in degrees, either way. Cells have no up and down: 180.
        flips: Whether mirror images are shown.
        scale: Largest factor of enlargement or reduction, as a fraction.
        shift: Largest shift as a fraction of the side.
        brightness, contrast, saturation: Largest change as a fraction.
        stain: Largest change of the optical density of each colour channel, as a fraction:
            stains differ in strength and hue between laboratories and days.

    The colours change little: within one set, colour is what tells an eosinophil from a
    neutrophil, and changing it more costs accuracy (``results/defaults.md``).
    """

    rotation: float = 180.0
    flips: bool = True
    scale: float = 0.15
    shift: float = 0.06
    brightness: float = 0.05
    contrast: float = 0.08
    saturation: float = 0.08
    stain: float = 0.03


def draw_epoch(
    labels: NDArray[np.int64], *, balance: bool, generator: torch.Generator
) -> NDArray[np.int64]:
    """Chooses the images of one epoch, in order.

    Args:
        labels: (N,), in [0, K).
        balance: Whether each class is shown as often as the most frequent one. The rarer
            classes are then gone through several times, each time in a new order.
        generator: Source of randomness.

    Returns:
        Indices into `labels`: N of them, or K × the largest class when balanced.
    """
    import torch

    present = np.unique(labels)
    if not balance:
        return np.asarray(torch.randperm(len(labels), generator=generator).numpy())
    largest = max(int((labels == k).sum()) for k in present)
    parts = []
    for k in present:
        members = np.flatnonzero(labels == k)
        rounds = -(-largest // len(members))
        order = [torch.randperm(len(members), generator=generator).numpy() for _ in range(rounds)]
        parts.append(members[np.concatenate(order)[:largest]])
    chosen = np.concatenate(parts)
    return np.asarray(chosen[torch.randperm(len(chosen), generator=generator).numpy()])


def iterate_batches(
    cells: torch.Tensor,
    labels: torch.Tensor,
    order: NDArray[np.int64],
    *,
    batch: int,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields augmented, normalised batches.

    Args:
        cells: (N, 3, S, S) uint8.
        labels: (N,) int64.
        order: Indices of the epoch, see `draw_epoch`.
        batch: Images per batch, at least; the remainder is spread over all batches, because
            batch normalisation of two or three images is noise.
        augmentation: How far images may differ.
        generator: Source of randomness.

    Yields:
        Images (B, 3, S, S) float32; labels (B,).
    """
    import torch

    for part in np.array_split(order, count_batches(len(order), batch)):
        index = torch.from_numpy(part)
        images = cells[index].float().div_(255)
        yield normalise(augment(images, augmentation, generator)), labels[index]


def count_batches(images: int, batch: int) -> int:
    """How many batches an epoch of so many images has; at least one."""
    return max(1, images // batch)


def normalise(
    images: torch.Tensor,
    mean: torch.Tensor | None = None,
    deviation: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, 3, S, S) in [0, 1] to zero mean and unit deviation.

    Args:
        images: To be normalised.
        mean, deviation: (3,) each; left out, `MEAN` and `DEVIATION`.
    """
    mean = images.new_tensor(MEAN) if mean is None else mean
    deviation = images.new_tensor(DEVIATION) if deviation is None else deviation
    return (images - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)


def make_input(
    cells: torch.Tensor,
    mean: torch.Tensor | None = None,
    deviation: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cells as they were cut out, to what a network takes: the only way when nothing is learnt.

    `leuko.learning.fit.predict` calls it, and it is the first part of every exported model.

    Args:
        cells: (B, S, S, 3) uint8.
        mean, deviation: As for `normalise`.

    Returns:
        (B, 3, S, S) float32.
    """
    return normalise(cells.permute(0, 3, 1, 2).float().div(255), mean, deviation)


def augment(
    images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """Changes geometry and colour, each image with parameters of its own.

    Written by hand because torchvision gives all images of a batch the same parameters, and
    kornia's classes draw from the global generator, so that an epoch could not be repeated.

    Args:
        images: (B, 3, S, S), in [0, 1].
        augmentation: How far images may differ.
        generator: Source of randomness.

    Returns:
        (B, 3, S, S), in [0, 1].
    """
    import torch

    def draw(spread: float) -> torch.Tensor:
        """(B,) uniform in [-spread, spread]."""
        return (torch.rand(len(images), generator=generator) * 2 - 1) * spread

    images = _move(images, augmentation, draw)
    return _recolour(images, augmentation, draw)


def _move(images: torch.Tensor, a: Augmentation, draw) -> torch.Tensor:  # type: ignore[no-untyped-def]
    import torch
    from torch.nn import functional

    angle = draw(a.rotation / 180 * pi)
    zoom = torch.exp(draw(1.0) * float(np.log1p(a.scale)))
    mirror = torch.where(draw(1.0) > 0, 1.0, -1.0) if a.flips else torch.ones(len(images))
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # affine_grid's coordinates run from -1 to 1, so a shift of the side is twice as large.
    matrix = torch.stack(
        [cos * mirror, -sin, draw(2 * a.shift), sin * mirror, cos, draw(2 * a.shift)], dim=1
    ).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    # The border's colour is carried outwards; a mirror image would show cells that don't exist.
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _recolour(images: torch.Tensor, a: Augmentation, draw) -> torch.Tensor:  # type: ignore[no-untyped-def]
    import torch

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, 1, 1, 1)

    if a.stain:
        # Beer-Lambert: the optical density of a channel is proportional to the dye in the path.
        strength = 1 + torch.stack([draw(a.stain) for _ in range(3)], dim=1).view(-1, 3, 1, 1)
        images = images.clamp(min=1 / 255).pow(strength)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * column(1 + draw(a.saturation))
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * column(1 + draw(a.contrast))
    return (images * column(1 + draw(a.brightness))).clamp_(0, 1)


def turn_views(cells: NDArray[np.uint8], views: int) -> Iterator[NDArray[np.uint8]]:
    """The views over which an answer is averaged, whatever the network runs on.

    A cell has no up and down, so quarter turns and mirror images are equally good pictures of it,
    and none of them needs interpolation.

    Args:
        cells: (B, S, S, 3).
        views: 1 for the cells as they are; 8 for the quarter turns of them and of their mirror
            images.

    Yields:
        (B, S, S, 3), contiguous.
    """
    if views == 1:
        yield np.ascontiguousarray(cells)
        return
    for mirrored in (cells, cells[:, :, ::-1]):
        for turns in range(4):
            yield np.ascontiguousarray(np.rot90(mirrored, turns, axes=(1, 2)))
