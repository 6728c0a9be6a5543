"""The supervised ceiling: a U-Net trained on the synthetic anomalies that detectors may learn from, with their masks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.learning import (
    Conditions,
    Course,
    Inputs,
    Seen,
    Step,
    check_choice,
    check_positive,
    fresh_weights,
    minimise,
)
from normscape.baselines.networks import FoldedUNet
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import weighted_mean

WIDTH = {2: 48, 3: 24}
"""Channels of the finest stage by dimension, unless set; the same time an image, about."""
_NOWHERE = -1e4
"""Evidence outside of the masks: none, and still finite where a mask is empty."""


class Supervised:
    """Half of each batch gets anomalies; the network says how anomalous every place is, and how much it speaks for an anomaly.

    A patch is normal, or it has one anomaly somewhere. If e is the log likelihood ratio of an anomaly about a place, and no
    place is likelier than another, then the image's own is the logarithm of the mean of exp(e) over the places: the score.

    Args:
        width: channels of the U-Net's finest stage; WIDTH when empty.
        map_weight: of the cross-entropy of the map, beside the image's.
        learning_rate, batch_size: of the training.
        conditions: known values that the network sees; see `Conditions`.
        images: normal images that it looks at, repeats counted; as many as all others when empty. A ceiling needs more, for it
            tells how well these anomalies can be found only once more would not help.
    """

    supervision: Literal["none", "synthetic"] = "synthetic"
    name = "supervised"
    """Part of the seed."""

    def __init__(
        self,
        *,
        width: int | None = None,
        map_weight: float = 5.0,
        learning_rate: float = 2e-3,
        batch_size: int = 32,
        conditions: Conditions = "none",
        images: int | None = None,
    ) -> None:
        given = {name: value for name, value in (("width", width), ("images", images)) if value is not None}
        check_positive(**given, learning_rate=learning_rate, batch_size=batch_size)
        if map_weight < 0:
            raise ValueError(f"map_weight is {map_weight}; expected at least 0")
        check_choice("conditions", conditions, Conditions)
        self.width, self.map_weight, self.learning_rate, self.batch_size = width, map_weight, learning_rate, batch_size
        self.conditions: Conditions = conditions
        self.images = images

    def fit(self, training: Training) -> Self:
        """Train it to tell normal training images from training images with anomalies.

        Raises:
            DataError: there are no images, no anomaly can be drawn into them, or no values where conditions are asked for.
        """
        training = replace(training, network_images=self.images or training.network_images)
        course = Course(training, self.name, batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training, self.conditions)
        dims, channels = training.scene.dims, training.healthy.shape[0] + self._prepare(training)
        with fresh_weights(training, self.name):
            network = FoldedUNet(dims, channels, 2, width=self.width or WIDTH[dims], values=inputs.width)
        self.network_ = network.to(training.device)

        def loss(step: Step) -> Tensor:
            half = len(step.rows) // 2
            drawn = training.anomalous(step.batch.rows(slice(half)), step.rows[:half])
            images = torch.cat([drawn.images, step.batch.images[half:]])
            seen = self._see(step.batch.with_images(images))
            target = torch.cat([drawn.masks, drawn.masks.new_zeros(len(images) - half, *drawn.masks.shape[1:])])
            return self._loss(seen, target.to(inputs.device))

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    def _prepare(self, training: Training) -> int:
        """Get ready what the network sees beside the image; how many channels that has."""
        return 0

    def _see(self, batch: ImageBatch) -> Seen:
        """What the network sees."""
        return self.inputs_(batch)

    def _loss(self, seen: Seen, target: Tensor) -> Tensor:
        """Cross-entropy of images and places, for how anomalous each place is, (B, 1, *S); an image without any is normal."""
        logits, evidence = self._said(seen)
        label = (target.flatten(1).amax(1) > 0).to(logits.dtype)
        of_image = F.binary_cross_entropy_with_logits(pooled(evidence, seen.masks), label)
        places = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
        weight = None if seen.masks is None else seen.masks.flatten(1)
        return of_image + self.map_weight * weighted_mean(places, weight).mean()

    def _said(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Logit of the map and evidence, (B, 1, *S) each."""
        logits, evidence = self.network_(seen.images, seen.values).chunk(2, dim=1)
        return logits, evidence

    @torch.no_grad()
    def decision_function(self, batch: ImageBatch) -> Scores:
        """Log odds (B,) that an image has an anomaly, where half of them do."""
        seen = self._see(batch)
        return pooled(self._said(seen)[1], seen.masks).double().cpu().numpy()

    @torch.no_grad()
    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """Probability that a place is anomalous, float32 (B, 1, *S); 0 outside of the masks."""
        seen = self._see(batch)
        probability = self._said(seen)[0].sigmoid()
        return (probability if seen.masks is None else probability * seen.masks).cpu()


def pooled(evidence: Tensor, masks: Tensor | None) -> Tensor:
    """Logarithm of the mean of exp(evidence) over the places that count: (B, 1, *S) to (B,)."""
    places = evidence.flatten(1)
    if masks is None:
        return places.logsumexp(1) - math.log(places.shape[1])
    inside = masks.flatten(1)
    return places.masked_fill(~inside, _NOWHERE).logsumexp(1) - inside.sum(1).clamp(min=1).log()
