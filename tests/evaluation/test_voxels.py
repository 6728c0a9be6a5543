"""Golden numbers of maps against the anomaly in them."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.evaluation.voxels import LEAST_ML, against_truth, at_threshold, top_mean

SIDE = 16


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map, two lesions of 27 and 8 voxels, and the brain, which is everything but the first slice."""
    truth = np.zeros((SIDE,) * 3, bool)
    truth[2:5, 2:5, 2:5] = True
    truth[10:12, 10:12, 10:12] = True
    brain = np.ones_like(truth)
    brain[0] = False
    return np.zeros(truth.shape, np.float32), truth, brain


def test_a_perfect_map() -> None:
    volume, truth, brain = scene()
    volume[truth] = 1.0
    found = at_threshold(volume, truth, brain, 0.5, 2.0)
    assert found == {"dice": 1.0, "lesions": 2.0, "found": 2.0, "false_positives": 0.0, "flagged": 0.0}
    areas = against_truth(volume[brain], truth[brain])
    assert areas["voxel_auprc"] == areas["ceiling_dice"] == 1.0
    assert areas["voxel_prevalence"] == pytest.approx(35 / brain.sum())


def test_half_a_lesion_and_a_false_alarm() -> None:
    """12 of 35 voxels right, 16 wrong in one part of 0.128 ml, and one of a single voxel, too small to count."""
    volume, truth, brain = scene()
    volume[2:5, 2:4, 2:4] = 1.0
    volume[13:15, 1:3, 10:14] = 1.0
    volume[8, 14, 1] = 1.0
    volume[0, 0, 0] = 1.0  # outside of the brain
    found = at_threshold(volume, truth, brain, 0.5, 2.0)
    assert found["dice"] == pytest.approx(2 * 12 / (12 + 16 + 1 + 35))
    assert (found["lesions"], found["found"], found["false_positives"]) == (2.0, 1.0, 1.0)
    assert found["flagged"] == pytest.approx(17 / (brain & ~truth).sum())
    assert 16 * 8 / 1000 >= LEAST_ML > 8 / 1000


def test_a_scan_as_it_is_has_no_dice() -> None:
    volume, truth, brain = scene()
    volume[13:15, 1:3, 10:14] = 1.0
    found = at_threshold(volume, np.zeros_like(truth), brain, 0.5, 2.0)
    assert found["dice"] is None
    assert found["lesions"] is None
    assert found["false_positives"] == 1.0


def test_nothing_above_the_threshold() -> None:
    volume, truth, brain = scene()
    found = at_threshold(volume, truth, brain, 0.5, 2.0)
    assert (found["dice"], found["found"], found["false_positives"], found["flagged"]) == (0.0, 0.0, 0.0, 0.0)


def test_the_ceiling_is_the_best_dice_of_any_threshold() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(size=400) < 0.1
    values = (random.normal(size=400) + 1.5 * truth).astype(np.float32)
    best = max(2 * (truth & (values >= t)).sum() / (truth.sum() + (values >= t).sum()) for t in values)
    assert against_truth(values, truth)["ceiling_dice"] == pytest.approx(best)


def test_a_scans_score_is_the_mean_of_its_most_abnormal_millilitre() -> None:
    """125 voxels of 2 mm."""
    values = np.arange(1000, dtype=np.float32)
    assert top_mean(values, 2.0) == pytest.approx(np.arange(875, 1000).mean())
    assert top_mean(values[:50], 2.0) == pytest.approx(values[:50].mean())
