"""PaDiM: a Gaussian of frozen features at each place (Defard et al. 2021).

Feature maps of several layers are joined on the grid of the finest, a random part of the channels is kept, and at each place
their mean and covariance over normal images are estimated. The score of a place is its Mahalanobis distance. In pictures a place
is a cell of the map, as in the paper. Patches of brains lie anywhere, so there a place is a cube of the atlas, with all feature
cells that fall into it; few may, so mean and covariance lean on those of all places.

The paper takes the first three of four stages, of networks for images several times as large; here it is the stem and the first
stage, unless a setting says otherwise. The paper adds 0.01 to the diagonal of every covariance; here it is 0.01 times the mean
variance of the features, whose scale depends on the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.frozen import Cells, Kind, check_features, load_features, stages_of
from normscape.baselines.places import cell_positions, conditions_of, drawn_rows, position_frame, training_batches
from normscape.baselines.residuals import as_scores
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import INSIDE, worst
from normscape.training.seeding import seeded

Position = Literal["known", "none", "shuffled"]
REGULARISATION = 0.01
CHUNK = 2**24
"""Numbers in memory at once, where every cell has a covariance of its own."""


class PadimDetector:
    """Score: the largest Mahalanobis distance of a cell's features.

    Args:
        features: `auxiliary`, the experiment's identity network, or `efficientnet_lite0`.
        layers: maps that are looked at, 0 is the finest.
        dimensions: channels that are kept, drawn at random; all where there are fewer.
        position: `known`: one Gaussian a cube of the atlas, where positions are known; `none`: one a cell of the patch;
            `shuffled`: training patches get the positions of others.
        cube_mm: side of the cubes.
        shrinkage: weight, in cells, of the mean and covariance over all places.

    Attributes:
        channels_: the channels that are kept, int64 `(D,)`.
        field_: the Gaussians.
    """

    supervision: Literal["none", "synthetic"] = "none"
    channels_: Tensor
    field_: GaussianField

    def __init__(
        self,
        *,
        features: Kind = "auxiliary",
        layers: Sequence[int] = (0, 1),
        dimensions: int = 64,
        position: Position = "known",
        cube_mm: float = 12.0,
        shrinkage: float = 20.0,
    ) -> None:
        if position not in get_args(Position):
            raise ValueError(f"position must be one of {', '.join(get_args(Position))}, found {position}")
        if dimensions < 1 or cube_mm <= 0 or shrinkage < 0:
            raise ValueError(
                "dimensions must be at least 1, cube_mm above 0, shrinkage not negative, "
                f"found {dimensions}, {cube_mm}, {shrinkage}"
            )
        self.stages = stages_of(features)
        self.features, self.layers, self.dimensions = features, check_features(features, layers), dimensions
        self.position, self.cube_mm, self.shrinkage = position, cube_mm, shrinkage

    def fit(self, training: Training) -> Self:
        """Means and covariances of the training images' features.

        Raises:
            DataError: features that are asked for are not there, or positions are known of images that lie in no cohort.
        """
        self.network_ = load_features(self.features, self.layers, training)
        self.places_ = None if self.position == "none" else _cubes(training, self.cube_mm)
        sums: _Sums | None = None
        for batch in training_batches(training, "padim", shuffled=self.position == "shuffled"):
            cells = self.network_.cells(batch)
            if sums is None:
                width, random = cells.values.shape[2], seeded(training.seed, "padim", "channels")
                kept = torch.randperm(width, generator=random)[: self.dimensions].sort().values
                self.channels_ = kept.to(training.device)
                count = cells.values.shape[1] if self.places_ is None else len(self.places_)
                sums = _Sums(count, len(kept), training.device)
            sums.add(cells.values[:, :, self.channels_], self._places(batch, cells), cells.share)
        assert sums is not None  # there is at least one image
        self.field_ = sums.gaussians(self.shrinkage)
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """The largest distance of the cells of which more than half counts, `(B,)`."""
        cells, distance = self._distances(batch)
        return as_scores(worst(distance, cells.share))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """The cells' distances, interpolated, `(B, 1, *S)`."""
        cells, distance = self._distances(batch)
        return cells.on_image(distance, batch)

    def _distances(self, batch: ImageBatch) -> tuple[Cells, Tensor]:
        cells = self.network_.cells(batch)
        return cells, self.field_.distance(cells.values[:, :, self.channels_], self._places(batch, cells))

    def _places(self, batch: ImageBatch, cells: Cells) -> Tensor:
        if self.places_ is None:
            return torch.arange(cells.values.shape[1], device=cells.values.device)
        return self.places_.of(batch, cells).to(cells.values.device)


@dataclass(frozen=True)
class _Cubes:
    """The atlas in cubes."""

    position: str
    frame: Tensor
    origin: Tensor  # RAS millimetres (3,) of the first cube's corner
    counts: tuple[int, ...]
    side_mm: float

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1] * self.counts[2]

    def of(self, batch: ImageBatch, cells: Cells) -> Tensor:
        """The cube of every cell, int64 `(B, cells)`; beyond the border the nearest."""
        middles = cell_positions(batch.conditions[self.position], self.frame, batch.images.shape[-1], cells.sides)
        at = ((middles - self.origin) / self.side_mm).floor().long()
        x, y, z = (at[..., axis].clamp(0, count - 1) for axis, count in enumerate(self.counts))
        return (x * self.counts[1] + y) * self.counts[2] + z


def _cubes(training: Training, side_mm: float) -> _Cubes | None:
    """Cubes over all places that training patches cover; None where no position is known."""
    frame, attribute = position_frame(training), training.config.position
    if frame is None or attribute is None:
        return None
    middles = conditions_of(training, drawn_rows(training, "padim"), shuffled=False, purpose="padim")[attribute.name]
    half = training.healthy.shape[-1] / 2 * frame[:3, :3].norm(dim=0).max().float()
    low, high = middles.amin(0) - half, middles.amax(0) + half
    return _Cubes(attribute.name, frame, low, tuple(((high - low) / side_mm).ceil().long().clamp(min=1).tolist()), side_mm)


@dataclass(frozen=True)
class GaussianField:
    """A Gaussian at each place.

    Attributes:
        mean: float32 `(places, D)`.
        whiten: float32 `(places, D, D)`, inverse Cholesky factors L^-1 of the covariances L L^T.
    """

    mean: Tensor
    whiten: Tensor

    def distance(self, x: Tensor, place: Tensor) -> Tensor:
        """Mahalanobis distances `(B, cells)` of features `(B, cells, D)` at places `(cells,)` or `(B, cells)`."""
        if place.ndim == 1:
            return torch.einsum("kde,bke->bkd", self.whiten[place], x - self.mean[place]).norm(dim=2)
        flat, where = x.flatten(0, 1), place.flatten()
        step = max(1, CHUNK // (x.shape[2] ** 2))
        parts = [
            (self.whiten[at] @ (part - self.mean[at])[:, :, None])[:, :, 0].norm(dim=1)
            for part, at in zip(flat.split(step), where.split(step), strict=True)
        ]
        return torch.cat(parts).view(place.shape)


class _Sums:
    """Counts, sums and sums of products at each place."""

    def __init__(self, places: int, width: int, device: torch.device) -> None:
        self.count = torch.zeros(places, dtype=torch.float64, device=device)
        self.first = torch.zeros(places, width, dtype=torch.float64, device=device)
        self.second = torch.zeros(places, width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor, place: Tensor, share: Tensor | None) -> None:
        """Features `(B, cells, D)` at places `(cells,)` or `(B, cells)`; cells of which at most half counts are left out."""
        x = x.double()
        weight = torch.ones_like(x[:, :, 0]) if share is None else (share > INSIDE).double()
        if place.ndim == 1:
            self.count[place] += weight.sum(0)
            self.first[place] += (x * weight[:, :, None]).sum(0)
            self.second[place] += torch.einsum("bkd,bke->kde", x * weight[:, :, None], x)
            return
        counts = weight.flatten() > 0
        flat, where = x.flatten(0, 1)[counts], place.flatten()[counts]
        step = max(1, CHUNK // (x.shape[2] ** 2))
        for part, at in zip(flat.split(step), where.split(step), strict=True):
            self.count.index_add_(0, at, torch.ones_like(part[:, 0]))
            self.first.index_add_(0, at, part)
            self.second.index_add_(0, at, part[:, :, None] * part[:, None])

    def gaussians(self, shrinkage: float) -> GaussianField:
        """Means and covariances, leaning on those over all places by this many cells."""
        count = self.count[:, None]
        overall = self.first.sum(0) / self.count.sum().clamp(min=1)
        mean = (self.first + shrinkage * overall) / (count + shrinkage).clamp(min=1)
        cross = mean[:, :, None] * self.first[:, None]
        scatter = self.second - cross - cross.transpose(1, 2) + count[:, :, None] * mean[:, :, None] * mean[:, None]
        pooled = scatter.sum(0) / self.count.sum().clamp(min=1)
        covariance = (scatter + shrinkage * pooled) / (count + shrinkage - 1).clamp(min=1)[:, :, None]
        width = len(overall)
        unit = torch.eye(width, dtype=mean.dtype, device=mean.device)
        covariance = covariance + (REGULARISATION * pooled.trace() / width).clamp(min=1e-12) * unit
        factor = torch.linalg.cholesky(covariance)
        whiten = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
        return GaussianField(mean.float(), whiten.float())
