"""Patches cover a brain, and blending undoes cutting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscape.inversion.volumes import Blender, hann_window, patch_grid

SHAPE = (17, 21, 14)


def ball(radius: float = 1.0) -> np.ndarray:
    """An ellipsoid inside SHAPE."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    return np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0) < radius


def cut(volume: torch.Tensor, centres: np.ndarray, size: int) -> torch.Tensor:
    """The patches around these centres, (P, 1, *S)."""
    corners = (np.asarray(centres) - size // 2).tolist()
    return torch.stack([volume[z : z + size, y : y + size, x : x + size] for z, y, x in corners])[:, None]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_a_grid_covers_the_mask_from_end_to_end(stride: int) -> None:
    """Every voxel of the mask lies in a patch; the first patches begin and the last ones end where the mask does."""
    mask = ball(0.8)
    centres = patch_grid(mask, 4, stride, max_background=1.0)
    found = np.argwhere(mask)
    corners = centres - 2
    assert (corners.min(0) == found.min(0)).all()
    assert (corners.max(0) + 4 == found.max(0) + 1).all()
    covered = torch.zeros(SHAPE)
    for z, y, x in corners:
        covered[z : z + 4, y : y + 4, x : x + 4] = 1
    assert bool(covered[torch.from_numpy(mask)].all())
    steps = np.diff(np.unique(corners[:, 0]))
    assert (steps[:-1] == stride).all()
    assert 1 <= steps[-1] <= stride


def test_patches_with_much_background_are_left_out() -> None:
    """Exactly those that hold less of the mask than asked."""
    mask = ball(0.8)
    everywhere, kept = (patch_grid(mask, 4, 2, share) for share in (1.0, 0.5))
    shares = cut(torch.from_numpy(mask).float(), everywhere, 4).mean((1, 2, 3, 4))
    assert 0 < len(kept) < len(everywhere)
    assert np.array_equal(kept, everywhere[(shares >= 0.5).numpy()])


def test_narrow_and_empty_masks() -> None:
    """A mask narrower than a patch gets one around its middle, also at the border; an empty one none; small ones are refused."""
    mask = np.zeros(SHAPE, bool)
    assert len(patch_grid(mask, 4, 2, 1.0)) == 0
    mask[16, 10, 6] = True
    assert patch_grid(mask, 4, 2, 1.0).tolist() == [[15, 10, 6]]
    with pytest.raises(ValueError, match="no patch with a side of 16"):
        patch_grid(mask, 16, 2, 1.0)


@pytest.mark.parametrize(("size", "stride"), [(4, 1), (4, 3), (5, 2), (6, 6)])
def test_blending_undoes_cutting(size: int, stride: int) -> None:
    """Inside of what is covered the volume comes back; outside it is what was asked for."""
    volume = torch.randn(SHAPE, generator=torch.Generator().manual_seed(size))
    centres = patch_grid(ball(), size, stride, 0.6)
    blender = Blender(SHAPE, size)
    blender.add(cut(volume, centres, size), centres)
    covered = blender.covered
    assert 0 < int(covered.sum()) < covered.numel()
    torch.testing.assert_close(blender.result()[covered], volume[covered])
    assert bool((blender.result(fill=-7.0)[~covered] == -7).all())


def test_the_batch_size_does_not_matter() -> None:
    """All at once, one by one and in any order: the same volume; a value a patch is a patch of that value."""
    random = torch.Generator().manual_seed(1)
    centres = torch.from_numpy(patch_grid(ball(), 4, 2, 0.7))
    patches = torch.randn(len(centres), 1, 4, 4, 4, generator=random)
    whole, single, values, constant = (Blender(SHAPE, 4) for _ in range(4))
    whole.add(patches, centres)
    for i in torch.randperm(len(centres), generator=random).split(3):
        single.add(patches[i], centres[i])
    torch.testing.assert_close(whole.result(), single.result())
    scores = patches.mean((1, 2, 3, 4))
    values.add(scores, centres)
    constant.add(scores.view(-1, 1, 1, 1, 1).expand_as(patches), centres)
    assert torch.equal(values.result(), constant.result())


def test_masked_voxels_do_not_count() -> None:
    """Where a patch is masked out, another one alone decides; where all are, nothing is covered."""
    masks = torch.ones(2, 1, 4, 4, 4)
    masks[0, ..., 2:] = 0
    blender = Blender((4, 4, 6), 4)
    blender.add(torch.tensor([1.0, 3.0]), [[2, 2, 2], [2, 2, 4]], masks)
    result = blender.result()
    assert bool((result[..., :2] == 1).all())
    assert bool((result[..., 2:] == 3).all())
    blender = Blender((4, 4, 4), 4)
    blender.add(torch.ones(1), [[2, 2, 2]], masks[:1])
    assert blender.covered[..., 2:].sum() == 0


def test_the_window_is_smooth_and_never_zero() -> None:
    """It is symmetric, highest in the middle, and falls off towards the faces."""
    window = hann_window(8)
    assert float(window.min()) > 0
    assert torch.allclose(window, window.flip(0, 1, 2))
    assert bool((window[3, 3].diff()[:3] > 0).all())
    assert float(window[3, 3, 3]) == float(window.max())
    with pytest.raises(ValueError, match="positive"):
        Blender(SHAPE, torch.zeros(4, 4, 4))


def test_patches_stay_inside() -> None:
    """A patch that leaves the volume is an error, not a shifted one."""
    with pytest.raises(ValueError, match="leaves the volume"):
        Blender(SHAPE, 4).add(torch.zeros(1), [[1, 5, 5]])
    with pytest.raises(ValueError, match="leaves the volume"):
        Blender(SHAPE, 4).add(torch.zeros(1), [[16, 5, 5]])
