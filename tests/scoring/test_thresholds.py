"""Thresholds on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.scoring.thresholds import best_accuracy_threshold, quantile_threshold


def test_separable_scores_are_cut_in_the_middle() -> None:
    assert best_accuracy_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


def test_no_other_threshold_is_better() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 300)
    score = np.round(generator.normal(size=300) + label, 1)
    chosen = best_accuracy_threshold(label, score)
    best = max(((score > t) == label).mean() for t in [*np.unique(score), score.min() - 1])
    assert ((score > chosen) == label).mean() == best


@pytest.mark.parametrize(("label", "expected"), [([0, 0, 0], [False] * 3), ([1, 1, 1], [True] * 3)])
def test_one_class_is_called_by_its_name(label: list[int], expected: list[bool]) -> None:
    score = np.array([1.0, 2.0, 3.0])
    assert (score > best_accuracy_threshold(label, score)).tolist() == expected


def test_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        best_accuracy_threshold([], [])


def test_quantile_threshold() -> None:
    assert quantile_threshold(np.arange(101.0), 0.95) == pytest.approx(95.0)
