"""Coarse cohorts: means of blocks of the brain, on a grid that lies where the fine one does; volumes padded to a cube."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from normscape.datasets.coarse import at_spacing, coarsened, middle_cube, padded
from normscape.datasets.prepared import PreparedCohort

Cohorts = Callable[..., PreparedCohort]


def blocks(volume: np.ndarray, factor: int) -> np.ndarray:
    """(z, y, x, factor, factor, factor), the far ends padded with 0."""
    volume = np.pad(volume, [(0, -side % factor) for side in volume.shape])
    shape = [part for side in volume.shape for part in (side // factor, factor)]
    return volume.reshape(shape).transpose(0, 2, 4, 1, 3, 5)


@pytest.mark.parametrize("factor", [2, 3])
def test_volumes_are_means_of_the_brain_in_blocks(prepared_cohort: Cohorts, factor: int) -> None:
    """Every block at least half of which is brain has the mean of its brain, and no other block is brain."""
    fine = prepared_cohort()
    coarse = coarsened(fine, factor)
    assert len(coarse) == len(fine)
    assert coarse.shape == tuple(-(-side // factor) for side in fine.shape)
    assert (coarse.volumes.dtype, coarse.masks.dtype) == (np.float16, np.uint8)
    for row in range(len(fine)):
        inside = blocks(fine.masks[row].astype(float), factor)
        values = blocks(fine.volumes[row].astype(float) * fine.masks[row], factor)
        count = inside.sum((3, 4, 5))
        brain = count >= factor**3 / 2
        assert np.array_equal(coarse.masks[row] > 0, brain)
        expected = np.where(brain, values.sum((3, 4, 5)) / np.maximum(count, 1), 0)
        np.testing.assert_allclose(coarse.volumes[row].astype(float), expected, rtol=1e-3)
    assert np.array_equal(coarse.atlas_mask > 0, blocks(fine.atlas_mask.astype(float), factor).mean((3, 4, 5)) >= 0.5)
    assert coarse.subjects.equals(fine.subjects)


def test_a_coarse_grid_lies_where_the_fine_one_does(prepared_cohort: Cohorts) -> None:
    """A voxel's place is the middle of its block; twice by two is once by four; a factor of 1 changes nothing."""
    fine = prepared_cohort()
    coarse = coarsened(fine, 2)
    assert coarse.spacing_mm == 4.0
    np.testing.assert_allclose(coarse.world(np.array([1.0, 2.0, 3.0])), fine.world(np.array([2.5, 4.5, 6.5])))
    np.testing.assert_allclose(coarsened(coarse, 2).affine, coarsened(fine, 4).affine)
    assert coarsened(fine, 1) is fine


def test_padding_moves_nothing(prepared_cohort: Cohorts) -> None:
    """Every voxel keeps its place and its value, and what is added is background; volumes that hold the cube stay as they are."""
    fine = prepared_cohort()
    wide = padded(fine, 27)
    corner = middle_cube(wide.atlas_mask, 27)
    assert corner is not None
    assert min(corner) >= 0
    assert (np.array(corner) + 27 <= wide.shape).all()
    assert (np.array(wide.shape) >= fine.shape).all()
    for row in (0, 8):
        place = np.argwhere(fine.masks[row])[::50].astype(float)
        there = np.linalg.inv(wide.affine) @ np.c_[fine.world(place), np.ones(len(place))].T
        index = tuple(there[:3].round().astype(int))
        assert np.array_equal(wide.volumes[row][index], fine.volumes[row][tuple(place.astype(int).T)])
        assert wide.masks[row].sum() == fine.masks[row].sum()
    assert padded(wide, 27) is wide
    assert padded(fine, 20) is fine  # too small a cube for the brain


def test_a_spacing_that_is_no_multiple_is_left_alone(prepared_cohort: Cohorts) -> None:
    """The cohort comes back as it is; a multiple is made once, and anew when the files changed."""
    fine = prepared_cohort()
    assert at_spacing(fine, 3.0) is fine
    assert at_spacing(fine, 2.0) is fine
    assert at_spacing(fine, 1.0) is fine
    coarse = at_spacing(fine, 6.0)
    assert coarse.spacing_mm == 6.0
    assert at_spacing(fine, 6.0) is coarse
    os.utime(fine.folder / "masks.npy", ns=(0, 0))
    assert at_spacing(fine, 6.0) is not coarse


def test_the_cube_around_a_mask() -> None:
    """It holds the mask in its middle, and may leave the volume; a mask that is too long has none."""
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:11, 8:10, 16:20] = 1
    assert middle_cube(mask, 8) == (4, 5, 14)
    assert middle_cube(mask, 6) == (5, 6, 15)
    assert middle_cube(mask, 5) is None
