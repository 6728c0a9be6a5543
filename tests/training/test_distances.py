"""Distances of real images: who is compared with whom, and thresholds that follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.training.distances import RealDistances, measure_all, nearest_of_others, propose, real_distances

CPU = torch.device("cpu")


class Colour(torch.nn.Module):
    """A perfect recognition network for the toy subjects: their colour, as a unit vector; it sees nothing else."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, 3)`."""
        darkest = images.flatten(2).amin(2)
        return torch.nn.functional.normalize(darkest + 1.001, dim=1)


class Place(torch.nn.Module):
    """A perfect angle network for the toy images: where the square begins."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, 1)` in [0, 1]."""
        coloured = (images.amin(1) < 0.99).any(2).float()
        return coloured.argmax(1, keepdim=True) / (images.shape[-1] - 4)


class Light(torch.nn.Module):
    """A perfect network for images that augmentation makes dark or bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, 1)` in [0, 1]."""
        return (images.flatten(1).mean(1, keepdim=True) + 1) / 2


def test_a_value_that_augmentation_draws_is_the_same_where_it_was_drawn_alike(
    toy_config: Callable[..., Config], lit_samples: SampleSet
) -> None:
    """Images as they are all have one value, which would say nothing: pairs are drawn, alike or each by itself."""
    light = toy_config().attributes[1].model_copy(update={"column": "light"})
    found = real_distances(light, Light(), lit_samples, pairs=200, batch_size=16, seed=0, device=CPU)
    assert len(found.same) == 200
    assert found.same.max() < 1e-6
    assert found.different.mean() == pytest.approx(1 / 3, abs=0.08)


def test_an_identity_is_the_same_in_another_view(
    toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]
) -> None:
    """Same pairs of a perfect network are at 0, strangers never are, and the hardest is no farther than the others."""
    config, samples = toy_config(), toy_samples()
    found = real_distances(config.attributes[0], Colour(), samples, pairs=200, batch_size=16, seed=0, device=CPU)
    assert len(found.same) == 200
    assert found.same.max() < 1e-3
    assert found.different.min() > 1e-3
    assert found.hardest.median() < found.different.median()
    assert found.hardest.min() >= found.different.min() - 1e-6


def test_a_value_is_the_same_on_another_subject(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """All toy subjects have the same angles: the nearest is equal, whoever it is, and it is never the subject's own."""
    config, samples = toy_config(), toy_samples()
    angle = config.attributes[1]
    anchor = torch.arange(len(samples))
    partner = nearest_of_others(angle, samples, anchor, torch.Generator().manual_seed(0))
    assert torch.equal(samples.values["angle_degrees"][partner], samples.values["angle_degrees"])
    assert not (samples.subject[partner] == samples.subject).any()
    assert len(set(samples.subject[partner[samples.subject == 0]].tolist())) > 1  # ties are broken at random
    found = real_distances(angle, Place(), samples, pairs=200, batch_size=16, seed=0, device=CPU)
    assert found.same.max() < 1e-6
    assert found.different.mean() == pytest.approx(1 / 3, abs=0.08)  # two even draws from [0, 1]


def test_same_seed_same_distances(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    config, samples = toy_config(), toy_samples()
    networks = {"identity": Colour(), "angle": Place()}
    one, two, other = (
        measure_all(config.attributes, networks, samples, pairs=64, batch_size=16, seed=seed, device=CPU) for seed in (0, 0, 1)
    )
    for name in networks:
        assert all(torch.equal(a, b) for a, b in zip(one[name].parts.values(), two[name].parts.values(), strict=True))
    assert not torch.equal(one["identity"].different[:50], other["identity"].different[:50])


def test_proposed_thresholds_follow_their_rule(toy_config: Callable[..., Config]) -> None:
    identity, angle = toy_config().attributes
    different = torch.linspace(0.2, 1.0, 401)
    found = RealDistances(torch.tensor([0.0, 0.1, 0.2]), different, torch.tensor([0.3, 0.4, 0.5]))
    assert propose(identity, found).tau_same == pytest.approx(0.1)
    assert propose(identity, found).tau_different == pytest.approx(0.4)
    assert propose(angle, found).tau_different == pytest.approx(0.4)  # lower quartile of 0.2 to 1.0
    random = torch.Generator().manual_seed(0)
    even = (torch.rand(200_000, generator=random) - torch.rand(200_000, generator=random)).abs()
    assert propose(angle, RealDistances(found.same * 0, even, found.hardest)).tau_different == pytest.approx(0.134, abs=0.01)


def test_a_poor_network_still_gives_thresholds_in_order(toy_config: Callable[..., Config]) -> None:
    """Where same pairs are farther apart than different ones, tau_different rises to tau_same."""
    found = RealDistances(torch.full((9,), 0.6), torch.full((9,), 0.3), torch.full((9,), 0.1))
    for attribute in toy_config().attributes:
        taus = propose(attribute, found)
        assert taus.tau_same == taus.tau_different == pytest.approx(0.6)
