"""Networks as the stages leave them on disk, read back frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from normscape.config import Config
from normscape.errors import CheckpointError
from normscape.inversion.normals import Normals
from normscape.inversion.projector import Projector
from normscape.inversion.style_space import StyleSpace, from_tensors
from normscape.losses.reconstruction import perceptual_features
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator
from normscape.training.checkpoint import load_module

NORMALS_NAME = "normals.safetensors"


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
        controller = Controller.from_config(attribute, config)
        load_module(controller, folder / f"{attribute.name}.safetensors")
        freeze(controller.to(device))
        controllers[attribute.name] = controller
    return controllers


def load_discriminator(config: Config, folder: Path, device: torch.device) -> Discriminator:
    """The frozen discriminator from a finished `gan` folder."""
    discriminator = Discriminator.from_config(config)
    load_module(discriminator, folder / "discriminator.safetensors")
    freeze(discriminator.to(device))
    return discriminator


def load_encoder(config: Config, folder: Path, device: torch.device) -> Encoder | None:
    """The frozen averaged encoder from a finished `gan` folder, where the configuration has one."""
    if not config.gan.reconstruction_weight:
        return None
    encoder = Encoder.from_config(config)
    load_module(encoder, folder / "encoder.safetensors")
    freeze(encoder.to(device))
    return encoder


def load_style_space(folder: Path) -> StyleSpace:
    """The whitened style space from a finished `latents` folder.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / "style_space.safetensors"
    try:
        return from_tensors(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable style space ({error})") from error


def load_normals(folder: Path) -> Normals | None:
    """What a finished `normals` folder holds; None where the experiment knows no places.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / NORMALS_NAME
    if not path.exists():
        return None
    try:
        return Normals.from_tensors(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: not readable usual residuals ({error})") from error


def load_projector(config: Config, folders: Mapping[str, Path], device: torch.device) -> Projector:
    """Everything that projects an image, from finished `auxiliary`, `gan`, `controllers`, `latents` and, of brains, `normals`."""
    auxiliaries = load_auxiliaries(config, folders["auxiliary"], device)
    return Projector(
        config,
        load_generator(config, folders["gan"], device),
        load_controllers(config, folders["controllers"], device),
        load_style_space(folders["latents"]),
        perceptual_features(config.projection, auxiliaries[config.attributes[0].name], device),
        auxiliaries=auxiliaries,
        discriminator=load_discriminator(config, folders["gan"], device),
        encoder=load_encoder(config, folders["gan"], device),
        normals=load_normals(folders["normals"]) if "normals" in folders else None,
    )
