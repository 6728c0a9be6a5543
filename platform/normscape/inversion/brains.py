"""Generating a whole brain from overlapping patches (thesis IV.B.1, figure 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from normscape.inversion.volumes import Blender
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator


@torch.no_grad()
def generate_brain(
    generator: Generator,
    controllers: Mapping[str, Controller],
    z: Tensor,
    values: Mapping[str, Tensor],
    centres: ArrayLike,
    shape: Sequence[int],
    *,
    truncation: float = 1.0,
    batch_size: int = 64,
) -> Blender:
    """One brain: all patches share the sub-vectors that no controller gives (identity, `other`); the others follow their values.

    Args:
        generator: the averaged generator.
        controllers: value attributes to their controllers.
        z: latents of the identity, `(W,)`.
        values: value attribute to the value of every patch `(P, D)` in the attribute's unit: the age, the same everywhere, and
            the position.
        centres: (P, 3) voxels z, y, x.
        shape: (Z, Y, X) of the brain's volume.
        truncation: share of the way from the style of latents of zero to that of `z`.
        batch_size: patches at once.

    Returns:
        The blended patches, in the generator's range of about [-1, 1]; nothing is masked.
    """
    device = generator.constant.device
    neutral, own = generator.mapping(torch.stack([torch.zeros_like(z), z]).to(device)).split(1)
    style = neutral + truncation * (own - neutral)
    blender = Blender(shape, 4 * 2 ** (len(generator.resolutions) - 1))
    places = torch.as_tensor(centres)
    for rows in torch.arange(len(places)).split(batch_size):
        styles = style.repeat(len(rows), 1)
        for name, controller in controllers.items():
            styles[:, generator.subspace_slice(name)] = controller(values[name][rows].to(device))
        blender.add(generator.synthesize(styles), places[rows])
    return blender
