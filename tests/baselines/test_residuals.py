"""Neighbourhoods: means and deviations by hand, and what the worst one is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscape.baselines.residuals import neighbourhood_side, rated_neighbourhoods
from normscape.datasets.anomalies import Scene
from normscape.losses.masked import local_deviation, local_means


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_against_loops(dims: int, side: int) -> None:
    """Means, deviations and shares at every place, with and without a mask."""
    random = torch.Generator().manual_seed(0)
    shape = (5,) * dims
    x = torch.rand(2, 2, *shape, generator=random)
    mask = torch.rand(2, 1, *shape, generator=random) > 0.3
    for counts in (mask, None):
        mean, share = local_means(x, side, counts)
        deviation, _ = local_deviation(x, side, counts)
        for place in np.ndindex(*shape):
            apart = torch.stack([(torch.arange(5) - p).abs().view([-1 if i == j else 1 for j in range(dims)]).expand(shape)
                                 for i, p in enumerate(place)])  # fmt: skip
            weight = ((apart < side / 2).double() + 0.5 * (apart == side / 2)).prod(0)
            for b in range(2):
                inside = weight if counts is None else weight * counts[b, 0]
                assert share[(b, 0, *place)] == pytest.approx(float(inside.sum()) / side**dims)
                if bool(inside.any()):
                    values, inside = x[b].double().flatten(1), (inside / inside.sum()).flatten()
                    expected = values @ inside
                    torch.testing.assert_close(mean[(b, slice(None), *place)].double(), expected, atol=1e-5, rtol=1e-5)
                    variance = ((values - expected[:, None]).square() @ inside).mean()
                    torch.testing.assert_close(deviation[(b, 0, *place)].double(), variance.sqrt(), atol=1e-3, rtol=1e-3)


def test_the_worst_neighbourhood() -> None:
    """A steady difference beats a larger one of changing sign; a single pixel beyond a mask's edge does not count."""
    steady, changing = torch.full((8, 8), 0.5), torch.ones(8, 8)
    changing[::2] *= -1
    worst, lengths = rated_neighbourhoods(torch.stack([steady, changing])[:, None], 4, None)
    assert worst[0] == pytest.approx(0.5)
    assert worst[1] < 0.4
    assert lengths.shape == (2, 1, 8, 8)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :] = True
    difference = torch.zeros(1, 1, 8, 8)
    difference[..., 4:, :] = 9.0
    worst, lengths = rated_neighbourhoods(difference, 3, mask)
    assert worst.item() == 0.0
    assert bool((lengths == 0).all())


def test_colours_count_whole() -> None:
    """One channel of three: its square, averaged over the channels."""
    difference = torch.zeros(1, 3, 6, 6)
    difference[:, 1] = 3.0
    assert rated_neighbourhoods(difference, 3, None)[0].item() == pytest.approx(3**0.5)


def test_sides() -> None:
    """Millimetres where there are any, else pixels; never larger than the image."""
    brain, picture = Scene(dims=3, spacing_mm=2.0), Scene(dims=2, spacing_mm=None)
    assert neighbourhood_side(None, brain, 16) == 4
    assert neighbourhood_side(None, Scene(dims=3, spacing_mm=1.0), 32) == 8
    assert neighbourhood_side(None, picture, 32) == 4
    assert neighbourhood_side(None, picture, 8) == 2
    assert neighbourhood_side(6.0, brain, 16) == 3
    assert neighbourhood_side(0.2, brain, 16) == 1
    assert neighbourhood_side(99.0, picture, 16) == 16
    assert neighbourhood_side(None, brain, 16, scale=0.75) == neighbourhood_side(None, picture, 32, scale=0.75) == 3
