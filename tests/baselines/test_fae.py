"""The feature autoencoder: where its features come from, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from normscape.baselines.fae import FEATURE_RANGE, WINDOW, FeatureAutoencoder, identity_network, local_similarity
from normscape.errors import CheckpointError, DataError

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16}


def test_it_needs_a_trained_identity_network(toy_training: Callable[..., Any], tmp_path: Path) -> None:
    """Without an experiment the message says what to do; a missing file is named."""
    toy = toy_training()
    with pytest.raises(DataError, match="run `normscape run`"):
        FeatureAutoencoder(**SMALL).fit(replace(toy.training, folders={}))
    with pytest.raises(CheckpointError, match=r"identity\.safetensors"):
        FeatureAutoencoder(**SMALL).fit(replace(toy.training, folders={"auxiliary": tmp_path / "elsewhere"}))


@pytest.mark.parametrize("kind", ["pictures", "patches"])
def test_features_are_those_of_the_experiment(kind: str, toy_training: Callable[..., Any]) -> None:
    """Frozen: what the extractor says is the same before and after; standardised over the training images."""
    toy = toy_training(kind, network_images=320)
    extractor = identity_network(toy.training)
    detector = FeatureAutoencoder(**SMALL).fit(toy.training)
    images = detector.inputs_(toy.training.healthy.batch(torch.arange(48))).images
    with torch.no_grad():
        expected = [extractor.features(images)[i] for i in detector.layers]
        found = detector.network_._chosen(images)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    assert detector.network_.sides == tuple(expected[0].shape[2:])
    stem = expected[0].transpose(0, 1).flatten(1)
    running = detector.network_.standardise
    torch.testing.assert_close(running.running_mean[: len(stem)], stem.mean(1), atol=0.3 * float(stem.std()), rtol=0.2)


def test_scores_lie_between_the_mean_and_the_worst_place(toy_training: Callable[..., Any]) -> None:
    """The worst place is at least as bad as the mean one, and at most 2."""
    toy = toy_training(network_images=320)
    worst, mean = (
        FeatureAutoencoder(score=s, **SMALL).fit(toy.training).decision_function(toy.unseen) for s in ("worst", "mean")
    )
    assert (worst > mean).all()
    assert (worst <= 2).all()
    assert (mean > 0).all()


def test_layers_have_to_be_there_and_large_enough(toy_training: Callable[..., Any]) -> None:
    """Layers come finest first; a map of 2 cannot be halved twice."""
    for layers in ((), (1, 0), (0, 5), (1, 1)):
        with pytest.raises(ValueError, match="ascending"):
            FeatureAutoencoder(layers=layers)
    assert FeatureAutoencoder(layers=[0, 2]).layers == (0, 2)
    toy = toy_training()
    with pytest.raises(DataError, match="side of 2"):
        FeatureAutoencoder(layers=(3,), **SMALL).fit(toy.training)


@pytest.mark.parametrize("dims", [2, 3])
def test_similarity_is_that_of_monai(dims: int) -> None:
    """Where windows lie within the map, the same numbers as MONAI's with uniform windows; equal maps have 1 everywhere."""
    torch.manual_seed(0)
    a = torch.randn(2, 3, *(8,) * dims)
    b = a + 0.5 * torch.randn_like(a)
    found = local_similarity(a, b)
    assert found.shape == a.shape
    torch.testing.assert_close(local_similarity(a, a), torch.ones_like(a), atol=1e-4, rtol=0)
    expected, _ = compute_ssim_and_cs(
        a, b, dims, (WINDOW,) * dims, (1.5,) * dims, data_range=FEATURE_RANGE, kernel_type="uniform"
    )
    inner = found[(..., *(slice(WINDOW // 2, -(WINDOW // 2)),) * dims)]
    torch.testing.assert_close(inner, expected, atol=1e-4, rtol=1e-3)
