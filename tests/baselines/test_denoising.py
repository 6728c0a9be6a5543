"""The denoising autoencoder removes what it learned to remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from normscape.baselines.denoising import DenoisingAutoencoder
from normscape.baselines.noise import coarse_noise

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 5e-3}


@pytest.mark.parametrize("kind", ["pictures", "patches"])
def test_it_removes_coarse_noise(kind: str, toy_training: Callable[..., Any]) -> None:
    """Unseen images with new noise come closer to what they were before, and hardly change without noise."""
    toy = toy_training(kind, network_images=3200)
    detector = DenoisingAutoencoder(**SMALL).fit(toy.training)
    seen = detector.inputs_(toy.unseen)
    shape = toy.training.healthy.shape
    noise = coarse_noise(len(toy.unseen), shape, cells=4, random=torch.Generator().manual_seed(9))
    noised = detector.inputs_(toy.unseen.with_images(toy.unseen.images + 0.4 * noise))
    with torch.no_grad():
        left = seen.difference(detector.rebuilt(noised)).abs().mean()
        untouched = seen.difference(detector.rebuilt(seen)).abs().mean()
    added = seen.difference(noised.images).abs().mean()
    assert float(left) < 0.6 * float(added)
    assert float(untouched) < float(left)


def test_without_noise_it_would_copy(toy_training: Callable[..., Any]) -> None:
    """Hardly any noise in training: anomalies are rebuilt better than by one that learned to remove noise."""
    toy = toy_training(network_images=3200)
    kept = {}
    for noise in (0.01, 0.8):
        detector = DenoisingAutoencoder(noise=noise, score="mean", **SMALL).fit(toy.training)
        kept[noise] = detector.decision_function(toy.abnormal).mean()
    assert kept[0.01] < 0.7 * kept[0.8]
