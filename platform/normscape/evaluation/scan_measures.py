"""Measures of whole scans, over scans of the locked test: rows of `metrics.parquet` whose role is `scan`.

Of each family: `scan_auroc`, `scan_auprc` and `scan_prevalence` of the scans with an anomaly against the scans as they are;
`voxel_auprc` and `voxel_prevalence`, means over scans; `dice` and `lesion_sensitivity` at thresholds from healthy validation
scans; `ceiling_dice`, the mean Dice at the best threshold of each scan, which needs the truth. Of the scans as they are:
`false_positives` a brain and `flagged`, the share of its voxels, at those thresholds; `seconds` a brain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from normscape.evaluation.cases import NORMAL
from normscape.evaluation.locked import LOCKED
from normscape.evaluation.measures import Rows, metric_row, with_means
from normscape.evaluation.scorebook import ALL, NEW, Estimate
from normscape.scoring.metrics import Array, Metric, auprc, auroc, prevalence, resample_counts

ROLE = "scan"
_MEANS = ("voxel_auprc", "voxel_prevalence", "ceiling_dice")
_AREAS: dict[str, Metric] = {"scan_auroc": auroc, "scan_auprc": auprc, "scan_prevalence": prevalence}


class _Scans:
    """One detector's tables of whole scans, as arrays (S, n) over seeds and scans; not a number where there is nothing."""

    def __init__(self, scans: Sequence[pa.Table], rates: Sequence[pa.Table]) -> None:
        self._scans = [[row for row in table.to_pylist() if row["role"] == LOCKED] for table in scans]
        self._rates = [table.to_pylist() for table in rates]
        plain_rows = [row for row in self._scans[0] if row["family"] == NORMAL]
        self.scans = [row["scan"] for row in plain_rows]
        self.subjects = np.unique([row["subject"] for row in plain_rows], return_inverse=True)[1]
        self.families = [name for name in dict.fromkeys(row["family"] for row in self._scans[0]) if name != NORMAL]
        self.rates = sorted({row["rate"] for row in self._rates[0]})

    def resamples(self, count: int, seed: int) -> Array:
        """How often each scan is drawn when subjects are, (R, n); none with fewer than two subjects."""
        people = int(self.subjects.max()) + 1
        return resample_counts(people, count, seed)[:, self.subjects] if people > 1 else np.empty((0, len(self.subjects)))

    def count(self, family: str, learned: Sequence[str]) -> int:
        """Scans with an anomaly that a number is about."""
        among = {ALL: self.families, NEW: [name for name in self.families if name not in learned]}.get(family, [family])
        return 0 if family == NORMAL else sum(row["family"] in among for row in self._scans[0])

    def values(self, field: str, family: str) -> Array:
        """Of `scans.parquet`."""
        return self._array(self._scans, field, family, None)

    def at_rate(self, field: str, family: str, rate: float) -> Array:
        """Of `scan_rates.parquet`."""
        return self._array(self._rates, field, family, rate)

    def _array(self, tables: Sequence[Rows], field: str, family: str, rate: float | None) -> Array:
        found = np.full((len(tables), len(self.scans)), np.nan)
        place = {scan: i for i, scan in enumerate(self.scans)}
        for seed, rows in enumerate(tables):
            for row in rows:
                if row["family"] == family and row.get("rate") == rate and row[field] is not None:
                    found[seed, place[row["scan"]]] = row[field]
        return found


def scan_rows(
    scans: Mapping[str, Sequence[pa.Table]],
    rates: Mapping[str, Sequence[pa.Table]],
    supervision: Mapping[str, str],
    learned: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Rows:
    """Rows of `metrics.parquet`.

    Args:
        scans: detector to `scans.parquet` of each seed.
        rates: detector to `scan_rates.parquet` of each seed.
        supervision: of each detector.
        learned: families that detectors may have learned from.
        resamples: of subjects.
        seed: of the resampling.
    """
    rows: Rows = []
    for detector in scans:
        tables = _Scans(scans[detector], rates[detector])
        drawn = tables.resamples(resamples, seed)
        counts = {"subjects": int(tables.subjects.max()) + 1, "normals": len(tables.scans)}
        for metric, rate, found in _measured(tables, drawn):
            means = found if NORMAL in found else with_means(found, learned)
            for family, estimate in means.items():
                row = metric_row(ROLE, detector, supervision[detector], family, metric, rate, estimate)
                rows.append(row | counts | {"anomalies": tables.count(family, learned)})
    return rows


def _measured(tables: _Scans, drawn: Array) -> Iterator[tuple[str, float | None, dict[str, Estimate]]]:
    """(metric, rate, family to estimate)."""
    families = tables.families
    for name, area in _AREAS.items():
        yield name, None, {family: _area(tables, family, area, drawn) for family in families}
    for name in _MEANS:
        yield name, None, {family: _mean(tables.values(name, family), drawn) for family in families}
    yield "seconds", None, {NORMAL: _mean(tables.values("seconds", NORMAL), drawn)}
    for rate in tables.rates:
        for name in ("false_positives", "flagged"):
            yield name, rate, {NORMAL: _mean(tables.at_rate(name, NORMAL, rate), drawn)}
        yield "dice", rate, {family: _mean(tables.at_rate("dice", family, rate), drawn) for family in families}
        found = {}
        for family in families:
            above, below = (tables.at_rate(name, family, rate) for name in ("found", "lesions"))
            found[family] = _ratio(above, below, drawn)
        yield "lesion_sensitivity", rate, found


def _mean(values: Array, drawn: Array) -> Estimate:
    """Mean over the scans that have a value, of each seed (S,) and of each resample (R,)."""
    return _ratio(values, np.ones_like(values), drawn)


def _ratio(above: Array, below: Array, drawn: Array) -> Estimate:
    """Sum over sum, of the scans that have both, of each seed and of each resample."""
    kept = (np.isfinite(above) & np.isfinite(below)).all(axis=0)
    above, below, drawn = above[:, kept], below[:, kept], drawn[:, kept]
    by_seed = _divide(above.sum(axis=1), below.sum(axis=1))
    resampled = np.mean([_divide(drawn @ a, drawn @ b) for a, b in zip(above, below, strict=True)], axis=0)
    return Estimate(by_seed, resampled)


def _divide(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _area(tables: _Scans, family: str, metric: Metric, drawn: Array) -> Estimate:
    """An area of the scans with an anomaly against the scans as they are."""
    plain_, changed = tables.values("score", NORMAL), tables.values("score", family)
    kept = np.flatnonzero(np.isfinite(changed).all(axis=0))
    label: NDArray[np.int64] = np.repeat([0, 1], [len(tables.scans), len(kept)]).astype(np.int64)
    owner = np.concatenate([np.arange(len(tables.scans)), kept])
    score = np.concatenate([plain_, changed[:, kept]], axis=1)
    once = np.ones((1, len(label)))
    by_seed = np.array([metric(label, row, once)[0] for row in score])
    return Estimate(by_seed, np.mean([metric(label, row, drawn[:, owner]) for row in score], axis=0))
