"""Finished stage folders with random weights: what projection needs, without hours of training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from normscape.config import Config
from normscape.inversion.style_space import WhitenedSubspace, to_tensors
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator, draw_latents
from normscape.stages import prepare
from normscape.stages.core import StageContext
from normscape.training.checkpoint import save_module
from normscape.training.recorder import SilentRecorder
from normscape.training.seeding import seeded

STAGES = ("prepare", "auxiliary", "gan", "controllers", "latents")
CPU = torch.device("cpu")


def untrained_inputs(config: Config, folder: Path) -> dict[str, Path]:
    """Make `prepare` as it is and the other stages with random weights; the same configuration gives the same files.

    Args:
        config: the experiment.
        folder: receives a folder for each stage.

    Returns:
        What a stage `project` takes as its inputs.
    """
    inputs = {name: folder / name for name in STAGES}
    for path in inputs.values():
        path.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        for attribute in config.attributes:
            save_module(AuxiliaryNetwork.from_config(attribute, config), inputs["auxiliary"] / f"{attribute.name}.safetensors")
        for attribute in config.value_attributes:
            save_module(Controller.from_config(attribute, config), inputs["controllers"] / f"{attribute.name}.safetensors")
        generator = Generator.from_config(config)
        save_module(generator, inputs["gan"] / "generator.safetensors")
        save_module(Discriminator.from_config(config), inputs["gan"] / "discriminator.safetensors")
        if config.gan.reconstruction_weight:
            save_module(Encoder.from_config(config), inputs["gan"] / "encoder.safetensors")
        styles = generator.mapping(draw_latents(config.latents.samples, generator, seeded(config.seed, "untrained")))
        space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    save_file(to_tensors(space), inputs["latents"] / "style_space.safetensors")
    prepare.run(StageContext(config, inputs["prepare"], {}, CPU, SilentRecorder()))
    return inputs
