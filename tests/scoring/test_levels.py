"""Training rows at the level of unseen normal images: the moments fit, nothing else moves, and a forest gains by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from normscape.errors import DataError
from normscape.scoring.features import Projections
from normscape.scoring.forest import ForestDetector
from normscape.scoring.levels import levelled_features

NAMES = ["length/other/4", "angle_degrees", "residual_l1", "residual_shift"]
ROWS = 200


def _table(*, calibration: bool = True) -> Projections:
    """Three splits of as many rows, half of them anomalous; residuals of subjects outside training are three times as large."""
    random = np.random.default_rng(0)
    splits = ["train", "test", "calibration"] if calibration else ["train", "test"]
    split = np.repeat(splits, ROWS)
    label = np.tile([0, 1], len(split) // 2)
    unseen = split != "train"
    residual = np.exp(random.normal(0.0, 0.3, len(split)) + 0.9 * label) * np.where(unseen, 3.0, 1.0)
    columns = {
        "length/other/4": random.uniform(1.0, 2.0, len(split)) + unseen,
        "angle_degrees": random.uniform(0.0, 90.0, len(split)),
        "residual_l1": residual,
        "residual_shift": random.normal(0.0, 1.0, len(split)) + 5.0 * unseen,
    }
    subject = np.array([f"{name}-{i % 10}" for i, name in enumerate(split)])
    return Projections(Path("projections.parquet"), np.arange(len(split)), subject, split, label, columns)


def test_normal_training_rows_get_the_moments_of_unseen_normal_ones() -> None:
    table = _table()
    features = levelled_features(table, NAMES)
    train, unseen = (table.split == name for name in ("train", "calibration"))
    normal = table.label == 0
    logs = features.copy()
    logs[:, [0, 2]] = np.log(logs[:, [0, 2]])  # these two are positive throughout
    for j in (0, 2, 3):
        np.testing.assert_allclose(logs[train & normal, j].mean(), logs[unseen & normal, j].mean(), rtol=1e-9)
        np.testing.assert_allclose(logs[train & normal, j].std(), logs[unseen & normal, j].std(), rtol=1e-9)


def test_conditions_and_rows_outside_training_stay_as_they_are() -> None:
    table = _table()
    before, after = table.features(NAMES), levelled_features(table, NAMES)
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    np.testing.assert_array_equal(before[table.split != "train"], after[table.split != "train"])
    assert not np.array_equal(before[table.split == "train"], after[table.split == "train"])


def test_labels_of_anomalous_calibration_rows_change_nothing() -> None:
    table = _table()
    before = levelled_features(table, NAMES)
    for name in NAMES:
        table.columns[name][(table.split == "calibration") & (table.label == 1)] += 7.0
    train = table.split == "train"
    np.testing.assert_array_equal(before[train], levelled_features(table, NAMES)[train])


def test_a_constant_column_is_left_alone() -> None:
    table = _table()
    table.columns["residual_l1"][table.split == "train"] = 2.0
    np.testing.assert_array_equal(levelled_features(table, NAMES)[:, 2], table.columns["residual_l1"])


def test_a_forest_on_levelled_rows_ranks_unseen_subjects_better() -> None:
    """Without it nearly all unseen normal rows lie beyond the forest's thresholds."""
    table = _table()
    train, test = table.split == "train", table.split == "test"
    areas = []
    for features in (table.features(NAMES), levelled_features(table, NAMES)):
        forest = ForestDetector(max_depth=(4,), n_estimators=(50,)).fit(features[train], table.label[train], table.subject[train])
        areas.append(float(roc_auc_score(table.label[test], forest.decision_function(features[test]))))
    assert areas[1] > areas[0] + 0.05


def test_without_calibration_rows_it_says_so() -> None:
    with pytest.raises(DataError, match=r"scoring\.level is calibration, and there are no calibration rows"):
        levelled_features(_table(calibration=False), NAMES)
