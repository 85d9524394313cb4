"""From decoded cells to augmented batches: everything that happens to pixels while training.

Cells are decoded and cut once and then kept as bytes in memory; each batch is augmented as a
whole on tensors, every image with parameters of its own. Randomness comes from a generator
that is made anew from the seed and the epoch, so an epoch is the same after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import pi
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leuko.data.density import BRIGHT

if TYPE_CHECKING:
    import torch

    Draw = Callable[..., torch.Tensor]  # (low, high, *shape) → (B, *shape)

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
        mixing: Largest share of a channel's optical density that is added to, or taken from,
            another channel: two dyes, and the filters of another camera.
        tint: Largest change of the light of each colour channel, as a fraction: lamps and white
            balance.
        shading: Largest slope of the light across the picture, as a fraction from edge to edge.
        blur: Largest softening: 1 replaces a picture by its mean over about a micrometre.
        sharpening: Largest opposite of it, as cameras do.
        noise: Largest deviation of the noise of single pixels, as a fraction of full scale.
        jpeg: Share of the pictures that are encoded as JPEG, in a quality from 30 to 95.
        cut_out: Share of the pictures that end closely around the cell, which then lies in the
            middle and on an empty slide: what `leuko.data.cuts.cut_cell` makes of small pictures.

    By default the colours change little and nothing below them does: within one set, colour is
    what tells an eosinophil from a neutrophil, and changing it more costs accuracy
    (``results/defaults.md``). `WIDE` is for weights that have to serve other laboratories
    (``results/pretraining.md``).
    """

    rotation: float = 180.0
    flips: bool = True
    scale: float = 0.15
    shift: float = 0.06
    brightness: float = 0.05
    contrast: float = 0.08
    saturation: float = 0.08
    stain: float = 0.03
    mixing: float = 0.0
    tint: float = 0.0
    shading: float = 0.0
    blur: float = 0.0
    sharpening: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    cut_out: float = 0.0


# What cells look like in other laboratories, which a picture must not be called strange for.
OTHER_LABORATORIES = Augmentation(
    scale=0.25, brightness=0.15, contrast=0.5, saturation=0.6, stain=0.5, mixing=0.2, tint=0.1,
    shading=0.1, blur=1.0, sharpening=0.7, noise=0.03, jpeg=0.3, cut_out=0.25,
)  # fmt: skip

# Colour and noise vary more than they do in any laboratory, so that a network doesn't rely on the
# one and isn't led by the other; and near the edge of a field a cell lies off the middle of its
# picture by a fifth of the side.
WIDE = replace(OTHER_LABORATORIES, shift=0.2, saturation=0.8, mixing=0.3, tint=0.2, noise=0.08)


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
    size: int = 0,
    reach: float = 1.0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields augmented, normalised batches, on the device where the cells are.

    Args:
        cells: (N, 3, S, S) uint8.
        labels: (N,) int64, on the same device.
        order: Indices of the epoch, see `draw_epoch`.
        batch: Images per batch, at least; the remainder is spread over all batches, because
            batch normalisation of two or three images is noise.
        augmentation: How far images may differ.
        generator: Source of randomness.
        size: Side of the images given, in px; 0 for that of the cells.
        reach: Side of the part of a cell's picture that is shown, as a fraction: what lies around
            it is there to be moved into sight.

    Yields:
        Images (B, 3, size, size) float32; labels (B,).
    """
    import torch

    # On their way to a GPU once, not with each batch.
    mean, deviation = (torch.tensor(told, device=cells.device) for told in (MEAN, DEVIATION))
    for part in np.array_split(order, count_batches(len(order), batch)):
        index = torch.from_numpy(part).to(cells.device)
        images = cells[index].float().div_(255)
        images = augment(images, augmentation, generator, size=size, reach=reach)
        yield normalise(images, mean, deviation), labels[index]


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
    images: torch.Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    *,
    size: int = 0,
    reach: float = 1.0,
) -> torch.Tensor:
    """Changes geometry, colour and sharpness, each image with parameters of its own.

    Written by hand because torchvision gives all images of a batch the same parameters, and
    kornia's classes draw from the global generator, so that an epoch could not be repeated.

    Args:
        images: (B, 3, S, S), in [0, 1].
        augmentation: How far images may differ.
        generator: Source of randomness, of the processor, wherever the images are. Only the grain
            of the noise is drawn by a GPU itself.
        size, reach: As for `iterate_batches`.

    Returns:
        (B, 3, size, size), in [0, 1].
    """
    import torch

    device = images.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        """(B, *shape) uniform in [low, high]."""
        drawn = torch.rand(len(images), *shape, generator=generator) * (high - low) + low
        return drawn.to(device, non_blocking=True)

    cut_out = draw(0, 1) < augmentation.cut_out if augmentation.cut_out else None
    images = _move(images, augmentation, draw, size or images.shape[-1], reach, cut_out)
    if cut_out is not None:
        images = _cut_out(images, draw, cut_out)
    images = _recolour(images, augmentation, draw)
    if augmentation.blur or augmentation.sharpening:
        images = _refocus(images, augmentation, draw)
    if augmentation.noise:
        amount = draw(0, augmentation.noise, 1, 1, 1)
        images = images + amount * _draw_noise(images, generator)
    images = images.clamp_(0, 1)
    return _encode(images, augmentation, draw) if augmentation.jpeg else images


def _draw_noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch

    if images.device.type == "cpu":
        return torch.randn(images.shape, generator=generator)
    # By the GPU's own generator, as dropout: a number for each value of a batch would be longer on
    # its way there than the step lasts.
    return torch.randn_like(images)


def change_cells(
    cells: NDArray[np.uint8], augmentation: Augmentation, *, seed: int, batch: int = 64
) -> NDArray[np.uint8]:
    """Cells (N, S, S, 3) as `augment` changes them: what other laboratories might see.

    Args:
        cells: As they are cut out.
        augmentation: How far they may differ.
        seed: Decides how each is changed.
        batch: Cells at a time; it is part of what is drawn.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(cells), batch):
        images = torch.from_numpy(cells[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        changed = augment(images, augmentation, generator).permute(0, 2, 3, 1)
        parts.append((changed * 255).round().byte().numpy())
    return np.concatenate(parts) if parts else cells


def _move(
    images: torch.Tensor,
    a: Augmentation,
    draw: Draw,
    size: int,
    reach: float,
    centred: torch.Tensor | None,
) -> torch.Tensor:
    import torch
    from torch.nn import functional

    angle = draw(-1, 1) * (a.rotation / 180 * pi)
    zoom = torch.exp(draw(-1, 1) * float(np.log1p(a.scale))) / reach
    mirror = torch.where(draw(-1, 1) > 0, 1.0, -1.0) if a.flips else torch.ones_like(angle)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # affine_grid's coordinates run from -1 to 1, so a shift of the side is twice as large.
    across, down = (draw(-1, 1) * (2 * a.shift * reach) for _ in range(2))
    if centred is not None:
        across, down = across * ~centred, down * ~centred
    matrix = torch.stack([cos * mirror, -sin, across, sin * mirror, cos, down], dim=1)
    shape = [len(images), 3, size, size]
    grid = functional.affine_grid(matrix.view(-1, 2, 3), shape, align_corners=False)
    # The border's colour is carried outwards; a mirror image would show cells that don't exist.
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _cut_out(images: torch.Tensor, draw: Draw, chosen: torch.Tensor) -> torch.Tensor:
    """Lays the middle of the chosen pictures on an empty slide of their own colour."""
    import torch

    half = draw(0.5, 1)  # of half a side: 5 to 10 µm of 20
    ratio = torch.exp(draw(-0.2, 0.2))
    place = torch.linspace(-1, 1, images.shape[-1], device=images.device).abs()
    rows, columns = (place > (half * r)[:, None] for r in (ratio, 1 / ratio))
    beyond = (rows[:, None, :, None] | columns[:, None, None, :]) & chosen[:, None, None, None]
    # As `measure_background` does on bytes. Of all pictures: choosing would make a GPU wait.
    slide = images.flatten(2).kthvalue(max(1, int(BRIGHT * place.numel() ** 2)), dim=2).values
    return torch.where(beyond, slide[:, :, None, None], images)


def _recolour(images: torch.Tensor, a: Augmentation, draw: Draw) -> torch.Tensor:
    import torch

    if a.stain or a.mixing:
        # Beer-Lambert: the optical density of a channel is proportional to the dye in the path.
        strength = 1 + draw(-a.stain, a.stain, 3)
        images = images.clamp(min=1 / 255)
        if a.mixing:
            matrix = torch.diag_embed(strength) + draw(-a.mixing, a.mixing, 3, 3)
            density = torch.bmm(matrix, images.log().flatten(2))
            images = density.clamp(max=0).exp().view(images.shape)
        else:
            images = images.pow(strength[:, :, None, None])
    if a.tint:
        images = images * (1 + draw(-a.tint, a.tint, 3, 1, 1))
    if a.shading:
        place = torch.linspace(-0.5, 0.5, images.shape[-1], device=images.device)
        down, across = (draw(-a.shading, a.shading, 1, 1, 1) for _ in range(2))
        images = images * (1 + down * place[:, None] + across * place)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + draw(-a.saturation, a.saturation, 1, 1, 1))
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * (1 + draw(-a.contrast, a.contrast, 1, 1, 1))
    return (images * (1 + draw(-a.brightness, a.brightness, 1, 1, 1))).clamp_(0, 1)


def _refocus(images: torch.Tensor, a: Augmentation, draw: Draw) -> torch.Tensor:
    """Mixes each picture with its local mean: less of it sharpens, more of it blurs."""
    from torch.nn import functional

    side = images.shape[-1]
    # 5 of 96 px at 20 µm are a micrometre, the width at which granules run together.
    width = max(3, round(side * 5 / 96) | 1)
    padded = functional.pad(images, [width // 2] * 4, mode="replicate")
    soft = functional.avg_pool2d(padded, width, stride=1)
    return images + draw(-a.sharpening, a.blur, 1, 1, 1) * (soft - images)


def _encode(images: torch.Tensor, a: Augmentation, draw: Draw) -> torch.Tensor:
    import simplejpeg
    import torch

    chosen = (draw(0, 1) < a.jpeg).nonzero()[:, 0]
    quality = draw(30, 95).round().int()
    pixels = (images[chosen].permute(0, 2, 3, 1) * 255).round().byte().contiguous().cpu().numpy()
    for i, picture in zip(chosen.tolist(), pixels, strict=True):
        code = simplejpeg.encode_jpeg(picture, quality=int(quality[i]), colorsubsampling="420")
        again = simplejpeg.decode_jpeg(code)
        images[i] = torch.from_numpy(again).permute(2, 0, 1).float().div_(255)
    return images


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


def turn_back(maps: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    """Lays what was computed for one view on the cells as they are.

    Args:
        maps: (B, h, w), one for each cell of the view.
        number: Which of the views that `turn_views` yields, from 0.
    """
    mirrored, turns = divmod(number, 4)
    upright = np.rot90(maps, -turns, axes=(1, 2))
    return np.ascontiguousarray(upright[:, :, ::-1] if mirrored else upright)
