"""Anomalies for detectors to learn from, and the donors of families that transplant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.anomalies import AnomalyBatch, AnomalyFamily, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.training.seeding import seeded

CANDIDATES = 4096
"""Images among which the nearest donor is looked for."""


def scene_of(config: Config) -> Scene:
    """Dimension and spacing of the experiment's images."""
    return Scene(config.dims, config.data.spacing_mm if config.data.source == "brain" else None)


class Donors:
    """For every row an image of another subject that is near in all known values: a pure function of (seed, row).

    The nearest of `CANDIDATES` images of other subjects, spread over all of them, so that of a brain the donor lies at about the
    same place, and of a chair at about the same angle. Each value counts in units of its range.

    Args:
        images: of one role.
        seed: the experiment's.
    """

    def __init__(self, images: HealthyImages, seed: int) -> None:
        self.images = images
        samples = images.samples
        self._owner = np.unique(samples.subject.numpy(), return_inverse=True)[1]
        self._order = np.argsort(self._owner, kind="stable")
        self._size = np.bincount(self._owner)
        self._begin = np.cumsum(self._size) - self._size
        self._start = torch.rand(len(samples), generator=seeded(seed, "donors"), dtype=torch.float64).numpy()
        known = [samples.values[column].numpy() for column in images.columns.values()]
        values = np.concatenate([np.empty((len(samples), 0), np.float32), *known], axis=1)
        self._values = values / np.maximum(np.ptp(values, axis=0), 1e-6)

    def __call__(self, rows: Tensor) -> ImageBatch | None:
        """Donors of these rows, int64 (B,); rows beyond the images begin anew. None where there is only one subject."""
        if len(self._size) < 2:
            return None
        row = rows.numpy() % len(self._owner)
        own = self._owner[row]
        others = (len(self._owner) - self._size[own])[:, None]
        steps = np.arange(min(CANDIDATES, int(others.max())))
        share = (self._start[row][:, None] + steps / len(steps)) % 1.0
        place = np.minimum((share * others).astype(np.int64), others - 1)  # among the rows of all others
        place += np.where(place >= self._begin[own][:, None], self._size[own][:, None], 0)
        candidate = self._order[place]  # (B, K)
        distance = np.square(self._values[candidate] - self._values[row][:, None]).sum(axis=2)
        nearest = candidate[np.arange(len(row)), distance.argmin(axis=1)]
        return self.images.batch(torch.from_numpy(nearest))


class TrainingAnomalies:
    """Draws anomalies into training images, of the families that detectors may learn from, in turn over the rows.

    Args:
        config: the experiment.
        families: those that may be seen, in order; at least one.
        images: normal images of the training subjects.
        seed: of the unit, so that every fit sees other anomalies.
    """

    def __init__(self, config: Config, families: Mapping[str, AnomalyFamily], images: HealthyImages, seed: int) -> None:
        self.families = list(families.values())
        self.scene = scene_of(config)
        self.donors = Donors(images, seed)
        # unlike the seed of every case that is tested on
        self.seed = int(np.random.SeedSequence([config.seed, seed, 1]).generate_state(1)[0])

    def __call__(self, batch: ImageBatch, rows: Tensor) -> AnomalyBatch:
        """An anomaly in each image; `rows`, int64 (B,), may exceed the number of images: another cycle, other anomalies."""
        drawn: list[tuple[Tensor, AnomalyBatch]] = []
        for place, family in enumerate(self.families):
            index = (rows % len(self.families) == place).nonzero().squeeze(1)
            if len(index):
                ids = rows[index]
                part = family.draw(
                    batch.rows(index), seed=self.seed, sample_ids=ids.tolist(), scene=self.scene, donors=self.donors(ids)
                )
                drawn.append((index, part))
        back = torch.argsort(torch.cat([index for index, _ in drawn]))
        return AnomalyBatch(*(torch.cat([getattr(part, name) for _, part in drawn])[back] for name in _FIELDS))


_FIELDS = ("images", "masks", "size", "contrast")
