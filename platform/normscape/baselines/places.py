"""Where the pixels of images lie, and the training images in batches.

Where a position is known for every patch, a pixel's place is a voxel of the atlas; elsewhere it is the pixel of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import PatchSource
from normscape.errors import DataError
from normscape.inversion.normals import corners
from normscape.training.seeding import seeded

BATCH = 256
"""Training images in memory at once."""
MARGIN = 4
"""Voxels around the atlas mask that scans may reach into; what lies beyond counts as the grid's border."""


def position_frame(training: Training) -> Tensor | None:
    """Index (z, y, x, 1) to the position in RAS millimetres that patches are known by, float64 (4, 4); None without positions.

    Raises:
        DataError: positions are known of images that are not cut from a prepared cohort.
    """
    if training.config.position is None:
        return None
    return torch.from_numpy(patch_source(training).position_frame())


def patch_source(training: Training) -> PatchSource:
    """Where the training patches are cut from.

    Raises:
        DataError: they are not cut from a prepared cohort.
    """
    source = training.healthy.samples.images
    if not isinstance(source, PatchSource):
        raise DataError(f"positions need patches of a prepared cohort to lie in, found {type(source).__name__}")
    return source


@dataclass(frozen=True)
class Grid:
    """The places at which images are compared."""

    shape: tuple[int, ...]
    """Along each axis: of an image, or of the box around the brain."""
    low: tuple[int, ...]
    """First voxel of the box on the atlas's grid; zeros for images."""
    position: str | None
    """Condition that tells where a patch lies; None: all images lie on each other."""
    frame: Tensor | None
    """float64 (4, 4), index in the box (z, y, x, 1) to the position; None: all images lie on each other."""

    @classmethod
    def of(cls, training: Training, *, positions: bool = True) -> Grid:
        """The atlas where positions are known and asked for, else the image.

        Raises:
            DataError: see `position_frame`.
        """
        frame = position_frame(training) if positions else None
        if frame is None or training.config.position is None:
            shape = training.healthy.shape[1:]
            return cls(shape, (0,) * len(shape), None, None)
        mask = patch_source(training).cohort.atlas_mask
        found = np.argwhere(mask)
        low = (found.min(0) - MARGIN).clip(0)
        high = np.minimum(found.max(0) + 1 + MARGIN, mask.shape)
        moved = frame.clone()
        moved[:3, 3] += frame[:3, :3] @ torch.from_numpy(low).double()
        shape = tuple(int(length) for length in high - low)
        return cls(shape, tuple(int(first) for first in low), training.config.position.name, moved)

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def places(self, batch: ImageBatch) -> Tensor:
        """Flat place of every pixel, int64 `(B, *S)`, or `(1, *S)` where it is the same for all images."""
        sides = batch.images.shape[2:]
        if self.position is None or self.frame is None:
            corner = torch.zeros(1, len(sides), dtype=torch.int64)
        else:
            corner = corners(batch.conditions[self.position], self.frame, sides[0])
        flat = torch.zeros(len(corner), *(1,) * len(sides), dtype=torch.int64)
        for axis, (side, length) in enumerate(zip(sides, self.shape, strict=True)):
            at = (corner[:, axis, None] + torch.arange(side)).clamp(0, length - 1)
            shown = [1] * len(sides)
            shown[axis] = side
            flat = flat * length + at.view(-1, *shown)
        return flat


def training_batches(
    training: Training, purpose: str, *, shuffled: bool = False, least: int = 1, passes: tuple[int, int] = (0, 1)
) -> Iterator[ImageBatch]:
    """`training.images` normal images, drawn once, in batches of about `BATCH`.

    Args:
        training: what a detector is fitted to.
        purpose: which images: the same purpose and seed give the same ones.
        shuffled: every image gets the conditions of another one.
        least: images that a batch has at least, unless there are fewer in all.
        passes: (number of this pass, passes in all), for the progress.
    """
    rows = drawn_rows(training, purpose)
    known = conditions_of(training, rows, shuffled=shuffled, purpose=purpose)
    done = 0
    for part in torch.arange(len(rows)).tensor_split(max(1, len(rows) // max(BATCH, least))):
        batch = training.healthy.batch(rows[part])
        yield ImageBatch(batch.images, batch.masks, {name: values[part] for name, values in known.items()})
        done += len(part)
        training.progress(passes[0] * len(rows) + done, passes[1] * len(rows))


def drawn_rows(training: Training, purpose: str) -> Tensor:
    """Rows of the `training.images` normal images, int64 `(N,)`.

    Raises:
        DataError: there is none.
    """
    rows = training.healthy.random_rows(training.images, seeded(training.seed, "images", purpose))
    if not len(rows):
        raise DataError("no normal training image to learn from")
    return rows


def conditions_of(training: Training, rows: Tensor, *, shuffled: bool, purpose: str) -> dict[str, Tensor]:
    """What is known about training rows `(N,)`, `(N, d)` each; shuffled, every row has the values of another, all of one."""
    if shuffled:
        rows = rows[torch.randperm(len(rows), generator=seeded(training.seed, "shuffle", purpose))]
    return {name: training.healthy.samples.values[column][rows] for name, column in training.healthy.columns.items()}


def cell_positions(position: Tensor, frame: Tensor, side: int, cells: Sequence[int]) -> Tensor:
    """Where the cells of a coarse grid over each patch lie.

    Args:
        position: of the patches' middles, millimetres `(B, 3)`.
        frame: see `position_frame`.
        side: of a patch, in voxels.
        cells: of the coarse grid along each axis, z, y, x.

    Returns:
        The cells' middles in millimetres `(B, cells, 3)`.
    """
    axes = [(torch.arange(count, dtype=torch.float64) + 0.5) * side / count - side / 2 for count in cells]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return (position.cpu().double()[:, None] + offset @ frame[:3, :3].T).float()
