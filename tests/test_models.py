"""One contract over all models, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leuko.errors import InputSizeError, UnknownNameError, WeightsError
from leuko.learning.models import (
    ARCHITECTURES,
    build,
    check_input_size,
    choose_precision,
    count_flops,
    count_parameters,
    find_architecture,
)

SMALL = ["resnet18", "efficientnet_b0", "alexnet", "timm:mobilenetv3_small_050"]
# The largest are built in one go by hand; together they take longer than all other tests.
BUILT = [name for name in ARCHITECTURES if name not in {f"efficientnet_b{i}" for i in range(4, 8)}]


@pytest.mark.parametrize("name", [*BUILT, SMALL[-1]])
def test_every_model_takes_its_smallest_input_and_answers_for_each_class(name):
    size = max(find_architecture(name).smallest, 32)
    network = build(name, 3, size=size, seed=0).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert count_parameters(network) > 100_000
    assert count_flops(network, size) > 1_000_000


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if ARCHITECTURES[n].smallest > 32])
def test_the_smallest_size_is_the_smallest_that_works(name):
    smallest = ARCHITECTURES[name].smallest
    network = build(name, 2, size=smallest, seed=0).eval()
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (build(name, 2, size=64, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_alexnet_keeps_its_signal_from_a_random_start():
    """PyTorch's own initialisation is the control: there the features fade away."""
    import torchvision

    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    own = build("alexnet", 4, size=64, seed=0).eval()
    torch.manual_seed(0)
    control = torchvision.models.alexnet(weights=None).eval()
    with torch.inference_mode():
        kept, faded = own.features(images).std(), control.features(images).std()
    assert kept > 0.1
    assert faded < kept / 10


def test_a_size_that_is_too_small_is_refused_before_anything_is_built():
    with pytest.raises(InputSizeError, match=r"at least 63 x 63 .* size is 40"):
        check_input_size("alexnet", 40)
    with pytest.raises(InputSizeError, match="resnet18"):
        build("resnet18", 2, size=16, seed=0)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("resnet19", "resnet18"), ("AlexNet", "alexnet"), ("vgg16", "Known")]
)
def test_an_unknown_name_gets_a_suggestion(wrong, hint):
    with pytest.raises(UnknownNameError, match=hint):
        find_architecture(wrong)


def test_an_unknown_name_of_timm_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="resnet18"):
        build("timm:resnet1", 2, size=64, seed=0)


def test_a_start_from_a_file_gives_the_body_and_leaves_another_head(tmp_path: Path):
    donor = build("resnet18", 7, size=64, seed=3)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    child = build("resnet18", 4, size=64, init=str(tmp_path / "w.safetensors"), seed=0)
    assert torch.equal(child.state_dict()["conv1.weight"], donor.state_dict()["conv1.weight"])
    assert child.fc.out_features == 4


def _renamed(w):
    return {f"x.{k}": v for k, v in w.items()}


def _without_first(w):
    return dict(list(w.items())[1:])


def _with_nan(w):
    return {**w, "conv1.weight": w["conv1.weight"] * float("nan")}


def _reshaped(w):
    return {**w, "conv1.weight": w["conv1.weight"][:32].contiguous()}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_renamed, "doesn't have"),
        (_without_first, "no tensors for"),
        (_with_nan, "NaN"),
        (_reshaped, "another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, spoil, why):
    path = tmp_path / "w.safetensors"
    save_file(build("resnet18", 2, size=64, seed=3).state_dict(), path)
    save_file(spoil(load_file(path)), path)
    with pytest.raises(WeightsError, match=why):
        build("resnet18", 2, size=64, init=str(path), seed=0)


def test_a_pickle_is_never_opened(tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="never loads pickled"):
        build("resnet18", 2, size=64, init=str(path), seed=0)
    with pytest.raises(WeightsError, match="no file of weights"):
        build("resnet18", 2, size=64, init="nowhere.safetensors", seed=0)


def test_imagenet_without_a_network_is_one_clear_sentence(tmp_path: Path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(WeightsError, match=r"could not be downloaded .* --init random"):
        build("resnet18", 2, size=64, init="imagenet", seed=0)


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_the_faster_pooling_gives_the_same_to_the_last_bit(name):
    """Of answers and gradients, and nothing but time is what the hooks change."""
    images = torch.rand(4, 3, 64, 64)

    def run(*, faster: bool) -> list[torch.Tensor]:
        network = build(name, 4, size=64, seed=0)
        pools = [m for m in network.modules() if isinstance(m, torch.nn.MaxPool2d)]
        assert all(m._forward_pre_hooks and m._forward_hooks for m in pools)
        for pool in pools if not faster else []:
            pool._forward_pre_hooks.clear()
            pool._forward_hooks.clear()
        torch.manual_seed(0)  # dropout
        logits = network(images)
        logits.square().sum().backward()
        return [logits, *(p.grad for p in network.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(faster=True), run(faster=False), strict=True))


def test_auto_is_bfloat16_for_the_three_families_where_the_processor_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr("leuko.learning.models.has_bfloat16", lambda has=has: has)
        for name in ("resnet18", "efficientnet_b0", "alexnet"):
            assert choose_precision(name, "auto") == ("bfloat16" if has else "float32")
            assert choose_precision(name, "float32") == "float32"
        assert choose_precision("timm:mobilenetv3_small_050", "auto") == "float32"
