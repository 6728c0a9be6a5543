"""How well each sub-space controls its own attribute and leaves the others alone, in one number with the image quality.

For an attribute k with auxiliary network M_k and distance d_k, and a generator G with latents z:

    control_k = < d_k(M_k(G(z)), M_k(G(z'))) >   where z' is z with only z^k drawn anew
    leak_k    = < d_k(M_k(G(z)), M_k(G(z''))) >  where z'' is z with all but z^k drawn anew

Real images give the scale: S_k is the mean distance of real pairs that share the attribute, D_k that of real pairs of different
subjects (see `normscape.training.distances`). With n_k(x) = min(max((x - S_k) / (D_k - S_k), 0), 1), 0 is as alike as two real
images that share the attribute and 1 as different as two strangers:

    score = mean_k [ n_k(control_k) - n_k(leak_k) ] - lambda * ln(F / F_ref)

F is the Frechet distance between generated and training images, F_ref the one between the images of one half of the training
subjects and those of the other half: at F = F_ref the generator is as far from the training images as other subjects would
be. F_ref depends on the experiment alone, so that it shifts the scores of all trials alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from normscape.config import AttributeConfig, Config
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork, output_distance
from normscape.networks.generator import Generator, draw_latents
from normscape.training.distances import RealDistances
from normscape.training.observer import PooledFeatures
from normscape.training.seeding import seeded

FRECHET_FLOOR = 1e-6
"""Smallest Frechet distance that counts; the logarithm needs one."""


@dataclass(frozen=True)
class Scale:
    """Mean distances S_k and D_k of real pairs of one attribute."""

    same: float
    different: float

    @classmethod
    def of(cls, distances: RealDistances) -> Scale:
        """The scale of measured pairs."""
        return cls(distances.same.mean().item(), distances.different.mean().item())

    def normalized(self, distance: float) -> float:
        """n_k: a mean distance on the scale of real pairs, in [0, 1]; 0 where the network tells no real pairs apart."""
        span = self.different - self.same
        return min(max((distance - self.same) / span, 0.0), 1.0) if span > 0 else 0.0


@dataclass(frozen=True)
class Control:
    """One attribute's n_k(control_k) and n_k(leak_k), in [0, 1]."""

    control: float
    leak: float


@torch.no_grad()
def measure_control(
    generator: Generator,
    networks: Mapping[str, AuxiliaryNetwork],
    attributes: Sequence[AttributeConfig],
    scales: Mapping[str, Scale],
    *,
    images: int,
    seed: int,
    batch_size: int = 256,
) -> dict[str, Control]:
    """Resample sub-spaces and see what moves.

    Args:
        generator: the averaged generator.
        networks: attribute name to frozen network.
        attributes: all attributes.
        scales: attribute name to the scale of real pairs.
        images: latents z; each gives 1 + 2N images for N attributes. The same seed gives the same latents to every generator.
        seed: of the latents.
        batch_size: latents at once.
    """
    random = seeded(seed, "controllability")
    sums = {a.name: torch.zeros(2, dtype=torch.float64) for a in attributes}
    for start in range(0, images, batch_size):
        count = min(batch_size, images - start)
        z, drawn = draw_latents(count, generator, random), draw_latents(count, generator, random)
        base = generator(z)
        for attribute in attributes:
            own = generator.subspace_slice(attribute.name)
            only_own, all_others = z.clone(), drawn.clone()
            only_own[:, own] = drawn[:, own]
            all_others[:, own] = z[:, own]
            network = networks[attribute.name]
            output = network(base)
            moved = [
                output_distance(attribute, output, network(generator(other))).sum().cpu() for other in (only_own, all_others)
            ]
            sums[attribute.name] += torch.stack(moved).double()
    means = {name: (total / images).tolist() for name, total in sums.items()}
    return {name: Control(*(scales[name].normalized(mean) for mean in pair)) for name, pair in means.items()}


def score(controls: Mapping[str, Control], frechet: float, reference: float, quality_weight: float) -> float:
    """The objective; larger is better. See the head of this module."""
    controlled = sum(c.control - c.leak for c in controls.values()) / len(controls)
    ratio = max(frechet, FRECHET_FLOOR) / max(reference, FRECHET_FLOOR)
    return controlled - quality_weight * math.log(ratio)


def as_metrics(controls: Mapping[str, Control]) -> dict[str, float]:
    """`control/<attribute>` and `leak/<attribute>`, for tables and curves."""
    return {f"{part}/{name}": value for name, control in controls.items() for part, value in asdict(control).items()}


@torch.no_grad()
def reference_frechet(
    config: Config, samples: SampleSet, identity: AuxiliaryNetwork, *, device: torch.device, batch_size: int = 256
) -> float:
    """F_ref: Frechet distance between the images of two halves of the training subjects.

    Args:
        config: the experiment; `gan.quality_samples` images of each half, as for generated images.
        samples: training images of at least two subjects.
        identity: the recognition network, whose features the distance compares.
        device: where to compute.
        batch_size: images at once.
    """
    random = seeded(config.seed, "reference frechet")
    subjects = samples.subject.unique()
    shuffled = subjects[torch.randperm(len(subjects), generator=random)]
    frechet = FrechetInceptionDistance(feature=PooledFeatures(identity)).to(device)
    for real, half in ((True, shuffled[: len(subjects) // 2]), (False, shuffled[len(subjects) // 2 :])):
        rows = torch.isin(samples.subject, half).nonzero().squeeze(1)
        drawn: Tensor = rows[torch.randint(len(rows), (config.gan.quality_samples,), generator=random)]
        for part in drawn.split(batch_size):
            frechet.update(samples.batch(part, random).to(device), real=real)
    return float(frechet.compute())
