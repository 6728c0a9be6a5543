"""The random batch of real images of a training step, the same for any number of workers."""

from __future__ import annotations

import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.training.seeding import seeded


def real_index(samples: SampleSet, config: Config, step: int) -> Tensor:
    """Which samples make the random batch of real images for a step, `(B,)`."""
    return torch.randint(len(samples), (config.gan.batch_size,), generator=seeded(config.seed, "gan", "real", step))


def draw_real(samples: SampleSet, config: Config, step: int, rows: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Some rows of the random batch of real images for a step, augmented by their source, and their known values.

    All rows are drawn before some are chosen: the augmentation's random numbers are those of the global batch.

    Args:
        samples: training images.
        config: batch size, seed and attributes.
        step: counted from 0.
        rows: rows of the global batch; all when empty.

    Returns:
        Images `(b, C, *S)` in [-1, 1], and value attributes to `(b, D)` in their units.
    """
    rows = torch.arange(config.gan.batch_size) if rows is None else rows
    index = real_index(samples, config, step)
    images, columns = samples.draw(index, seeded(config.seed, "gan", "augmentation", step))
    values = {a.name: columns[a.column][rows] for a in config.value_attributes if a.column in columns}
    return images[rows], values


def draw_masks(samples: SampleSet, config: Config, step: int, rows: Tensor | None = None) -> Tensor | None:
    """What counts in the images of `draw_real`, `(b, 1, *S)`; None when everything does."""
    index = real_index(samples, config, step)
    return samples.masks(index if rows is None else index[rows])
