"""The straightforward form computes what the fast form computes: values, losses and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from normscape.benchmark.reference import (
    FullResolutionConv,
    GroupedConv,
    ReferenceTrainer,
    looped_contrastive_loss,
    straightforward,
)
from normscape.config import Config
from normscape.losses.contrastive import contrastive_loss
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.discriminator import Discriminator
from normscape.networks.generator import Generator, NoiseSource
from normscape.networks.layers import EqualizedConv, ModulatedConv
from normscape.training.gan import GanTrainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("dims", [2, 3])
def test_generator_equals_the_fast_one(dims: int, toy_config: Callable[..., Config]) -> None:
    """Same weights, styles and noise: same images, edges included, and the same gradients."""
    torch.manual_seed(1)
    fast = Generator.from_config(toy_config(dims=dims))
    slow = straightforward(copy.deepcopy(fast))
    assert sum(isinstance(module, GroupedConv) for module in slow.modules()) == 5
    z = torch.randn(4, fast.latent_dim)
    probe = torch.randn(4, 3, *(8,) * dims)
    results = []
    for network in (fast, slow):
        images = network(z, NoiseSource(torch.Generator().manual_seed(3)))
        gradients = torch.autograd.grad((images * probe).sum(), list(network.parameters()))
        results.append([images.detach(), *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_discriminator_equals_the_fast_one(dims: int, toy_config: Callable[..., Config]) -> None:
    """Same logits, and the same gradient of the images, which R1 needs."""
    torch.manual_seed(1)
    fast = Discriminator.from_config(toy_config(dims=dims))
    slow = straightforward(copy.deepcopy(fast))
    assert any(isinstance(module, FullResolutionConv) for module in slow.modules())
    images = torch.randn(8, 3, *(8,) * dims, requires_grad=True)
    results = []
    for network in (fast, slow):
        logits = network(images)
        results.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), images)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_straightforward_leaves_no_fast_layer_and_shares_the_weights(toy_config: Callable[..., Config]) -> None:
    """In place: the optimiser's parameters stay those of the network."""
    network = Generator.from_config(toy_config())
    before = [id(p) for p in network.parameters()]
    assert straightforward(network) is network
    assert [id(p) for p in network.parameters()] == before
    assert not any(type(module) in (ModulatedConv, EqualizedConv) for module in network.modules())


def test_looped_contrastive_loss_equals_the_fast_one(toy_config: Callable[..., Config]) -> None:
    """Loss, watched distances and gradients."""
    attributes = toy_config().attributes
    random = torch.Generator().manual_seed(0)
    outputs = {a.name: torch.randn(16, a.output_dim, generator=random).mul(0.3).requires_grad_() for a in attributes}
    results = []
    for loss in (contrastive_loss, looped_contrastive_loss):
        value, terms = loss(outputs, attributes)
        watched = [x for term in terms.values() for x in (term.loss.detach(), term.distance_same, term.distance_different)]
        results.append([value.detach(), *watched, *torch.autograd.grad(value, list(outputs.values()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_training_step_has_the_same_losses(toy_config: Callable[..., Config]) -> None:
    """Step 0 runs every phase: both forms start alike and measure the same losses, penalties and distances."""
    config = toy_config()
    torch.manual_seed(7)
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    real = torch.rand(8, 3, 8, 8) * 2 - 1
    trainers = [GanTrainer(config, auxiliaries, CPU), ReferenceTrainer(config, auxiliaries, CPU)]
    fast, slow = (trainer.step(real, 0) for trainer in trainers)
    assert fast.keys() == slow.keys()
    assert {"r1", "path_length", "contrastive"} <= fast.keys()
    # D's first update has Adam's sign-like steps, which magnify rounding where a gradient is close to zero
    torch.testing.assert_close(fast, slow, rtol=2e-3, atol=1e-4)
