"""The pooled detector on toy runs: what it makes of its two members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines import Training, load_detector
from normscape.baselines.conditional_network import ConditionalNetwork
from normscape.config import PluginConfig
from normscape.datasets.batches import ImageBatch
from normscape.errors import ConfigError
from normscape.evaluation.conditional import ConditionalDetector, place_scores
from normscape.evaluation.pooled import PooledDetector
from tests.evaluation.test_conditional import brains, chairs, toy_settings_of  # noqa: F401  (fixtures)

FOREST: dict[str, Any] = {"optimise": False}
NETWORK: dict[str, Any] = {"width": 8, "batch_size": 16, "images": 160}


def _batch(training: Training, rows: Sequence[int]) -> ImageBatch:
    return training.healthy.batch(torch.tensor(rows))


@pytest.mark.parametrize("kind", ["chairs", "brains"])
def test_it_is_the_mean_of_the_log_odds(kind: str, request: pytest.FixtureRequest) -> None:
    """Of the two detectors as they are by themselves; an image's score does not depend on its batch."""
    training = replace(request.getfixturevalue(kind), network_images=64)
    pooled = PooledDetector(forest=FOREST, network=NETWORK).fit(training)
    forest = ConditionalDetector(**FOREST).fit(training)
    network = ConditionalNetwork(**NETWORK).fit(training)
    batch = _batch(training, range(8))
    probability = forest.decision_function(batch).clip(0.5 / 20, 1 - 0.5 / 20)  # of 20 trees
    expected = (np.log(probability / (1 - probability)) + network.decision_function(batch)) / 2
    found = pooled.decision_function(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.shape == (8,)
    np.testing.assert_allclose(pooled.decision_function(batch.rows(slice(3, 4))), found[3:4], rtol=1e-4, atol=1e-5)
    placed = place_scores(1 / (1 + np.exp(-expected)), forest.features.of(batch)[0])
    torch.testing.assert_close(pooled.anomaly_map(batch), placed, rtol=1e-4, atol=1e-6)
    assert placed.amax() > 0


def test_settings_reach_the_members() -> None:
    """By name; what a member does not take is an error that names it; the stages are those of both."""
    entry = PluginConfig(name="conditional_pooled", settings={"forest": {"linear": 3}, "network": {"images": 7}})
    detector = load_detector(entry)
    assert isinstance(detector, PooledDetector)
    assert detector.forest.features.parts.linear == 3
    assert detector.network.images == 7
    assert "latents" in detector.stages
    with pytest.raises(ConfigError, match="images is 0"):
        load_detector(PluginConfig(name="conditional_pooled", settings={"network": {"images": 0}}))
