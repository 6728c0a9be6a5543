"""GANomaly: what its score compares, and that its parts learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines.ganomaly import Ganomaly

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "latent": 8, "learning_rate": 3e-3}


def test_the_published_score(toy_training: Callable[..., Any]) -> None:
    """The mean difference between latents of an image and of its rebuilt form; a residual when asked for."""
    toy = toy_training("patches", network_images=160)
    detector = Ganomaly(**SMALL).fit(toy.training)
    seen = detector.inputs_(toy.unseen)
    with torch.no_grad():
        latents, rebuilt = detector._passed(seen)
        again = detector.network_["second"](rebuilt)
    assert not bool((seen.images - rebuilt)[~toy.unseen.masks].any())
    expected = (latents - again).abs().mean(1).double().numpy()
    np.testing.assert_allclose(detector.decision_function(toy.unseen), expected, rtol=1e-5)
    residual = Ganomaly(score="mean", **SMALL).fit(toy.training).decision_function(toy.unseen)
    difference = seen.difference(rebuilt).abs()[toy.unseen.masks]
    assert residual.mean() == pytest.approx(float(difference.mean()), rel=1e-3)


@pytest.mark.parametrize("kind", ["pictures", "patches"])
def test_images_and_latents_are_found_again(kind: str, toy_training: Callable[..., Any]) -> None:
    """After a training the rebuilt image is near the image, and its latents nearer to the image's than another image's are."""
    toy = toy_training(kind, network_images=1280)
    before, after = (
        Ganomaly(**SMALL).fit(toy_training(kind, network_images=n).training) for n in (32, 1280)
    )  # fmt: skip
    for detector in (before, after):
        detector.score = "mean"
    assert after.decision_function(toy.unseen).mean() < 0.75 * before.decision_function(toy.unseen).mean()
    seen = after.inputs_(toy.unseen)
    with torch.no_grad():
        latents, rebuilt = after._passed(seen)
        again = after.network_["second"](rebuilt)
    assert float((latents - again).abs().mean()) < 0.8 * float((latents - again.roll(1, 0)).abs().mean())
