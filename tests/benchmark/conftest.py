"""Small sizes for the tests of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from normscape.benchmark import data_cases, work


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One simulated cohort for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small matrix product, a coarse scan, few subjects."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))
    monkeypatch.setattr(work, "PRODUCT_SIDES", {"cpu": 64})
    monkeypatch.setattr(data_cases, "SCAN_SPACING_MM", 4.0)
    monkeypatch.setattr(data_cases, "PATCH_SUBJECTS", 6)
