"""Cases from a table: mapped in their own space and measured against their lesions; a bad one is listed, the rest goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk

from normscape.datasets.lesions import read_lesions, write_cases
from normscape.errors import DataError
from normscape.stages.cases import PANELS, map_cases
from normscape.stages.scan import ScanModel


@pytest.fixture
def table(scan_path: Path, tmp_path: Path) -> Path:
    """The scan with the ball twice, with and without an age, the ball as its lesion; and a file that is no scan."""
    folder = tmp_path / "given"
    folder.mkdir()
    scan = sitk.ReadImage(str(scan_path))
    sitk.WriteImage(scan, str(folder / "odd.nii.gz"))
    values = sitk.GetArrayFromImage(scan)
    lesion = sitk.GetImageFromArray((values >= 0.99 * values.max()).astype(np.uint8))
    lesion.CopyInformation(scan)
    sitk.WriteImage(lesion, str(folder / "lesion.nii.gz"))
    (folder / "text.nii.gz").write_text("no image", encoding="utf-8")
    rows = ["path,id,age,lesion,strip", "odd.nii.gz,known,63,lesion.nii.gz,none", "odd.nii.gz,unknown,,,none"]
    rows += ["text.nii.gz,text,63,,none", "gone.nii.gz,gone,63,,none"]
    path = folder / "cases.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_cases_are_mapped_and_measured(table: Path, model: ScanModel, tmp_path: Path) -> None:
    """Where a lesion is marked, the map is compared with it; every case has a row, those that were mapped have pictures."""
    told: list[tuple[int, int]] = []
    map_cases(table, model, tmp_path, progress=lambda done, total: told.append((done, total)))
    rows = {row["name"]: row for row in pq.read_table(tmp_path / "cases.parquet").to_pylist()}
    assert set(rows) == {"known", "unknown", "text", "gone"}
    known, unknown = rows["known"], rows["unknown"]
    assert known["peak_in_lesion"] == 1.0
    assert known["score_auroc"] > 0.95
    assert known["lesion_ml"] == pytest.approx(4 / 3 * np.pi * 16**3 / 1000, rel=0.2)
    assert (known["age_estimated"], unknown["age_estimated"], unknown["age_years"]) == (0, 1, 63.0)
    assert unknown["lesion_ml"] is None
    assert unknown["peak_score"] == pytest.approx(known["peak_score"])
    assert "cannot be prepared (read)" in rows["text"]["reason"]
    assert "does not exist" in rows["gone"]["reason"]
    pictures = np.load(tmp_path / "cases.npy")
    assert pictures.shape[:3] == (2, len(PANELS), 1)
    lesion = pictures[0, PANELS.index("lesion"), 0] > 0
    anomaly = pictures[0, PANELS.index("anomaly"), 0].astype(float)
    assert lesion.any()
    assert not pictures[1, PANELS.index("lesion")].any()
    assert anomaly[lesion].mean() > anomaly[(anomaly > 0) & ~lesion].mean()
    assert told[-1][0] <= told[-1][1]


def test_a_folder_of_lesions_goes_through_the_same_door(table: Path, model: ScanModel, tmp_path: Path) -> None:
    """Scan and mask of a folder, read by their names, are mapped and measured like a case that a table names."""
    subject = table.parent / "data" / "ms-1"
    subject.mkdir(parents=True)
    (table.parent / "odd.nii.gz").rename(subject / "t1_mprage.nii.gz")
    (table.parent / "lesion.nii.gz").rename(subject / "lesion_mask.nii.gz")
    (subject.parent / "ages.csv").write_text("id,age\nms-1,63\n", encoding="utf-8")
    cases = table.parent / "cases.csv"
    write_cases(read_lesions(subject.parent, ages=subject.parent / "ages.csv", strip="none"), cases)
    map_cases(cases, model, tmp_path)
    (row,) = pq.read_table(tmp_path / "cases.parquet").to_pylist()
    assert (row["name"], row["age_years"], row["reason"]) == ("ms-1", 63.0, "")
    assert row["score_auroc"] > 0.95
    assert row["lesion_ml"] == pytest.approx(4 / 3 * np.pi * 16**3 / 1000, rel=0.2)


def test_lesions_outside_the_folder(table: Path, model: ScanModel, tmp_path: Path) -> None:
    """A table reaches no file beside its folder, and says which mask is missing."""
    for name, message in (("../secret.nii.gz", "lies outside"), ("none-here.nii.gz", "does not exist")):
        table.write_text(f"path,id,age,lesion,strip\nodd.nii.gz,a,63,{name},none\n", encoding="utf-8")
        with pytest.raises(DataError, match=message):
            map_cases(table, model, tmp_path)
