"""Artefacts: each leaves the trace among spatial frequencies, or in space, that it is known by. And the foreign patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from normscape.config import PluginConfig
from normscape.datasets.anomalies import AnomalyBatch, Scene, load_family
from normscape.datasets.anomalies.deformation import moved, seen
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import INTENSITY_RANGE_SD
from normscape.errors import DataError

SCENE = Scene(3, 4.0)


def drawn_in(batch: ImageBatch, name: str, scene: Scene = SCENE, **settings: float) -> AnomalyBatch:
    family = load_family(PluginConfig(name=name, settings=settings))
    return family.draw(batch, seed=1, sample_ids=range(len(batch)), scene=scene)


def ball(count: int = 12) -> ImageBatch:
    """A bright ball in a dark brain that fills volumes of 36 voxels."""
    away = np.linalg.norm(np.indices((36, 36, 36)) - np.array([17.0, 18.0, 18.0])[:, None, None, None], axis=0)
    image = np.where(away < 4, 0.8, -0.9).astype(np.float32)
    return ImageBatch(
        torch.from_numpy(image).expand(count, 1, -1, -1, -1), torch.ones(count, 1, 36, 36, 36, dtype=torch.bool), {}
    )


def test_ghosts_lie_along_one_axis() -> None:
    """The brightest ghost of a ball is a whole number of n-ths of the field of view away, along one axis."""
    batch = ball()
    drawn = drawn_in(batch, "ghosting")
    change = (drawn.images - batch.images)[:, 0]
    axes = set()
    for part in change:
        part[batch.images[0, 0] > 0] = 0
        shift = np.array(np.unravel_index(int(part.argmax()), part.shape)) - [17, 18, 18]
        axis = int(np.abs(shift).argmax())
        axes.add(axis)
        others = np.delete(shift, axis)
        assert (np.abs(others) <= 4).all()
        assert min(abs(abs(shift[axis]) - 36 * k / n) for n in (2, 3, 4) for k in range(1, n)) <= 4
        assert part.max() > 0.1
    assert axes == {0, 1, 2}


def test_spikes_are_one_wave() -> None:
    """In a flat brain the change is one plane wave: nearly all its power lies in one pair of spatial frequencies."""
    shape = (8, 1, 24, 24, 24)
    batch = ImageBatch(torch.zeros(shape), torch.ones(shape, dtype=torch.bool), {})
    drawn = drawn_in(batch, "spike", Scene(3, 2.0))
    for change in drawn.images[:, 0]:
        power = torch.fft.fftn(change).abs().square().flatten().sort(descending=True).values
        assert power[:2].sum() > 0.8 * power.sum()
        height = float(change.abs().max()) * INTENSITY_RANGE_SD
        assert 0.3 < height < 1.3


def test_wrapping_adds_a_shifted_copy() -> None:
    """Nothing becomes darker; the ball's copy lies along one axis and is as large as the ball."""
    batch = ball()
    drawn = drawn_in(batch, "wrap")
    change = (drawn.images - batch.images)[:, 0]
    assert (change >= -1e-6).all()
    copies = 0
    for part in change:
        part[batch.images[0, 0] > 0] = 0
        bright = torch.nonzero(part > 0.1).float()
        if len(bright) > 200:
            shift = bright.mean(0) - torch.tensor([17.0, 18.0, 18.0])
            assert sorted(shift.abs().tolist())[1] < 0.6
            copies += 1
    assert copies >= 4


def test_motion_blurs_edges_and_leaves_flat_places(scenery: Callable) -> None:
    """The image changes most at the ball's edge; the ball stays bright in the middle."""
    batch = ball()
    drawn = drawn_in(batch, "motion")
    away = torch.from_numpy(np.linalg.norm(np.indices((36, 36, 36)) - np.array([17.0, 18.0, 18.0])[:, None, None, None], axis=0))
    change = (drawn.images - batch.images)[:, 0].abs()
    edge, far = (change[:, part].mean(1) for part in ((away > 2) & (away < 6), away > 14))
    assert (edge > 3 * far).all()
    assert (drawn.images[:, 0, 17, 18, 18] > 0).all()
    patches, _, scene = scenery("patches")
    assert drawn_in(patches, "motion", scene).contrast.min() > 0.02


# ---- moving and seeing


def test_moving_by_a_voxel() -> None:
    """A shift by whole voxels is a shift of the image; what lies outside the brain is never shown."""
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 14)).astype(np.float32)
    brain = np.ones((12, 14), bool)
    box = (slice(2, 9), slice(3, 12))
    shift = np.broadcast_to(np.array([1.0, -2.0]), (7, 9, 2))
    assert moved(values, brain, box, shift) == pytest.approx(values[3:10, 1:10])
    assert moved(values, brain, box, np.zeros((7, 9, 2))) == pytest.approx(values[box])
    brain[:, :4] = False
    values[:, :4] = 1e6
    assert moved(values, brain, box, shift).max() < 10


def test_what_is_seen() -> None:
    """Small changes do not count, large ones wholly, those outside the brain never; pooling reaches a few millimetres."""
    change, brain = np.zeros((40, 40), np.float32), np.ones((40, 40), bool)
    change[10:20, 10:20], change[25:30, 25:30] = 2.0, 0.05
    share = seen(change, brain, 1.0)
    assert (share[11:19, 11:19] == 1).all()
    assert not share[23:, 23:].any()
    assert not share[:5].any()
    brain[:, :] = False
    assert not seen(change, brain, 1.0).any()


# ---- foreign patches


def test_foreign_patches_come_from_the_donor(scenery: Callable) -> None:
    """At full weight what lies under the mask is the donor's, at half weight the mean of both; and only where both are brain."""
    batch, donors, scene = scenery("patches")
    own = donors.masks.clone()
    own[:, :, :, :8] = False
    donors = ImageBatch(donors.images, own, {})
    for weight in (1.0, 0.5):
        family = load_family(PluginConfig(name="foreign", settings={"weight_min": weight, "weight_max": weight}))
        drawn = family.draw(batch, seed=1, sample_ids=range(4), scene=scene, donors=donors)
        whole = drawn.masks == 1
        assert whole.any()
        mixed = weight * donors.images[whole] + (1 - weight) * batch.images[whole]
        assert drawn.images[whole] == pytest.approx(mixed, abs=1e-5)
        assert not drawn.masks[~(batch.masks & own)].any()


def test_foreign_patches_need_donors(scenery: Callable) -> None:
    batch, donors, scene = scenery("patches")
    family = load_family(PluginConfig(name="foreign"))
    with pytest.raises(DataError, match="foreign needs donors"):
        family.draw(batch, seed=1, sample_ids=range(4), scene=scene)
    with pytest.raises(DataError, match="donors have to be like the images"):
        family.draw(batch, seed=1, sample_ids=range(4), scene=scene, donors=donors.rows(slice(0, 2)))
    nothing = ImageBatch(donors.images, torch.zeros_like(donors.masks), {})
    drawn = family.draw(batch, seed=1, sample_ids=range(4), scene=scene, donors=nothing)
    assert torch.equal(drawn.images, batch.images)
    assert not drawn.masks.any()
