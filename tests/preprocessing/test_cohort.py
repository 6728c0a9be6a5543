"""A whole cohort: what `PreparedCohort` reads of it, what is left out, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk

from normscape.datasets.cohort import Cohort, Dropped, Scan
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import DataError
from normscape.preprocessing import cohort as module
from normscape.preprocessing.atlas import load_atlas
from normscape.preprocessing.cohort import Work, assemble, in_this_process, prepare_cohort
from normscape.preprocessing.scan import PreparedScan
from normscape.preprocessing.settings import PreprocessingSettings

SETTINGS = PreprocessingSettings(spacing_mm=4, strip="none", bias_correction=False, opening_radius_mm=0.0)


@pytest.fixture
def cohort(moved: sitk.Image, save: Callable[..., Path]) -> Cohort:
    """Two good scans of one subject, one that is no image, one that was dropped."""
    bad = save(moved, "bad.nii.gz")
    bad.write_bytes(b"no image")
    scans = (
        Scan(save(moved, "a1.nii.gz"), "a", "1", age_years=30.0, sex="F", site="X"),
        Scan(save(moved * 2, "a2.nii.gz"), "a", "2", site="X", measured={"ventricle_volume_ml": 20.0}),
        Scan(bad, "b", age_years=50.0),
    )
    return Cohort("tests", "table", scans, (Dropped("c", Path("c.nii"), "its age is\nunknown"),))


def test_a_prepared_cohort(cohort: Cohort, tmp_path: Path) -> None:
    """Opens through the contract; rows, volumes and masks belong together; both lists of what was left out are one."""
    heard: list[tuple[int, int]] = []
    out = tmp_path / "out"
    prepared = prepare_cohort(cohort, SETTINGS, out, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assemble(cohort, SETTINGS, out, prepared)
    found = PreparedCohort.open(out)
    atlas = load_atlas(4)
    assert (found.name, found.source, found.spacing_mm, found.shape) == ("tests", "table", 4.0, (39, 60, 60))
    assert np.allclose(found.affine, atlas.affine)
    assert np.array_equal(found.atlas_mask, atlas.mask)
    assert np.array_equal(found.atlas, atlas.t1)
    rows = found.subjects.to_pylist()
    assert [(r["subject"], r["session"], r["age_years"], r["sex"], r["site"]) for r in rows] == [
        ("a", "1", 30.0, "F", "X"),
        ("a", "2", None, "", "X"),
    ]
    assert [row["ventricle_volume_ml"] for row in rows] == [None, 20.0]
    assert all(row["atlas_dice"] > 0.94 and row["brain_volume_ml"] > 1000 and row["flags"] == "" for row in rows)
    assert found.volumes.dtype == np.float16
    assert set(np.unique(found.masks)) == {0, 1}
    assert float(found.volumes[found.masks == 0].max()) == 0.0
    inside = found.masks[0] > 0
    assert np.median(found.volumes[1][inside] / found.volumes[0][inside]) == pytest.approx(
        2.0, rel=0.05
    )  # the second is brighter
    assert np.corrcoef(found.volumes[0][inside].astype(float), atlas.t1[inside])[0, 1] > 0.9  # neither turned nor mirrored
    left_out = pq.read_table(out / "quarantined.parquet").to_pylist()
    assert [(r["subject"], r["step"], r["reason"]) for r in left_out] == [
        ("b", "read", "bad.nii.gz: not a readable file (Not a gzipped file (b'no'))"),
        ("c", "cohort", "its age is unknown"),
    ]
    assert not list(out.glob("*.tmp"))
    assert json.loads((out / "cohort.json").read_text())["settings"]["strip"] == "none"


def test_going_on_after_a_stop(cohort: Cohort, tmp_path: Path) -> None:
    """Stopped after the first scan, the next run gets only the others, and the result is that of an undisturbed run."""

    def stops(work: Work) -> Generator[PreparedScan, None, None]:
        for number, result in enumerate(in_this_process(work)):
            if number == 1:
                raise KeyboardInterrupt
            yield result

    def counts(work: Work) -> Generator[PreparedScan, None, None]:
        asked.extend(scan.name for scan in work.scans)
        yield from in_this_process(work)

    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(cohort, SETTINGS, tmp_path / "cut", workers=stops)
    prepared = prepare_cohort(cohort, SETTINGS, tmp_path / "cut", workers=counts)
    assert asked == ["b"]  # the second was finished, though nobody heard of it
    assemble(cohort, SETTINGS, tmp_path / "cut", prepared)
    assemble(cohort, SETTINGS, tmp_path / "whole", prepare_cohort(cohort, SETTINGS, tmp_path / "whole"))
    for name in ("volumes.npy", "masks.npy", "cohort.json", "quarantined.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (pq.read_table(tmp_path / name / "subjects.parquet").to_pylist() for name in ("cut", "whole"))
    assert first == [
        {name: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for name, v in row.items()} for row in second
    ]


def test_nobody_thought_of_this(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, and too little memory, quarantine a scan for this run only; the rest goes on."""
    prepare = module.prepare_scan

    def fails(scan: Scan, *rest: object) -> PreparedScan:
        if scan.session == "1":
            raise ZeroDivisionError("one\nby nothing")
        if scan.session == "2":
            raise MemoryError
        return prepare(scan, *rest)

    monkeypatch.setattr(module, "prepare_scan", fails)
    results = prepare_cohort(cohort, SETTINGS, tmp_path / "out")
    assert [(r.step, r.reason) for r in results[:2]] == [
        ("unexpected", "ZeroDivisionError: one by nothing"),
        ("memory", "this machine has too little memory for it"),
    ]
    with pytest.raises(DataError, match="all 3 scans are quarantined, for example a_1: unexpected: ZeroDivisionError"):
        assemble(cohort, SETTINGS, tmp_path / "out", results)
    monkeypatch.undo()
    assert prepare_cohort(cohort, SETTINGS, tmp_path / "out")[0].good


def test_a_damaged_volume_is_named(cohort: Cohort, tmp_path: Path) -> None:
    """And no half cohort is left under the name of a whole one."""
    only = replace(cohort, scans=cohort.scans[:1])
    prepared = prepare_cohort(only, SETTINGS, tmp_path)
    assemble(only, SETTINGS, tmp_path, prepared)
    (prepared[0].folder / "t1.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"t1\.nii\.gz: damaged; remove"):
        assemble(only, SETTINGS, tmp_path, prepared)
    with pytest.raises(DataError, match=r"cohort\.json is missing"):
        PreparedCohort.open(tmp_path)
