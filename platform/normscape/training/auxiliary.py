"""Training of the auxiliary networks, and how well they do (thesis III.A.3a, IV.A.1).

Several workers share the rows of each global batch. Each looks at its own rows alone: batch normalisation takes their
statistics, triplets are formed within them (a share holds whole subjects). Gradients are averaged, so that all weights stay
alike; the running statistics of a checkpoint are rank 0's. Another number of workers therefore gives another, equally good
network, and one worker gives the network of a training without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.config import AttributeConfig, AuxiliaryConfig, Config
from normscape.datasets.augmentation import augment
from normscape.datasets.samples import SampleSet
from normscape.losses.triplet import semi_hard_triplet_loss, separated_shares
from normscape.networks.auxiliary import (
    AuxiliaryNetwork,
    freeze,
    load_medicalnet,
    output_distance,
)
from normscape.networks.values import denormalize_value, normalize_value
from normscape.training.checkpoint import TrainingState
from normscape.training.communicator import Communicator, share
from normscape.training.recorder import Recorder
from normscape.training.seeding import seeded

HUBER_DELTA = 0.02
"""Differences beyond this share of the range count linearly."""


def train_auxiliary(
    attribute: AttributeConfig,
    config: Config,
    samples: SampleSet,
    *,
    folder: Path,
    digest: str,
    device: torch.device,
    recorder: Recorder,
    communicator: Communicator | None = None,
    saved: Callable[[int], None] = lambda step: None,
) -> AuxiliaryNetwork:
    """Train one attribute's network: triplet loss for an embedding, L2 for a value.

    Args:
        attribute: what to train for.
        config: the experiment.
        samples: training images.
        folder: holds this network's checkpoints, one an epoch.
        digest: identifies the configuration in the checkpoints.
        device: where to train.
        recorder: receives loss and progress from rank 0.
        communicator: the workers that share the batch.
        saved: called by every worker when a checkpoint is complete, with its step.

    Returns:
        The frozen network.

    Raises:
        ValueError: the batch cannot be shared out evenly among the workers.
        DataError: the pretrained weights cannot be read or do not fit.
    """
    settings = attribute.auxiliary
    communicator = communicator or Communicator()
    first, several = communicator.rank == 0, communicator.size > 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(config.seed, "auxiliary", attribute.name, "weights").initial_seed())
        network = AuxiliaryNetwork.from_config(attribute, config)
    if settings.pretrained is not None:
        load_medicalnet(network, settings.pretrained)
    network.to(device)
    steps_per_epoch = math.ceil((settings.epoch_samples or len(samples)) / settings.batch_size)
    total = settings.epochs * steps_per_epoch
    optimizer = make_optimizer(network, settings)
    state = TrainingState(digest, {"network": network}, {settings.optimizer: optimizer})
    start = state.load_latest(folder)
    communicator.broadcast(network.state_dict().values())
    rows = batch_share(attribute, communicator)
    subject_index = SubjectIndex(samples)
    network.train()
    losses: list[Tensor] = []
    for step in range(start, total):
        random = seeded(config.seed, "auxiliary", attribute.name, step)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / total)))
        if attribute.kind == "embedding":
            index = subject_index.batch(settings.batch_size // settings.views_per_subject, settings.views_per_subject, random)
        else:
            index = torch.randint(len(samples), (settings.batch_size,), generator=random)
        if several:
            index, random = index[rows], seeded(config.seed, "auxiliary", attribute.name, step, communicator.rank)
        images, values = samples.draw(index, random)
        images = augment(images.to(device), config.augmentation, hue=settings.augment_hue, generator=random)
        output = network(images)
        if attribute.kind == "embedding":
            loss, _ = semi_hard_triplet_loss(output, samples.subject[index].to(device), settings.margin)
        else:
            assert attribute.column is not None
            loss = value_loss(output, normalize_value(attribute, values[attribute.column].to(device)), settings)
        optimizer.zero_grad(set_to_none=True)
        loss = loss / communicator.size  # this worker's part of the mean
        loss.backward()
        if several:
            communicator.sum([p.grad for p in network.parameters() if p.grad is not None])
        optimizer.step()
        losses.append(loss.detach())
        if first:
            recorder.progress(step + 1, total)
        if (step + 1) % steps_per_epoch == 0:
            mean = torch.stack(losses).mean()
            communicator.sum([mean])
            losses.clear()
            if first:
                recorder.metrics({f"{attribute.name}/loss": mean.item()}, step + 1)
                state.save(folder, step + 1)
            saved(step + 1)
    freeze(network)
    return network


def make_optimizer(network: AuxiliaryNetwork, settings: AuxiliaryConfig) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def value_loss(output: Tensor, target: Tensor, settings: AuxiliaryConfig) -> Tensor:
    """Mean loss of normalised values `(B, D)`."""
    return F.mse_loss(output, target) if settings.value_loss == "l2" else F.huber_loss(output, target, delta=HUBER_DELTA)


def batch_share(attribute: AttributeConfig, communicator: Communicator) -> Tensor:
    """Rows of a global batch that a worker takes: whole subjects of an embedding's batch, at least two, or any rows.

    Raises:
        ValueError: the batch cannot be shared out evenly among the workers.
    """
    settings = attribute.auxiliary
    if attribute.kind == "value":
        return share(settings.batch_size, 1, communicator)
    subjects, views = settings.batch_size // settings.views_per_subject, settings.views_per_subject
    chosen = share(subjects, 1, communicator)
    if len(chosen) < 2 and communicator.size > 1:
        raise ValueError(f"{subjects} subjects cannot be shared out among {communicator.size} workers, two or more each")
    return (chosen[:, None] * views + torch.arange(views)).flatten()


class SubjectIndex:
    """Finds random samples of given subjects, without a loop over them.

    Args:
        samples: any samples; only subjects that have some are drawn.
    """

    def __init__(self, samples: SampleSet) -> None:
        self.order = torch.argsort(samples.subject, stable=True)
        _, self.counts = torch.unique_consecutive(samples.subject[self.order], return_counts=True)
        self.starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def views(self, subject: Tensor, views: int, random: torch.Generator) -> Tensor:
        """Random sample indices `(n, views)` of subjects `(n,)`; the first two differ where a subject has two."""
        count = self.counts[subject][:, None]
        offset = (torch.rand(len(subject), views, generator=random) * count).long()
        if views > 1:
            shift = 1 + (torch.rand(len(subject), 1, generator=random) * (count - 1)).long()
            offset[:, 1:2] = (offset[:, :1] + shift) % count
        return self.order[self.starts[subject][:, None] + offset]

    def batch(self, subjects: int, views: int, random: torch.Generator) -> Tensor:
        """Indices `(subjects * views,)` of P different subjects with K views each; with fewer subjects than P, some repeat."""
        rounds = math.ceil(subjects / len(self))
        chosen = torch.cat([torch.randperm(len(self), generator=random) for _ in range(rounds)])[:subjects]
        return self.views(chosen, views, random).flatten()


@torch.no_grad()
def predict(
    network: AuxiliaryNetwork,
    samples: SampleSet,
    index: Tensor,
    *,
    device: torch.device,
    random: torch.Generator | None = None,
    batch_size: int = 512,
) -> Tensor:
    """Outputs `(n, D)` for the samples at `index`, on the CPU; augmented by their source when `random` is given."""
    return torch.cat([network(samples.batch(part, random).to(device)).cpu() for part in index.split(batch_size)])


@dataclass(frozen=True)
class EmbeddingQuality:
    """How well an embedding separates subjects (tables III and IV, figures 4 and 9)."""

    separated: float
    separated_by_margin: float
    distance_same: Tensor
    distance_different: Tensor


def embedding_quality(
    network: AuxiliaryNetwork, samples: SampleSet, *, triplets: int, seed: int, split: str, device: torch.device
) -> EmbeddingQuality:
    """Measure random triplets: anchor and positive of one subject, negative of another.

    Of subjects with one image each, anchor and positive are two of its views, as the source's training augmentation draws them.
    """
    random = seeded(seed, "triplets", split)
    subject_index = SubjectIndex(samples)
    first = torch.randint(len(subject_index), (triplets,), generator=random)
    second = (first + 1 + torch.randint(len(subject_index) - 1, (triplets,), generator=random)) % len(subject_index)
    anchor, positive = subject_index.views(first, 2, random).unbind(1)
    negative = subject_index.views(second, 1, random).squeeze(1)
    if int(subject_index.counts.max()) == 1:
        everybody = torch.arange(len(samples))
        one, other = (predict(network, samples, everybody, device=device, random=random) for _ in range(2))
        return measure_triplets(network.attribute, one[anchor], other[positive], one[negative])
    parts = [predict(network, samples, index, device=device) for index in (anchor, positive, negative)]
    return measure_triplets(network.attribute, *parts)


def measure_triplets(attribute: AttributeConfig, anchor: Tensor, positive: Tensor, negative: Tensor) -> EmbeddingQuality:
    """The shares of separated triplets and their distances, from embeddings `(T, D)`."""
    separated, by_margin = separated_shares(anchor, positive, negative, attribute.auxiliary.margin)
    return EmbeddingQuality(
        separated, by_margin, output_distance(attribute, anchor, positive), output_distance(attribute, anchor, negative)
    )


def value_error(
    network: AuxiliaryNetwork, samples: SampleSet, *, count: int, seed: int, split: str, device: torch.device
) -> float:
    """Mean absolute error in the attribute's unit, over `count` random samples; of a vector the mean Euclidean distance.

    A value that augmentation draws is read from augmented images: in the others it is always the same.
    """
    attribute = network.attribute
    assert attribute.column is not None
    random = seeded(seed, "values", split)
    index = torch.randint(len(samples), (count,), generator=random)
    augmentation = random if samples.redraws(attribute.column) else None
    if augmentation is None and len(samples) <= count:
        index = torch.arange(len(samples))  # there are no more: every one counts once
    distances = []
    for part in index.split(512):
        images, known = samples.draw(part, augmentation)
        with torch.no_grad():
            read = denormalize_value(attribute, network(images.to(device)).cpu())
        distances.append(value_distance(read, known[attribute.column]))
    return torch.cat(distances).mean().item()


def value_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance `(B,)` of values `(B, D)` in their unit: absolute of a number, Euclidean of a vector."""
    return (a - b).square().sum(1).sqrt() if a.shape[1] > 1 else (a - b).abs().squeeze(1)
