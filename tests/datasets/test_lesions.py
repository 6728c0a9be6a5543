"""Real lesion data: every layout leads to the same table of cases; what cannot be used is listed with its reason."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk

from normscape.datasets.cohort import read_table
from normscape.datasets.lesions import read_lesions, write_cases
from normscape.errors import DataError


def write(root: Path, *names: str, side: int = 6) -> None:
    """Tiny volumes under these names; those with a word of masks in them hold a block of ones."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((side, side + 1, side + 2), np.uint8)
        values[2:4, 2:4, 2:4] = 1
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


def rows(source: Path, out: Path, **options) -> dict[str, dict[str, str]]:
    """The table that is written, read as a plain CSV: id to row."""
    write_cases(read_lesions(source, **options), out)
    with out.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_brats(tmp_path: Path) -> None:
    """Both ways of naming; contrast-enhanced scans are no T1; ages from the table that the data come with."""
    old, new = "BraTS20_Training_001", "BraTS-GLI-00005-100"
    write(tmp_path, *(f"a/{old}/{old}_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")))
    write(tmp_path, *(f"b/{new}/{new}-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f", "seg")))
    write(tmp_path, "BraTS_unmarked/BraTS_unmarked_t1.nii.gz", "BraTS_empty/BraTS_empty_t1ce.nii.gz")
    (tmp_path / "survival_info.csv").write_text(f"Brats20ID,Age,Survival_days\n{old},60.5,300\n")
    found = rows(tmp_path, tmp_path / "cases.csv")
    assert set(found) == {old, new, "BraTS_unmarked"}
    assert found[old] == {
        "path": f"a/{old}/{old}_t1.nii.gz", "id": old, "age": "60.5", "lesion": f"a/{old}/{old}_seg.nii.gz", "mask": "",
        "strip": "none",
    }  # fmt: skip
    assert (found[new]["path"], found[new]["age"]) == (f"b/{new}/{new}-t1n.nii.gz", "")
    assert found["BraTS_unmarked"]["lesion"] == ""


def test_atlas(tmp_path: Path) -> None:
    """ATLAS v2: subject and session in the name; scans without a mask, as in its test part, are left to other layouts."""
    stem = "Training/R001/sub-r001s{0}/ses-1/anat/sub-r001s{0}_ses-1_space-MNI152NLin2009aSym"
    for number in ("001", "002"):
        write(tmp_path, *(f"{stem.format(number)}_{part}.nii.gz" for part in ("T1w", "label-L_desc-T1lesion_mask")))
    write(tmp_path, f"{stem.format('003')}_T1w.nii.gz")
    found = read_lesions(tmp_path)
    assert found.layout == "atlas"
    table = rows(tmp_path, tmp_path / "cases.csv")
    assert set(table) == {"r001s001_1", "r001s002_1"}
    assert table["r001s001_1"]["lesion"].endswith("sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz")
    assert table["r001s001_1"]["strip"] == ""


def test_bids(tmp_path: Path) -> None:
    """Masks below derivatives, by subject and session; brain masks and tissue maps there are none; ages from participants.tsv."""
    write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    write(tmp_path, "derivatives/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    write(tmp_path, "derivatives/x/sub-01/anat/sub-01_label-GM_probseg.nii.gz")
    write(tmp_path, "derivatives/x/sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    write(tmp_path, "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_desc-lesions_dseg.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t44\nsub-02\tn/a\n")
    found = rows(tmp_path, tmp_path / "cases.csv")
    assert {name: row["age"] for name, row in found.items()} == {"01": "44", "02_a": ""}
    assert found["01"]["lesion"] == "derivatives/x/sub-01/anat/sub-01_label-lesion_mask.nii.gz"
    assert found["02_a"]["lesion"] == "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_desc-lesions_dseg.nii.gz"


def test_folders_of_subjects(tmp_path: Path) -> None:
    """Plain names, names with the subject in front, brain masks, a stripped scan, and sessions whose masks lie beside."""
    write(tmp_path, "ms-07/t1.nii.gz", "ms-07/mask.nii.gz", "ms-07/flair.nii.gz", "ms-07/t1_gd.nii.gz")
    names = ("T1W", "T1WKS", "T2W", "consensus_gt", "brainmask")
    write(tmp_path, *(f"patient01/patient01_{part}.nii.gz" for part in names))
    write(tmp_path, "plain/t1_mprage.nii", "cut/t1_brain.nii.gz", "cut/lesionmask.nii.gz")
    for session in ("01", "02"):
        write(tmp_path, f"training01/preprocessed/training01_{session}_mprage_pp.nii")
        write(tmp_path, *(f"training01/masks/training01_{session}_mask{reader}.nii" for reader in (1, 2)))
    table = tmp_path / "people.csv"
    table.write_text("subject,age_years\nms-07,53\ntraining01,40\n")
    found = rows(tmp_path, tmp_path / "cases.csv", ages=table)
    assert set(found) == {"ms-07", "patient01", "plain", "cut", "training01_01", "training01_02"}
    lesions = {name: row["lesion"] for name, row in found.items()}
    assert lesions == {
        "ms-07": "ms-07/mask.nii.gz",
        "patient01": "patient01/patient01_consensus_gt.nii.gz",
        "plain": "",
        "cut": "cut/lesionmask.nii.gz",
        "training01_01": "training01/masks/training01_01_mask1.nii",
        "training01_02": "training01/masks/training01_02_mask1.nii",
    }
    assert {name: row["strip"] for name, row in found.items() if row["strip"]} == {"patient01": "mask", "cut": "none"}
    assert found["patient01"]["mask"] == "patient01/patient01_brainmask.nii.gz"
    assert found["patient01"]["path"] == "patient01/patient01_T1W.nii.gz"
    assert [found[name]["age"] for name in ("ms-07", "training01_01", "training01_02", "cut")] == ["53", "40", "40", ""]
    assert {row["strip"] for row in rows(tmp_path, tmp_path / "cases.csv", strip="none").values()} == {"none"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(kind: str, tmp_path: Path) -> None:
    """A row a scan, files from the table's folder; bad rows are dropped with a reason."""
    write(tmp_path, "a.nii.gz", "b.nii.gz", "a_lesion.nii.gz")
    write(tmp_path, "other.nii.gz", side=5)
    (tmp_path / "text.nii.gz").write_text("no image")
    columns = {
        "scan": ["a.nii.gz", "b.nii.gz", "b.nii.gz", "text.nii.gz", "gone.nii.gz", "b.nii.gz", "b.nii.gz"],
        "subject": ["a", "b", "b", "text", "gone", "small", "old"],
        "lesion": ["a_lesion.nii.gz", "", "", "", "", "other.nii.gz", ""],
        "age_years": ["61.5", "unknown", "50", "50", "50", "50", "500"],
        "strip": ["none", "", "", "", "", "", ""],
    }
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    found = read_lesions(path)
    assert [(case.subject, case.age_years, case.strip) for case in found.cases] == [("a", 61.5, "none"), ("b", None, "")]
    reasons = [(drop.subject, drop.reason) for drop in found.dropped]
    for subject, reason in (
        ("b", "a second scan called b, after b.nii.gz"),
        ("text", "its scan text.nii.gz is not a readable image"),
        ("gone", "does not exist"),
        ("small", "its lesion has (7, 6, 5) voxels, its scan (8, 7, 6); expected the same grid"),
        ("old", "its age is 500"),
    ):
        assert any(name == subject and reason in text for name, text in reasons), (subject, reasons)


def test_the_table_is_what_the_cases_stage_reads(tmp_path: Path) -> None:
    """`read_table` finds every scan, age and brain mask in it, from the table's own folder."""
    write(tmp_path, "data/p1/t1.nii.gz", "data/p1/lesion.nii.gz", "data/p1/brainmask.nii.gz", "data/p2/t1.nii.gz")
    (tmp_path / "ages.csv").write_text("id,age\np1,33\n")
    out = tmp_path / "cases.csv"
    write_cases(read_lesions(tmp_path / "data", ages=tmp_path / "ages.csv"), out)
    cohort = read_table(out, require_age=False)
    assert [(scan.subject, scan.age_years) for scan in cohort.scans] == [("p1", 33.0), ("p2", None)]
    assert cohort.scans[0].path == tmp_path / "data/p1/t1.nii.gz"
    assert cohort.scans[0].mask == tmp_path / "data/p1/brainmask.nii.gz"
    assert not cohort.dropped


def test_mistakes(tmp_path: Path) -> None:
    """Each in one clear message."""
    with pytest.raises(DataError, match="no such folder or table"):
        read_lesions(tmp_path / "none")
    with pytest.raises(DataError, match="no T1 scans in any layout that is known"):
        read_lesions(tmp_path)
    write(tmp_path, "data/p1/t1.nii.gz", "data/p1/mask.nii.gz")
    with pytest.raises(DataError, match="layout x is unknown; known are brats, atlas, bids, subjects"):
        read_lesions(tmp_path, layout="x")
    with pytest.raises(DataError, match="no T1 scans in layout brats"):
        read_lesions(tmp_path, layout="brats")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(DataError, match=r"lies outside of .*cases.csv has to lie in a folder that holds all scans"):
        write_cases(read_lesions(tmp_path / "data"), elsewhere / "cases.csv")
    write(tmp_path, "bad/p1/mask.nii.gz", side=5)
    write(tmp_path, "bad/p1/t1.nii.gz")
    with pytest.raises(DataError, match="none of 1 cases can be used, for example p1: its lesion has"):
        read_lesions(tmp_path / "bad")
