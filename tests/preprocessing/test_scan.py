"""One scan from file to atlas: its files, its numbers, what quarantines it, and what is not done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.datasets.cohort import Scan
from normscape.errors import UserError
from normscape.preprocessing import scan as module
from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.registration import dice, read_transform, to_scan_space
from normscape.preprocessing.scan import prepare_scan, scan_folder
from normscape.preprocessing.settings import PreprocessingSettings

SETTINGS = PreprocessingSettings(spacing_mm=4, strip="none", bias_correction=False, opening_radius_mm=0.0, ventricle_labels=(7,))


@pytest.fixture
def scan(moved: sitk.Image, save: Callable[..., Path]) -> Scan:
    """The moved atlas, 100,000 times as bright as it was, with a label for the brain and one for some of it."""
    labels = sitk.Cast(moved > 0, sitk.sitkUInt8) + 6 * sitk.Cast(moved > 150, sitk.sitkUInt8)
    return Scan(save(moved * 1e5), "s1", age_years=40.0, labels=save(labels, "labels.nii.gz"))


def test_a_scan_and_its_way_back(scan: Scan, atlas: Atlas, tmp_path: Path) -> None:
    """All files are there; the volume is the atlas again, fits 16 bits, and comes back to where the scan was."""
    done = prepare_scan(scan, SETTINGS, atlas, tmp_path)
    assert done.good
    assert done.flags == ()
    assert sorted(path.name for path in done.folder.iterdir()) == ["mask.nii.gz", "quality.json", "t1.nii.gz", "to_scan.tfm"]
    t1, mask = (sitk.ReadImage(str(done.folder / name)) for name in ("t1.nii.gz", "mask.nii.gz"))
    values, brain = sitk.GetArrayFromImage(t1), sitk.GetArrayFromImage(mask) > 0
    assert values.shape == atlas.mask.shape
    assert values[~brain].max() == 0
    assert values.max() < 65504
    assert done.measured["intensity_divisor"] == 1000
    assert np.corrcoef(values[brain], atlas.t1[brain])[0, 1] > 0.9
    assert done.measured["atlas_dice"] == pytest.approx(dice(brain, atlas.mask > 0))
    assert done.measured["atlas_dice"] > 0.94
    original = sitk.ReadImage(str(scan.path))
    back = sitk.GetArrayFromImage(to_scan_space(mask, read_transform(done.folder / "to_scan.tfm"), original)) > 0.5
    assert dice(back, sitk.GetArrayFromImage(original) > 0) > 0.93


def test_what_is_measured_of_the_brain(scan: Scan, atlas: Atlas, tmp_path: Path) -> None:
    """Volumes are those of the voxels, the labels' mask is nearly the scan's."""
    measured = prepare_scan(scan, SETTINGS, atlas, tmp_path).measured
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(scan.path)))
    assert measured["brain_volume_ml"] == pytest.approx((values > 0).sum() * 0.064, rel=0.02)
    assert measured["labels_dice"] > 0.97
    assert measured["ventricle_volume_ml"] == pytest.approx((values > 150e5).sum() * 0.064)
    assert measured["cut_off"] == 0
    assert 0.9 < measured["stretch_min"] <= measured["stretch_max"] < 1.15


def test_done_scans_are_not_done_again(
    scan: Scan, atlas: Atlas, tmp_path: Path, moved: sitk.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same settings and file: nothing is computed. Other settings, a new file, a lost quality.json: it is."""
    first = prepare_scan(scan, SETTINGS, atlas, tmp_path)
    count, register = [], module.register

    def counted(*arguments: object) -> sitk.Transform:
        count.append(1)
        return register(*arguments)

    monkeypatch.setattr(module, "register", counted)
    again = prepare_scan(scan, SETTINGS, atlas, tmp_path)
    assert (again.measured, again.flags, again.seconds, len(count)) == (
        pytest.approx(first.measured, abs=1e-5),
        (),
        first.seconds,
        0,
    )
    prepare_scan(scan, SETTINGS.model_copy(update={"seed": 1}), atlas, tmp_path)
    assert len(count) == 1
    sitk.WriteImage(moved * 2, str(scan.path))
    prepare_scan(scan, SETTINGS.model_copy(update={"seed": 1}), atlas, tmp_path)
    assert len(count) == 2
    (first.folder / "quality.json").unlink()
    prepare_scan(scan, SETTINGS.model_copy(update={"seed": 1}), atlas, tmp_path)
    assert len(count) == 3


def test_a_bad_file_is_quarantined_for_good(scan: Scan, atlas: Atlas, tmp_path: Path) -> None:
    """Step and reason in one line, kept for the next run."""
    scan.path.write_bytes(scan.path.read_bytes()[:5000])
    for _ in range(2):
        done = prepare_scan(scan, SETTINGS, atlas, tmp_path)
        assert (done.good, done.step, done.reason) == (False, "read", "scan.nii.gz: the compressed file is cut off")
    kept = json.loads((done.folder / "quality.json").read_text())
    assert kept["step"] == "read"
    assert kept["subject"] == "s1"


def test_masks_and_labels_that_do_not_fit(scan: Scan, atlas: Atlas, tmp_path: Path) -> None:
    """A missing label file is found while reading, a missing mask while stripping."""
    done = prepare_scan(replace(scan, labels=tmp_path / "gone.nii.gz"), SETTINGS, atlas, tmp_path)
    assert done.step == "read"
    done = prepare_scan(scan, SETTINGS.model_copy(update={"strip": "mask"}), atlas, tmp_path)
    assert (done.step, done.reason) == ("strip", "no mask file is given for this scan")


def test_a_scan_that_registers_badly(scan: Scan, atlas: Atlas, tmp_path: Path) -> None:
    """Below the least overlap a scan is quarantined; its files and numbers stay to be looked at."""
    done = prepare_scan(scan, SETTINGS.model_copy(update={"min_overlap": 0.995}), atlas, tmp_path)
    assert done.step == "overlap"
    assert done.reason.endswith("expected at least 0.995")
    assert (done.folder / "t1.nii.gz").exists()
    assert 0.9 < done.measured["atlas_dice"] < 0.995


def test_a_full_disk_is_nobody_scans_fault(scan: Scan, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the run with a message; the scan is not quarantined."""

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("sitk::ERROR: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(UserError, match="cannot write prepared scans"):
        prepare_scan(scan, SETTINGS, atlas, tmp_path)
    assert not (scan_folder(tmp_path, scan) / "quality.json").exists()


def test_folders_of_odd_names() -> None:
    """Plain names stay; no other name leads out, and no two share a folder."""
    root = Path("/cohort")
    assert scan_folder(root, Scan(Path("x"), "IXI002")) == root / "scans" / "IXI002"
    assert scan_folder(root, Scan(Path("x"), "a", "1")) == root / "scans" / "a_1"
    odd = [
        ("../../etc", ""),
        ("..", ""),
        (".", ""),
        ("a/b", ""),
        ("a-b", ""),
        ("a_1", ""),
        ("a", "../x"),
        ("ä", ""),
        ("x" * 300, ""),
    ]
    folders = {scan_folder(root, Scan(Path("x"), subject, session)) for subject, session in [*odd, ("a", "1")]}
    assert len(folders) == len(odd) + 1
    for folder in folders:
        assert folder.parent == root / "scans"
        assert not folder.name.startswith(".")
        assert len(folder.name) < 100
