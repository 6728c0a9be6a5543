"""The pool of forest and network: the mean of their log odds, whatever the forest's trees say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from normscape.errors import DataError
from normscape.scoring.forest import ForestDetector
from normscape.scoring.pooled import PooledForest, mean_log_odds


def _rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    label = np.arange(60) % 2
    return random.normal(size=(60, 4)) + label[:, None], label, np.repeat(np.arange(12), 5).astype(str)


def test_forests_that_are_sure_leave_finite_odds() -> None:
    """Where all trees agree, the network still has a say."""
    odds = mean_log_odds(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.0, 2.0]), 300)
    np.testing.assert_allclose(odds, [(1 - np.log(599)) / 2, 0.0, (2 + np.log(599)) / 2], rtol=1e-9)


def test_it_reads_the_last_column_as_log_odds(tmp_path: Path) -> None:
    """Fitted alone it is the forest on the other columns, pooled; its file and the forest's bring it back, threshold and all."""
    features, label, subject = _rows()
    settings = {"max_depth": (3,), "n_estimators": (12,), "seed": 5}
    forest = ForestDetector(**settings).fit(features[:, :3], label, subject)
    pooled = PooledForest(ForestDetector(**settings)).fit(features, label, subject)
    probability = forest.decision_function(features[:, :3]).clip(0.5 / 12, 1 - 0.5 / 12)
    expected = expit((logit(probability) + features[:, 3]) / 2)
    np.testing.assert_allclose(pooled.decision_function(features), expected, rtol=1e-12)
    assert pooled.threshold_ == 0.5
    pooled.calibrate(features, label)
    assert (pooled.predict(features) == label).mean() >= ((expected > 0.5) == label).mean()
    pooled.save(tmp_path / "pooled.json")
    again = PooledForest.load(tmp_path / "pooled.json", forest)
    np.testing.assert_array_equal(again.predict(features), pooled.predict(features))
    (tmp_path / "pooled.json").write_text("{}")
    with pytest.raises(DataError, match=r"pooled\.json: expected the threshold"):
        PooledForest.load(tmp_path / "pooled.json", forest)
