"""The three readers on folders made here: what they find, what they drop and why; and the split by subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normscape.datasets.cohort import Cohort, read_bids, read_ixi, read_table, split_subjects
from normscape.errors import DataError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing of a scan is read here")


def _reasons(cohort: Cohort) -> dict[str, str]:
    """File name (or subject) -> why it was dropped."""
    return {dropped.path.name or dropped.subject: dropped.reason for dropped in cohort.dropped}


IXI_HEAD = '"IXI_ID","SEX_ID (1=m, 2=f)","HEIGHT","AGE"\n'


def test_ixi_joins_ages_by_id(tmp_path: Path) -> None:
    """Zero-padded ids, the site from the name; no age, two ages, twice the same age, no row."""
    names = ["IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI013-HH-1212_T1", "IXI014-IOP-1236-T1", "IXI015-HH-1258-T1"]
    _touch(tmp_path / "T1", *(f"{name}.nii.gz" for name in names), "notes.txt")
    rows = "2,2,164,35.80\n12,1,175,\n13,1,182,46.71\n13,1,182,46.71\n14,2,163,34.24\n14,2,163,43.24\n"
    (tmp_path / "IXI.csv").write_text(IXI_HEAD + rows)
    cohort = read_ixi(tmp_path / "T1")
    assert [(s.subject, s.site, s.sex, s.age_years) for s in cohort.scans] == [
        ("IXI002", "Guys", "F", 35.80),
        ("IXI013", "HH", "M", 46.71),
    ]
    assert cohort.name == "IXI (2 subjects)"
    assert cohort.source == "ixi"
    assert _reasons(cohort) == {
        "IXI012-HH-1211-T1.nii.gz": "no age in IXI.csv",
        "IXI014-IOP-1236-T1.nii.gz": "two different ages in IXI.csv: 34.24 and 43.24",
        "IXI015-HH-1258-T1.nii.gz": "no age in IXI.csv",
    }
    assert len(read_ixi(tmp_path / "T1", require_age=False).scans) == 4  # a contradiction is still dropped


def test_ixi_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no IXI images"):
        read_ixi(tmp_path)
    _touch(tmp_path, "IXI002-Guys-0828-T1.nii.gz")
    with pytest.raises(DataError, match=r"IXI\.xls or IXI\.csv is missing"):
        read_ixi(tmp_path)
    (tmp_path / "IXI.csv").write_text("ID,AGE\n2,35\n")
    with pytest.raises(DataError, match="no column IXI_ID"):
        read_ixi(tmp_path)


def test_table_with_every_kind_of_bad_row(tmp_path: Path) -> None:
    """Each bad row is dropped with its reason, and the rest goes on."""
    root, outside = tmp_path / "scans", tmp_path / "outside"
    _touch(root, *(f"{i}.nii.gz" for i in range(9)))
    _touch(outside, "secret.nii.gz")
    (root / "link.nii.gz").symlink_to(outside / "secret.nii.gz")
    (root / "loop.nii.gz").symlink_to(root / "loop.nii.gz")
    rows = [
        "0.nii.gz,good,31.5,F,one",
        "1.nii.gz,good,32,F,one",  # a second scan of the same subject
        "2.nii.gz,negative,-3,M,one",
        "3.nii.gz,old,121,M,one",
        "4.nii.gz,unknown,unknown,M,one",
        "5.nii.gz,words,forty,M,one",
        "missing.nii.gz,missing,40,M,one",
        "../outside/secret.nii.gz,dots,40,M,one",
        "link.nii.gz,link,40,M,one",
        "loop.nii.gz,loop,40,M,one",
        "6.nii.gz,,40,M,one",
        ",nofile,40,M,one",
        "7.nii.gz,fine,20,male,",
    ]
    table = root / "subjects.csv"
    table.write_text("path,id,age,sex,site\n" + "\n".join(rows) + "\n")
    cohort = read_table(table)
    assert [(s.subject, s.age_years, s.sex, s.site) for s in cohort.scans] == [
        ("fine", 20.0, "M", ""),
        ("good", 31.5, "F", "one"),
    ]
    assert cohort.name == "scans"
    reasons = {dropped.subject: dropped.reason for dropped in cohort.dropped}
    assert reasons.pop("missing").endswith("missing.nii.gz does not exist")
    assert "lies outside of" in reasons.pop("dots")
    assert "lies outside of" in reasons["link"]
    assert reasons.pop("link").endswith(f"(it leads to {outside / 'secret.nii.gz'})")
    assert reasons.pop("loop").endswith("does not exist")
    assert reasons == {
        "good": "a second scan of good, after 0.nii.gz; a session tells repeat scans apart",
        "negative": "its age is -3; expected 0 to 120 years",
        "old": "its age is 121; expected 0 to 120 years",
        "unknown": "its age is unknown",
        "words": "its age is no number: forty",
        "": "line 12 of subjects.csv has no subject",
        "nofile": "line 13 of subjects.csv has no path",
    }


def test_table_with_sessions_masks_labels_and_measurements(tmp_path: Path) -> None:
    """Names of columns in other words, a folder to start from, and what goes along with a scan."""
    root = tmp_path / "data"
    _touch(root, "a.nii", "b.nii", "mask.nii", "labels.nii")
    table = tmp_path / "elsewhere.tsv"
    head = "T1\tsubject\tage_years\tsession\tmask\tlabels\tventricle_volume_ml\tnote\n"
    table.write_text(
        head + "a.nii\ts\t50\t1\tmask.nii\tlabels.nii\t12.5\tx\nb.nii\ts\t52\t2\tgone.nii\t\t\ty\nb.nii\ts\t52\t3\t\t\t\ty\n"
    )
    cohort = read_table(table, root=root, name="mine")
    first, second = cohort.scans
    assert (first.name, first.mask, first.labels) == ("s_1", root / "mask.nii", root / "labels.nii")
    assert first.measured == {"ventricle_volume_ml": 12.5}
    assert (second.name, second.mask, second.measured) == ("s_3", None, {})
    assert cohort.name == "mine"
    assert cohort.subjects == ("s",)
    assert cohort.dropped[0].reason.endswith("gone.nii does not exist")


def test_ages_may_be_unknown_when_nobody_asks(tmp_path: Path) -> None:
    """Unknown ones only: one that cannot be is still a mistake. A table may then do without ages."""
    _touch(tmp_path, "a.nii", "b.nii")
    table = tmp_path / "t.csv"
    table.write_text("path,subject,age\na.nii,a,n/a\nb.nii,b,-1\n")
    cohort = read_table(table, require_age=False)
    assert [(s.subject, s.age_years) for s in cohort.scans] == [("a", None)]
    table.write_text("path,subject\na.nii,a\n")
    assert len(read_table(table, require_age=False).scans) == 1


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii")
    cases = {
        "path,subject\na.nii,a\n": "no column age_years or age; the columns are path, subject",
        "path,subject,age\n": "the table has no rows",
        "": "not a readable table",
        "path,subject,age\na.nii,a,300\n": "none of 1 scans can be used, for example a.nii: its age is 300",
    }
    for text, message in cases.items():
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")


def test_bids(tmp_path: Path) -> None:
    """With and without sessions; a second run, a subject that is not in the table, one without an age."""
    _touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-2_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii",
        "sub-04/anat/sub-04_T1w.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsite\nsub-01\t21\tF\tn/a\nsub-02\t70.5\tM\tx\nsub-03\tn/a\tM\tx\n"
    )
    cohort = read_bids(tmp_path)
    assert [(s.name, s.age_years, s.sex, s.site) for s in cohort.scans] == [
        ("01", 21.0, "F", ""),
        ("02_a", 70.5, "M", "x"),
        ("02_b", 70.5, "M", "x"),
    ]
    second = "a second scan of 02_b, after sub-02_ses-b_run-1_T1w.nii.gz; a session tells repeat scans apart"
    assert _reasons(cohort) == {
        "sub-02_ses-b_run-2_T1w.nii.gz": second,
        "sub-03_T1w.nii": "its age is unknown",
        "sub-04_T1w.nii.gz": "not in participants.tsv",
    }


def _people(count: int) -> tuple[list[str], list[float], list[str]]:
    generator = np.random.default_rng(1)
    subjects = [f"s{i:03d}" for i in range(count)]
    return (
        subjects,
        generator.uniform(20, 85, count).tolist(),
        generator.choice(["A", "B", "C"], count, p=[0.6, 0.3, 0.1]).tolist(),
    )


def test_split_is_by_subject_seeded_and_balanced() -> None:
    """Sessions stay together, the order of the scans does not matter, sites and ages are alike in both parts."""
    subjects, ages, sites = _people(200)
    twice = [*subjects, *subjects[:50]], [*ages, *(age + 2 for age in ages[:50])], [*sites, *sites[:50]]
    train, test = split_subjects(*twice, train=100, test=80, seed=3)
    assert (len(train), len(test)) == (100, 80)
    assert not set(train) & set(test)
    backwards = tuple(list(reversed(column)) for column in twice)
    assert split_subjects(*backwards, train=100, test=80, seed=3) == (train, test)
    assert split_subjects(*twice, train=100, test=80, seed=4) != (train, test)
    age, site = dict(zip(subjects, ages, strict=True)), dict(zip(subjects, sites, strict=True))
    for part in (train, test):
        assert np.mean([age[s] for s in part]) == pytest.approx(np.mean(ages), abs=3)
        for name in "ABC":
            assert np.mean([site[s] == name for s in part]) == pytest.approx(sites.count(name) / 200, abs=0.04)


def test_split_of_few_and_of_odd_ones() -> None:
    """Unknown ages, a site with one subject, more strata than test subjects; too few subjects is an error."""
    names, ages = [f"s{i}" for i in range(9)], [None if i == 3 else 20.0 + i for i in range(9)]
    sites = ["X" if i == 0 else "Y" for i in range(9)]
    train, test = split_subjects(names, ages, sites, train=6, test=2, seed=0)
    assert (len(train), len(test)) == (6, 2)
    assert set(train) | set(test) < {f"s{i}" for i in range(9)}
    with pytest.raises(DataError, match="the cohort has only 9"):
        split_subjects(names, ages, sites, train=8, test=2, seed=0)
    with pytest.raises(DataError, match="at least one of each"):
        split_subjects(names, ages, sites, train=8, test=0, seed=0)
