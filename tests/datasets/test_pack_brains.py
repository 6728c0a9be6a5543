"""The script that packs the brains: its steps, on images made here (the packages it reads are not needed)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from normscape.datasets.simulated_anatomy import OUTSIDE, assets
from normscape.datasets.simulated_fields import box_points, flow, refined, sample

SCRIPT = Path(__file__).parents[2] / "infra" / "assets" / "pack_brains.py"


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    pytest.importorskip("SimpleITK")
    spec = importlib.util.spec_from_file_location("pack_brains", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_brains"] = module
    spec.loader.exec_module(module)
    return module


def test_levels_put_csf_at_0_grey_at_half_and_white_at_1(pack: ModuleType) -> None:
    """Whatever the scanner's units; outside the mask is the lowest level."""
    random = np.random.default_rng(0)
    tissue = np.zeros((24, 24, 24), int)
    tissue[:, 5:, :], tissue[:, 14:, :] = 1, 2
    mask = np.zeros(tissue.shape, bool)
    mask[:, :, :20] = True
    for scale in (1.0, 30.0):
        intensity = scale * (np.array([20.0, 60.0, 90.0])[tissue] + random.normal(0, 3, tissue.shape))
        level = pack.levels(intensity.astype(np.float32), mask)
        inner = mask.copy()
        inner[:, :, 18:] = False
        means = [level[inner & (tissue == one)].mean() for one in range(3)]
        np.testing.assert_allclose(means[1:], [0.5, 1.0], atol=0.06)
        assert means[0] < 0.2
        assert np.all(level[~mask] == np.float32(OUTSIDE))


def test_registration_brings_a_moved_ball_back(pack: ModuleType) -> None:
    """A ball 6 mm off is brought onto the other: the difference falls to a tenth."""
    shape, spacing = (31, 31, 31), pack.SPACING_MM
    extent = torch.tensor([(n - 1) * spacing for n in shape])
    points = box_points(shape, extent)

    def ball(middle: float) -> torch.Tensor:
        away = (points - torch.tensor([22.5, 22.5, middle])).norm(dim=-1)
        return torch.stack([torch.sigmoid((10 - away) / 1.5)] * 2)

    fixed, moving = ball(20.0), ball(26.0)
    displacement = refined(flow(pack.register(fixed, moving, extent), extent), shape)
    after = sample(moving, points + displacement.movedim(0, -1), extent)
    assert (after - fixed).square().mean() < 0.1 * (moving - fixed).square().mean()


def test_the_packed_ventricles_are_csf_inside_the_brain_and_nearly_symmetric(pack: ModuleType) -> None:
    """10 to 40 ml, in the middle of the brain, left and right within a third of each other."""
    data = assets()
    ventricles = data.ventricles > 0
    assert 10 < float(ventricles.sum()) * data.spacing_mm**3 / 1000 / 1.8 < 40  # the loaded ones are one voxel wider
    assert bool(data.masks[0][ventricles].all())
    left, right = (float(half.sum()) for half in ventricles.float().split(50, dim=-1))
    assert 0.66 < left / right < 1.5
    found = pack.ventricles(np.where(data.masks[0].numpy(), data.levels[0].numpy(), OUTSIDE))
    assert (found & ~ventricles.numpy()).sum() < 0.2 * found.sum()
