"""Detectors of images that are compared with each other, one file each: the interface of PyOD on images.

To add one, write a class in a file of your own and name it `module:Class` in `evaluation.detectors`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import Config, PluginConfig
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.plugins import build

Scores = NDArray[np.float64]
Draw = Callable[[ImageBatch, Tensor], AnomalyBatch]
"""(normal images, their rows, int64 (B,)) to the same with an anomaly each, of the families that detectors may learn from."""


@dataclass(frozen=True)
class Checkpoints:
    """Where a training by gradients keeps what it needs to go on as if it had never been cut off."""

    folder: Path
    """Holds the newest ones."""
    digest: str
    """Identifies what is trained; a checkpoint of something else is refused."""
    interval: int
    """Steps from one to the next."""


@dataclass(frozen=True)
class Training:
    """What a detector is fitted to."""

    config: Config
    """The experiment."""
    healthy: HealthyImages
    """Normal images of the training subjects."""
    anomalous: Draw
    """Draws anomalies into training images; only for detectors with `supervision = "synthetic"`."""
    scene: Scene
    """Dimension and spacing."""
    images: int
    """Normal images that a detector without gradient steps may keep."""
    network_images: int
    """Normal images, repeats counted, that a detector with gradient steps may look at."""
    seed: int
    """Of every random choice."""
    device: torch.device
    """Where to compute."""
    folders: dict[str, Path]
    """Finished folders of the experiment's stages, by name; empty for an experiment that was not run."""
    progress: Callable[[int, int], None]
    """Called with (done, in all)."""
    kept: Path | None = None
    """Folder for results that other detectors and seeds can use again; nothing is kept when None."""
    checkpoints: Checkpoints | None = None
    """Of a detector that trains one network in one go; none are written when None."""


class ImageDetector(Protocol):
    """Tells abnormal images from normal ones; attributes ending in `_` exist after `fit`.

    One that reads `Training.folders` names the stages whose folders they are in an attribute `stages`; one that reads other
    sections of `Training.config` than `data` and `evaluation` names them in `sections`, to be evaluated anew when they change.
    """

    supervision: Literal["none", "synthetic"]
    """Whether `fit` sees synthetic anomalies."""

    def fit(self, training: Training) -> Self:
        """Learn from the training subjects.

        Raises:
            DataError: the images are not of the kind that the detector is for.
        """

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores (B,), higher is more abnormal; an image's score does not depend on the rest of its batch."""

    def anomaly_map(self, batch: ImageBatch) -> Tensor | None:
        """Where: float32 (B, 1, *S), higher is more abnormal, 0 outside the masks; None where the detector cannot tell."""


DETECTORS: dict[str, str] = {
    "atlas": "normscape.baselines.atlas:AtlasDetector",
    "autoencoder": "normscape.baselines.autoencoder:Autoencoder",
    "conditional": "normscape.evaluation.conditional:ConditionalDetector",
    "conditional_network": "normscape.baselines.conditional_network:ConditionalNetwork",
    "conditional_pooled": "normscape.evaluation.pooled:PooledDetector",
    "conditional_unsupervised": "normscape.evaluation.conditional:UnsupervisedConditionalDetector",
    "denoising": "normscape.baselines.denoising:DenoisingAutoencoder",
    "deviation": "normscape.baselines.deviation:DeviationDetector",
    "diffusion": "normscape.baselines.diffusion:Diffusion",
    "fae": "normscape.baselines.fae:FeatureAutoencoder",
    "fanogan": "normscape.baselines.fanogan:FastAnoGan",
    "ganomaly": "normscape.baselines.ganomaly:Ganomaly",
    "intensity": "normscape.baselines.intensity:IntensityDetector",
    "neighbours": "normscape.baselines.neighbours:NeighboursDetector",
    "padim": "normscape.baselines.padim:PadimDetector",
    "patchcore": "normscape.baselines.patchcore:PatchCoreDetector",
    "pca": "normscape.baselines.pca:PcaDetector",
    "supervised": "normscape.baselines.supervised:Supervised",
    "vae": "normscape.baselines.vae:VariationalAutoencoder",
}
"""Built-in detectors: name to `module:Class`."""


def load_detector(entry: PluginConfig) -> ImageDetector:
    """The unfitted detector that a configuration entry names.

    Raises:
        ConfigError: there is none, or it does not take these settings.
    """
    detector: ImageDetector = build(entry, DETECTORS, kind="detector")
    return detector
