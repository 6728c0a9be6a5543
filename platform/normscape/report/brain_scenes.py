"""Whole brains that the page's viewer shows: cases with a marked lesion, test scans with a drawn blot, test scans as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.csv
from numpy.typing import NDArray

from normscape.config import Config
from normscape.datasets.cohort import read_table
from normscape.datasets.tabular import find_column, is_unknown, read_rows
from normscape.errors import UserError
from normscape.report.source import Source, where
from normscape.report.viewer import Scene, Target, Viewer, anomaly_layer, lesion_layer, reconstruction_layer, scan_layer
from normscape.stages.cases import GREY_PERCENTILES
from normscape.stages.scan import MAP_NAME, REGIONS_NAME, SCORE_NAME

STAGE = "brains"
VIEWER = "brain-viewer"
"""Id of the viewer in the page."""
MOST_SCENES = 3
MOST_CHARACTERS = 7_500_000
"""Of all packed volumes together; further scenes are left out. What else is on a page takes 6 MB, and it stays below 15."""
SCAN_LIMIT_SD = 3.0
"""Intensities of mapped test scans are in standard deviations; those from minus to plus this are black to white."""

Volume = tuple[NDArray[np.float32], NDArray[np.float64]]
"""Values (Z, Y, X), and the affine from index (z, y, x, 1) to RAS millimetres."""


def brain_viewer(source: Source) -> Viewer | None:
    """The viewer of the section on whole brains; None where the run left no volumes."""
    scenes: list[Scene] = []
    characters = 0
    for make in _plans(source):
        if len(scenes) == MOST_SCENES:
            break
        scene = make()
        size = sum(len(layer.data) for layer in scene.layers) if scene else 0
        if scene and (characters + size <= MOST_CHARACTERS):
            scenes.append(scene)
            characters += size
    return Viewer(VIEWER, scenes, "The pictures below show slices of the same volumes.") if scenes else None


def target(viewer: Viewer | None, scene: str, place_mm: tuple[float, float, float], about: str) -> Target | None:
    """Where a row about a scene points to; None where the viewer does not show that scene."""
    shown = viewer is not None and any(one.name == scene for one in viewer.scenes) and all(np.isfinite(place_mm))
    return Target(viewer.name, scene, place_mm, about) if viewer is not None and shown else None


def case_name(name: str) -> str:
    """Name of the scene of a case; test scans have names of their own."""
    return f"case {name}"


def case_peak(source: Source, name: str) -> tuple[float, float, float] | None:
    """x, y, z (mm, of the scan) of the highest peak of a case; None where no region exceeds the threshold."""
    path = source.path(STAGE, f"cases/{name}/{REGIONS_NAME}")
    table = pyarrow.csv.read_csv(path) if path is not None else None
    if table is None or not len(table) or "scan_peak_x_mm" not in table.column_names:
        return None
    peak = [table[f"scan_peak_{axis}_mm"][0].as_py() for axis in "xyz"]
    x, y, z = (np.nan if value is None else float(value) for value in peak)
    return x, y, z


def read_volume(path: Path) -> Volume:
    """A NIfTI volume."""
    import nibabel as nib

    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return data.reshape(data.shape[:3]).transpose(2, 1, 0), np.asarray(image.affine, np.float64)[:, [2, 1, 0, 3]]


def _plans(source: Source) -> Iterator[Callable[[], Scene | None]]:
    """What makes each scene, the most telling ones first; a volume is read only when its turn comes."""
    threshold = float(source.json(STAGE, "slices.json").get("threshold", 0.5))
    cases = source.table(STAGE, "cases.parquet", "name", "reason", "lesion_ml")
    lines = [] if cases is None else list(zip(cases["name"], cases["reason"], cases["lesion_ml"], strict=True))
    done = [str(name) for name, reason, _ in lines if not reason]
    marked = [str(name) for name, reason, volume in lines if not reason and np.isfinite(volume)]
    maps = source.table(STAGE, "maps.parquet", "name", "blot", "age_years")
    yield from (partial(_case, source, name, threshold) for name in marked)
    for blot in (1, 0):
        mine = {} if maps is None else where(maps, blot=blot)
        for name, age in zip(mine.get("name", ()), mine.get("age_years", ()), strict=True):
            yield partial(_map, source, str(name), float(age), threshold)
    yield from (partial(_case, source, name, threshold) for name in done if name not in marked)


def _map(source: Source, name: str, age_years: float, threshold: float) -> Scene | None:
    """A mapped test scan, as it is or with its blot."""
    paths = {kind: source.path(STAGE, f"maps/{name}_{kind}.nii.gz") for kind in ("scan", "reconstruction", "anomaly")}
    scan_file, rebuilt_file, anomaly_file = paths.values()
    if scan_file is None or anomaly_file is None:
        return None
    (scan, affine), (anomaly, _) = read_volume(scan_file), read_volume(anomaly_file)
    inside = scan != 0
    limits = {"low": -SCAN_LIMIT_SD, "high": SCAN_LIMIT_SD}
    layers = [scan_layer(scan, inside, affine, **limits)]
    if rebuilt_file is not None:
        rebuilt = read_volume(rebuilt_file)[0]
        layers.append(reconstruction_layer(rebuilt, inside & (rebuilt != 0), affine, **limits))
    layers.append(anomaly_layer(anomaly, inside, affine, threshold=threshold))
    plain = source.path(STAGE, f"maps/{name.removesuffix('_blot')}_scan.nii.gz")
    drawn = name.endswith("_blot") and plain is not None
    if drawn and plain is not None:
        # Where the two scans differ, there the blot is.
        layers.append(lesion_layer(np.abs(scan - read_volume(plain)[0]) > 1e-3, inside, affine, label="Drawn blot"))
    title = (
        f"{name.removesuffix('_blot').replace('-', ' ')}, {age_years:.0f} years, {'with a drawn blot' if drawn else 'as it is'}"
    )
    return Scene(name, title, layers, _peak(anomaly, affine))


def _case(source: Source, name: str, threshold: float) -> Scene | None:
    """A scan from outside the cohort, on its own grid; None where its files are no longer there or do not fit."""
    found = [source.path(STAGE, f"cases/{name}/{file}") for file in (MAP_NAME, SCORE_NAME)]
    if found[0] is None or found[1] is None:
        return None
    try:
        scan_file, lesion_file = _case_files(source.config, name)
        (scan, affine), (anomaly, _), (score, _) = (read_volume(path) for path in (scan_file, found[0], found[1]))
        lesion = read_volume(lesion_file)[0] > 0.5 if lesion_file is not None else None
    except (UserError, OSError, ValueError):
        return None
    inside = score > 0
    if scan.shape != anomaly.shape or (lesion is not None and lesion.shape != scan.shape) or not inside.any():
        return None
    low, high = (float(value) for value in np.percentile(scan[inside], GREY_PERCENTILES))
    shown = inside if lesion is None else inside | lesion
    layers = [
        scan_layer(scan, shown, affine, low=low, high=max(high, low + 1e-6)),
        anomaly_layer(anomaly, shown, affine, threshold=threshold),
    ]
    if lesion is not None:
        layers.append(lesion_layer(lesion, shown, affine, label="Marked lesion"))
    return Scene(case_name(name), f"Case {name}", layers, _peak(anomaly, affine))


def _case_files(config: Config, name: str) -> tuple[Path, Path | None]:
    """The scan of a case and the mask of its lesion, from the table that names them.

    Raises:
        DataError: the table is gone, or no longer names the case.
        ValueError: likewise.
    """
    table = config.brains.cases
    if table is None:
        raise ValueError("no cases")
    scans = {scan.name: scan for scan in read_table(table, require_age=False).scans}
    if name not in scans:
        raise ValueError(f"{table}: {name} is not in it")
    lines = read_rows(table)
    subject, lesion = find_column(table, lines, "subject", "id"), find_column(table, lines, "lesion", needed=False)
    given = next((line[lesion] for line in lines if lesion and line[subject] == scans[name].subject), "")
    if not given or is_unknown(given):
        return scans[name].path, None
    path = (table.parent / given).resolve()
    if not path.is_relative_to(table.parent.resolve()):
        raise ValueError(f"{given} lies outside of the table's folder")
    return scans[name].path, path


def _peak(anomaly: NDArray[np.float32], affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """x, y, z (mm) of the highest value."""
    x, y, z, _ = (affine @ [*np.unravel_index(int(anomaly.argmax()), anomaly.shape), 1.0]).tolist()
    return x, y, z
