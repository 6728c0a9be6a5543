"""A network that judges an image beside what was to be expected there: the conditional detector without features of our choosing.

The idea of DRAEM (Zavrtanik et al. 2021), a network that sees the image beside what it should look like and is trained on
synthetic anomalies, under conditions: what is expected comes from a voxel-wise normative model given position and age.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.known import BOTH, NONE, SHUFFLED, KnownConditions
from normscape.baselines.learning import OUTSIDE, Inputs, Seen
from normscape.baselines.networks import FoldedUNet
from normscape.baselines.normative import NormativeModel
from normscape.baselines.places import conditions_of, drawn_rows
from normscape.baselines.supervised import WIDTH, Supervised
from normscape.config import Config
from normscape.datasets.batches import ImageBatch
from normscape.datasets.randomisation import RandomisedImages
from normscape.datasets.samples import to_uint8
from normscape.errors import CheckpointError
from normscape.losses.masked import within
from normscape.networks.auxiliary import freeze

Z_SHOWN = 4.0
"""Standard deviations that the network sees as 1; what lies further away is cut off at twice that."""
_WEIGHTS, _NORMATIVE = "weights/", "normative/"
"""Prefixes of the tensors in a file."""


class ConditionalNetwork(Supervised):
    """The supervised network with more to see: signed z-scores at each place, and the known values.

    Args:
        atlas: show the z-scores of a normative model (`normscape.baselines.normative`), given the conditions.
        conditions: which known conditions are used: `both` (all of them), `none`, the name of a single one, or `shuffled`; see
            `normscape.baselines.known.KnownConditions`.
        randomise: share of the training images that are shown as another scanner might have shown them
            (`normscape.datasets.randomisation`); that of the experiment when empty.
        settings: of `Supervised`: width, map_weight, learning_rate, batch_size, images.

    Raises:
        ValueError: a setting is out of its range.
    """

    name = "conditional_network"
    sections: tuple[str, ...] = ("randomisation",)
    model_: NormativeModel
    known_: KnownConditions

    def __init__(self, *, atlas: bool = True, conditions: str = BOTH, randomise: float | None = None, **settings: Any) -> None:
        super().__init__(conditions="known", **settings)
        self.atlas, self.which, self.randomise = atlas, conditions, randomise

    def fit(self, training: Training) -> Self:
        """Train it to tell normal training images from training images with anomalies; see `Supervised.fit`."""
        return super().fit(with_randomised(training, self.randomise))

    def _prepare(self, training: Training) -> int:
        rows = drawn_rows(training, self.name)  # whose conditions stand in for unknown ones
        self.known_ = KnownConditions(self.which, conditions_of(training, rows, shuffled=False, purpose=self.name))
        if self.atlas:
            known, position = _normative(self.which, training)
            self.model_ = NormativeModel(conditions=known, position="known" if position else "none").fit(training)
        return training.healthy.shape[0] * self.atlas

    @torch.no_grad()
    def _see(self, batch: ImageBatch) -> Seen:
        inside = within(batch.images, batch.images.new_full((), OUTSIDE), batch.masks)  # noise outside picks no conditions
        batch = replace(batch, conditions=self.known_.of(to_uint8(inside), batch.conditions))
        seen = super()._see(batch)
        if not self.atlas:
            return seen
        z = (self.model_.z(batch) / Z_SHOWN).clamp(-2, 2).to(seen.images.dtype)
        return replace(seen, images=torch.cat([seen.images, z], dim=1))

    def save(self, path: Path) -> None:
        """Write the fitted network and its normative model, of a detector that uses all conditions and the z-scores."""
        weights = {f"{_WEIGHTS}{name}": tensor.cpu().contiguous() for name, tensor in self.network_.state_dict().items()}
        save_file(weights | {f"{_NORMATIVE}{name}": tensor for name, tensor in self.model_.to_tensors().items()}, path)

    def restore(self, path: Path, config: Config, device: torch.device) -> Self:
        """Undoes `save`, for a detector of the same settings.

        Args:
            path: of the file.
            config: the experiment.
            device: where to compute.

        Raises:
            CheckpointError: the file is missing, damaged, or of another network.
        """
        self.inputs_, self.known_ = Inputs.known(config, device), KnownConditions(BOTH, {})
        channels = 2 * config.image_channels  # the image, and its z-scores
        network = FoldedUNet(config.dims, channels, 2, width=self.width or WIDTH[config.dims], values=self.inputs_.width)
        try:
            tensors = load_file(path)
            self.model_ = NormativeModel().restore(_under(_NORMATIVE, tensors), config, device)
            network.load_state_dict(_under(_WEIGHTS, tensors))
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path}: not a readable conditional network ({error})") from error
        except RuntimeError as error:
            raise CheckpointError(f"{path}: holds another network than the configuration describes\n{error}") from error
        self.network_ = network.to(device)
        freeze(self.network_)
        return self


def with_randomised(training: Training, share: float | None = None) -> Training:
    """The same with a share of its normal images as other scanners might have shown them; the experiment's share when None."""
    config = training.config.randomisation
    if share is not None:
        config = config.model_copy(update={"share": share})
    if not config.share:
        return training
    return replace(training, healthy=RandomisedImages(training.healthy, config, training.config.seed))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _normative(which: str, training: Training) -> tuple[str | Sequence[str], bool]:
    """Conditions of the normative model, and whether it knows the position."""
    place = training.config.position
    if which in (BOTH, SHUFFLED):
        return ("all" if which == BOTH else "shuffled"), True
    if which == NONE or (place is not None and which == place.name):
        return "none", which != NONE
    return (which,), False
