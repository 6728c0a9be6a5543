"""What counts under a mask: means, worst places and neighbourhoods, one value a sample and never NaN."""

from __future__ import annotations

import pytest
import torch

from normscape.losses.masked import (
    QUIET,
    as_mask,
    neighbourhoods,
    resampled,
    weighted_mean,
    within,
    worst,
    worst_share,
    worst_sides,
)
from normscape.losses.reconstruction import feature_residuals, pixel_residual


def test_pixels_outside_of_the_mask_do_not_count() -> None:
    """A difference of 1 outside changes nothing; one of 0.5 inside counts whole; an empty mask gives 0."""
    a, b = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    mask[:2, :, :2] = True
    b[0, :, 2:], b[1], b[2] = 1.0, 0.5, 9.0
    assert pixel_residual(a, b, "l1", mask).tolist() == [0.0, 0.5, 0.0]
    assert pixel_residual(a, b, "l2", mask).tolist() == [0.0, 0.25, 0.0]


def test_a_full_mask_equals_none() -> None:
    """Every function gives the same with a mask of ones as without one."""
    torch.manual_seed(0)
    a, b = torch.rand(3, 2, 6, 6, 6), torch.rand(3, 2, 6, 6, 6)
    full = torch.ones(3, 1, 6, 6, 6, dtype=torch.bool)
    flat, ones = (a - b).abs().flatten(1), torch.ones(3, 432)
    torch.testing.assert_close(pixel_residual(a, b, "l1", full), pixel_residual(a, b, "l1"))
    torch.testing.assert_close(weighted_mean(flat, ones), weighted_mean(flat, None))
    assert torch.equal(worst(flat, ones), worst(flat, None))
    torch.testing.assert_close(worst_share(flat, ones > 0, 1), worst_share(flat, None, 1))
    means, share = neighbourhoods(a - b, 3, full)
    torch.testing.assert_close(means, neighbourhoods(a - b, 3)[0])
    assert share is not None
    assert bool((share == 1).all())
    torch.testing.assert_close(feature_residuals([a], [b], full)[0], feature_residuals([a], [b])[0])


def test_the_worst_place_has_to_be_in_the_brain() -> None:
    """Places up to one half do not count, unless there are no others; with none at all the worst is 0."""
    x = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0], [1.0, 2.0, 9.0]])
    weight = torch.tensor([[1.0, 0.6, 0.5], [0.3, 0.3, 0.1], [0.0, 0.0, 0.0]])
    assert worst(x, weight).tolist() == [2.0, 2.0, 0.0]


def test_the_worst_share_takes_its_own_number_of_places() -> None:
    """One percent of each sample's brain, whatever the others' brains; at least one place."""
    x = torch.arange(400.0).expand(3, 400)
    mask = torch.zeros(3, 400, dtype=torch.bool)
    mask[0, :200] = mask[1, :10] = True
    together = worst_share(x, mask, 1)
    assert together.tolist() == [198.5, 9.0, 0.0]
    assert torch.equal(together[1:2], worst_share(x[1:2], mask[1:2], 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_coarse_places_hold_shares(dims: int) -> None:
    """A mask of half an image, resampled to two places a side, gives zeros and ones; to one place, one half."""
    mask = torch.zeros(1, 1, *(8,) * dims, dtype=torch.bool)
    mask[:, :, :4] = True
    coarse = resampled(mask, (2,) * dims)
    assert coarse is not None
    assert coarse[0].tolist() == [1.0] * 2 ** (dims - 1) + [0.0] * 2 ** (dims - 1)
    one = resampled(mask, (1,) * dims)
    assert one is not None
    assert one.item() == 0.5


def test_neighbourhoods_average_what_is_in_the_brain() -> None:
    """At the border the mean is over the brain alone; opposite signs cancel."""
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :3] = True
    difference = torch.zeros(1, 1, 4, 4)
    difference[..., 2] = 1.0
    means, share = neighbourhoods(difference, 2, mask)
    assert share is not None
    assert means.view(3, 3)[0].tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-5)
    assert share.view(3, 3)[0].tolist() == [1.0, 1.0, 0.5]


def test_what_lies_in_a_texture_weighs_less() -> None:
    """At a standard deviation of QUIET half; in a flat place whole; what lies outside of the mask is no texture."""
    difference, texture = torch.full((1, 2, 4, 8), 0.5), torch.zeros(1, 2, 4, 8)
    texture[..., :4] = torch.tensor([QUIET, -QUIET]).repeat(2)  # the left half; both channels
    means, _ = neighbourhoods(difference, 4, texture=texture)
    assert means[0, [0, 4]].tolist() == pytest.approx([0.25, 0.5], abs=1e-5)
    mask = torch.ones(1, 1, 4, 8, dtype=torch.bool)
    mask[..., 4:] = False
    texture[..., 4:] = 9.0
    masked, share = neighbourhoods(difference * mask, 4, mask, texture=texture)
    assert share is not None
    inside = share[0] > 0
    assert masked[0, inside].max() <= 0.5
    assert masked[0, 0].item() == pytest.approx(0.25, abs=1e-5)


def test_masks_of_any_type_become_booleans() -> None:
    """Floats count above one half; outside of a mask the second image is taken."""
    mask = as_mask(torch.tensor([0.0, 0.5, 0.6, 1.0]).view(1, 1, 2, 2), torch.device("cpu"))
    assert mask is not None
    assert mask.flatten().tolist() == [False, False, True, True]
    mixed = within(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), mask)
    assert mixed.sum((2, 3)).tolist() == [[2.0, 2.0, 2.0]]
    assert as_mask(None, torch.device("cpu")) is None


@pytest.mark.parametrize("dims", [2, 3])
def test_both_sides_of_zero(dims: int) -> None:
    """A cube of -3 and one of +2, each a neighbourhood wide: both are found; where the mask leaves one out, its side is 0."""
    x = torch.zeros(1, 1, *(8,) * dims)
    x[(0, 0, *(slice(0, 2),) * dims)] = -3.0
    x[(0, 0, *(slice(4, 6),) * dims)] = 2.0
    low, high = worst_sides(x, 2, None)
    assert (float(low), float(high)) == (3.0, 2.0)
    low, high = worst_sides(x, 4, None)
    assert (float(low), float(high)) == pytest.approx((3.0 / 2**dims, 2.0 / 2**dims))
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[(0, 0, *(slice(0, 3),) * dims)] = False
    low, high = worst_sides(torch.where(mask, x, 0.0), 2, mask)
    assert (float(low), float(high)) == (0.0, 2.0)
