"""Small worlds for detectors: textured pictures that turn with an angle, and patches of a small cohort of brains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.config import Config
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import SampleSet, StoredImages, load_samples, to_uint8
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.checkpoint import save_module

SUBJECTS, EACH = 6, 32


@dataclass(frozen=True)
class World:
    """Something to learn from, and normal images of other subjects."""

    training: Training
    others: HealthyImages

    def changed(self, **changes: Any) -> World:
        """The same with other fields of `training`."""
        return replace(self, training=replace(self.training, **changes))


def turning_pictures(side: int) -> SampleSet:
    """A slope that turns with the angle, under noise: six subjects, 32 angles each."""
    random = torch.Generator().manual_seed(0)
    degrees = torch.linspace(0, 90, EACH).repeat(SUBJECTS)
    slope = torch.linspace(-0.5, 0.5, side)
    angle = torch.deg2rad(degrees).view(-1, 1, 1, 1)
    smooth = angle.cos() * slope[:, None] + angle.sin() * slope
    images = smooth.expand(-1, 3, -1, -1) + 0.15 * torch.randn(len(degrees), 3, side, side, generator=random)
    return SampleSet(
        images=StoredImages(to_uint8(images)),
        subject=torch.arange(SUBJECTS).repeat_interleave(EACH),
        subjects=tuple(f"picture-{i}" for i in range(SUBJECTS)),
        values={"angle_degrees": degrees[:, None]},
        sample_id=torch.arange(len(degrees)),
    )


@pytest.fixture
def world(
    toy_config: Callable[..., Config],
    toy_brain_config: Callable[..., Config],
    prepared_cohort: Callable[..., PreparedCohort],
    tmp_path: Path,
) -> Callable[..., World]:
    """Makes `pictures` of a side or `brains`, with an identity network of random weights in the folder `auxiliary`."""

    def make(kind: str, side: int = 8) -> World:
        if kind == "pictures":
            config, scene = toy_config(), Scene(dims=2, spacing_mm=None)
            samples = turning_pictures(side)
        else:
            data = {"root": str(prepared_cohort().folder), "patches_per_subject": EACH}
            config, scene = toy_brain_config(data=data), Scene(dims=3, spacing_mm=2.0)
            samples = load_samples(config.data, config.image_size)
        first, rest = (
            HealthyImages(samples.select(rows.nonzero()[:, 0]), config.value_attributes)
            for rows in (samples.subject < 4, samples.subject >= 4)
        )
        torch.manual_seed(1)
        folder = tmp_path / "auxiliary"
        folder.mkdir(exist_ok=True)
        attribute = config.attributes[0]
        save_module(AuxiliaryNetwork.from_config(attribute, config), folder / f"{attribute.name}.safetensors")
        training = Training(
            config=config,
            healthy=first,
            anomalous=lambda batch, rows: blocks(batch),
            scene=scene,
            images=96,
            network_images=64,
            seed=3,
            device=torch.device("cpu"),
            folders={"auxiliary": folder},
            progress=lambda done, of: None,
        )
        return World(training, rest)

    return make


def blocks(batch: ImageBatch, first: int | None = None) -> AnomalyBatch:
    """One white block of half the side in every image, from this place on or in the middle, inside the mask."""
    inside = torch.zeros_like(batch.images[:, :1])
    side = inside.shape[-1]
    start = side // 4 if first is None else first
    inside[(..., *(slice(start, start + side // 2),) * (inside.ndim - 2))] = 1.0
    if batch.masks is not None:
        inside = inside * batch.masks
    images = torch.where(inside > 0, 1.0, batch.images)
    ones = torch.ones(len(batch))
    return AnomalyBatch(images, inside, ones, ones)


@pytest.fixture
def with_blocks() -> Callable[..., ImageBatch]:
    """Draws `blocks` into a batch."""
    return lambda batch, first=None: batch.with_images(blocks(batch, first).images)


@pytest.fixture
def rows_of() -> Callable[[HealthyImages, int], Tensor]:
    """Every n-th row, so that all subjects and angles are among them."""
    return lambda healthy, count: torch.linspace(0, len(healthy) - 1, count).long()
