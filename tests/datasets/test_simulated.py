"""The simulated cohort: pure, resumable, readable, ageing as the literature says, and people stay themselves."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from normscape.datasets import simulated, simulated_fields
from normscape.datasets.cohort import read_table
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.simulated import simulate_cohort, simulate_prepared, simulate_subject
from normscape.datasets.simulated_anatomy import AGE_RANGE_YEARS, SITES, assets, build, describe, ventricle_target_ml
from normscape.errors import DataError

COARSE_MM = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """40 subjects, the first six of them twice, at 4 mm."""
    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    return simulate_prepared(folder, subjects=40, seed=7, spacing_mm=COARSE_MM, repeats=6)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_scan_depends_on_seed_number_and_session_alone() -> None:
    """Whatever was made before; and each of the three changes it."""
    first = simulate_subject(3, seed=1, spacing_mm=COARSE_MM)
    others = [simulate_subject(4, seed=1, spacing_mm=COARSE_MM), simulate_subject(3, seed=2, spacing_mm=COARSE_MM)]
    again = simulate_subject(3, seed=1, spacing_mm=COARSE_MM)
    np.testing.assert_array_equal(first.t1, again.t1)
    assert first.ventricle_volume_ml == again.ventricle_volume_ml
    others.append(simulate_subject(3, seed=1, session=2, spacing_mm=COARSE_MM))
    assert all(np.abs(first.t1 - other.t1).mean() > 1 for other in others)


def test_the_same_person_has_the_same_ventricles_at_any_resolution() -> None:
    """Volumes in ml agree between 2 and 4 mm, and with the head's size taken into account between scan and atlas."""
    coarse, fine = (simulate_subject(5, seed=1, spacing_mm=spacing) for spacing in (4.0, 2.0))
    assert coarse.ventricle_volume_ml == pytest.approx(fine.ventricle_volume_ml, rel=0.05)
    assert float(coarse.mask.sum()) * 64 == pytest.approx(float(fine.mask.sum()) * 8, rel=0.03)
    on_atlas = simulated._on_atlas(fine.subject, build(fine.subject), 1, 2)
    assert on_atlas.ventricle_volume_ml * fine.subject.head_scale**3 == pytest.approx(fine.ventricle_volume_ml, rel=0.05)


def test_flow_is_undone_by_the_flow_of_the_negated_field() -> None:
    """A deformation that is invertible does not tear."""
    extent = torch.tensor([90.0, 90.0, 90.0])
    noise = simulated_fields.smooth_noise(np.random.default_rng(0), 3, (21, 21, 21), 2.5)
    velocity = 4 * torch.from_numpy(noise)
    there, back = simulated_fields.flow(velocity, extent), simulated_fields.flow(-velocity, extent)
    points = simulated_fields.box_points((21, 21, 21), extent) + there.movedim(0, -1)
    home = (there + simulated_fields.sample(back, points, extent))[:, 4:-4, 4:-4, 4:-4]
    assert there.abs().max() > 6
    assert (
        home.norm(dim=0).mean() < 0.1 * there.norm(dim=0).mean()
    )  # what is left is linear interpolation between nodes of 4.5 mm


def test_deformations_of_subjects_do_not_fold() -> None:
    """The determinant of the Jacobian is positive everywhere in the brain, for young and old."""
    data = assets()
    for number in range(4):
        subject = replace(describe(1, number), age_years=25.0 + 20 * number)
        moved = simulated_fields.box_points(data.growth.shape[1:], data.extent_mm).movedim(-1, 0)
        moved = moved + build(subject).displacement_mm
        spacing = float(data.extent_mm[0]) / (moved.shape[1] - 1)
        jacobian = torch.stack([torch.stack(torch.gradient(axis, spacing=spacing)) for axis in moved]).movedim((0, 1), (-2, -1))
        assert torch.linalg.det(jacobian)[2:-2, 2:-2, 2:-2].min() > 0


@pytest.mark.slow
def test_ventricles_widen_with_age_as_in_real_cohorts(cohort: PreparedCohort) -> None:
    """Correlation of age and log volume 0.45 to 0.85, volumes that people have, and 60 to 86 years faster than 20 to 60."""
    age = np.array(cohort.subjects["age_years"])
    log_volume = np.log(np.array(cohort.subjects["ventricle_volume_ml"]))
    assert 0.45 < np.corrcoef(age, log_volume)[0, 1] < 0.85
    assert 5 < np.exp(log_volume).min() < np.exp(log_volume).max() < 120
    of_age = [ventricle_target_ml(age) for age in (20, 60, 86)]
    assert (of_age[2] / of_age[1]) ** (1 / 26) - 1 == pytest.approx(0.03, abs=0.003)
    assert 0 < (of_age[1] / of_age[0]) ** (1 / 40) - 1 < 0.015


def test_one_person_grown_older_has_wider_ventricles_and_more_csf() -> None:
    """Everything else kept: volume doubles at least, the share of CSF among all tissue rises, grey matter gets less."""
    who = describe(3, 0)
    volumes, csf = [], []
    for age in (25.0, 85.0):
        anatomy = build(replace(who, age_years=age))
        shape, affine = simulated.atlas_grid(COARSE_MM)
        level, ventricle, mask = anatomy.at(simulated._box_places(shape, affine))
        volumes.append(float(ventricle.sum()))
        csf.append(float(((level < 0.25) & (mask > 0.5)).sum() / (mask > 0.5).sum()))
    assert volumes[1] > 2 * volumes[0]
    assert csf[1] > csf[0] + 0.03


@pytest.mark.slow
def test_identity_is_more_alike_within_than_between_people(cohort: PreparedCohort) -> None:
    """Repeat scans correlate more than scans of any two people, in the whole brain and in nearly every patch of it."""
    names = np.array(cohort.subjects["subject"])
    inside = cohort.masks.min(axis=0) > 0

    def correlations(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = np.corrcoef(np.stack([volume[region] for volume in cohort.volumes]).astype(np.float64))
        same = (names[:, None] == names[None]) & ~np.eye(len(names), dtype=bool)
        return table[same], table[names[:, None] != names[None]]

    within, between = correlations(inside)
    assert len(within) == 12
    assert within.min() > between.max()
    shares = []
    for corner in ((10, 20, 15), (15, 25, 30), (20, 12, 20), (12, 36, 25)):
        region = np.zeros_like(inside)
        region[tuple(slice(start, start + 8) for start in corner)] = True
        within, between = correlations(region & inside)
        shares.append((within.mean() > between).mean())
    assert min(shares) > 0.9


@pytest.mark.slow
def test_scanners_differ_in_contrast_and_a_scan_is_never_negative(cohort: PreparedCohort) -> None:
    """Grey over white intensity differs between sites by more than it varies within; 0 lies outside the mask and nowhere else."""
    site = np.array(cohort.subjects["site"])
    brains = [volume[volume > 0] for volume in cohort.volumes]
    ratios = np.array([np.percentile(brain, 40) / np.percentile(brain, 95) for brain in brains])
    means = [ratios[site == one].mean() for one in SITES]
    assert np.ptp(means) > 2 * np.mean([ratios[site == one].std() for one in SITES])
    assert np.all((cohort.volumes > 0) == (cohort.masks > 0))


def test_files_are_readable_and_the_table_is_complete(tmp_path: Path) -> None:
    """Every scan of the table opens, in RAS millimetres and with its mask; ages, sexes and sites are those of the subjects."""
    table = simulate_cohort(tmp_path / "raw", subjects=3, seed=4, spacing_mm=COARSE_MM, repeats=1)
    rows = _table(table)
    assert [(row["subject"], row["session"]) for row in rows] == [
        ("sim-0000", "1"), ("sim-0000", "2"), ("sim-0001", "1"), ("sim-0002", "1")
    ]  # fmt: skip
    for row in rows:
        subject = describe(4, int(row["subject"][-4:]))
        assert (float(row["age_years"]), row["sex"], row["site"]) == (subject.age_years, subject.sex, subject.site)
        assert AGE_RANGE_YEARS[0] <= subject.age_years <= AGE_RANGE_YEARS[1]
        t1, mask = (nib.Nifti1Image.from_filename(table.parent / row[kind]) for kind in ("t1", "mask"))
        assert nib.aff2axcodes(t1.affine) == ("R", "A", "S")
        np.testing.assert_allclose(t1.header.get_zooms(), COARSE_MM)
        np.testing.assert_array_equal(np.asarray(t1.dataobj) > 0, np.asarray(mask.dataobj) > 0)
        assert 0.9 < mask.get_fdata().sum() * COARSE_MM**3 / 1e6 < 2.6
    assert not list((tmp_path / "raw").rglob("*partial*"))
    read = read_table(table)
    assert not read.dropped
    assert [scan.name for scan in read.scans] == [f"{row['subject']}_{row['session']}" for row in rows]
    assert read.scans[0].measured["ventricle_volume_ml"] == float(rows[0]["ventricle_volume_ml"])


def test_a_finished_cohort_is_left_alone_and_another_one_is_not_overwritten(tmp_path: Path) -> None:
    """Same settings: no file is written again. Other settings: an error that says what is there."""
    folder = tmp_path / "raw"
    simulate_cohort(folder, subjects=1, seed=4, spacing_mm=8)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    simulate_cohort(folder, subjects=1, seed=4, spacing_mm=8)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(DataError, match="another simulated cohort"):
        simulate_cohort(folder, subjects=1, seed=5, spacing_mm=8)
    with pytest.raises(DataError, match="another simulated cohort"):
        simulate_prepared(folder, subjects=1, seed=4, spacing_mm=8)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("door", [simulate_cohort, simulate_prepared])
def test_a_cut_off_simulation_goes_on(door, tmp_path: Path) -> None:
    """Stopped after two of four scans, a line of the record cut off: the rest is made, and all equals an uninterrupted run."""

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise _StopError

    with pytest.raises(_StopError):
        door(tmp_path / "cut", subjects=3, seed=4, spacing_mm=8, repeats=1, progress=stop)
    with (tmp_path / "cut" / simulated.ROWS_NAME).open("a") as file:
        file.write("sim-0001,1,33")
    seen: list[int] = []
    door(tmp_path / "cut", subjects=3, seed=4, spacing_mm=8, repeats=1, progress=lambda done, _: seen.append(done))
    door(tmp_path / "whole", subjects=3, seed=4, spacing_mm=8, repeats=1)
    assert seen == [3, 4]
    names = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    for name in names:
        cut, whole = tmp_path / "cut" / name, tmp_path / "whole" / name
        if name.name.endswith(".nii.gz"):
            np.testing.assert_array_equal(
                np.asarray(nib.Nifti1Image.from_filename(cut).dataobj), np.asarray(nib.Nifti1Image.from_filename(whole).dataobj)
            )
        else:
            assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_the_prepared_cohort_fits_the_atlas(cohort: PreparedCohort) -> None:
    """Its name is its own, its grid SRI24's, and its brains lie where the atlas has its brain."""
    assert (cohort.name, cohort.source, len(cohort)) == ("simulated cohort", "simulated", 46)
    assert cohort.shape == (39, 60, 60)
    corner = cohort.world(np.array([-0.5, -0.5, -0.5]) + 0.5 / COARSE_MM)
    np.testing.assert_allclose(corner, simulated.ATLAS_ORIGIN_MM)  # the first voxels of 4 mm and of 1 mm share a corner
    atlas = cohort.atlas_mask > 0
    dice = [2 * (mask[atlas] > 0).sum() / (mask.sum() + atlas.sum()) for mask in cohort.masks]
    assert min(dice) > 0.88
    assert np.mean(dice) > 0.93
    np.testing.assert_array_equal(cohort.atlas > 0, atlas)
    settings = json.loads((cohort.folder / "cohort.json").read_text())["settings"]
    assert (settings["seed"], settings["subjects"], settings["repeats"]) == (7, 40, 6)


@pytest.mark.parametrize("wrong", [{"subjects": 0}, {"repeats": 3}, {"seed": -1}, {"spacing_mm": 0.1}])
def test_impossible_settings_are_refused(wrong: dict[str, float], tmp_path: Path) -> None:
    """One clear error, and no folder."""
    with pytest.raises(DataError, match="at least one subject"):
        simulate_cohort(tmp_path / "raw", **{"subjects": 2, "seed": 1, **wrong})
    assert not (tmp_path / "raw").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write the simulated cohort"):
        simulate_cohort(tmp_path / "file" / "raw", subjects=1, seed=1, spacing_mm=8)
