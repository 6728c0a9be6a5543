"""Evidence added up: by hand, beyond all normal values, and one vote for each kind."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.scoring.evidence import EvidenceDetector, kind_of


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("residual_l1", "pixels"),
        ("level/residual_patch8", "pixels"),
        ("residual_flat8", "flat"),
        ("residual_feature3_worst", "feature"),
        ("residual_discriminator0", "discriminator"),
        ("level/residual_condition_age", "condition"),
        ("residual_conditions_z8_flat", "conditions"),
        ("residual_atlas_z4", "atlas"),
        ("residual_encoded_z", "encoded"),
        ("residual_output_identity", "output"),
        ("length/other/8", "length"),
        ("density/identity", "density"),
        ("level/masked/under_l1", "masked"),
        ("level/spread/images", "spread"),
    ],
)
def test_kinds(column: str, kind: str) -> None:
    assert kind_of(column) == kind


def test_scores_by_hand() -> None:
    """Among 0..99, of one kind: 80 is reached by 20, p = 21/101; the values beyond the 95 % quantile have an exponential tail."""
    normal = np.arange(100.0)[:, None]
    detector = EvidenceDetector(["residual_l1"]).fit(normal)
    start = np.quantile(normal, 0.95)
    excess = np.mean([x - start for x in range(100) if x > start])
    found = detector.decision_function(np.array([[80.0], [150.0], [-5.0]]))
    np.testing.assert_allclose(found, [-np.log(21 / 101), -np.log(0.05) + (150 - start) / excess, 0.0], atol=1e-12)


def test_values_beyond_all_normal_ones_still_differ() -> None:
    detector = EvidenceDetector(["a", "b"]).fit(np.random.default_rng(0).normal(size=(200, 2)))
    assert (np.diff(detector.decision_function(np.linspace(-3, 40, 50)[:, None] * np.ones((1, 2)))) >= 0).all()
    assert detector.decision_function(np.array([[20.0, 20.0]])) < detector.decision_function(np.array([[21.0, 20.0]]))


def test_copies_of_a_column_do_not_outvote_another_kind() -> None:
    """Nine residuals of the same kind, which say the same, weigh as much as one."""
    random = np.random.default_rng(1)
    pixels, density = random.normal(size=(2, 500))
    one = EvidenceDetector(["residual_l1", "density/identity"]).fit(np.stack([pixels, density], 1))
    names = [*(f"residual_l{i}" for i in range(9)), "density/identity"]
    many = EvidenceDetector(names).fit(np.stack([*[pixels] * 9, density], 1))
    row = np.array([[2.0, 1.0]])
    assert many.kinds == ("pixels", "density")
    np.testing.assert_allclose(many.decision_function(np.array([[2.0] * 9 + [1.0]])), one.decision_function(row), rtol=1e-12)


def test_constant_columns_and_wrong_widths() -> None:
    detector = EvidenceDetector(["a"]).fit(np.ones((20, 1)))
    assert np.isfinite(detector.decision_function(np.array([[1.0], [2.0]]))).all()
    for rows in (np.zeros((0, 1)), np.zeros((5, 2))):
        with pytest.raises(ValueError, match=r"expected normal rows \(n, 1\)"):
            EvidenceDetector(["a"]).fit(rows)
