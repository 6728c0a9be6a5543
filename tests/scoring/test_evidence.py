"""Evidence added up: by hand, and beyond all normal values."""

from __future__ import annotations

import numpy as np
import pytest

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
    assert detector.decision_function(np.array([[20.0, 20.0]])) < detector.decision_function(np.array([[21.0, 20.0]]))


def test_features_add_up() -> None:
    """The score of two features is the sum of the scores of each."""
    normal = np.random.default_rng(1).normal(size=(300, 2))
    rows = np.array([[0.3, 2.5], [4.0, -1.0]])
    parts = [EvidenceDetector().fit(normal[:, i : i + 1]).decision_function(rows[:, i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(EvidenceDetector().fit(normal).decision_function(rows), parts[0] + parts[1])


def test_constant_columns_and_wrong_widths() -> None:
    detector = EvidenceDetector().fit(np.ones((20, 1)))
    assert np.isfinite(detector.decision_function(np.array([[1.0], [2.0]]))).all()
    with pytest.raises(ValueError, match="no normal row"):
        EvidenceDetector().fit(np.zeros((0, 1)))
    with pytest.raises(ValueError, match=r"expected features \(N, 1\)"):
        detector.decision_function(np.zeros((5, 2)))
