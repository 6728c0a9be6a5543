"""Stage `network`: train the conditional network (`normscape.baselines.conditional_network`), if `network.images` asks for it.

It learns from training subjects, with synthetic anomalies of `network.families`. Projected images get its log odds as a column
beside their residuals, and stage `score` averages them with those of the forest.

Writes `network.safetensors`: the weights, and the normative model whose z-scores it sees.
A training that was cut off goes on from its newest checkpoint, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from normscape.baselines import Checkpoints, Training
from normscape.baselines.anomalies import TrainingAnomalies, scene_of
from normscape.baselines.conditional_network import ConditionalNetwork
from normscape.config import Config
from normscape.datasets.anomalies import load_family
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.stages.core import StageContext
from normscape.stages.prepare import open_samples
from normscape.training.checkpoint import TrainingState

NETWORK_NAME = "network.safetensors"
INTERVAL = 100
"""Steps whose mean loss is recorded."""


def run(context: StageContext) -> dict[str, float]:
    """Train it, from the newest checkpoint on.

    Raises:
        ConfigError: a family cannot be loaded.
        DataError: the data changed, or a family cannot be drawn into such images.
        CheckpointError: a checkpoint is damaged, or of another configuration.
    """
    config, settings = context.config, context.config.network
    samples, _ = open_samples(context)
    healthy = HealthyImages(samples, config.value_attributes)
    families = {entry.name: load_family(entry) for entry in settings.families}
    checkpoints = context.folder / "checkpoints"
    training = Training(
        config=config,
        healthy=healthy,
        anomalous=TrainingAnomalies(config, families, healthy, config.seed),
        scene=scene_of(config),
        images=len(healthy),
        network_images=settings.images,
        seed=config.seed,
        device=context.device,
        folders={},
        progress=lambda done, total: context.recorder.progress(done, total, "image"),
        checkpoints=Checkpoints(checkpoints, context.key, settings.checkpoint_interval),
    )
    network = _untrained(config).fit(training)
    network.save(context.folder / NETWORK_NAME)
    step = 0
    for part in network.loss_.split(INTERVAL):
        step += len(part)
        loss = float(part.mean())
        context.recorder.metrics({"loss": loss}, step)
    TrainingState.clear(checkpoints)
    return {"loss": loss, "steps": float(step)}


class TrainedNetwork:
    """The network of a finished stage, as whoever scores images asks it.

    Args:
        config: the experiment.
        folder: the finished folder of the stage.
        device: where to compute.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """

    def __init__(self, config: Config, folder: Path, device: torch.device) -> None:
        self.detector = _untrained(config).restore(folder / NETWORK_NAME, config, device)

    def log_odds(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Tensor:
        """How likely an image has an anomaly, where half of them do.

        Args:
            images: `(B, C, *S)` in [-1, 1].
            values: value attribute to known conditions `(B, D)` in the attribute's unit.
            masks: what counts, bool `(B, 1, *S)`; everything when None.

        Returns:
            Log odds, float32 `(B,)` on the CPU.
        """
        batch = ImageBatch(images.cpu(), None if masks is None else masks.cpu(), {name: v.cpu() for name, v in values.items()})
        return torch.from_numpy(self.detector.decision_function(batch)).float()


def load_network(config: Config, folders: Mapping[str, Path], device: torch.device) -> TrainedNetwork | None:
    """The network from the finished folders of an experiment; None where it has none. See `TrainedNetwork`."""
    return TrainedNetwork(config, folders["network"], device) if config.network.images else None


def _untrained(config: Config) -> ConditionalNetwork:
    settings = config.network
    return ConditionalNetwork(
        width=settings.width,
        map_weight=settings.map_weight,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
    )
