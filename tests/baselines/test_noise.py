"""Smooth noise: as strong as promised, coarser than its grid's cells, reproducible."""

from __future__ import annotations

import pytest
import torch

from normscape.baselines.noise import coarse_noise, pyramid_noise

SHAPES = [(3, 32, 32), (1, 16, 16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_coarse_noise_is_smooth(shape: tuple[int, ...]) -> None:
    """Neighbours are alike, places a cell apart are not; its variance is a good part of 1."""
    noise = coarse_noise(64, shape, cells=4, random=torch.Generator().manual_seed(0))
    assert noise.shape == (64, *shape)
    cell = shape[-1] // 4
    inner = noise[..., : -2 * cell]
    near = (noise[..., 1 : 1 - 2 * cell] - inner).square().mean()
    far = (noise[..., 2 * cell :] - inner).square().mean()
    assert float(near) < 0.5 * float(far)
    assert 0.15 < float(noise.var()) < 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_pyramid_noise_has_size_one(shape: tuple[int, ...]) -> None:
    """Each image's mean square is 1; with less persistence it is smoother."""
    rough, smooth = (
        pyramid_noise(16, shape, persistence=p, random=torch.Generator().manual_seed(0)) for p in (1.0, 0.2)
    )  # fmt: skip
    torch.testing.assert_close(rough.square().flatten(1).mean(1), torch.ones(16))
    assert float(smooth.diff(dim=-1).square().mean()) < 0.5 * float(rough.diff(dim=-1).square().mean())


def test_noise_follows_from_the_generator() -> None:
    """The same seed, the same noise; images differ."""
    for make in (
        lambda seed: coarse_noise(2, (1, 8, 8), cells=4, random=torch.Generator().manual_seed(seed)),
        lambda seed: pyramid_noise(2, (1, 8, 8), persistence=0.8, random=torch.Generator().manual_seed(seed)),
    ):
        assert torch.equal(make(0), make(0))
        assert not torch.equal(make(0), make(1))
        assert not torch.equal(make(0)[0], make(0)[1])
