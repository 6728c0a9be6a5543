"""Principal components rebuild what lies in their space, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from normscape.baselines.pca import PcaDetector
from normscape.baselines.places import drawn_rows
from normscape.datasets.batches import HealthyImages
from normscape.datasets.samples import SampleSet

COUNT, RANK, SIDE = 600, 5, 6


@dataclass(frozen=True)
class LowRank:
    """Pictures that are sums of five others."""

    weights: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, SIDE, SIDE)

    def __len__(self) -> int:
        return len(self.weights)

    def draw(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        parts = torch.randn(RANK, *self.shape, generator=torch.Generator().manual_seed(7))
        return 0.1 * torch.einsum("br,rchw->bchw", self.weights[rows], parts), {}

    def masks(self, rows: Tensor) -> None:
        return None


@pytest.fixture
def flat(world: Callable[..., Any]) -> Any:
    """A world of such pictures; more than one batch."""
    here = world("pictures")
    source = LowRank(torch.randn(COUNT, RANK, generator=torch.Generator().manual_seed(8)))
    columns = {"angle_degrees": torch.zeros(COUNT, 1)}
    samples = SampleSet(source, torch.zeros(COUNT, dtype=torch.int64), ("one",), columns, torch.arange(COUNT))
    return here.changed(healthy=HealthyImages(samples, here.training.config.value_attributes), images=COUNT)


def test_exact_in_its_subspace(flat: Any) -> None:
    """As many components as there are: nothing is left of normal images; what is added stays, but for its share in the space."""
    detector = PcaDetector(components=RANK, conditions="none").fit(flat.training)
    batch = flat.training.healthy.batch(torch.arange(40))
    assert detector.residual(batch).abs().max() < 1e-3
    assert (detector.decision_function(batch) < 1e-3).all()
    odd = batch.images.clone()
    odd[..., 2:5, 2:5] += 0.5
    changed = batch.with_images(odd)
    added = (detector.model_.z(changed) - detector.model_.z(batch)).flatten(1).double().numpy()
    space = detector.components_.double().numpy()
    expected = added - added @ space.T @ space
    np.testing.assert_allclose(detector.residual(changed).flatten(1), expected, atol=2e-3)
    assert (detector.decision_function(changed) > 0.5).all()
    fewer = PcaDetector(components=RANK - 1, conditions="none").fit(flat.training)
    assert (fewer.decision_function(batch) > 0.01).mean() > 0.9


def test_components_of_batches_are_those_of_all(flat: Any) -> None:
    """The space is that of scikit-learn's PCA of all z-scores at once."""
    detector = PcaDetector(components=RANK, conditions="none").fit(flat.training)
    rows = drawn_rows(flat.training, "pca")
    z = detector.model_.z(flat.training.healthy.batch(rows)).flatten(1).numpy()
    whole = PCA(n_components=RANK).fit(z)
    shared = np.linalg.svd(whole.components_ @ detector.components_.numpy().T, compute_uv=False)
    np.testing.assert_allclose(shared, 1.0, atol=1e-4)


def test_never_more_components_than_images(world: Callable[..., Any]) -> None:
    """Twelve images have at most twelve components, whatever is asked for."""
    here = world("brains").changed(images=12)
    assert PcaDetector().fit(here.training).components_.shape == (12, 512)


def test_positions_help(world: Callable[..., Any]) -> None:
    """Patches of a place are rebuilt better when the place is known."""
    here = world("brains")
    batch = here.others.batch(torch.arange(0, 64, 2))
    inside = batch.masks

    def left(position: str) -> float:
        detector = PcaDetector(components=2, position=position).fit(here.training)
        deviation = detector.model_.expected(batch)[1]
        return float((detector.residual(batch) * deviation)[inside].abs().mean())

    assert left("known") < 0.9 * left("none")
