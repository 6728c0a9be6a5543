"""Nearest neighbours among features of normal images that were taken under like conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.errors import ConfigError

RADIUS_MM = 20.0
"""Neighbours lie within this distance, unless a setting says otherwise."""
CHUNK = 2**24
"""Distances in memory at once."""


def matched_conditions(asked: Mapping[str, float] | None, training: Training) -> dict[str, float]:
    """How near neighbours have to be in each condition, in its unit.

    Args:
        asked: condition to largest distance; None: the position within 20 mm, where it is known, and nothing else.
        training: what is known.

    Raises:
        ConfigError: a condition is no value attribute.
    """
    names = [a.name for a in training.config.value_attributes]
    if asked is None:
        position = training.config.position
        return {} if position is None else {position.name: RADIUS_MM}
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ConfigError(f"match: {', '.join(unknown)} is no value attribute; allowed are {', '.join(names)}")
    return dict(asked)


def check_match(match: Mapping[str, float] | None) -> None:
    """See that all distances are above 0.

    Raises:
        ValueError: one is not.
    """
    wrong = {name: radius for name, radius in (match or {}).items() if radius <= 0}
    if wrong:
        raise ValueError(f"match: distances must be above 0, found {wrong}")


@dataclass(frozen=True)
class Bank:
    """Features of normal images, and under which conditions they were taken."""

    features: Tensor
    """float32 `(M, D)`."""
    conditions: Mapping[str, Tensor]
    """Condition to float32 `(M, d)`."""
    radius: Mapping[str, float]
    """Condition to the largest distance at which two count as alike, in its unit; conditions without one are not looked at."""

    def __len__(self) -> int:
        return len(self.features)

    def nearest(self, queries: Tensor, conditions: Mapping[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        """The nearest neighbours of features, by Euclidean distance, among those under like conditions.

        Where there are fewer than `count` of those, the ones with the next best conditions follow.

        Args:
            queries: `(N, D)`.
            conditions: condition to `(N, d)`.
            count: how many; at most `len(self)`.

        Returns:
            Distances `(N, count)`, exact, and places in the bank, int64 `(N, count)`.
        """
        step = max(1, CHUNK // len(self))
        found = [
            self._nearest(queries[rows], {name: conditions[name][rows] for name in self.radius}, count)
            for rows in torch.arange(len(queries), device=queries.device).split(step)
        ]
        distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distance, index

    def _nearest(self, queries: Tensor, conditions: Mapping[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        centre = self.features.mean(0)  # small numbers leave more digits to the difference of squares
        q, b = queries - centre, self.features - centre
        q_square, b_square = q.square().sum(1, keepdim=True), b.square().sum(1)
        rank = q_square + b_square - 2 * q @ b.T
        if self.radius:
            excess = torch.zeros_like(rank)
            for name, radius in self.radius.items():
                apart = torch.cdist(
                    conditions[name], self.conditions[name], compute_mode="donot_use_mm_for_euclid_dist"
                )  # fmt: skip
                excess += (apart / radius - 1).clamp(min=0)
            farthest = 2 * (q_square + b_square.amax())  # no two features are farther apart
            rank = rank + torch.where(excess > 0, farthest * (1 + excess), 0.0)
        index = rank.topk(count, dim=1, largest=False).indices
        return (queries[:, None] - self.features[index]).norm(dim=2), index
