"""Real lesion data: folders in the layouts of public data sets, read into the table of cases that `brains.cases` takes.

Layouts, told apart by their names:

- `brats`: `BraTS*/*_t1.nii.gz` and `*_seg.nii.gz`; from 2023 on `*-t1n.nii.gz` and `*-seg.nii.gz`. Skull-stripped.
- `atlas`: ATLAS v2, `sub-*/ses-*/anat/*_T1w.nii.gz` and `*label-L_desc-T1lesion_mask.nii.gz`.
- `bids`: `sub-*/[ses-*/]anat/*_T1w.nii.gz`, and below `derivatives/` a file of the same subject and session with `lesion` in its
  name.
- `subjects`: a folder a subject, as multiple sclerosis data are handed out: a T1 (with a word `t1`, `t1w`, `mprage`, ... in its
  name) and a mask (`lesion`, `seg`, `gt`, `consensus`, `mask`, ...), there or in a folder `masks` or the like beside it. A mask
  with `brain` in its name is the brain's; a scan with it is stripped. Several scans of one folder are told apart by what their
  names begin with: `p1_01_mprage.nii` belongs to `p1_01_mask.nii`.
- `table`: a CSV, TSV, Excel or Parquet file with the columns scan (or path, t1), subject (or id), and lesion, age_years (or age),
  mask, strip, where known.

A case that cannot be used is dropped, listed with its reason, and the rest goes on.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from normscape.datasets.cohort import Dropped
from normscape.datasets.tabular import find_column, is_unknown, read_rows, to_age
from normscape.errors import DataError

LAYOUTS = ("brats", "atlas", "bids", "subjects")
"""Layouts of folders, in the order in which they are tried."""
COLUMNS = ("path", "id", "age", "lesion", "mask", "strip")
"""Of the table that is written, as `brains.cases` reads them."""
AGE_TABLES = ("participants.tsv", "survival_info.csv", "survival_data.csv")
"""Tables of ages that public data sets come with."""
SUBJECT_COLUMNS = ("subject", "id", "participant_id", "brats20id", "brats_2019_subject_id", "brats19id", "brats18id", "bratsid")
T1_WORDS = frozenset({"t1", "t1w", "t1n", "mprage", "t1mprage", "t1weighted"})
MASK_WORDS = frozenset({"seg", "segmentation", "gt", "consensus", "label", "labels", "mask", "masks", "mask1", "manual", "roi"})
BRAIN_WORDS = frozenset({"brain", "bet", "stripped"})
OTHER_WORDS = frozenset({"t1ce", "t1c", "t1gd", "t1ks", "gd", "post", "contrast", "t2", "t2w", "flair", "pd", "dwi", "swi"})
"""Words in the names of plain T1 scans, of masks, of what is the brain alone, and of scans that are no plain T1."""
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class LesionCase:
    """A scan and its lesion.

    Attributes:
        scan: the T1.
        subject: whose it is; with the session where there is one, so that every case has a name of its own.
        lesion: a mask on the scan's grid, not 0 in the lesion.
        age_years: None when unknown.
        mask: of the brain, on the scan's grid.
        strip: who finds the brain: deepbet, hdbet, mask, or none for a scan that is stripped; empty: the cohort's own way.
    """

    scan: Path
    subject: str
    lesion: Path | None = None
    age_years: float | None = None
    mask: Path | None = None
    strip: str = ""


@dataclass(frozen=True)
class LesionCases:
    """What a folder or table holds.

    Attributes:
        layout: how it was read.
        cases: what can be used, in the order of their names.
        dropped: what cannot, and why.
    """

    layout: str
    cases: tuple[LesionCase, ...]
    dropped: tuple[Dropped, ...] = ()


def read_lesions(source: Path, *, layout: str | None = None, ages: Path | None = None, strip: str | None = None) -> LesionCases:
    """Scans with lesions from a folder or a table.

    Args:
        source: the folder, or the table.
        layout: of a folder, one of LAYOUTS; the first that finds a scan when None.
        ages: a table with subjects and ages, for folders; `participants.tsv` or BraTS's own in the folder when None.
        strip: who finds the brain in these scans, instead of what the layout says.

    Raises:
        DataError: no such folder or table, no scan in this layout, or none that can be used.
    """
    dropped: list[Dropped] = []
    if source.is_file():
        kind, found = "table", list(_from_table(source, dropped))
    elif source.is_dir():
        kind, found = _from_folder(source, layout)
        known = _ages(source, ages)
        found = [replace(case, age_years=_age_of(case.subject, known)) for case in found]
    else:
        raise DataError(f"{source}: no such folder or table")
    cases: dict[str, LesionCase] = {}
    for case in sorted(found, key=lambda case: (case.subject, case.scan)):
        wrong = _wrong(case)
        if not wrong and case.subject in cases:
            wrong = f"a second scan called {case.subject}, after {cases[case.subject].scan.name}"
        if wrong:
            dropped.append(Dropped(case.subject, case.scan, wrong))
        else:
            cases[case.subject] = case if strip is None else replace(case, strip=strip)
    if not cases:
        reasons = "; ".join(f"{d.subject or d.path.name}: {d.reason}" for d in dropped[:3])
        raise DataError(f"{source}: none of {len(dropped)} cases can be used, for example {reasons}")
    return LesionCases(kind, tuple(cases.values()), tuple(dropped))


def write_cases(found: LesionCases, out: Path) -> None:
    """The table of cases, as `brains.cases` takes it: paths start from the table's folder, and may not leave it.

    Raises:
        DataError: a file lies outside of the table's folder, or the table cannot be written.
    """
    root = out.parent.resolve()
    rows = []
    for case in found.cases:
        paths = [_below(path, root, out) for path in (case.scan, case.lesion, case.mask)]
        age = "" if case.age_years is None else f"{case.age_years:g}"
        rows.append((paths[0], case.subject, age, paths[1], paths[2], case.strip))
    aside = out.with_name(f"{out.name}.tmp")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        aside.replace(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from error


def _below(path: Path | None, root: Path, out: Path) -> str:
    if path is None:
        return ""
    real = path.resolve()
    if not real.is_relative_to(root):
        raise DataError(f"{path} lies outside of {root}: {out.name} has to lie in a folder that holds all scans")
    return os.path.relpath(path.absolute(), out.parent.absolute())


# ---- layouts -----------------------------------------------------------------------------------------------------------


def _from_folder(root: Path, layout: str | None) -> tuple[str, list[LesionCase]]:
    """Layout and cases of the first layout that finds any."""
    readers = {"brats": _brats, "atlas": _atlas, "bids": _bids, "subjects": _subjects}
    if layout is not None and layout not in readers:
        raise DataError(f"layout {layout} is unknown; known are {', '.join(LAYOUTS)}")
    for name in LAYOUTS if layout is None else (layout,):
        cases = list(readers[name](root))
        if cases:
            return name, cases
    tried = "any layout that is known (" + ", ".join(LAYOUTS) + ")" if layout is None else f"layout {layout}"
    raise DataError(f"{root}: no T1 scans in {tried}; a table of scans is read, too")


def _brats(root: Path) -> Iterator[LesionCase]:
    for folder in [root, *_folders(root)]:
        if not folder.resolve().name.lower().startswith("brats"):
            continue
        files = _niftis(folder)
        scan = _ends(files, "_t1", "-t1n", "_t1n")
        if scan is not None:
            yield LesionCase(scan, folder.resolve().name, _ends(files, "_seg", "-seg"), strip="none")


def _atlas(root: Path) -> Iterator[LesionCase]:
    for scan in _bids_scans(root):
        masks = [path for path in _niftis(scan.parent) if "label-L" in path.name and "T1lesion_mask" in path.name]
        if masks:
            yield LesionCase(scan, _bids_name(scan), masks[0])


def _bids(root: Path) -> Iterator[LesionCase]:
    masks = [path for path in sorted(root.glob("derivatives/**/*")) if _is_nifti(path) and _says_lesion(path)]
    for scan in _bids_scans(root):
        if "derivatives" not in scan.relative_to(root).parts:
            name = _bids_name(scan)
            yield LesionCase(scan, name, next((path for path in masks if _bids_name(path) == name), None))


def _subjects(root: Path) -> Iterator[LesionCase]:
    """Every folder that holds a T1; the given one, too."""
    for folder in [root, *_folders(root)]:
        files = _niftis(folder)
        scans: dict[str, Path] = {}
        for path in files:
            if _words(path) & T1_WORDS and not _words(path) & OTHER_WORDS and not _is_mask(path):
                scans.setdefault(_lead(path), path)
        if not scans:
            continue
        beside = [] if folder == root else [p for p in _folders(folder.parent, deep=False) if _is_mask(p) and p != folder]
        masks = [path for path in [*files, *(path for other in beside for path in _niftis(other))] if _is_mask(path)]
        for lead, scan in scans.items():
            lesion = _partner(lead, [path for path in masks if not _of_brain(path)], alone=len(scans) == 1)
            brain = _partner(lead, [path for path in masks if _of_brain(path)], alone=len(scans) == 1)
            strip = "none" if _words(scan) & BRAIN_WORDS else "mask" if brain else ""
            name = folder.relative_to(root).as_posix().replace("/", "_") if folder != root else root.resolve().name
            yield LesionCase(scan, name if len(scans) == 1 else lead or name, lesion, mask=brain, strip=strip)


def _partner(lead: str, masks: Sequence[Path], *, alone: bool) -> Path | None:
    """The first mask whose name begins as a scan's does; any where there is one scan alone."""
    matching = [path for path in masks if lead and _stem(path).lower().startswith(lead)]
    return next(iter(matching or (masks if alone else [])), None)


def _from_table(table: Path, dropped: list[Dropped]) -> Iterator[LesionCase]:
    """Rows of a table; paths start from its folder."""
    rows = _table_rows(table)
    scan_column, subject_column = (find_column(table, rows, *names) for names in (("scan", "path", "t1"), ("subject", "id")))
    age_column = find_column(table, rows, "age_years", "age", needed=False)
    others = {name: find_column(table, rows, name, needed=False) for name in ("lesion", "mask", "strip")}
    for number, row in enumerate(rows, start=2):
        given = {name: "" if column is None or is_unknown(row[column]) else row[column] for name, column in others.items()}
        if others["strip"] is not None:
            given["strip"] = row[others["strip"]]  # `none` is a way to strip, not a missing value
        scan, subject = row[scan_column], row[subject_column]
        age, wrong = to_age(row[age_column]) if age_column else (None, "")
        if not scan or not subject:
            wrong = f"line {number} of {table.name} has no {'scan' if subject else 'subject'}"
        if wrong:
            dropped.append(Dropped(subject, table.parent / scan, wrong))
            continue
        lesion, mask = (table.parent / given[name] if given[name] else None for name in ("lesion", "mask"))
        yield LesionCase(table.parent / scan, subject, lesion, age, mask, given["strip"])


def _table_rows(table: Path) -> Sequence[Mapping[str, str]]:
    if table.suffix.lower() not in (".parquet", ".pq"):
        return read_rows(table)
    try:
        rows = pq.read_table(table).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{table}: not a readable table ({error})") from error
    if not rows:
        raise DataError(f"{table}: the table has no rows")
    return [{name: "" if value is None else str(value).strip() for name, value in row.items()} for row in rows]


# ---- names -------------------------------------------------------------------------------------------------------------


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI) and path.is_file()


def _niftis(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_nifti(path))


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _ends(files: Sequence[Path], *endings: str) -> Path | None:
    """The first file whose name ends so, in any case."""
    return next((path for path in files if _stem(path).lower().endswith(endings)), None)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", _stem(path).lower()))


def _lead(path: Path) -> str:
    """What a name begins with, before the word that says it is a T1: `p1_01` of `p1_01_mprage_pp.nii`."""
    parts = re.split(r"([^a-z0-9]+)", _stem(path).lower())
    first = next(place for place, part in enumerate(parts) if part in T1_WORDS)
    return "".join(parts[: max(first - 1, 0)])


def _says_lesion(path: Path) -> bool:
    return any("lesion" in word for word in _words(path))


def _is_mask(path: Path) -> bool:
    """Whether a file, or a folder, is named like masks: of lesions or of the brain."""
    return bool(_words(path) & MASK_WORDS) or _says_lesion(path) or "brainmask" in _words(path)


def _of_brain(path: Path) -> bool:
    return bool(_words(path) & (BRAIN_WORDS | {"brainmask"}))


def _folders(root: Path, *, deep: bool = True) -> list[Path]:
    return sorted(path for path in (root.rglob("*") if deep else root.iterdir()) if path.is_dir())


def _bids_scans(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("sub-*/**/anat/*")) if _is_nifti(path) and _stem(path).endswith("_T1w")]


def _bids_name(path: Path) -> str:
    """`01_2` of `sub-01_ses-2_T1w.nii.gz`."""
    parts = dict(re.findall(r"(sub|ses)-([A-Za-z0-9]+)", path.name))
    return "_".join(parts[key] for key in ("sub", "ses") if key in parts)


# ---- ages and checks ---------------------------------------------------------------------------------------------------


def _ages(root: Path, table: Path | None) -> dict[str, float]:
    """Subject to age, without `sub-`; nothing where there is no table."""
    path = table or next((root / name for name in AGE_TABLES if (root / name).is_file()), None)
    if path is None:
        return {}
    rows = read_rows(path)
    subject = find_column(path, rows, *SUBJECT_COLUMNS)
    column = find_column(path, rows, "age_years", "age", needed=table is not None)
    ages = {row[subject].removeprefix("sub-"): to_age(row[column])[0] for row in rows} if column else {}
    return {name: age for name, age in ages.items() if age is not None}


def _age_of(subject: str, ages: Mapping[str, float]) -> float | None:
    """Of a case, or of its subject where the case names a session, too."""
    return ages.get(subject, ages.get(subject.partition("_")[0]))


def _wrong(case: LesionCase) -> str:
    """What is wrong with the files of a case; empty when nothing is."""
    import nibabel as nib

    shapes = {}
    for what, path in (("scan", case.scan), ("lesion", case.lesion), ("mask", case.mask)):
        if path is None:
            continue
        if not path.is_file():
            return f"its {what} {path} does not exist"
        try:
            shapes[what] = tuple(n for n in nib.load(path).shape if n > 1)
        except Exception as error:  # nibabel raises errors of many kinds
            return f"its {what} {path.name} is not a readable image ({str(error).splitlines()[0] if str(error) else error!r})"
    if len(shapes["scan"]) != 3:
        return f"its scan has {len(shapes['scan'])} axes; expected 3"
    for what, shape in shapes.items():
        if shape != shapes["scan"]:
            return f"its {what} has {shape} voxels, its scan {shapes['scan']}; expected the same grid"
    return ""
