"""Flags of single scans, and scans that stand out among all."""

from __future__ import annotations

import numpy as np
import pytest

from normscape.preprocessing.quality import flags, outlying
from normscape.preprocessing.settings import PreprocessingSettings

GOOD = {"brain_volume_ml": 1400.0, "atlas_dice": 0.96, "stretch_min": 0.95, "stretch_max": 1.1, "cut_off": 0.0}


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("brain_volume_ml", 800.0, "unusual brain volume"),
        ("brain_volume_ml", 2100.0, "unusual brain volume"),
        ("atlas_dice", 0.9, "low overlap with the atlas"),
        ("stretch_max", 1.6, "stretched far"),
        ("stretch_min", 0.6, "stretched far"),
        ("cut_off", 0.02, "cut off at the border of the scan"),
    ],
)
def test_each_flag(name: str, value: float, flag: str) -> None:
    assert flags(GOOD, PreprocessingSettings()) == ()
    assert flags(GOOD | {name: value}, PreprocessingSettings()) == (flag,)


def test_outlying_values() -> None:
    """One far off among many alike; few values, equal values and the high side of a one-sided measure have none."""
    values = [*np.random.default_rng(0).normal(1400, 100, 60), 2300.0]
    assert outlying(values) == [False] * 60 + [True]
    assert outlying(values, low_only=True) == [False] * 61
    assert outlying([1.0, 1.0, 9.0]) == [False] * 3
    assert outlying([1.0] * 20 + [2.0]) == [False] * 21
