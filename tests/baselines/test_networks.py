"""Shapes of the baselines' networks, and what they see of known values."""

from __future__ import annotations

import pytest
import torch

from normscape.baselines.networks import (
    VALUE_FEATURES,
    Bottleneck,
    FoldedUNet,
    ValueFeatures,
    decoder,
    encoder,
    fold_blocks,
    stage_widths,
    unfold_blocks,
    with_features,
)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 32, 32), (1, 8, 8, 8), (1, 16, 16, 16)])
def test_images_to_vectors_and_back(shape: tuple[int, ...]) -> None:
    """Every network takes and gives the shapes that it says."""
    images = torch.zeros(2, *shape)
    assert encoder(shape, 5, width=4)(images).shape == (2, 5)
    assert decoder(shape, 5, width=4)(torch.zeros(2, 5)).shape == images.shape
    unet = FoldedUNet(len(shape) - 1, shape[0], 2, width=4, values=3).eval()
    assert unet(images, torch.zeros(2, 3)).shape == (2, 2, *shape[1:])
    bottleneck = Bottleneck(shape, latent=6, outputs=12, width=4, values=0)
    assert bottleneck.encode(images, torch.zeros(2, 0)).shape == (2, 12)
    assert bottleneck.decode(torch.zeros(2, 6), torch.zeros(2, 0)).shape == images.shape


def test_stages_halve_down_to_two() -> None:
    """Channels double twice at most."""
    assert stage_widths(8, 4) == (4, 8)
    assert stage_widths(32, 4) == (4, 8, 16, 16)


@pytest.mark.parametrize("dims", [2, 3])
def test_folding_is_undone(dims: int) -> None:
    """Blocks of pixels become channels, each block at its own place, and come back."""
    images = torch.arange(2.0 * 8**dims).view(1, 2, *(8,) * dims)
    folded = fold_blocks(images)
    assert folded.shape == (1, 2 * 2**dims, *(4,) * dims)
    assert torch.equal(unfold_blocks(folded), images)
    corner = images[(0, 0, *(slice(2),) * dims)].flatten()
    assert set(folded[(0, slice(2**dims), *(0,) * dims)].tolist()) == set(corner.tolist())


def test_features_of_values() -> None:
    """Near values have near features and far ones do not; no values have none; each lies at every place of the image."""
    torch.manual_seed(0)
    features = ValueFeatures(2)
    a, b, c = features(torch.tensor([[0.5, 0.5], [0.501, 0.5], [0.9, 0.1]])).detach()
    assert a.shape == (VALUE_FEATURES,)
    assert float((a - b).norm()) < 0.1 * float((a - c).norm())
    assert ValueFeatures(0)(torch.zeros(3, 0)).shape == (3, 0)
    wide = with_features(torch.zeros(1, 1, 4, 4, 4), torch.tensor([[2.0, 3.0]]))
    assert wide.shape == (1, 3, 4, 4, 4)
    assert bool((wide[:, 1] == 2).all())
    assert bool((wide[:, 2] == 3).all())
