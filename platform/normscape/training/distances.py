"""Distances of real images under the auxiliary networks, and thresholds of the contrastive loss proposed from them.

The contrastive loss holds generated pairs that share an attribute closer than tau_same and pairs that do not share it farther
apart than tau_different. What real pairs do says which thresholds can be kept (GAN-Control chose its own from such plots):

- same: two images that share the attribute and nothing else that is known. An identity: two views of one subject. A value: an
  image and the one of another subject whose value is nearest; where augmentation draws the value, images of two subjects with
  the same drawn one.
- different: two images of different subjects, as they fall into a batch.
- hardest different: for each image of a batch, the nearest image of another subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.config import AttributeConfig
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork, output_distance
from normscape.networks.values import normalize_value
from normscape.training.auxiliary import SubjectIndex, predict
from normscape.training.seeding import seeded

_ROWS = 64
"""Anchors compared with all images at once; keeps the table of value differences small."""
_CANDIDATES = 100_000
"""Images among which the nearest value is sought."""


@dataclass(frozen=True)
class RealDistances:
    """One attribute's distances of real pairs, each `(n,)` in [0, 1]."""

    same: Tensor
    different: Tensor
    hardest: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """By the name that tables use."""
        return {"same": self.same, "different": self.different, "hardest_different": self.hardest}


@dataclass(frozen=True)
class Thresholds:
    """Proposed tau_same and tau_different, `0 <= tau_same <= tau_different <= 1`."""

    tau_same: float
    tau_different: float


def real_distances(
    attribute: AttributeConfig,
    network: AuxiliaryNetwork,
    samples: SampleSet,
    *,
    pairs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> RealDistances:
    """Measure random pairs of real images.

    Args:
        attribute: whose distance.
        network: its frozen network.
        samples: training images of at least two subjects.
        pairs: same pairs, and at least as many different ones.
        batch_size: images among which the hardest different one is sought; the GAN's batch.
        seed: same seed, same pairs.
        device: where to compute.
    """
    random = seeded(seed, "real distances", attribute.name)
    redrawn = attribute.column is not None and samples.redraws(attribute.column)
    if attribute.kind == "embedding":
        index = SubjectIndex(samples)
        anchor, partner = index.views(torch.randint(len(index), (pairs,), generator=random), 2, random).unbind(1)
    else:
        anchor = torch.randint(len(samples), (pairs,), generator=random)
        partner = nearest_of_others(attribute, samples, anchor, random)
    # the same random numbers for both: the same drawn values
    draws = [seeded(seed, "real distances", attribute.name, "augmentation") if redrawn else None for _ in range(2)]
    outputs = [
        predict(network, samples, rows, device=device, random=drawn) for rows, drawn in zip((anchor, partner), draws, strict=True)
    ]
    same = output_distance(attribute, *outputs)
    different, hardest = [], []
    for _ in range(-(-pairs // batch_size)):
        rows = torch.randint(len(samples), (batch_size,), generator=random)
        output = predict(network, samples, rows, device=device, random=random if redrawn else None)
        distance = output_distance(attribute, output[:, None], output[None, :])
        subject = samples.subject[rows]
        other = subject[:, None] != subject[None, :]
        different.append(distance[other.triu()])
        nearest = distance.masked_fill(~other, torch.inf).amin(1)
        hardest.append(nearest[nearest.isfinite()])  # a batch may hold one subject only
    return RealDistances(same, torch.cat(different), torch.cat(hardest))


def nearest_of_others(attribute: AttributeConfig, samples: SampleSet, anchor: Tensor, random: torch.Generator) -> Tensor:
    """For each anchor `(n,)` the image of another subject with the nearest value; a random one where several are as near.

    Of more than `_CANDIDATES` images, as many random ones are looked at: enough to find near values, and memory stays small.
    """
    values = normalize_value(attribute, samples.values[attribute.column or ""])
    few = len(samples) <= _CANDIDATES
    candidates = torch.arange(len(samples)) if few else torch.randperm(len(samples), generator=random)[:_CANDIDATES]
    found = []
    for rows in anchor.split(_ROWS):
        difference = torch.cdist(values[rows], values[candidates])
        difference += 1e-6 * torch.rand(difference.shape, generator=random)  # far less than values differ: it only breaks ties
        own = samples.subject[rows][:, None] == samples.subject[candidates][None, :]
        found.append(candidates[difference.masked_fill(own, torch.inf).argmin(1)])
    return torch.cat(found)


def propose(attribute: AttributeConfig, distances: RealDistances) -> Thresholds:
    """Thresholds that real images keep about half of the time.

    tau_same is the median of the same pairs: generated pairs that share the attribute shall be as alike as real ones are.
    tau_different of an identity is the median of the hardest different pairs: where the nearest stranger of a batch usually
    is, pushing further would ask for more variety than there is. A value is continuous, so that its hardest pairs hardly
    differ at all; its tau_different is the lower quartile of the different pairs: one pair in four has so near values that it may
    stay nearer. For values spread evenly over the range that is 0.13.
    """
    same = distances.same.median().item()
    if attribute.kind == "embedding":
        different = distances.hardest.median().item()
    else:
        different = distances.different.quantile(0.25).item()
    return Thresholds(same, max(different, same))


def measure_all(
    attributes: tuple[AttributeConfig, ...],
    networks: Mapping[str, AuxiliaryNetwork],
    samples: SampleSet,
    *,
    pairs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> dict[str, RealDistances]:
    """`real_distances` of every attribute, by name."""
    return {
        a.name: real_distances(a, networks[a.name], samples, pairs=pairs, batch_size=batch_size, seed=seed, device=device)
        for a in attributes
    }
