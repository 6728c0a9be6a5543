"""Intensity and local deviation say what they claim to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines.deviation import DeviationDetector
from normscape.baselines.intensity import IntensityDetector
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.samples import StoredImages
from normscape.losses.masked import QUIET


@pytest.mark.parametrize("kind", ["pictures", "brains"])
def test_intensity_is_measured_in_deviations_of_all_training_images(kind: str, world: Callable[..., Any]) -> None:
    """Mean and deviation under the masks; a constant image scores its distance from the mean."""
    here = world(kind).changed(images=10**6)
    detector = IntensityDetector(width=4.0).fit(here.training)
    batch = here.training.healthy.batch(torch.arange(len(here.training.healthy)))
    mask = torch.ones_like(batch.images[:, :1], dtype=torch.bool) if batch.masks is None else batch.masks
    for channel in range(batch.images.shape[1]):
        values = batch.images[:, channel][mask[:, 0]]
        assert detector.mean_[channel] == pytest.approx(float(values.mean()), abs=1e-5)
        assert detector.deviation_[channel] == pytest.approx(float(values.std()), rel=1e-3)
    level = torch.full_like(batch.images[:2], 0.9)
    expected = ((0.9 - detector.mean_) / detector.deviation_).square().mean().sqrt()
    scores = detector.decision_function(batch.rows(slice(0, 2)).with_images(level))
    np.testing.assert_allclose(scores, float(expected), rtol=1e-4)


def test_flatness_of_patches(world: Callable[..., Any]) -> None:
    """1 where a neighbourhood is constant; 1 / (1 + s / 0.15) where it holds two values, one twice as often."""
    here = world("brains")
    detector = DeviationDetector(width=6.0).fit(here.training)
    assert detector.background_ is None
    assert detector.side_ == 3
    stripes = torch.zeros(2, 1, 8, 8, 8)
    stripes[..., ::2] = 0.3
    masks = torch.ones_like(stripes, dtype=torch.bool)
    stripes[1, ..., 3:6, 3:6, 3:6] = 0.1
    batch = ImageBatch(stripes, masks, {})
    scores = detector.decision_function(batch)
    assert scores[0] == pytest.approx(1 / (1 + 0.3 * 2**0.5 / 3 / QUIET), rel=1e-3)
    assert scores[1] == pytest.approx(1.0, abs=1e-3)
    found = detector.anomaly_map(batch)
    block = torch.zeros(8, 8, 8, dtype=torch.bool)
    block[3:6, 3:6, 3:6] = True
    torch.testing.assert_close(found[1, 0][block], torch.ones(27), atol=1e-3, rtol=0)
    assert bool((found[1, 0][~block] < 0.7).all())


def test_the_background_of_pictures_is_no_anomaly(world: Callable[..., Any]) -> None:
    """White around a textured square says nothing; a flat spot in the square, or in the white, does."""
    here = world("pictures")
    random = torch.Generator().manual_seed(0)
    images = torch.full((128, 3, 8, 8), 255, dtype=torch.uint8)
    images[:, :, 1:7, 1:7] = torch.randint(0, 200, (128, 3, 6, 6), generator=random, dtype=torch.uint8)
    samples = replace(here.training.healthy.samples, images=StoredImages(images.repeat(2, 1, 1, 1)))
    healthy = HealthyImages(samples, here.training.config.value_attributes)
    detector = DeviationDetector().fit(replace(here.training, healthy=healthy))
    assert detector.background_.tolist() == [1.0, 1.0, 1.0]
    batch = healthy.batch(torch.arange(3))
    spots = batch.images.clone()
    spots[1, :, 3:6, 3:6] = -0.2
    spots[2, :, :2, :2] = 0.5
    scores = detector.decision_function(batch.with_images(spots))
    assert scores[0] < 0.6
    assert scores[1] == pytest.approx(1.0, abs=1e-3)
    assert scores[2] == pytest.approx(1.0, abs=1e-3)
    found = detector.anomaly_map(batch)
    assert bool((found[..., 0, 0] == 0).all())
    assert bool((found[..., 3, 3] > 0).all())
