"""Where a learned atlas starts: at the training patches' mean and its slopes over the known numbers, voxel by voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.losses.masked import as_mask
from normscape.networks.learned_atlas import LearnedAtlas
from normscape.networks.values import centred_value
from normscape.training.seeding import seeded

PATCHES = 16_384
"""Patches that the regression sees; some hundred lie at each voxel."""
PSEUDO_PATCHES = 4.0
"""Weight of the mean over all places without slopes, in patches: it steadies places that few patches cover."""


@torch.no_grad()
def start_atlas(atlas: LearnedAtlas, samples: SampleSet, config: Config, *, count: int = PATCHES, batch_size: int = 256) -> None:
    """Give the first channels of the volume what a linear regression finds in training patches, the others zeros.

    Channel 0 is the mean in the middle of all ranges, and every attribute of one number (the age) has a channel with its slope,
    from the middle of its range to the end. Training goes on from there: without, every voxel would have to find out by itself,
    in noisy steps, what comes with age.

    Args:
        atlas: changed in place.
        samples: training images with masks and known values.
        config: the attributes and the seed.
        count: patches, drawn without augmentation.
        batch_size: patches at once.
    """
    position = config.position  # None: whole scans, all at the same place
    numbers = [a for a in config.value_attributes if a.output_dim == 1 and a.column in samples.values]
    numbers = numbers[: len(atlas.volume) - 1]
    terms = 1 + len(numbers)
    moments, answers = (torch.zeros(n, *atlas.volume.shape[1:]) for n in (terms * terms, terms))
    chosen = torch.randperm(len(samples), generator=seeded(config.seed, "atlas"))[:count]
    for index in chosen.split(batch_size):
        images, known = samples.draw(index)
        mask = as_mask(samples.masks(index), images.device)
        inside = torch.ones_like(images[:, :1]) if mask is None else mask.to(images.dtype)
        columns = [torch.ones(len(index), 1), *(centred_value(a, known[a.column or ""]) for a in numbers)]
        known_terms = torch.cat(columns, dim=1)
        squares = (known_terms[:, :, None] * known_terms[:, None]).flatten(1)
        at_one = torch.zeros(len(index), 3)
        place = at_one if position is None else centred_value(position, known[position.column or ""])
        for sums, factors, values in ((moments, squares, inside), (answers, known_terms, inside * images.mean(1, keepdim=True))):
            sums += _spread(atlas, factors[:, :, None, None, None] * values, place)
    overall = float(answers[0].sum() / moments[0].sum())
    moments[:: terms + 1] += PSEUDO_PATCHES
    answers[0] += PSEUDO_PATCHES * overall
    system = moments.flatten(1).T.view(-1, terms, terms)
    solution = torch.linalg.solve(system, answers.flatten(1).T[:, :, None])[:, :, 0].T
    volume = torch.zeros_like(atlas.volume)
    volume[:terms] = solution.view(terms, *atlas.volume.shape[1:]).to(volume)
    atlas.volume.copy_(volume)
    atlas.to_image.weight[:, :terms] = 1 / atlas.to_image.weight_gain


def _spread(atlas: LearnedAtlas, patches: Tensor, place: Tensor) -> Tensor:
    """Patches `(B, n, *S)` laid onto a volume `(n, Z, Y, X)` where their windows are: the adjoint of `LearnedAtlas.window`."""
    empty = torch.zeros(patches.shape[1], *atlas.volume.shape[1:], requires_grad=True)
    with torch.enable_grad():
        window = atlas.window(place, empty)
    (spread,) = torch.autograd.grad(window, empty, patches)
    return spread
