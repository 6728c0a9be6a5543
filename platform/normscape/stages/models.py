"""Networks as the stages leave them on disk, read back frozen."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from normscape.config import Config
from normscape.inversion.style_space import StyleSpace, from_tensors
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator
from normscape.training.checkpoint import load_module


def load_auxiliaries(config: Config, folder: Path, device: torch.device) -> dict[str, AuxiliaryNetwork]:
    """Every attribute's frozen network from a finished `auxiliary` folder."""
    networks = {}
    for attribute in config.attributes:
        network = AuxiliaryNetwork.from_config(attribute, config)
        load_module(network, folder / f"{attribute.name}.safetensors")
        networks[attribute.name] = network.to(device).fold()
    return networks


def load_generator(config: Config, folder: Path, device: torch.device) -> Generator:
    """The frozen averaged generator from a finished `gan` folder."""
    generator = Generator.from_config(config)
    load_module(generator, folder / "generator.safetensors")
    freeze(generator.to(device))
    return generator


def load_controllers(config: Config, folder: Path, device: torch.device) -> dict[str, Controller]:
    """The frozen controllers from a finished `controllers` folder."""
    controllers = {}
    for attribute in config.value_attributes:
        controller = Controller(attribute, config.controllers)
        load_module(controller, folder / f"{attribute.name}.safetensors")
        freeze(controller.to(device))
        controllers[attribute.name] = controller
    return controllers


def load_style_space(folder: Path) -> StyleSpace:
    """The whitened style space from a finished `latents` folder."""
    return from_tensors(load_file(folder / "style_space.safetensors"))
