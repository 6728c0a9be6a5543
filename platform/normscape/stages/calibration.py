"""P-values of the score stage: healthy calibration images as the measure of what is unusual (`normscape.scoring.conformal`).

Where the projections hold calibration rows, of subjects that no network has seen, writes:

- `conformal.safetensors` + `conformal.json`: the healthy ones' scores by every detector, levelled by the conditions;
- `p_values.parquet`: sample_id, subject, label and `<detector>_p_value` of the test rows;
- `false_positives.parquet`: detector, method (`conformal`: p at most the promised rate; `pooled`: the same of p among all
  healthy images of the subject; `share`: the plain share at most that), promised (rate), false_positives (found on the healthy
  test rows), low, high (95 %, by resampling subjects), rows, subjects, calibration_subjects, smallest_p. Nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.scoring.conformal import Calibration, Conformal
from normscape.scoring.detectors import Array
from normscape.scoring.expected import Levels
from normscape.scoring.features import CALIBRATION, Projections, condition_names
from normscape.scoring.metrics import accuracy, bootstrap_by_subject

CONFORMAL_NAME = "conformal"
PROMISED = (0.01, 0.05, 0.1)
"""Rates of false positives whose promise is looked at."""
CONDITIONS, STEPS = "conditions", "steps"
"""Settings: columns of the conditions, in order; projection steps, without which scores cannot be compared."""
FALSE_POSITIVES_SCHEMA = pa.schema(
    [("detector", pa.string()), ("method", pa.string())]
    + [(name, pa.float64()) for name in ("promised", "false_positives", "low", "high")]
    + [(name, pa.int64()) for name in ("rows", "subjects", "calibration_subjects")]
    + [("smallest_p", pa.float64())]
)


@dataclass(frozen=True)
class DetectorScores:
    """Scores of one detector: of all N rows, and of the training rows by detectors fitted without their subject."""

    score: Array
    out_of_fold: Array


def calibrate(
    table: Projections,
    detectors: Mapping[str, DetectorScores],
    value_columns: Sequence[str],
    folder: Path,
    *,
    steps: int,
    seed: int,
    resamples: int,
) -> dict[str, float]:
    """Write what the module says; nothing at all without calibration rows.

    Healthy training rows tell how a score depends on the conditions, healthy calibration rows how high it gets in people that
    nothing was fitted to.

    Args:
        table: the projections.
        detectors: their scores, by name.
        value_columns: columns of the conditions.
        folder: of the stage.
        steps: of the projection.
        seed: of the resampling.
        resamples: of subjects, for the intervals.

    Returns:
        `<detector>_false_positives_at_5`: the share of healthy test images with a pooled p of at most 5 %.
    """
    held_out, train, test = (table.split == split for split in (CALIBRATION, "train", "test"))
    if not held_out.any():
        return {}
    healthy = table.label == 0
    usual = healthy & table.as_scanned
    names = condition_names(list(table.columns), value_columns)
    known = table.features(names) if names else np.zeros((len(table), 0))
    made: dict[str, Conformal] = {}
    columns: dict[str, Any] = {"sample_id": table.sample_id[test], "subject": table.subject[test], "label": table.label[test]}
    rows: list[dict[str, Any]] = []
    normal = healthy & held_out
    for name, scores in detectors.items():
        levels = Levels.fit(scores.out_of_fold[usual[train], None], known[usual & train], seed=seed, logarithm=False)
        one = Conformal.fit(scores.score[normal], table.subject[normal], conditions=known[normal], levels=levels)
        made[name] = one
        p, share = one.p_value(scores.score, known), one.share(scores.score, known)
        columns[f"{name}_p_value"] = p[test]
        chosen = healthy & test
        pooled = one.pooled_p_value(scores.score[chosen], table.subject[chosen], known[chosen])
        methods = {"conformal": p[chosen], "pooled": pooled, "share": share[chosen]}
        rows += _false_positives(name, methods, table.subject[chosen], one, seed, resamples)
    Calibration(made, {CONDITIONS: names, STEPS: steps}).save(folder / CONFORMAL_NAME)
    pq.write_table(pa.table(columns), folder / "p_values.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=FALSE_POSITIVES_SCHEMA), folder / "false_positives.parquet")
    return {
        f"{row['detector']}_false_positives_at_5": row["false_positives"]
        for row in rows
        if row["method"] == "pooled" and row["promised"] == 0.05
    }


def _false_positives(
    name: str,
    values: Mapping[str, Array],
    subject: NDArray[Any],
    calibration: Conformal,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """Rows of `false_positives.parquet` of one detector; values and subjects of healthy images."""
    rows = []
    for method, value in values.items():
        for promised in PROMISED:
            called = (value <= promised).astype(np.float64)
            found = bootstrap_by_subject(accuracy, np.ones(len(called)), called, subject, n=resamples, seed=seed)
            row = {"detector": name, "method": method, "promised": promised, "false_positives": found.value}
            row |= {"low": found.low, "high": found.high, "rows": len(called), "subjects": len(np.unique(subject))}
            rows.append(row | {"calibration_subjects": calibration.subjects, "smallest_p": calibration.smallest})
    return rows
