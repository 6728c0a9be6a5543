"""Differences to scores and maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normscape.baselines.learning import Inputs, Seen
from normscape.baselines.rebuilding import ResidualDetector, local_residuals
from normscape.datasets.batches import ImageBatch


class Grey(ResidualDetector):
    """Makes of every image a grey one."""

    def rebuilt(self, seen: Seen) -> Tensor:
        return torch.zeros_like(seen.images)


@pytest.mark.parametrize("dims", [2, 3])
def test_neighbourhoods_of_every_place(dims: int) -> None:
    """A flat difference keeps its value at the border of the image and of the mask; alternating signs cancel."""
    flat = torch.full((1, 1, *(8,) * dims), -0.5)
    found, share = local_residuals(flat, None, 3)
    torch.testing.assert_close(found, flat.abs())
    assert float(share.view_as(found)[(0, 0, *(0,) * dims)]) == pytest.approx((2 / 3) ** dims)
    mask = torch.zeros(flat.shape, dtype=torch.bool)
    mask[..., :4] = True
    found, _ = local_residuals(flat * mask, mask, 3)
    torch.testing.assert_close(found, 0.5 * mask)
    signs = torch.ones(8).cumsum(0).remainder(2) * 2 - 1
    checks = signs.view(-1, *(1,) * (dims - 1)) * torch.ones((8,) * dims)
    found, _ = local_residuals(checks[None, None], None, 3)
    assert float(found[..., 1:-1].max()) < 0.51


def score_of(kind: Any, images: Tensor, masks: Tensor | None, toy: Any) -> Any:
    """Scores of a detector that makes everything grey: those of the images themselves."""
    detector = Grey(score=kind, neighbourhood=3)
    detector.inputs_ = Inputs(toy.training)
    return detector.decision_function(ImageBatch(images, masks, {}))


def test_kinds_of_scores(toy_training: Callable[..., Any]) -> None:
    """A bright block of three: its own value at its worst, its share of the image in the mean; none where it lies outside."""
    toy = toy_training()
    images = torch.zeros(2, 1, 16, 16)
    images[1, :, 6:9, 6:9] = 0.8
    assert score_of("worst", images, None, toy) == pytest.approx([0.0, 0.8], abs=1e-6)
    assert score_of("mean", images, None, toy) == pytest.approx([0.0, 0.8 * 9 / 256], abs=1e-6)
    assert 0 < score_of("top", images, None, toy)[1] < 0.8
    masks = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    masks[..., 8:] = False
    assert score_of("mean", images, masks, toy) == pytest.approx([0.0, 0.8 * 6 / 128], abs=1e-6)
    masks[..., 6:] = False
    for kind in ("worst", "top", "mean"):
        assert score_of(kind, images, masks, toy) == pytest.approx([0.0, 0.0])


def test_maps_lie_under_the_mask(toy_training: Callable[..., Any]) -> None:
    """Zero outside, the local difference inside."""
    toy = toy_training("patches")
    detector = Grey(score="worst", neighbourhood=None)
    detector.inputs_ = Inputs(toy.training)
    found = detector.anomaly_map(toy.unseen)
    assert not bool(found[~toy.unseen.masks].any())
    local, share = local_residuals(toy.unseen.images * toy.unseen.masks, toy.unseen.masks, 3)
    torch.testing.assert_close(found, local)
    expected = (local.flatten(1) * (share > 0.5)).amax(1)
    np.testing.assert_allclose(detector.decision_function(toy.unseen), expected.double().numpy(), rtol=1e-5)


def test_settings() -> None:
    """An even neighbourhood has no middle; a score has to be one there is."""
    with pytest.raises(ValueError, match="odd"):
        Grey(score="worst", neighbourhood=4)
    with pytest.raises(ValueError, match="worst, top, mean"):
        Grey(score="evidence", neighbourhood=None)
