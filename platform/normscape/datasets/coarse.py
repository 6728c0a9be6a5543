"""Prepared cohorts on other grids: coarser voxels, and volumes that hold a cube around the brain.

A brain of 32 voxels a side has voxels of about 6 mm, at which no scan is prepared: registration and masks want finer ones. So a
coarse cohort is made of a prepared one, by means of blocks of whole voxels, which is a down-sampling without aliasing. It is
small, and stays in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normscape.datasets.prepared import COHORT_NAME, PreparedCohort

HALF = 0.5
"""Share of a block that has to be brain for the new voxel to be so."""
_FILES = (COHORT_NAME, "subjects.parquet", "volumes.npy", "masks.npy")


def block_mean(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means of cubes of `factor` voxels a side, (Z, Y, X) padded with 0 at the far ends."""
    padded = np.pad(values, [(0, -side % factor) for side in values.shape])
    z, y, x = (side // factor for side in padded.shape)
    return padded.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def whole_factor(spacing_mm: float, own_mm: float) -> int | None:
    """How many voxels of a cohort make one of this side; None where it is no whole number."""
    factor = round(spacing_mm / own_mm)
    return factor if factor >= 1 and abs(factor * own_mm - spacing_mm) < 1e-6 else None


def at_spacing(cohort: PreparedCohort, spacing_mm: float) -> PreparedCohort:
    """A cohort with voxels of this side, where that is a whole multiple of its own; else the cohort as it is.

    One process makes it once, as long as the cohort's files stay what they are.
    """
    factor = whole_factor(spacing_mm, cohort.spacing_mm)
    if factor is None or factor == 1:
        return cohort
    stats = [(cohort.folder / name).stat() for name in _FILES]
    return _coarse(cohort.folder.resolve(), factor, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@functools.lru_cache(maxsize=2)
def _coarse(folder: Path, factor: int, state: tuple[tuple[int, int], ...]) -> PreparedCohort:
    return coarsened(PreparedCohort.open(folder), factor)


def coarsened(cohort: PreparedCohort, factor: int) -> PreparedCohort:
    """The same scans with voxels of `factor` times the side, in memory; the grid begins at the same corner.

    A block is brain where at least half of it is, and has the mean of its brain: beyond the mask a volume is 0, which is no
    intensity and would darken the brain's rim. What lies beyond the far faces counts as background.
    """
    if factor == 1:
        return cohort
    pairs = [_blocks(cohort.volumes[row], cohort.masks[row], factor) for row in range(len(cohort))]
    atlas, atlas_mask = _blocks(cohort.atlas, cohort.atlas_mask, factor)
    none = np.zeros((0, *atlas.shape))
    affine = cohort.affine.copy()
    affine[:3, 3] = cohort.world(np.full(3, (factor - 1) / 2))
    affine[:3, :3] *= factor
    return replace(
        cohort,
        spacing_mm=cohort.spacing_mm * factor,
        affine=affine,
        volumes=np.stack([volume for volume, _ in pairs]).astype(np.float16) if pairs else none.astype(np.float16),
        masks=np.stack([mask for _, mask in pairs]) if pairs else none.astype(np.uint8),
        atlas=atlas,
        atlas_mask=atlas_mask,
    )


def _blocks(
    volume: NDArray[np.floating], mask: NDArray[np.uint8], factor: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:  # fmt: skip
    """Means of the brain in blocks, 0 outside, and which blocks are brain."""
    brain = np.asarray(mask) > 0
    share = block_mean(brain.astype(np.float32), factor)
    inside = share >= HALF
    total = block_mean(np.where(brain, volume, 0).astype(np.float32), factor)
    return np.where(inside, total / np.maximum(share, HALF), 0).astype(np.float32), inside.astype(np.uint8)


def padded(cohort: PreparedCohort, side: int) -> PreparedCohort:
    """The same scans with background around, in memory, so that volumes hold the cube around the middle of the atlas's brain.

    The cohort as it is where they do, and where the brain does not fit into the cube.

    Args:
        cohort: any.
        side: of the cube, in voxels.
    """
    corner = middle_cube(cohort.atlas_mask, side)
    if corner is None:
        return cohort
    around = [(max(-first, 0), max(first + side - length, 0)) for first, length in zip(corner, cohort.shape, strict=True)]
    if not np.any(around):
        return cohort
    affine = cohort.affine.copy()
    affine[:3, 3] = cohort.world(-np.array([before for before, _ in around], np.float64))
    return replace(
        cohort,
        affine=affine,
        volumes=np.pad(cohort.volumes, [(0, 0), *around]),
        masks=np.pad(cohort.masks, [(0, 0), *around]),
        atlas=np.pad(cohort.atlas, around),
        atlas_mask=np.pad(cohort.atlas_mask, around),
    )


def middle_cube(mask: NDArray[np.uint8], side: int) -> tuple[int, ...] | None:
    """First voxel z, y, x of the cube around the middle of a mask's bounding box, maybe outside of the volume.

    None where the cube cannot hold the mask.

    Args:
        mask: (Z, Y, X).
        side: of the cube, in voxels.
    """
    found = np.argwhere(mask)
    low, high = found.min(0), found.max(0) + 1
    return None if (high - low > side).any() else tuple(int(first) for first in (low + high - side) // 2)


def extent(mask: NDArray[np.uint8]) -> Sequence[int]:
    """Voxels along each axis of a mask's bounding box."""
    found = np.argwhere(mask)
    sides: list[int] = (found.max(0) + 1 - found.min(0)).tolist()
    return sides
