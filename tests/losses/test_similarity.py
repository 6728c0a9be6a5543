"""Structural similarity: the same numbers as MONAI's, a sample at a time, under a mask."""

from __future__ import annotations

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from normscape.losses.similarity import DATA_RANGE, SIGMA, WINDOW, structural_similarity


def images(dims: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches that resemble each other more or less."""
    random = torch.Generator().manual_seed(0)
    a, noise = torch.rand(2, 4, channels, *(12,) * dims, generator=random) * 2 - 1
    share = torch.tensor([0.0, 0.1, 0.5, 1.0]).view(-1, 1, *(1,) * dims)
    return a, (1 - share) * a + share * noise


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 1)])
def test_it_is_monais_number(dims: int, channels: int) -> None:
    """Value and gradient agree with the reference implementation, a convolution with the whole window."""
    a, b = images(dims, channels)
    a.requires_grad_()
    ours = structural_similarity(a, b)
    reference, _ = compute_ssim_and_cs(a, b, dims, [WINDOW] * dims, [SIGMA] * dims, DATA_RANGE)
    theirs = reference.flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours[0].item() == pytest.approx(1.0)
    assert (ours.diff() < 0).all()
    gradients = [torch.autograd.grad(value.sum(), a, retain_graph=True)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_windows_outside_of_the_mask_do_not_count() -> None:
    """Differences that no window in the mask sees change nothing; an empty mask gives 1; a full one changes nothing."""
    a, b = images(3, 1)
    mask = torch.ones(4, 1, 12, 12, 12, dtype=torch.bool)
    torch.testing.assert_close(structural_similarity(a, b, mask), structural_similarity(a, b))
    mask[:, :, 1:] = False  # only the first window along this axis sees it
    inside = structural_similarity(a, b, mask)
    b[:, :, WINDOW:] = 0.7
    torch.testing.assert_close(structural_similarity(a, b, mask), inside)
    assert structural_similarity(a, b, torch.zeros_like(mask)).tolist() == [1.0] * 4
