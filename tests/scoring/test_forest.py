"""The forest: it finds signal and only signal, is deterministic, and survives a round trip without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from normscape.errors import DataError
from normscape.scoring.detectors import out_of_fold
from normscape.scoring.forest import ForestDetector

SMALL: dict[str, Any] = {"max_depth": (2, 4), "n_estimators": (10, 20), "folds": 3, "seed": 0}


class Stranger:
    """A type that skops would have to be told to trust."""


def _data(seed: int = 0, signal: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """12 subjects x 20 rows, 4 features, the first of which tells."""
    generator = np.random.default_rng(seed)
    groups = np.repeat([f"s{i:02d}" for i in range(12)], 20)
    label = np.tile([0, 1], 120)
    features = generator.normal(size=(240, 4))
    features[:, 0] += signal * label
    return features, label, groups


def test_finds_the_signal_on_new_subjects() -> None:
    detector = ForestDetector(**SMALL).fit(*_data())
    features, label, _ = _data(seed=1)
    assert roc_auc_score(label, detector.decision_function(features)) > 0.85
    assert (detector.predict(features) == label).mean() > 0.75
    assert detector.feature_importances_.argmax() == 0
    assert len(detector.grid_) == 4
    assert detector.best_params_["max_depth"] in (2, 4)


def test_best_settings_have_the_best_mean() -> None:
    detector = ForestDetector(**SMALL).fit(*_data(signal=0.7))
    best = max(detector.grid_, key=lambda row: row["mean_auroc"] or 0.0)
    assert {name: best[name] for name in detector.best_params_} == detector.best_params_


def test_shuffled_labels_leave_nothing_to_find() -> None:
    """Out of fold, AUROC is near one half; in the sample it is not, which is why both are reported."""
    features, label, groups = _data()
    shuffled = np.random.default_rng(5).permutation(label)
    detector = ForestDetector(**SMALL).fit(features, shuffled, groups)
    score, _ = out_of_fold(detector.with_best_settings, features, shuffled, groups, folds=3, seed=0)
    assert abs(roc_auc_score(shuffled, score) - 0.5) < 0.15
    assert roc_auc_score(shuffled, detector.decision_function(features)) > 0.65


def test_scores_do_not_depend_on_threads() -> None:
    data = _data(signal=0.7)
    one, two = ForestDetector(**SMALL, jobs=1).fit(*data), ForestDetector(**SMALL, jobs=2).fit(*data)
    assert one.grid_ == two.grid_
    assert np.array_equal(one.decision_function(data[0]), two.decision_function(data[0]))


def test_trying_all_features_at_each_split_trusts_the_one_that_tells() -> None:
    """The share reaches the forest of the search and that of the best settings."""
    few, every = (ForestDetector(**SMALL, max_features=share).fit(*_data()) for share in (None, 1.0))
    assert every.feature_importances_[0] > few.feature_importances_[0] + 0.05
    again = every.with_best_settings().fit(*_data())
    assert np.array_equal(again.feature_importances_, every.feature_importances_)


def test_round_trip_gives_the_same_scores(tmp_path: Path) -> None:
    data = _data()
    detector = ForestDetector(**SMALL, max_features=0.5).fit(*data)
    detector.save(tmp_path / "forest.skops", ["a", "b", "c", "d"])
    loaded, names = ForestDetector.load(tmp_path / "forest.skops")
    assert names == ["a", "b", "c", "d"]
    assert loaded.best_params_ == detector.best_params_
    assert loaded.grid_ == detector.grid_
    assert loaded.max_features == 0.5
    assert np.array_equal(loaded.decision_function(data[0]), detector.decision_function(data[0]))


def test_a_calibrated_threshold_is_the_best_on_its_rows_and_is_kept_by_the_file(tmp_path: Path) -> None:
    features, label, groups = _data()
    detector = ForestDetector(**SMALL).fit(features, label, groups)
    before = ((detector.decision_function(features + 0.7) > 0.5) == label).mean()
    detector.calibrate(features + 0.7, label)  # rows that look more abnormal than those it was fitted to
    assert (detector.predict(features + 0.7) == label).mean() > before
    detector.save(tmp_path / "forest.skops", ["a", "b", "c", "d"])
    assert ForestDetector.load(tmp_path / "forest.skops")[0].threshold_ == detector.threshold_ != 0.5


def test_one_setting_needs_no_search() -> None:
    detector = ForestDetector(max_depth=(3,), n_estimators=(10,), seed=0).fit(*_data())
    assert detector.grid_ == [{"max_depth": 3, "n_estimators": 10, "min_samples_leaf": 1, "mean_auroc": None, "std_auroc": None}]


def test_too_few_subjects() -> None:
    features, label, groups = _data()
    with pytest.raises(DataError, match=r"scoring\.folds"):
        ForestDetector(**SMALL).fit(features[:40], label[:40], groups[:40])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "forest.skops"
    ForestDetector(max_depth=(2,), n_estimators=(5,)).fit(*_data()).save(path, ["a", "b", "c", "d"])
    settings = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(settings | {"features": ["a"]}))
    with pytest.raises(DataError, match="do not belong together"):
        ForestDetector.load(path)
    path.with_suffix(".json").write_text(json.dumps(settings))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"forest\.skops"):
        ForestDetector.load(path)
    features, label, _ = _data()
    skops.io.dump(LogisticRegression().fit(features, label), path)
    with pytest.raises(DataError, match="do not belong together"):
        ForestDetector.load(path)
    skops.io.dump(Stranger(), path)
    with pytest.raises(DataError, match="not trusted"):
        ForestDetector.load(path)
    with pytest.raises(DataError, match=r"none\.skops"):
        ForestDetector.load(tmp_path / "none.skops")
