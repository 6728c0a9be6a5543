"""A scan in another pose: its map lies on its own grid, and the peak lies where the scan is odd."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.cohort import Scan
from normscape.errors import DataError, UserError
from normscape.inversion.volumes import hann_window
from normscape.preprocessing.atlas import LPS, Atlas, load_atlas
from normscape.report.scan_page import build_scan_page
from normscape.stages.scan import ScanModel, scan_model, score_scan, stripped_by

SPACING_MM, SIDE = 4.0, 64
BLOB_RADIUS_MM = 16.0


class Brightness:
    """Rates a patch by how bright it is, most of all in its middle; its reconstruction is black."""

    def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean intensity under mask and window, from 0 (black) to 1."""
        assert masks is not None
        assert values["age"].unique().tolist() == [63.0]
        weight = masks * hann_window(images.shape[-1])
        return ((images + 1) / 2 * weight).sum((1, 2, 3, 4)) / weight.sum((1, 2, 3, 4)), torch.full_like(images, -1.0)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    """SRI24 at 4 mm."""
    return load_atlas(4)


@pytest.fixture(scope="module")
def known() -> sitk.AffineTransform:
    """Points of the atlas to points of the scan: turned by 8 degrees, stretched, moved by up to 25 mm."""
    angle = np.deg2rad(8.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((turn @ np.diag([1.08, 0.95, 1.04])).ravel().tolist())
    transform.SetCenter([120.0, -110.0, 75.0])
    transform.SetTranslation([15.0, -25.0, 10.0])
    return transform


@pytest.fixture(scope="module")
def blob_mm(atlas: Atlas, known: sitk.AffineTransform) -> np.ndarray:
    """Centre of the blob in the scan, LPS millimetres: a place in the front left of the atlas, off every axis of symmetry."""
    place = atlas.image(atlas.mask).TransformContinuousIndexToPhysicalPoint([24.0, 37.0, 22.0])
    return np.array(known.TransformPoint(place))


@pytest.fixture(scope="module")
def scan_path(atlas: Atlas, known: sitk.AffineTransform, blob_mm: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The moved atlas with a bright ball, axes in the order posterior, superior, right, as a NIfTI file."""
    centre = np.array(known.TransformPoint(atlas.image(atlas.mask).TransformContinuousIndexToPhysicalPoint([30.0, 30.0, 19.0])))
    direction = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]], dtype=float)
    grid = sitk.Image([SIDE] * 3, sitk.sitkFloat32)
    grid.SetSpacing([SPACING_MM] * 3)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((centre - direction @ np.full(3, SPACING_MM * (SIDE - 1) / 2)).tolist())
    head = sitk.Resample(atlas.image(atlas.t1), grid, known.GetInverse(), sitk.sitkLinear, 0.0)
    values = sitk.GetArrayFromImage(head)
    index = np.stack(np.meshgrid(*(np.arange(SIDE),) * 3, indexing="ij"), axis=-1)[..., ::-1]
    points = index * SPACING_MM @ direction.T + head.GetOrigin()
    inside = (np.linalg.norm(points - blob_mm, axis=-1) < BLOB_RADIUS_MM) & (values > 0)
    assert inside.sum() > 150
    values[inside] = 1.5 * values.max()
    lit = sitk.GetImageFromArray(values)
    lit.CopyInformation(head)
    path = tmp_path_factory.mktemp("scan") / "odd.nii.gz"
    sitk.WriteImage(lit, str(path))
    return path


@pytest.fixture
def model(toy_brain_config: Callable[..., Config]) -> ScanModel:
    """The stand-in with the preprocessing of the simulated cohort, for scans that are stripped already."""
    config = toy_brain_config(data={"spacing_mm": 4.0, "background": "constant"}, brains={"stride": 2, "batch_size": 512})
    made = stripped_by(scan_model(config, Brightness(), 0.6), "none", None)
    return replace(made, settings=made.settings.model_copy(update={"bias_correction": False}))


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


def test_what_cannot_be_scored(scan_path: Path, model: ScanModel, tmp_path: Path) -> None:
    """No age, a file that is no scan, four dimensions, a brain that is not one: one message each, naming the file."""
    with pytest.raises(DataError, match=r"odd\.nii\.gz: the age is not known.*Give --age"):
        score_scan(Scan(scan_path, "odd"), model, tmp_path)
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
        scan_model(toy_config(), Brightness(), 0.5)
    described = {
        "name": "some cohort",
        "source": "table",
        "settings": {"spacing_mm": 4, "strip": "mask", "bias_correction": False},
    }
    (tmp_path / "cohort.json").write_text(json.dumps(described))
    own = scan_model(toy_brain_config(data={"spacing_mm": 4.0, "root": str(tmp_path)}), Brightness(), 0.5)
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
        scan_model(toy_brain_config(data={"spacing_mm": 4.0, "root": str(tmp_path)}), Brightness(), 0.5)
