"""What the baselines trained by gradients share: what their networks see, how much of it, and one loop.

All of them look at `training.network_images` normal images, repeats counted: batches of random training images, Adam, and a
learning rate that falls to 0 along half a cosine. Every random number follows from (seed, detector, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from normscape.baselines import Checkpoints, Training
from normscape.config import Config
from normscape.datasets.batches import ImageBatch
from normscape.datasets.samples import to_uint8
from normscape.errors import DataError
from normscape.losses.masked import as_mask, within
from normscape.networks.auxiliary import freeze
from normscape.networks.values import normalize_value
from normscape.training.checkpoint import TrainingState
from normscape.training.seeding import seeded

OUTSIDE = -1.0
"""Intensity of what does not count: black. Noise there would carry nothing, and mean grey would look like a flat blot."""
KEPT_BYTES = 256 * 2**20
"""Training images that take up to this much memory are drawn once."""

Conditions = Literal["none", "known", "shuffled"]
"""Whether a network sees the known values: not at all, those of the image, or those of another training image."""


@dataclass(frozen=True)
class Seen:
    """What networks see of B images, on the device."""

    images: Tensor
    """float32 (B, C, *S) in [-1, 1]; OUTSIDE where the mask is false."""
    masks: Tensor | None
    """bool (B, 1, *S); None when everything counts."""
    values: Tensor
    """float32 (B, D): values of all value attributes, 0 and 1 at the ends of their ranges. D is 0 without conditions."""

    def fill(self, images: Tensor) -> Tensor:
        """Other images (B, C, *S), the same outside of the masks as what is seen."""
        return within(images, images.new_full((), OUTSIDE), self.masks)

    def difference(self, images: Tensor) -> Tensor:
        """What is seen less other images (B, C, *S); 0 outside of the masks."""
        return self.images - self.fill(images)


class Inputs:
    """Makes what networks see of images.

    Shuffled values are those of a training image that the content of the image picks: as usual as known ones, telling nothing,
    and the same in every batch.

    Args:
        training: device and value attributes.
        conditions: of the network.

    Raises:
        DataError: values are asked for, and the experiment knows none.
    """

    def __init__(self, training: Training, conditions: Conditions = "none") -> None:
        self.device = training.device
        self.attributes = training.config.value_attributes if conditions != "none" else ()
        if conditions != "none" and not self.attributes:
            raise DataError(f"conditions: {conditions} needs an attribute of kind value, the experiment has none")
        self.others: Tensor | None = None
        if conditions == "shuffled":
            samples, columns = training.healthy.samples, training.healthy.columns
            self.others = self._normalised({a.name: samples.values[columns[a.name]] for a in self.attributes})
            random = seeded(training.seed, "baseline", "shuffled values")
            self.factors = torch.randint(2**31, (math.prod(training.healthy.shape),), generator=random)

    @classmethod
    def known(cls, config: Config, device: torch.device) -> Self:
        """What a network that knows the values sees, once it is trained and there is nothing else of its training."""
        inputs = cls.__new__(cls)
        inputs.device, inputs.attributes, inputs.others = device, config.value_attributes, None
        return inputs

    @property
    def width(self) -> int:
        """D, the number of values."""
        return sum(a.output_dim for a in self.attributes)

    def __call__(self, batch: ImageBatch) -> Seen:
        """The batch on the device, with a constant outside of the masks.

        Raises:
            DataError: a value is missing.
        """
        images, masks = batch.images.to(self.device, torch.float32), as_mask(batch.masks, self.device)
        seen = within(images, images.new_full((), OUTSIDE), masks)
        if not self.attributes:
            values = seen.new_zeros(len(seen), 0)
        elif self.others is None:
            values = self._normalised(dict(batch.conditions))
        else:
            values = self.others[self._picked(seen.cpu())]
        return Seen(seen, masks, values.to(self.device))

    def _normalised(self, values: dict[str, Tensor]) -> Tensor:
        missing = [a.name for a in self.attributes if a.name not in values]
        if missing:
            raise DataError(f"the images come without known {', '.join(missing)}, which this detector was set to use")
        return torch.cat([normalize_value(a, values[a.name].to(torch.float32)) for a in self.attributes], dim=1)

    def _picked(self, images: Tensor) -> Tensor:
        """Rows of `others`, int64 (B,), by a weighted sum of the pixels in whole numbers, which rounding cannot change."""
        assert self.others is not None
        return (to_uint8(images).flatten(1).long() * self.factors).sum(1) % len(self.others)


@dataclass(frozen=True)
class Step:
    """One batch of a training."""

    rows: Tensor
    """int64 (B,), of the training images."""
    batch: ImageBatch
    """These images."""
    random: torch.Generator
    """For everything else that is drawn in this step."""


class Course:
    """The batches of a training, until its budget is spent.

    Args:
        training: images, budget and seed.
        name: of the detector; part of the seed.
        batch_size: images a step; a smaller budget makes one smaller step.

    Raises:
        DataError: there is no training image.
    """

    def __init__(self, training: Training, name: str, *, batch_size: int) -> None:
        self.training, self.name = training, name
        healthy = training.healthy
        if not len(healthy):
            raise DataError(f"{name}: there are no training images")
        self.batch_size = min(batch_size, training.network_images)
        self.steps = training.network_images // self.batch_size
        self.done = 0
        fits = 4 * math.prod(healthy.shape) * len(healthy) <= KEPT_BYTES and len(healthy) <= training.network_images
        self.kept = healthy.batch(torch.arange(len(healthy))) if fits else None

    def batches(self, count: int | None = None) -> Iterator[Step]:
        """The next steps, at most this many; all that are left when None."""
        healthy = self.training.healthy
        last = self.steps if count is None else min(self.done + count, self.steps)
        while self.done < last:
            random = seeded(self.training.seed, "baseline", self.name, self.done)
            rows = torch.randint(len(healthy), (self.batch_size,), generator=random)
            yield Step(rows, healthy.batch(rows) if self.kept is None else self.kept.rows(rows), random)
            self.done += 1
            self.training.progress(self.done * self.batch_size, self.steps * self.batch_size)


class Descent:
    """Adam, with a learning rate that falls to 0 along half a cosine.

    Args:
        modules: what is trained.
        learning_rate: at the start.
        steps: until it is 0.
        betas: of Adam.
    """

    def __init__(self, *modules: nn.Module, learning_rate: float, steps: int, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=max(steps, 1))

    def step(self, loss: Tensor) -> Tensor:
        """One step down this loss; gives it back without its graph."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


def minimise(
    course: Course, module: nn.Module, loss: Callable[[Step], Tensor], *, learning_rate: float, count: int | None = None
) -> Tensor:
    """Train a network on the next batches, and freeze it.

    Args:
        course: where batches come from.
        module: trained; in training mode meanwhile, frozen afterwards.
        loss: of one batch.
        learning_rate: at the start.
        count: steps; all that are left when None.

    Returns:
        The losses, float32 (steps,).
    """
    module.train()
    steps = course.steps - course.done if count is None else count
    descent = Descent(module, learning_rate=learning_rate, steps=steps)
    kept = course.training.checkpoints
    if kept is None:
        losses = collected([descent.step(loss(step)) for step in course.batches(count)])
    else:
        losses = _minimise_with_checkpoints(course, module, loss, descent, kept)
    freeze(module)
    return losses


def _minimise_with_checkpoints(
    course: Course, module: nn.Module, loss: Callable[[Step], Tensor], descent: Descent, kept: Checkpoints
) -> Tensor:
    """The same from the newest checkpoint on; the losses of all steps, float32 (steps,)."""
    losses = torch.zeros(course.steps, device=next(module.parameters()).device)
    state = TrainingState(kept.digest, {"network": module}, {"adam": descent.optimizer}, {"losses": losses})
    course.done = state.load_latest(kept.folder)
    descent.schedule.last_epoch = course.done  # the rate itself came with the optimiser
    for step in course.batches():
        losses[course.done] = descent.step(loss(step))
        if (course.done + 1) % kept.interval == 0 and course.done + 1 < course.steps:
            state.save(kept.folder, course.done + 1)
    return losses.cpu()


def collected(losses: list[Tensor]) -> Tensor:
    """The losses of all steps, float32 (steps,) on the CPU."""
    return torch.stack(losses).cpu() if losses else torch.zeros(0)


@contextmanager
def fresh_weights(training: Training, name: str) -> Iterator[None]:
    """Networks made within have weights on the CPU that depend on the seed and the detector alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(training.seed, "baseline", name, "weights").initial_seed())
        yield


def check_positive(**settings: float) -> None:
    """Refuse settings that are not above 0.

    Raises:
        ValueError: names them.
    """
    wrong = [f"{name} is {value}" for name, value in settings.items() if not value > 0]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}; expected a number above 0")


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a setting that is none of a Literal's values.

    Raises:
        ValueError: names them.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(choices))}")
