"""Domain randomisation: a scan as some other scanner might have shown it, for detectors to learn from (beyond the thesis).

A detector that has seen one scanner takes any other one for an anomaly. So a share of the images that it learns from is changed
as scanners change images, and more than they do (Tobin et al. 2017; of brains Billot et al., SynthSeg, 2023): with intensities x
in [-1, 1] under the mask, 1 being three standard deviations of the brain,

    y = (a + b x + c (x² - 0.1) + d (x³ - 0.2 x) + 1) f - 1,

a, b, c, d one number an image each, f a plane that tilts over it; then blurred in part, and with noise. The anomaly is drawn
afterwards, so that what is learned is to find it whatever the scanner.

Everything is a pure function of (seed, sample id), never of the batch or the order of calls. Random numbers come from a counter
that is hashed (SplitMix64, Steele et al. 2014), all those of a batch at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import RandomisationConfig
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.losses.masked import local_means, within

OFFSET, GAIN, SQUARE, CUBE, TILT = 0.12, 0.25, 0.35, 0.25, 0.10
"""Largest a, b - 1, c, d, and slope of f from the middle of an image to its border, at strength 1."""
BLUR, BLURRED, NOISE = 0.8, 0.5, 0.05
"""Largest share of the mean over 3 voxels a side, in what share of the images; largest standard deviation of the noise."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def randomised_rows(config: RandomisationConfig, seed: int, sample_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Which images are changed, bool `(B,)`: about `config.share` of them, each decided by itself."""
    return _uniform(seed, sample_ids, 0, 1)[:, 0] < config.share


def randomised(
    config: RandomisationConfig, images: Tensor, masks: Tensor | None, *, seed: int, sample_ids: Sequence[int]
) -> Tensor:
    """Images of which `randomised_rows` are changed.

    Args:
        config: share and strength.
        images: float `(B, C, *S)` in [-1, 1].
        masks: bool `(B, 1, *S)`; nothing outside is changed, and everything may be when None.
        seed: of the experiment.
        sample_ids: `(B,)`.

    Returns:
        New images `(B, C, *S)` in [-1, 1].
    """
    rows = randomised_rows(config, seed, sample_ids)
    chosen = torch.from_numpy(np.flatnonzero(rows))
    if not len(chosen):
        return images
    ids = np.asarray(sample_ids)[rows]
    inside = None if masks is None else masks[chosen]
    changed = _changed(images[chosen], inside, config.strength, seed, ids)
    return images.index_copy(0, chosen, within(changed, images[chosen], inside))


def _changed(x: Tensor, mask: Tensor | None, strength: float, seed: int, ids: NDArray[Any]) -> Tensor:
    dims, count = x.ndim - 2, x[0].numel()
    wide = (-1, *[1] * (dims + 1))
    drawn = torch.from_numpy(_uniform(seed, ids, 1, 7 + dims)).to(x.dtype)
    a, b, c, d = ((strength * most * (2 * drawn[:, i] - 1)).view(wide) for i, most in enumerate((OFFSET, GAIN, SQUARE, CUBE)))
    y = a + (1 + b) * x + c * (x.square() - 0.1) + d * (x**3 - 0.2 * x)
    plane = torch.ones_like(y[:, :1])
    for axis in range(dims):
        ramp = torch.linspace(-1, 1, x.shape[2 + axis]).view([-1 if i == 2 + axis else 1 for i in range(x.ndim)])
        plane = plane + (strength * TILT * (2 * drawn[:, 7 + axis] - 1)).view(wide) * ramp
    y = (y + 1) * plane - 1
    share = strength * BLUR * drawn[:, 4] * (drawn[:, 5] < BLURRED)
    y = torch.lerp(y, local_means(y, 3, mask)[0], share.view(wide).clamp(max=1))
    normal = torch.from_numpy(_normal(seed, ids, count)).to(x.dtype).view_as(y)
    return (y + (strength * NOISE * drawn[:, 6]).view(wide) * normal).clamp(-1, 1)


class RandomisedImages(HealthyImages):
    """The same normal images, a share of them as another scanner might have shown them; a row is always the same image.

    Args:
        images: as they are.
        config: share and strength.
        seed: of the experiment.
    """

    def __init__(self, images: HealthyImages, config: RandomisationConfig, seed: int) -> None:
        self.samples, self.columns = images.samples, images.columns
        self.config, self.seed = config, seed

    def batch(self, rows: Tensor) -> ImageBatch:
        """The images of these rows, int64 `(B,)`."""
        batch = super().batch(rows)
        ids = self.samples.sample_id[rows].tolist()
        return batch.with_images(randomised(self.config, batch.images, batch.masks, seed=self.seed, sample_ids=ids))


def _uniform(seed: int, sample_ids: Sequence[int] | NDArray[Any], stream: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), `(B, count)`; other streams have others."""
    text = repr((seed, "randomisation", stream)).encode()
    start = np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), np.uint64)
    with np.errstate(over="ignore"):
        own = _mixed(start + np.asarray(sample_ids).astype(np.uint64)[:, None] * _GOLDEN)
        bits = _mixed(own + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normal(seed: int, sample_ids: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Standard normal numbers `(B, count)` (Box and Muller)."""
    u = _uniform(seed, sample_ids, 2, 2 * count)
    normal: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-u[:, :count])) * np.cos(2 * np.pi * u[:, count:])
    return normal


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
