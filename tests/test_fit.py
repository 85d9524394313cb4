"""The training loop: it learns, it repeats, it resumes bit for bit, it stops when it must."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from leuko.errors import NonFiniteLossError, WeightsError
from leuko.learning.fit import FitSettings, fit, predict, schedule
from leuko.learning.models import build

SETTINGS = FitSettings(epochs=3, batch=16)
MODELS = ["resnet18", "efficientnet_b0", "alexnet"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def discs(count: int = 48, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Class 0: one disc; class 1: two. Colour and place vary."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    cells = np.full((count, size, size, 3), 225, np.uint8)
    labels = np.arange(count) % 2
    for i, label in enumerate(labels):
        for sign in (-1, 1) if label else (0,):
            cx, cy = size / 2 + sign * 12 + rng.normal(0, 2), size / 2 + rng.normal(0, 2)
            radius = 9 if label else 13
            cells[i][np.hypot(x - cx, y - cy) < radius] = rng.integers(60, 150, 3)
    return cells, labels.astype(np.int64)


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def run(name: str, settings: FitSettings = SETTINGS, **how) -> tuple[dict, list]:
    cells, labels = discs()
    network = build(name, 2, size=64, seed=1)
    history = list(fit(network, cells, labels, settings, seed=1, **how))
    return weights_of(network), history


@pytest.mark.parametrize("name", MODELS)
def test_every_family_learns_and_does_not_collapse(name):
    cells, labels = discs()
    network = build(name, 2, size=64, seed=1)
    history = list(fit(network, cells, labels, replace(SETTINGS, epochs=14), seed=1))
    p = predict(network, cells)
    assert p.shape == (48, 2)
    assert np.allclose(p.sum(1), 1)
    assert (p.argmax(1) == labels).mean() >= 0.9
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("name", MODELS)
def test_interrupted_training_ends_bit_for_bit_like_the_uninterrupted(name, tmp_path: Path):
    straight, full = run(name)
    cells, labels = discs()
    checkpoint = tmp_path / "c.safetensors"

    class StoppedError(Exception):
        pass

    steps = iter(range(10_000))

    def at_step():
        if next(steps) == 4:  # in the second of three epochs of three steps
            raise StoppedError

    network = build(name, 2, size=64, seed=1)
    with pytest.raises(StoppedError):
        list(fit(network, cells, labels, SETTINGS, seed=1, checkpoint=checkpoint, at_step=at_step))
    # Another process has another state of the global generator.
    torch.manual_seed(12345)
    resumed, history = run(name, checkpoint=checkpoint)
    assert same(straight, resumed)
    assert [replace(e, seconds=0) for e in history] == [replace(e, seconds=0) for e in full]


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    cells, labels = discs()
    ends = []
    for seed in (1, 1, 2):
        network = build("resnet18", 2, size=64, seed=1)
        list(fit(network, cells, labels, SETTINGS, seed=seed))
        ends.append(weights_of(network))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path):
    checkpoint = tmp_path / "c.safetensors"
    run("alexnet", checkpoint=checkpoint)
    with pytest.raises(WeightsError, match="other settings"):
        run("alexnet", replace(SETTINGS, learning_rate=0.01), checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="can't be read"):
        run("alexnet", checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_stops_and_names_the_step():
    cells, labels = discs()
    network = build("alexnet", 2, size=64, seed=1)
    with torch.no_grad():
        network.classifier[1].weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: the loss is nan"):
        list(fit(network, cells, labels, SETTINGS, seed=1))


def test_an_absurd_learning_rate_is_stopped_not_reported():
    cells, labels = discs()
    network = build("alexnet", 2, size=64, seed=1)
    absurd = replace(SETTINGS, learning_rate=1e12, clip=1e30, epochs=5)
    with pytest.raises(NonFiniteLossError, match="Lower --learning-rate"):
        list(fit(network, cells, labels, absurd, seed=1))


def test_shuffled_labels_give_chance_on_cells_that_were_not_seen():
    """The tripwire for leaks: what can't be learnt must not be answered."""
    cells, labels = discs(80)
    wrong = np.random.default_rng(1).permutation(labels[:40])
    network = build("alexnet", 2, size=64, seed=1)
    list(fit(network, cells[:40], wrong, replace(SETTINGS, epochs=8), seed=1))
    right = (predict(network, cells[40:]).argmax(1) == labels[40:]).sum()
    assert 10 <= right <= 30  # the 99.8 % range of 40 throws of a coin


def test_batch_size_does_not_change_an_answer_and_eight_views_ignore_a_turn():
    cells, _ = discs(12)
    network = build("resnet18", 2, size=64, seed=1)
    alone, together = (predict(network, cells, batch=b) for b in (1, 12))
    assert np.abs(alone - together).max() < 1e-6
    turned = np.ascontiguousarray(np.rot90(cells, axes=(1, 2)))
    assert np.abs(predict(network, turned) - together).max() < 1e-6
    assert np.abs(predict(network, turned, views=1) - predict(network, cells, views=1)).max() > 0


def test_bfloat16_trains_and_leaves_weights_and_answers_in_float32():
    """A tiny network: without a processor that has bfloat16 a real one would take minutes."""
    cells, labels = discs(16)
    ends = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 9, stride=8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(4, 2),
        )  # fmt: skip
        list(fit(network, cells, labels, replace(SETTINGS, precision=precision), seed=1))
        assert all(w.dtype == torch.float32 for w in network.parameters())
        assert predict(network, cells).dtype == np.float64
        ends.append(weights_of(network))
    assert not same(*ends), "the setting does something"


def test_the_learning_rate_rises_then_falls_to_almost_nothing():
    rates = [schedule(i, 100, SETTINGS) for i in range(100)]
    peak = int(np.argmax(rates))
    assert peak in (9, 10)
    assert max(rates) == pytest.approx(SETTINGS.learning_rate)
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert rates[-1] < 0.02 * SETTINGS.learning_rate


def test_frozen_statistics_stay_those_of_the_start():
    start = weights_of(build("resnet18", 2, size=64, seed=1))
    frozen, _ = run("resnet18", replace(SETTINGS, epochs=1, frozen=True))
    live, _ = run("resnet18", replace(SETTINGS, epochs=1))
    assert torch.equal(frozen["bn1.running_mean"], start["bn1.running_mean"])
    assert not torch.equal(live["bn1.running_mean"], start["bn1.running_mean"])
    assert not torch.equal(frozen["conv1.weight"], start["conv1.weight"])


def test_the_first_epochs_can_be_smaller_and_show_the_middle_of_larger_pictures():
    settings = replace(SETTINGS, epochs=3, small=0.67, size=48, reach=0.75)
    assert [settings.size_of(n, 64) for n in (1, 2, 3)] == [32, 32, 48]
    _, history = run("resnet18", settings)
    assert len(history) == 3
