"""Controllers: an attribute's value to its style sub-vector (thesis II.A.2; Shoshan et al. 2021)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from normscape.config import AttributeConfig, ControllerConfig
from normscape.networks.auxiliary import normalize_value
from normscape.networks.layers import EqualizedLinear


class Controller(nn.Module):
    """Fully connected network from a value in its unit to w^k.

    Args:
        attribute: the controlled attribute.
        shape: layers and width.
    """

    def __init__(self, attribute: AttributeConfig, shape: ControllerConfig) -> None:
        super().__init__()
        self.attribute = attribute
        widths = [attribute.output_dim, *[shape.hidden] * (shape.layers - 1), attribute.latent_dim]
        self.layers = nn.Sequential(
            *(
                EqualizedLinear(a, b, lr_multiplier=shape.lr_multiplier, activate=i < shape.layers - 1)
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            )
        )

    def forward(self, value: Tensor) -> Tensor:
        """Values `(B, D)` in the attribute's unit to styles `(B, d)`."""
        # centred, so that the first layer sees both signs: [0, 1] becomes [-1, 1]
        result: Tensor = self.layers(normalize_value(self.attribute, value) * 2 - 1)
        return result
