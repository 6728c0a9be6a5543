"""The variational autoencoder's bound, and its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from normscape.baselines.learning import Seen
from normscape.baselines.vae import VariationalAutoencoder, VariationalNetwork

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 1e-2, "latent": 4}


def test_the_bound_is_that_of_the_distributions() -> None:
    """Likelihood of the pixels under the mask and divergence, as torch.distributions has them, a pixel value."""
    torch.manual_seed(0)
    network = VariationalNetwork((2, 8, 8), latent=3, width=4, values=0)
    with torch.no_grad():
        network.deviation.fill_(-0.1)
    images, rebuilt = torch.randn(2, 2, 2, 8, 8)
    masks = torch.rand(2, 1, 8, 8) > 0.4
    seen = Seen(images, masks, torch.zeros(2, 0))
    mean, log_variance = torch.randn(2, 2, 3)
    found = network.negative_bound(seen, rebuilt, mean, log_variance, beta=2.0)
    deviation = float(network.log_deviation.exp())
    assert deviation == pytest.approx(np.exp(-1.0))
    for i in range(2):
        inside = masks[i].expand(2, -1, -1)
        likelihood = Normal(rebuilt[i][inside], deviation).log_prob(seen.images[i][inside]).sum()
        divergence = kl_divergence(
            Normal(mean[i], (log_variance[i] / 2).exp()), Normal(torch.zeros(3), torch.ones(3))
        ).sum()  # fmt: skip
        expected = (2 * divergence - likelihood) / inside.sum() - np.log(2 * np.pi) / 2
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-4)


def test_the_deviation_is_learned(toy_training: Callable[..., Any]) -> None:
    """Patches are rebuilt to a fraction of the intensity range, and the network knows to which."""
    toy = toy_training("patches", network_images=1280)
    detector = VariationalAutoencoder(score="mean", **SMALL).fit(toy.training)
    deviation = float(detector.network_.log_deviation.exp())
    assert deviation < 0.3
    error = detector.decision_function(toy.training.healthy.batch(torch.arange(48))).mean()
    assert 0.3 * error < deviation < 10 * error


def test_scores_are_the_bound_or_a_residual(toy_training: Callable[..., Any]) -> None:
    """The setting changes the score and not the training; the bound is that of the mean latents."""
    toy = toy_training(network_images=320)
    evidence, residual = (VariationalAutoencoder(score=s, **SMALL).fit(toy.training) for s in ("evidence", "worst"))
    assert torch.equal(evidence.loss_, residual.loss_)
    found = evidence.decision_function(toy.unseen)
    assert not np.allclose(found, residual.decision_function(toy.unseen))
    seen = evidence.inputs_(toy.unseen)
    with torch.no_grad():
        mean, log_variance = evidence.network_.posterior(seen)
        bound = evidence.network_.negative_bound(seen, evidence.rebuilt(seen), mean, log_variance, 1.0)
    np.testing.assert_allclose(found, bound.double().numpy(), rtol=1e-6)


def test_more_beta_less_information(toy_training: Callable[..., Any]) -> None:
    """With a dear divergence the latents say next to nothing of the image."""
    toy = toy_training(network_images=960)
    spread = {}
    for beta in (1.0, 1000.0):
        detector = VariationalAutoencoder(beta=beta, **SMALL).fit(toy.training)
        with torch.no_grad():
            mean, _ = detector.network_.posterior(detector.inputs_(toy.unseen))
        spread[beta] = float(mean.std(0).mean())
    assert spread[1000.0] < 0.2 * spread[1.0]


def test_a_conditional_one_looks_at_the_values(toy_training: Callable[..., Any]) -> None:
    """Wrong angles lower the likelihood of normal images when they are looked at."""
    toy = toy_training(network_images=960)
    wrong = replace(toy.unseen, conditions={"angle": 90 - toy.unseen.conditions["angle"]})
    detector = VariationalAutoencoder(conditions="known", **SMALL).fit(toy.training)
    assert detector.decision_function(wrong).mean() > detector.decision_function(toy.unseen).mean()
    blind = VariationalAutoencoder(conditions="shuffled", **SMALL).fit(toy.training)
    np.testing.assert_array_equal(blind.decision_function(wrong), blind.decision_function(toy.unseen))
