"""Training on a GPU, as far as a machine without one can tell.

PyTorch's fake tensors have a device and a shape and no values: whatever would meet on two devices
raises, as it would on a GPU. What that computes they can't tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import leuko
from leuko.errors import SettingsError, TrainingError
from leuko.learning.batches import WIDE, Augmentation, iterate_batches
from leuko.learning.fit import FitSettings, fit
from leuko.learning.folds import FoldJob, fit_fold
from leuko.learning.gpu import describe_gpu
from leuko.learning.models import DEFAULT_MODELS, build, choose_precision
from leuko.run import write_config
from leuko.settings import LaboratorySettings, StudySettings, check_settings

SIZE, CLASSES = 64, 4


@pytest.fixture
def job(tmp_path: Path) -> FoldJob:
    """A small training in a run folder."""
    cells = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    np.savez(tmp_path / "cells.npz", cells=cells)
    return FoldJob(
        run=tmp_path, model="resnet18", repeat=0, fold=0, rows=np.arange(8),
        labels=np.arange(8) % CLASSES, train=np.arange(8), test=np.arange(2), classes=CLASSES,
        settings=FitSettings(epochs=1, batch=4, views=1), init="random", seed=0,
        keep_weights=False,
    )  # fmt: skip


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without values, that say 1 when a number is asked of them."""
    monkeypatch.setattr(torch.Tensor, "item", lambda _: 1.0)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda _: 1)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda _: 1.0)
    # Numbers, drawn on the processor.
    monkeypatch.setattr("leuko.learning.fit.draw_epoch", lambda labels, **_: np.arange(len(labels)))
    # It can't change fake weights; here it is asked only for an order in memory.
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, **_: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def move(network: torch.nn.Module) -> None:
    """What ``network.to("cuda")`` does, which can't turn real weights into fake ones."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(weight, device="cuda")))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(value, device="cuda"))


# JPEG is written and read on the processor, and needs values.
@pytest.mark.parametrize("augmentation", [Augmentation(), replace(WIDE, jpeg=0.0)])
@pytest.mark.usefixtures("without_values")
def test_batches_are_made_where_the_cells_are(augmentation: Augmentation):
    cells = torch.empty(8, 3, 96, 96, dtype=torch.uint8, device="cuda")
    labels = torch.empty(8, dtype=torch.int64, device="cuda")
    batches = iterate_batches(
        cells, labels, np.arange(8), batch=4, augmentation=augmentation,
        generator=torch.Generator(), size=SIZE, reach=0.7,
    )  # fmt: skip
    for images, targets in batches:
        assert images.device.type == targets.device.type == "cuda"
        assert images.shape == (4, 3, SIZE, SIZE)


@pytest.mark.usefixtures("without_values")
def test_what_is_the_same_for_all_batches_is_sent_to_a_gpu_once(monkeypatch):
    sent: list[Any] = []
    for owner, name in ((torch, "tensor"), (torch.Tensor, "new_tensor")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, o=original, **k: sent.append(a) or o(*a, **k))
    cells = torch.empty(8, 3, SIZE, SIZE, dtype=torch.uint8, device="cuda")
    labels = torch.empty(8, dtype=torch.int64, device="cuda")
    for steps in (2, 8):
        sent.clear()
        batches = iterate_batches(
            cells, labels, np.arange(8), batch=8 // steps, augmentation=Augmentation(),
            generator=torch.Generator(),
        )  # fmt: skip
        assert len([*batches]) == steps
        assert len(sent) == 2


def test_a_step_asks_a_gpu_once_and_counters_are_copied_once_an_epoch(
    request: pytest.FixtureRequest, monkeypatch
):
    network = build("resnet18", CLASSES, size=SIZE, seed=0)
    layers = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    cells = np.zeros((16, SIZE, SIZE, 3), np.uint8)
    request.getfixturevalue("without_values")
    move(network)
    asked: list[str] = []
    copied: list[torch.dtype] = []

    def count(kind: type, name: str, answer: Callable[[torch.Tensor], Any]) -> None:
        monkeypatch.setattr(kind, name, lambda told: asked.append(name) or answer(told))

    for name in ("item", "__int__", "__float__", "__bool__"):
        count(torch.Tensor, name, lambda _: 1)
    count(FakeTensor, "tolist", lambda told: [1.0] * told.numel())
    copy = torch.Tensor.copy_

    def note(to: torch.Tensor, *rest: Any, **how: Any) -> torch.Tensor:
        copied.append(to.dtype)
        return copy(to, *rest, **how)

    monkeypatch.setattr(torch.Tensor, "copy_", note)
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: fill(network))
    # Frozen, as the way back to all batches' statistics comes after the steps.
    settings = FitSettings(epochs=2, batch=4, frozen=True)
    epochs = fit(network, cells, np.arange(16) % CLASSES, settings, seed=0)
    for _ in range(2):
        next(epochs)
    assert asked == ["tolist"] * 8
    assert copied.count(torch.int64) == 2 * layers


def fill(network: torch.nn.Module) -> None:
    """What going back leaves, which would ask the GPU for its number."""
    for weight in network.parameters():
        weight.grad = torch.empty_like(weight)


@pytest.mark.parametrize("name", DEFAULT_MODELS)
def test_a_network_is_trained_where_it_is(name: str, request, monkeypatch):
    network = build(name, CLASSES, size=SIZE, seed=0)
    cells = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    settings = FitSettings(epochs=2, batch=4)
    request.getfixturevalue("without_values")
    move(network)

    monkeypatch.setattr(torch.Tensor, "backward", lambda _: fill(network))
    epochs = list(fit(network, cells, np.arange(8) % CLASSES, settings, seed=0))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert {value.device.type for value in network.state_dict().values()} == {"cuda"}


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("size mismatch"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore."),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    ],
)
def test_a_full_gpu_is_said_with_what_to_do(fault: RuntimeError, job: FoldJob, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    expected, said = TrainingError, r"is full while resnet18 .*--workers 1.*--batch"
    if "memory" not in str(fault):
        expected, said = RuntimeError, "size mismatch"  # a fault of Leuko stays one
    with pytest.raises(expected, match=said):
        fit_fold(job, lambda _: None)


def test_float32_on_a_gpu_is_float32_and_recorded(job: FoldJob, monkeypatch):
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    told = []

    def note(network: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
        told.append(tuple(backend.allow_tf32 for backend in backends))
        return network

    monkeypatch.setattr(torch.nn.Module, "to", note)
    fit_fold(replace(job, device="cuda"), lambda _: None)
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
    assert set(told) == {(False, False)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert describe_gpu().startswith("a GPU, ")
    assert describe_gpu().endswith(", float32 without TF32")


def test_a_gpu_that_is_not_there_is_said():
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(SettingsError, match=r"finds no GPU here .* leave --device out"):
        check_settings(StudySettings(device="cuda"))


def test_a_run_that_was_begun_on_a_gpu_needs_one(tmp_path: Path):
    """Nothing else of the run is asked for before."""
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    for begun, data in (
        (StudySettings(device="cuda"), "null"),
        (LaboratorySettings(device="cuda"), '["a", "b"]'),
    ):
        write_config(tmp_path, asdict(begun))
        (tmp_path / "environment.json").write_text(f'{{"data": {data}}}')
        with pytest.raises(SettingsError, match=r"begun with --device cuda.*start a new run") as e:
            leuko.compare(resume=tmp_path)
        assert "leave --device out" not in str(e.value)


def test_another_device_is_refused():
    with pytest.raises(SettingsError, match="device is 'gpu'; expected one of: cpu, cuda"):
        check_settings(StudySettings(device="gpu"))


def test_precision_on_a_gpu_is_what_was_asked():
    assert choose_precision("resnet18", "auto", "cuda") == "float32"
    assert choose_precision("resnet18", "bfloat16", "cuda") == "bfloat16"
