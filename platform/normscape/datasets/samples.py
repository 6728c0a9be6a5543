"""Samples: images, whose they are, and the attribute values known of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from normscape.config import DataConfig
from normscape.datasets import chairs, patches, rc49
from normscape.errors import DataError

ANGLE_COLUMN = "angle_degrees"


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]; any shape."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0..255, clamped and rounded; any shape. Undoes `to_unit_range` exactly."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


class ImageSource(Protocol):
    """Where the images of a sample set come from: memory, or cut from volumes when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one image."""

    def __len__(self) -> int: ...

    def draw(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of these rows, float32 (B, C, *S) in [-1, 1], and the values that drawing them changed, (B, d) each.

        Without `random` an image is a pure function of its row. With it, the source's own training augmentation is drawn.
        """

    def masks(self, rows: Tensor) -> Tensor | None:
        """What counts in these images: bool (B, 1, *S); None when everything does."""


@dataclass(frozen=True)
class StoredImages:
    """Images that are there already: in memory, or memory-mapped."""

    tensor: Tensor
    """uint8 (N, C, *S)."""

    def __post_init__(self) -> None:
        if self.tensor.dtype != torch.uint8:
            raise ValueError(f"stored images are uint8, found {self.tensor.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one image."""
        return tuple(self.tensor.shape[1:])

    def __len__(self) -> int:
        return len(self.tensor)

    def draw(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The stored images; `random` changes nothing."""
        return to_unit_range(self.tensor[rows]), {}

    def masks(self, rows: Tensor) -> None:
        """Everything counts."""
        return None


@dataclass(frozen=True)
class SampleSet:
    """Images with their subjects and values, row by row."""

    images: ImageSource
    """The images of the full set."""
    subject: Tensor
    """int64 (N,): place in `subjects`."""
    subjects: tuple[str, ...]
    """Names of the subjects."""
    values: dict[str, Tensor]
    """Column name -> float32 (N, d) in natural units, e.g. `angle_degrees` (N, 1)."""
    sample_id: Tensor
    """int64 (N,): row in the full set, and so in `images`; kept by `select`."""

    def __post_init__(self) -> None:
        n = len(self.subject)
        lengths = {"sample_id": len(self.sample_id), **{k: len(v) for k, v in self.values.items()}}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise ValueError(f"a sample set needs equally long columns: subject has {n} rows, {wrong}")
        if n and not 0 <= int(self.sample_id.min()) <= int(self.sample_id.max()) < len(self.images):
            raise ValueError(f"sample_id leaves the {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.sample_id)

    def batch(self, index: Tensor, random: torch.Generator | None = None) -> Tensor:
        """The images of these rows: float32 (B, C, *S) in [-1, 1]; augmented by their source when `random` is given."""
        return self.images.draw(self.sample_id[index], random)[0]

    def draw(self, index: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images and all values of these rows; where augmentation changes a value (the contrast), the value that was drawn."""
        images, drawn = self.images.draw(self.sample_id[index], random)
        return images, {name: column[index] for name, column in self.values.items()} | drawn

    def redraws(self, column: str) -> bool:
        """Whether augmentation draws this value anew: only augmented images then differ in it."""
        return column in self.images.draw(self.sample_id[:1], torch.Generator().manual_seed(0))[1]

    def masks(self, index: Tensor) -> Tensor | None:
        """What counts in the images of these rows: bool (B, 1, *S); None when everything does."""
        return self.images.masks(self.sample_id[index])

    def select(self, index: Tensor) -> SampleSet:
        """The subset of these rows; `images` and `subjects` stay whole, so that `sample_id` and `subject` keep their meaning."""
        return replace(
            self,
            subject=self.subject[index],
            values={name: column[index] for name, column in self.values.items()},
            sample_id=self.sample_id[index],
        )


@dataclass(frozen=True)
class Split:
    """Places of the training and test subjects, ascending; the others are unused."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def split_subjects(subjects: Sequence[str], n_train: int, n_test: int, seed: int) -> Split:
    """Draw the training and test subjects (thesis III.A.1: 40 chair types and 9).

    Args:
        subjects: names; only their number and order count.
        n_train: subjects to train on.
        n_test: subjects to test on.
        seed: same seed, same split.

    Raises:
        DataError: fewer subjects than asked.
    """
    if len(subjects) < n_train + n_test:
        raise DataError(f"the split asks {n_train} training + {n_test} test subjects, the data has {len(subjects)}")
    order = np.random.default_rng(seed).permutation(len(subjects))
    return Split(
        train=tuple(sorted(int(i) for i in order[:n_train])),
        test=tuple(sorted(int(i) for i in order[n_train : n_train + n_test])),
    )


def load_samples(
    config: DataConfig,
    image_size: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    learn_from: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSet:
    """All samples of the configured source.

    Args:
        config: source, angles and rendering, or the cohort and its patches.
        image_size: side S of the images, in pixels.
        seed: of the places of a cohort's patches.
        folder: where the tables of a cohort's patches are kept; they are made there when they are missing.
        learn_from: subjects that a training augmentation may learn from; all when None.
        progress: called with (done, in all) while chairs are rendered for the first time, or scans simulated or measured.

    Raises:
        DataError: the data are not what they should be, or the cache cannot be written.
    """
    if config.source == "brain":
        cohort = patches.open_cohort(config, progress)
        source = patches.open_patches(
            config, image_size, cohort=cohort, seed=seed, folder=folder, learn_from=learn_from, progress=progress
        )
        people, person = source.people()
        return SampleSet(source, person, people, source.values(), torch.arange(len(source)))
    if config.source == "rc49":
        assert config.path is not None  # checked by the schema
        images, types, angles = rc49.read_rc49(
            config.path, image_size=image_size, angle_min=config.angle_min_degrees, angle_max=config.angle_max_degrees
        )
        present, subject = np.unique(types, return_inverse=True)
        return _sample_set(images, subject, tuple(f"type-{number:02d}" for number in present), angles)
    grid = chairs.angle_grid(config.angle_min_degrees, config.angle_max_degrees, config.angle_step_degrees)
    names = chairs.chair_names()
    images = chairs.rendered_chairs(image_size=image_size, supersample=config.supersample, angles=grid, progress=progress)
    return _sample_set(images, np.repeat(np.arange(len(names)), len(grid)), names, np.tile(grid, len(names)))


def _sample_set(images: np.ndarray, subject: np.ndarray, subjects: tuple[str, ...], angles: np.ndarray) -> SampleSet:
    return SampleSet(
        images=StoredImages(torch.from_numpy(images)),
        subject=torch.from_numpy(subject.astype(np.int64)),
        subjects=subjects,
        values={ANGLE_COLUMN: torch.from_numpy(angles.astype(np.float32)).unsqueeze(1)},
        sample_id=torch.arange(len(images)),
    )
