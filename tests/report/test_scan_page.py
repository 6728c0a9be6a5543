"""The page of one scored scan in a real browser: its volumes are shown, and the rows of its table move the crosshair."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from normscape.datasets.cohort import Scan
from normscape.report.scan_page import build_scan_page
from normscape.scoring.maps import ScanMaps, regions
from tests.browser import barriers, chromium, complaints, requested, visit, wait

AFFINE = np.array([[0.0, 0.0, 2.0, -20.0], [0.0, 2.0, 0.0, -20.0], [2.0, 0.0, 0.0, -20.0], [0.0, 0.0, 0.0, 1.0]])


def scored(folder: Path) -> Any:
    """A ball as a scan with two abnormal places, at 2 mm; their voxels (z, y, x) are 10, 8, 14 and 12, 13, 6."""
    z, y, x = np.mgrid[:22, :22, :22]
    mask = (z - 10.5) ** 2 + (y - 10.5) ** 2 + (x - 10.5) ** 2 < 100
    image = np.where(mask, np.sin(x / 3) * 0.8 + 0.05, 0).astype(np.float32)
    score = np.zeros(mask.shape, np.float32)
    for peak, (at_z, at_y, at_x) in ((0.9, (10, 8, 14)), (0.7, (12, 13, 6))):
        score += (peak * np.exp(-((z - at_z) ** 2 + (y - at_y) ** 2 + (x - at_x) ** 2) / 6)).astype(np.float32)
    score = np.where(mask, score.clip(0, 1), 0)
    zero = np.zeros_like(score)
    maps = ScanMaps(image, image * 0.9, score, zero, zero, mask, patches=12)
    found = regions(score, 0.5, 2.0, AFFINE, to_scan=lambda points: points)
    prepared = SimpleNamespace(measured={"brain_volume_ml": 33.0, "atlas_dice": 0.9})
    return SimpleNamespace(
        scan=Scan(Path("ball.nii.gz"), "ball", age_years=50.0), prepared=prepared, maps=maps, mask=mask.astype(np.uint8),
        regions=found, threshold=0.5, notes=(), p_values=(), folder=folder,
    )  # fmt: skip


def test_a_row_of_the_table_moves_the_crosshair(tmp_path: Path) -> None:
    """Scan, reconstruction and map; the second row goes to the second peak, and nothing is wrong or asked of a network."""
    page = build_scan_page(scored(tmp_path), AFFINE)
    with chromium(tmp_path / "profile") as driver:
        visit(driver, page)
        element = driver.find_element("id", "brain-viewer")
        wait(driver, lambda _: element.get_attribute("data-state") == "ready", "the viewer never got ready")
        assert [legend.text for legend in element.find_elements("tag name", "legend")] == [
            "Scan",
            "Reconstruction",
            "Anomaly map",
        ]
        assert element.get_attribute("data-place") == "8.0,-4.0,0.0"
        driver.find_elements("css selector", "tr[data-viewer] button")[1].click()
        said = driver.find_element("id", "brain-viewer-place")
        wait(driver, lambda _: said.text.startswith("Region 2, peak 0.700: x −8, y 6, z 4 mm"), "the crosshair did not move")
        assert barriers(driver) == []
        assert complaints(driver) == []
        assert requested(driver) == [page.as_uri()]
