"""The conditional network on toy runs with random networks: what it sees beside an image, and what conditions change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines import Training, load_detector
from normscape.baselines.conditional_network import ConditionalNetwork
from normscape.baselines.supervised import Supervised
from normscape.config import PluginConfig
from normscape.datasets.batches import ImageBatch
from normscape.errors import ConfigError
from tests.evaluation.test_conditional import brains, chairs, toy_settings_of  # noqa: F401  (fixtures)

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 1e-2}


def _batch(training: Training, rows: Sequence[int]) -> ImageBatch:
    return training.healthy.batch(torch.tensor(rows))


def _fitted(training: Training, images: int = 64, **settings: Any) -> ConditionalNetwork:
    return ConditionalNetwork(**SMALL | settings).fit(replace(training, network_images=images))


def test_it_is_found_by_name_and_says_what_it_reads() -> None:
    """No finished stage but the images is needed."""
    detector = load_detector(PluginConfig(name="conditional_network"))
    assert isinstance(detector, ConditionalNetwork)
    assert detector.supervision == "synthetic"
    assert not hasattr(detector, "stages")


def test_what_it_sees(chairs: Training) -> None:  # noqa: F811
    """The image as it is, and its z-scores, which can be left out."""
    batch = _batch(chairs, range(4))
    whole, plain = _fitted(chairs), _fitted(chairs, atlas=False)
    seen = whole._see(batch).images
    assert seen.shape[1] == 6
    torch.testing.assert_close(seen[:, :3], batch.images)
    torch.testing.assert_close(seen[:, 3:], (whole.model_.z(batch) / 4).clamp(-2, 2).float())
    torch.testing.assert_close(plain._see(batch).images, batch.images)


def test_without_more_to_see_it_learns_what_the_supervised_one_learns(chairs: Training) -> None:  # noqa: F811
    """But for the seed, which has the detector's name in it, they are one."""
    bare = _fitted(chairs, 640, atlas=False)
    known = Supervised(conditions="known", **SMALL).fit(replace(chairs, network_images=640))
    shapes = [[tuple(p.shape) for p in detector.network_.parameters()] for detector in (bare, known)]
    assert shapes[0] == shapes[1]
    assert float(bare.loss_[-5:].mean()) < float(bare.loss_[:5].mean())


def test_scores_do_not_depend_on_the_batch_and_a_second_fit_is_the_same(chairs: Training) -> None:  # noqa: F811
    batch = _batch(chairs, range(6))
    first, second = _fitted(chairs), _fitted(chairs)
    scores = first.decision_function(batch)
    assert scores.shape == (6,)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(first.decision_function(batch.rows(slice(3, 4)))[0], scores[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.decision_function(batch), scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("conditions", "matters"), [("both", True), ("angle", True), ("none", False), ("shuffled", False)])
def test_only_known_conditions_matter(chairs: Training, conditions: str, matters: bool) -> None:  # noqa: F811
    """A detector that does not know the angle says the same of an image whatever its angle is said to be."""
    detector = _fitted(chairs, conditions=conditions)
    batch = _batch(chairs, range(6))
    other = replace(batch, conditions={"angle": 90 - batch.conditions["angle"]})
    same = np.allclose(detector.decision_function(batch), detector.decision_function(other), rtol=1e-6, atol=1e-7)
    assert same is not matters


def test_an_unknown_condition_is_an_error(chairs: Training) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="conditions: colour is unknown"):
        _fitted(chairs, conditions="colour")


@pytest.mark.slow
@pytest.mark.parametrize("conditions", ["both", "none", "position", "age", "shuffled"])
def test_patches_under_masks(brains: Training, conditions: str) -> None:  # noqa: F811
    """Nothing outside of a mask counts, and maps are 0 there."""
    detector = _fitted(brains, 32, conditions=conditions)
    batch = _batch(brains, range(4))
    assert batch.masks is not None
    noisy = batch.with_images(torch.where(batch.masks, batch.images, torch.rand_like(batch.images)))
    seen, again = detector._see(batch).images, detector._see(noisy).images
    torch.testing.assert_close(seen[:, :2], again[:, :2])
    maps = detector.anomaly_map(batch)
    assert bool((maps[~batch.masks] == 0).all())
    assert np.isfinite(detector.decision_function(batch)).all()
