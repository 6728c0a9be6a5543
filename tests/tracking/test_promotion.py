"""When a challenger is better: in pairs on the same test subjects, by intervals that do not overlap on others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from normscape.tracking.promotion import TestScores, compare


def scores(strength: float, *, subjects: int = 12, rows: int = 40, seed: int = 0, prefix: str = "chair") -> TestScores:
    """Scores in which anomalies stand out by `strength` deviations; subjects differ in how hard they are."""
    generator = np.random.default_rng(seed)
    hardness = np.random.default_rng(7).normal(0, 0.6, subjects)  # of the subject, whatever scores it
    owner = np.repeat(np.arange(subjects), rows)
    label = np.tile([0, 1], subjects * rows // 2)
    value = generator.normal(size=len(label)) + label * (strength + hardness[owner])
    return TestScores(label, value, np.array([f"{prefix}{i:02d}" for i in owner]))


def test_a_clearly_better_challenger_wins_in_pairs() -> None:
    new, old = scores(2.5, seed=1), scores(1.0, seed=2)
    found = compare(new, old)
    assert found.better
    assert f"{roc_auc_score(new.label, new.score):.3f}" in found.reason
    assert f"difference {roc_auc_score(new.label, new.score) - roc_auc_score(old.label, old.score):+.3f}" in found.reason
    assert "12 subjects in pairs" in found.reason


def test_an_equal_or_worse_challenger_does_not() -> None:
    same = scores(1.0, seed=1)
    assert not compare(same, same).better
    assert "difference +0.000 (95 % +0.000 to +0.000" in compare(same, same).reason
    assert not compare(scores(1.0, seed=1), scores(2.5, seed=2)).better


def test_pairs_find_a_difference_that_overlapping_intervals_hide() -> None:
    """Subjects differ much more than the versions do: in pairs the difference is plain, on other subjects it is not."""
    old = scores(1.0, seed=3)
    new = TestScores(old.label, old.score + 0.25 * old.label, old.subject)
    assert compare(new, old).better
    elsewhere = TestScores(new.label, new.score, np.char.add(new.subject, "-other"))
    found = compare(elsewhere, old)
    assert not found.better
    assert "different test subjects, so the intervals must not overlap" in found.reason


def test_on_other_subjects_intervals_must_not_overlap() -> None:
    assert compare(scores(3.0, seed=4, prefix="other"), scores(0.5, seed=5)).better
    assert not compare(scores(0.5, seed=5), scores(3.0, seed=4, prefix="other")).better


def test_chance_wins_rarely() -> None:
    """Of versions that are equally good, about one in forty wins."""
    wins = [compare(scores(1.0, seed=2 * i + 10), scores(1.0, seed=2 * i + 11), resamples=400).better for i in range(60)]
    assert sum(wins) <= 6


@pytest.mark.parametrize("subjects", [1])
def test_one_subject_gives_no_interval_and_no_promotion(subjects: int) -> None:
    found = compare(scores(3.0, subjects=subjects, seed=1), scores(0.5, subjects=subjects, seed=2))
    assert not found.better
    assert "give no interval" in found.reason


def test_other_rows_of_the_same_subjects_are_paired_by_subject() -> None:
    """Two configurations may project other images of the same test subjects."""
    assert compare(scores(2.5, rows=20, seed=1), scores(1.0, rows=60, seed=2)).better


def test_the_same_comparison_gives_the_same_answer() -> None:
    new, old = scores(1.4, seed=1), scores(1.0, seed=2)
    assert compare(new, old) == compare(new, old)
