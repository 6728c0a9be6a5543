"""Cases: the normal images of a role, and other images of the same subjects with an anomaly of each family.

A subject with a single image, as a whole scan is, has no other: that image is tested as it is and with anomalies.

Which rows are normal and which get anomalies is a pure function of the experiment's seed, the role and its subjects; an anomaly
is one of (seed, row). So every detector, with every seed of its own, sees the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.baselines.anomalies import Donors, scene_of
from normscape.config import Config
from normscape.datasets.anomalies import AnomalyFamily
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.samples import SampleSet
from normscape.errors import DataError
from normscape.training.seeding import seeded

DRAWN_AT_ONCE = 64
"""Images that anomalies are drawn into together."""
MEMORY_BYTES = 1_000_000_000
"""Drawn images that a process keeps for the next unit; what is beyond is drawn again, to the same images."""
NORMAL = ""
"""The family of an image without an anomaly."""


@dataclass(frozen=True)
class Drawn:
    """The images of one family (or the normal ones) that are tested on."""

    rows: Tensor
    """int64 (K,), rows of the role's images."""
    images: Tensor | None
    """float32 (K, C, *S); None for normal images, which are read as they are needed."""
    size: NDArray[np.float32]
    """(K,), see `AnomalyBatch`; not a number for normal images."""
    contrast: NDArray[np.float32]
    """(K,), likewise."""
    left_out: int
    """Rows where the family found no place for an anomaly."""


@dataclass
class Memory:
    """Drawn images that stay in memory, up to a limit: drawing costs more than many detectors' scores."""

    limit: int = MEMORY_BYTES
    held: dict[tuple[str, str], Drawn] = field(default_factory=dict)

    def keep(self, key: tuple[str, str], drawn: Drawn) -> None:
        """Hold on to it if there is room."""
        new = drawn.images.nbytes if drawn.images is not None else 0
        if sum(d.images.nbytes for d in self.held.values() if d.images is not None) + new <= self.limit:
            self.held[key] = drawn


class Cases:
    """What detectors are tested on in one role.

    Args:
        config: the experiment.
        role: its name.
        samples: of the role's subjects.
        families: anomaly families by name; none for a role of normal images alone.
        count: normal images, and as many that get an anomaly of each family; fewer where there are fewer.
        memory: holds drawn images for the next detector.

    Raises:
        DataError: the role has too few images.
    """

    def __init__(
        self,
        config: Config,
        role: str,
        samples: SampleSet,
        families: Mapping[str, AnomalyFamily],
        count: int,
        memory: Memory | None = None,
    ) -> None:
        self.config, self.role, self.families = config, role, dict(families)
        self.images = HealthyImages(samples, config.value_attributes)
        self.normal, self.other = choose_rows(self.images.subject, count, config.seed, role, halves=bool(families))
        if families and not len(self.other):
            raise DataError(f"role {role}: there is no image to put an anomaly into")
        self.memory = memory or Memory()
        self._donors = Donors(self.images, config.seed)

    def __len__(self) -> int:
        """Images that a detector scores, those with empty masks counted."""
        return len(self.normal) + len(self.families) * len(self.other)

    def drawn(self, family: str) -> Drawn:
        """The rows and images of one family; of `NORMAL`, the normal rows."""
        if family == NORMAL:
            empty = np.full(len(self.normal), np.nan, np.float32)
            return Drawn(self.normal, None, empty, empty, 0)
        key = (self.role, family)
        if key not in self.memory.held:
            drawn = self._draw(family)
            self.memory.keep(key, drawn)
            return drawn
        return self.memory.held[key]

    def batches(self, drawn: Drawn, size: int) -> Iterator[ImageBatch]:
        """The images to score, in order, with masks and conditions."""
        for begin in range(0, len(drawn.rows), size):
            batch = self.images.batch(drawn.rows[begin : begin + size])
            yield batch if drawn.images is None else batch.with_images(drawn.images[begin : begin + size])

    def _draw(self, family: str) -> Drawn:
        """Draw an anomaly of this family into every row that gets one; those with an empty mask are left out."""
        scene, parts, kept = scene_of(self.config), [], []
        ids = self.images.samples.sample_id
        for rows in self.other.split(DRAWN_AT_ONCE):
            batch = self.images.batch(rows)
            found = self.families[family].draw(
                batch, seed=self.config.seed, sample_ids=ids[rows].tolist(), scene=scene, donors=self._donors(rows)
            )
            full = found.masks.flatten(1).amax(1) > 0
            parts.append((found.images[full], found.size[full], found.contrast[full]))
            kept.append(rows[full])
        images, size, contrast = (torch.cat(column) for column in zip(*parts, strict=True))
        rows = torch.cat(kept)
        return Drawn(rows, images, size.numpy(), contrast.numpy(), len(self.other) - len(rows))


def choose_rows(subject: NDArray[np.str_], count: int, seed: int, role: str, *, halves: bool) -> tuple[Tensor, Tensor]:
    """Distinct random rows, normal ones and others that get anomalies, of every subject as evenly as can be.

    Every subject's rows are shuffled; the first of each are normal, the second get anomalies, and so on, until there are enough.
    The only row of a subject is both.

    Args:
        subject: whose each row is, (N,).
        count: of each kind.
        seed: the experiment's.
        role: another role, other rows.
        halves: whether there are others; else all rows are normal, and there is no other.

    Returns:
        int64 (n,) and (m,), at most `count` each.
    """
    shuffled = torch.randperm(len(subject), generator=seeded(seed, "cases", role)).numpy()
    owner = np.unique(subject, return_inverse=True)[1][shuffled]
    grouped = np.argsort(owner, kind="stable")
    size = np.bincount(owner)
    rank = np.empty(len(owner), np.int64)  # of each shuffled row among those of its subject
    rank[grouped] = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
    order = np.argsort(rank, kind="stable")
    second = rank[order] % 2 == 1 if halves else np.zeros(len(order), bool)
    both = size[owner[order]] == 1 if halves else second
    normal, other = (torch.from_numpy(shuffled[order[part]][:count]) for part in (~second, second | both))
    return normal, other
