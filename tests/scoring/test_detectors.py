"""The threshold detector, and grouped folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normscape.errors import DataError
from normscape.scoring.detectors import ThresholdDetector, grouped_folds, out_of_fold


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
