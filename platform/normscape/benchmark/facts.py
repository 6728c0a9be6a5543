"""What the cost of an experiment at scale depends on besides measured times; `normscape.benchmark.scaling` reads it.

Of every configuration:

- `steps`, `warmup_steps`, `batch`: of the GAN's training, warm-up steps included in the steps; images of a step;
- `generator_bytes`, `discriminator_bytes`: gradients of generator and encoder, and of the discriminator, float32;
- `batch_columns`: groups of the minibatch deviation in a batch: numbers of workers that divide it can share a step;
- `image_bytes`: of a projected image and its reconstruction, 8 bits a value;
- `row_bytes`: of a projected image in the table of projections, uncompressed (from the case `whole projection`).

Of brains:

- `prepared_bytes`: of a scan in a prepared cohort, 16 bits a voxel and 8 of the mask;
- `patches_a_scan`: of the grid over the atlas's brain;
- `prepare_core_seconds`: of one core, to preprocess a scan (from the case `preprocessing`).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from normscape.config import Config
from normscape.datasets.simulated import atlas_template
from normscape.inversion.volumes import patch_grid
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator

_FLOAT_BYTES = 4


def facts_of(config: Config) -> dict[str, float]:
    """All that needs no measurement."""
    with torch.random.fork_rng(devices=[]):
        generated: list[nn.Module] = [Generator.from_config(config)]
        if config.gan.reconstruction_weight:
            generated.append(Encoder.from_config(config))
        generator, discriminator = (
            sum(p.numel() for network in networks for p in network.parameters()) * _FLOAT_BYTES
            for networks in (generated, [Discriminator.from_config(config)])
        )
    facts = {
        "steps": config.gan.steps,
        "warmup_steps": config.gan.warmup_steps,
        "batch": config.gan.batch_size,
        "batch_columns": config.gan.batch_size // config.discriminator.deviation_group,
        "generator_bytes": generator,
        "discriminator_bytes": discriminator,
        "image_bytes": 2 * config.image_channels * config.image_size**config.dims,
    }
    if config.data.source == "brain":
        mask = atlas_template(round(config.data.spacing_mm))[1]
        most = config.data.max_background if config.brains.max_background is None else config.brains.max_background
        facts["prepared_bytes"] = math.prod(mask.shape) * 3
        facts["patches_a_scan"] = (
            1 if config.whole_scans else len(patch_grid(mask, config.image_size, config.brains.stride, most))
        )
    return {name: float(value) for name, value in facts.items()}
