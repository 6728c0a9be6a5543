"""The whitened style space is an exact change of coordinates."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from normscape.inversion.style_space import WhitenedSubspace, from_tensors, to_tensors


def correlated(count: int = 5000) -> torch.Tensor:
    """Correlated styles with a mean."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=random)
    return torch.randn(count, 4, generator=random) @ mix + torch.tensor([1.0, -2.0, 3.0, 0.0])


def test_whitened_styles_are_standard_and_come_back() -> None:
    """Coordinates have mean 0 and covariance 1; restoring them gives the styles."""
    styles = correlated()
    part = WhitenedSubspace.fit(styles)
    u = part.whiten(styles)
    torch.testing.assert_close(u.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(u.T.cov(), torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(part.restore(u), styles, atol=1e-4, rtol=1e-4)
    assert part.explained.sum().item() == pytest.approx(1.0)
    assert (part.deviation.diff() <= 0).all()


def test_a_direction_without_variance_stays_finite() -> None:
    """A constant component gets a tiny deviation, not a division by zero."""
    styles = correlated()
    styles[:, 2] = 1.0
    part = WhitenedSubspace.fit(styles)
    assert torch.isfinite(part.whiten(styles)).all()
    assert part.deviation.min() > 0


def test_radius_is_a_quantile_of_the_lengths() -> None:
    """The median length of standard normal vectors of 48 dimensions is about 6.9, not 3."""
    part = WhitenedSubspace(torch.zeros(48), torch.eye(48), torch.ones(48))
    lengths = torch.randn(20_000, 48, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    assert part.radius(0.5) == pytest.approx(lengths.median().item(), rel=0.01)
    assert part.radius(0.5) == pytest.approx(6.88, abs=0.02)


def test_a_file_holds_the_space(tmp_path) -> None:
    """Through safetensors and back."""
    space = {"identity": WhitenedSubspace.fit(correlated()), "other": WhitenedSubspace.fit(correlated()[:, :2])}
    save_file(to_tensors(space), tmp_path / "space.safetensors")
    back = from_tensors(load_file(tmp_path / "space.safetensors"))
    assert list(back) == ["identity", "other"]
    assert torch.equal(back["other"].components, space["other"].components)
