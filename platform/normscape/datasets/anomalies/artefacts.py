"""Artefacts of MR scanners in T1 brains: ghosts, motion, spikes and wrap-around, made where they arise, among frequencies.

The image is taken as the whole field of view: true of volumes; in a patch the artefact is that of a small field of view. The
signal is 0 outside the brain, so ghosts of the brain fall into the brain itself and nothing is painted outside. The mask is where
the image changed visibly (`deformation.seen`), and the image stays as it was where it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from monai.transforms import KSpaceSpikeNoise
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.deformation import seen
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each, need_brains
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import INTENSITY_RANGE_SD

GHOSTS, GHOST_STRENGTH = (2, 4), (0.5, 0.9)
"""Every n-th line of the phase direction is weakened by this share, which leaves n - 1 ghosts."""
MOTION_MM, MOTION_DEGREES = 4.0, 5.0
"""Standard deviation of a head's movement along each axis, and of its turn."""
MOTION_CUTS = ((0.15, 0.42), (0.58, 0.85))
"""Shares of the lines after which the head moves: the middle ones, which make most of the image, are of one pose."""
SPIKE_WAVELENGTH_MM, SPIKE_SD = (6.0, 20.0), (0.4, 1.2)
"""Distance between stripes, and their height in standard deviations of the brain's intensities."""
WRAP_SHARE, WRAP_STRENGTH = (0.4, 0.8), (0.1, 0.4)
"""How far the head is folded over, as a share of the brain's extent, and how strong."""

Signal = NDArray[np.float32]
"""(*S), not negative, 0 outside the brain; a standard deviation of the brain's intensities is 1 / 3."""
Disturb = Callable[[Signal, Canvas, np.random.Generator], Signal]


@dataclass(frozen=True)
class Ghosting:
    """Faint copies of the brain, shifted along one axis: lines of the phase direction that differ in strength by turns."""

    NUMBER: ClassVar[int] = 20

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        return _draw(batch, _ghosts, "ghosting", self.NUMBER, seed, sample_ids, scene)


@dataclass(frozen=True)
class Motion:
    """A head that moved twice: the first and the last lines of the phase direction come from other poses."""

    NUMBER: ClassVar[int] = 21

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        return _draw(batch, _moved, "motion", self.NUMBER, seed, sample_ids, scene)


@dataclass(frozen=True)
class Spike:
    """Stripes through the whole image: one spatial frequency that is far too strong (MONAI's `KSpaceSpikeNoise`)."""

    NUMBER: ClassVar[int] = 22

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        return _draw(batch, _spiked, "spike", self.NUMBER, seed, sample_ids, scene)


@dataclass(frozen=True)
class Wrap:
    """Wrap-around: the far end of the head is folded over the near one, because the field of view was too small."""

    NUMBER: ClassVar[int] = 23

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        return _draw(batch, _wrapped, "wrap", self.NUMBER, seed, sample_ids, scene)


def _draw(
    batch: ImageBatch, disturb: Disturb, name: str, number: int, seed: int, sample_ids: Sequence[int], scene: Scene
) -> AnomalyBatch:
    """Disturb every image's signal."""
    need_brains(batch.images, scene, name)

    def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
        before = canvas.image[0]
        signal = np.where(canvas.brain, before + 1, 0).astype(np.float32)
        change = (disturb(signal, canvas, random) - 1).clip(-1, 1) - before
        mask = seen(change * INTENSITY_RANGE_SD, canvas.brain, canvas.spacing)
        return (before + mask * change)[None], mask

    return draw_each(batch, paint, number=number, seed=seed, sample_ids=sample_ids, scene=scene)


def _ghosts(signal: Signal, canvas: Canvas, random: np.random.Generator) -> Signal:
    axis, every = int(random.integers(signal.ndim)), int(random.integers(GHOSTS[0], GHOSTS[1] + 1))
    factor = np.ones(signal.shape[axis])
    factor[::every] -= random.uniform(*GHOST_STRENGTH)
    factor[0] = 1.0  # the mean stays
    lines = np.fft.fft(signal, axis=axis) * _along(factor, axis, signal.ndim)
    return np.abs(np.fft.ifft(lines, axis=axis)).astype(np.float32)


def _moved(signal: Signal, canvas: Canvas, random: np.random.Generator) -> Signal:
    axis = int(random.integers(signal.ndim))
    order = (np.arange(signal.shape[axis]) + 0.5) / signal.shape[axis]  # from the lowest frequency to the highest
    first, last = (random.uniform(*cut) for cut in MOTION_CUTS)
    lines = _lines(signal, axis)
    for chosen in (order < first, order > last):
        lines = np.where(_along(chosen, axis, signal.ndim), _lines(_posed(signal, canvas, random), axis), lines)
    return np.abs(np.fft.ifft(np.fft.ifftshift(lines, axes=axis), axis=axis)).astype(np.float32)


def _posed(signal: Signal, canvas: Canvas, random: np.random.Generator) -> Signal:
    """The signal of a head that was moved, and turned in the plane of two axes around the brain's middle."""
    dims = signal.ndim
    plane = random.permutation(dims)[:2]
    angle = np.deg2rad(random.normal(scale=MOTION_DEGREES))
    turn = np.eye(dims)
    turn[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = np.argwhere(canvas.brain).mean(axis=0)
    way = random.normal(scale=MOTION_MM / canvas.spacing, size=dims)
    return np.asarray(ndimage.affine_transform(signal, turn, middle - turn @ middle + way, order=1, mode="nearest"), np.float32)


def _spiked(signal: Signal, canvas: Canvas, random: np.random.Generator) -> Signal:
    direction = random.normal(size=signal.ndim)
    direction /= np.linalg.norm(direction)
    waves = np.array(signal.shape) * canvas.spacing / random.uniform(*SPIKE_WAVELENGTH_MM)
    index = np.rint(direction * waves).astype(int)
    if not index.any():  # an image smaller than a wave: one wave along its longest axis
        index[int(np.argmax(signal.shape))] = 1
    middle = np.array(signal.shape) // 2
    place = (middle + index).clip(0, np.array(signal.shape) - 1)
    height = random.uniform(*SPIKE_SD) / INTENSITY_RANGE_SD
    spike = KSpaceSpikeNoise(tuple(int(i) for i in place), float(np.log(height * signal.size)))
    return np.asarray(spike(torch.from_numpy(signal)[None])[0], np.float32).clip(0)


def _wrapped(signal: Signal, canvas: Canvas, random: np.random.Generator) -> Signal:
    axis, sign = int(random.integers(signal.ndim)), int(random.choice([-1, 1]))
    found = np.flatnonzero(canvas.brain.any(axis=tuple(i for i in range(signal.ndim) if i != axis)))
    extent = int(found[-1] - found[0] + 1)
    # Folded over by a share of the extent: that much of the brain's far end comes to lie on its near end.
    shift = max(round((1 - random.uniform(*WRAP_SHARE)) * extent), 1)
    folded = np.zeros_like(signal)
    to, of = [slice(None)] * signal.ndim, [slice(None)] * signal.ndim
    to[axis], of[axis] = (slice(shift, None), slice(None, -shift)) if sign > 0 else (slice(None, -shift), slice(shift, None))
    folded[tuple(to)] = signal[tuple(of)]
    return signal + np.float32(random.uniform(*WRAP_STRENGTH)) * folded


def _lines(signal: Signal, axis: int) -> NDArray[np.complexfloating]:
    """Spatial frequencies along one axis, from the lowest to the highest."""
    return np.fft.fftshift(np.fft.fft(signal, axis=axis), axes=axis)


def _along(values: NDArray[Any], axis: int, dims: int) -> NDArray[Any]:
    """Values (N,) of an axis in a shape that fits an image of `dims` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(dims)])
