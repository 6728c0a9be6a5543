"""Distances equal Mahalanobis distances computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from normscape.baselines.padim import REGULARISATION, PadimDetector
from normscape.baselines.places import drawn_rows


def regularised(scatters: list[np.ndarray], count: int) -> np.ndarray:
    """What is added to every covariance: 0.01 of the mean variance within the places."""
    pooled = sum(scatters) / count
    return REGULARISATION * np.trace(pooled) / len(pooled) * np.eye(len(pooled))


def test_pictures_against_numpy(world: Callable[..., Any]) -> None:
    """A Gaussian a cell; score and map from the worst and from all of them."""
    here = world("pictures")
    detector = PadimDetector(layers=(2,), dimensions=6, shrinkage=0).fit(here.training)
    assert len(detector.channels_.unique()) == 6
    rows = drawn_rows(here.training, "padim")
    normal = detector.network_.cells(here.training.healthy.batch(rows)).values[:, :, detector.channels_].double().numpy()
    batch = here.others.batch(torch.arange(0, 60, 5))
    query = detector.network_.cells(batch).values[:, :, detector.channels_].double().numpy()
    scatters = [np.cov(normal[:, cell].T) * (len(rows) - 1) for cell in range(16)]
    extra = regularised(scatters, normal.shape[0] * normal.shape[1])
    expected = np.empty(query.shape[:2])
    for cell, scatter in enumerate(scatters):
        inverse = np.linalg.inv(scatter / (len(rows) - 1) + extra)
        apart = query[:, cell] - normal[:, cell].mean(0)
        expected[:, cell] = np.sqrt(np.einsum("bd,de,be->b", apart, inverse, apart))
    np.testing.assert_allclose(detector.decision_function(batch), expected.max(1), rtol=1e-3)
    found = detector.anomaly_map(batch)
    assert found.shape == (12, 1, 8, 8)
    np.testing.assert_allclose(found.flatten(1).amax(1), expected.max(1), rtol=0.5)


def test_brains_against_numpy(world: Callable[..., Any]) -> None:
    """A Gaussian a cube: of all cells of the brain that fall into it, whichever patch they come from."""
    here = world("brains")
    detector = PadimDetector(layers=(2,), dimensions=4, shrinkage=0, cube_mm=9.0).fit(here.training)

    def cells(batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = detector.network_.cells(batch)
        place = detector.places_.of(batch, found)
        return found.values[:, :, detector.channels_].double().numpy(), place.numpy(), (found.share > 0.5).numpy()

    normal, place, counts = cells(here.training.healthy.batch(drawn_rows(here.training, "padim")))
    groups = {cube: normal[counts & (place == cube)] for cube in np.unique(place[counts])}
    scatters = {cube: (x - x.mean(0)).T @ (x - x.mean(0)) for cube, x in groups.items()}
    extra = regularised(list(scatters.values()), int(counts.sum()))
    batch = here.others.batch(torch.arange(0, 60, 3))
    query, where, inside = cells(batch)
    full = {cube: x for cube, x in groups.items() if len(x) >= 10}
    assert len(full) > 10
    distance = detector.field_.distance(torch.from_numpy(query).float(), torch.from_numpy(where)).numpy()
    for cube, x in full.items():
        inverse = np.linalg.inv(scatters[cube] / (len(x) - 1) + extra)
        apart = query[inside & (where == cube)] - x.mean(0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", apart, inverse, apart))
        np.testing.assert_allclose(distance[inside & (where == cube)], expected, rtol=2e-3)


def test_rare_places_lean_on_the_rest(world: Callable[..., Any]) -> None:
    """Where nothing was seen, mean and covariance are those over all places."""
    detector = PadimDetector(layers=(2,), dimensions=4, cube_mm=9.0, shrinkage=5.0).fit(world("brains").training)
    field = detector.field_
    covariance = torch.linalg.inv(field.whiten.double())
    covariance = covariance @ covariance.transpose(1, 2)
    seen = (field.mean - field.mean[0]).abs().amax(1) > 1e-6
    assert 0 < int(seen.sum()) < len(seen)
    assert bool((~seen)[0])
    assert torch.isfinite(field.whiten).all()
    assert float(covariance[0].trace()) > 0.3 * float(covariance[seen].diagonal(dim1=1, dim2=2).sum(1).mean())


def test_positions_and_their_shuffle(world: Callable[..., Any]) -> None:
    """Features of a place spread less than those of places mixed at random."""
    here = world("brains")

    def spread(position: str) -> float:
        field = PadimDetector(layers=(2,), dimensions=4, cube_mm=9.0, shrinkage=1.0, position=position).fit(here.training).field_
        return float(-torch.linalg.slogdet(field.whiten.double())[1].mean())

    assert spread("known") < spread("shuffled") - 0.1
    assert len(PadimDetector(layers=(2,), position="none").fit(here.training).field_.mean) == 64
