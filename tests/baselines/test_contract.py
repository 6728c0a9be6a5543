"""What holds for every detector, in pictures and in brains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from normscape.baselines import DETECTORS, ImageDetector, load_detector
from normscape.config import PluginConfig
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.errors import ConfigError, DataError

KINDS = ("pictures", "brains")
SIMPLE = ("atlas", "deviation", "intensity", "neighbours", "padim", "patchcore", "pca")
"""Detectors without gradient training: those that have learnt something after a fit as short as here."""
SMALL: dict[str, dict[str, Any]] = {"patchcore": {"candidates": 2000, "bank": 400}, "pca": {"components": 8}}
"""Settings that fit so few images; the defaults of all others do."""


def fitted(name: str, world: Any, **settings: Any) -> ImageDetector:
    """The detector after `fit`."""
    return load_detector(PluginConfig(name=name, settings=SMALL.get(name, {}) | settings)).fit(world.training)


def test_every_detector_is_held_to_the_contract() -> None:
    """Here, in `test_neural_contract` or, those that need a finished run, in tests/evaluation."""
    neural = ("autoencoder", "denoising", "diffusion", "fae", "fanogan", "ganomaly", "supervised", "vae")
    ours = ("conditional", "conditional_network", "conditional_pooled", "conditional_unsupervised")
    assert set(DETECTORS) == {*SIMPLE, *neural, *ours}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIMPLE)
def test_contract(name: str, kind: str, world: Callable[..., Any], rows_of: Callable[[HealthyImages, int], Tensor]) -> None:
    """Finite scores of the right shape, the same alone as among others; maps of the images' shape, 0 outside the masks; a second
    fit with the same seed gives the same scores."""
    here = world(kind)
    batch = here.others.batch(rows_of(here.others, 12))
    detector = fitted(name, here)
    assert detector.supervision in ("none", "synthetic")
    scores = detector.decision_function(batch)
    assert scores.shape == (12,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 1
    alone = [detector.decision_function(batch.rows(slice(i, i + 1)))[0] for i in (0, 7)]
    np.testing.assert_allclose(alone, scores[[0, 7]], rtol=1e-4, atol=1e-6)
    found = detector.anomaly_map(batch)
    if found is not None:
        assert found.shape == (12, 1, *batch.images.shape[2:])
        assert found.dtype == torch.float32
        assert found.device.type == "cpu"
        assert torch.isfinite(found).all()
        own = detector.anomaly_map(batch.rows(slice(7, 8)))
        torch.testing.assert_close(own, found[7:8], rtol=1e-3, atol=1e-5)
        if batch.masks is not None:
            assert bool((~batch.masks).any())
            assert bool((found[~batch.masks] == 0).all())
            assert bool((found[batch.masks] != 0).any())
    again = fitted(name, here)
    np.testing.assert_allclose(again.decision_function(batch), scores, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIMPLE)
def test_an_obvious_anomaly_scores_higher(
    name: str,
    kind: str,
    world: Callable[..., Any],
    rows_of: Callable[[HealthyImages, int], Tensor],
    with_blocks: Callable[..., ImageBatch],
) -> None:
    """A flat bright block in images of subjects that were never seen."""
    here = world(kind)
    batch = here.others.batch(rows_of(here.others, 24))
    odd = with_blocks(batch)
    detector = fitted(name, here)
    scores = np.concatenate([detector.decision_function(part) for part in (batch, odd)])
    # these brains have dark cores, almost as far from the mean as the block
    assert roc_auc_score(np.repeat([0, 1], 24), scores) > (0.75 if (name, kind) == ("intensity", "brains") else 0.9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in SIMPLE if name != "neighbours"])
def test_the_map_is_higher_in_the_block(
    name: str,
    kind: str,
    world: Callable[..., Any],
    rows_of: Callable[[HealthyImages, int], Tensor],
    with_blocks: Callable[..., ImageBatch],
) -> None:
    """By voxels of single images, off the middle; features of the finest map, as random deep ones see the whole image."""
    here = world(kind)
    batch = here.others.batch(rows_of(here.others, 24))
    odd = with_blocks(batch, first=1)
    detector = fitted(name, here, **({"layers": [0]} if name in ("padim", "patchcore") else {}))
    found = detector.anomaly_map(odd)
    assert found is not None
    block = (odd.images != batch.images).any(1, keepdim=True)
    counts = torch.ones_like(block) if batch.masks is None else batch.masks
    areas = [roc_auc_score(b[c], m[c]) for b, c, m in zip(block, counts, found, strict=True) if b.any() and (c & ~b).any()]
    assert len(areas) > 12
    assert np.mean(areas) > 0.65


@pytest.mark.parametrize("name", SIMPLE)
def test_what_lies_outside_the_mask_says_nothing(
    name: str, world: Callable[..., Any], rows_of: Callable[[HealthyImages, int], Tensor]
) -> None:
    """Other noise in the background leaves scores and maps as they are; an image without brain has a finite score."""
    here = world("brains")
    batch = here.others.batch(rows_of(here.others, 8))
    assert batch.masks is not None
    noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    other = batch.with_images(torch.where(batch.masks, batch.images, noise))
    detector = fitted(name, here)
    np.testing.assert_allclose(detector.decision_function(other), detector.decision_function(batch), rtol=1e-5)
    empty = ImageBatch(batch.images, torch.zeros_like(batch.masks), batch.conditions)
    assert np.isfinite(detector.decision_function(empty)).all()
    found = detector.anomaly_map(empty)
    assert found is None or bool((found == 0).all())


@pytest.mark.parametrize("name", SIMPLE)
def test_progress_ends_at_its_end(name: str, world: Callable[..., Any]) -> None:
    """The last word of `fit` is that everything is done."""
    said: list[tuple[int, int]] = []
    fitted(name, world("pictures").changed(progress=lambda done, of: said.append((done, of))))
    assert said[-1][0] == said[-1][1] > 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("atlas", {"score": "worst"}, "largest, mean, top"),
        ("atlas", {"position": "shuffled"}, "known, none"),
        ("atlas", {"pseudo_images": 0}, "above 0"),
        ("deviation", {"width": -1}, "width must be above 0"),
        ("neighbours", {"neighbours": 0}, "at least 1"),
        ("padim", {"features": "vgg"}, "auxiliary, efficientnet_lite0"),
        ("padim", {"layers": [5]}, "0 to 4"),
        ("patchcore", {"match": {"angle": 0}}, "above 0"),
        ("patchcore", {"average": 2}, "odd"),
        ("pca", {"components": 0}, "at least 1"),
        ("pca", {"colour": "red"}, "does not take these settings"),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_detector(PluginConfig(name=name, settings=settings))


@pytest.mark.parametrize("name", ["neighbours", "padim", "patchcore"])
def test_frozen_features_need_an_experiment(name: str, world: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="run the experiment first"):
        fitted(name, world("pictures").changed(folders={}))


@pytest.mark.parametrize(("name", "settings"), [("atlas", {"conditions": "colour"}), ("neighbours", {"match": {"colour": 1.0}})])
def test_conditions_that_nobody_knows(name: str, settings: dict[str, Any], world: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"colour is no value attribute; allowed are .*angle"):
        fitted(name, world("pictures"), **settings)


def test_imagenet_features_see_pictures_only(world: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="found dims 3, image_channels 1"):
        fitted("padim", world("brains"), features="efficientnet_lite0")
    with pytest.raises(DataError, match="at least 16 pixels"):
        fitted("padim", world("pictures"), features="efficientnet_lite0")


@pytest.mark.parametrize("name", ["neighbours", "padim", "patchcore"])
def test_imagenet_features(
    name: str,
    world: Callable[..., Any],
    rows_of: Callable[[HealthyImages, int], Tensor],
    with_blocks: Callable[..., ImageBatch],
) -> None:
    """EfficientNet-Lite0 needs no experiment, and tells the blocks."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the `perceptual` extra")
    here = world("pictures", side=32).changed(folders={})
    batch = here.others.batch(rows_of(here.others, 16))
    detector = fitted(name, here, features="efficientnet_lite0")
    scores = np.concatenate([detector.decision_function(part) for part in (batch, with_blocks(batch))])
    assert roc_auc_score(np.repeat([0, 1], 16), scores) > 0.9


def test_positions_need_a_cohort(world: Callable[..., Any], toy_brain_samples: Callable[..., Any]) -> None:
    """Patches that know their position, but are cut from no atlas."""
    here = world("brains")
    loose = HealthyImages(toy_brain_samples(), here.training.config.value_attributes)
    for name in ("atlas", "padim", "patchcore", "pca"):
        with pytest.raises(DataError, match="patches of a prepared cohort"):
            fitted(name, here.changed(healthy=loose))
