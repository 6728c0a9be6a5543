"""The autoencoder, and what known values do for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from normscape.baselines.autoencoder import Autoencoder

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 1e-2}


def turned(batch: Any) -> Any:
    """The same images with other known angles."""
    return replace(batch, conditions={"angle": 90 - batch.conditions["angle"]})


def test_known_values_tell_what_a_narrow_latent_cannot(toy_training: Callable[..., Any]) -> None:
    """With one latent for colour and place, knowing the place helps; being told a wrong one does not."""
    toy = toy_training(network_images=1920)
    last = {}
    for conditions in ("known", "shuffled"):
        detector = Autoencoder(latent=1, conditions=conditions, **SMALL).fit(toy.training)
        last[conditions] = float(detector.loss_[-20:].mean())
    assert last["known"] < 0.85 * last["shuffled"]


def test_only_known_values_change_the_score(toy_training: Callable[..., Any]) -> None:
    """A wrong angle makes a normal image abnormal where the angle is looked at, and nowhere else."""
    toy = toy_training(network_images=960)
    for conditions in ("none", "shuffled"):
        detector = Autoencoder(latent=2, conditions=conditions, **SMALL).fit(toy.training)
        np.testing.assert_array_equal(detector.decision_function(turned(toy.unseen)), detector.decision_function(toy.unseen))
    detector = Autoencoder(latent=2, conditions="known", score="mean", **SMALL).fit(toy.training)
    wrong, right = detector.decision_function(turned(toy.unseen)), detector.decision_function(toy.unseen)
    assert wrong.mean() > 1.2 * right.mean()


def test_a_trained_one_rebuilds_normal_images(toy_training: Callable[..., Any]) -> None:
    """Patches of unseen subjects come back closer than their mean; only what the mask shows is compared."""
    toy = toy_training("patches", network_images=1280)
    detector = Autoencoder(latent=8, score="mean", **SMALL).fit(toy.training)
    spread = toy.unseen.images[toy.unseen.masks].sub(toy.unseen.images[toy.unseen.masks].mean()).abs().mean()
    assert detector.decision_function(toy.unseen).mean() < 0.8 * float(spread)


def test_settings() -> None:
    """Losses and conditions are those that there are."""
    with pytest.raises(ValueError, match="l1, l2"):
        Autoencoder(loss="l3")
    with pytest.raises(ValueError, match="none, known, shuffled"):
        Autoencoder(conditions="age")
