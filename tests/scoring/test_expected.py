"""Levels: residuals that depend on the conditions become standard numbers that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normscape.errors import DataError
from normscape.scoring.expected import Levels


def _residuals(conditions: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two residuals, log-normal: median and spread of the first depend on the condition, those of the second do not."""
    age = conditions[:, 0]
    noise = random.normal(size=(len(age), 2))
    first = np.exp(np.sin(age / 15) - 2 + (0.1 + 0.005 * age) * noise[:, 0])
    return np.stack([first, np.exp(0.3 * noise[:, 1])], axis=1)


def _known(count: int, random: np.random.Generator) -> np.ndarray:
    return random.uniform(0, 90, (count, 1))


def test_expected_are_standard_at_every_age() -> None:
    """On new images: median 0 and deviation 1 in each third of the ages, though the residual's own median varies threefold."""
    random = np.random.default_rng(0)
    known = _known(1500, random)
    levels = Levels.fit(_residuals(known, random), known, seed=0)
    fresh = _known(3000, random)
    values = _residuals(fresh, random)
    z = levels.z(values, fresh)
    medians = []
    for third in range(3):
        rows = (fresh[:, 0] >= 30 * third) & (fresh[:, 0] < 30 * (third + 1))
        medians.append(np.median(values[rows, 0]))
        for column in range(2):
            low, middle, high = np.quantile(z[rows, column], [0.16, 0.5, 0.84])
            assert abs(middle) < 0.2
            assert (high - low) / 2 == pytest.approx(1.0, abs=0.2)
    assert max(medians) / min(medians) > 2


def test_a_few_huge_values_do_not_move_the_median() -> None:
    """A tenth of the old ones a hundredfold: what is usual there stays what it was."""
    random = np.random.default_rng(1)
    known = _known(1500, random)
    values = _residuals(known, random)
    spoilt = values.copy()
    spoilt[(known[:, 0] > 60) & (random.random(1500) < 0.1)] *= 100
    clean, other = (Levels.fit(v, known, seed=0) for v in (values, spoilt))
    old = np.full((1, 1), 75.0)
    usual = np.exp(np.sin(5) - 2) * np.ones((1, 2))
    assert other.z(usual, old)[0, 0] == pytest.approx(clean.z(usual, old)[0, 0], abs=0.5)


def test_constant_and_empty_columns_are_finite() -> None:
    """No spread at all: equal values are at 0, others far off, nothing is NaN."""
    known = np.linspace(0, 1, 40)[:, None]
    values = np.stack([np.zeros(40), np.full(40, 3.0)], axis=1)
    levels = Levels.fit(values, known, seed=0)
    np.testing.assert_allclose(levels.z(values, known), 0, atol=1e-3)
    assert (levels.z(values + 1, known) > 10).all()
    assert np.isfinite(levels.z(values + 1, known)).all()


def test_as_they_are_and_without_conditions() -> None:
    """Values of any sign without the logarithm; without conditions, plain robust standardisation."""
    random = np.random.default_rng(2)
    values = random.normal(-4, 2, (2000, 1))
    levels = Levels.fit(values, np.zeros((2000, 0)), seed=0, logarithm=False)
    z = levels.z(np.array([[-4.0], [0.0]]), np.zeros((2, 0)))
    np.testing.assert_allclose(z[:, 0], [0, 2], atol=0.15)


def test_order_is_kept_under_one_condition() -> None:
    """z rises with the value: levels compare images of different conditions, they reorder none of the same."""
    random = np.random.default_rng(3)
    known = _known(300, random)
    levels = Levels.fit(_residuals(known, random), known, seed=0)
    rising = np.geomspace(1e-6, 1e3, 50)[:, None] * np.ones((1, 2))
    assert (np.diff(levels.z(rising, np.full((50, 1), 40.0)), axis=0) > 0).all()


def test_the_same_after_a_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    known = _known(200, random)
    values = _residuals(known, random)
    levels = Levels.fit(values, known, seed=0)
    levels.save(tmp_path / "levels.safetensors")
    assert np.array_equal(Levels.load(tmp_path / "levels.safetensors").z(values, known), levels.z(values, known))
    (tmp_path / "levels.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"levels\.safetensors: expected usual levels"):
        Levels.load(tmp_path / "levels.safetensors")
