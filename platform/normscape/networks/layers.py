"""Building blocks of StyleGAN2 (Karras et al. 2020) for two and three dimensions.

Up- and down-sampling layers convolve at the low resolution: a stride-2 transposed convolution followed by a
blur, and a blur followed by a stride-2 convolution. Styles scale the input and the output of one convolution
with shared weights, which equals the per-sample weights of the paper and needs no grouped convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
SQRT2 = math.sqrt(2.0)
SLOPE = 0.2


def memory_format(dims: int) -> torch.memory_format:
    """The layout in which convolutions run fastest: channels last."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def full_precision(x: Tensor) -> torch.autocast:
    """An island of float32 within bf16 autocast, for what bf16's eight bits are too few for."""
    return torch.autocast(x.device.type, enabled=False)


def spatial(vector: Tensor, dims: int) -> Tensor:
    """Give `(B, C)` or `(C,)` its singleton spatial axes, to scale or shift `(B, C, *S)`."""
    return vector.reshape(*(vector.shape if vector.ndim == 2 else (1, *vector.shape)), *(1,) * dims)


class _Blur(torch.autograd.Function):
    """Separable [1, 3, 3, 1] / 8 filter; its kernel is symmetric, so it is its own adjoint up to the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int, gain: float) -> Tensor:
        ctx.padding, ctx.gain = padding, gain
        dims = x.ndim - 2
        x = F.pad(x, (padding, padding) * dims)
        for axis in range(2, x.ndim):
            n = x.shape[axis] - 3
            outer = x.narrow(axis, 0, n) + x.narrow(axis, 3, n)
            x = outer.add_(x.narrow(axis, 1, n), alpha=3.0).add_(x.narrow(axis, 2, n), alpha=3.0)
        return x.mul_(gain / 8.0**dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return blur(grad, padding=3 - ctx.padding, gain=ctx.gain), None, None


def blur(x: Tensor, *, padding: int, gain: float = 1.0) -> Tensor:
    """Low-pass filter by [1, 3, 3, 1] along each spatial axis, as shifted additions.

    Args:
        x: `(B, C, *S)`.
        padding: zeros added on both sides, 0 to 3.
        gain: factor of the result.

    Returns:
        `(B, C, *(S + 2 * padding - 3))`.
    """
    result: Tensor = _Blur.apply(x, padding, gain)
    return result


class _BlurDown(torch.autograd.Function):
    """Every second place of the filter of `_Blur`; what lies between is never computed. Its adjoint is `_BlurUp`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1) * (x.ndim - 2))
        for axis in range(2, x.ndim):
            n = x.shape[axis] - 2
            outer = _every_second(x, axis, 0, n) + _every_second(x, axis, 3, n)
            x = outer.add_(_every_second(x, axis, 1, n), alpha=3.0).add_(_every_second(x, axis, 2, n), alpha=3.0)
        return x.mul_(1.0 / 8.0 ** (x.ndim - 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = _BlurUp.apply(grad)
        return result


class _BlurUp(torch.autograd.Function):
    """Zeros between the places, then the filter: each place three parts of its own and one of the neighbour beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            n = x.shape[axis]
            sides = list(x.shape)
            sides[axis] = 2 * n
            wide = torch.empty(sides, dtype=x.dtype, device=x.device, memory_format=memory_format(x.ndim - 2))
            even, odd = _every_second(wide, axis, 0, 2 * n), _every_second(wide, axis, 1, 2 * n)
            even.copy_(x).mul_(3.0)
            odd.copy_(even)
            even.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
            odd.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
            x = wide
        return x.mul_(1.0 / 8.0 ** (x.ndim - 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return blur_down(grad)


def _every_second(x: Tensor, axis: int, first: int, span: int) -> Tensor:
    """The view of every second place along an axis, from `first`, `span / 2` of them."""
    index: list[slice] = [slice(None)] * x.ndim
    index[axis] = slice(first, first + span - 1, 2)
    return x[tuple(index)]


def blur_down(x: Tensor) -> Tensor:
    """Low-pass filter by [1, 3, 3, 1] along each spatial axis, at every second place: `(B, C, *S)` to `(B, C, *(S / 2))`."""
    result: Tensor = _BlurDown.apply(x)
    return result


def upsample(x: Tensor) -> Tensor:
    """Double the sides of `(B, C, *S)`; linear interpolation is the [1, 3, 3, 1] filter with repeated edges."""
    return F.interpolate(x, scale_factor=2, mode=_INTERPOLATION[x.ndim - 2], align_corners=False)


class EqualizedLinear(nn.Module):
    """Linear layer with an equalised learning rate (Karras et al. 2018); its sums keep the weights' precision.

    Args:
        inputs, outputs: widths.
        lr_multiplier: factor of the learning rate.
        bias_init: start value of the bias.
        activate: leaky ReLU times sqrt(2) afterwards.
    """

    def __init__(
        self, inputs: int, outputs: int, *, lr_multiplier: float = 1.0, bias_init: float = 0.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs)` to `(B, outputs)`."""
        # leaky ReLU is positively homogeneous: its gain can scale the small weights instead of the activations
        gain = SQRT2 if self.activate else 1.0
        with full_precision(x):
            x = F.linear(x.to(self.weight.dtype), self.weight * (self.weight_gain * gain), self.bias * (self.bias_gain * gain))
        return F.leaky_relu(x, SLOPE) if self.activate else x


class EqualizedConv(nn.Module):
    """Convolution with an equalised learning rate, optionally down-sampling by two.

    Args:
        dims: spatial dimensions.
        inputs, outputs: channels.
        kernel: side of the kernel, odd.
        down: blur, then convolve with stride 2.
        bias, activate: add a bias; leaky ReLU times sqrt(2) afterwards.
        gain: factor of the result.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        down: bool = False,
        bias: bool = True,
        activate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.dims, self.kernel, self.down, self.activate = dims, kernel, down, activate
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(kernel,) * dims))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        total = gain * (SQRT2 if activate else 1.0)
        self.weight_gain = total / math.sqrt(inputs * kernel**dims)
        self.bias_gain = total

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, *S)` to `(B, outputs, *S)`, or `*(S / 2)` when down-sampling."""
        bias = None if self.bias is None else self.bias * self.bias_gain
        weight = self.weight * self.weight_gain
        if self.down and self.kernel == 1:
            x = _CONV[self.dims](blur_down(x), weight, bias)
        elif self.down:
            x = _CONV[self.dims](blur(x, padding=self.kernel // 2 + 1), weight, bias, stride=2)
        else:
            x = _CONV[self.dims](x, weight, bias, padding=self.kernel // 2)
        return F.leaky_relu_(x, SLOPE) if self.activate else x


class ModulatedConv(nn.Module):
    """Convolution modulated by a style and demodulated (Karras et al. 2020, equations 1 to 3).

    Args:
        dims: spatial dimensions.
        inputs, outputs: channels.
        kernel: side of the kernel, odd.
        style_dim: width of w.
        up: double the resolution.
        demodulate: bring the output back to unit variance.
        gain: factor of the result, folded into the demodulation.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: int,
        style_dim: int,
        *,
        up: bool = False,
        demodulate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.dims, self.kernel, self.up, self.demodulate, self.gain = dims, kernel, up, demodulate, gain
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(kernel,) * dims))
        self.weight_gain = 1.0 / math.sqrt(inputs * kernel**dims)
        self.affine = EqualizedLinear(style_dim, inputs, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`(B, inputs, *S)` and styles `(B, style_dim)` to `(B, outputs, *S)`, or `*(2 S)` when up-sampling."""
        dims = self.dims
        weight = self.weight * self.weight_gain
        style = self.affine(w)
        if self.demodulate:
            with full_precision(x):
                energy = weight.square().flatten(2).sum(2)
                scale = self.gain * torch.rsqrt(style.square() @ energy.t() + 1e-8)
        x = x * spatial(style.to(x.dtype), dims)
        if self.up:
            x = _CONV_TRANSPOSE[dims](x, weight.transpose(0, 1), stride=2)
            x = blur(x, padding=1, gain=2.0**dims)
        else:
            x = _CONV[dims](x, weight, padding=self.kernel // 2)
        return x * spatial(scale.to(x.dtype), dims) if self.demodulate else x * self.gain


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append the mean standard deviation over groups of samples as a channel (Karras et al. 2018).

    Args:
        x: `(B, C, *S)`.
        group: samples a group; must divide B.

    Returns:
        `(B, C + 1, *S)`.
    """
    batch, _, *sides = x.shape
    grouped = (x.float() if x.dtype == torch.bfloat16 else x).reshape(group, batch // group, -1)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean(1)
    channel = deviation.repeat(group).reshape(batch, 1, *(1,) * len(sides)).expand(batch, 1, *sides)
    return torch.cat([x, channel.to(x.dtype)], dim=1)
