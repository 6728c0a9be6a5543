"""The supervised ceiling: whose anomalies it sees, and how places become a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normscape.baselines.supervised import Supervised, pooled
from normscape.datasets.anomalies import AnomalyBatch
from normscape.datasets.batches import ImageBatch

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 1e-2}


def test_half_of_each_batch_gets_anomalies_of_training_rows(toy_training: Callable[..., Any]) -> None:
    """Nothing but rows of the training images, eight a batch."""
    toy = toy_training(network_images=320)
    detector = Supervised(**SMALL)
    assert detector.supervision == "synthetic"
    detector.fit(toy.training)
    assert [len(rows) for rows in toy.anomalous_rows] == [8] * 20
    rows = torch.cat(toy.anomalous_rows)
    assert int(rows.min()) >= 0
    assert int(rows.max()) < len(toy.training.healthy)


def test_a_ceiling_may_look_at_more_images_than_all_others(toy_training: Callable[..., Any]) -> None:
    """Its own number in place of the budget; 0 is refused."""
    toy = toy_training(network_images=32)
    detector = Supervised(images=160, **SMALL).fit(toy.training)
    assert len(detector.loss_) == len(toy.anomalous_rows) == 10
    with pytest.raises(ValueError, match="images is 0"):
        Supervised(images=0)


def test_the_network_sees_what_was_drawn(toy_training: Callable[..., Any]) -> None:
    """With anomalies that cannot be seen it learns nothing; with visible ones it learns all."""
    toy = toy_training("patches", network_images=960)

    def invisible(batch: ImageBatch, rows: Tensor) -> AnomalyBatch:
        cover = torch.zeros(batch.images.shape)
        cover[..., 4:, 4:, 4:] = 1
        return AnomalyBatch(batch.images, cover, torch.ones(len(rows)), torch.zeros(len(rows)))

    blind = Supervised(map_weight=0.0, **SMALL).fit(replace(toy.training, anomalous=invisible))
    telling = Supervised(map_weight=0.0, **SMALL).fit(toy.training)
    assert float(blind.loss_[-10:].mean()) > 0.6
    assert float(telling.loss_[-10:].mean()) < 0.2


def test_an_image_without_a_place_for_an_anomaly_is_normal(toy_training: Callable[..., Any]) -> None:
    """A family that never finds a place: all labels are 0, and the network says no to everything."""
    toy = toy_training(network_images=960)

    def nowhere(batch: ImageBatch, rows: Tensor) -> AnomalyBatch:
        return AnomalyBatch(batch.images, torch.zeros(len(rows), 1, 8, 8), torch.zeros(len(rows)), torch.zeros(len(rows)))

    detector = Supervised(**SMALL).fit(replace(toy.training, anomalous=nowhere))
    assert (detector.decision_function(toy.unseen) < -2).all()


def test_places_are_pooled_to_the_log_of_the_mean_ratio() -> None:
    """Equal evidence stays as it is, whatever the mask; one place among n counts 1 / n; places outside do not count."""
    flat = torch.full((2, 1, 4, 4), 1.5)
    masks = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    masks[1, :, 2:] = False
    torch.testing.assert_close(pooled(flat, None), torch.tensor([1.5, 1.5]))
    torch.testing.assert_close(pooled(flat, masks), torch.tensor([1.5, 1.5]))
    peak = torch.full((2, 1, 4, 4), -50.0)
    peak[:, :, 0, 0] = 3.0
    torch.testing.assert_close(pooled(peak, masks), 3 - torch.tensor([16.0, 8.0]).log())
    peak[:, :, 3, 3] = 40.0
    assert float(pooled(peak, masks)[1]) == pytest.approx(3 - np.log(8), rel=1e-5)
    assert bool(pooled(flat, torch.zeros_like(masks)).isfinite().all())


def test_the_map_shows_the_place(toy_training: Callable[..., Any]) -> None:
    """Probabilities near 1 in the painted corner, near 0 elsewhere and in normal images."""
    toy = toy_training("patches", network_images=960)
    detector = Supervised(**SMALL).fit(toy.training)
    found = detector.anomaly_map(toy.abnormal)
    assert float(found[..., 4:, 4:, 4:].mean()) > 0.8
    assert float(found[..., :4, :, 4:].mean()) < 0.2
    assert float(detector.anomaly_map(toy.unseen).mean()) < 0.2


def test_a_conditional_one_looks_at_the_values(toy_training: Callable[..., Any]) -> None:
    """An anomaly that only its condition gives away, a wrong angle, is found by it alone."""
    toy = toy_training()
    images = toy.training.healthy.batch(torch.arange(len(toy.training.healthy))).images
    turned = {i: len(images) // 4 * (i // (len(images) // 4)) + (i + 8) % 16 for i in range(len(images))}

    def elsewhere(batch: ImageBatch, rows: Tensor) -> AnomalyBatch:
        others = images[torch.tensor([turned[int(r)] for r in rows])]
        cover = torch.ones(len(rows), 1, 8, 8)
        return AnomalyBatch(others, cover, torch.ones(len(rows)), torch.ones(len(rows)))

    wrong = replace(toy.unseen, conditions={"angle": (toy.unseen.conditions["angle"] + 48) % 96})
    gain = {}
    for conditions, seen in (("none", 64), ("known", 1920), ("shuffled", 64)):
        training = replace(toy.training, anomalous=elsewhere, network_images=seen)
        detector = Supervised(conditions=conditions, **SMALL).fit(training)
        gain[conditions] = float((detector.decision_function(wrong) - detector.decision_function(toy.unseen)).mean())
    assert gain["none"] == gain["shuffled"] == 0
    assert gain["known"] > 1
