"""Layers that give the same answers as PyTorch's and whose gradients take less time.

Knows single layers; knows nothing of networks' names, of images or of training. It needs PyTorch
to be imported, so it is itself imported only by what builds a network.

On a processor PyTorch's own are slow in five places, of which EfficientNet has many: the gradient
of a depthwise convolution's weights where its kernel is wider than 3 or than the picture; that of
its input where it halves a picture in bfloat16; that of the mean over a picture, whose channels
come in another order than all that it is added to; SiLU in place, which copies its input first;
and pooling, which ResNet and AlexNet have (``results/training_speed.md``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def quicken(network: nn.Module) -> None:
    """Exchanges a network's slow layers, in place; weights and their names stay.

    Forward nothing changes, to the last bit. Backward the weights' gradients of depthwise
    convolutions are other sums of the same products.

    Args:
        network: Anything; what isn't known to be slow stays as it is.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and _is_depthwise(layer):
                setattr(parent, name, DepthwiseConv2d(layer))
            elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalMean2d())
            elif isinstance(layer, nn.SiLU):
                layer.inplace = False
            elif isinstance(layer, nn.MaxPool2d):
                layer.register_forward_pre_hook(_put_channels_last)
                layer.register_forward_hook(_put_channels_first)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.bias is None
        and layer.padding_mode == "zeros"
        and layer.dilation == (1, 1)
        and not isinstance(layer.padding, str)
        and len({*layer.kernel_size}) == len({*layer.stride}) == len({*layer.padding}) == 1
        and layer.kernel_size[0] >= 3
    )


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, (B, C, H, W) to (B, C, H', W')."""

    def __init__(self, layer: nn.Conv2d) -> None:
        """Takes over a layer's weights: the parameter itself, not a copy."""
        super().__init__(
            layer.in_channels, layer.out_channels, layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride, padding=layer.padding,  # type: ignore[arg-type]
            groups=layer.groups, bias=False, device="meta",
        )  # fmt: skip
        self.weight = layer.weight
        self.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        if not torch.is_grad_enabled() or not self.training or x.device.type != "cpu":
            return super().forward(x)  # what is exported or explained is PyTorch's own layer
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        result: torch.Tensor = _Depthwise.apply(  # type: ignore[no-untyped-call]
            x, weight, self.stride[0], self.padding[0]
        )
        return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            # Where the result is smaller, bfloat16 takes many times as long as float32.
            dtype = torch.float32 if ctx.stride > 1 else x.dtype
            of_x = _differentiate(
                gradient.to(dtype), x.to(dtype), weight.to(dtype), ctx.stride, ctx.padding, 0
            ).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = _differentiate_weight(gradient, x, weight, ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def _differentiate_weight(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """The kernel in pieces of 3 × 3, at which oneDNN is fast; the last ones overlap."""
    side = weight.shape[-1]
    if side == 3 and min(x.shape[2:]) >= 3:  # slow too where the picture is smaller
        return _differentiate(gradient, x, weight, stride, padding, 1)
    order = torch.channels_last if _has_channels_last(x) else torch.contiguous_format
    padded = functional.pad(x, [padding] * 4)
    height, width = ((n - 1) * stride + 3 for n in gradient.shape[2:])
    piece = weight[..., :3, :3].contiguous(memory_format=order)
    result = torch.empty_like(weight)
    starts = [*range(0, side - 3, 3), side - 3]
    for i in starts:
        for j in starts:
            seen = padded[..., i : i + height, j : j + width].contiguous(memory_format=order)
            result[..., i : i + 3, j : j + 3] = _differentiate(gradient, seen, piece, stride, 0, 1)
    return result


def _differentiate(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    padding: int,
    which: int,
) -> torch.Tensor:
    """PyTorch's own gradient of a depthwise convolution: of its input (0) or its weights (1)."""
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0],
        len(weight), [which == 0, which == 1, False],
    )[which]  # fmt: skip
    return found


def _has_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class GlobalMean2d(nn.AdaptiveAvgPool2d):
    """The mean over a picture, (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        if not torch.is_grad_enabled() or not self.training or x.device.type != "cpu":
            return super().forward(x)
        result: torch.Tensor = _GlobalMean.apply(x)  # type: ignore[no-untyped-call]
        return result


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return functional.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        height, width = ctx.shape[2:]
        spread: torch.Tensor = (gradient / (height * width)).expand(ctx.shape)
        return spread


# PyTorch pools an image whose channels lie together with vector instructions, and any other one
# number at a time: with the two conversions it takes a third of the time, to the same last bit.
def _put_channels_last(_layer: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].contiguous(memory_format=torch.channels_last)


def _put_channels_first(
    _layer: nn.Module, _inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    return output.contiguous()
