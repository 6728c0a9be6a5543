"""Known values of an attribute: in their unit, on the scale from 0 to 1, and as latents."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscape.config import AttributeConfig
from normscape.networks.layers import EqualizedLinear

HALF_WAVES = 4
"""Half waves over a value's range that its embedding sees."""
GRID_FEATURES = 32
"""Learned features at a node of a grid."""
GRID_LR_MULTIPLIER = 10.0
"""Learning-rate multiplier of the grids: few images lie near a node, so its features have to move fast."""


def normalize_value(attribute: AttributeConfig, value: Tensor) -> Tensor:
    """A value in its unit to the normalised scale."""
    return (value - attribute.value_min) / (attribute.value_max - attribute.value_min)


def centred_value(attribute: AttributeConfig, value: Tensor) -> Tensor:
    """A value in its unit to -1 at the lower end of the range, 1 at the upper one."""
    return normalize_value(attribute, value) * 2 - 1


def denormalize_value(attribute: AttributeConfig, value: Tensor) -> Tensor:
    """A normalised value to the attribute's unit."""
    return value * (attribute.value_max - attribute.value_min) + attribute.value_min


class ValueGrid(nn.Module):
    """Learned features at the nodes of a regular grid over the range, interpolated between them (Müller et al. 2022).

    Args:
        nodes: along each axis, the ends of the range among them.
        components: of a value, 1 to 3.
    """

    def __init__(self, nodes: int, components: int) -> None:
        super().__init__()
        self.components = components
        sides = (nodes,) * components if components > 1 else (1, nodes)  # images have at least two axes
        self.features = nn.Parameter(torch.randn(1, GRID_FEATURES, *sides) / GRID_LR_MULTIPLIER)

    def forward(self, position: Tensor) -> Tensor:
        """Values `(B, D)` from -1 to 1 over the range to features `(B, GRID_FEATURES)`; beyond the range those of its border."""
        place = position.flip(1)  # the last axis comes first
        if self.components == 1:
            place = torch.cat([place, torch.zeros_like(place)], dim=1)
        place = place.view(1, -1, *(1,) * (place.shape[1] - 1), place.shape[1])
        found = F.grid_sample(self.features * GRID_LR_MULTIPLIER, place, padding_mode="border", align_corners=True)
        return found.flatten(1).view(GRID_FEATURES, -1).T


class ValueEmbedding(nn.Module):
    """A known value to its latents z^k: half waves over its range (Tancik et al. 2020), learned grids, and one hidden layer.

    Args:
        attribute: whose value it is.
        hidden: width of the hidden layer.
    """

    def __init__(self, attribute: AttributeConfig, *, hidden: int) -> None:
        super().__init__()
        self.attribute = attribute
        self.grids = nn.ModuleList(ValueGrid(nodes, attribute.output_dim) for nodes in attribute.grids)
        seen = attribute.output_dim * (1 + 2 * HALF_WAVES) + GRID_FEATURES * len(attribute.grids)
        self.hidden = EqualizedLinear(seen, hidden, activate=True)
        self.out = EqualizedLinear(hidden, attribute.latent_dim)

    def forward(self, value: Tensor) -> Tensor:
        """Values `(B, D)` in the attribute's unit to latents `(B, d)`."""
        position = normalize_value(self.attribute, value)
        waves = position[..., None] * (math.pi * torch.arange(1, HALF_WAVES + 1, device=value.device))
        centred = centred_value(self.attribute, value)
        seen = torch.cat([centred[..., None], waves.sin(), waves.cos()], dim=2).flatten(1)
        latents: Tensor = self.out(self.hidden(torch.cat([seen, *(grid(centred) for grid in self.grids)], dim=1)))
        return latents
