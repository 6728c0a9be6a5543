"""Stage `network`: train the system's conditional network (`normscape.evaluation.network`), if `network.images` asks for one.

It learns from training subjects alone, with synthetic anomalies of `network.families`. Projected images get its log odds as a
column beside their residuals, and stage `score` averages them with those of the forest.

Writes `network.safetensors`: the weights, and the normative model whose z-scores it sees; and `losses.npy`, float32 (steps,).
A training that was cut off goes on from its newest checkpoint, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from normscape.baselines import Checkpoints, Training
from normscape.baselines.learning import Inputs
from normscape.baselines.networks import FoldedUNet
from normscape.baselines.normative import NormativeModel
from normscape.baselines.supervised import WIDTH
from normscape.config import Config
from normscape.datasets.anomalies import load_family
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.errors import CheckpointError
from normscape.evaluation.cases import TrainingAnomalies, scene_of
from normscape.evaluation.inverting import BOTH, KnownConditions
from normscape.evaluation.network import ConditionalNetwork
from normscape.networks.auxiliary import freeze
from normscape.stages.core import StageContext
from normscape.stages.prepare import open_samples
from normscape.training.checkpoint import TrainingState

NETWORK_NAME = "network.safetensors"
WEIGHTS, NORMATIVE = "weights/", "normative/"
"""Prefixes of the tensors."""


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
    weights = {f"{WEIGHTS}{name}": tensor.cpu().contiguous() for name, tensor in network.network_.state_dict().items()}
    normative = {f"{NORMATIVE}{name}": tensor for name, tensor in network.model_.to_tensors().items()}
    save_file(weights | normative, context.folder / NETWORK_NAME)
    losses = network.loss_.numpy()
    np.save(context.folder / "losses.npy", losses)
    TrainingState.clear(checkpoints)
    last = losses[-max(1, len(losses) // 10) :]
    return {"loss": float(last.mean()), "steps": float(len(losses))}


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
        path = folder / NETWORK_NAME
        self.detector = detector = _untrained(config)
        try:
            tensors = load_file(path)
            detector.inputs_ = Inputs.known(config, device)
            detector.known_ = KnownConditions(BOTH, {})
            detector.model_ = NormativeModel().restore(_under(NORMATIVE, tensors), config, device)
            width = detector.width or WIDTH[config.dims]
            channels = 2 * config.image_channels  # the image, and its z-scores
            network = FoldedUNet(config.dims, channels, 2, width=width, values=detector.inputs_.width)
            network.load_state_dict(_under(WEIGHTS, tensors))
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path}: not a readable conditional network ({error})") from error
        except RuntimeError as error:
            raise CheckpointError(f"{path}: holds another network than the configuration describes\n{error}") from error
        detector.network_ = network.to(device)
        freeze(detector.network_)

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


def _untrained(config: Config) -> ConditionalNetwork:
    settings = config.network
    return ConditionalNetwork(
        width=settings.width,
        map_weight=settings.map_weight,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
