"""Smooth regression on conditions: it finds smooth functions, extrapolates nothing, and needs no condition."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.scoring.conditions import ConditionBasis, SmoothRegression


def test_a_smooth_function_of_four_conditions_is_found() -> None:
    """Curved in age and place; held-out error near that of the noise. A target of pure noise is left alone."""
    random = np.random.default_rng(0)
    conditions = random.uniform([20, -80, -80, -80], [80, 80, 80, 80], (2000, 4))
    truth = np.sin(conditions[:, 0] / 12) + np.abs(conditions[:, 1]) / 40
    targets = np.stack([truth + 0.2 * random.normal(size=2000), random.normal(size=2000)], axis=1)
    model = SmoothRegression.fit(conditions[:1500], targets[:1500], seed=0)
    expected = model.predict(conditions[1500:])
    assert np.std(truth[1500:] - expected[:, 0]) < 0.3 * np.std(truth)
    assert np.std(expected[:, 1]) < 0.3


def test_beyond_the_range_the_border_counts() -> None:
    conditions = np.linspace(0, 90, 200)[:, None]
    model = SmoothRegression.fit(conditions, conditions**2, seed=0)
    assert model.predict(np.array([[90.0]])) == pytest.approx(model.predict(np.array([[500.0]])))
    assert model.predict(np.array([[0.0]])) == pytest.approx(model.predict(np.array([[-500.0]])))
    assert model.predict(np.array([[45.0]]))[0, 0] == pytest.approx(2025, rel=0.05)


@pytest.mark.parametrize("conditions", [np.zeros((30, 0)), np.full((30, 2), 7.3, np.float32).astype(float)])
def test_without_anything_known_the_mean_is_expected(conditions: np.ndarray) -> None:
    targets = np.random.default_rng(0).normal(size=(30, 3))
    model = SmoothRegression.fit(conditions, targets, seed=0)
    np.testing.assert_allclose(model.predict(conditions[:4]), np.tile(targets.mean(0), (4, 1)), atol=1e-9)


def test_a_condition_that_never_changes_changes_nothing() -> None:
    """As the shifts of contrast, which are 0 in all images that are scored."""
    random = np.random.default_rng(0)
    conditions = random.uniform(-1, 1, (400, 2))
    targets = np.sin(3 * conditions[:, :1]) * conditions[:, 1:]
    more = np.concatenate([conditions, np.zeros((400, 6))], axis=1)
    plain, beside = (SmoothRegression.fit(known, targets, seed=0).predict(known) for known in (conditions, more))
    np.testing.assert_allclose(beside, plain, atol=1e-6)


def test_too_few_rows_are_refused_and_few_are_enough() -> None:
    with pytest.raises(ValueError, match="at least two rows, found 1"):
        SmoothRegression.fit(np.zeros((1, 1)), np.zeros((1, 1)), seed=0)
    model = SmoothRegression.fit(np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [2.0]]), seed=0)
    assert np.isfinite(model.predict(np.array([[1.5]]))).all()


def test_the_same_again_and_after_a_round_trip() -> None:
    random = np.random.default_rng(0)
    conditions, targets = random.normal(size=(300, 2)), random.normal(size=(300, 2))
    model, again = (SmoothRegression.fit(conditions, targets, seed=4) for _ in range(2))
    assert np.array_equal(model.predict(conditions), again.predict(conditions))
    loaded = SmoothRegression.from_arrays(model.to_arrays("a/b"), "a/b")
    assert np.array_equal(loaded.predict(conditions), model.predict(conditions))
    other = ConditionBasis.fit(conditions, seed=5)
    assert not np.array_equal(other.landmarks, model.basis.landmarks)
