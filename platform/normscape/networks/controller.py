"""Controllers: an attribute's value to its style sub-vector (thesis II.A.2; Shoshan et al. 2021)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from normscape.config import AttributeConfig, Config, ControllerConfig
from normscape.networks.auxiliary import freeze
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator, SubspaceMapping
from normscape.networks.layers import EqualizedLinear
from normscape.networks.values import ValueEmbedding, centred_value


class Controller(nn.Module):
    """From a value in its unit to w^k.

    Args:
        attribute: the controlled attribute.
    """

    def __init__(self, attribute: AttributeConfig) -> None:
        super().__init__()
        self.attribute = attribute

    @staticmethod
    def from_config(attribute: AttributeConfig, config: Config) -> Controller:
        """The kind of controller that a configuration describes, with random weights."""
        if config.controllers.source == "encoder":
            return EncodedController(attribute, config)
        return LearnedController(attribute, config.controllers)


class LearnedController(Controller):
    """The thesis's: a fully connected network, to be trained on generated images.

    Args:
        attribute: the controlled attribute.
        shape: layers and width.
    """

    def __init__(self, attribute: AttributeConfig, shape: ControllerConfig) -> None:
        super().__init__(attribute)
        widths = [attribute.output_dim, *[shape.hidden] * (shape.layers - 1), attribute.latent_dim]
        self.layers = nn.Sequential(
            *(
                EqualizedLinear(a, b, lr_multiplier=shape.lr_multiplier, activate=i < shape.layers - 1)
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            )
        )

    def forward(self, value: Tensor) -> Tensor:
        """Values `(B, D)` in the attribute's unit to styles `(B, d)`."""
        # centred, so that the first layer sees both signs
        result: Tensor = self.layers(centred_value(self.attribute, value))
        return result


class EncodedController(Controller):
    """Beyond the thesis: what encoder and mapping stack, trained on images with known values, make of a value. Nothing is fitted.

    Args:
        attribute: the controlled attribute.
        config: widths and layers.
    """

    def __init__(self, attribute: AttributeConfig, config: Config) -> None:
        super().__init__(attribute)
        self.is_place = config.generator.atlas_channels > 0 and attribute == config.position
        self.embedding = ValueEmbedding(attribute, hidden=config.encoder.hidden)
        self.mapping = SubspaceMapping(
            {attribute.name: attribute.latent_dim},
            layers=config.generator.mapping_layers,
            lr_multiplier=config.generator.mapping_lr_multiplier,
        )

    @classmethod
    def of(cls, attribute: AttributeConfig, config: Config, encoder: Encoder, generator: Generator) -> EncodedController:
        """Frozen, with copies of the weights of the averaged networks."""
        controller = cls(attribute, config)
        controller.embedding.load_state_dict(encoder.values[attribute.name].state_dict())
        controller.mapping.stacks[attribute.name].load_state_dict(generator.mapping.stacks[attribute.name].state_dict())
        freeze(controller.to(generator.constant.device))
        return controller

    def forward(self, value: Tensor) -> Tensor:
        """Values `(B, D)` in the attribute's unit to styles `(B, d)`."""
        style = self.mapping.stack(self.attribute.name, self.embedding(value))
        if self.is_place:
            place = centred_value(self.attribute, value)
            style = torch.cat([place, style[:, place.shape[1] :]], dim=1)
        return style
