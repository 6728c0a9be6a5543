"""Pixels and cells lie where their patch says that they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from normscape.baselines.places import MARGIN, Grid, cell_positions, conditions_of, drawn_rows, position_frame, training_batches
from normscape.datasets.patches import PatchSource
from normscape.scoring.maps import unit_volume


def test_pixels_of_patches_on_the_atlas(world: Callable[..., Any]) -> None:
    """What a patch shows is what its scan shows at the patch's places."""
    training = world("brains").training
    source = training.healthy.samples.images
    assert isinstance(source, PatchSource)
    grid = Grid.of(training)
    found = np.argwhere(source.cohort.atlas_mask)
    assert grid.low == tuple((found.min(0) - MARGIN).clip(0))
    rows = torch.arange(0, len(training.healthy), 9)
    batch = training.healthy.batch(rows)
    places = grid.places(batch)
    scans = source.scan[training.healthy.samples.sample_id[rows].numpy()]
    box = tuple(slice(low, low + length) for low, length in zip(grid.low, grid.shape, strict=True))
    for scan, image, mask, place in zip(scans, batch.images, batch.masks, places, strict=True):
        volume = torch.from_numpy(unit_volume(source, int(scan))[box].copy()).flatten()
        torch.testing.assert_close(volume[place][mask[0]], image[0][mask[0]])


def test_pixels_of_pictures_lie_on_each_other(world: Callable[..., Any]) -> None:
    training = world("pictures").training
    grid = Grid.of(training)
    places = grid.places(training.healthy.batch(torch.arange(3)))
    assert torch.equal(places, torch.arange(64).view(1, 8, 8))
    assert (len(grid), grid.frame) == (64, None)
    assert Grid.of(world("brains").training, positions=False).shape == (8, 8, 8)


def test_cells_of_patches(world: Callable[..., Any]) -> None:
    """A cell as large as a voxel lies where the voxel lies; eight cells lie around the middle."""
    training = world("brains").training
    source, frame = training.healthy.samples.images, position_frame(training)
    assert isinstance(source, PatchSource)
    assert frame is not None
    position = training.healthy.batch(torch.arange(5)).conditions["position"]
    fine = cell_positions(position, frame, 8, (8, 8, 8))
    corner = source.center[training.healthy.samples.sample_id[:5].numpy()].astype(np.int64) - 4
    index = corner[:, None] + np.stack(np.unravel_index(np.arange(512), (8, 8, 8)), axis=-1)
    matrix = source.position_frame()
    np.testing.assert_allclose(fine.numpy(), index @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-3)
    coarse = cell_positions(position, frame, 8, (2, 2, 2))
    torch.testing.assert_close(coarse.mean(1), position)
    torch.testing.assert_close((coarse - position[:, None]).abs(), torch.full_like(coarse, 4.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(cell_positions(position, frame, 8, (1, 1, 1))[:, 0], position)


def test_training_batches(world: Callable[..., Any]) -> None:
    """All drawn rows once: the same for the same seed and purpose, with their own conditions."""
    training = world("brains").changed(images=50).training
    rows = drawn_rows(training, "here")
    batches = list(training_batches(training, "here"))
    assert sum(map(len, batches)) == 50
    assert len(rows.unique()) == 50
    expected = training.healthy.batch(rows)
    torch.testing.assert_close(torch.cat([batch.images for batch in batches]), expected.images)
    for name, values in expected.conditions.items():
        assert torch.equal(torch.cat([batch.conditions[name] for batch in batches]), values)
    assert torch.equal(drawn_rows(training, "here"), rows)
    assert not torch.equal(drawn_rows(training, "there"), rows)


def test_shuffled_conditions(world: Callable[..., Any]) -> None:
    """Every image gets the values of another, all of one; none is lost; images stay."""
    training = world("brains").training
    rows = drawn_rows(training, "here")
    own, others = (conditions_of(training, rows, shuffled=shuffled, purpose="here") for shuffled in (False, True))
    assert (own["position"] != others["position"]).any(1).float().mean() > 0.9
    joined = [torch.cat([found["age"], found["position"]], dim=1) for found in (own, others)]
    assert torch.equal(*(found.unique(dim=0) for found in joined))
    plain, mixed = (next(training_batches(training, "here", shuffled=shuffled)) for shuffled in (False, True))
    assert torch.equal(plain.images, mixed.images)
    assert torch.equal(mixed.conditions["position"], others["position"][: len(mixed)])
