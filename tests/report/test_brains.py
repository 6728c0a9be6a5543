"""The page's part on whole brains: there when the stage is, gone when it is not; pictures show what the maps hold."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from normscape.config import Config
from normscape.report import brain_scenes
from normscape.report.brain_scenes import VIEWER, brain_viewer, case_name, case_peak, target
from normscape.report.brains import outlined, overlay
from normscape.report.page import build_page
from normscape.report.source import Source
from normscape.report.viewer import Scene, Viewer
from normscape.scoring.maps import REGION_SCHEMA
from normscape.stages.scan import REGIONS_NAME
from tests.report.conftest import build_brains


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """What the stage leaves, see `build_brains`."""
    return build_brains(tmp_path / "brains")


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


def test_the_viewer_shows_test_scans_with_all_their_layers(
    stage: Path, toy_brain_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The scan with the blot comes first, the blot is where the two scans differ, and the row of its region points to it."""
    config = toy_brain_config(brains={"ages": [30, 70]})
    view = brain_viewer(Source(config, {"brains": stage}))
    assert view is not None
    assert [scene.name for scene in view.scenes] == ["scan-1_blot", "scan-1"]
    assert [layer.role for layer in view.scenes[0].layers] == ["scan", "reconstruction", "anomaly", "lesion"]
    assert [layer.role for layer in view.scenes[1].layers] == ["scan", "reconstruction", "anomaly"]
    assert view.scenes[0].layers[2].low == 0.55
    assert view.scenes[0].place_mm == (12.0, 12.0, 12.0)
    blot = gzip.decompress(base64.b64decode(view.scenes[0].layers[3].data))[352:]
    assert sum(value > 0 for value in blot) == 27
    text = build_page(config, {"brains": stage}, tmp_path).read_text(encoding="utf-8")
    assert 'data-viewer="brain-viewer" data-scene="scan-1_blot" data-mm="12.00,12.00,12.00"' in text
    assert "Copyright (c) 2021, Niivue" in text
    for path in (stage / "maps").glob("*.nii.gz"):
        path.unlink()
    text = build_page(config, {"brains": stage}, tmp_path).read_text(encoding="utf-8")
    assert "data-viewer" not in text
    assert len(text) < 1_500_000  # no viewer, no library


def test_scenes_that_do_not_fit_into_the_page_are_left_out(
    stage: Path, toy_brain_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(toy_brain_config(), {"brains": stage})
    view = brain_viewer(source)
    assert view is not None
    first, second = (sum(len(layer.data) for layer in scene.layers) for scene in view.scenes)
    for most, names in ((first + second - 1, ["scan-1_blot"]), (first - 1, ["scan-1"])):
        monkeypatch.setattr(brain_scenes, "MOST_CHARACTERS", most)
        view = brain_viewer(source)
        assert [scene.name for scene in view.scenes if view] == names
    monkeypatch.setattr(brain_scenes, "MOST_CHARACTERS", 0)
    assert brain_viewer(source) is None


def test_a_peak_in_the_middle_of_the_head_is_a_place_like_any_other(stage: Path, toy_brain_config: Callable[..., Config]) -> None:
    """x of 0 mm is a place; only what is not known is none."""
    source = Source(toy_brain_config(), {"brains": stage})
    for name, x in (("midline", 0.0), ("unknown", None)):
        folder = stage / "cases" / name
        folder.mkdir(parents=True)
        row = dict.fromkeys(REGION_SCHEMA.names, 7.0) | {"scan_peak_x_mm": x}
        pyarrow.csv.write_csv(pa.Table.from_pylist([row], schema=REGION_SCHEMA), folder / REGIONS_NAME)
    view = Viewer(VIEWER, [Scene(case_name(name), name, []) for name in ("midline", "unknown")])
    found = [case_peak(source, name) for name in ("midline", "unknown")]
    assert found[0] == (0.0, 7.0, 7.0)
    assert found[1] is not None
    shown = [target(view, case_name(name), peak, "") for name, peak in zip(("midline", "unknown"), found, strict=True) if peak]
    assert shown[0] is not None
    assert shown[1] is None


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
