"""Diffusion: the way there and back, and which noise it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscape.baselines.diffusion import Diffusion
from normscape.baselines.networks import fold_blocks

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16}


class Oracle(nn.Module):
    """Knows the noise that was added, whatever it is shown."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.times: list[int] = []

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        self.times.append(int(times[0]))
        return fold_blocks(self.noise.expand(len(images), *self.noise.shape))


@pytest.mark.parametrize("kind", ["pictures", "patches"])
@pytest.mark.parametrize(("noised", "steps"), [(250, 5), (100, 2), (200, 1)])
def test_who_knows_the_noise_comes_back_to_the_image(
    kind: str, noised: int, steps: int, toy_training: Callable[..., Any]
) -> None:
    """DDIM with the true noise ends where it began; the network is asked at equal steps from where images were noised to."""
    toy = toy_training(kind, network_images=16)
    detector = Diffusion(noised=noised, denoising_steps=steps, **SMALL).fit(toy.training)
    detector.network_ = oracle = Oracle(detector.noises_[0])
    assert detector.decision_function(toy.unseen) == pytest.approx(np.zeros(len(toy.unseen)), abs=1e-3)
    stride = noised // steps
    assert oracle.times == [noised - 1 - stride * i for i in range(steps)]


def test_noise_is_learned(toy_training: Callable[..., Any]) -> None:
    """The mean squared error starts at the noise's own size, 1, and gets well below."""
    toy = toy_training("patches", network_images=640)
    detector = Diffusion(width=8, batch_size=16, learning_rate=1e-2).fit(toy.training)
    assert float(detector.loss_[0]) == pytest.approx(1.0, abs=0.2)
    assert float(detector.loss_[-20:].mean()) < 0.75


def test_repeats_take_the_mean_over_noises(toy_training: Callable[..., Any]) -> None:
    """More noises give another score, the same for an image in every batch."""
    toy = toy_training(network_images=160)
    one, three = (Diffusion(repeats=n, **SMALL).fit(toy.training) for n in (1, 3))
    assert torch.equal(one.loss_, three.loss_)
    assert len(three.noises_) == 3
    scores = three.decision_function(toy.unseen)
    assert not np.allclose(scores, one.decision_function(toy.unseen))
    np.testing.assert_allclose(three.decision_function(toy.unseen.rows(slice(2, 3))), scores[2:3], rtol=1e-4)


def test_kinds_of_noise(toy_training: Callable[..., Any]) -> None:
    """White noise is as strong and far rougher."""
    toy = toy_training(network_images=16)
    rough = {}
    for kind in ("pyramid", "gaussian"):
        noise = Diffusion(noise=kind, **SMALL).fit(toy.training)._noise(32, (3, 32, 32), torch.Generator().manual_seed(0))
        assert float(noise.square().mean()) == pytest.approx(1.0, abs=0.05)
        rough[kind] = float(noise.diff(dim=-1).square().mean())
    assert rough["gaussian"] > 2 * rough["pyramid"]


def test_settings() -> None:
    """Steps have to be equal and whole, widths multiples of the groups."""
    for settings in ({"noised": 250, "denoising_steps": 3}, {"noised": 2000}, {"noised": 70, "denoising_steps": 1}):
        with pytest.raises(ValueError, match="equal steps"):
            Diffusion(**settings)
    with pytest.raises(ValueError, match="multiple of 8"):
        Diffusion(width=12)
    with pytest.raises(ValueError, match="pyramid, gaussian"):
        Diffusion(noise="white")
