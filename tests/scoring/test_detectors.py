"""The threshold and the tail detector, and grouped folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normscape.errors import DataError
from normscape.scoring.detectors import TailDetector, ThresholdDetector, grouped_folds, out_of_fold


def test_threshold_detector_scores_are_the_feature(tmp_path: Path) -> None:
    features = np.array([[0.1], [0.2], [0.6], [0.9]])
    detector = ThresholdDetector().fit(features, np.array([0, 0, 1, 1]))
    assert detector.predict(features).tolist() == [0, 0, 1, 1]
    assert detector.decision_function(features).tolist() == features[:, 0].tolist()
    detector.save(tmp_path / "l1.json")
    assert ThresholdDetector.load(tmp_path / "l1.json").threshold_ == detector.threshold_


def test_damaged_threshold_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "l1.json").write_text("{}")
    with pytest.raises(DataError, match=r"l1\.json"):
        ThresholdDetector.load(tmp_path / "l1.json")


def test_tail_scores_by_hand() -> None:
    """Normal values 1, 2, 3: of them 1, 0 and 3 are at least 3, 9 and 0, so p is 2/4, 1/4 and 1."""
    detector = TailDetector().fit(np.array([[1.0], [2.0], [3.0]]), np.zeros(3, dtype=np.int64))
    np.testing.assert_allclose(detector.decision_function(np.array([[3.0], [9.0], [0.0]])), -np.log([0.5, 0.25, 1.0]))


def test_tail_sums_over_features_and_asks_for_few_false_alarms() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(2000, 3))
    detector = TailDetector(quantile=0.95).fit(normal, np.zeros(2000, dtype=np.int64))
    assert detector.predict(normal).mean() == pytest.approx(0.05, abs=0.005)
    assert detector.predict(generator.normal(size=(2000, 3))).mean() == pytest.approx(0.05, abs=0.02)
    assert detector.predict(np.full((1, 3), 2.0)).tolist() == [1]


def test_tail_is_calibrated_by_other_normal_rows() -> None:
    """The threshold moves with the rows it is chosen on; the scores stay as they were fitted."""
    random = np.random.default_rng(0)
    fitted, unseen = random.normal(size=(500, 2)), random.normal(0.5, 1, size=(400, 2))
    detector = TailDetector(quantile=0.95).fit(fitted, np.zeros(500, dtype=int))
    before, scores = detector.predict(unseen).mean(), detector.decision_function(unseen)
    detector.calibrate(np.concatenate([unseen, unseen + 9]), np.repeat([0, 1], 400))
    assert before > 0.1
    assert detector.predict(unseen).mean() == pytest.approx(0.05, abs=0.01)
    assert np.array_equal(detector.decision_function(unseen), scores)


def test_tail_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 3))
    detector = TailDetector(quantile=0.9).fit(features, np.zeros(50, dtype=int))
    detector.save(tmp_path / "tail.safetensors")
    loaded = TailDetector.load(tmp_path / "tail.safetensors")
    assert (loaded.quantile, loaded.threshold_) == (0.9, detector.threshold_)
    assert np.array_equal(loaded.decision_function(features + 0.1), detector.decision_function(features + 0.1))
    (tmp_path / "tail.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match="expected the rows of a detector as safetensors"):
        TailDetector.load(tmp_path / "tail.safetensors")


def test_tail_does_not_look_at_anomalies() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(100, 2))
    label = np.arange(100) % 2
    changed = np.where(label[:, None] == 1, 1e6, features)
    a, b = TailDetector().fit(features, label), TailDetector().fit(changed, label)
    assert a.threshold_ == b.threshold_
    assert np.array_equal(a.decision_function(features), b.decision_function(features))


def test_folds_never_split_a_subject() -> None:
    groups = np.repeat([f"s{i}" for i in range(10)], 7)
    label = np.arange(70) % 2
    seen = []
    for train, held_out in grouped_folds(label, groups, folds=5, seed=3):
        assert not set(groups[train]) & set(groups[held_out])
        seen += held_out.tolist()
    assert sorted(seen) == list(range(70))


def test_out_of_fold_rows_are_scored_without_their_subject() -> None:
    """A detector that remembers its groups never scores one of them."""
    groups = np.repeat(np.arange(8), 4)
    label = np.arange(32) % 2

    class Memory(ThresholdDetector):
        def fit(self, features, label, groups=None):
            self.known = set(features[:, 0])
            return super().fit(features, label, groups)

        def decision_function(self, features):
            return np.isin(features[:, 0], list(getattr(self, "known", []))).astype(float)

    score, predicted = out_of_fold(Memory, groups[:, None].astype(float), label, groups, folds=4, seed=0)
    assert (score == 0).all()
    assert set(predicted) <= {0, 1}


def test_too_few_subjects_for_the_folds() -> None:
    with pytest.raises(DataError, match="5 folds need at least 5 training subjects, found 2"):
        grouped_folds(np.array([0, 1, 0, 1]), np.array(["a", "a", "b", "b"]), folds=5, seed=0)


def test_a_fold_with_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="one class only"):
        grouped_folds(np.array([0, 0, 1, 1]), np.array(["a", "a", "b", "b"]), folds=2, seed=0)
