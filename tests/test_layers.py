"""Layers with quicker gradients: the same answers, the same gradients, the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leuko.learning.layers import DepthwiseConv2d, quicken
from leuko.learning.models import build


def _differentiate(layer: nn.Module, x: torch.Tensor, g: torch.Tensor, dtype: torch.dtype | None):
    """Answer, and the gradients of input and weights."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = layer(x)
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 12])
def test_depthwise_gradients_are_those_of_double_precision(side, kernel, stride, order):
    draw = torch.Generator().manual_seed(0)
    own = nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24, bias=False)
    own = own.to(memory_format=order)
    x = torch.randn(4, 24, side, side, generator=draw).contiguous(memory_format=order)
    exact = nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24, bias=False).double()
    exact.weight.data.copy_(own.weight.data)
    g = torch.randn(own(x).shape, generator=draw).contiguous(memory_format=order)

    for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 2e-2)):
        own.weight.grad = exact.weight.grad = None
        wanted = _differentiate(exact, x.double(), g.double(), None)
        quick = DepthwiseConv2d(own)
        quick.weight.grad = None
        got = _differentiate(quick, x, g, dtype)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            assert torch.equal(got[0], own(x).detach())
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_a_gradient_is_only_made_where_it_is_needed():
    layer = DepthwiseConv2d(nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False))
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm:mobilenetv3_small_050"])
def test_a_network_answers_and_learns_as_before(name, monkeypatch):
    """Against the same network as its library made it."""
    size = 64
    quick = build(name, 3, size=size, seed=0)
    monkeypatch.setattr("leuko.learning.layers.quicken", lambda network: None)
    own = build(name, 3, size=size, seed=0)
    assert not any(isinstance(m, DepthwiseConv2d) for m in own.modules())
    assert any(isinstance(m, DepthwiseConv2d) for m in quick.modules())
    assert list(own.state_dict()) == list(quick.state_dict())
    pairs = zip(own.state_dict().values(), quick.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    x = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    for network in (own, quick):
        torch.manual_seed(2)  # of dropout
        network.train()(x).square().sum().backward()
    with torch.no_grad():
        assert torch.equal(own.eval()(x), quick.eval()(x))
    # Biases before another normalisation have no gradient but rounding, so it is compared as one.
    gradients = [torch.cat([p.grad.ravel() for p in n.parameters()]) for n in (own, quick)]
    assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_only_depthwise_convolutions_are_exchanged():
    layers = [
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        nn.Conv2d(8, 16, 3, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, dilation=2),
        nn.Conv2d(8, 8, (3, 5), groups=8, bias=False),
        nn.Conv2d(8, 8, 1, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding="same"),
        nn.AdaptiveAvgPool2d(2),
    ]
    network = nn.Sequential(*layers)
    quicken(network)
    assert list(network) == layers


def test_what_is_exchanged_is_still_of_the_kind_that_others_look_for():
    layers = [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.AdaptiveAvgPool2d(1), nn.SiLU()]
    network = nn.Sequential(*layers)
    quicken(network)
    assert isinstance(network[0], DepthwiseConv2d)
    assert network[1] is not layers[1]
    assert all(isinstance(a, type(b)) for a, b in zip(network, layers, strict=True))
