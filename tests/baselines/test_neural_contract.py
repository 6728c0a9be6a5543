"""What every baseline trained by gradients promises, in 2D without masks and in 3D with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from normscape.baselines import ImageDetector, learning, load_detector
from normscape.config import PluginConfig
from normscape.errors import ConfigError, DataError

NEURAL = ("autoencoder", "denoising", "diffusion", "fae", "fanogan", "ganomaly", "supervised", "vae")
KINDS = ("pictures", "patches")
SMALL: dict[str, Any] = {"width": 8, "batch_size": 16}


def make(name: str, **settings: Any) -> ImageDetector:
    """A detector with few weights."""
    return load_detector(PluginConfig(name=name, settings=SMALL | settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEURAL)
def test_scores_and_maps(name: str, kind: str, toy_training: Callable[..., Any]) -> None:
    """One finite score an image, alone or among others; the map is 0 where nothing counts; the same seed gives the same."""
    toy = toy_training(kind, network_images=96)
    detector = make(name)
    assert detector.fit(toy.training) is detector
    scores = detector.decision_function(toy.unseen)
    assert scores.shape == (len(toy.unseen),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert scores.std() > 0
    alone = detector.decision_function(toy.unseen.rows(slice(3, 4)))
    np.testing.assert_allclose(alone, scores[3:4], rtol=1e-5, atol=1e-5)
    found = detector.anomaly_map(toy.unseen)
    assert found is not None
    assert found.dtype == torch.float32
    assert found.shape == (len(toy.unseen), 1, *toy.unseen.images.shape[2:])
    assert bool(found.isfinite().all())
    assert float(found.min()) > -1e-5
    assert float(found.std()) > 0
    if toy.unseen.masks is not None:
        assert not bool(found[~toy.unseen.masks].any())
    torch.manual_seed(1)  # what others do with the global generator changes nothing
    np.testing.assert_allclose(make(name).fit(toy.training).decision_function(toy.unseen), scores, rtol=1e-5, atol=1e-6)
    other = make(name).fit(replace(toy.training, seed=7)).decision_function(toy.unseen)
    assert not np.allclose(other, scores, rtol=1e-3)


@pytest.mark.parametrize("name", NEURAL)
def test_only_what_lies_under_the_mask_counts(name: str, toy_training: Callable[..., Any]) -> None:
    """Other background noise, the same score; an empty mask gives a finite score and a map of zeros."""
    toy = toy_training("patches", network_images=32)
    detector = make(name).fit(toy.training)
    noise = torch.rand(toy.unseen.images.shape, generator=torch.Generator().manual_seed(3))
    changed = toy.unseen.with_images(torch.where(toy.unseen.masks, toy.unseen.images, noise))
    np.testing.assert_array_equal(detector.decision_function(changed), detector.decision_function(toy.unseen))
    empty = replace(toy.unseen.rows(slice(0, 2)), masks=torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool))
    assert np.isfinite(detector.decision_function(empty)).all()
    found = detector.anomaly_map(empty)
    assert found is not None
    assert not bool(found.any())


@pytest.mark.parametrize("name", NEURAL)
def test_the_budget_is_kept(name: str, toy_training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing kept in memory, as many images are drawn as the steps hold: no more than allowed, and progress says so."""
    monkeypatch.setattr(learning, "KEPT_BYTES", 0)
    toy = toy_training(network_images=100)
    make(name).fit(toy.training)
    assert toy.training.healthy.drawn == 96  # six whole batches of 16
    assert toy.progress == [(done, 96) for done in range(16, 97, 16)]


@pytest.mark.parametrize("name", [n for n in NEURAL if n != "supervised"])
def test_only_the_supervised_one_sees_anomalies(name: str, toy_training: Callable[..., Any]) -> None:
    """The others say that they learn from none, and ask for none."""
    toy = toy_training(network_images=32)
    detector = make(name)
    assert detector.supervision == "none"
    detector.fit(toy.training)
    assert not toy.anomalous_rows


@pytest.mark.parametrize("name", NEURAL)
def test_settings_are_checked(name: str) -> None:
    """A wrong value or name is the user's mistake, and says so."""
    for settings in ({"batch_size": 0}, {"learning_rate": -1.0}, {"depth": 3}, {"width": "wide"}):
        with pytest.raises(ConfigError, match=name):
            make(name, **settings)


@pytest.mark.parametrize("name", NEURAL)
def test_no_images_is_an_error(name: str, toy_training: Callable[..., Any]) -> None:
    """A split without images cannot be learnt from."""
    toy = toy_training()
    nothing = type(toy.training.healthy)(
        toy.training.healthy.samples.select(torch.arange(0)), toy.training.config.value_attributes
    )
    with pytest.raises(DataError, match="no training images"):
        make(name).fit(replace(toy.training, healthy=nothing))


LEARNING: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("pictures", {"latent": 8}),
    "denoising": ("patches", {}),
    "diffusion": ("pictures", {"width": 16}),
    "fae": ("patches", {"width": 16}),
    "fanogan": ("patches", {"latent": 8, "gan_share": 0.4, "gan_learning_rate": 2e-3}),
    "ganomaly": ("patches", {"latent": 8, "score": "worst"}),
    "supervised": ("pictures", {}),
    "vae": ("patches", {"latent": 8}),
}
"""Images and settings of a short training; both kinds of images have been seen above."""


@pytest.mark.parametrize("name", NEURAL)
def test_it_learns(name: str, toy_training: Callable[..., Any]) -> None:
    """The loss falls, obvious anomalies in unseen subjects rank above their normal images, and the map shows where they are."""
    kind, settings = LEARNING[name]
    toy = toy_training(kind, network_images=1280)
    detector: Any = make(name, learning_rate=1e-2, **settings).fit(toy.training)
    quarter = len(detector.loss_) // 4
    assert float(detector.loss_[-quarter:].mean()) < 0.9 * float(detector.loss_[:quarter].mean())
    scores = np.concatenate([detector.decision_function(batch) for batch in (toy.unseen, toy.abnormal)])
    assert roc_auc_score(np.repeat([0, 1], len(toy.unseen)), scores) > 0.85
    where = detector.anomaly_map(toy.abnormal).flatten(1)
    corner = torch.zeros(toy.unseen.images[:, :1].shape)
    corner[(..., *(slice(4, 8),) * (corner.ndim - 2))] = 1
    inside = corner.flatten(1).bool()
    assert float((where * inside).sum() / inside.sum()) > float((where * ~inside).sum() / (~inside).sum())
