"""How much of what is known about an image a detector gets to know: what conditions are worth is measured without them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normscape.errors import ConfigError
from normscape.training.seeding import seeded

BOTH, NONE, SHUFFLED = "both", "none", "shuffled"


class KnownConditions:
    """Conditions as a detector gets to know them; the others are replaced.

    - `both`: all as they are;
    - `none`: all by their means over the training images, so that nothing is known of an image;
    - an attribute's name: this one as it is, the others by their means;
    - `shuffled`: all by those of a training image. Which one is a function of the image's pixels alone, so that it is the same
      in any batch: values as plausible as true ones, and wrong.

    Args:
        which: see above.
        pool: value attribute to its values in the training images, (P, D).

    Raises:
        ConfigError: no such attribute.
    """

    def __init__(self, which: str, pool: Mapping[str, Tensor]) -> None:
        if which not in (BOTH, NONE, SHUFFLED, *pool):
            known = ", ".join((BOTH, NONE, SHUFFLED, *pool))
            raise ConfigError(f"conditions: {which} is unknown; choose one of {known}")
        self.which, self.pool = which, pool

    def of(self, images: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is known of images (B, C, *S), uint8, instead of their conditions (B, D)."""
        if self.which == SHUFFLED:
            rows = _hashed(images, len(next(iter(self.pool.values())))) if self.pool else slice(None)
            return {name: values[rows] for name, values in self.pool.items()}
        kept = conditions if self.which == BOTH else {self.which} & set(conditions)
        return {
            name: value if name in kept else self.pool[name].mean(0).expand(len(images), -1).clone()
            for name, value in conditions.items()
        }


def _hashed(images: Tensor, size: int) -> Tensor:
    """A number below `size` for each image (B, C, *S), uint8, that looks random and depends on its pixels alone: int64 (B,)."""
    flat = images.flatten(1).long()
    weights = torch.randint(1, 2**31, (flat.shape[1],), generator=seeded(0, "shuffled conditions"))
    mixed = (flat * weights).sum(1)
    mixed = (mixed ^ (mixed >> 17)) * 0x9E3779B1
    return (mixed ^ (mixed >> 13)).remainder(size)
