"""Tables of an evaluation: areas, rates at promised thresholds, strata, ROC curves.

- `metrics.parquet`, a row a number: role, detector, supervision, family (or a mean over families), metric, rate (of the promised
  false positives; null where there is none), value (mean over seeds), low, high (95 %, by resampling subjects), spread (standard
  deviation over seeds; null with one), seeds, subjects, normals, anomalies;
- `strata.parquet`, AUROC within a part of the locked test: detector, family, property, level, from_value, to_value, rows,
  subjects, value, low, high, spread. Terciles of an anomaly's size or contrast are compared with all normal images; sites and
  terciles of a known value with normal images of the same part;
- `roc.parquet`: detector, family, fpr, tpr, mean over seeds (and over families).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from normscape.evaluation.cases import NORMAL
from normscape.evaluation.scorebook import ALL, NEW, Estimate, RoleScores, mean_of
from normscape.scoring.metrics import Array, Metric, accuracy, auprc, auroc, prevalence, roc_curve

STRATA_RESAMPLES = 200
"""Resamplings for the intervals of strata, of which there are many."""
TERCILES = ("low", "middle", "high")
ROC_GRID = np.concatenate([np.linspace(0.0, 0.05, 51), np.linspace(0.06, 1.0, 95)])
"""False positive rates of the mean curves: densest where it counts."""
_PLAIN = {"role", "family", "sample_id", "subject", "site", "size", "contrast", "label"}
_AXES = "xyz"

METRICS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("role", "detector", "supervision", "family", "metric")]
    + [(name, pa.float64()) for name in ("rate", "value", "low", "high", "spread")]
    + [(name, pa.int64()) for name in ("seeds", "subjects", "normals", "anomalies")]
)
STRATA_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("detector", "family", "property", "level")]
    + [(name, pa.float64()) for name in ("from_value", "to_value")]
    + [(name, pa.int64()) for name in ("rows", "subjects")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "spread")]
)
ROC_SCHEMA = pa.schema([("detector", pa.string()), ("family", pa.string()), ("fpr", pa.float64()), ("tpr", pa.float64())])

Rows = list[dict[str, Any]]


def areas(role: RoleScores, learned: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """AUROC of every detector: detector to family to estimate, with the means over families.

    Args:
        role: the scores.
        learned: families that detectors may have learned from.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for detector in role.score:
        mine = {family: role.estimate(detector, auroc, role.rows_of(family)) for family in role.families}
        found[detector] = with_means(mine, learned)
    return found


def with_means(by_family: Mapping[str, Estimate], learned: Sequence[str]) -> dict[str, Estimate]:
    """The same with the means over all families, and over those that nobody has learned from, where there are any."""
    new = [estimate for family, estimate in by_family.items() if family not in learned]
    means = {ALL: mean_of(by_family.values())} if by_family else {}
    return dict(by_family) | means | ({NEW: mean_of(new)} if new else {})


def metric_rows(
    name: str,
    role: RoleScores,
    area: Mapping[str, Mapping[str, Estimate]],
    supervision: Mapping[str, str],
    thresholds: Mapping[str, Mapping[float, Sequence[float]]],
    learned: Sequence[str],
) -> Rows:
    """Rows of `metrics.parquet` for one role.

    Args:
        name: of the role.
        role: its scores.
        area: what `areas` gave.
        supervision: of each detector.
        thresholds: detector to promised rate to the threshold of each seed.
        learned: families that detectors may have learned from.
    """
    rows: Rows = []
    for detector in role.score:
        for metric, rate, found in _measured(role, detector, thresholds[detector], learned):
            for family, estimate in found.items():
                row = metric_row(name, detector, supervision[detector], family, metric, rate, estimate)
                rows.append(row | _counts(role, family, learned))
        for family, estimate in area[detector].items():
            row = metric_row(name, detector, supervision[detector], family, "auroc", None, estimate)
            rows.append(row | _counts(role, family, learned))
    return rows


def metric_row(
    role: str, detector: str, supervision: str, family: str, metric: str, rate: float | None, estimate: Estimate
) -> dict[str, Any]:
    """A row of `metrics.parquet` but for its counts."""
    low, high = estimate.interval
    about = {"role": role, "detector": detector, "supervision": supervision, "family": family, "metric": metric, "rate": rate}
    numbers = {"value": estimate.value, "low": low, "high": high, "spread": estimate.spread}
    return about | plain(numbers) | {"seeds": len(estimate.by_seed)}


def _measured(
    role: RoleScores, detector: str, thresholds: Mapping[float, Sequence[float]], learned: Sequence[str]
) -> Iterator[tuple[str, float | None, dict[str, Estimate]]]:
    """(metric, rate, family to estimate) of everything but the areas under the ROC curve."""

    def by_family(metric: Metric, score: Array | None = None) -> dict[str, Estimate]:
        found = {name: role.estimate(detector, metric, role.rows_of(name), score=score) for name in role.families}
        return with_means(found, learned)

    yield "auprc", None, by_family(auprc)
    yield "prevalence", None, by_family(prevalence)
    for rate, chosen in thresholds.items():
        called = (role.score[detector] > np.asarray(chosen)[:, None]).astype(np.float64)
        normal = role.estimate(detector, _share_called, role.family == NORMAL, score=called)
        yield "false_positive_rate", rate, {NORMAL: normal}
        yield "accuracy", rate, by_family(accuracy, called)
        yield "sensitivity", rate, by_family(_sensitivity, called)


def _counts(role: RoleScores, family: str, learned: Sequence[str]) -> dict[str, int]:
    """Subjects, normal images and anomalies behind a number."""
    rows = role.rows_of(ALL if family == NEW else family)
    if family == NEW:
        rows &= ~np.isin(role.family.astype(str), list(learned))
    anomalies = 0 if family == NORMAL else int((rows & (role.label == 1)).sum())
    subjects = len(set(role.subject[rows].tolist()))
    return {"subjects": subjects, "normals": int((rows & (role.label == 0)).sum()), "anomalies": anomalies}


def _share_called(label: NDArray[np.int64], called: Array, weight: Array) -> Array:
    """Share of rows that are called anomalous; not a number where a resample has none of them."""
    total = weight.sum(axis=1)
    return np.divide(weight @ called, total, out=np.full_like(total, np.nan), where=total > 0)


def _sensitivity(label: NDArray[np.int64], called: Array, weight: Array) -> Array:
    """Share of the anomalous rows that are called so; not a number where a resample has none."""
    total = weight @ label.astype(np.float64)
    return np.divide(weight @ (called * label), total, out=np.full_like(total, np.nan), where=total > 0)


def strata_rows(role: RoleScores) -> Rows:
    """Rows of `strata.parquet`."""
    rows: Rows = []
    for detector in role.score:
        for family, name, level, edges, mask in _strata(role):
            part = mask & (role.label == 1)
            estimate = role.estimate(detector, auroc, mask, resamples=STRATA_RESAMPLES)
            low, high = estimate.interval
            about = {"detector": detector, "family": family, "property": name, "level": level}
            counts = {"rows": int(part.sum()), "subjects": len(set(role.subject[part].tolist()))}
            numbers = {"from_value": edges[0], "to_value": edges[1], "value": estimate.value, "low": low, "high": high}
            rows.append(about | counts | plain(numbers | {"spread": estimate.spread}))
    return rows


def _strata(role: RoleScores) -> Iterator[tuple[str, str, str, tuple[float, float], NDArray[np.bool_]]]:
    """(family, property, level, its edges, rows) of every stratum that holds both kinds of image."""
    normal = role.family == NORMAL
    for family in role.families:
        mine = role.family == family
        for name in ("size", "contrast"):
            values = _numbers(role.columns[name])
            for level, edges, part in _terciles(values, mine):
                yield family, name, level, edges, part | normal
    everything = np.ones(len(normal), bool)
    parts = [("site", *part) for part in _sites(role)]
    for name, values in _known_values(role.columns):
        parts += [(name, *part) for part in _terciles(values, everything)]
    for name, level, edges, part in parts:
        if (part & normal).any() and (part & ~normal).any():
            yield ALL, name, level, edges, part


def _terciles(values: Array, among: NDArray[np.bool_]) -> Iterator[tuple[str, tuple[float, float], NDArray[np.bool_]]]:
    """Thirds of these rows by value, the empty ones left out."""
    among = among & np.isfinite(values)
    if among.sum() < len(TERCILES):
        return
    edges = np.quantile(values[among], np.linspace(0.0, 1.0, len(TERCILES) + 1))
    place = np.searchsorted(edges[1:-1], values, side="right")  # a value on an edge belongs to the upper third
    for i, level in enumerate(TERCILES):
        part = among & (place == i)
        if part.any():
            yield level, (float(edges[i]), float(edges[i + 1])), part


def _sites(role: RoleScores) -> Iterator[tuple[str, tuple[float, float], NDArray[np.bool_]]]:
    sites = role.columns["site"].to_numpy(zero_copy_only=False)
    for site in sorted({site for site in sites.tolist() if site}):
        yield site, (float("nan"), float("nan")), sites == site


def _known_values(columns: Mapping[str, pa.ChunkedArray]) -> Iterator[tuple[str, Array]]:
    """Every known value, those with several parts part by part."""
    for name, column in columns.items():
        if name in _PLAIN:
            continue
        if pa.types.is_list(column.type):
            parts = np.array(column.to_pylist(), dtype=np.float64)
            for i in range(parts.shape[1]):
                yield f"{name} {_AXES[i] if parts.shape[1] <= len(_AXES) else i}", parts[:, i]
        elif pa.types.is_floating(column.type):
            yield name, _numbers(column)


def _numbers(column: pa.ChunkedArray) -> Array:
    """Floats, not a number where it is null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def roc_rows(role: RoleScores) -> Rows:
    """Rows of `roc.parquet`: true positive rates at `ROC_GRID`, mean over seeds."""
    rows: Rows = []
    for detector, scores in role.score.items():
        curves = {}
        for family in role.families:
            mask = role.rows_of(family)
            points = [roc_curve(role.label[mask], score[mask]) for score in scores]
            curves[family] = np.mean([np.interp(ROC_GRID, fpr, tpr) for fpr, tpr in points], axis=0)
        if curves:
            curves[ALL] = np.mean(list(curves.values()), axis=0)
        for family, tpr in curves.items():
            points_ = zip(ROC_GRID.tolist(), tpr.tolist(), strict=True)
            rows += [{"detector": detector, "family": family, "fpr": x, "tpr": y} for x, y in points_]
    return rows


def plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Null in place of what is not a number."""
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
