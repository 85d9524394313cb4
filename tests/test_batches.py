"""Sampling and augmentation: what is drawn, how far, and that it can be repeated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from leuko.learning.batches import (
    DEVIATION,
    MEAN,
    WIDE,
    Augmentation,
    augment,
    draw_epoch,
    iterate_batches,
    make_input,
    normalise,
    turn_views,
)

STILL = Augmentation(
    rotation=0, flips=False, scale=0, shift=0, brightness=0, contrast=0, saturation=0, stain=0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=generator(9)) * 0.6 + 0.2


def test_a_balanced_epoch_shows_each_class_as_often_as_the_largest():
    labels = np.repeat([0, 1, 3], [50, 7, 20])
    order = draw_epoch(labels, balance=True, generator=generator())
    assert np.bincount(labels[order]).tolist() == [50, 50, 0, 50]
    shown = np.bincount(order, minlength=len(labels))
    for k in (0, 1, 3):
        of_class = shown[labels == k]
        assert of_class.max() - of_class.min() <= 1, "each image is repeated equally often"


def test_an_unbalanced_epoch_shows_each_image_once():
    order = draw_epoch(np.repeat([0, 1], [9, 4]), balance=False, generator=generator())
    assert sorted(order) == list(range(13))


def test_an_epoch_depends_on_its_generator_alone():
    labels = np.repeat([0, 1], [30, 10])
    draws = [draw_epoch(labels, balance=True, generator=generator(s)).tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_without_freedom_augmentation_changes_nothing():
    x = pictures()
    assert torch.allclose(augment(x, STILL, generator()), x, atol=1e-5)


def test_each_image_of_a_batch_gets_parameters_of_its_own():
    x = pictures(1).expand(8, -1, -1, -1)
    y = augment(x, Augmentation(), generator())
    assert all(not torch.allclose(y[i], y[j]) for i in range(8) for j in range(i))


def test_augmentation_keeps_its_range_and_repeats_with_its_seed():
    x = pictures()
    y = augment(x, Augmentation(), generator(3))
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert torch.equal(y, augment(x, Augmentation(), generator(3)))


def test_mirroring_alone_gives_the_picture_or_its_mirror_image():
    x = pictures(16)
    y = augment(x, Augmentation(**{**STILL.__dict__, "flips": True}), generator())
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(x, y, strict=True)]
    mirrored = [torch.allclose(a.flip(-1), b, atol=1e-5) for a, b in zip(x, y, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)


def test_no_border_is_invented():
    """A shifted picture of one colour stays of one colour: no black corners, no mirror images."""
    x = torch.full((4, 3, 32, 32), 0.7)
    y = augment(x, Augmentation(**{**STILL.__dict__, "shift": 0.4, "rotation": 90}), generator())
    assert torch.allclose(y, x, atol=1e-5)


def test_every_image_is_in_a_batch_and_no_batch_is_tiny():
    cells = torch.zeros(33, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(33)
    seen = [
        target
        for _, target in iterate_batches(
            cells, labels, np.arange(33), batch=16, augmentation=STILL, generator=generator()
        )
    ]
    assert sorted(torch.cat(seen).tolist()) == list(range(33))
    assert min(map(len, seen)) >= 8


def test_normalising_uses_fixed_numbers():
    grey = torch.full((1, 3, 4, 4), 0.5)
    expected = [(0.5 - m) / d for m, d in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # noqa: B905
    assert normalise(grey)[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_the_eight_views_are_eight_and_keep_every_pixel():
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    views = list(turn_views(x, 8))
    assert len({v.tobytes() for v in views}) == 8
    assert all(v.shape == x.shape and v.flags.c_contiguous for v in views)
    whole = np.sort(x.reshape(2, 25, 3), axis=1)
    assert all(np.array_equal(np.sort(v.reshape(2, 25, 3), axis=1), whole) for v in views)
    assert [v.tobytes() for v in turn_views(x, 1)] == [x.tobytes()]


def test_a_networks_input_is_the_cells_normalised_with_channels_first():
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    given = make_input(torch.from_numpy(x))
    expected = (x / 255 - np.array(MEAN)) / np.array(DEVIATION)
    assert np.abs(given.numpy() - expected.transpose(0, 3, 1, 2)).max() < 1e-6


def test_wide_augmentation_keeps_its_range_and_repeats_with_its_seed():
    x = pictures(12, 48)
    y = augment(x, WIDE, generator(3), size=32, reach=0.7)
    assert y.shape == (12, 3, 32, 32)
    assert y.min() >= 0
    assert y.max() <= 1
    assert torch.equal(y, augment(x, WIDE, generator(3), size=32, reach=0.7))


def test_wide_augmentation_hardly_knows_colour_but_keeps_the_cell():
    x = torch.full((64, 3, 48, 48), 0.9)
    x[:, 0, 14:34, 14:34], x[:, 1, 14:34, 14:34] = 0.4, 0.2
    y = augment(x, WIDE, generator(1))
    colours = y[:, :, 22:26, 22:26].mean((2, 3))
    assert colours.std(0).min() > 0.05, "stain, light and camera differ from picture to picture"
    assert (y[:, :, 22:26, 22:26].mean((1, 2, 3)) < y[:, :, :4, :4].mean((1, 2, 3))).all()


def test_reach_shows_the_middle_of_a_picture():
    x = pictures(3, 40)
    y = augment(x, STILL, generator(), size=20, reach=0.5)
    assert torch.allclose(y, x[:, :, 10:30, 10:30], atol=1e-5)


@pytest.mark.parametrize(
    "change", ["mixing", "tint", "shading", "blur", "sharpening", "noise", "jpeg"]
)
def test_each_wide_change_changes_each_picture_in_its_own_way(change: str):
    x = pictures(1, 32).expand(6, -1, -1, -1).contiguous()
    y = augment(x, replace(STILL, **{change: 1.0 if change == "jpeg" else 0.5}), generator())
    assert all(not torch.equal(y[i], y[j]) for i in range(6) for j in range(i))
    assert not torch.equal(y, x)


def test_a_picture_that_ends_around_its_cell_lies_on_its_own_empty_slide():
    x = torch.full((40, 3, 96, 96), 0.8)
    x[:, 1], x[:, :, 36:60, 36:60] = 0.7, 0.2  # a cell of 24 px, a quarter of the side
    x[:, :, 60:64] = 0.5  # a neighbour beside it
    y = augment(x, replace(STILL, cut_out=0.5), generator())
    ended = [i for i in range(40) if not torch.allclose(y[i], x[i], atol=1e-5)]
    assert 8 <= len(ended) <= 32
    for i in ended:
        assert torch.allclose(y[i, :, 36:60, 36:60], x[i, :, 36:60, 36:60], atol=1e-5)
        assert torch.allclose(y[i, :, 0, 0], torch.tensor([0.8, 0.7, 0.8]), atol=1e-5)
        assert (y[i, 0, 60:64, 0] > 0.7).all(), "beyond its edge the neighbour is gone"
    assert len({float(y[i].sum()) for i in ended}) > len(ended) // 2, "each ends elsewhere"


def test_a_batch_in_which_no_picture_is_cut_out_is_a_batch():
    x = pictures(2)
    assert torch.allclose(augment(x, replace(STILL, cut_out=1e-9), generator()), x, atol=1e-5)


def test_a_cut_out_cell_stays_in_the_middle():
    x = torch.full((30, 3, 48, 48), 0.9)
    x[:, :, 20:28, 20:28] = 0.1
    y = augment(x, replace(STILL, cut_out=1.0, shift=0.3), generator())
    assert (y[:, :, 22:26, 22:26] < 0.2).all()
