"""Ray tasks prepare what one process prepares; a process that dies takes only its scan with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import SimpleITK as sitk

from normscape.datasets.cohort import Cohort, Scan
from normscape.distributed import preprocess
from normscape.distributed.preprocess import RayTasks
from normscape.errors import UserError
from normscape.preprocessing.atlas import load_atlas
from normscape.preprocessing.cohort import Work, assemble, prepare_cohort
from normscape.preprocessing.settings import PreprocessingSettings

pytestmark = pytest.mark.cluster
SETTINGS = PreprocessingSettings(spacing_mm=4, strip="none", bias_correction=False, opening_radius_mm=0.0)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Four atlases, the third a broken file."""
    atlas = load_atlas(4)
    scans = []
    for number in range(4):
        path = tmp_path / f"{number}.nii.gz"
        sitk.WriteImage(atlas.image(atlas.t1 * (number + 1)), str(path))
        scans.append(Scan(path, f"s{number}", age_years=30.0 + number))
    scans[2].path.write_bytes(b"no image")
    return Cohort("tests", "table", tuple(scans))


def test_tasks_write_what_one_process_writes(
    local_ray: None, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volumes and tables are the same bytes, with a folder that is given relative to where the driver is."""
    monkeypatch.chdir(tmp_path)
    heard: list[int] = []
    there = prepare_cohort(cohort, SETTINGS, Path("ray"), workers=RayTasks(2), progress=lambda n, of: heard.append(n))
    here = prepare_cohort(cohort, SETTINGS, Path("here"))
    assert heard == [0, 1, 2, 3, 4]
    assert [(r.scan, r.measured.keys(), r.step, r.reason) for r in there] == [
        (r.scan, r.measured.keys(), r.step, r.reason) for r in here
    ]
    assert [r.good for r in there] == [True, True, False, True]
    for folder, results in (("ray", there), ("here", here)):
        assemble(cohort, SETTINGS, Path(folder), results)
    for name in ("volumes.npy", "masks.npy", "subjects.parquet", "quarantined.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_process_that_dies_takes_one_scan(
    local_ray: None, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that kills its process every time is quarantined, and the others are prepared; the next run tries it again."""
    original = preprocess._prepare

    def deadly(scan: Scan, *rest: object) -> object:
        if scan.subject == "s1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original._function(scan, *rest)

    monkeypatch.setattr(preprocess, "_prepare", preprocess.ray.remote(num_cpus=1, max_retries=1)(deadly))
    results = prepare_cohort(cohort, SETTINGS, tmp_path / "out", workers=RayTasks(2))
    assert [r.step for r in results] == ["", "process", "read", ""]
    assert "is memory short" in results[1].reason
    monkeypatch.undo()
    asked: list[str] = []

    def counts(work: Work):
        asked.extend(scan.subject for scan in work.scans)
        return RayTasks(1)(work)

    results = prepare_cohort(cohort, SETTINGS, tmp_path / "out", workers=counts)
    assert asked == ["s1"]
    assert [r.good for r in results] == [True, True, False, True]


def test_a_full_disk_ends_it_with_its_own_message(local_ray: None, cohort: Cohort, tmp_path: Path) -> None:
    """As it does in one process: the folder of the scans cannot be written."""
    blocked = tmp_path / "out"
    blocked.mkdir()
    (blocked / "scans").write_text("a file where the folder should be")
    with pytest.raises(UserError):
        prepare_cohort(cohort, SETTINGS, blocked, workers=RayTasks(2))


def test_at_least_one_worker() -> None:
    with pytest.raises(UserError, match="at least one"):
        RayTasks(0)
