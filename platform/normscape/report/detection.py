"""Tables of the anomaly detection, its headline numbers and its strata."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from normscape.report.figures import Stratum
from normscape.report.source import Source, Table, rows, unique, where
from normscape.report.tables import Grid, Headline, reference
from normscape.report.words import detector_name, number, percent, quantity, split_name, title
from normscape.scoring.detectors import MAIN_DETECTORS, main_detector
from normscape.scoring.metrics import auroc, bootstrap_by_subject

STRATA_RESAMPLES = 200
"""Resamplings of subjects for the intervals of strata by a condition."""
PROPERTIES = {
    "blot_contrast": "contrast of the blot",
    "blot_radius_px": "radius of the blot, pixels",
    "blot_radius_mm": "radius of the blot, mm",
}


def headlines(source: Source) -> list[Headline]:
    """Accuracy and area of the detector that gives the anomaly score on test images."""
    return [headline for metric in ("accuracy", "auroc") if (headline := _detection_headline(source, metric))]


def _metric(source: Source, detector: str, split: str, metric: str) -> Table | None:
    table = source.table("score", "metrics.parquet", "detector", "split", "metric", "value", "low", "high", "thesis")
    part = where(table, detector=detector, split=split, metric=metric) if table is not None else {}
    return part if rows(part) else None


def _detection_headline(source: Source, metric: str) -> Headline | None:
    rows_of = {name: row for name in MAIN_DETECTORS if (row := _metric(source, name, "test", metric)) is not None}
    if not rows_of:
        return None
    name = main_detector(rows_of)
    value, low, high = (float(rows_of[name][n][0]) for n in ("value", "low", "high"))
    thesis = float(rows_of["forest"]["thesis"][0]) if "forest" in rows_of else math.nan
    who = "forest" if name == "forest" else detector_name(name)
    share = metric == "accuracy"
    show = percent if share else number
    return Headline(
        f"Accuracy of the {who}, test" if share else f"Area under the ROC curve, {who}, test",
        show(value),
        _between(low, high, 1 if share else 3, share=share),
        f"thesis {show(thesis)}" if math.isfinite(thesis) else "",
        value >= thesis if math.isfinite(thesis) else None,
    )


def _between(low: float, high: float, digits: int = 3, *, share: bool = False) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    scale = 100.0 if share else 1.0
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}" + ("\u00a0%" if share else "")


def detection(source: Source) -> Grid | None:
    """Accuracy, areas and prevalence of every detector."""
    table = source.table("score", "metrics.parquet", "detector", "split", "metric", "value", "low", "high", "thesis")
    if table is None:
        return None
    known = reference(source)
    lines = []
    for detector in unique(table["detector"]):
        for split in unique(where(table, detector=detector)["split"]):
            line = [f"{title(detector_name(detector))}: {split_name(split)}"]
            for metric in ("accuracy", "auroc", "auprc"):
                row = _metric(source, detector, split, metric)
                share = metric == "accuracy"
                if row is None:
                    line += ["–"] if metric == "auprc" else ["–", "–"]
                    continue
                value, low, high, thesis = (float(row[n][0]) for n in ("value", "low", "high", "thesis"))
                interval = _between(low, high, 1 if share else 3, share=share)
                line.append((percent(value) if share else number(value)) + (f"\n{interval}" if interval else ""))
                if metric != "auprc":
                    line.append(percent(thesis) if share else number(thesis))
            base = _metric(source, detector, split, "prevalence")
            lines.append([*line, percent(float(base["value"][0]), 0) if base is not None else "–"])
    head = ["Detector", "Accuracy", "thesis", "AUROC", "thesis", "AUPRC", "Prevalence"]
    note = (
        "Below each number its 95 % interval by resampling subjects. Settings come from training images only; thresholds too, "
        "unless there are calibration images, of subjects that are in neither split. The forests are fitted to synthetic blots "
        "and so are supervised by them. Prevalence is the AUPRC of guessing."
    )
    if known:
        note += f" The thesis's threshold on L1 is {known.threshold_l1:g}, its forest has {known.forest}."
    strong = [i for i, line in enumerate(lines) if line[0].endswith(": test")]
    return Grid(head, lines, "Detectors on normal images and images with a blot", note, (2, 4), strong)


def forest_grid(source: Source) -> Grid | None:
    """The forest's settings and their cross-validated area, the best first."""
    table = source.table("score", "grid.parquet", "mean_auroc")
    if table is None:
        return None
    settings = [n for n in ("max_depth", "n_estimators", "min_samples_leaf") if n in table]
    scores = [n for n in table if n not in settings and n != "rank" and np.issubdtype(table[n].dtype, np.number)]
    order = np.argsort(-table["mean_auroc"].astype(float), kind="stable")
    lines = [[f"{int(table[n][i])}" for n in settings] + [number(float(table[n][i]), 4) for n in scores] for i in order]
    folds = source.config.scoring.folds
    note = f"Cross-validation on training images with {folds} folds, grouped by subject; the best settings stand first."
    head = [title(n.replace("_", " ").replace("auroc", "AUROC")) for n in settings + scores]
    return Grid(head, lines, "Grid search of the forest", note)


def strata(source: Source) -> list[tuple[str, list[Stratum]]]:
    """Test AUROC by properties of the anomaly (from stage `score`) and by thirds of every scalar condition."""
    groups: list[tuple[str, list[Stratum]]] = []
    needed = ("detector", "property", "tercile", "from_value", "to_value", "rows", "value", "low", "high")
    table = source.table("score", "strata.parquet", *needed)
    for prop in unique(table["property"]) if table is not None else []:
        mine = where(table or {}, property=prop)
        strata_: list[Stratum] = []
        for tercile in unique(mine["tercile"]):
            part = where(mine, tercile=tercile)
            intervals = zip(part["value"], part["low"], part["high"], strict=True)
            areas = {d: (float(v), float(a), float(b)) for d, (v, a, b) in zip(part["detector"], intervals, strict=True)}
            bounds = f"{_short(float(part['from_value'][0]))} to {_short(float(part['to_value'][0]))}"
            strata_.append((bounds, int(part["rows"][0]), areas))
        groups.append((PROPERTIES.get(prop, str(prop).replace("_", " ")), strata_))
    return groups + _by_condition(source)


def _short(value: float) -> str:
    """Two decimals at most, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _by_condition(source: Source) -> list[tuple[str, list[Stratum]]]:
    scored = scored_projections(source)
    if scored is None:
        return []
    test = {n: c[scored["split"] == "test"] for n, c in scored.items()}
    groups: list[tuple[str, list[Stratum]]] = []
    for attribute in source.config.value_attributes:
        values = test.get(attribute.column or "")
        if values is None or not np.issubdtype(values.dtype, np.number):
            continue
        edges = np.linspace(attribute.value_min, attribute.value_max, 4)
        place = np.clip(np.searchsorted(edges[1:-1], values, side="right"), 0, 2)
        part: list[Stratum] = []
        for i in range(3):
            mine = {n: c[place == i] for n, c in test.items()}
            if len(np.unique(mine["label"])) == 2:
                bounds = f"{edges[i]:.0f} to {edges[i + 1]:.0f}"
                areas = {d: _area(mine, d, source.config.seed) for d in detectors(scored)}
                part.append((bounds, int((mine["label"] == 1).sum()), areas))
        groups += [(quantity(attribute.name, attribute.unit), part)] if part else []
    return groups


def _area(table: Table, detector: str, seed: int) -> tuple[float, float, float]:
    score = table[f"{detector}_score"]
    found = bootstrap_by_subject(auroc, table["label"], score, table["subject"], n=STRATA_RESAMPLES, seed=seed)
    return found.value, found.low, found.high


def scored_projections(source: Source) -> Table | None:
    """Columns of the projections with their scores; the two tables have the same rows in the same order."""
    images = source.table("project", "projections.parquet", "sample_id", "split", "label")
    scores = source.table("score", "scores.parquet", "sample_id", "split", "label")
    if images is None or scores is None or not np.array_equal(images["sample_id"], scores["sample_id"]):
        return None
    return images | scores


def detectors(table: Mapping[str, np.ndarray]) -> list[str]:
    """Detectors with a score column, in the table's order."""
    return [n.removesuffix("_score") for n in table if n.endswith("_score")]
