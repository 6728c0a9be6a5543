"""Building blocks equal the straightforward forms that they replace, in two and three dimensions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from normscape.networks.layers import (
    SQRT2,
    EqualizedConv,
    EqualizedLinear,
    ModulatedConv,
    blur,
    blur_down,
    minibatch_deviation,
    upsample,
)

CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def blur_kernel(dims: int) -> torch.Tensor:
    """The [1, 3, 3, 1] / 8 filter in all directions."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    return kernel[None, None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_blur_is_the_convolution_with_its_kernel(dims: int, padding: int) -> None:
    """Shifted additions give what a convolution with the separable kernel gives."""
    x = torch.randn(2, 3, *(6,) * dims, dtype=torch.float64)
    expected = CONV[dims](x.flatten(0, 1)[:, None], blur_kernel(dims), padding=padding) * 2.5
    torch.testing.assert_close(blur(x, padding=padding, gain=2.5), expected.reshape(2, 3, *expected.shape[2:]))


@pytest.mark.parametrize("padding", [1, 2])
def test_blur_has_exact_first_and_second_gradients(padding: int) -> None:
    """R1 and the path length penalty differentiate through the blur twice."""
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: blur(t, padding=padding), x)
    assert torch.autograd.gradgradcheck(lambda t: blur(t, padding=padding).square(), x)


def per_sample_convolution(layer: ModulatedConv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The paper's form: every sample has its own modulated and demodulated weights."""
    dims = layer.dims
    results = []
    for sample, style in zip(x, layer.affine(w), strict=True):
        weight = layer.weight * layer.weight_gain * style.view(1, -1, *(1,) * dims)
        if layer.demodulate:
            weight = weight * torch.rsqrt(weight.square().flatten(1).sum(1) + 1e-8).view(-1, *(1,) * (dims + 1))
        if layer.up:
            full = CONV_TRANSPOSE[dims](sample[None], weight.transpose(0, 1), stride=2)
            channels = full.shape[1]
            kernel = blur_kernel(dims).to(full).expand(channels, 1, *(4,) * dims) * 2**dims
            results.append(CONV[dims](full, kernel, padding=1, groups=channels))
        else:
            results.append(CONV[dims](sample[None], weight, padding=layer.kernel // 2))
    return torch.cat(results) * layer.gain


@pytest.mark.parametrize("dims", [2, 3])
def test_down_sampling_blur_is_every_second_place_of_the_blur(dims: int) -> None:
    """The same numbers, and exact first and second gradients through its adjoint."""
    x = torch.randn(2, 2, *(6,) * dims, dtype=torch.double, requires_grad=True)
    every_second = (..., *(slice(None, None, 2),) * dims)
    assert torch.equal(blur_down(x), blur(x, padding=1)[every_second])
    assert torch.autograd.gradcheck(blur_down, x)
    assert torch.autograd.gradgradcheck(lambda t: blur_down(t).square(), x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulation_equals_per_sample_weights(dims: int, up: bool, demodulate: bool) -> None:
    """Scaling input and output of one convolution equals the paper's per-sample weights."""
    torch.manual_seed(0)
    layer = ModulatedConv(dims, 4, 5, 3, 7, up=up, demodulate=demodulate, gain=1.3).double()
    x, w = torch.randn(3, 4, *(4,) * dims).double(), torch.randn(3, 7).double()
    torch.testing.assert_close(layer(x, w), per_sample_convolution(layer, x, w))
    assert layer(x, w).shape[2:] == (8 if up else 4,) * dims


@pytest.mark.parametrize("dims", [2, 3])
def test_down_sampling_equals_blur_then_take_every_second(dims: int) -> None:
    """A strided convolution after the blur equals the full convolution, thinned out."""
    torch.manual_seed(0)
    layer = EqualizedConv(dims, 2, 3, 3, down=True).double()
    x = torch.randn(2, 2, *(8,) * dims).double()
    full = CONV[dims](blur(x, padding=2), layer.weight * layer.weight_gain, layer.bias * layer.bias_gain)
    thinned = full[(slice(None), slice(None), *(slice(None, None, 2),) * dims)]
    torch.testing.assert_close(layer(x), F.leaky_relu(thinned, 0.2))
    assert layer(x).shape == (2, 3, *(4,) * dims)


def test_equalised_layers_keep_unit_variance() -> None:
    """Standard normal inputs leave an activated layer with a second moment of about one."""
    torch.manual_seed(0)
    x = torch.randn(4096, 64)
    y = EqualizedLinear(64, 64, lr_multiplier=0.01, activate=True)(x)
    assert y.square().mean().item() == pytest.approx(1.04, abs=0.1)  # (1 + 0.2^2) / 2 * sqrt(2)^2
    assert math.isclose(SQRT2**2, 2)


def test_upsample_keeps_constants_and_doubles_sides() -> None:
    """Linear interpolation of a constant is the constant."""
    for dims in (2, 3):
        assert torch.equal(upsample(torch.ones(1, 1, *(4,) * dims)), torch.ones(1, 1, *(8,) * dims))


def test_minibatch_deviation_compares_the_samples_of_a_group() -> None:
    """Equal samples have no deviation; the channel is one number a group."""
    x = torch.randn(1, 3, 4, 4).repeat(8, 1, 1, 1)
    assert minibatch_deviation(x, 4)[:, 3].max().item() < 2e-4
    x[0] += 1
    channel = minibatch_deviation(x, 4)[:, 3]
    assert channel[0, 0, 0] > 1e-2
    assert torch.equal(channel[0], channel[2])
    assert channel[1].max() < 2e-4


@pytest.mark.parametrize("channels", [2, 4, 8])
@pytest.mark.parametrize("kernel", [1, 3])
def test_weight_gradients_do_not_depend_on_the_layout(channels: int, kernel: int) -> None:
    """Channels last gives the gradients of the default layout, for few channels too (a trap of PyTorch 2.13 on CPU)."""
    torch.manual_seed(0)
    layer = EqualizedConv(2, channels, 8, kernel, down=True, bias=False)
    x = torch.randn(16, channels, 16, 16)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer.zero_grad()
        layer(x.contiguous(memory_format=layout)).square().mean().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
