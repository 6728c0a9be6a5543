"""All scans of a cohort, one by one, into a prepared cohort (`normscape.datasets.prepared`).

Scans are prepared by this process or by any number of others, each into a folder of its own; a run that was cut off does only
what is missing. Then the volumes are gathered, one at a time: memory does not grow with the number of scans.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import normscape
from normscape.datasets.cohort import Cohort, Scan
from normscape.datasets.prepared import COHORT_NAME, QUARANTINE_SCHEMA, SUBJECT_SCHEMA, PreparedCohort
from normscape.errors import DataError, UserError
from normscape.preprocessing import quality
from normscape.preprocessing.atlas import Atlas, load_atlas
from normscape.preprocessing.registration import check_registration
from normscape.preprocessing.scan import MASK_NAME, T1_NAME, PreparedScan, one_line, prepare_scan, prepared_before, quarantined
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.preprocessing.stripping import check_stripper

DROPPED = "cohort"
"""The step of scans that were dropped before any was read."""
OUTLIERS = {"brain_volume_ml": "brain volume unlike the others'", "atlas_dice": "overlap lower than the others'"}
"""Measurement -> flag of the scans that stand out in their cohort."""

Progress = Callable[[int, int], None]
"""Told (scans done, scans in all)."""


@dataclass(frozen=True)
class Work:
    """What is left to do."""

    scans: Sequence[Scan]
    """The missing ones."""
    settings: PreprocessingSettings
    atlas: Atlas
    """At the spacing of the settings."""
    folder: Path
    """Of the cohort."""


Workers = Callable[[Work], Generator[PreparedScan, None, None]]
"""Prepares the missing scans, in any order, and tells of each one when its files are there."""


def in_this_process(work: Work) -> Generator[PreparedScan, None, None]:
    """One scan after the other."""
    for scan in work.scans:
        yield prepare_one(scan, work.settings, work.atlas, work.folder)


def prepare_one(scan: Scan, settings: PreprocessingSettings, atlas: Atlas, folder: Path) -> PreparedScan:
    """`prepare_scan`, with an error that nobody thought of quarantining this scan, and not ending all of them.

    Raises:
        UserError: as `prepare_scan` does.
    """
    try:
        return prepare_scan(scan, settings, atlas, folder)
    except UserError:
        raise
    except MemoryError:
        return quarantined(scan, folder, "memory", "this machine has too little memory for it")
    except Exception as error:
        return quarantined(scan, folder, "unexpected", f"{type(error).__name__}: {error}")


def prepare_cohort(
    cohort: Cohort,
    settings: PreprocessingSettings,
    folder: Path,
    *,
    workers: Workers = in_this_process,
    progress: Progress | None = None,
) -> list[PreparedScan]:
    """Prepare the scans that are missing.

    Args:
        cohort: which scans.
        settings: what to do with them.
        folder: receives `scans/`.
        workers: who does it.
        progress: told how far it is.

    Returns:
        What became of each scan, in the cohort's order.

    Raises:
        UserError: a package is missing, or the disk is full.
        DataError: the atlas cannot be read.
    """
    check_stripper(settings.strip)
    check_registration(settings)
    atlas = load_atlas(settings.spacing_mm, settings.atlas)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, PreparedScan] = {}
    for scan in cohort.scans:
        before = prepared_before(scan, settings, atlas, folder)
        if before is not None:
            results[_key(scan)] = before
    missing = [scan for scan in cohort.scans if _key(scan) not in results]

    def tell() -> None:
        if progress:
            progress(len(results), len(cohort.scans))

    tell()
    if missing:
        with closing(workers(Work(missing, settings, atlas, folder))) as prepared:
            for result in prepared:
                results[_key(result.scan)] = result
                tell()
    return [results[_key(scan)] for scan in cohort.scans]


def assemble(
    cohort: Cohort,
    settings: PreprocessingSettings,
    folder: Path,
    prepared: Sequence[PreparedScan],
    *,
    progress: Progress | None = None,
) -> PreparedCohort:
    """Gather prepared scans into the files of a prepared cohort, `cohort.json` last.

    `subjects.parquet` gets, besides what every cohort has, what was measured (brain_volume_ml, atlas_dice, ...; null where it was
    not) and `flags`, a text, empty for most. `quarantined.parquet` names the scans that failed and those that were dropped.

    Args:
        cohort: which scans.
        settings: what was done with them.
        folder: receives the files.
        prepared: what `prepare_cohort` returned.
        progress: told how many volumes are written.

    Raises:
        DataError: every scan is quarantined, or a scan's files are damaged.
        UserError: the disk is full.
    """
    atlas = load_atlas(settings.spacing_mm, settings.atlas)
    good = _flag_outliers([result for result in prepared if result.good])
    if not good:
        reasons = "; ".join(f"{r.scan.name}: {r.step}: {r.reason}" for r in prepared[:3])
        raise DataError(f"{cohort.name}: all {len(prepared)} scans are quarantined, for example {reasons}")
    (folder / COHORT_NAME).unlink(missing_ok=True)  # half of it is no cohort
    try:
        _write_volumes(good, atlas, folder, progress)
        _write_tables(cohort, prepared, good, folder)
        for name, array in (("atlas", atlas.t1), ("atlas_mask", atlas.mask)):
            with _aside(folder / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
            _settle(folder / f"{name}.npy")
        described = _describe(cohort, settings, atlas)
        _aside(folder / COHORT_NAME).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _settle(folder / COHORT_NAME)
    except OSError as error:
        raise UserError(f"cannot write the prepared cohort to {folder}: {error.strerror or error}") from error
    return PreparedCohort.open(folder)


def _key(scan: Scan) -> str:
    return f"{scan.subject}/{scan.session}"


def _flag_outliers(good: Sequence[PreparedScan]) -> list[PreparedScan]:
    """Add a flag to scans that stand out among all."""
    added: list[list[str]] = [[] for _ in good]
    for name, flag in OUTLIERS.items():
        values = [result.measured[name] for result in good]
        for place, out in enumerate(quality.outlying(values, low_only=name == "atlas_dice")):
            if out:
                added[place].append(flag)
    return [replace(result, flags=(*result.flags, *more)) for result, more in zip(good, added, strict=True)]


def _write_volumes(good: Sequence[PreparedScan], atlas: Atlas, folder: Path, progress: Progress | None) -> None:
    import SimpleITK as sitk

    shape = (len(good), *atlas.mask.shape)
    files = {"volumes": (T1_NAME, np.float16), "masks": (MASK_NAME, np.uint8)}
    maps = {
        name: np.lib.format.open_memmap(_aside(folder / f"{name}.npy"), mode="w+", dtype=kind, shape=shape)
        for name, (_, kind) in files.items()
    }
    for place, result in enumerate(good):
        for name, (file, kind) in files.items():
            try:
                values = sitk.GetArrayFromImage(sitk.ReadImage(str(result.folder / file)))
            except RuntimeError as error:
                raise DataError(f"{result.folder / file}: damaged; remove {result.folder} and run again") from error
            if values.shape != shape[1:]:
                raise DataError(f"{result.folder / file}: expected {shape[1:]} voxels, found {values.shape}")
            maps[name][place] = values.astype(kind)
        if progress:
            progress(place + 1, len(good))
    for name in files:
        maps[name].flush()
        _settle(folder / f"{name}.npy")


def _write_tables(cohort: Cohort, prepared: Sequence[PreparedScan], good: Sequence[PreparedScan], folder: Path) -> None:
    scans = [result.scan for result in good]
    columns: dict[str, list[Any]] = {
        "subject": [scan.subject for scan in scans],
        "session": [scan.session for scan in scans],
        "age_years": [scan.age_years for scan in scans],
        "sex": [scan.sex for scan in scans],
        "site": [scan.site for scan in scans],
        "scan": [str(scan.path) for scan in scans],
    }
    values = [dict(result.scan.measured) | result.measured for result in good]
    extra = list(dict.fromkeys(name for row in values for name in row if name not in columns))
    schema = SUBJECT_SCHEMA
    for name in extra:
        columns[name] = [row.get(name) for row in values]
        schema = schema.append(pa.field(name, pa.float64()))
    columns["flags"] = [", ".join(result.flags) for result in good]
    pq.write_table(pa.table(columns, schema.append(pa.field("flags", pa.string()))), _aside(folder / "subjects.parquet"))
    _settle(folder / "subjects.parquet")
    bad = [(r.scan.subject, str(r.scan.path), r.step, r.reason) for r in prepared if not r.good]
    bad += [(d.subject, str(d.path), DROPPED, one_line(d.reason)) for d in cohort.dropped]
    table = {name: [row[place] for row in bad] for place, name in enumerate(QUARANTINE_SCHEMA.names)}
    pq.write_table(pa.table(table, QUARANTINE_SCHEMA), _aside(folder / "quarantined.parquet"))
    _settle(folder / "quarantined.parquet")


def _describe(cohort: Cohort, settings: PreprocessingSettings, atlas: Atlas) -> dict[str, Any]:
    import SimpleITK as sitk

    return {
        "name": cohort.name,
        "source": cohort.source,
        "atlas": atlas.name,
        "atlas_digest": atlas.digest,
        "spacing_mm": atlas.spacing_mm,
        "shape": list(atlas.mask.shape),
        "affine": atlas.affine.tolist(),
        "settings": settings.model_dump(mode="json"),
        "versions": {"normscape": normscape.__version__, "SimpleITK": sitk.Version_VersionString()},
    }


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _settle(path: Path) -> None:
    """Flush what was written aside to the disk, then give it its name."""
    with _aside(path).open("rb") as file:
        os.fsync(file.fileno())
    os.replace(_aside(path), path)
