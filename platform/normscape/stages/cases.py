"""Cases: scans from outside the cohort, known to hold a lesion or just of interest, mapped as part of stage `brains`.

Each goes from its file to an anomaly map in its own space, as `normscape score` does it. Below `cases/<name>/` lie the files of
`normscape.stages.scan`; beside them, in the stage's folder:

- `cases.parquet`, a row a case: name, age_years, age_estimated (0, 1), lesion_ml, peak_score and peak_in_lesion of the anomaly
  map, `<map>_auroc` of anomaly, score, residual, excess and gradient (voxels of the lesion against the rest of the brain that
  lies in a patch), regions, patches, and reason: why a case could not be mapped, empty otherwise;
- `cases.npy`, uint8 (cases, 4, 1, H, W): slices of scan, anomaly map, excess and lesion, through the lesion's middle or else the
  map's peak.

A case that cannot be mapped is listed with its reason, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.datasets import slices
from normscape.datasets.cohort import Scan, read_table
from normscape.datasets.tabular import find_column, is_unknown, read_rows
from normscape.errors import DataError
from normscape.scoring.maps import EXCESS_SHOWN
from normscape.scoring.metrics import auroc
from normscape.stages.scan import (
    EXCESS_NAME,
    GRADIENT_NAME,
    MAP_NAME,
    RESIDUAL_NAME,
    SCORE_NAME,
    ScanModel,
    score_scan,
    stripped_by,
)

PANELS = ("scan", "anomaly", "excess", "lesion")
AREAS = {"anomaly": MAP_NAME, "score": SCORE_NAME, "residual": RESIDUAL_NAME, "excess": EXCESS_NAME, "gradient": GRADIENT_NAME}
"""Maps whose voxels are compared with the lesion, as far as they are there, and their files."""
CASE_SCHEMA = pa.schema(
    [("name", pa.string()), ("age_years", pa.float64()), ("age_estimated", pa.int64())]
    + [(name, pa.float64()) for name in ("lesion_ml", "peak_score", "peak_in_lesion", *(f"{area}_auroc" for area in AREAS))]
    + [("regions", pa.int64()), ("patches", pa.int64()), ("reason", pa.string())]
)
GREY_PERCENTILES = (1.0, 99.0)
"""Intensities of a brain that black and white stand for."""

Progress = Callable[[int, int], None]


def map_cases(table: Path, model: ScanModel, folder: Path, *, progress: Progress | None = None) -> None:
    """Map every case of a table, and write what the module says.

    Args:
        table: as `normscape prepare table` takes it (`path`, `subject` or `id`, `age`, `mask`, ...), and maybe `lesion`, a mask
            on the scan's own grid, and `strip`, who finds the brain (the cohort's own way otherwise). An unknown age is read from
            the scan.
        model: what to score with.
        folder: of the stage.
        progress: told (patches done, patches in all) of all cases together, as far as they are known.

    Raises:
        DataError: the table cannot be read.
    """
    cohort = read_table(table, require_age=False)
    extra = _extra_columns(table)
    rows: list[dict[str, Any]] = [{"name": bad.subject, "reason": bad.reason} for bad in cohort.dropped]
    panels: list[NDArray[np.uint8]] = []
    for number, scan in enumerate(cohort.scans):

        def tell(step: str, done: int, total: int, number: int = number) -> None:
            if progress is not None and step == "patches":
                progress(number * total + done, len(cohort.scans) * total)

        given = extra.get(scan.subject, {})
        lesion = given.get("lesion")
        try:
            row, pictures = _mapped(scan, stripped_by(model, given.get("strip"), scan.mask), folder, lesion, tell)
        except DataError as error:
            row, pictures = {"name": scan.name, "age_years": scan.age_years, "reason": str(error)}, None
        rows.append(row)
        panels += [] if pictures is None else [pictures]
    pq.write_table(pa.Table.from_pylist(rows, schema=CASE_SCHEMA), folder / "cases.parquet")
    np.save(folder / "cases.npy", _together(panels))


def _extra_columns(table: Path) -> dict[str, dict[str, str]]:
    """Subject to its `lesion` (a path) and `strip`, where the table has them."""
    rows = read_rows(table)
    subject = find_column(table, rows, "subject", "id")
    columns = {name: find_column(table, rows, name, needed=False) for name in ("lesion", "strip")}
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        given = {name: row[column] for name, column in columns.items() if column and row[column]}
        if is_unknown(given.get("lesion", "")):
            given.pop("lesion", None)
        else:
            given["lesion"] = str(_inside(table.parent, given["lesion"]))
        found[row[subject]] = given
    return found


def _inside(root: Path, name: str) -> Path:
    """A file of the table's folder, links followed."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} lies outside of {root}")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    return path


def _mapped(
    scan: Scan, model: ScanModel, folder: Path, lesion: str | None, tell: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """One case: its row, and its pictures (4, H, W)."""
    own = folder / "cases" / scan.name
    result = score_scan(scan, model, own, estimate_age=True, progress=tell)
    t1, maps = _volume(scan.path), {name: _volume(own / file) for name, file in AREAS.items() if (own / file).exists()}
    anomaly, excess, inside = maps["anomaly"], maps["excess"], maps["score"][0] > 0
    row: dict[str, Any] = {
        "name": scan.name,
        "age_years": result.scan.age_years,
        "age_estimated": int(scan.age_years is None),
        "peak_score": float(anomaly[0].max()),
        "regions": len(result.regions),
        "patches": result.maps.patches,
        "reason": "",
    }
    marked = np.zeros(inside.shape, bool)
    centre = [int(i) for i in np.unravel_index(int(anomaly[0].argmax()), inside.shape)]
    if lesion is not None:
        drawn, voxel_ml = _volume(Path(lesion))
        if drawn.shape != inside.shape:
            raise DataError(f"{lesion}: expected the scan's grid of {inside.shape[::-1]} voxels, found {drawn.shape[::-1]}")
        marked = drawn > 0.5
        row["lesion_ml"] = float(marked.sum() * voxel_ml)
        row["peak_in_lesion"] = float(marked[tuple(centre)])
        label = marked[inside].astype(np.int64)
        if 0 < label.sum() < len(label):
            for name, (values, _) in maps.items():
                row[f"{name}_auroc"] = float(auroc(label, values[inside].astype(np.float64), np.ones((1, len(label))))[0])
            centre = _fullest(marked)
    low, high = np.percentile(t1[0][inside], GREY_PERCENTILES) if inside.any() else (0.0, 1.0)
    box = slices.brain_box(inside | marked)
    greys = (
        slices.to_grey(t1[0], inside, float(low), float(max(high, low + 1e-6))),
        slices.to_grey(anomaly[0], inside, 0.0, 1.0),
        slices.to_grey(excess[0], inside, 0.0, EXCESS_SHOWN),
        (marked * 255).astype(np.uint8),
    )
    return row, np.stack([slices.panel(grey, centre, box) for grey in greys])


def _fullest(marked: NDArray[np.bool_]) -> list[int]:
    """The slice of each axis that holds most of a lesion: a middle that cannot lie beside it."""
    axes = range(marked.ndim)
    return [int(marked.sum(tuple(other for other in axes if other != axis)).argmax()) for axis in axes]


def _volume(path: Path) -> tuple[NDArray[np.float32], float]:
    """(Z, Y, X) in RAS orientation, and millilitres of a voxel."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj, np.float32).squeeze()
    return values.transpose(2, 1, 0), float(np.abs(np.linalg.det(image.affine[:3, :3]))) / 1000.0


def _together(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of several sizes in the middle of black ones of one size: (cases, 3, 1, H, W)."""
    height, width = (max((part.shape[axis] for part in panels), default=0) for axis in (1, 2))
    result = np.zeros((len(panels), len(PANELS), 1, height, width), np.uint8)
    for place, part in enumerate(panels):
        top, left = (height - part.shape[1]) // 2, (width - part.shape[2]) // 2
        result[place, :, 0, top : top + part.shape[1], left : left + part.shape[2]] = part
    return result
