"""What a baseline is fitted to, at toy size: pictures of side 8 with three channels, or masked patches of side 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.config import Config
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.checkpoint import save_module

Kind = Literal["pictures", "patches"]
TRAIN_SUBJECTS = 4


def obvious(batch: ImageBatch) -> ImageBatch:
    """The same images with a corner, which lies under every mask, as far from its own mean as can be."""
    images = batch.images.clone()
    corner = (..., *(slice(4, 8),) * (images.ndim - 2))
    dims = tuple(range(1, images.ndim))
    images[corner] = torch.where(images[corner].mean(dims, keepdim=True) > 0, -1.0, 1.0).expand_as(images[corner])
    return batch.with_images(images)


@dataclass
class Toy:
    """A training, other images of the same kind, and what was asked of it while a detector was fitted."""

    training: Training
    unseen: ImageBatch
    """Normal images of subjects that were not trained on."""
    anomalous_rows: list[Tensor] = field(default_factory=list)
    """Training rows into which anomalies were drawn."""
    progress: list[tuple[int, int]] = field(default_factory=list)

    @property
    def abnormal(self) -> ImageBatch:
        """The unseen images with an obvious anomaly each."""
        return obvious(self.unseen)


class CountedImages(HealthyImages):
    """Normal images that count how many were drawn."""

    drawn = 0

    def batch(self, rows: Tensor) -> ImageBatch:
        self.drawn += len(rows)
        return super().batch(rows)


@pytest.fixture
def toy_training(
    toy_config: Callable[..., Config],
    toy_samples: Callable[..., SampleSet],
    toy_brain_config: Callable[..., Config],
    toy_brain_samples: Callable[..., SampleSet],
    tmp_path: Path,
) -> Callable[..., Toy]:
    """Makes `Toy`: `toy_training("patches", network_images=320, seed=1)`."""

    def make(kind: Kind = "pictures", *, network_images: int = 320, seed: int = 0) -> Toy:
        pictures = kind == "pictures"
        config = toy_config() if pictures else toy_brain_config()
        samples = toy_samples() if pictures else toy_brain_samples()
        known = samples.subject < TRAIN_SUBJECTS
        healthy = CountedImages(samples.select(known.nonzero().squeeze(1)), config.value_attributes)
        unseen = HealthyImages(samples.select((~known).nonzero().squeeze(1)), config.value_attributes)
        attribute = config.attributes[0]
        torch.manual_seed(0)
        save_module(AuxiliaryNetwork.from_config(attribute, config), tmp_path / f"{attribute.name}.safetensors")

        def draw(batch: ImageBatch, rows: Tensor) -> AnomalyBatch:
            toy.anomalous_rows.append(rows)
            changed = obvious(batch).images
            cover = (changed != batch.images).any(1, keepdim=True).float()
            contrast = (changed - batch.images).abs().flatten(1).mean(1)
            return AnomalyBatch(changed, cover, torch.full((len(rows),), 2.0), contrast)

        toy = Toy(
            Training(
                config=config,
                healthy=healthy,
                anomalous=draw,
                scene=Scene(config.dims, None if pictures else 2.0),
                images=32,
                network_images=network_images,
                seed=seed,
                device=torch.device("cpu"),
                folders={"auxiliary": tmp_path},
                progress=lambda done, total: toy.progress.append((done, total)),
            ),
            unseen.batch(torch.arange(len(unseen))),
        )
        return toy

    return make
