"""PatchCore: distance of frozen features to a memory bank of normal ones (Roth et al. 2022).

Features of normal images, each averaged over its neighbours, are thinned out to a coreset by greedy k-centre selection under a
random projection. The score of a cell is the distance to its nearest neighbour in the bank; that of an image is its worst cell's,
weighed down where this neighbour is itself a rare one (equation 7 of the paper). Beyond the paper, neighbours have to come from
nearby places of the brain, where positions are known, and may have to come from like ages or angles (`match`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.frozen import Cells, Kind, check_features, load_features, stages_of
from normscape.baselines.nearest import Bank, check_match, matched_conditions
from normscape.baselines.places import cell_positions, position_frame, training_batches
from normscape.baselines.residuals import as_scores
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import INSIDE, worst
from normscape.training.seeding import seeded


class PatchCoreDetector:
    """Score: the largest distance of a cell's features to the bank.

    Args:
        features: `auxiliary`, the experiment's identity network, or `efficientnet_lite0`.
        layers: maps that are looked at, 0 is the finest.
        candidates: cells of normal images, drawn at random, from which the bank is chosen.
        bank: cells in the bank.
        projection: dimensions of the random projection under which they are chosen.
        average: side of the neighbourhood over which features are averaged, in cells, odd; 1 to leave them as they
            are.
        neighbours: of the nearest one that tell how rare it is; 1 to leave its rareness out.
        match: condition to the largest distance, in its unit, at which normal images count as alike; None: the position within
            20 mm, where it is known. `{}` compares with all.
        shuffled: training images get the conditions of others.

    Attributes:
        bank_: the memory bank.
    """

    supervision: Literal["none", "synthetic"] = "none"
    bank_: Bank

    def __init__(
        self,
        *,
        features: Kind = "auxiliary",
        layers: Sequence[int] = (1, 2),
        candidates: int = 50_000,
        bank: int = 5_000,
        projection: int = 32,
        average: int = 3,
        neighbours: int = 9,
        match: Mapping[str, float] | None = None,
        shuffled: bool = False,
    ) -> None:
        if min(candidates, bank, projection, neighbours) < 1:
            raise ValueError(
                "candidates, bank, projection and neighbours must be at least 1, "
                f"found {candidates}, {bank}, {projection}, {neighbours}"
            )
        if average < 1 or average % 2 == 0:
            raise ValueError(f"average must be odd, found {average}")
        check_match(match)
        self.stages = stages_of(features)
        self.features, self.layers = features, check_features(features, layers)
        self.candidates, self.bank, self.projection, self.neighbours = candidates, bank, projection, neighbours
        self.average = average
        self.match, self.shuffled = match, shuffled

    def fit(self, training: Training) -> Self:
        """Fill the bank.

        Raises:
            ConfigError: `match` names no value attribute.
            DataError: features that are asked for are not there, or positions are known of images that lie in no cohort.
        """
        self.network_ = load_features(self.features, self.layers, training)
        radius = matched_conditions(self.match, training)
        position = training.config.position
        matches_place = position is not None and position.name in radius
        self.position_ = position.name if position is not None and matches_place else None
        self.frame_ = position_frame(training) if matches_place else None
        random = seeded(training.seed, "patchcore")
        images = min(training.images, len(training.healthy))
        values: list[Tensor] = []
        known: dict[str, list[Tensor]] = {name: [] for name in radius}
        for batch in training_batches(training, "patchcore", shuffled=self.shuffled):
            cells = self.network_.cells(batch, average=self.average)
            conditions = self._conditions(batch, cells, tuple(radius))
            counts = torch.arange(cells.values.shape[0] * cells.values.shape[1])
            if cells.share is not None:
                counts = counts[cells.share.flatten().cpu() > INSIDE]
            quota = math.ceil(self.candidates * len(batch) / images)
            drawn = counts[torch.randperm(len(counts), generator=random)[:quota]].to(training.device)
            values.append(cells.values.flatten(0, 1)[drawn])
            for name, parts in known.items():
                parts.append(conditions[name][drawn])
        found = torch.cat(values)
        kept = coreset(found, self.bank, projection=self.projection, random=random)
        self.bank_ = Bank(found[kept], {name: torch.cat(parts)[kept] for name, parts in known.items()}, radius)
        _, self.around_ = self.bank_.nearest(self.bank_.features, self.bank_.conditions, min(self.neighbours, len(kept)))
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores `(B,)`: the largest distance of the cells of which more than half counts, times its weight."""
        cells, distance, nearest = self._distances(batch)
        score = worst(distance, cells.share)
        if self.around_.shape[1] == 1:
            return as_scores(score)
        image = torch.arange(len(batch), device=score.device)
        cell = (distance == score[:, None]).int().argmax(1)
        rivals = self.bank_.features[self.around_[nearest[image, cell]]]
        apart = (cells.values[image, cell][:, None] - rivals).norm(dim=2)
        return as_scores(score * (1 - (score - apart.logsumexp(1)).exp()).clamp(min=0))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """The cells' distances, interpolated, `(B, 1, *S)`."""
        cells, distance, _ = self._distances(batch)
        return cells.on_image(distance, batch)

    def _distances(self, batch: ImageBatch) -> tuple[Cells, Tensor, Tensor]:
        """Cells, their distance to the nearest neighbour `(B, cells)`, and its place in the bank."""
        cells = self.network_.cells(batch, average=self.average)
        conditions = self._conditions(batch, cells, tuple(self.bank_.radius))
        distance, index = self.bank_.nearest(cells.values.flatten(0, 1), conditions, 1)
        shape = cells.values.shape[:2]
        return cells, distance.view(shape), index.view(shape)

    def _conditions(self, batch: ImageBatch, cells: Cells, names: tuple[str, ...]) -> dict[str, Tensor]:
        """What is known about every cell, `(B * cells, d)` each; of the position, the cell's own."""
        device, count = cells.values.device, cells.values.shape[1]
        found = {name: batch.conditions[name].to(device).repeat_interleave(count, dim=0) for name in names}
        if self.position_ is not None and self.frame_ is not None:
            middles = batch.conditions[self.position_]
            own = cell_positions(middles, self.frame_, batch.images.shape[-1], cells.sides)
            found[self.position_] = own.flatten(0, 1).to(device)
        return found


def coreset(features: Tensor, count: int, *, projection: int, random: torch.Generator) -> Tensor:
    """Greedy k-centre selection: each next feature is the one farthest from all that are chosen (Sener and Savarese 2018).

    Args:
        features: `(N, D)`.
        count: how many to choose.
        projection: dimensions of the Gaussian random projection under which distances are taken; none when D is not larger.
        random: of the projection and of the first choice.

    Returns:
        Places of the chosen ones, int64, in the order of choice; all, in their own order, where there are no more than `count`.
    """
    if count >= len(features):
        return torch.arange(len(features), device=features.device)
    width = features.shape[1]
    if projection < width:
        turn = torch.randn(width, projection, generator=random) / math.sqrt(projection)
        features = features @ turn.to(features)
    chosen = torch.empty(count, dtype=torch.int64, device=features.device)
    chosen[0] = torch.randint(len(features), (), generator=random).to(features.device)
    apart = torch.full((len(features),), torch.inf, device=features.device)
    for number in range(1, count):
        newest = features.index_select(0, chosen[number - 1 : number])
        apart = torch.minimum(apart, (features - newest).square().sum(1))
        chosen[number] = apart.argmax()
    return chosen
