"""What the conditional detector reads: images of unseen chairs, what a small generator rebuilds of them, and what it misses."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infra.docs.pictures.fitted import ROOT, unseen_chairs
from infra.docs.pictures.sheet import INK, PAPER, save
from normscape.config import PluginConfig
from normscape.configio import load_config
from normscape.datasets.anomalies import load_family
from normscape.stages.core import run_stages
from normscape.stages.models import load_projector

SHORT = [
    *[f"attributes.{name}.auxiliary.epochs=3" for name in ("identity", "angle")],
    "gan.steps=420",
    "gan.warmup_steps=400",
    "gan.quality_samples=64",
    "gan.sample_interval=420",
    "latents.samples=1024",
]
"""The demo with a training of minutes."""


def conditional(path: Path) -> None:
    """docs/conditional-detector.md: two chairs, each normal and with a blot, projected at their known angles."""
    config = load_config(ROOT / "configs" / "chairs" / "demo.yaml", [*SHORT, "name=pictures", "device=cpu"])
    chairs = unseen_chairs()
    normal = chairs.batch.rows(slice(0, 2))
    family = load_family(PluginConfig(name="standard"))
    drawn = family.draw(normal, seed=1, sample_ids=[0, 1], scene=chairs.scene)
    order = [0, 2, 1, 3]
    images = torch.cat([normal.images, drawn.images])[order]
    values = {name: torch.cat([value, value])[order] for name, value in normal.conditions.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = run_stages(config, Path(folder), last="latents")
        projection = load_projector(config, result.stages, torch.device("cpu")).project(images, values)
    lengths = {name: value.square().mean(1).sqrt() for name, value in projection.lengths().items()}
    missed = (images - projection.images).abs().mean(1)
    figure = Figure(figsize=(8.0, 6.6), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(images))
    for i, column in enumerate(grid.T):
        for axis, one in zip(column, (images[i], projection.images[i]), strict=False):
            axis.imshow(np.clip((one.permute(1, 2, 0).numpy() + 1) / 2, 0, 1), interpolation="nearest")
        column[2].imshow(missed[i].numpy(), cmap="magma_r", vmin=0, vmax=float(missed.max()) * 0.8, interpolation="nearest")
        column[0].set_title("with a blot" if i % 2 else "normal", fontsize=10, color=INK)
        residual = float(projection.residuals["residual_patch8"][i])
        told = f"worst place {residual:.2f}\nlength of identity {float(lengths['identity'][i]):.1f}"
        column[2].set_xlabel(told, fontsize=8.6, color=INK)
    for axis, name in zip(grid[:, 0], ("image", "rebuilt at its angle", "residual"), strict=True):
        axis.set_ylabel(name, fontsize=10, color=INK)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#d0d3d7")
    save(figure, path)
