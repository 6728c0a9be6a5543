"""Cohorts of raw scans: which files there are, of whom, at what age; and the split into train and test.

Three readers: IXI as it is downloaded, a table, and BIDS. What cannot be used is dropped, listed with its reason, and the
rest goes on. Nothing of a scan but its name is looked at here; `normscape.preprocessing` reads the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normscape.datasets.tabular import find_column, is_unknown, read_rows, to_age, to_number, to_sex
from normscape.errors import DataError

MEASURED_SUFFIX = "_ml"
"""Columns of a table with this ending are measurements, kept beside our own: `ventricle_volume_ml`."""
_IXI_NAME = re.compile(r"IXI(\d+)-([A-Za-z]+)-\d+[-_]T1\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class Scan:
    """One T1 scan.

    Attributes:
        path: the NIfTI file.
        subject: whose it is.
        session: tells repeat scans of a subject apart; empty where there is one.
        age_years: at the scan; None when unknown.
        sex: M, F, or empty when unknown.
        site: scanner or hospital; empty when unknown.
        mask: a brain mask on the scan's grid.
        labels: anatomical labels on the scan's grid, 0 outside the brain; only to check the masks against.
        measured: what the table says of the brain, column -> value; columns that end in `_ml`.
    """

    path: Path
    subject: str
    session: str = ""
    age_years: float | None = None
    sex: str = ""
    site: str = ""
    mask: Path | None = None
    labels: Path | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Subject and, where there is one, session."""
        return f"{self.subject}_{self.session}" if self.session else self.subject


@dataclass(frozen=True)
class Dropped:
    """A scan, or a row of a table, that cannot be used."""

    subject: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Cohort:
    """Scans of many subjects, in the order of subject and session.

    Attributes:
        name: what tables and pages call it.
        source: table | ixi | bids | simulated.
        scans: what can be used.
        dropped: what cannot, and why.
    """

    name: str
    source: str
    scans: tuple[Scan, ...]
    dropped: tuple[Dropped, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Distinct subjects, in order."""
        return tuple(dict.fromkeys(scan.subject for scan in self.scans))


# ---- readers -----------------------------------------------------------------------------------------------------------


def read_ixi(root: Path, *, name: str | None = None, require_age: bool = True) -> Cohort:
    """The IXI T1 images, as unpacked, with their demographics (thesis III.B.1; brain-development.org/ixi-dataset).

    Args:
        root: folder of `IXI002-Guys-0828-T1.nii.gz` and its like. `IXI.xls` or `IXI.csv` (columns IXI_ID, SEX_ID and AGE) lies
            in it or beside it. The site is the middle part of a file's name.
        name: of the cohort; `IXI (563 subjects)` or the like when empty.
        require_age: drop subjects without an age.

    Raises:
        DataError: no images, no demographics, or no scan that can be used.
    """
    root = _folder(root)
    paths = sorted(path for path in root.rglob("*") if _IXI_NAME.fullmatch(path.name))
    if not paths:
        raise DataError(f"{root}: no IXI images; expected files like IXI002-Guys-0828-T1.nii.gz (unpack IXI-T1.tar there)")
    demographics = next(
        (p for base in (root, root.parent) for ext in ("csv", "xls", "xlsx") if (p := base / f"IXI.{ext}").is_file()), None
    )
    if demographics is None:
        raise DataError(f"{root}: IXI.xls or IXI.csv is missing, in this folder or beside it; ages stand in it")
    rows = read_rows(demographics)
    columns = {wanted: find_column(demographics, rows, wanted) for wanted in ("IXI_ID", "SEX_ID", "AGE")}
    people: dict[int, list[Mapping[str, str]]] = {}
    for row in rows:
        number = to_number(row[columns["IXI_ID"]])
        if number is not None:
            people.setdefault(int(number), []).append(row)
    found = _Collector(root, require_age)
    for path in paths:
        match = _IXI_NAME.fullmatch(path.name)
        assert match is not None
        subject, entries = f"IXI{match[1]}", people.get(int(match[1]), [])
        ages = sorted({row[columns["AGE"]] for row in entries if not is_unknown(row[columns["AGE"]])}, key=str)
        if len({to_number(age) for age in ages}) > 1:
            found.drop(subject, path, f"two different ages in {demographics.name}: {' and '.join(ages)}")
            continue
        sexes = {to_sex(row[columns["SEX_ID"]]) for row in entries} - {""}
        found.add(
            Scan(path, subject, sex=sexes.pop() if len(sexes) == 1 else "", site=match[2]),
            age=ages[0] if ages else "",
            no_age=f"no age in {demographics.name}",
        )
    return found.cohort("ixi", name or "IXI ({} subjects)")


def read_table(table: Path, *, root: Path | None = None, name: str | None = None, require_age: bool = True) -> Cohort:
    """A table with a row a scan.

    Args:
        table: CSV or TSV with the columns `path` or `t1`; `subject` or `id`; `age_years` or `age`; and, where known, `sex`,
            `site`, `session`, `mask`, `labels`, and measurements that end in `_ml`.
        root: folder that the paths start from, and which they may not leave; the table's folder when empty.
        name: of the cohort; the table's folder when empty.
        require_age: drop scans without an age.

    Raises:
        DataError: the table cannot be read, lacks a column, or no scan of it can be used.
    """
    rows = read_rows(table)
    root = _folder(root or table.parent)
    path_column, subject_column = (find_column(table, rows, *names) for names in (("path", "t1"), ("subject", "id")))
    age_column = find_column(table, rows, "age_years", "age", needed=require_age)
    optional = {wanted: find_column(table, rows, wanted, needed=False) for wanted in ("sex", "site", "session", "mask", "labels")}
    measured = [column for column in rows[0] if column.lower().endswith(MEASURED_SUFFIX)]
    found = _Collector(root, require_age)

    def text(row: Mapping[str, str], column: str | None) -> str:
        value = row[column] if column else ""
        return "" if is_unknown(value) else value

    for number, row in enumerate(rows, start=2):
        subject, path = row[subject_column], row[path_column]
        if not subject or not path:
            found.drop(subject, Path(path), f"line {number} of {table.name} has no {'path' if subject else 'subject'}")
            continue
        mask, labels = (root / given if (given := text(row, optional[part])) else None for part in ("mask", "labels"))
        values = {name: value for name in measured if (value := to_number(row[name])) is not None}
        scan = Scan(
            root / path, subject, text(row, optional["session"]), sex=to_sex(text(row, optional["sex"])),
            site=text(row, optional["site"]), mask=mask, labels=labels, measured=values,
        )  # fmt: skip
        found.add(scan, age=row[age_column] if age_column else "")
    return found.cohort("table", name or root.name)


def read_bids(root: Path, *, name: str | None = None, require_age: bool = True) -> Cohort:
    """A BIDS data set: `sub-*/[ses-*/]anat/*_T1w.nii.gz`; ages, sexes and sites stand in `participants.tsv`.

    Args:
        root: its folder.
        name: of the cohort; the folder's when empty.
        require_age: drop subjects without an age.

    Raises:
        DataError: no images, no `participants.tsv`, or no scan that can be used.
    """
    root = _folder(root)
    patterns = [f"sub-*/{session}anat/*_T1w.nii{ext}" for session in ("", "ses-*/") for ext in ("", ".gz")]
    paths = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if not paths:
        raise DataError(f"{root}: no T1 images; expected sub-*/anat/*_T1w.nii.gz or sub-*/ses-*/anat/*_T1w.nii.gz")
    table = root / "participants.tsv"
    rows = read_rows(table)
    id_column, age_column = find_column(table, rows, "participant_id"), find_column(table, rows, "age", needed=require_age)
    sex_column, site_column = (find_column(table, rows, wanted, needed=False) for wanted in ("sex", "site"))
    people = {row[id_column].removeprefix("sub-"): row for row in rows}
    found = _Collector(root, require_age)
    for path in paths:
        parts = path.relative_to(root).parts
        subject, session = parts[0].removeprefix("sub-"), parts[1].removeprefix("ses-") if len(parts) == 4 else ""
        row = people.get(subject, {})
        site = row.get(site_column or "", "")
        found.add(
            Scan(path, subject, session, sex=to_sex(row.get(sex_column or "", "")), site="" if is_unknown(site) else site),
            age=row.get(age_column or "", ""),
            no_age="" if row else "not in participants.tsv",
        )
    return found.cohort("bids", name or root.name)


class _Collector:
    """Checks scans one after the other: a file in the folder, an age that can be, no subject and session twice."""

    def __init__(self, root: Path, require_age: bool) -> None:
        self._root, self._require_age = root, require_age
        self._scans: dict[tuple[str, str], Scan] = {}
        self._dropped: list[Dropped] = []

    def drop(self, subject: str, path: Path, reason: str) -> None:
        self._dropped.append(Dropped(subject, path, reason))

    def add(self, scan: Scan, *, age: str, no_age: str = "") -> None:
        """Keep a scan, with its age read, or drop it."""
        known, wrong = to_age(age)
        if not wrong and known is None and self._require_age:
            wrong = no_age or "its age is unknown"
        wrong = next((w for p in (scan.path, scan.mask, scan.labels) if p is not None and (w := self._outside(p))), "") or wrong
        first = self._scans.get((scan.subject, scan.session))
        if not wrong and first is not None:
            wrong = f"a second scan of {scan.name}, after {first.path.name}; a session tells repeat scans apart"
        if wrong:
            self.drop(scan.subject, scan.path, wrong)
        else:
            self._scans[scan.subject, scan.session] = replace(scan, age_years=known)

    def _outside(self, path: Path) -> str:
        """What is wrong with a path, links followed."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return f"{path} does not exist"
        if not real.is_relative_to(self._root.resolve()):
            return f"{path} lies outside of {self._root}" + (f" (it leads to {real})" if path.absolute() != real else "")
        return "" if real.is_file() else f"{path} is not a file"

    def cohort(self, source: str, name: str) -> Cohort:
        """All that was collected; `{}` in the name becomes the number of subjects."""
        if not self._scans:
            reasons = "; ".join(f"{d.path.name or d.subject}: {d.reason}" for d in self._dropped[:3])
            raise DataError(f"{self._root}: none of {len(self._dropped)} scans can be used, for example {reasons}")
        scans = tuple(scan for _, scan in sorted(self._scans.items()))
        return Cohort(name.format(len({scan.subject for scan in scans})), source, scans, tuple(self._dropped))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    return path


# ---- split -------------------------------------------------------------------------------------------------------------


def split_subjects(
    subjects: Sequence[str], ages: Sequence[float | None], sites: Sequence[str], *, train: int, test: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split by subject, so that both parts have the same shares of sites and of thirds of age, as far as numbers allow.

    All scans of a subject fall in one part. The order of the scans makes no difference; some subjects may be in neither part.

    Args:
        subjects: of each scan.
        ages: of each scan, in years; the mean of a subject's counts.
        sites: of each scan; a subject's first counts.
        train: subjects to learn from.
        test: subjects to test on.
        seed: another one gives another split.

    Returns:
        Train and test subjects, sorted.

    Raises:
        DataError: there are fewer subjects.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    if min(train, test) < 1:
        raise DataError(f"{train} train and {test} test subjects: expected at least one of each")
    site_of = dict(sorted(zip(subjects, sites, strict=True), reverse=True))
    known: dict[str, list[float]] = {subject: [] for subject in sorted(site_of)}
    for subject, age in zip(subjects, ages, strict=True):
        known[subject] += [] if age is None or math.isnan(age) else [age]
    names = np.array(sorted(known))
    if len(names) < train + test:
        raise DataError(f"{train} train and {test} test subjects: the cohort has only {len(names)}")
    mean_age = np.array([np.mean(known[name]) if known[name] else np.nan for name in names])
    third = _thirds(mean_age)
    strata = [f"{site_of[name]}/{part}" for name, part in zip(names, third, strict=True)]
    for groups in (strata, [str(part) for part in third], ["all"] * len(names)):
        label = _pooled(groups)
        if len(set(label)) <= min(train, test):
            break
    splitter = StratifiedShuffleSplit(n_splits=1, train_size=train, test_size=test, random_state=seed)
    first, second = next(splitter.split(names, label))
    return tuple(sorted(names[first].tolist())), tuple(sorted(names[second].tolist()))


def _thirds(ages: NDArray[np.float64]) -> NDArray[np.int64]:
    """0, 1 or 2: young, middle, old; -1 where the age is unknown."""
    known = ages[np.isfinite(ages)]
    edges = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else np.zeros(2)
    return np.where(np.isfinite(ages), np.searchsorted(edges, np.nan_to_num(ages)), -1)


def _pooled(groups: Iterable[str]) -> NDArray[np.str_]:
    """Groups of one join the largest: a stratum needs two members."""
    label = np.array(list(groups))
    found, counts = np.unique(label, return_counts=True)
    return np.where(np.isin(label, found[counts < 2]), found[counts.argmax()], label)
