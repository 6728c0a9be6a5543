"""Evidence by hand, beyond all normal values, of many columns of which one is strange; thresholds and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from normscape.errors import DataError
from normscape.scoring.evidence import EvidenceDetector


def test_scores_by_hand() -> None:
    """Among 0..99: 80 is reached by 20, p = 21/101; the values beyond the 95 % quantile have an exponential tail."""
    normal = np.arange(100.0)[:, None]
    detector = EvidenceDetector().fit(normal)
    start = np.quantile(normal, 0.95)
    excess = np.mean([x - start for x in range(100) if x > start])
    found = detector.decision_function(np.array([[80.0], [150.0], [-5.0]]))
    np.testing.assert_allclose(found, [-np.log(21 / 101), -np.log(0.05) + (150 - start) / excess, 0.0], atol=1e-12)


def test_values_beyond_all_normal_ones_still_differ() -> None:
    detector = EvidenceDetector().fit(np.random.default_rng(0).normal(size=(200, 2)))
    assert (np.diff(detector.decision_function(np.linspace(-3, 40, 50)[:, None] * np.ones((1, 2)))) >= 0).all()
    assert detector.decision_function(np.array([[20.0, 20.0]])) < detector.decision_function(np.array([[21.0, 21.0]]))


def test_the_rarest_feature_counts() -> None:
    """The score of two features is the larger one of their scores; the order of the columns does not matter."""
    normal = np.random.default_rng(1).normal(size=(300, 2))
    rows = np.array([[0.3, 2.5], [4.0, -1.0]])
    parts = [EvidenceDetector().fit(normal[:, i : i + 1]).decision_function(rows[:, i : i + 1]) for i in range(2)]
    detector = EvidenceDetector().fit(normal)
    np.testing.assert_allclose(detector.decision_function(rows), np.maximum(*parts))
    np.testing.assert_allclose(EvidenceDetector().fit(normal[:, ::-1]).decision_function(rows[:, ::-1]), np.maximum(*parts))


def test_one_strange_column_is_found_among_many() -> None:
    """Of 60 columns one is shifted by four standard deviations: the largest evidence finds it, a sum over all hardly does."""
    random = np.random.default_rng(2)
    detector = EvidenceDetector().fit(random.normal(size=(1000, 60)))
    rows = random.normal(size=(400, 60))
    label = np.arange(400) % 2
    rows[label == 1, 7] += 4
    found = roc_auc_score(label, detector.decision_function(rows))
    summed = roc_auc_score(label, detector.evidence(rows).sum(1))
    assert found > 0.85
    assert found > summed + 0.1


def test_it_asks_for_few_false_alarms_and_looks_at_no_anomaly() -> None:
    random = np.random.default_rng(0)
    normal = random.normal(size=(2000, 3))
    label = np.repeat([0, 1], 2000)
    detector = EvidenceDetector(quantile=0.95).fit(np.concatenate([normal, normal + 50]), label)
    other = EvidenceDetector(quantile=0.95).fit(np.concatenate([normal, normal - 1e6]), label)
    assert detector.threshold_ == other.threshold_
    assert np.array_equal(detector.decision_function(normal), other.decision_function(normal))
    assert detector.predict(normal).mean() == pytest.approx(0.05, abs=0.005)
    assert detector.predict(random.normal(size=(2000, 3))).mean() == pytest.approx(0.05, abs=0.02)
    assert detector.predict(np.full((1, 3), 5.0)).tolist() == [1]


def test_other_normal_rows_move_the_threshold_and_no_score() -> None:
    random = np.random.default_rng(0)
    fitted, unseen = random.normal(size=(500, 2)), random.normal(0.5, 1, size=(400, 2))
    detector = EvidenceDetector(quantile=0.95).fit(fitted, np.zeros(500, dtype=int))
    before, scores = detector.predict(unseen).mean(), detector.decision_function(unseen)
    detector.calibrate(np.concatenate([unseen, unseen + 9]), np.repeat([0, 1], 400))
    assert before > 0.08
    assert detector.predict(unseen).mean() == pytest.approx(0.05, abs=0.01)
    assert np.array_equal(detector.decision_function(unseen), scores)


def test_it_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 3))
    detector = EvidenceDetector(quantile=0.9).fit(features, np.zeros(50, dtype=int))
    path = tmp_path / "unsupervised.safetensors"
    detector.save(path)
    loaded = EvidenceDetector.load(path)
    assert (loaded.quantile, loaded.threshold_) == (0.9, detector.threshold_)
    assert np.array_equal(loaded.decision_function(features + 0.1), detector.decision_function(features + 0.1))
    path.write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"unsupervised\.safetensors: expected the rows of a detector"):
        EvidenceDetector.load(path)


def test_constant_columns_and_wrong_widths() -> None:
    detector = EvidenceDetector().fit(np.ones((20, 1)))
    assert np.isfinite(detector.decision_function(np.array([[1.0], [2.0]]))).all()
    with pytest.raises(ValueError, match="no normal row"):
        EvidenceDetector().fit(np.zeros((0, 1)))
    with pytest.raises(ValueError, match=r"expected features \(N, 1\)"):
        detector.decision_function(np.zeros((5, 2)))
