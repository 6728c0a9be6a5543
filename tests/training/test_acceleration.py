"""bf16 and compiled networks change no more than rounding, and leave the regularisers as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.batches import draw_real
from normscape.training.gan import GanTrainer

CPU = torch.device("cpu")
ENCODER = {"reconstruction_weight": 5.0}
torch_compile = torch.compile


def trainer(config: Config, **changes: Any) -> GanTrainer:
    """A trainer with fixed random weights; `changes` are settings of the GAN."""
    config = config.model_copy(update={"gan": config.gan.model_copy(update=changes)})
    torch.manual_seed(7)
    return GanTrainer(config, {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}, CPU)


def losses(trained: GanTrainer, samples: SampleSet, steps: int) -> dict[str, torch.Tensor]:
    """What the first steps have measured, a value a step."""
    measured = []
    for step in range(steps):
        real, values = draw_real(samples, trained.config, step)
        measured.append(trained.step(real, step, values))
    common = set.intersection(*(set(one) for one in measured))
    return {name: torch.stack([one[name] for one in measured]) for name in sorted(common)}


@pytest.mark.parametrize("dims", [2, 3])
def test_bf16_follows_float32(dims: int, toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """Losses differ by what eight bits of mantissa leave, and differ at all; weights, averages and optimisers stay in float32."""
    config = toy_config(dims=dims, gan=ENCODER)
    exact, lowered = trainer(config), trainer(config, precision="bf16")
    expected, found = (losses(one, toy_samples(dims=dims), 3) for one in (exact, lowered))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.03, atol=0.03)
    assert any(not torch.equal(found[name], value) for name, value in expected.items())
    for network in (lowered.generator, lowered.discriminator, lowered.encoder, lowered.averaged):
        assert network is not None
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in found.values())


def test_regularisers_are_computed_in_float32(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """R1 and the path length are, bit for bit, those of float32."""
    config = toy_config()
    exact, lowered = trainer(config), trainer(config, precision="bf16")
    real, _ = draw_real(toy_samples(), config, 0)
    assert torch.equal(exact.r1_phase(real, 0)["r1"], lowered.r1_phase(real, 0)["r1"])
    assert torch.equal(exact.path_length_phase(0)["path_length"], lowered.path_length_phase(0)["path_length"])


@pytest.mark.compiler
def test_compiled_networks_train_as_eager_ones(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet]) -> None:
    """The losses of the first steps agree, regularisers included, and so do the weights."""
    config = toy_config(gan=ENCODER)
    assert_same_training(trainer(config), trainer(config, compile="default"), toy_samples())


@pytest.mark.slow
def test_networks_are_captured_whole(
    toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward pass become one graph each, which trains as eager networks do; nothing is compiled to machine code."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: torch_compile(function, backend="aot_eager", fullgraph=True))
    config = toy_config(gan=ENCODER, generator={"noise": False})  # random numbers are drawn outside of a graph
    assert_same_training(trainer(config), trainer(config, compile="default"), toy_samples())


def assert_same_training(eager: GanTrainer, compiled: GanTrainer, samples: SampleSet) -> None:
    """Three steps of both give the same losses and move the weights to the same place."""
    start = copy.deepcopy(eager.generator.state_dict())
    expected, found = (losses(one, samples, 3) for one in (eager, compiled))
    assert {"loss_d", "loss_g", "contrastive", "reconstruction_l1"} <= expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    moved = compiled.generator.state_dict()
    assert any(not torch.equal(start[name], value) for name, value in moved.items())
    for name, value in eager.generator.state_dict().items():
        torch.testing.assert_close(moved[name], value, rtol=1e-2, atol=1e-3)
