"""What the generator may know of the real images that it learns to rebuild: where they lie, and for some rows nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from normscape.networks.generator import Generator
from normscape.networks.values import centred_value

PLACE_WEIGHT = 10.0
"""Weight of the distance between the place that the mapping gives a real patch and its true one, as a share of half the range."""


def at_known_places(generator: Generator, styles: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Styles whose last rows, those of real images, lie exactly where these do.

    The mapping learns places from these rows, so that random latents find places where there are brains.

    Args:
        generator: one with a learned atlas, see `normscape.networks.learned_atlas`.
        styles: `(B, W)`; the last `b` rows belong to the real images.
        values: the real images' known values, the position among them, `(b, D)`.

    Returns:
        The styles, and how far astray the mapping had put the real ones: mean distance as a share of half the range.
    """
    position, where = generator.position, generator.place_slice
    assert position is not None
    assert where is not None
    known = centred_value(position, values[position.name])
    free, own = styles[: -len(known)], styles[-len(known) :]
    astray = (own[:, where] - known).abs().mean()
    placed = torch.cat([own[:, : where.start], known, own[:, where.stop :]], dim=1)
    return torch.cat([free, placed]), astray


def drop_codes(generator: Generator, z: Tensor, seen: Iterable[str], dropped: Tensor) -> Tensor:
    """Latents with zeros, in some rows, for all that comes from the image: those are rebuilt from their known values alone.

    Args:
        generator: tells where the sub-vectors lie.
        z: the encoder's latents `(b, W)`.
        seen: names of the sub-vectors that the encoder reads from the image.
        dropped: bool `(b,)`.
    """
    keep = torch.ones(z.shape[1], device=z.device)
    for name in seen:
        keep[generator.subspace_slice(name)] = 0.0
    return torch.where(dropped[:, None], z * keep, z)
