"""The measured volume follows the true one of the simulated cohort, and with it age."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from normscape.config import DataConfig
from normscape.datasets.patches import INTENSITY_RANGE_SD, open_patches
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.simulated import simulate_prepared
from normscape.scoring.maps import unit_volume
from normscape.scoring.ventricles import fluid_levels, ventricle_region, ventricle_volume_ml


def test_measured_against_true_volume(tmp_path: Path) -> None:
    """Ten simulated brains: who has larger ventricles is found to, and by about as much."""
    cohort = simulate_prepared(tmp_path / "cohort", subjects=10, seed=3, spacing_mm=3)
    source = open_patches(DataConfig(source="brain", spacing_mm=3.0, patches_per_subject=2), 8, cohort=cohort, seed=0)
    region = ventricle_region(cohort)
    assert region is not None
    assert 30 < region.sum() * 0.027 < 400  # millilitres
    assert not (region & (cohort.atlas_mask == 0)).any()
    fluid, grey = levels = fluid_levels(source.contrast.parameters)
    assert -3 < fluid < grey - 0.5 < 0.5
    true = np.array(cohort.subjects["ventricle_volume_ml"].to_pylist())
    measured = np.array(
        [
            ventricle_volume_ml(unit_volume(source, scan) * INTENSITY_RANGE_SD, region & (cohort.masks[scan] > 0), levels, 3.0)
            for scan in range(len(cohort))
        ]
    )
    assert np.corrcoef(np.log(true), np.log(measured))[0, 1] > 0.85
    assert 0.3 < np.polyfit(true, measured, 1)[0] < 1.5


def test_shares_of_fluid() -> None:
    """Levels are means over the scans; fluid counts whole, grey matter not, half-way a half, and nothing outside the region."""
    parameters = torch.tensor([[-2.0, -0.4, 1.0, 0.1, 0.1, 0.1], [-1.6, -0.4, 1.0, 0.1, 0.1, 0.1]])
    levels = fluid_levels(parameters)
    assert levels == pytest.approx((-1.8, -0.4))
    z = np.array([[[-3.0, -1.8, -1.1, -0.4, 1.0, -3.0]]])
    region = np.array([[[True, True, True, True, True, False]]])
    assert ventricle_volume_ml(z, region, levels, 10.0) == pytest.approx(2.5)


def test_other_atlases_have_no_region(prepared_cohort: Callable[..., PreparedCohort]) -> None:
    """Where the atlas's ventricles are not known, nothing is measured."""
    assert ventricle_region(prepared_cohort()) is None
