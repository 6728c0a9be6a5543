"""Anomaly maps of detectors that are fitted here to rendered chairs, small, so that drawing them takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from infra.docs.pictures.sheet import INK, PAPER, save
from normscape.baselines import Training, load_detector
from normscape.baselines.anomalies import TrainingAnomalies, scene_of
from normscape.config import Config, PluginConfig
from normscape.configio import load_config
from normscape.datasets.anomalies import Scene, load_family
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.samples import load_samples, split_subjects

ROOT = Path(__file__).resolve().parents[3]
IMAGES, LOOKS = 600, 6000
"""Training images of detectors without gradient steps, and looks of those with them."""
SHOWN = (("standard", 0), ("clear", 1), ("textured", 2), ("normal", 3))
"""Family and unseen chair of each row."""


@dataclass(frozen=True)
class Chairs:
    """Views of chairs in neither split, and what is learned from.

    Attributes:
        config: of the demo.
        healthy: views of the training chairs.
        batch: one view of each chair that is in neither split.
        rows: their places in the data set, (B,).
        scene: pictures, without a scale.
    """

    config: Config
    healthy: HealthyImages
    batch: ImageBatch
    rows: Tensor
    scene: Scene


def unseen_chairs() -> Chairs:
    """Render the chairs of the demo and divide them as it does; the test chairs stay closed."""
    config = load_config(ROOT / "configs" / "chairs" / "demo.yaml")
    samples = load_samples(config.data, config.image_size, seed=config.seed)
    split = split_subjects(samples.subjects, config.data.train_subjects, config.data.test_subjects, config.seed)
    train = torch.isin(samples.subject, torch.tensor(split.train)).nonzero().squeeze(1)
    others = sorted(set(range(len(samples.subjects))) - set(split.train) - set(split.test))
    views = [(samples.subject == chair).nonzero().squeeze(1) for chair in others]
    rows = torch.stack([view[len(view) * (k + 1) // (len(views) + 1)] for k, view in enumerate(views)])
    everything = HealthyImages(samples, config.value_attributes)
    healthy = HealthyImages(samples.select(train), config.value_attributes)
    return Chairs(config, healthy, everything.batch(rows), rows, scene_of(config))


def without_gradients(path: Path) -> None:
    """docs/detectors.md: detectors that need no finished run."""
    _maps(path, ("intensity", "deviation", "atlas", "pca"))


def with_gradients(path: Path) -> None:
    """docs/baselines-neural.md: three of the networks, trained for a minute."""
    _maps(path, ("autoencoder", "denoising", "supervised"))


def _maps(path: Path, names: Sequence[str]) -> None:
    """A row an image: as it is, with an anomaly, and the map of each detector, on one scale a detector, square roots."""
    chairs = unseen_chairs()
    images, masks = _anomalies(chairs)
    seen = {"standard": load_family(PluginConfig(name="standard"))}
    training = Training(
        config=chairs.config, healthy=chairs.healthy, anomalous=TrainingAnomalies(chairs.config, seen, chairs.healthy, 0),
        scene=chairs.scene, images=IMAGES, network_images=LOOKS, seed=0, device=torch.device("cpu"), folders={},
        progress=lambda done, total: None,
    )  # fmt: skip
    shown = chairs.batch.rows(slice(0, len(SHOWN))).with_images(images)
    figure = Figure(figsize=(8.0, 8.0 * (len(SHOWN) + 0.25) / (len(names) + 1.35)), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(SHOWN), len(names) + 1)
    for axis, (family, _), image, mask in zip(grid[:, 0], SHOWN, images, masks, strict=True):
        axis.imshow((image.permute(1, 2, 0).numpy() + 1) / 2, interpolation="nearest")
        if mask.any():
            axis.contour(mask[0].numpy(), levels=[0.5], colors="#d55e00", linewidths=1.2)
        axis.set_ylabel(family, fontsize=10, color=INK)
    grid[0, 0].set_title("image", fontsize=10, color=INK)
    for name, column in zip(names, grid.T[1:], strict=True):
        detector = load_detector(PluginConfig(name=name)).fit(training)
        found = detector.anomaly_map(shown)
        assert found is not None, f"{name} gives no map"
        top = float(np.quantile(found.numpy(), 0.998))
        for axis, one in zip(column, found[:, 0].numpy(), strict=True):
            axis.imshow(one, cmap="magma_r", norm=PowerNorm(0.5, vmin=0, vmax=top, clip=True), interpolation="nearest")
        column[0].set_title(name, fontsize=10, color=INK)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#d0d3d7")
    save(figure, path)


def _anomalies(chairs: Chairs) -> tuple[Tensor, Tensor]:
    """The shown images (B, C, H, W) and their masks (B, 1, H, W)."""
    images, masks = chairs.batch.images[: len(SHOWN)].clone(), torch.zeros(len(SHOWN), 1, *chairs.batch.images.shape[2:])
    for row, (family, chair) in enumerate(SHOWN):
        one = chairs.batch.rows(slice(chair, chair + 1))
        images[row] = one.images[0]
        if family != "normal":
            drawn = load_family(PluginConfig(name=family)).draw(one, seed=1, sample_ids=[row], scene=chairs.scene)
            images[row], masks[row] = drawn.images[0], drawn.masks[0]
    return images, masks
