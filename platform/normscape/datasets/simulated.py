"""The simulated cohort: brains of people who do not exist, for when no scans are at hand.

It is made of four real brains, mixed and deformed (`simulated_anatomy.py`), and seen by three scanners (`simulated_scanner.py`).
Subjects are 20 to 86 years old; ventricles widen, cortex thins, sulci open and contrast falls with age at the rates of the
literature, with scatter between people. A scan is a pure function of (seed, number, session). There are two doors:

- `simulate_cohort` writes NIfTI scans in a moved head position, with masks and `subjects.csv`, for the preprocessing to read like
  anybody's;
- `simulate_prepared` writes a prepared cohort directly on the atlas's grid, without head position and bias field.

It stays a simulation, whatever is measured on it: it knows no disease, no motion and no anatomy beyond the mix of four brains.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from normscape.datasets.prepared import COHORT_NAME, QUARANTINE_SCHEMA, SUBJECT_SCHEMA, PreparedCohort
from normscape.datasets.simulated_anatomy import OUTSIDE, Anatomy, Subject, assets, build, describe, generator
from normscape.datasets.simulated_fields import sample
from normscape.datasets.simulated_files import ArrayFile, Row, read_rows, write_rows, write_text, writing
from normscape.datasets.simulated_scanner import acquire
from normscape.errors import DataError

COHORT_TITLE = "simulated cohort"
SIMULATOR_VERSION = 1
"""Part of a cohort's settings: raise it when a scan changes."""
FIELD_OF_VIEW_MM = (180.0, 216.0, 180.0)
"""Of a scan in its own space, z, y, x."""
ATLAS_ORIGIN_MM, ATLAS_SHAPE = (-239.0, 0.0, 0.0), (155, 240, 240)
"""First voxel (x, y, z, RAS) and shape (Z, Y, X) of SRI24 at 1 mm."""
TABLE_NAME = "subjects.csv"
ROWS_NAME = "subjects.partial.csv"
"""Rows of the scans that are written, while the cohort is being made."""
COLUMNS = ("subject", "session", "age_years", "sex", "site", "t1", "mask", "ventricle_volume_ml")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SimulatedScan:
    """One scan.

    Attributes:
        subject: who was scanned.
        session: 1 for the first scan, 2 and on for repeats.
        t1: float32 (Z, Y, X), stripped: 0 outside the mask.
        mask: uint8 (Z, Y, X).
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres of the scan's own space.
        ventricle_volume_ml: lateral ventricles, true volume in that space.
    """

    subject: Subject
    session: int
    t1: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    ventricle_volume_ml: float


def simulate_subject(number: int, *, seed: int, session: int = 1, spacing_mm: float = 2.0) -> SimulatedScan:
    """A scan of a subject in the scanner's space: head moved and turned a little, of its own size, with bias field.

    Args:
        number: which subject; not negative.
        seed: which cohort.
        session: 1, or more for a repeat scan.
        spacing_mm: side of a voxel.
    """
    subject = describe(seed, number)
    return _scan(subject, build(subject), session, spacing_mm)


def _scan(subject: Subject, anatomy: Anatomy, session: int, spacing_mm: float) -> SimulatedScan:
    random = generator(subject.seed, subject.number, 2, session)
    shape = [round(side / spacing_mm) for side in FIELD_OF_VIEW_MM]
    affine = _grid_affine(spacing_mm, -spacing_mm * (np.array(shape[::-1]) - 1) / 2)
    turn = Rotation.from_euler("xyz", random.normal(0, (6.0, 3.0, 3.0)), degrees=True).as_matrix()
    shift = random.normal(0, 4.0, 3)
    # From the scan to the atlas's box: turn about the middle of the head, undo the size. x, y, z millimetres.
    data = assets()
    middle = data.extent_mm.numpy()[::-1] / 2
    linear = turn @ affine[:3, :3] / subject.head_scale
    offset = turn @ (affine[:3, 3] + shift) / subject.head_scale + middle
    return _acquired(subject, anatomy, session, random, _points(shape, linear, offset), affine, spacing_mm, bias=True)


def _acquired(
    subject: Subject, anatomy: Anatomy, session: int, random: np.random.Generator, points_mm: Tensor,
    affine: NDArray[np.float64], spacing_mm: float, *, bias: bool,
) -> SimulatedScan:  # fmt: skip
    """The scan whose voxels lie at these places of the atlas's box."""
    level, ventricle, inside = anatomy.at(points_mm)
    mask = _largest_part(inside > 0.5)
    t1 = acquire(level, mask, subject, random, spacing_mm=spacing_mm, bias=bias)
    volume = float(ventricle.sum()) * spacing_mm**3 / 1000
    return SimulatedScan(subject, session, t1, mask.numpy().astype(np.uint8), affine, volume)


def _largest_part(mask: Tensor) -> Tensor:
    """The mask without islands."""
    labels, _ = ndimage.label(mask.numpy())
    return torch.from_numpy(labels == np.bincount(labels.ravel())[1:].argmax() + 1)


def _grid_affine(spacing_mm: float, origin_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index (z, y, x, 1) to RAS x, y, z."""
    affine = np.zeros((4, 4))
    affine[[0, 1, 2], [2, 1, 0]] = spacing_mm
    affine[:3, 3], affine[3, 3] = origin_mm, 1.0
    return affine


def _points(shape: Sequence[int], linear: NDArray[np.float64], offset: NDArray[np.float64]) -> Tensor:
    """Places of a grid's voxels, `linear @ (z, y, x) + offset`, with the result's x, y, z turned to z, y, x: (*shape, 3)."""
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return index @ torch.from_numpy(linear[::-1].T.copy()).float() + torch.from_numpy(offset[::-1].copy()).float()


def sessions(subjects: int, repeats: int) -> list[tuple[int, int]]:
    """(number, session) of every scan of a cohort: the first `repeats` subjects are scanned twice."""
    return [(number, session) for number in range(subjects) for session in range(1, 3 if number < repeats else 2)]


def simulate_cohort(
    folder: Path, *, subjects: int, seed: int, spacing_mm: float = 2.0, repeats: int = 0, progress: Progress | None = None
) -> Path:
    """Write a cohort as NIfTI scans and a table.

    `folder/t1/sim-0007_ses-1.nii.gz` (int16), `folder/mask/...` (uint8), `folder/subjects.csv` with the columns COLUMNS and paths
    relative to it. The table is written last. Cut off and called again it goes on; when finished it does nothing.

    Args:
        folder: where to; made when absent.
        subjects: how many.
        seed: which cohort.
        spacing_mm: side of a voxel.
        repeats: how many of the subjects are scanned a second time.
        progress: called with (scans done, scans in all).

    Returns:
        Path of the table.

    Raises:
        DataError: the folder holds a cohort with other settings, or cannot be written.
    """
    table = folder / TABLE_NAME
    with writing(folder, {"kind": "scans", **_settings(subjects, seed, spacing_mm, repeats)}):
        if table.exists():
            return table

        def make(place: int, subject: Subject, session: int, anatomy: Anatomy) -> Row:
            return _write_scan(folder, _scan(subject, anatomy, session, spacing_mm))

        rows = _produce(folder, seed, sessions(subjects, repeats), make, progress)
        write_rows(table, rows, header=True)
        (folder / ROWS_NAME).unlink()
    return table


def simulate_prepared(
    folder: Path, *, subjects: int, seed: int, spacing_mm: int = 2, repeats: int = 0, progress: Progress | None = None
) -> PreparedCohort:
    """Write a prepared cohort: brains already on the grid of SRI24, without head position and bias field.

    The same people as `simulate_cohort` makes with the same seed; other noise. Arguments, resuming and errors as there;
    `spacing_mm` is a whole number. The table has one more column, ventricle_volume_ml, measured on the atlas's grid: relative to
    head size.
    """
    shape, affine = atlas_grid(spacing_mm)
    todo = sessions(subjects, repeats)
    with writing(folder, {"kind": "prepared", **_settings(subjects, seed, spacing_mm, repeats)}) as settings:
        if (folder / COHORT_NAME).exists():
            return PreparedCohort.open(folder)
        volumes = ArrayFile(folder / "volumes.npy", (len(todo), *shape), np.dtype(np.float16))
        masks = ArrayFile(folder / "masks.npy", (len(todo), *shape), np.dtype(np.uint8))

        def make(place: int, subject: Subject, session: int, anatomy: Anatomy) -> Row:
            scan = _on_atlas(subject, anatomy, session, spacing_mm)
            volumes.write(place, scan.t1)
            masks.write(place, scan.mask)
            name = f"{subject.name}_ses-{session}"
            return _row(scan, t1=name, mask="")

        rows = _produce(folder, seed, todo, make, progress)
        volumes.finish()
        masks.finish()
        atlas, atlas_mask = atlas_template(spacing_mm)
        np.save(folder / "atlas.npy", atlas)
        np.save(folder / "atlas_mask.npy", atlas_mask)
        pq.write_table(_subject_table(rows), folder / "subjects.parquet")
        pq.write_table(QUARANTINE_SCHEMA.empty_table(), folder / "quarantined.parquet")
        described = {
            "name": COHORT_TITLE, "source": "simulated", "atlas": "SRI24", "spacing_mm": spacing_mm, "shape": list(shape),
            "affine": affine.tolist(), "settings": settings,
        }  # fmt: skip
        write_text(folder / COHORT_NAME, json.dumps(described, indent=2))
        (folder / ROWS_NAME).unlink()
    return PreparedCohort.open(folder)


def atlas_grid(spacing_mm: int) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (Z, Y, X) and affine of SRI24's grid in voxels of this side, which begin at the same corner as those of 1 mm."""
    z, y, x = (-(-side // spacing_mm) for side in ATLAS_SHAPE)
    return (z, y, x), _grid_affine(spacing_mm, np.array(ATLAS_ORIGIN_MM) + (spacing_mm - 1) / 2)


def atlas_template(spacing_mm: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """SRI24's own levels, from 0 to 1.5, and mask on its grid: float32 and uint8 (Z, Y, X)."""
    data, (shape, affine) = assets(), atlas_grid(spacing_mm)
    channels = torch.stack([data.levels[0] - OUTSIDE, data.masks[0].float()])
    level, inside = sample(channels, _box_places(shape, affine), data.extent_mm)
    mask = inside > 0.5
    return torch.where(mask, level.clamp_min(0.01), 0.0).numpy(), mask.numpy().astype(np.uint8)


def _on_atlas(subject: Subject, anatomy: Anatomy, session: int, spacing_mm: int) -> SimulatedScan:
    """A scan on the atlas's grid, computed where the brain can be and 0 elsewhere."""
    random = generator(subject.seed, subject.number, 3, session)
    shape, affine = atlas_grid(spacing_mm)
    corner = (assets().origin_mm - affine[:3, 3])[::-1] / spacing_mm  # z, y, x, in voxels
    low = np.maximum(np.floor(corner), 0).astype(int)
    high = np.minimum(np.ceil(corner + assets().extent_mm.numpy() / spacing_mm) + 1, shape).astype(int)
    inner = affine.copy()
    inner[:3, 3] += affine[:3, :3] @ low
    part = _acquired(
        subject, anatomy, session, random, _box_places(tuple(high - low), inner), affine, spacing_mm, bias=False
    )  # fmt: skip
    around = [(a, n - b) for a, b, n in zip(low, high, shape, strict=True)]
    return replace(part, t1=np.pad(part.t1, around), mask=np.pad(part.mask, around))


def _box_places(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Tensor:
    return _points(shape, affine[:3, :3], affine[:3, 3] - assets().origin_mm)


def _settings(subjects: int, seed: int, spacing_mm: float, repeats: int) -> dict[str, Any]:
    if subjects < 1 or not 0 <= repeats <= subjects or seed < 0 or not 0.5 <= spacing_mm <= 8:
        raise DataError(
            f"a {COHORT_TITLE} needs at least one subject, at most one repeat scan a subject, a seed of 0 or more and a spacing "
            f"of 0.5 to 8 mm; found subjects {subjects}, repeats {repeats}, seed {seed}, spacing {spacing_mm}"
        )
    return {
        "subjects": subjects, "seed": seed, "spacing_mm": float(spacing_mm), "repeats": repeats, "version": SIMULATOR_VERSION
    }  # fmt: skip


def _produce(
    folder: Path,
    seed: int,
    todo: list[tuple[int, int]],
    make: Callable[[int, Subject, int, Anatomy], Row],
    progress: Progress | None,
) -> list[Row]:
    """The row of every scan, made or read from the record of an earlier call; a scan is in the record once it is written."""
    record = folder / ROWS_NAME
    rows = read_rows(record, COLUMNS)[: len(todo)]
    write_rows(record, rows, header=False)  # without a last line that was cut off
    anatomy: tuple[int, Anatomy] | None = None
    with record.open("a", newline="", encoding="utf-8") as file:
        for place in range(len(rows), len(todo)):
            number, session = todo[place]
            subject = describe(seed, number)
            if anatomy is None or anatomy[0] != number:
                anatomy = number, build(subject)
            rows.append(make(place, subject, session, anatomy[1]))
            csv.DictWriter(file, COLUMNS).writerow(rows[-1])
            file.flush()
            if progress is not None:
                progress(len(rows), len(todo))
    return rows


def _row(scan: SimulatedScan, *, t1: str, mask: str) -> Row:
    subject = scan.subject
    return {
        "subject": subject.name, "session": str(scan.session), "age_years": f"{subject.age_years:.2f}", "sex": subject.sex,
        "site": subject.site, "t1": t1, "mask": mask, "ventricle_volume_ml": f"{scan.ventricle_volume_ml:.3f}",
    }  # fmt: skip


def _write_scan(folder: Path, scan: SimulatedScan) -> Row:
    """Write T1 and mask, each aside first, and describe them."""
    import nibabel as nib

    name = f"{scan.subject.name}_ses-{scan.session}.nii.gz"
    affine = scan.affine[:, [2, 1, 0, 3]]  # for arrays in the order x, y, z
    for kind, values in (("t1", np.rint(scan.t1).astype(np.int16)), ("mask", scan.mask)):
        (folder / kind).mkdir(exist_ok=True)
        image = nib.Nifti1Image(values.transpose(2, 1, 0), affine)
        image.header.set_xyzt_units("mm")
        part = folder / kind / f".partial-{name}"
        nib.save(image, part)
        os.replace(part, folder / kind / name)
    return _row(scan, t1=f"t1/{name}", mask=f"mask/{name}")


def _subject_table(rows: list[Row]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("subject", "session", "sex", "site")}
    columns["age_years"] = [float(row["age_years"]) for row in rows]
    columns["scan"] = [row["t1"] for row in rows]
    columns["ventricle_volume_ml"] = [float(row["ventricle_volume_ml"]) for row in rows]
    return pa.table(columns, schema=SUBJECT_SCHEMA.append(pa.field("ventricle_volume_ml", pa.float64())))
