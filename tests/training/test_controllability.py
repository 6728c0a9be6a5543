"""The objective of the thresholds sweep: known answers on generators whose control is known, and on real distances."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet, StoredImages
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.generator import Generator
from normscape.training.controllability import Control, Scale, as_metrics, measure_control, reference_frechet, score

CPU = torch.device("cpu")


class ReadsLatent(torch.nn.Module):
    """An "image" is the latent itself, and this network reads one sub-space of it, mixed with a share of another."""

    def __init__(self, own: slice, other: slice, share: float) -> None:
        super().__init__()
        self.own, self.other, self.share = own, other, share

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """A value in [0, 1] from the first component of each sub-space."""
        return torch.sigmoid((1 - self.share) * images[:, self.own][:, :1] + self.share * images[:, self.other][:, :1])


class Latents(Generator):
    """Gives back its latents."""

    def forward(self, z: torch.Tensor, *_: object) -> torch.Tensor:
        """No image at all."""
        return z


@pytest.fixture
def config(toy_config: Callable[..., Config]) -> Config:
    """Two values, so that both distances are L1."""
    made = toy_config()
    angle = made.attributes[1]
    return made.model_copy(update={"attributes": (angle.model_copy(update={"name": "first"}), angle)})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_control_and_leak_know_what_moves_an_attribute(config: Config, share: float) -> None:
    """An attribute read from its own sub-space has no leak; one read from the other has no control; half and half has both."""
    generator = Latents.from_config(config)
    first, second = (generator.subspace_slice(name) for name in ("first", "angle"))
    networks = {"first": ReadsLatent(first, second, share), "angle": ReadsLatent(second, first, share)}
    scales = {name: Scale(0.0, 0.5) for name in networks}
    found = measure_control(generator, networks, config.attributes, scales, images=600, seed=0)
    for control in found.values():
        assert (control.control > 0.2) == (share < 1.0)
        assert (control.leak > 0.2) == (share > 0.0)
        assert 0.0 in (control.control, control.leak) or share == 0.5
    again = measure_control(generator, networks, config.attributes, scales, images=600, seed=0, batch_size=600)
    assert again != found  # other batches draw other latents, ...
    assert again["first"].control == pytest.approx(found["first"].control, abs=0.1)  # ... and measure the same


def test_scale_puts_real_pairs_at_zero_and_one() -> None:
    scale = Scale(same=0.1, different=0.6)
    assert [scale.normalized(x) for x in (0.0, 0.1, 0.35, 0.6, 0.9)] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert Scale(0.3, 0.3).normalized(0.9) == 0.0  # a network that tells nothing apart proves no control


def test_score_is_the_formula() -> None:
    controls = {"identity": Control(0.9, 0.2), "angle": Control(0.5, 0.1)}
    assert score(controls, 4.0, 2.0, 0.1) == pytest.approx((0.7 + 0.4) / 2 - 0.1 * math.log(2.0))
    assert score(controls, 2.0, 2.0, 0.1) == pytest.approx(0.55)
    assert math.isfinite(score(controls, 0.0, 0.0, 0.1))
    assert math.isnan(score(controls, math.nan, 2.0, 0.1))  # a training that diverged must not look like a good one
    assert as_metrics(controls)["leak/angle"] == 0.1


def test_reference_is_the_distance_of_strangers(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """Positive for subjects that differ, next to nothing where all subjects look alike, and the same every time."""
    made = toy_config(gan={"quality_samples": 2000})
    network = AuxiliaryNetwork.from_config(made.attributes[0], made).fold()
    samples = toy_samples()
    different = reference_frechet(made, samples, network, device=CPU)
    assert isinstance(samples.images, StoredImages)
    one = samples.images.tensor[samples.subject == 0]
    alike = SampleSet(
        StoredImages(one.repeat(len(samples.subjects), 1, 1, 1)),
        samples.subject,
        samples.subjects,
        samples.values,
        samples.sample_id,
    )
    assert different == reference_frechet(made, samples, network, device=CPU)
    assert reference_frechet(made, alike, network, device=CPU) < 0.5 * different
