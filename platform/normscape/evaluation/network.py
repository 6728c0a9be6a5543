"""A network that judges an image beside what was to be expected there: the conditional detector without features of our choosing.

The idea of DRAEM (Zavrtanik et al. 2021), a network that sees the image beside what it should look like and is trained on
synthetic anomalies, under conditions: what is expected comes from a voxel-wise normative model given position and age, or from
the conditional generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.learning import OUTSIDE, Seen
from normscape.baselines.normative import NormativeModel
from normscape.baselines.places import conditions_of, drawn_rows
from normscape.baselines.supervised import Supervised
from normscape.datasets.batches import ImageBatch
from normscape.datasets.samples import to_uint8
from normscape.errors import ConfigError
from normscape.evaluation.inverting import BOTH, NONE, SHUFFLED, STAGES, KnownConditions
from normscape.inversion.normals import ENCODED
from normscape.inversion.projector import Projector
from normscape.losses.masked import within
from normscape.stages.models import load_projector

Z_SHOWN = 4.0
"""Standard deviations that the network sees as 1; what lies further away is cut off at twice that."""


class ConditionalNetwork(Supervised):
    """The supervised network with more to see: signed z-scores at each place, and the difference to a conditional reconstruction.

    Args:
        atlas: show the z-scores of a normative model (`normscape.baselines.normative`), given the conditions.
        reconstruction: show the image less the generator's reconstruction from the encoder's styles, without optimisation, so
            that every training step can look at new anomalies. Off by default: training subjects are rebuilt better than new
            ones, whose normal images then look anomalous.
        conditions: which known conditions are used: `both` (all of them), `none`, the name of a single one, or `shuffled`; see
            `normscape.evaluation.inverting.KnownConditions`.
        settings: of `Supervised`: width, map_weight, learning_rate, batch_size.

    Raises:
        ValueError: a setting is out of its range.
    """

    name = "conditional_network"
    stages: tuple[str, ...] = ()
    model_: NormativeModel
    projector_: Projector
    known_: KnownConditions

    def __init__(self, *, atlas: bool = True, reconstruction: bool = False, conditions: str = BOTH, **settings: Any) -> None:
        super().__init__(conditions="known", **settings)
        self.atlas, self.reconstruction, self.which = atlas, reconstruction, conditions
        if reconstruction:
            self.stages = STAGES

    def _prepare(self, training: Training) -> int:
        channels = training.healthy.shape[0]
        rows = drawn_rows(training, self.name)  # whose conditions stand in for unknown ones
        self.known_ = KnownConditions(self.which, conditions_of(training, rows, shuffled=False, purpose=self.name))
        if self.atlas:
            known, position = _normative(self.which, training)
            self.model_ = NormativeModel(conditions=known, position="known" if position else "none").fit(training)
        if self.reconstruction:
            self.projector_ = load_projector(training.config, training.folders, training.device)
            if self.projector_.encoder is None:
                raise ConfigError("reconstruction: there is no encoder to rebuild images with (gan.reconstruction_weight)")
        return channels * (self.atlas + self.reconstruction)

    @torch.no_grad()
    def _see(self, batch: ImageBatch) -> Seen:
        inside = within(batch.images, batch.images.new_full((), OUTSIDE), batch.masks)  # noise outside picks no conditions
        batch = replace(batch, conditions=self.known_.of(to_uint8(inside), batch.conditions))
        seen = super()._see(batch)
        beside: list[Tensor] = []
        if self.atlas:
            beside.append((self.model_.z(batch) / Z_SHOWN).clamp(-2, 2).to(seen.images.dtype))
        if self.reconstruction:
            images = batch.images.to(self.projector_.device)
            beside.append(seen.difference(self.projector_.rebuilt_at_start(ENCODED, images, batch.conditions)))
        return replace(seen, images=torch.cat([seen.images, *beside], dim=1))


def _normative(which: str, training: Training) -> tuple[str | Sequence[str], bool]:
    """Conditions of the normative model, and whether it knows the position."""
    place = training.config.position
    if which in (BOTH, SHUFFLED):
        return ("all" if which == BOTH else "shuffled"), True
    if which == NONE or (place is not None and which == place.name):
        return "none", which != NONE
    return (which,), False
