"""What all families share: one image at a time with random numbers of its own, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import ImageBatch
from normscape.datasets.shapes import ball_radius
from normscape.errors import DataError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """An image that an anomaly is drawn into, and what is known of it. Its arrays are not to be written to."""

    image: FloatArray
    """(C, *S) in [-1, 1]."""
    brain: NDArray[np.bool_]
    """(*S): where may be painted; everywhere in a picture. Never empty."""
    spacing: float
    """Millimetres of a voxel's side; 1 in pictures, whose lengths are in pixels."""
    donor: FloatArray | None
    """(C, *S), an image of another subject."""
    donor_brain: NDArray[np.bool_] | None
    """(*S)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S)."""
        return self.brain.shape


Painted = tuple[FloatArray, FloatArray]
"""The image with its anomaly (C, *S), and how much of a place is anomalous (*S)."""
Paint = Callable[[Canvas, np.random.Generator], Painted | None]
"""Draws into one image; None where there is no place for the anomaly."""


def stream(seed: int, sample_id: int, number: int) -> np.random.Generator:
    """The random numbers of one image in one family; families are told apart by their numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample_id, number])))


def draw_each(
    batch: ImageBatch,
    paint: Paint,
    *,
    number: int,
    seed: int,
    sample_ids: Sequence[int],
    scene: Scene,
    donors: ImageBatch | None = None,
) -> AnomalyBatch:
    """Draw into every image; each has a random stream of its own, so that images do not depend on their batch.

    Whatever `paint` returns, nothing is changed outside the brain or where the mask is 0, and intensities stay in [-1, 1].

    Args:
        batch: images and where their brains are.
        paint: draws into one image.
        number: of the family, for its random numbers.
        seed: the experiment's seed.
        sample_ids: (B,), not negative.
        scene: dimension and spacing.
        donors: an image of another subject for each.

    Raises:
        DataError: donors, or ids, do not fit the images.
    """
    ids = numbers_of(batch, sample_ids)
    if donors is not None and donors.images.shape != batch.images.shape:
        raise DataError(f"donors have to be like the images: {tuple(batch.images.shape)}, found {tuple(donors.images.shape)}")
    before, brains = _arrays(batch)
    others, other_brains = (None, None) if donors is None else _arrays(donors)
    after, masks = before.copy(), np.zeros((len(ids), *before.shape[2:]), np.float32)
    for i, sample_id in enumerate(ids):
        if not brains[i].any():
            continue
        donor, donor_brain = (None, None) if others is None or other_brains is None else (others[i], other_brains[i])
        canvas = Canvas(before[i], brains[i], scene.spacing_mm or 1.0, donor, donor_brain)
        painted = paint(canvas, stream(seed, sample_id, number))
        if painted is not None:
            image, mask = painted
            masks[i] = np.where(brains[i], mask, 0).clip(0, 1)
            after[i] = np.where(masks[i] > 0, image.clip(-1, 1), before[i])
    return recorded(before, after, masks, scene)


def numbers_of(batch: ImageBatch, sample_ids: Sequence[int]) -> list[int]:
    """The sample ids, one an image.

    Raises:
        DataError: there are more or fewer.
    """
    if len(sample_ids) != len(batch):
        raise DataError(f"{len(batch)} images need as many sample ids, found {len(sample_ids)}")
    return [int(i) for i in sample_ids]


def recorded(before: FloatArray, after: FloatArray, masks: FloatArray, scene: Scene) -> AnomalyBatch:
    """Images (B, C, *S) before and after, and their masks (B, *S), with size and contrast."""
    size, contrast = np.zeros(len(masks), np.float32), np.zeros(len(masks), np.float32)
    for i, mask in enumerate(masks):  # one after the other: the order of additions must not depend on the batch
        covered = float(mask.sum(dtype=np.float64))
        if covered > 0:
            size[i] = ball_radius(covered, mask.ndim) * (scene.spacing_mm or 1.0)
            # A place that belongs to the anomaly by half has changed by half: this is the mean over what does belong to it.
            contrast[i] = np.abs(after[i] - before[i]).mean(axis=0).sum(dtype=np.float64) / covered
    images, covers = torch.from_numpy(after), torch.from_numpy(masks[:, None])
    return AnomalyBatch(images, covers, torch.from_numpy(size), torch.from_numpy(contrast))


def _arrays(batch: ImageBatch) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Images (B, C, *S) and where may be painted (B, *S)."""
    images = batch.images.to(torch.float32).numpy()
    if batch.masks is None:
        return images, np.ones((len(images), *images.shape[2:]), bool)
    return images, batch.masks[:, 0].numpy() > 0


def need_brains(images: Tensor, scene: Scene, family: str) -> None:
    """Raise a DataError for images that are no T1 brains.

    Args:
        images: (B, C, *S).
        scene: whose voxels have a size where they show brains.
        family: what could not be drawn.
    """
    if images.shape[1] != 1 or scene.spacing_mm is None:
        voxels = "voxels of no known size" if scene.spacing_mm is None else f"voxels of {scene.spacing_mm:g} mm"
        raise DataError(
            f"anomaly family {family} belongs to T1 brains: one channel and a known voxel size; these images have "
            f"{images.shape[1]} channel{'s' * (images.shape[1] != 1)} and {voxels}"
        )
