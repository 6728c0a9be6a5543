"""Metrics against hand-computed cases and scikit-learn; intervals against known truth."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from normscape.scoring.metrics import accuracy, auprc, auroc, bootstrap_by_subject, prevalence, resample_counts, roc_curve

ONE = np.ones((1, 4))


def test_auroc_by_hand() -> None:
    """Normal 1, 2; anomalous 2, 3: pairs (2>1, 2=2, 3>1, 3>2) give (1 + 0.5 + 1 + 1) / 4."""
    label, score = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 2.0, 3.0])
    assert auroc(label, score, ONE)[0] == pytest.approx(0.875)


def test_other_metrics_by_hand() -> None:
    label = np.array([0, 0, 1, 1])
    assert accuracy(label, np.array([0, 1, 1, 1]), ONE)[0] == 0.75
    assert prevalence(label, np.zeros(4), ONE)[0] == 0.5
    # from the top: anomalous (precision 1 at recall 1/2), normal, anomalous (precision 2/3 at recall 1)
    assert auprc(label, np.array([1.0, 3.0, 2.0, 4.0]), ONE)[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("levels", [5, 1000])
def test_weighted_metrics_equal_repeated_rows(levels: int) -> None:
    """A weight of n is the same as n copies of the row, with many ties and with few."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 200)
    score = generator.integers(0, levels, 200) + 0.3 * levels * label
    weight = generator.integers(0, 4, (3, 200)).astype(float)
    for i in range(3):
        copies = np.repeat(np.arange(200), weight[i].astype(int))
        assert auroc(label, score, weight)[i] == pytest.approx(roc_auc_score(label[copies], score[copies]))
        assert auprc(label, score, weight)[i] == pytest.approx(average_precision_score(label[copies], score[copies]))
        assert prevalence(label, score, weight)[i] == pytest.approx(label[copies].mean())


def test_one_class_is_undefined() -> None:
    label, score = np.zeros(4, dtype=np.int64), np.arange(4.0)
    for metric in (auroc, auprc):
        assert math.isnan(metric(label, score, ONE)[0])
        assert math.isnan(metric(1 - label, score, ONE)[0])


def test_roc_curve_runs_from_corner_to_corner() -> None:
    fpr, tpr = roc_curve([0, 0, 1, 1], [1.0, 2.0, 2.0, 3.0])
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(0.875)


def test_resamples_draw_as_many_subjects_as_there_are() -> None:
    counts = resample_counts(9, 100, seed=0)
    assert counts.shape == (100, 9)
    assert (counts.sum(axis=1) == 9).all()
    assert not np.array_equal(counts, resample_counts(9, 100, seed=1))


def test_interval_is_that_of_subjects_not_rows() -> None:
    """Rows of one subject are copies: the interval is as wide as with one row a subject."""
    generator = np.random.default_rng(1)
    correct = generator.random(20) < 0.7
    subject = np.arange(20)
    once = bootstrap_by_subject(accuracy, np.ones(20), correct, subject, n=500, seed=0)
    often = bootstrap_by_subject(accuracy, np.ones(2000), np.repeat(correct, 100), np.repeat(subject, 100), n=500, seed=0)
    assert often == once
    assert once.high - once.low > 0.3


def test_interval_covers_the_truth() -> None:
    """Of 100 data sets with subject effects, about 95 intervals cover the true AUROC; at least 88 is asked for."""
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        subject = np.repeat(np.arange(40), 20)
        label = np.tile([0, 1], 400)
        shift = generator.normal(size=40)[subject] * label  # anomalies show more in some subjects than in others
        score = generator.normal(size=800) + label + shift
        interval = bootstrap_by_subject(auroc, label, score, subject, n=200, seed=seed)
        truth = 0.7181  # P(1 + N(0, 1 + 1) > N(0, 1)) = Phi(1 / sqrt(3))
        covered += interval.low <= truth <= interval.high
    assert covered >= 88


def test_resamples_with_one_class_are_counted_and_left_out() -> None:
    """One of three subjects holds all anomalies; it is missing from (2/3)^3 of the resamples."""
    subject = np.repeat(["a", "b", "c"], 4)
    label = np.array([1] * 4 + [0] * 8)
    interval = bootstrap_by_subject(auroc, label, np.arange(12.0), subject, n=1000, seed=0)
    assert interval.resamples + interval.skipped == 1000
    # undefined too where only that subject is drawn: (1/3)^3
    assert interval.skipped / 1000 == pytest.approx((2 / 3) ** 3 + (1 / 3) ** 3, abs=0.05)
    assert math.isfinite(interval.low)


def test_one_subject_has_no_interval() -> None:
    interval = bootstrap_by_subject(auroc, [0, 1], [0.0, 1.0], ["a", "a"], n=10, seed=0)
    assert interval.value == 1.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_thousand_resamples_take_seconds() -> None:
    """5000 rows, 1000 resamples, the two costly metrics."""
    generator = np.random.default_rng(0)
    label, subject = generator.integers(0, 2, 5000), generator.integers(0, 9, 5000)
    score = generator.normal(size=5000) + label
    start = time.perf_counter()
    for metric in (auroc, auprc):
        bootstrap_by_subject(metric, label, score, subject, n=1000, seed=0)
    assert time.perf_counter() - start < 10
