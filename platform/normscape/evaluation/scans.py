"""Whole scans: overlapping patches, rated by a detector and fused into a map, with and without an anomaly in the volume.

A chosen scan is rated as it is, and with one anomaly of each family drawn into the volume. The map is what the detector's
`anomaly_map` says of each patch (its score, all over the patch, where it has no map), averaged over the patches at a voxel with a
window that weighs their middle most. Thresholds of the map come from whole scans of healthy validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.baselines import ImageDetector
from normscape.baselines.anomalies import scene_of
from normscape.config import POSITION_COLUMN, Config
from normscape.datasets.anomalies import AnomalyFamily
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import PatchSource
from normscape.errors import DataError
from normscape.evaluation.cases import NORMAL, Cases
from normscape.evaluation.experiment import Progress, Workbench
from normscape.evaluation.failures import blamed, checked_map, checked_scores
from normscape.evaluation.locked import LOCKED, Heard
from normscape.evaluation.splits import HEALTHY
from normscape.evaluation.thresholds import promised_thresholds
from normscape.evaluation.voxels import RATE_FIELDS, VOXEL_FIELDS, against_truth, at_threshold, top_mean
from normscape.inversion.volumes import Blender
from normscape.scoring.maps import differing, on_grid, unit_volume, with_image

_WHO = [("role", pa.string()), ("family", pa.string()), ("subject", pa.string()), ("scan", pa.int64())]
SCANS_SCHEMA = pa.schema(
    [*_WHO, ("site", pa.string())]
    + [(name, pa.float64()) for name in ("age_years", "size", "contrast", "score", "seconds", *VOXEL_FIELDS)]
    + [("patches", pa.int64())]
)
"""A row a form of a scan: `score` is the mean of its most abnormal millilitre, `seconds` those of rating the scan as it is."""
RATES_SCHEMA = pa.schema([*_WHO, ("rate", pa.float64()), ("threshold", pa.float64()), *((n, pa.float64()) for n in RATE_FIELDS)])
"""A row a form and promised rate of false positive voxels."""

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class ScanTables:
    """What came of a unit's whole scans."""

    scans: pa.Table
    rates: pa.Table
    about: dict[str, Any]
    """For `unit.json`."""


@dataclass(frozen=True)
class Form:
    """A scan, maybe with an anomaly in it."""

    family: str
    scan: int
    """Row of the cohort."""
    source: PatchSource
    """Its patches on the grid."""
    truth: NDArray[np.bool_]
    """(Z, Y, X): the anomaly within the brain."""
    size: float = float("nan")
    contrast: float = float("nan")


@dataclass(frozen=True)
class Rated:
    """What a detector says of a form."""

    form: Form
    ratings: Tensor
    """Of each patch: maps (P, 1, *S), or scores (P,). Eight megabytes for a brain at 2 mm."""
    volume: Volume
    """The fused map, (Z, Y, X)."""
    brain: NDArray[np.bool_]
    """(Z, Y, X)."""
    seconds: float
    """Of rating and fusing the whole scan; not a number where only some patches were rated anew."""


def scan_tables(bench: Workbench, detector: ImageDetector, name: str, tell: Progress, heard: Heard | None = None) -> ScanTables:
    """Rate scans of healthy validation, choose thresholds, and only then rate scans of the locked test.

    Args:
        bench: samples, roles and families.
        detector: fitted.
        name: of the unit, for the list of readings.
        tell: told how far it is.
        heard: is told when the locked test is opened.

    Raises:
        DataError: a scan holds no patch.
        DetectorFailed: the detector fails on a patch.
    """
    config, settings = bench.config, bench.config.evaluation
    families = {family: bench.families[family] for family in settings.scan_families or bench.families}
    rater = _Rater(bench, detector)
    rows: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}

    healthy = bench.validation(HEALTHY)
    validation = spread_scans(healthy, settings.scans)
    total = len(validation) + settings.scans * (1 + len(families))
    values = []
    for scan in validation:
        rated = rater.rate(next(_forms(config, healthy, scan, None, {})))
        values.append(rated.volume[rated.brain])
        rows.append(_row(bench, HEALTHY, rated))
        tell(len(rows), total, "whole scan")
    thresholds = promised_thresholds(np.concatenate(values), settings.false_positive_rates)

    test = bench.locked(f"{name}: whole scans", heard, images=settings.scans)
    chosen = spread_scans(test, settings.scans)
    for place, scan in enumerate(chosen):
        donor = chosen[(place + 1) % len(chosen)] if len(chosen) > 1 else None
        plain: Rated | None = None
        for form in _forms(config, test, scan, donor, families):
            if form.family != NORMAL and not form.truth.any():
                left_out[form.family] = left_out.get(form.family, 0) + 1
                continue
            rated = rater.rate(form, plain)
            plain = plain or rated
            rows.append(_row(bench, LOCKED, rated))
            rates += [_rate_row(rows[-1], rated, rate, threshold) for rate, threshold in thresholds.items()]
            tell(len(rows), total, "whole scan")
    about = {
        "scan_map": "anomaly_map" if rater.has_map else "patch scores",
        "voxel_thresholds": {f"{rate:g}": threshold for rate, threshold in thresholds.items()},
        "validation_scans": len(validation),
        "scans_left_out": left_out,
    }
    scans, at_rates = pa.Table.from_pylist(rows, schema=SCANS_SCHEMA), pa.Table.from_pylist(rates, schema=RATES_SCHEMA)
    return ScanTables(scans, at_rates, about)


def spread_scans(cases: Cases, count: int) -> list[int]:
    """Rows of the cohort: the first scan of each of so many subjects, evenly spread over age, the young and the old among them.

    Raises:
        DataError: the role has no scans.
    """
    source = _source(cases)
    _, index = np.unique(cases.images.subject, return_index=True)
    first = source.scan[cases.images.samples.sample_id.numpy()[index]].tolist()
    ages = source.cohort.subjects["age_years"].to_pylist()
    ordered = sorted(first, key=lambda scan: (ages[scan], scan))
    if not ordered:
        raise DataError(f"role {cases.role} has no scans")
    count = min(count, len(ordered))
    places = (np.arange(count) + 0.5) / count * len(ordered)
    return [ordered[int(place)] for place in places]


def _source(cases: Cases) -> PatchSource:
    source = cases.images.samples.images
    if not isinstance(source, PatchSource):
        raise DataError("whole scans need data.source brain")
    return source


def _forms(config: Config, cases: Cases, scan: int, donor: int | None, families: Mapping[str, AnomalyFamily]) -> Iterator[Form]:
    """A scan as it is, then with an anomaly of each family in it, drawn into the whole volume."""
    source = _source(cases)
    grid = on_grid(source, scan, stride=config.evaluation.scan_stride, max_background=config.data.max_background)
    if not len(grid):
        raise DataError(
            f"{source.cohort.folder}: scan {scan} holds no patch with at most {config.data.max_background:.0%} background"
        )
    mask = np.asarray(source.cohort.masks[scan]) > 0
    yield Form(NORMAL, scan, grid, np.zeros_like(mask))
    batch = _whole(config, source, scan, grid)
    donors = None if donor is None else _whole(config, source, donor, grid)
    for name, family in families.items():
        drawn = family.draw(batch, seed=config.seed, sample_ids=[scan], scene=scene_of(config), donors=donors)
        image = drawn.images[0, 0].numpy()
        changed = _changed(grid, scan, batch.images[0, 0].numpy(), image)
        truth = (drawn.masks[0, 0].numpy() > 0.5) & mask
        yield Form(name, scan, changed, truth, float(drawn.size[0]), float(drawn.contrast[0]))


def _whole(config: Config, source: PatchSource, scan: int, grid: PatchSource) -> ImageBatch:
    """A scan as a batch of one image, its position that of the volume's middle."""
    known = {column: values[:1] for column, values in grid.values().items()}
    frame = source.position_frame()
    middle = (np.array(source.cohort.shape, np.float64) - 1) / 2
    known[POSITION_COLUMN] = torch.from_numpy((middle @ frame[:3, :3].T + frame[:3, 3])[None].astype(np.float32))
    age = source.cohort.subjects["age_years"][scan].as_py()
    known["age_years"] = torch.tensor([[float("nan") if age is None else age]], dtype=torch.float32)
    conditions = {a.name: known[a.column or ""] for a in config.value_attributes}
    image = torch.from_numpy(unit_volume(source, scan))[None, None]
    return ImageBatch(image, torch.from_numpy(np.asarray(source.cohort.masks[scan]) > 0)[None, None], conditions)


def _changed(grid: PatchSource, scan: int, before: Volume, after: Volume) -> PatchSource:
    """The grid's patches of the changed scan; what did not change keeps its bits, so that only changed patches are rated anew."""
    form = with_image(grid, scan, after)
    raw = np.where(before != after, form.cohort.volumes[0], np.asarray(grid.cohort.volumes[scan]))
    return replace(form, cohort=replace(form.cohort, volumes=raw[None]))


class _Rater:
    """Rates patches with one detector and fuses what it says."""

    def __init__(self, bench: Workbench, detector: ImageDetector) -> None:
        self.detector = detector
        self.size = bench.config.evaluation.batch_size
        self.folder = bench.experiment.folder
        self.columns = {a.name: a.column or "" for a in bench.config.value_attributes}
        self.has_map = True

    def rate(self, form: Form, plain: Rated | None = None) -> Rated:
        """The fused map of a form.

        Args:
            form: the scan, maybe with an anomaly.
            plain: the scan as it is, rated before; only patches that differ from it are rated again.
        """
        began = time.perf_counter()
        rows = torch.arange(len(form.source)) if plain is None else differing(plain.form.source, form.source).nonzero().squeeze(1)
        found = self._rate(form.source, rows) if len(rows) else None
        if plain is None:
            assert found is not None
            ratings = found
        else:
            ratings = plain.ratings.clone()
            if found is not None:
                ratings[rows] = found
        brain = np.asarray(form.source.cohort.masks[int(form.source.scan[0])]) > 0
        volume = self._fused(form.source, ratings, brain)
        return Rated(form, ratings, volume, brain, time.perf_counter() - began if plain is None else float("nan"))

    def _rate(self, source: PatchSource, rows: Tensor) -> Tensor:
        """What the detector says of some patches: maps (P, 1, *S), or scores (P,) where it has no map."""
        known, parts = source.values(), []
        for part in rows.split(self.size):
            conditions = {name: known[column][part] for name, column in self.columns.items()}
            batch = ImageBatch(source.draw(part)[0], source.masks(part), conditions)
            with blamed("on patches of a whole scan", self.folder):
                found = checked_map(self.detector.anomaly_map(batch), batch.images)
                if found is None:
                    self.has_map = False
                    found = torch.from_numpy(checked_scores(self.detector.decision_function(batch), len(batch))).float()
            parts.append(found)
        return torch.cat(parts)

    def _fused(self, source: PatchSource, ratings: Tensor, brain: NDArray[np.bool_]) -> Volume:
        """The map (Z, Y, X); places of the brain that no patch covers get the lowest value, so that nothing is found there."""
        blender = Blender(source.cohort.shape, source.side)
        for rows in torch.arange(len(source)).split(self.size):
            masks = source.masks(rows) if ratings.ndim > 1 else None
            blender.add(ratings[rows], source.center[rows.numpy()], masks)
        covered = blender.covered.numpy() & brain
        volume = blender.result().numpy()
        lowest = volume[covered].min() if covered.any() else 0.0
        return np.where(covered, volume, lowest).astype(np.float32)


def _row(bench: Workbench, role: str, rated: Rated) -> dict[str, Any]:
    """A row of `scans.parquet`."""
    form = rated.form
    cohort = form.source.cohort
    person = cohort.subjects.slice(int(form.source.scan[0]), 1).to_pylist()[0]
    row = {
        "role": role,
        "family": form.family,
        "subject": person["subject"],
        "scan": form.scan,
        "site": bench.people[person["subject"]].site,
        "age_years": person["age_years"],
        "size": form.size,
        "contrast": form.contrast,
        "score": top_mean(rated.volume[rated.brain], cohort.spacing_mm),
        "seconds": rated.seconds,
        "patches": len(form.source),
    }
    if form.truth.any():
        row |= against_truth(rated.volume[rated.brain], form.truth[rated.brain])
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def _rate_row(row: Mapping[str, Any], rated: Rated, rate: float, threshold: float) -> dict[str, Any]:
    """A row of `scan_rates.parquet`."""
    found = at_threshold(rated.volume, rated.form.truth, rated.brain, threshold, rated.form.source.cohort.spacing_mm)
    return {name: row[name] for name, _ in _WHO} | {"rate": rate, "threshold": threshold} | found
