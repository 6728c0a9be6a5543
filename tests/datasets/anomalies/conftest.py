"""A head of ellipsoids, whole and in patches, with fluid, grey and white matter at the levels of T1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from normscape.datasets.anomalies import Scene
from normscape.datasets.anomalies.tissue import CSF_SD, GREY_SD, WHITE_SD
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import INTENSITY_RANGE_SD

BRAIN_MM, WHITE_MM, VENTRICLE_MM = (68.0, 84.0, 66.0), (56.0, 72.0, 54.0), (14.0, 30.0, 18.0)
"""Half axes of the brain, its white matter and its ventricle."""
PATCHES_MM = ((0.0, 20.0, 20.0), (0.0, -40.0, 22.0), (52.0, 0.0, 10.0), (0.0, -60.0, 30.0))
"""Middles of patches: at the ventricle, in white matter, and two at the surface."""


def head(shape: Sequence[int], spacing: float, middle_mm: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Intensities float32 (*S) in [-1, 1] and the brain's mask, noise outside, around a place of the head."""
    axes = [(np.arange(n) - (n - 1) / 2) * spacing + m for n, m in zip(shape, middle_mm, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    inside = {name: np.linalg.norm(place / np.array(half)[: len(shape)], axis=-1) < 1 for name, half in
              (("brain", BRAIN_MM), ("white", WHITE_MM), ("ventricle", VENTRICLE_MM))}  # fmt: skip
    random = np.random.default_rng(seed)
    level = np.select([inside["ventricle"], inside["white"]], [CSF_SD, WHITE_SD], GREY_SD) + random.normal(scale=0.15, size=shape)
    level = np.where(inside["brain"], level, random.normal(size=shape))
    return (level / INTENSITY_RANGE_SD).clip(-1, 1).astype(np.float32), inside["brain"]


def heads(shape: Sequence[int], spacing: float, middles_mm: Sequence[Sequence[float]], seed: int = 0) -> ImageBatch:
    images, masks = zip(*(head(shape, spacing, middle, seed + i) for i, middle in enumerate(middles_mm)), strict=True)
    return ImageBatch(torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks))[:, None], {})


Scenery = tuple[ImageBatch, ImageBatch, Scene]
"""Images, donors for each, and what they have in common."""


@pytest.fixture
def scenery() -> Callable[[str], Scenery]:
    """Makes `patches` (side 16 of 2 mm), a `volume` (whole head of 4 mm), `slices` of it, or `pictures` (RGB, no millimetres)."""

    def make(kind: str) -> Scenery:
        if kind == "pictures":
            random = np.random.default_rng(0)
            both = [torch.from_numpy(random.uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)) for _ in range(2)]
            return ImageBatch(both[0], None, {}), ImageBatch(both[1], None, {}), Scene(2, None)
        shape, spacing, middles = {
            "patches": ((16, 16, 16), 2.0, PATCHES_MM),
            "volume": ((40, 48, 40), 4.0, ((0.0, 0.0, 0.0),)),
            "slices": ((80, 96), 2.0, ((0.0, 0.0), (5.0, 10.0))),
        }[kind]
        return heads(shape, spacing, middles), heads(shape, spacing, middles, seed=100), Scene(len(shape), spacing)

    return make
