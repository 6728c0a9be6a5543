"""A projector with random weights: it takes the time of a trained one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from normscape.config import Config
from normscape.datasets.simulated import atlas_grid
from normscape.inversion.normals import ATLAS, CONDITIONS, ENCODED, Normals, middle_frame
from normscape.inversion.projector import Projector
from normscape.inversion.style_space import WhitenedSubspace
from normscape.losses.reconstruction import perceptual_features
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator, draw_latents
from normscape.training.seeding import seeded


def random_projector(
    config: Config, auxiliaries: Mapping[str, AuxiliaryNetwork], device: torch.device, *, whole: bool = False
) -> Projector:
    """A projector and the style space that belongs to its weights.

    Args:
        config: the experiment.
        auxiliaries: attribute name to frozen network.
        device: where to compute.
        whole: with all that the stage `project` gives it (auxiliary networks, discriminator, encoder, usual residuals); without,
            it holds no more than its optimisation needs, and starts at the mean style.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        generator = Generator.from_config(config).to(device)
        freeze(generator)
        controllers = {a.name: Controller.from_config(a, config).to(device) for a in config.value_attributes}
        discriminator, encoder = Discriminator.from_config(config).to(device), None
        if config.gan.reconstruction_weight:
            encoder = Encoder.from_config(config).to(device)
            freeze(encoder)
        for network in (discriminator, *controllers.values()):
            freeze(network)
        styles = generator.mapping(draw_latents(1024, generator, seeded(0, "styles"))).cpu()
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    features = perceptual_features(config.projection, auxiliaries[config.attributes[0].name], device)
    if not whole:
        return Projector(config, generator, controllers, space, features)
    return Projector(
        config, generator, controllers, space, features,
        auxiliaries=auxiliaries, discriminator=discriminator, encoder=encoder, normals=_normals(config),
    )  # fmt: skip


def _normals(config: Config) -> Normals | None:
    """Residuals of mean 0 and deviation 1 everywhere; None where places are not known, as in the stage `normals`."""
    shape: tuple[int, ...]
    if config.position is not None:
        shape, affine = atlas_grid(round(config.data.spacing_mm))
        frame = torch.from_numpy(affine)
        frame[:3, 3] = -(frame[:3, :3] @ (torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    elif config.whole_scans:
        shape, frame = (config.image_size,) * 3, torch.from_numpy(middle_frame(config.image_size))
    else:
        return None
    kinds = (ATLAS, CONDITIONS, ENCODED) if config.gan.reconstruction_weight else (ATLAS, CONDITIONS)
    return Normals({kind: torch.zeros(shape) for kind in kinds}, {kind: torch.ones(shape) for kind in kinds}, frame)
