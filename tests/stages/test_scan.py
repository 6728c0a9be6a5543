"""A scan in another pose: its map lies on its own grid, and the peak lies where the scan is odd."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from normscape.config import Config
from normscape.datasets.cohort import Scan
from normscape.errors import DataError, UserError
from normscape.preprocessing.atlas import LPS
from normscape.report.scan_page import build_scan_page
from normscape.scoring.conformal import Calibration, Conformal
from normscape.scoring.maps import Rated, ScanMaps
from normscape.stages.scan import ScanModel, describe, scan_model, score_scan, stripped_by
from normscape.stages.scan_calibration import grid_settings, p_values, scan_scores

BLOB_RADIUS_MM = 16.0


def test_the_map_lies_right(
    scan_path: Path, blob_mm: np.ndarray, known: sitk.AffineTransform, model: ScanModel, tmp_path: Path
) -> None:
    """The map is on the scan's own grid; its peak, and the first region's in both spaces, lie in the ball."""
    steps: list[str] = []
    result = score_scan(
        Scan(scan_path, "odd", age_years=63.0), model, tmp_path, progress=lambda step, done, total: steps.append(step)
    )  # fmt: skip
    scan, found = sitk.ReadImage(str(scan_path)), sitk.ReadImage(str(tmp_path / "anomaly_map.nii.gz"))
    assert found.GetSize() == scan.GetSize()
    np.testing.assert_allclose(found.GetDirection(), scan.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(found.GetOrigin(), scan.GetOrigin(), atol=1e-3)
    values = sitk.GetArrayFromImage(found)
    peak = [int(i) for i in np.unravel_index(values.argmax(), values.shape)][::-1]
    assert np.linalg.norm(np.array(found.TransformIndexToPhysicalPoint(peak)) - blob_mm) < BLOB_RADIUS_MM
    outside = sitk.GetArrayFromImage(scan) == 0
    assert (values[outside] > 0).mean() < 0.05
    with (tmp_path / "regions.csv").open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    there = np.array([float(first[f"scan_peak_{axis}_mm"]) for axis in "xyz"]) @ LPS
    assert np.linalg.norm(there - blob_mm) < BLOB_RADIUS_MM
    in_atlas = np.array([float(first[f"atlas_peak_{axis}_mm"]) for axis in "xyz"]) @ LPS
    assert np.linalg.norm(np.array(known.TransformPoint(in_atlas.tolist())) - there) < 8.0
    assert steps[0] == "preprocess"
    assert steps[-1] == "patches"
    residual = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "residual_map.nii.gz")))
    assert residual.max() > 4.0  # standard deviations, of black against white

    page = build_scan_page(result, model.atlas.affine)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "Most abnormal regions" in text
    assert "odd.nii.gz" in text
    assert (tmp_path / "overlay.png").stat().st_size > 1000
    assert any("Simulated" in note for note in result.notes)


def test_a_model_of_whole_scans(
    scan_path: Path, blob_mm: np.ndarray, model: ScanModel, toy_brain_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Prepared at 4 mm as its cohort was, seen as one image at 8 mm: one score, and maps on the scan's own grid."""
    described = {
        "name": "some cohort",
        "source": "table",
        "settings": {"spacing_mm": 4, "strip": "none", "bias_correction": False},
    }
    (tmp_path / "cohort.json").write_text(json.dumps(described))
    config = toy_brain_config(
        data={"patches": "whole", "spacing_mm": 8.0, "background": "constant", "root": str(tmp_path)},
        attributes=toy_brain_config().model_dump()["attributes"][:2],
        augmentation={"noise_std_max": 0.1},
        generator={"channels": [8] * 4},
        discriminator={"channels": [8] * 4},
        image_size=32,
    )

    class Whole(type(model.rater)):  # type: ignore[misc]
        def rate(self, images: torch.Tensor, values: Any, masks: torch.Tensor | None = None) -> Rated:
            return super().rate(images, values, masks)._replace(gradient=(images + 1) * masks)

    whole = scan_model(config, Whole(), 0.6)
    assert (whole.atlas.spacing_mm, whole.grid.spacing_mm) == (4.0, 8.0)
    assert min(whole.grid.mask.shape) >= 32
    result = score_scan(Scan(scan_path, "odd", age_years=63.0), whole, tmp_path / "scored")
    assert result.maps.patches == 1
    assert np.unique(result.maps.score[result.maps.covered]).size == 1
    assert describe(result)["score"] == pytest.approx(result.maps.score.max(), abs=1e-4)
    scan = sitk.ReadImage(str(scan_path))
    for name in ("anomaly_map", "gradient_map"):
        found = sitk.ReadImage(str(tmp_path / "scored" / f"{name}.nii.gz"))
        assert found.GetSize() == scan.GetSize()
        values = sitk.GetArrayFromImage(found)
        peak = [int(i) for i in np.unravel_index(values.argmax(), values.shape)][::-1]
        assert np.linalg.norm(np.array(found.TransformIndexToPhysicalPoint(peak)) - blob_mm) < BLOB_RADIUS_MM
    text = build_scan_page(result, whole.grid.affine).read_text(encoding="utf-8")
    assert "the score of the scan" in text
    assert "gradient_map.nii.gz" in text
    assert grid_settings(config) == {"steps": config.projection.steps}
    maps = replace(result.maps, lowest_p=0.25)
    [one] = p_values(maps, config, None, 7)
    assert one.sentence.startswith(
        "p = 0.25: the score of the scan, by its rank among the images of 7 healthy subjects and its own"
    )
    odd = config.model_copy(update={"data": config.data.model_copy(update={"spacing_mm": 6.0})})
    with pytest.raises(DataError, match=r"prepared with voxels of 4 mm, and data\.spacing_mm \(6\) is no multiple"):
        scan_model(odd, Whole(), 0.6)


def test_a_scan_that_is_abnormal_all_over_gets_a_word(scan_path: Path, model: ScanModel, tmp_path: Path) -> None:
    """As a scan of another scanner is; one with a lesion alone is not."""
    scan = Scan(scan_path, "odd", age_years=63.0)
    for threshold, said in ((0.0, True), (1e9, False)):
        result = score_scan(scan, replace(model, threshold=threshold), tmp_path / str(said))
        assert any("of the brain is called abnormal" in note for note in result.notes) is said
        covered = result.maps.anomaly[result.maps.covered]
        assert result.maps.share_above(0.5) == pytest.approx((covered > 0.5).mean())


def test_a_scan_is_compared_with_healthy_scans(scan_path: Path, model: ScanModel, tmp_path: Path) -> None:
    """The ball is brighter than anything in four healthy scans, the mean is not: p is 1/5, and 4/5, and the page says so. Scans
    that were mapped with another stride do not count."""
    scan = Scan(scan_path, "odd", age_years=63.0)
    plain = score_scan(scan, model, tmp_path / "plain")
    assert plain.p_values == ()
    assert "healthy subject looks as abnormal" not in build_scan_page(plain, model.atlas.affine).read_text(encoding="utf-8")
    scores = scan_scores(plain.maps)
    people = np.arange(4)
    peaks = scores["place"] * np.array([0.5, 0.6, 0.7, 0.9])
    means = scores["scan"] * np.array([0.9, 1.1, 1.2, 1.3])
    made = {"place": Conformal.fit(peaks, people), "scan": Conformal.fit(means, people)}
    healthy = Calibration(made, grid_settings(model.config))
    found = score_scan(scan, replace(model, healthy_scans=healthy), tmp_path / "compared")
    assert [(one.about, one.p, one.subjects) for one in found.p_values] == [
        ("most abnormal place", pytest.approx(0.2), 4),
        ("scan as a whole", pytest.approx(0.8), 4),
    ]
    assert found.p_values[0].sentence == (
        "p = 0.2: the highest value of the map, against 4 healthy scans; with 4 subjects p cannot be below 1/5 = 0.2."
    )
    assert describe(found)["p_values"][0] == {"about": "most abnormal place", "p": 0.2, "subjects": 4}
    text = build_scan_page(found, model.atlas.affine).read_text(encoding="utf-8")
    assert "with 4 subjects p cannot be below 1/5 = 0.2" in text
    other = replace(healthy, settings=dict(healthy.settings) | {"stride": 3})
    assert p_values(found.maps, model.config, other, 0) == []


def test_the_most_abnormal_patch_without_healthy_scans(model: ScanModel) -> None:
    """p of the patch alone, with a plain word that it is none of the scan; and how many patches are unusual."""
    volume = np.zeros((2, 2, 2), np.float32)
    maps = ScanMaps(volume, volume, volume, volume, volume, volume > 0, 40, 0.0125, 0.075)
    [one] = p_values(maps, model.config, None, 7)
    assert (one.p, one.subjects) == (0.0125, 7)
    assert "its rank among all patches of this scan and of 7 healthy subjects" in one.sentence
    assert "7.5% of the patches have a p of at most 5%" in one.sentence
    assert "it is no p-value of the scan" in one.sentence
    assert p_values(maps, model.config, None, 0) == []
    assert p_values(replace(maps, lowest_p=float("nan")), model.config, None, 7) == []


def test_what_cannot_be_scored(scan_path: Path, model: ScanModel, tmp_path: Path) -> None:
    """No age, a file that is no scan, four dimensions, a brain that is not one: one message each, naming the file."""
    with pytest.raises(DataError, match=r"odd\.nii\.gz: the age is not known.*Give --age"):
        score_scan(Scan(scan_path, "odd"), model, tmp_path)
    blind = replace(model, rater=SimpleNamespace(rate=model.rater.rate))
    with pytest.raises(UserError, match="no network that reads the age"):
        score_scan(Scan(scan_path, "odd"), blind, tmp_path, estimate_age=True)
    text = tmp_path / "text.nii.gz"
    text.write_text("no image", encoding="utf-8")
    with pytest.raises(DataError, match=r"text\.nii\.gz: cannot be prepared \(read\)"):
        score_scan(Scan(text, "text", age_years=63.0), model, tmp_path)
    series = sitk.JoinSeries([sitk.ReadImage(str(scan_path))] * 2)
    sitk.WriteImage(series, str(tmp_path / "series.nii.gz"))
    with pytest.raises(DataError, match=r"\(read\).*expected one 3D image; found 64 x 64 x 64 x 2 voxels"):
        score_scan(Scan(tmp_path / "series.nii.gz", "series", age_years=63.0), model, tmp_path)
    plate = sitk.ReadImage(str(scan_path))
    plate[:, :, :30] = 0.0
    plate[:, :, 34:] = 0.0
    sitk.WriteImage(plate, str(tmp_path / "plate.nii.gz"))
    with pytest.raises(DataError, match="cannot be prepared"):
        score_scan(Scan(tmp_path / "plate.nii.gz", "plate", age_years=63.0), model, tmp_path)


def test_models_and_ways_to_strip(
    model: ScanModel, toy_config: Callable[..., Config], toy_brain_config: Callable[..., Config], tmp_path: Path
) -> None:
    """A model of chairs is refused; scans are prepared as the cohort was, but for who finds the brain."""
    with pytest.raises(UserError, match="of chairs, not of brains"):
        scan_model(toy_config(), model.rater, 0.5)
    described = {
        "name": "some cohort",
        "source": "table",
        "settings": {"spacing_mm": 4, "strip": "mask", "bias_correction": False},
    }
    (tmp_path / "cohort.json").write_text(json.dumps(described))
    own = scan_model(toy_brain_config(data={"spacing_mm": 4.0, "root": str(tmp_path)}), model.rater, 0.5)
    assert (own.settings.bias_correction, own.cohort) == (False, "some cohort")
    assert np.array_equal(own.frame_mask, own.atlas.mask)
    assert stripped_by(own, None, None).settings.strip == "deepbet"
    assert stripped_by(own, None, Path("mask.nii.gz")).settings.strip == "mask"
    assert stripped_by(own, "hdbet", None).settings.strip == "hdbet"
    for how, message in (("mask", "--mask FILE"), ("magic", "choose deepbet")):
        with pytest.raises(UserError, match=message):
            stripped_by(own, how, None)
    (tmp_path / "cohort.json").write_text("[]")
    with pytest.raises(DataError, match="description of the cohort"):
        scan_model(toy_brain_config(data={"spacing_mm": 4.0, "root": str(tmp_path)}), model.rater, 0.5)


def test_an_unknown_age_is_read_from_the_scan(scan_path: Path, model: ScanModel, tmp_path: Path) -> None:
    """The median of what the age network reads, the same map as with that age given, and a note that says so."""
    guessed = score_scan(Scan(scan_path, "odd"), model, tmp_path / "guessed", estimate_age=True)
    given = score_scan(Scan(scan_path, "odd", age_years=63.0), model, tmp_path / "given")
    assert guessed.scan.age_years == 63.0
    np.testing.assert_array_equal(guessed.maps.score, given.maps.score)
    assert any("63 years was read from the scan" in note for note in guessed.notes)
    assert not any("read from the scan" in note for note in given.notes)
