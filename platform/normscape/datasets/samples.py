"""Samples in memory: images, whose they are, and the attribute values known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normscape.config import DataConfig
from normscape.datasets import chairs, rc49
from normscape.errors import DataError

ANGLE_COLUMN = "angle_degrees"


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]; any shape."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0..255, clamped and rounded; any shape. Undoes `to_unit_range` exactly."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class SampleSet:
    """Images with their subjects and values, row by row."""

    images: Tensor
    """uint8 (N, C, *S); may be memory-mapped."""
    subject: Tensor
    """int64 (N,): place in `subjects`."""
    subjects: tuple[str, ...]
    """Names of the subjects."""
    values: dict[str, Tensor]
    """Column name -> float32 (N, d) in natural units, e.g. `angle_degrees` (N, 1)."""
    sample_id: Tensor
    """int64 (N,): row in the full set; kept by `select`."""

    def __post_init__(self) -> None:
        n = len(self.images)
        lengths = {"subject": len(self.subject), "sample_id": len(self.sample_id), **{k: len(v) for k, v in self.values.items()}}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong or self.images.dtype != torch.uint8:
            raise ValueError(
                f"a sample set needs uint8 images and equally long columns: {n} images of {self.images.dtype}, {wrong}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Tensor:
        """The images of these rows: float32 (B, C, *S) in [-1, 1]."""
        return to_unit_range(self.images[index])

    def select(self, index: Tensor) -> SampleSet:
        """The subset of these rows; `subjects` stays whole, so that `subject` keeps its meaning."""
        return SampleSet(
            images=self.images[index],
            subject=self.subject[index],
            subjects=self.subjects,
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


def load_samples(config: DataConfig, image_size: int, *, progress: Callable[[int, int], None] | None = None) -> SampleSet:
    """All samples of the configured source.

    Args:
        config: source, angles and rendering.
        image_size: side S of the images, in pixels.
        progress: called with (images done, images in all) while chairs are rendered for the first time.

    Raises:
        DataError: the file is not what it should be, or the cache cannot be written.
    """
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
        images=torch.from_numpy(images),
        subject=torch.from_numpy(subject.astype(np.int64)),
        subjects=subjects,
        values={ANGLE_COLUMN: torch.from_numpy(angles.astype(np.float32)).unsqueeze(1)},
        sample_id=torch.arange(len(images)),
    )
