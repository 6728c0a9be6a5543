"""Known values: the scale they are put on, and the latents that their embedding gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import AttributeConfig, Config
from normscape.networks.values import GRID_LR_MULTIPLIER, ValueEmbedding, ValueGrid, denormalize_value, normalize_value


def test_a_value_returns_from_the_normalised_scale(toy_config: Callable[..., Config]) -> None:
    """0 and 1 are the ends of the range."""
    angle = toy_config().attributes[1]
    values = torch.tensor([[angle.value_min], [angle.value_max], [12.5]])
    normal = normalize_value(angle, values)
    assert normal[:2, 0].tolist() == [0.0, 1.0]
    torch.testing.assert_close(denormalize_value(angle, normal), values)


@pytest.mark.parametrize("components", [1, 2, 3])
def test_a_grid_gives_its_nodes_features_and_the_mean_between_them(components: int) -> None:
    """At a node its own features, in the middle of two nodes their mean, beyond the range those of the border."""
    torch.manual_seed(0)
    grid = ValueGrid(3, components)
    nodes = grid.features[0].flatten(1) * GRID_LR_MULTIPLIER  # (features, nodes)
    middle = nodes.shape[1] // 2
    first = torch.full((components,), -1.0)
    beside = torch.zeros(components)
    beside[-1] = 0.5  # half way from the middle node to the next along the last axis
    found = grid(torch.stack([first, torch.zeros(components), beside, first * 2]))
    expected = [nodes[:, 0], nodes[:, middle], nodes[:, middle : middle + 2].mean(1), nodes[:, 0]]
    torch.testing.assert_close(found, torch.stack(expected))


def test_with_a_grid_one_place_is_learnt_without_another(toy_config: Callable[..., Config]) -> None:
    """A gradient at one end of the range leaves the features of the other end as they are."""
    angle: AttributeConfig = toy_config().attributes[1].model_copy(update={"grids": (5,)})
    embedding = ValueEmbedding(angle, hidden=8)
    embedding(torch.tensor([[angle.value_max]])).sum().backward()
    gradient = embedding.grids[0].features.grad
    assert gradient is not None
    assert gradient[..., -1].abs().min() > 0
    assert gradient[..., :-1].abs().max() == 0
