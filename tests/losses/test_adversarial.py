"""Adversarial losses and regularisers against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from normscape.losses.adversarial import discriminator_loss, generator_loss, path_lengths, r1_penalty


def test_losses_at_zero_logits() -> None:
    """At logits of 0 D pays 2 log 2 and G pays log 2."""
    zero = torch.zeros(4)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))


def test_r1_of_a_quadratic() -> None:
    """D(x) = sum of x^2 / 2 has the gradient x, so R1 is the mean squared norm."""
    x = torch.randn(5, 2, 3, 3, requires_grad=True)
    penalty = r1_penalty(x.square().sum((1, 2, 3)) / 2, x)
    assert penalty.item() == pytest.approx(x.square().sum((1, 2, 3)).mean().item(), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() / 5)


def test_path_length_of_a_linear_generator() -> None:
    """For G(w) = a w repeated over S pixels, the expected squared length is a^2 (unit noise, divided by sqrt(S))."""
    w = torch.randn(20_000, 1, requires_grad=True)
    lengths = path_lengths((3.0 * w)[:, :, None, None].expand(-1, 1, 4, 4), w, torch.randn(20_000, 1, 4, 4))
    assert lengths.square().mean().item() == pytest.approx(9.0, rel=0.05)
