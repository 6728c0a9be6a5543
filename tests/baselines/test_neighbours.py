"""Distances to the nearest normal images, by hand; and only among those under like conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from normscape.baselines.neighbours import NeighboursDetector
from normscape.baselines.places import drawn_rows


def pooled(detector: NeighboursDetector, batch: Any) -> np.ndarray:
    """Means over the brain of all channels, standardised."""
    found = []
    for features in detector.network_.maps(batch):
        sides = features.shape[2:]
        weight = np.ones((len(batch), 1, *sides))
        if batch.masks is not None:
            step = batch.masks.shape[-1] // sides[0]
            weight = torch.nn.functional.avg_pool3d(batch.masks.double(), step).numpy()
        axes = tuple(range(2, features.ndim))
        found.append((features.double().numpy() * weight).sum(axes) / weight.sum(axes))
    return (np.concatenate(found, axis=1) - detector.mean_.numpy()) / detector.deviation_.numpy()


def test_pictures_against_numpy(world: Callable[..., Any]) -> None:
    here = world("pictures")
    detector = NeighboursDetector(neighbours=3).fit(here.training)
    bank = pooled(detector, here.training.healthy.batch(drawn_rows(here.training, "neighbours")))
    assert bank.shape == (96, 8 + 16)
    np.testing.assert_allclose(bank.mean(0), 0, atol=1e-3)
    batch = here.others.batch(torch.arange(8))
    apart = np.linalg.norm(pooled(detector, batch)[:, None] - bank[None], axis=2)
    np.testing.assert_allclose(detector.decision_function(batch), np.sort(apart, axis=1)[:, :3].mean(1), rtol=1e-3)
    assert detector.anomaly_map(batch) is None


def test_like_places_and_ages_only(world: Callable[..., Any]) -> None:
    """Brains: neighbours within 15 mm and 20 years."""
    here = world("brains")
    match = {"position": 15.0, "age": 20.0}
    detector = NeighboursDetector(neighbours=1, match=match).fit(here.training)
    known = here.training.healthy.batch(drawn_rows(here.training, "neighbours"))
    batch = here.others.batch(torch.arange(0, 64, 4))
    apart = np.linalg.norm(pooled(detector, batch)[:, None] - pooled(detector, known)[None], axis=2)
    alike = np.ones_like(apart, dtype=bool)
    for name, radius in match.items():
        a, b = (part.conditions[name].double().numpy() for part in (batch, known))
        alike &= np.linalg.norm(a[:, None] - b[None], axis=2) <= radius
    some = alike.any(1)
    assert some.sum() > 5
    assert (~alike).mean() > 0.3
    expected = np.where(alike, apart, np.inf).min(1)
    np.testing.assert_allclose(detector.decision_function(batch)[some], expected[some], rtol=1e-3)


def test_angles_can_be_matched_and_shuffled(world: Callable[..., Any]) -> None:
    """A narrower choice is never nearer; wrong angles are worse than right ones."""
    here = world("pictures")
    batch = here.others.batch(torch.arange(0, 64, 2))
    free, right, wrong = (
        NeighboursDetector(match=match, shuffled=shuffled).fit(here.training).decision_function(batch)
        for match, shuffled in (({}, False), ({"angle": 10.0}, False), ({"angle": 10.0}, True))
    )
    assert (right >= free - 1e-6).all()
    assert wrong.mean() > 1.03 * right.mean()
