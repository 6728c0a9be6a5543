"""GAN training: a resumed run equals an uninterrupted one, and each phase touches what it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.errors import CheckpointError
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.batches import draw_real
from normscape.training.gan import GanTrainer, train_gan
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
GOLDEN = Path(__file__).with_name("golden_losses.json")


def frozen_auxiliaries(config: Config) -> dict[str, AuxiliaryNetwork]:
    """Auxiliary networks with fixed random weights."""
    torch.manual_seed(7)
    return {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}


class Keep(SilentRecorder):
    """Keeps what was recorded, by step."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def metrics(self, values, step):
        self.values.setdefault(step, {}).update(values)


ENCODER = {"reconstruction_weight": 5.0, "warmup_steps": 2}


@pytest.mark.parametrize(("dims", "encoder"), [(2, {}), (3, {}), (2, ENCODER)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    dims: int,
    encoder: dict[str, float],
    toy_config: Callable[..., Config],
    toy_samples: Callable[..., SampleSet],
    tmp_path: Path,
) -> None:
    """Weights, optimiser states and metrics after 3 + 3 steps are those after 6 steps."""
    samples = toy_samples(dims=dims)
    whole, half = toy_config(dims=dims, gan=encoder), toy_config(dims=dims, gan={"steps": 3} | encoder)
    auxiliaries = frozen_auxiliaries(whole)
    kept, resumed = Keep(), Keep()
    straight = train_gan(whole, samples, auxiliaries, folder=tmp_path / "a", digest="d", device=CPU, recorder=kept)
    train_gan(half, samples, auxiliaries, folder=tmp_path / "b", digest="d", device=CPU, recorder=resumed)
    again = train_gan(whole, samples, auxiliaries, folder=tmp_path / "b", digest="d", device=CPU, recorder=resumed)
    for name in ("generator", "discriminator", "averaged", *(["encoder", "averaged_encoder"] if encoder else [])):
        a, b = getattr(straight, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    for a, b in ((straight.optimizer_g, again.optimizer_g), (straight.optimizer_d, again.optimizer_d)):
        x, y = a.state_dict()["state"], b.state_dict()["state"]
        assert x.keys() == y.keys()
        assert all(torch.equal(x[i][slot], y[i][slot]) for i in x for slot in x[i])
    assert torch.equal(straight.mean_path_length, again.mean_path_length)
    assert straight.mean_path_length > 0
    assert kept.values == resumed.values
    assert set(kept.values) == set(range(1, 7))


def test_a_checkpoint_of_another_configuration_is_refused(
    toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet], tmp_path: Path
) -> None:
    """The error names the folder and both digests."""
    config = toy_config(gan={"steps": 1})
    auxiliaries = frozen_auxiliaries(config)
    train_gan(config, toy_samples(), auxiliaries, folder=tmp_path, digest="one", device=CPU, recorder=SilentRecorder())
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        train_gan(config, toy_samples(), auxiliaries, folder=tmp_path, digest="two", device=CPU, recorder=SilentRecorder())


def test_phases_touch_only_their_network(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """D and R1 leave G alone, G and the path length leave D alone, and none touches the auxiliary networks."""
    config = toy_config()
    auxiliaries = frozen_auxiliaries(config)
    trainer = GanTrainer(config, auxiliaries, CPU)
    real, _ = draw_real(toy_samples(), config, 0)

    def weights(module: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in module.parameters()])

    def changed(action: Callable[[], object]) -> tuple[bool, bool]:
        before = weights(trainer.generator), weights(trainer.discriminator)
        action()
        return not torch.equal(before[0], weights(trainer.generator)), not torch.equal(before[1], weights(trainer.discriminator))

    kept = {name: weights(network) for name, network in auxiliaries.items()}
    assert changed(lambda: trainer.discriminator_phase(real, 0)) == (False, True)
    assert changed(lambda: trainer.r1_phase(real, 0)) == (False, True)
    assert changed(lambda: trainer.generator_phase(0)) == (True, False)
    assert changed(lambda: trainer.path_length_phase(0)) == (True, False)
    assert all(torch.equal(kept[name], weights(network)) for name, network in auxiliaries.items())


def test_the_warm_up_only_reconstructs(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """Before `warmup_steps` the discriminator stays as it is and the residual falls; afterwards every phase runs."""
    config = toy_config(gan={"reconstruction_weight": 5.0, "warmup_steps": 40})
    trainer = GanTrainer(config, frozen_auxiliaries(config), CPU)
    before = trainer.discriminator.logit.weight.detach().clone()
    residuals = []
    for step in range(40):
        real, values = draw_real(toy_samples(), config, step)
        measured = trainer.step(real, step, values)
        assert measured.keys() == {"reconstruction_l1"}
        residuals.append(measured["reconstruction_l1"].item())
    assert torch.equal(before, trainer.discriminator.logit.weight)
    assert sum(residuals[-5:]) < 0.6 * sum(residuals[:5])
    real, values = draw_real(toy_samples(), config, 40)
    assert {"loss_d", "loss_g", "contrastive", "reconstruction_l1"} <= trainer.step(real, 40, values).keys()


def test_the_averaged_generator_follows_with_its_half_life(
    toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]
) -> None:
    """With a half-life of one batch the average lies half-way between before and after."""
    config = toy_config(gan={"ema_half_life_images": 8})
    trainer = GanTrainer(config, frozen_auxiliaries(config), CPU)
    before = trainer.generator.constant.detach().clone()
    trainer.step(draw_real(toy_samples(), config, 0)[0], 0)
    torch.testing.assert_close(trainer.averaged.constant, (before + trainer.generator.constant.detach()) / 2)
    assert not any(p.requires_grad for p in trainer.averaged.parameters())  # no graph grows from step to step


def test_golden_losses(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """The first fifty losses of a fixed seed, every phase included: an optimisation must not change the curve."""
    golden = {name: torch.tensor(values) for name, values in json.loads(GOLDEN.read_text(encoding="utf-8")).items()}
    config = toy_config(gan={"reconstruction_weight": 5.0})
    trainer, samples = GanTrainer(config, frozen_auxiliaries(config), CPU), toy_samples()
    measured = []
    for step in range(50):
        real, values = draw_real(samples, config, step)
        measured.append(trainer.step(real, step, values))
    for name, expected in golden.items():
        torch.testing.assert_close(torch.stack([one[name] for one in measured]), expected, rtol=1e-4, atol=1e-5)
