"""Blots: the standard ones, clear ones, those of the same mean as the tissue below, and those with a texture.

All lie in the same way (`normscape.datasets.blots`): radius and centre at random, a wavy and slightly soft edge. In brains their
lengths are in millimetres and their intensities in the brain's standard deviations; in pictures they are shares of the side and
of the range of intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.drawing import Canvas, FloatArray, Painted, draw_each, numbers_of, recorded
from normscape.datasets.batches import ImageBatch
from normscape.datasets.blots import BlotShape, BlotSpec, BrainBlotSpec, draw_blots, draw_shape
from normscape.datasets.patches import INTENSITY_RANGE_SD
from normscape.datasets.shapes import place_in

CLEAR_RADIUS_MM, CLEAR_RADIUS_FRACTION = (6.0, 12.0), (0.12, 0.24)
"""Least and greatest radius of a clear blot in a brain, and in a picture as a share of its side."""
CLEAR_GAP_SD, CLEAR_GAP = 1.5, 0.75
"""How far a clear blot's intensity is at least from the mean of what lies below: in a brain's standard deviations; in a picture
in intensity units, of which black and white are 2 apart."""
DETAIL_MM, DETAIL_FRACTION = 4.0, 0.06
"""Standard deviation of the Gaussian whose mean is taken off an image to leave its texture; in a picture a share of its side."""
TEXTURE_PLACES = 8
"""Places that a texture may come from, of which one is chosen."""


def spec_of(scene: Scene) -> BlotSpec | BrainBlotSpec:
    """The standard blots of such images."""
    return BlotSpec() if scene.spacing_mm is None else BrainBlotSpec(scene.spacing_mm)


@dataclass(frozen=True)
class StandardBlots:
    """The blots of the thesis: opaque, of one random colour. The numbers of `normscape.datasets.blots.draw_blot`."""

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        before = batch.images.float()
        after, masks = before.clone(), before.new_zeros((len(before), *before.shape[2:]))
        places = [i for i in range(len(batch)) if batch.masks is None or bool(batch.masks[i].any())]
        ids, brains = numbers_of(batch, sample_ids), None if batch.masks is None else batch.masks[places]
        blots = draw_blots(before[places], seed, [ids[i] for i in places], spec_of(scene), brains)
        after[places], masks[places] = blots.images, blots.masks
        return recorded(before.numpy(), after.numpy(), masks.numpy(), scene)


@dataclass(frozen=True)
class ClearBlots:
    """Larger blots whose intensity is far from the mean of what lies below, in every channel."""

    NUMBER: ClassVar[int] = 1

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        (low, high), gap = CLEAR_RADIUS_FRACTION, CLEAR_GAP
        spec: BlotSpec | BrainBlotSpec = BlotSpec(radius_min_fraction=low, radius_max_fraction=high)
        if scene.spacing_mm is not None:
            (low, high), gap = CLEAR_RADIUS_MM, CLEAR_GAP_SD / INTENSITY_RANGE_SD
            spec = BrainBlotSpec(scene.spacing_mm, radius_min_mm=low, radius_max_mm=high)

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            blot = draw_shape(random, spec, canvas.shape, len(canvas.image), canvas.brain)
            mean = _mean_below(canvas.image, blot)
            darker = (mean - gap + spec.intensity_max).clip(0)  # lengths of the two ranges that are far enough away
            lighter = (spec.intensity_max - mean - gap).clip(0)
            share = random.uniform(size=len(mean)) * (darker + lighter)
            color = np.where(share < darker, share - spec.intensity_max, mean + gap + share - darker)
            return _laid_over(canvas.image, blot, color)

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)


@dataclass(frozen=True)
class MatchedBlots:
    """Blots of one colour that leave the mean of every channel as it was: intensity alone does not tell them."""

    NUMBER: ClassVar[int] = 2

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            blot = draw_shape(random, spec_of(scene), canvas.shape, len(canvas.image), canvas.brain)
            return _laid_over(canvas.image, blot, _mean_below(canvas.image, blot))

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)


@dataclass(frozen=True)
class TexturedBlots:
    """Blots with the mean intensity of the standard ones and the texture of another place of the same image: flatness alone does
    not tell them. Of a few random places the one whose texture is about as strong as the whole image's is taken."""

    NUMBER: ClassVar[int] = 3

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            blot = draw_shape(random, spec_of(scene), canvas.shape, len(canvas.image), canvas.brain)
            width = DETAIL_FRACTION * min(canvas.shape) if scene.spacing_mm is None else DETAIL_MM / scene.spacing_mm
            texture = _texture(_detail(canvas.image, canvas.brain, width), canvas.brain, blot, random)
            return _laid_over(canvas.image, blot, blot.color, texture)

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)


def _mean_below(image: FloatArray, blot: BlotShape) -> NDArray[np.float64]:
    """Mean of each channel under a blot, (C,)."""
    cover = blot.cover[blot.box].astype(np.float64)
    total = float(cover.sum())
    if total == 0:  # too small to cover any pixel's middle: what lies at its centre
        return np.array([channel[tuple(int(c) for c in blot.center)] for channel in image], np.float64)
    return np.asarray((image[(slice(None), *blot.box)] * cover).reshape(len(image), -1).sum(axis=1) / total)


def _laid_over(image: FloatArray, blot: BlotShape, color: NDArray[np.float64], texture: FloatArray | None = None) -> Painted:
    """An image with a blot of these intensities (C,), and maybe a texture (C, *box) on it."""
    place = (slice(None), *blot.box)
    paint = color.reshape(-1, *[1] * len(blot.box)).astype(np.float32)
    if texture is not None:
        paint = (paint + texture).clip(-1, 1)
    result = image.copy()
    result[place] += blot.cover[blot.box] * (paint - image[place])
    return result, blot.cover


def _detail(image: FloatArray, brain: NDArray[np.bool_], width: float) -> FloatArray:
    """An image (C, *S) less its local mean over the brain; 0 outside."""
    inside = brain.astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(inside, width), 1e-3)
    mean = ndimage.gaussian_filter(image * inside, (0, *[width] * brain.ndim)) / weight
    return (image - mean) * inside


def _texture(detail: FloatArray, brain: NDArray[np.bool_], blot: BlotShape, random: np.random.Generator) -> FloatArray:
    """The texture (C, *box) of another place of the brain, its mean under the blot 0; beyond an image's end it begins anew."""
    own, cover = detail[(slice(None), *blot.box)], blot.cover[blot.box]
    usual = float(np.sqrt(np.square(detail[:, brain], dtype=np.float64).mean()))
    total = max(float(cover.sum(dtype=np.float64)), 1e-9)
    best, best_gap = own, np.inf
    for _ in range(TEXTURE_PLACES):
        shift = np.floor(place_in(brain, random)).astype(int) - np.floor(blot.center).astype(int)
        axes = ((np.arange(n)[part] + s) % n for n, part, s in zip(brain.shape, blot.box, shift, strict=True))
        there = np.ix_(*axes)
        found = np.where(brain[there], detail[(slice(None), *there)], own)
        mean = (found * cover).sum(axis=tuple(range(1, found.ndim)), keepdims=True, dtype=np.float64) / total
        found = (found - mean).astype(np.float32)
        strength = float(np.sqrt((np.square(found, dtype=np.float64).mean(axis=0) * cover).sum() / total))
        if abs(strength - usual) < best_gap:
            best, best_gap = found, abs(strength - usual)
    return best
