"""Batches of images with what is known about them, as detectors and anomaly families see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import AttributeConfig
from normscape.datasets.samples import SampleSet


@dataclass(frozen=True)
class ImageBatch:
    """B images with their masks and known conditions, on the CPU."""

    images: Tensor
    """float32 (B, C, *S) in [-1, 1]."""
    masks: Tensor | None
    """What counts: bool (B, 1, *S); None when everything does."""
    conditions: Mapping[str, Tensor]
    """Value attribute to its known values, float32 (B, D) in the attribute's unit: `angle`; `age`, `position`."""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor | slice) -> ImageBatch:
        """Some of the images."""
        conditions = {name: value[index] for name, value in self.conditions.items()}
        return ImageBatch(self.images[index], None if self.masks is None else self.masks[index], conditions)

    def with_images(self, images: Tensor) -> ImageBatch:
        """The same masks and conditions with other images."""
        return ImageBatch(images, self.masks, self.conditions)

    @classmethod
    def together(cls, parts: Sequence[ImageBatch]) -> ImageBatch:
        """One batch after the other; all of them have masks, or none has."""
        masks = [part.masks for part in parts if part.masks is not None]
        conditions = {name: torch.cat([part.conditions[name] for part in parts]) for name in parts[0].conditions}
        return cls(torch.cat([part.images for part in parts]), torch.cat(masks) if masks else None, conditions)


class HealthyImages:
    """Normal images of one split, drawn when they are asked for; a row is always the same image.

    Args:
        samples: the split's samples.
        attributes: the value attributes, whose columns become conditions.
    """

    def __init__(self, samples: SampleSet, attributes: Sequence[AttributeConfig]) -> None:
        self.samples = samples
        self.columns = {a.name: a.column or "" for a in attributes}

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one image."""
        return self.samples.images.shape

    @property
    def subject(self) -> NDArray[np.str_]:
        """Whose image each row is, (N,)."""
        return np.asarray(self.samples.subjects)[self.samples.subject.numpy()]

    def batch(self, rows: Tensor) -> ImageBatch:
        """The images of these rows, int64 (B,)."""
        images, values = self.samples.draw(rows)
        conditions = {name: values[column] for name, column in self.columns.items()}
        return ImageBatch(images, self.samples.masks(rows), conditions)

    def random_rows(self, count: int, random: torch.Generator) -> Tensor:
        """Distinct rows, at most all of them, int64 (B,)."""
        return torch.randperm(len(self), generator=random)[:count]
