"""Auxiliary networks: outputs that can be compared in [0, 1], in two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import AttributeConfig, AuxiliaryConfig, Config
from normscape.errors import DataError
from normscape.networks.auxiliary import (
    AuxiliaryNetwork,
    freeze,
    load_medicalnet,
    output_distance,
)
from normscape.networks.values import denormalize_value, normalize_value

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


def medicalnet_weights(network: AuxiliaryNetwork) -> dict[str, object]:
    """Random weights under the names of MedicalNet's files: no last layer, no counted batches."""
    state = network.net.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("fc.") and not key.endswith("batches_tracked")}
    return {"state_dict": {f"module.{key}": torch.randn_like(value) for key, value in kept.items()}}


def test_pretrained_weights_are_read_under_medicalnets_names(tmp_path: Path) -> None:
    """Everything but the last layer is taken; the shortcuts have no weights; gradients reach the image through them."""
    shape = SHAPE.model_copy(update={"pretrained": tmp_path / "resnet_18_23dataset.pth", "stem_kernel": 7})
    attribute = ANGLE.model_copy(update={"auxiliary": shape})
    network = AuxiliaryNetwork(attribute, dims=3, image_channels=1)
    assert not any("downsample" in key for key in network.state_dict())
    last, weights = network.net.fc.weight.clone(), medicalnet_weights(network)
    torch.save(weights, tmp_path / "resnet_18_23dataset.pth")
    load_medicalnet(network, tmp_path / "resnet_18_23dataset.pth")
    assert torch.equal(network.net.layer3[0].conv2.weight, weights["state_dict"]["module.layer3.0.conv2.weight"])
    assert torch.equal(network.net.fc.weight, last)
    x = torch.randn(1, 4, 5, 5, 5, requires_grad=True)
    shortcut = network.net.layer2[0].downsample(x)
    assert shortcut.shape == (1, 8, 3, 3, 3)
    assert torch.equal(shortcut[:, :4], x[..., ::2, ::2, ::2])
    shortcut.sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 4 * 27
    randomize_statistics(network)
    freeze(network)
    images = torch.randn(2, 1, 16, 16, 16)
    before = network(images)
    torch.testing.assert_close(network.fold()(images), before, atol=1e-3, rtol=1e-3)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """One line each for a missing file, other names, another first convolution, and a file that holds code."""
    network = AuxiliaryNetwork(ANGLE, dims=3, image_channels=1)
    path = tmp_path / "weights.pth"
    with pytest.raises(DataError, match=r"weights\.pth does not exist"):
        load_medicalnet(network, path)
    torch.save({"something": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="missing, as conv1"):
        load_medicalnet(network, path)
    wide = ANGLE.model_copy(update={"auxiliary": SHAPE.model_copy(update={"stem_kernel": 7})})
    torch.save(medicalnet_weights(AuxiliaryNetwork(wide, dims=3, image_channels=1)), path)
    with pytest.raises(DataError, match=r"its conv1\.weight has shape \(4, 1, 7, 7, 7\), expected \(4, 1, 3, 3, 3\)"):
        load_medicalnet(network, path)
    torch.save({"state_dict": Path("code")}, path)
    with pytest.raises(DataError, match="without running code"):
        load_medicalnet(network, path)


def test_the_configuration_says_what_pretrained_weights_need(toy_brain_config: Callable[..., Config]) -> None:
    """Width and first convolution are checked before anything runs."""
    data = toy_brain_config().model_dump()
    data["attributes"][1]["auxiliary"] |= {"pretrained": "resnet_18.pth"}
    with pytest.raises(ValueError, match=r"attributes\.age\.auxiliary\.pretrained.*found dims 3.*width 4, stem_kernel 3"):
        Config.model_validate(data)
    data["attributes"][1]["auxiliary"] |= {"width": 64, "stem_kernel": 7}
    assert Config.model_validate(data).attributes[1].auxiliary.pretrained == Path("resnet_18.pth")
