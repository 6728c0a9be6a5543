"""Adam over a batch of samples, each of which may leave it when it has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.config import ProjectionConfig


@dataclass(frozen=True)
class Goal:
    """What a batch of B images is to be rebuilt from.

    Attributes:
        images: `(B, C, *S)` in [-1, 1].
        values: value attribute to known conditions `(B, D)` in the attribute's unit.
        encoded: value attribute to style sub-vectors `(B, d)`.
        target: feature maps of the images, a row a sample.
        mask: what counts, `(B, 1, *S)`; everything when empty.
    """

    images: Tensor
    values: dict[str, Tensor]
    encoded: dict[str, Tensor]
    target: list[Tensor]
    mask: Tensor | None

    def rows(self, kept: Tensor) -> Goal:
        """The goal of some samples, by their places in the batch."""
        return Goal(
            self.images[kept],
            {name: value[kept] for name, value in self.values.items()},
            {name: style[kept] for name, style in self.encoded.items()},
            [layer[kept] for layer in self.target],
            None if self.mask is None else self.mask[kept],
        )


Coordinates = dict[str, Tensor]
"""Free sub-space to whitened coordinates `(B, R, d)`."""

Objective = Callable[[Coordinates, Goal], tuple[Tensor, Tensor]]
"""Reconstruction loss and penalty of every sample, `(B,)` each."""


def learning_rate(step: int, steps: int, peak: float, rampup: float, rampdown: float) -> float:
    """Linear ramp-up, constant, cosine ramp-down (Karras et al. 2020, appendix D)."""
    t = (step + 1) / steps
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t + 1 / steps) / max(rampdown, 1e-9)))
    return peak * down * min(1.0, t / max(rampup, 1e-9))


def descend(
    start: Mapping[str, Tensor], goal: Goal, objective: Objective, settings: ProjectionConfig
) -> tuple[Coordinates, Tensor]:
    """Minimise loss and penalty of every sample by Adam; a sample's path does not depend on the rest of the batch.

    With `stop_tolerance` above 0, samples that have stopped improving leave the batch, and later steps cost less, see `Watch`.

    Args:
        start: free sub-space to whitened coordinates `(B, R, d)`.
        goal: of the batch.
        objective: what is minimised, the sum of both.
        settings: steps, learning rate and when to stop.

    Returns:
        The coordinates, and how many steps each sample took, int64 `(B,)`.
    """
    coordinates = {name: u.clone().requires_grad_() for name, u in start.items()}
    result = {name: u.clone() for name, u in start.items()}
    device = goal.images.device
    places = torch.arange(len(goal.images), device=device)
    taken = torch.zeros(len(places), dtype=torch.int64, device=device)
    watch = Watch(settings, goal.images.new_zeros(len(places))) if settings.stop_tolerance else None
    optimizer = torch.optim.Adam(list(coordinates.values()), lr=settings.learning_rate, betas=(0.9, 0.999), fused=True)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.learning_rate, settings.rampup, settings.rampdown)
        loss, penalty = objective(coordinates, goal)
        optimizer.zero_grad(set_to_none=True)
        # summing over the batch keeps every sample's gradient its own
        (loss + penalty).sum().backward()
        if watch is None:
            optimizer.step()
            continue
        before = [u.detach().clone() for u in coordinates.values()]
        optimizer.step()
        _hold_back(before, coordinates, watch.share(step))
        kept = watch.see(loss.detach(), step + 1)
        if kept is not None and len(kept) < len(places):
            _put(result, coordinates, taken, places, step + 1)
            places, goal, watch = places[kept], goal.rows(kept), watch.rows(kept)
            coordinates = _keep(optimizer, coordinates, kept)
        if not len(places):
            return result, taken
    _put(result, coordinates, taken, places, settings.steps)
    return result, taken


class Watch:
    """Which samples of a batch of B have stopped improving, and how much of a step each one still takes.

    Every `stop_window` steps a sample's mean loss over the window is compared with that over the window before. One that gained
    less than `stop_tolerance` of it goes into a ramp-down of its own, as long as the schedule's (in whole windows), and leaves at
    its end. A sample that left at the full learning rate would keep the noise that the ramp-down is there to take out. In the
    schedule's own ramp-down there is nothing to win, and nobody is sent off any more.

    Args:
        settings: steps, ramp-down, tolerance and window.
        zeros: `(B,)`, of the losses' kind and on their device.

    Attributes:
        fall: steps of the ramp-down.
    """

    def __init__(self, settings: ProjectionConfig, zeros: Tensor) -> None:
        self.settings = settings
        self.fall = settings.stop_window * math.ceil(settings.rampdown * settings.steps / settings.stop_window)
        self._sum = zeros.clone()
        self._previous = torch.full_like(zeros, math.inf)
        self._since = torch.full_like(zeros, math.inf)

    def share(self, step: int) -> Tensor:
        """The part of this step that each sample takes, `(B,)`: 1 until it has stopped improving, then down to 0 as a cosine."""
        return 0.5 + 0.5 * torch.cos(math.pi * ((step - self._since) / max(self.fall, 1)).clamp(0, 1))

    def see(self, loss: Tensor, steps: int) -> Tensor | None:
        """Note the losses `(B,)` of a step; at the end of a window, and only then, say who stays.

        Args:
            loss: of every sample.
            steps: taken until now.

        Returns:
            Places of those who stay, for which the host waits for the device; None within a window.
        """
        self._sum += loss
        window = self.settings.stop_window
        if steps % window:
            return None
        mean = self._sum / window
        if steps + self.fall < self.settings.steps:
            stalled = self._previous - mean < self.settings.stop_tolerance * self._previous
            self._since = torch.where(stalled & self._since.isinf(), float(steps), self._since)
        self._previous, self._sum = mean, torch.zeros_like(mean)
        return (steps - self._since < self.fall if self.fall else self._since.isinf()).nonzero().squeeze(1)

    def rows(self, kept: Tensor) -> Watch:
        """The watch over some samples, by their places in the batch."""
        part = Watch(self.settings, self._sum[kept])
        part._previous, part._since = self._previous[kept], self._since[kept]
        return part


@torch.no_grad()
def _hold_back(before: list[Tensor], coordinates: Coordinates, share: Tensor) -> None:
    """Take back part of a step; all of it stays, bit for bit, where the share is 1."""
    for old, new in zip(before, coordinates.values(), strict=True):
        new.copy_(torch.lerp(old, new, share[:, None, None]))


@torch.no_grad()
def _put(result: Coordinates, coordinates: Coordinates, taken: Tensor, places: Tensor, steps: int) -> None:
    """Write the present coordinates of the samples at these places of the whole batch."""
    for name, u in coordinates.items():
        result[name][places] = u
    taken[places] = steps


def _keep(optimizer: torch.optim.Adam, coordinates: Coordinates, kept: Tensor) -> Coordinates:
    """Coordinates of some samples, which take their rows of the optimiser's moments along."""
    parts = {name: u.detach()[kept].requires_grad_() for name, u in coordinates.items()}
    for old, new in zip(coordinates.values(), parts.values(), strict=True):
        state = optimizer.state.pop(old)
        # the step count is one number for all: whoever is still here has taken every step
        optimizer.state[new] = {key: value[kept] if value.ndim else value for key, value in state.items()}
    (group,) = optimizer.param_groups
    group["params"] = list(parts.values())
    return parts
