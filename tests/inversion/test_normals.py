"""What is usual at each place: statistics are found again, and what exceeds them is told, wherever a patch lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from normscape.config import Config
from normscape.datasets.patches import PatchSource
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import load_samples
from normscape.inversion.normals import (
    SCALES,
    TEXTURE,
    Normals,
    NormalsBuilder,
    ScaleBuilder,
    corners,
    log_deviation,
    middle_frame,
)

SHAPE, SIDE = (20, 22, 24), 8
FRAME = np.array([[0.0, 0.0, 2.0, -20.0], [0.0, 2.0, 0.0, -30.0], [2.0, 0.0, 0.0, -10.0], [0.0, 0.0, 0.0, 1.0]])
"""Index z, y, x of voxels of 2 mm to x, y, z in millimetres."""


def positions(corner: Tensor) -> Tensor:
    """Millimetres of the middles of patches with these first voxels (B, 3)."""
    middle = corner.double() + (SIDE - 1) / 2
    frame = torch.from_numpy(FRAME)
    return (middle @ frame[:3, :3].T + frame[:3, 3]).float()


def random_corners(count: int, seed: int) -> Tensor:
    """First voxels of patches inside the volume."""
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, side - SIDE + 1, (count,), generator=random) for side in SHAPE], dim=1)


def cut(volume: Tensor, corner: Tensor) -> Tensor:
    """(B, 1, *S)."""
    return torch.stack([volume[z : z + SIDE, y : y + SIDE, x : x + SIDE] for z, y, x in corner.tolist()])[:, None]


@pytest.fixture(scope="module")
def fields() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the residuals: smooth, and different everywhere."""
    z, y, x = (torch.linspace(0, 3, side) for side in SHAPE)
    wave = z.sin()[:, None, None] + y.cos()[None, :, None] + x.sin()[None, None, :]
    return 0.2 * wave, 0.1 + 0.05 * wave.abs()


@pytest.fixture(scope="module")
def normals(fields: tuple[Tensor, Tensor]) -> Normals:
    """Learnt from 4000 patches of noise with these statistics, in two batches; scales from 500 more."""
    mean, std = fields
    builder, random = NormalsBuilder(SHAPE, FRAME), torch.Generator().manual_seed(1)

    def residuals(corner: Tensor) -> Tensor:
        return cut(mean, corner) + cut(std, corner) * torch.randn(len(corner), 1, SIDE, SIDE, SIDE, generator=random)

    for corner in random_corners(4000, 2).split(2500):
        builder.add("encoded", residuals(corner), positions(corner), None)
    scales = ScaleBuilder(builder.build(0.5))
    for corner in random_corners(500, 9).split(300):
        scales.add("encoded", residuals(corner), positions(corner), None)
    return scales.build()


def test_statistics_are_found_again(normals: Normals, fields: tuple[Tensor, Tensor]) -> None:
    """Where many patches overlap."""
    inner = (slice(5, -5),) * 3
    for found, true in zip((normals.mean["encoded"], normals.std["encoded"]), fields, strict=True):
        assert (found[inner] - true[inner]).abs().max() < 0.05
        assert np.corrcoef(found[inner].flatten(), true[inner].flatten())[0, 1] > 0.9


def test_what_is_usual_is_one_and_more_is_told(normals: Normals, fields: tuple[Tensor, Tensor]) -> None:
    """Usual noise has a mean absolute z near sqrt(2 / pi) everywhere; a small constant shift stands out in a neighbourhood."""
    mean, std = fields
    corner = random_corners(64, 3)
    noise = torch.randn(64, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    usual = cut(mean, corner) + cut(std, corner) * noise
    odd = usual.clone()
    odd[..., 2:6, 2:6, 2:6] += 0.4
    place = positions(corner)
    found, more = (normals.excess("encoded", part, part, place, None) for part in (usual, odd))
    assert found["z"].mean() == pytest.approx((2 / np.pi) ** 0.5, rel=0.1)
    assert found["z"].std() < 0.1
    assert (more["z4"] > found["z4"]).float().mean() > 0.95
    alone = normals.excess("encoded", odd[5:6], odd[5:6], place[5:6], None)
    for name, value in more.items():
        assert value[5] == pytest.approx(alone[name].item(), rel=1e-5)


def test_masks_and_borders(normals: Normals) -> None:
    """What lies outside the mask does not count, an empty mask gives 0, a patch beyond the grid is no error."""
    residual = torch.ones(3, 1, SIDE, SIDE, SIDE)
    mask = torch.ones_like(residual, dtype=torch.bool)
    mask[0, ..., 4:] = False
    mask[2] = False
    place = positions(torch.tensor([[3, 3, 3], [-6, 18, 30], [3, 3, 3]]))
    first = normals.excess("encoded", residual, residual, place, mask)
    changed = residual.clone()
    changed[0, ..., 4:] = 9.0
    second = normals.excess("encoded", changed, changed, place, mask)
    for name, value in first.items():
        assert torch.isfinite(value).all()
        assert value[0] == second[name][0]
        assert value[2] == 0.0
    builder = NormalsBuilder(SHAPE, FRAME)
    builder.add("atlas", residual, place, mask)
    assert torch.isfinite(builder.build(1.0).std["atlas"]).all()
    with pytest.raises(ValueError, match="no normal patch"):
        NormalsBuilder(SHAPE, FRAME).build(1.0)


def test_a_map_of_the_excess(normals: Normals, fields: tuple[Tensor, Tensor]) -> None:
    """It is high where a block was added, low elsewhere, 0 outside the mask, and does not depend on what lies there."""
    mean, std = fields
    corner = random_corners(8, 6)
    place, odd = positions(corner), cut(mean, corner)
    odd[..., 3:6, 3:6, 3:6] += 5 * cut(std, corner)[..., 3:6, 3:6, 3:6]
    mask = torch.ones_like(odd, dtype=torch.bool)
    mask[..., 7:] = False
    found = normals.excess_map("encoded", odd, place, mask)
    assert found.shape == odd.shape
    assert (found[..., 4, 4, 4] > 3.5).all()
    assert (found[..., 0, 0, 0] < found[..., 4, 4, 4] / 3).all()
    assert (found[~mask] == 0).all()
    noise = torch.full_like(odd, 9.0)
    assert torch.equal(normals.excess_map("encoded", torch.where(mask, odd, noise), place, mask), found)


def test_a_faint_wide_difference_is_found_in_a_wide_neighbourhood(normals: Normals, fields: tuple[Tensor, Tensor]) -> None:
    """A shift of one standard deviation over 7x7x7 voxels is nothing at one of them, and beyond all noise in their mean."""
    mean, std = fields
    corner = random_corners(32, 7)
    place = positions(corner)
    noise = torch.randn(32, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    usual = cut(mean, corner) + cut(std, corner) * noise
    odd = usual.clone()
    odd[..., 1:8, 1:8, 1:8] += cut(std, corner)[..., 1:8, 1:8, 1:8]
    before, after = (normals.excess_map("encoded", part, place, None)[..., 4, 4, 4] for part in (usual, odd))
    single = replace(normals, scale={})  # as of an older version: neighbourhoods of three voxels alone
    alone = single.excess_map("encoded", odd, place, None)[..., 4, 4, 4]
    assert after.min() > before.max()
    assert after.median() > 3 * alone.median()


def test_scales_are_what_is_usual(normals: Normals) -> None:
    """Independent voxels: a mean over n of them has a deviation of 1 / sqrt(n), or less where the patch cuts it off."""
    expected = [side**-1.5 for side in SCALES[:3]]
    assert normals.scale["encoded"][0] == pytest.approx(1.0, rel=0.1)
    assert (normals.scale["encoded"][:3] / torch.tensor(expected)).sub(1).abs().max() < 0.5
    assert (normals.scale["encoded"].diff()[:3] < 0).all()
    assert normals.scale["encoded"][4] == normals.scale["encoded"][3]  # a patch of 8 voxels holds no neighbourhood of 9


def test_kept_in_a_file(normals: Normals, tmp_path: Path) -> None:
    save_file(normals.to_tensors(), tmp_path / "normals.safetensors")
    read = Normals.from_tensors(load_file(tmp_path / "normals.safetensors"))
    residual, place = torch.ones(2, 1, SIDE, SIDE, SIDE), positions(random_corners(2, 5))
    assert torch.equal(
        read.excess("encoded", residual, residual, place, None)["z3"],
        normals.excess("encoded", residual, residual, place, None)["z3"],
    )


def test_positions_lead_back_to_voxels(
    prepared_cohort: Callable[..., PreparedCohort], toy_brain_config: Callable[..., Config]
) -> None:
    """The position that a patch is known by leads to the voxels that it was cut from."""
    config = toy_brain_config(data={"root": str(prepared_cohort().folder), "patches_per_subject": 32})
    source = load_samples(config.data, config.image_size).images
    assert isinstance(source, PatchSource)
    found = corners(source.values()["position_mm"], torch.from_numpy(source.position_frame()), source.side)
    assert np.array_equal(found.numpy(), source.center.astype(np.int64) - source.side // 2)


def test_whole_scans_lie_upon_each_other() -> None:
    """Their place is 0, and a voxel's statistics are those of the same voxel of all scans."""
    frame = middle_frame(SIDE)
    assert corners(torch.zeros(2, 3), torch.from_numpy(frame), SIDE).tolist() == [[0, 0, 0]] * 2
    random = torch.Generator().manual_seed(11)
    mean = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=random)
    builder = NormalsBuilder((SIDE,) * 3, frame)
    builder.add("atlas", mean + 0.1 * torch.randn(400, 1, SIDE, SIDE, SIDE, generator=random), torch.zeros(400, 3), None)
    found = builder.build(0.01)
    assert (found.mean["atlas"] - mean[0, 0]).abs().max() < 0.05
    assert found.excess("atlas", mean, mean, torch.zeros(1, 3), None)["z"] < 0.2


def test_sides_are_told_apart(normals: Normals, fields: tuple[Tensor, Tensor]) -> None:
    """A cube four standard deviations above the usual, one below: each raises its own side alone, the plain excess both."""
    mean, std = fields
    corner = random_corners(64, 6)
    noise = torch.randn(64, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    usual = cut(mean, corner) + cut(std, corner) * noise
    spot = torch.zeros(1, 1, SIDE, SIDE, SIDE)
    spot[..., 2:5, 2:5, 2:5] = 4.0
    images = torch.zeros_like(usual)
    plain, above, below = (
        normals.excess("encoded", usual + sign * spot * cut(std, corner), images, positions(corner), None) for sign in (0, 1, -1)
    )
    for part in (8, 4):
        low, high = f"z{part}_low", f"z{part}_high"
        assert (above[high] > plain[high] + 1.5).all()
        assert (below[low] > plain[low] + 1.5).all()
        assert (above[low] <= plain[low]).all()
        assert (below[high] <= plain[high]).all()
        torch.testing.assert_close(torch.maximum(plain[low], plain[high]), plain[f"z{part}"])


def test_too_smooth_and_too_rough_for_a_place() -> None:
    """Noise is twice as strong in one half of the volume: what is usual here is too rough there; a constant is too smooth."""
    volume_std = torch.full(SHAPE, 0.1)
    volume_std[:, :, SHAPE[2] // 2 :] = 0.2
    builder, random = NormalsBuilder(SHAPE, FRAME), torch.Generator().manual_seed(8)

    def patches(corner: Tensor) -> Tensor:
        return cut(volume_std, corner) * torch.randn(len(corner), 1, SIDE, SIDE, SIDE, generator=random)

    for corner in random_corners(3000, 9).split(1000):
        value, counts = log_deviation(patches(corner), None)
        builder.add(TEXTURE, value, positions(corner), counts)
    normals = builder.build(0.5)
    here = random_corners(40, 10)
    here[:, 2] = 0  # the calm side
    calm = patches(here)
    usual, rough = (normals.texture(images, positions(here), None) for images in (calm, 2 * calm))
    flat = calm.clone()
    flat[..., 2:7, 2:7, 2:7] = 0.05
    smooth = normals.texture(flat, positions(here), None)
    assert (rough["high2"] > usual["high2"] + 1).all()
    assert (smooth["low1"] > usual["low1"] + 3).all()
    assert (smooth["low2"] > usual["low2"] + 3).all()
    there = here + torch.tensor([0, 0, SHAPE[2] - SIDE])
    assert (normals.texture(2 * calm, positions(there), None)["high2"] < rough["high2"]).all()  # it is usual there
    inside = torch.ones_like(calm, dtype=torch.bool)
    inside[..., 1:8, 1:8, 1:8] = False
    masked = normals.texture(torch.where(inside, flat, 0.0), positions(here), inside)
    assert (masked["low1"] < smooth["low1"]).all()  # what lies outside of the mask is not looked at
    assert normals_without_texture(normals).texture(calm, positions(here), None) == {}


def normals_without_texture(normals: Normals) -> Normals:
    """As runs of before had them."""
    return Normals({}, {}, normals.frame)
