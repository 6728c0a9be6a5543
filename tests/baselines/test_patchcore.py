"""The bank, its nearest neighbours, and what is chosen for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines import nearest
from normscape.baselines.frozen import Cells, _averaged
from normscape.baselines.nearest import Bank
from normscape.baselines.patchcore import PatchCoreDetector, coreset
from normscape.baselines.places import cell_positions, drawn_rows, position_frame


def brute_force(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance to the nearest."""
    return np.array([np.linalg.norm(bank - query, axis=1).min() for query in queries])


def test_all_cells_in_the_bank_give_exact_nearest_neighbours(world: Callable[..., Any]) -> None:
    """Pictures: the score is the largest distance to the nearest cell of any training image."""
    here = world("pictures").changed(images=20)
    detector = PatchCoreDetector(layers=(2,), candidates=10**6, bank=10**6, neighbours=1, average=3).fit(here.training)
    rows = drawn_rows(here.training, "patchcore")
    normal = detector.network_.cells(here.training.healthy.batch(rows), average=3).values.flatten(0, 1).double().numpy()
    assert len(detector.bank_) == 20 * 16
    batch = here.others.batch(torch.arange(6))
    query = detector.network_.cells(batch, average=3).values.double().numpy()
    expected = np.stack([brute_force(image, normal) for image in query])
    np.testing.assert_allclose(detector.decision_function(batch), expected.max(1), rtol=1e-4)
    same = here.training.healthy.batch(rows[:4])
    assert (detector.decision_function(same) < 1e-4 * expected.max()).all()


def test_neighbours_come_from_nearby_places(world: Callable[..., Any]) -> None:
    """Brains: the nearest of the cells within 12 mm of the own place; of cells more than half in the brain."""
    here = world("brains").changed(images=30)
    settings: dict[str, Any] = {"candidates": 10**6, "bank": 10**6, "neighbours": 1, "average": 3, "match": {"position": 12.0}}
    detector = PatchCoreDetector(layers=(2,), **settings).fit(here.training)
    frame = position_frame(here.training)

    def cells(batch: Any) -> tuple[Cells, np.ndarray]:
        found = detector.network_.cells(batch, average=3)
        return found, cell_positions(batch.conditions["position"], frame, 8, found.sides).double().numpy()

    normal, places = cells(here.training.healthy.batch(drawn_rows(here.training, "patchcore")))
    counts = (normal.share > 0.5).numpy()
    bank, at = normal.values.double().numpy()[counts], places[counts]
    assert len(detector.bank_) == len(bank)
    batch = here.others.batch(torch.arange(0, 64, 8))
    query, own = cells(batch)
    expected = []
    for values, middles, inside in zip(query.values.double().numpy(), own, (query.share > 0.5).numpy(), strict=True):
        apart = np.linalg.norm(at[None] - middles[inside][:, None], axis=2)
        assert (apart.min(1) < 11.9).all()
        distance = np.linalg.norm(bank[None] - values[inside][:, None], axis=2)
        expected.append(np.where(apart <= 12.0, distance, np.inf).min(1).max())
    np.testing.assert_allclose(detector.decision_function(batch), expected, rtol=1e-4)


def test_rare_neighbours_weigh_the_score_down(world: Callable[..., Any]) -> None:
    """Equation 7 of the paper, by hand."""
    here = world("pictures").changed(images=20)
    settings: dict[str, Any] = {"candidates": 10**6, "bank": 10**6, "average": 3}
    plain, weighed = (PatchCoreDetector(layers=(2,), neighbours=k, **settings).fit(here.training) for k in (1, 4))
    batch = here.others.batch(torch.arange(5))
    bank = weighed.bank_.features.double().numpy()
    query = weighed.network_.cells(batch, average=3).values.double().numpy()
    score = plain.decision_function(batch)
    for i, image in enumerate(query):
        apart = np.linalg.norm(bank[None] - image[:, None], axis=2)
        cell = apart.min(1).argmax()
        nearest_one = apart[cell].argmin()
        around = np.argsort(np.linalg.norm(bank - bank[nearest_one], axis=1))[:4]
        weight = 1 - np.exp(apart[cell, nearest_one]) / np.exp(apart[cell, around]).sum()
        assert weighed.decision_function(batch)[i] == pytest.approx(weight * score[i], rel=1e-3)


def test_averages_of_small_maps() -> None:
    """Over what there is: a map of two places a side has one average, that of all; larger ones lose nothing at their border."""
    small = torch.rand(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_averaged(small, 3), small.mean((2, 3, 4), keepdim=True).expand_as(small))
    row = torch.tensor([[[[1.0, 2.0, 6.0]] * 3]])
    torch.testing.assert_close(_averaged(row, 3)[0, 0], torch.tensor([[1.5, 3.0, 4.0]] * 3))


def test_greedy_choice() -> None:
    """Three far groups: the first three choices take one of each; the fourth is the farthest of what is left."""
    random = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    features = (centres[:, None] + torch.rand(3, 50, 2, generator=random)).flatten(0, 1)
    features[7] = torch.tensor([-9.0, -9.0])
    chosen = coreset(features, 4, projection=2, random=random)
    assert len(chosen.unique()) == 4
    assert 7 in chosen.tolist()
    assert {i // 50 for i in chosen.tolist()} == {0, 1, 2}
    assert torch.equal(coreset(features, 150, projection=2, random=random), torch.arange(150))


def test_the_coreset_covers_better_than_chance() -> None:
    """Also under a random projection: the farthest feature is nearer to the bank than to as many drawn at random."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 40, generator=random) * torch.logspace(0, -2, 40)
    features = features * (0.7 * torch.randn(2000, 1, generator=random)).exp()  # some are rare

    def farthest(chosen: torch.Tensor) -> float:
        return float(torch.cdist(features, features[chosen]).amin(1).amax())

    by_chance = farthest(torch.randperm(2000, generator=random)[:60])
    assert farthest(coreset(features, 60, projection=16, random=random)) < 0.9 * by_chance
    assert farthest(coreset(features, 60, projection=99, random=random)) < 0.8 * by_chance


def test_the_bank_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few distances at a time give the same neighbours as all at once; far from zero the distances stay exact."""
    random = torch.Generator().manual_seed(0)
    bank = Bank(1000 + torch.rand(40, 3, generator=random), {}, {})
    queries = 1000 + torch.rand(30, 3, generator=random)
    distance, index = bank.nearest(queries, {}, 3)
    expected = torch.cdist(queries.double(), bank.features.double()).topk(3, largest=False)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance.double(), expected.values, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(nearest, "CHUNK", 90)
    again = bank.nearest(queries, {}, 3)
    assert torch.equal(again[1], index)
    torch.testing.assert_close(again[0], distance)


def test_where_nobody_is_alike_the_next_best_stand_in() -> None:
    """Alike ones first, however far their features; then those whose condition is nearest."""
    bank = Bank(torch.tensor([[0.0], [5.0], [1.0], [2.0]]), {"age": torch.tensor([[80.0], [21.0], [60.0], [40.0]])}, {"age": 5.0})
    distance, index = bank.nearest(torch.tensor([[0.0]]), {"age": torch.tensor([[20.0]])}, 3)
    assert index.tolist() == [[1, 3, 2]]
    assert distance.tolist() == [[5.0, 2.0, 1.0]]


def test_shuffled_positions(world: Callable[..., Any]) -> None:
    """The bank knows wrong places: the same features with the positions of other patches."""
    here = world("brains").changed(images=30)
    right, wrong = (
        PatchCoreDetector(layers=(2,), bank=10**6, shuffled=shuffled).fit(here.training) for shuffled in (False, True)
    )
    assert torch.equal(right.bank_.features, wrong.bank_.features)
    assert (right.bank_.conditions["position"] != wrong.bank_.conditions["position"]).any(1).float().mean() > 0.8
    batch = here.others.batch(torch.arange(0, 64, 4))
    assert wrong.decision_function(batch).mean() > right.decision_function(batch).mean()
