"""Stage `score`: anomaly scores of the projected images, with intervals (thesis II.B.2, IV.A.3).

Reads `project/projections.parquet`. Detectors are fitted on the train split. Where there are calibration rows, of subjects
that no network has seen, the thresholds are chosen on those: residuals of training subjects are too small to judge unseen
ones by. Else they are chosen on the train split, as in the thesis. With `scoring.level: calibration` the forests are fitted
to, and measured on, training rows that were brought to the level of unseen normal images. Test labels choose nothing. The
network, where there is one, has seen all training subjects: only the forest's part of `pooled` is out of fold. Writes:

- `scores.parquet`, rows aligned with those of the projections: sample_id, split, subject, label, `<detector>_score`, and
  `<detector>_out_of_fold`, the score of a training row by a detector fitted without its subject (null for other rows);
- `metrics.parquet`: detector, split (train | train_cv | calibration | test), metric (accuracy | auroc | auprc | prevalence),
  value, low, high (95 %, by resampling subjects), thesis (its own number or null), resamples, skipped, subjects, rows;
- `roc.parquet`: detector, split, fpr, tpr;
- `strata.parquet`: test AUROC by tercile of a blot's property: detector, property, tercile, from_value, to_value, rows,
  subjects, value, low, high;
- `detectors.json`: features and threshold of each detector;
- with calibration rows what `normscape.stages.calibration` writes: p-values, and whether their promise held;
- `forest.skops` + `forest.json`, `grid.parquet`, `importance.parquet`; for every other forest `<detector>.skops` + `.json`,
  `grid-<detector>.parquet`, `importance-<detector>.parquet`; `l1.json`;
  `unsupervised.safetensors`; of brains `atlas.json`, a yardstick without a generator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.config import ScoringConfig
from normscape.errors import DataError
from normscape.scoring.detectors import Array, Detector, Labels, ThresholdDetector, out_of_fold
from normscape.scoring.evidence import EvidenceDetector
from normscape.scoring.features import (
    ATLAS_COLUMN,
    CALIBRATION,
    L1_COLUMN,
    NETWORK_COLUMN,
    Projections,
    evidence_columns,
    feature_columns,
    feature_sets,
    read_projections,
)
from normscape.scoring.forest import ForestDetector
from normscape.scoring.levels import levelled_features
from normscape.scoring.metrics import Metric, accuracy, auprc, auroc, bootstrap_by_subject, prevalence, roc_curve
from normscape.scoring.pooled import PooledForest
from normscape.scoring.thresholds import best_accuracy_threshold
from normscape.stages.calibration import DetectorScores, calibrate
from normscape.stages.core import StageContext

_CHAIRS = {
    ("l1", "train", "accuracy"): 0.855,
    ("l1", "test", "accuracy"): 0.770,
    ("l1", "train", "auroc"): 0.937,
    ("l1", "test", "auroc"): 0.937,
    ("forest", "train", "accuracy"): 0.989,
    ("forest", "test", "accuracy"): 0.884,
    ("forest", "train", "auroc"): 0.999,
    ("forest", "test", "auroc"): 0.957,
}
_BRAIN = {
    ("l1", "train", "accuracy"): 0.623,
    ("l1", "test", "accuracy"): 0.605,
    ("l1", "train", "auroc"): 0.669,
    ("l1", "test", "auroc"): 0.658,
    ("forest", "train", "accuracy"): 0.671,
    ("forest", "test", "accuracy"): 0.643,
    ("forest", "train", "auroc"): 0.733,
    ("forest", "test", "auroc"): 0.733,
}
THESIS: dict[str, dict[tuple[str, str, str], float]] = {"chairs": _CHAIRS, "rc49": _CHAIRS, "brain": _BRAIN}
"""The thesis's own numbers (IV.A.3, IV.B.3) by data source, then (detector, split, metric)."""

STRATA = ("blot_contrast", "blot_radius_px", "blot_radius_mm")
TERCILES = ("low", "middle", "high")
BOOTSTRAP_STREAM = 1
"""Keeps the seed of the resampling apart from that of trees and folds."""


@dataclass
class _Scored:
    """One detector, its features, and its scores and predictions of all N rows and, out of fold, of the training rows."""

    detector: Detector
    features: list[str]
    score: Array  # (N,)
    predicted: Labels  # (N,)
    cv_score: Array  # (N_train,)
    cv_predicted: Labels  # (N_train,)


def run(context: StageContext) -> dict[str, float]:
    """Fit the detectors on training rows, choose their thresholds, score every row, and measure.

    Raises:
        DataError: the projections are damaged, incomplete, hold NaN, or one class only.
    """
    config = context.config
    table = read_projections(context.inputs["project"] / "projections.parquet")
    scored = _fit_all(table, context)
    thesis = THESIS.get(config.data.source, {})
    metrics = _metrics(table, scored, config.scoring, config.seed, thesis)
    _write(context.folder / "scores.parquet", _score_columns(table, scored))
    _write_rows(context.folder / "metrics.parquet", metrics, METRICS_SCHEMA)
    _write_rows(context.folder / "roc.parquet", _roc_rows(table, scored), ROC_SCHEMA)
    _write_rows(context.folder / "strata.parquet", _strata_rows(table, scored, config.scoring, config.seed), STRATA_SCHEMA)
    _write_detectors(context.folder, scored)
    promised = calibrate(
        table,
        {name: DetectorScores(entry.score, entry.cv_score) for name, entry in scored.items()},
        [a.column for a in config.value_attributes if a.column],
        context.folder,
        steps=config.projection.steps,
        seed=_seed(config.seed),
        resamples=config.scoring.bootstrap_samples,
    )
    return _headline(metrics, scored) | promised


def _fit_all(table: Projections, context: StageContext) -> dict[str, _Scored]:
    """Every detector, fitted on training rows, its threshold from the calibration rows where there are any."""
    config = context.config
    scoring = config.scoring
    names = list(table.columns)
    values = [a.column for a in config.value_attributes if a.column]
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def forest() -> ForestDetector:
        return ForestDetector(
            max_depth=scoring.max_depth,
            n_estimators=scoring.n_estimators,
            min_samples_leaf=scoring.min_samples_leaf,
            max_features=scoring.max_features,
            folds=scoring.folds,
            seed=config.seed,
            jobs=jobs,
        )

    plan: list[tuple[str, list[str], Callable[[], Detector]]] = [
        ("l1", [L1_COLUMN], ThresholdDetector),
        ("forest", feature_columns(names, scoring.features, values, path=table.path), forest),
    ]
    for other in feature_sets(names):  # the other feature sets as well: what each adds is always on the table
        if other != scoring.features:
            plan.append((f"forest_{other}", feature_columns(names, other, values, path=table.path), forest))
    if ATLAS_COLUMN in names:
        plan.append(("atlas", [ATLAS_COLUMN], ThresholdDetector))
    if NETWORK_COLUMN in names:
        plan.append(("network", [NETWORK_COLUMN], ThresholdDetector))
    plan.append(("unsupervised", evidence_columns(names, scoring.features), EvidenceDetector))

    train, calibration = table.split == "train", table.split == CALIBRATION
    scored = {}
    for done, (name, columns, make) in enumerate(plan):
        context.recorder.progress(done, len(plan), "detector")
        level = make is forest and scoring.level == "calibration"
        features = levelled_features(table, columns) if level else table.features(columns)
        try:
            # a forest learns what other scanners do; what is usual is what was scanned
            learned = train if make is forest else train & table.as_scanned
            detector = make().fit(features[learned], table.label[learned], table.subject[learned])
            if calibration.any():
                detector.calibrate(features[calibration], table.label[calibration])
            again = detector.with_best_settings if isinstance(detector, ForestDetector) else make
            cv_score, cv_predicted = out_of_fold(
                again,
                features[train],
                table.label[train],
                table.subject[train],
                folds=scoring.folds,
                seed=config.seed,
                learned=learned[train],
            )
        except DataError as error:
            raise DataError(f"{table.path}: {error}") from error
        scored[name] = _Scored(
            detector, columns, detector.decision_function(features), detector.predict(features), cv_score, cv_predicted
        )
    if NETWORK_COLUMN in names:
        scored["pooled"] = _pooled(table, scored["forest"])
    context.recorder.progress(len(plan), len(plan), "detector")
    return scored


def _pooled(table: Projections, forest: _Scored) -> _Scored:
    """The fitted forest heard together with the network; out of fold the forest alone is another one."""
    assert isinstance(forest.detector, ForestDetector)
    detector = PooledForest(forest.detector)
    said = table.features([NETWORK_COLUMN])[:, 0]
    train, calibration = table.split == "train", table.split == CALIBRATION
    score, cv_score = detector.pooled(forest.score, said), detector.pooled(forest.cv_score, said[train])
    cv_predicted = (cv_score > detector.threshold_).astype(np.int64)
    if calibration.any():
        detector.threshold_ = best_accuracy_threshold(table.label[calibration], score[calibration])
    predicted = (score > detector.threshold_).astype(np.int64)
    return _Scored(detector, [*forest.features, NETWORK_COLUMN], score, predicted, cv_score, cv_predicted)


def _splits(table: Projections, scored: _Scored) -> Iterable[tuple[str, NDArray[np.bool_], Array, Labels]]:
    """(name, rows, scores, predictions) of train, train_cv, calibration where there is one, and test.

    Predictions of train_cv use each fold's own threshold, as without calibration.
    """
    for split in ("train", CALIBRATION, "test"):
        rows = table.split == split
        if rows.any():
            yield split, rows, scored.score[rows], scored.predicted[rows]
        if split == "train":
            yield "train_cv", rows, scored.cv_score, scored.cv_predicted


METRICS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("detector", "split", "metric")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "thesis")]
    + [(name, pa.int64()) for name in ("resamples", "skipped", "subjects", "rows")]
)


def _metrics(
    table: Projections,
    scored: Mapping[str, _Scored],
    scoring: ScoringConfig,
    seed: int,
    thesis: Mapping[tuple[str, str, str], float],
) -> list[dict[str, Any]]:
    """Rows of `metrics.parquet`."""
    rows = []
    for name, entry in scored.items():
        for split, mask, score, predicted in _splits(table, entry):
            measured: tuple[tuple[str, Metric, NDArray], ...] = (
                ("accuracy", accuracy, predicted),
                ("auroc", auroc, score),
                ("auprc", auprc, score),
                ("prevalence", prevalence, score),
            )
            for metric, function, values in measured:
                interval = bootstrap_by_subject(
                    function, table.label[mask], values, table.subject[mask], n=scoring.bootstrap_samples, seed=_seed(seed)
                )
                rows.append(
                    {
                        "detector": name,
                        "split": split,
                        "metric": metric,
                        "value": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                        "thesis": thesis.get((name, split, metric)),
                        "resamples": interval.resamples,
                        "skipped": interval.skipped,
                        "subjects": len(np.unique(table.subject[mask])),
                        "rows": int(mask.sum()),
                    }
                )
    return rows


ROC_SCHEMA = pa.schema([("detector", pa.string()), ("split", pa.string()), ("fpr", pa.float64()), ("tpr", pa.float64())])


def _roc_rows(table: Projections, scored: Mapping[str, _Scored]) -> list[dict[str, Any]]:
    """Rows of `roc.parquet`, in the order of the curves (figure 8)."""
    rows = []
    for name, entry in scored.items():
        for split, mask, score, _ in _splits(table, entry):
            points = zip(*roc_curve(table.label[mask], score), strict=True)
            rows += [{"detector": name, "split": split, "fpr": float(x), "tpr": float(y)} for x, y in points]
    return rows


STRATA_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("detector", "property", "tercile")]
    + [(name, pa.float64()) for name in ("from_value", "to_value")]
    + [(name, pa.int64()) for name in ("rows", "subjects")]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
)


def _strata_rows(table: Projections, scored: Mapping[str, _Scored], scoring: ScoringConfig, seed: int) -> list[dict[str, Any]]:
    """Test AUROC of the anomalous rows of each tercile against all normal test rows; missing properties are left out."""
    rows = []
    test = table.split == "test"
    for prop in STRATA:
        values = table.columns.get(prop)
        if values is None:
            continue
        anomalous = test & (table.label == 1) & np.isfinite(values)
        if anomalous.sum() < len(TERCILES):
            continue
        edges = np.quantile(values[anomalous], np.linspace(0.0, 1.0, len(TERCILES) + 1))
        place = np.searchsorted(edges[1:-1], values, side="right")  # 0, 1, 2; a value on an edge belongs to the upper tercile
        for i, tercile in enumerate(TERCILES):
            stratum = anomalous & (place == i)
            if not stratum.any():
                continue
            mask = stratum | (test & (table.label == 0))
            for name, entry in scored.items():
                interval = bootstrap_by_subject(
                    auroc,
                    table.label[mask],
                    entry.score[mask],
                    table.subject[mask],
                    n=scoring.bootstrap_samples,
                    seed=_seed(seed),
                )
                rows.append(
                    {
                        "detector": name,
                        "property": prop,
                        "tercile": tercile,
                        "from_value": float(edges[i]),
                        "to_value": float(edges[i + 1]),
                        "rows": int(stratum.sum()),
                        "subjects": len(np.unique(table.subject[stratum])),
                        "value": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                    }
                )
    return rows


def _score_columns(table: Projections, scored: Mapping[str, _Scored]) -> dict[str, Any]:
    """Columns of `scores.parquet`."""
    columns: dict[str, Any] = {"sample_id": table.sample_id, "split": table.split, "subject": table.subject, "label": table.label}
    columns |= {f"{name}_score": entry.score for name, entry in scored.items()}
    train = table.split == "train"
    for name, entry in scored.items():
        held_out = np.full(len(table), np.nan)
        held_out[train] = entry.cv_score
        columns[f"{name}_out_of_fold"] = pa.array(held_out, mask=~train)
    return columns


def _write_detectors(folder: Path, scored: Mapping[str, _Scored]) -> None:
    """Fitted detectors, grids and importances."""
    summary = {}
    for name, entry in scored.items():
        detector = entry.detector
        summary[name] = {"features": entry.features, "threshold": detector.threshold_, "fitted_to": type(detector).__name__}
        if isinstance(detector, ForestDetector):
            suffix = "" if name == "forest" else f"-{name}"
            detector.save(folder / f"{name}.skops", entry.features)
            _write(folder / f"grid{suffix}.parquet", _grid_columns(detector.grid_))
            order = np.argsort(-detector.feature_importances_, kind="stable")
            importance = {
                "feature": [entry.features[i] for i in order],
                "importance": detector.feature_importances_[order],
            }
            _write(folder / f"importance{suffix}.parquet", importance)
        elif isinstance(detector, ThresholdDetector | PooledForest):
            detector.save(folder / f"{name}.json")
        elif isinstance(detector, EvidenceDetector):
            detector.save(folder / f"{name}.safetensors")
    (folder / "detectors.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _headline(metrics: Iterable[Mapping[str, Any]], scored: Mapping[str, _Scored]) -> dict[str, float]:
    """Flat numbers for the manifest: test accuracy and AUROC with their intervals, out-of-fold AUROC, thresholds and settings."""
    result: dict[str, float] = {}
    for row in metrics:
        name = f"{row['detector']}_{row['split']}_{row['metric']}"
        if row["split"] == "test" and row["metric"] in ("accuracy", "auroc"):
            result |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        elif row["metric"] in ("accuracy", "auroc"):
            result[name] = row["value"]
    for name, entry in scored.items():
        result[f"{name}_threshold"] = entry.detector.threshold_
        if isinstance(entry.detector, ForestDetector):
            result |= {f"{name}_{key}": float(value) for key, value in entry.detector.best_params_.items()}
    return result


def _seed(seed: int) -> int:
    """Seed of the resampling."""
    return int(np.random.SeedSequence([seed, BOOTSTRAP_STREAM]).generate_state(1)[0])


def _grid_columns(rows: list[dict[str, float | None]]) -> dict[str, pa.Array]:
    """Settings and areas as columns; an area that was not measured is null."""
    types = {name: pa.float64() if name.endswith("_auroc") else pa.int64() for name in rows[0]}
    return {name: pa.array([row[name] for row in rows], type=kind) for name, kind in types.items()}


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    pq.write_table(pa.table(dict(columns)), path)


def _write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
