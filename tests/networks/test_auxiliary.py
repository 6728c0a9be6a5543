"""Auxiliary networks: outputs that can be compared in [0, 1], in two and three dimensions."""

from __future__ import annotations

import pytest
import torch

from normscape.config import AttributeConfig, AuxiliaryConfig
from normscape.networks.auxiliary import AuxiliaryNetwork, denormalize_value, freeze, normalize_value, output_distance

SHAPE = AuxiliaryConfig(width=4, stem_kernel=3, stem_stride=2, stem_pool=False, batch_size=8)
IDENTITY = AttributeConfig(
    name="identity",
    kind="embedding",
    latent_dim=4,
    output_dim=8,
    distance="euclidean",
    tau_same=0.1,
    tau_different=0.4,
    auxiliary=SHAPE,
)
ANGLE = AttributeConfig(
    name="angle",
    kind="value",
    latent_dim=4,
    output_dim=1,
    distance="l1",
    tau_same=0.1,
    tau_different=0.4,
    column="angle_degrees",
    value_max=90,
    auxiliary=SHAPE,
)


def randomize_statistics(network: torch.nn.Module) -> None:
    """Give every batch normalisation statistics that matter."""
    for module in network.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("attribute", [IDENTITY, ANGLE], ids=lambda a: a.name)
def test_folding_batch_normalisation_changes_nothing(dims: int, attribute: AttributeConfig) -> None:
    """The folded network gives the same outputs and feature maps."""
    torch.manual_seed(0)
    network = AuxiliaryNetwork(attribute, dims=dims, image_channels=2)
    randomize_statistics(network)
    freeze(network)
    images = torch.randn(3, 2, *(16,) * dims)
    before, maps = network(images), network.features(images)
    network.fold()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())
    torch.testing.assert_close(network(images), before, atol=1e-4, rtol=1e-4)
    for a, b in zip(network.features(images), maps, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_distances_lie_between_0_and_1() -> None:
    """Opposite unit vectors are at distance 1, equal ones at 0; values far apart are cut at 1."""
    e = torch.eye(8)[:1]
    assert output_distance(IDENTITY, e, -e).item() == pytest.approx(1.0)
    assert output_distance(IDENTITY, e, e).item() == pytest.approx(0.0, abs=1e-5)
    assert output_distance(ANGLE, torch.tensor([[0.25]]), torch.tensor([[0.75]])).item() == pytest.approx(0.5)
    assert output_distance(ANGLE, torch.tensor([[-3.0]]), torch.tensor([[2.0]])).item() == 1.0


def test_equal_outputs_have_a_finite_gradient() -> None:
    """The Euclidean distance of equal embeddings does not produce NaN gradients."""
    e = torch.nn.functional.normalize(torch.randn(2, 8), dim=1).requires_grad_()
    output_distance(IDENTITY, e, e.detach().clone()).sum().backward()
    assert e.grad is not None
    assert torch.isfinite(e.grad).all()


def test_embeddings_are_unit_vectors_and_values_are_free() -> None:
    """Embedding outputs lie on the sphere."""
    images = torch.randn(4, 3, 16, 16)
    embedding = AuxiliaryNetwork(IDENTITY, dims=2, image_channels=3).eval()(images)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    assert AuxiliaryNetwork(ANGLE, dims=2, image_channels=3).eval()(images).shape == (4, 1)


def test_values_return_from_the_normalised_scale() -> None:
    """Normalising maps the range to [0, 1] and back."""
    value = torch.tensor([[0.0], [45.0], [90.0]])
    torch.testing.assert_close(normalize_value(ANGLE, value), torch.tensor([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(denormalize_value(ANGLE, normalize_value(ANGLE, value)), value)
