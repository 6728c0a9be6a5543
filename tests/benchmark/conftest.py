"""Small sizes for the tests of the benchmark."""

from __future__ import annotations

import pytest

from normscape.benchmark import data_cases, work


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small matrix product and a coarse scan: both are there in every run."""
    monkeypatch.setattr(work, "PRODUCT_SIDES", {"cpu": 64})
    monkeypatch.setattr(data_cases, "SCAN_SPACING_MM", 4.0)
