"""A prepared cohort: scans of many subjects on one atlas grid, as preprocessing leaves them and patches are cut from them.

A folder with

- `cohort.json`: name, source, atlas, spacing_mm, shape, affine, settings of the preprocessing;
- `subjects.parquet`, a row a scan, in the order of the volumes: subject, session, age_years (null when unknown), sex, site, scan
  (the file it comes from), and what preprocessing measured;
- `quarantined.parquet`: subject, scan, step, reason of the scans that were left out;
- `volumes.npy`, float16 (N, Z, Y, X): bias-corrected intensities, not normalised, 0 outside the mask; memory-mapped;
- `masks.npy`, uint8 (N, Z, Y, X): 1 in the brain; memory-mapped;
- `atlas.npy`, float32 (Z, Y, X), and `atlas_mask.npy`, uint8 (Z, Y, X): the atlas on the same grid.

Needs NumPy and PyArrow only, so that a prepared cohort travels to any GPU machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.errors import DataError

COHORT_NAME = "cohort.json"
SUBJECT_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("session", pa.string()),
        ("age_years", pa.float64()),
        ("sex", pa.string()),
        ("site", pa.string()),
        ("scan", pa.string()),
    ]
)
"""Columns that every table of subjects has; preprocessing adds its measurements."""
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("subject", "scan", "step", "reason")])


@dataclass(frozen=True)
class PreparedCohort:
    """A prepared cohort, with its volumes memory-mapped.

    Attributes:
        folder: where it lies.
        name: what tables and pages call it ("simulated cohort", "IXI-HH 2 mm (121 subjects)"); never another cohort's name.
        source: table | ixi | bids | simulated.
        spacing_mm: side of a voxel; isotropic.
        affine: (4, 4), index (z, y, x, 1) to RAS world millimetres of the atlas.
        subjects: the table of subjects, a row a volume.
        volumes: float16 (N, Z, Y, X).
        masks: uint8 (N, Z, Y, X).
        atlas: float32 (Z, Y, X).
        atlas_mask: uint8 (Z, Y, X).
    """

    folder: Path
    name: str
    source: str
    spacing_mm: float
    affine: NDArray[np.float64]
    subjects: pa.Table
    volumes: NDArray[np.float16]
    masks: NDArray[np.uint8]
    atlas: NDArray[np.float32]
    atlas_mask: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of a volume."""
        z, y, x = self.atlas_mask.shape
        return z, y, x

    def world(self, index_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Voxel indices `(..., 3)` in the order z, y, x to RAS millimetres `(..., 3)` in the order x, y, z."""
        return np.asarray(index_zyx @ self.affine[:3, :3].T + self.affine[:3, 3])

    @classmethod
    def open(cls, folder: Path) -> PreparedCohort:
        """Read the tables and map the volumes.

        Raises:
            DataError: the folder holds no prepared cohort, or its files do not fit together.
        """
        try:
            described = json.loads((folder / COHORT_NAME).read_text(encoding="utf-8"))
            subjects = pq.read_table(folder / "subjects.parquet")
            volumes, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("volumes", "masks"))
            atlas, atlas_mask = (np.load(folder / f"{name}.npy") for name in ("atlas", "atlas_mask"))
            cohort = cls(
                folder, described["name"], described["source"], float(described["spacing_mm"]),
                np.array(described["affine"], float),
                subjects, volumes, masks, atlas, atlas_mask,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise DataError(f"{folder}: not a prepared cohort ({Path(error.filename).name} is missing)") from error
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataError(f"{folder}: not a readable prepared cohort ({error})") from error
        cohort._check()
        return cohort

    def _check(self) -> None:
        expected = (len(self.subjects), *self.atlas_mask.shape)
        found = {"volumes.npy": self.volumes.shape, "masks.npy": self.masks.shape, "atlas.npy": (expected[0], *self.atlas.shape)}
        wrong = [f"{name} is {shape}" for name, shape in found.items() if shape != expected]
        missing = [name for name in SUBJECT_SCHEMA.names if name not in self.subjects.column_names]
        if wrong or missing:
            problems = wrong + [f"subjects.parquet lacks {name}" for name in missing]
            raise DataError(
                f"{self.folder}: the files of the prepared cohort do not fit together: expected {expected}, {problems}"
            )
