"""The page's part on whole brains: there when the stage is, gone when it is not; pictures show what the maps hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from normscape.config import Config
from normscape.report.brains import outlined, overlay
from normscape.report.page import build_page
from normscape.scoring.maps import REGION_SCHEMA
from normscape.stages.brains import MAP_SCHEMA, PANELS, VENTRICLE_SCHEMA


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """What the stage leaves: two maps of one scan, two generated identities at two ages."""
    folder = tmp_path / "brains"
    folder.mkdir()
    random = np.random.default_rng(0)
    np.save(folder / "generated.npy", random.integers(1, 255, (2, 2, 1, 20, 40), dtype=np.uint8))
    np.save(folder / "maps.npy", random.integers(0, 255, (2, len(PANELS), 1, 20, 60), dtype=np.uint8))
    shared = {"subject": "p-1", "session": "1", "age_years": 61.0, "peak_score": 0.91, "mean_score": 0.3, "patches": 352}
    shared |= {"covered": 0.998, "seconds": 61.0}
    blot = {"blot_radius_mm": 6.5, "blot_contrast": 0.7, "peak_in_blot": 1.0, "anomaly_auroc": 0.83, "residual_auroc": 0.71}
    maps = [shared | {"name": "scan-1", "blot": 0}, shared | {"name": "scan-1_blot", "blot": 1} | blot]
    ages = [
        {"kind": "generated", "identity": str(i), "age_years": age, "volume_ml": age / 3 + i}
        for i in (1, 2)
        for age in (30.0, 70.0)
    ]
    ages += [{"kind": "scan", "identity": "p-1 1", "age_years": 61.0, "volume_ml": 21.0}]
    region: dict[str, Any] = dict.fromkeys(REGION_SCHEMA.names, 12.0) | {"name": "scan-1_blot", "peak_score": 0.91}
    schema = REGION_SCHEMA.insert(0, pa.field("name", pa.string()))
    for name, rows, kind in (("maps", maps, MAP_SCHEMA), ("ventricles", ages, VENTRICLE_SCHEMA), ("regions", [region], schema)):
        pq.write_table(pa.Table.from_pylist(rows, schema=kind), folder / f"{name}.parquet")
    (folder / "slices.json").write_text(json.dumps({"panels": PANELS, "threshold": 0.55, "excess_shown": 4.0}))
    growth = {"ventricle_growth_ml": 13.3, "ventricle_growth_ml_low": 12.9, "ventricle_growth_ml_high": 13.8}
    (folder / "manifest.json").write_text(json.dumps({"metrics": growth, "seconds": 120.0}))
    return folder


def test_the_section_shows_what_the_stage_left(stage: Path, toy_brain_config: Callable[..., Config], tmp_path: Path) -> None:
    """Figures 12 and 13, ventricles and maps, the tables' numbers and the headline."""
    config = toy_brain_config(brains={"ages": [30, 70]})
    text = build_page(config, {"brains": stage}, tmp_path).read_text(encoding="utf-8")
    assert '<section id="brains">' in text
    assert 'href="#brains"' in text
    for found in ("6.5 mm, contrast 0.70", "0.830", "0.710", "99.8", "+13.3 ml", "+12.9 to +13.8 ml", "12, 12, 12"):
        assert found in text, found
    assert "brains/" not in text.split('<section id="brains">')[1].split("</section>")[0]  # nothing is called missing
    names = {"figure-12-generated-brains", "ventricles", "figure-13-reconstruction", "anomaly-maps"}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} >= names
    assert Image.open(tmp_path / "figures" / "anomaly-maps.png").width > 500


def test_what_is_missing_is_said(stage: Path, toy_brain_config: Callable[..., Config], tmp_path: Path) -> None:
    """Files that are gone leave sentences; without the stage there is no section at all."""
    for path in [*stage.glob("*.npy"), stage / "maps.parquet", stage / "regions.parquet"]:
        path.unlink()
    part = (
        build_page(toy_brain_config(), {"brains": stage}, tmp_path).read_text(encoding="utf-8").split('<section id="brains">')[1]
    )
    assert "brains/maps.npy" in part
    assert "brains/maps.parquet" in part
    assert "No region of these maps exceeds the threshold" in part
    assert 'id="brains"' not in build_page(toy_brain_config(), {}, tmp_path).read_text(encoding="utf-8")


def test_overlay_and_outline() -> None:
    """Below the threshold the slice stays grey, above it turns from red to yellow; an outline is the border of its area."""
    grey, score = np.full((6, 6), 100, np.uint8), np.zeros((6, 6))
    score[2:5, 2:5] = [[0.6], [0.8], [1.0]]
    shown = overlay(grey, score, 0.5).astype(int)
    assert (shown[:2] == 100).all()
    assert (shown[2:5, 2:5, 0] > 180).all()
    assert shown[2, 2, 1] < shown[3, 2, 1] < shown[4, 2, 1]
    drawn = outlined(shown.astype(np.uint8), score > 0)
    changed = (drawn != shown).any(axis=-1)
    assert changed[2:5, 2:5].sum() == changed.sum() == 8
