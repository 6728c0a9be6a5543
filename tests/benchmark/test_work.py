"""Counted operations equal those counted by hand, backward and double backward included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normscape.benchmark import work
from normscape.benchmark.work import count_operations, matrix_product
from normscape.losses.adversarial import r1_penalty
from normscape.networks.layers import EqualizedConv, blur

CPU = torch.device("cpu")


def test_a_linear_layer() -> None:
    """Two operations a weight and row; its backward pass to weights and inputs costs twice as many."""
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    forward = 2 * 3 * 5 * 7
    assert count_operations(lambda: layer(x)) == forward
    assert count_operations(lambda: layer(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolution(dims: int) -> None:
    """4 images of 8^d voxels, 3 to 5 channels, 3^d weights; channels last counts the same."""
    conv = F.conv2d if dims == 2 else F.conv3d
    x, weight = torch.randn(4, 3, *(8,) * dims, requires_grad=True), torch.randn(5, 3, *(3,) * dims, requires_grad=True)
    forward = 2 * 4 * 8**dims * 3 * 5 * 3**dims
    assert count_operations(lambda: conv(x, weight, padding=1)) == forward
    assert count_operations(lambda: conv(x, weight, padding=1).sum().backward()) == 3 * forward
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert count_operations(lambda: conv(x.to(memory_format=last), weight, padding=1)) == forward


def test_the_double_backward_of_r1() -> None:
    """Of one convolution, in units of its forward pass: forward 1, gradient of the images 1; of the penalty's backward pass,
    through that gradient to the weights and to the outputs' gradient 2, and through the forward pass to the weights 1."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight, padding=1).square().flatten(1).sum(1, keepdim=True)

    network, x = Square(), torch.randn(4, 3, 8, 8)
    forward = 2 * 4 * 8**2 * 3 * 5 * 3**2

    def penalise() -> None:
        images = x.clone().requires_grad_()
        r1_penalty(network(images), images).sum().backward(inputs=[network.weight])

    assert count_operations(penalise) == 5 * forward


def test_filters_count_as_nothing() -> None:
    """The blur is made of additions: in front of a down-sampling convolution only the convolution is work."""
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    assert count_operations(lambda: blur(x, padding=2).sum().backward()) == 0
    layer = EqualizedConv(2, 4, 6, 3, down=True)
    assert count_operations(lambda: layer(x)) == 2 * 2 * 4 * 4 * 4 * 6 * 3**2


def test_the_count_leaves_gradients_as_they_are() -> None:
    """An action computes the same under the counter."""
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    gradients: list[torch.Tensor] = []

    def action() -> None:
        gradients.append(torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])

    action()
    count_operations(action)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 n^3 operations, and the counter agrees."""
    monkeypatch.setattr(work, "PRODUCT_SIDES", {"cpu": 16})
    side, operations, timing = matrix_product(CPU, repeats=2)
    a = torch.rand(16, 16)
    assert (side, operations) == (16, 2 * 16**3)
    assert count_operations(lambda: a @ a) == operations
    assert timing.repeats == 2
