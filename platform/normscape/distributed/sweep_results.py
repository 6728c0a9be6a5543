"""What a sweep leaves: tables of its trials, what mattered, and a configuration with the winner.

- `trials.parquet`, one row a trial: number, key, origin (search | guess | experiment), status (finished | stopped | failed |
  running), step, score, seconds, error, `param/<name>`, `value/<name>` (the last report's other numbers);
- `reports.parquet`, one row a report: number, key, step, score, `value/<name>`;
- `importance.parquet`: parameter, importance (sums to 1), step (the scores compared are those of this step), trials;
- `best.yaml`: the experiment with the winning settings; `sweep.json`: what was swept, from what, and how it ended.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from optuna.distributions import BaseDistribution

from normscape.config import Config
from normscape.configio import config_digest, load_config
from normscape.distributed.sweep_search import Search
from normscape.distributed.sweep_trials import Report, Trial
from normscape.stages.files import write_json, write_text
from normscape.stages.provenance import code_version
from normscape.sweepconfig import Sweep, sweep_digest

FEWEST_FOR_IMPORTANCE = 4
"""With fewer trials importance is noise."""
_REPORT_COLUMNS = ("step", "score")


def write_results(
    folder: Path, sweep: Sweep, config: Config, experiment: Path, search: Search, trials: Sequence[Trial], best: Trial | None
) -> None:
    """Write all result files; see the head of this module.

    Args:
        folder: the sweep's.
        sweep: what was searched.
        config: the experiment.
        experiment: its file, that `best.yaml` inherits from.
        search: the space, and what a point means.
        trials: all of them.
        best: the winner, if there is one.
    """
    _write(folder / "trials.parquet", [_trial_row(trial) for trial in trials])
    _write(folder / "reports.parquet", [_report_row(trial, report) for trial in trials for report in trial.reports])
    step, importance = importances(trials, search.space, sweep.seed)
    compared = sum(_score_at(trial, step) is not None for trial in trials)
    _write(
        folder / "importance.parquet",
        [{"parameter": name, "importance": value, "step": step, "trials": compared} for name, value in importance.items()],
        pa.schema([("parameter", pa.string()), ("importance", pa.float64()), ("step", pa.int64()), ("trials", pa.int64())]),
    )
    if best is not None:
        write_text(folder / "best.yaml", best_yaml(folder, sweep, experiment, search, best))
        load_config(folder / "best.yaml")  # what is promised to load has loaded once
    write_json(
        folder / "sweep.json",
        {
            "name": sweep.name,
            "kind": sweep.kind,
            "description": sweep.description,
            "digest": sweep_digest(sweep, config),
            "experiment": config.name,
            "experiment_file": os.path.relpath(experiment.resolve(), folder),
            "config_digest": config_digest(config),
            "code_version": code_version(),
            "score": search.score_name,
            "settings": sweep.model_dump(mode="json"),
            "space": {name: optuna.distributions.distribution_to_json(found) for name, found in search.space.items()},
            "facts": dict(search.facts),
            "final_step": search.final_step,
            "best": best.key if best is not None else None,
        },
    )


def best_yaml(folder: Path, sweep: Sweep, experiment: Path, search: Search, best: Trial) -> str:
    """A configuration that inherits from the experiment and has the winner's settings."""
    changes = {"base": os.path.relpath(experiment.resolve(), folder), **search.winner(best.point)}
    head = f"# Trial {best.number} of sweep {sweep.name}: {search.score_name} {best.score:.4f} at step {best.step}.\n"
    return head + yaml.safe_dump(changes, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def importances(trials: Sequence[Trial], space: Mapping[str, BaseDistribution], seed: int) -> tuple[int, dict[str, float]]:
    """How much of the scores' variance each parameter explains (functional ANOVA, Hutter et al. 2014), most important first.

    Compared are the scores at the last step that every scored trial reached: a trial that was stopped early and one that went
    to the end differ by their training time as well.

    Returns:
        That step, and parameter to importance; empty when there are too few trials, or all scored the same.
    """
    scored = [trial for trial in trials if trial.reports and trial.status in ("finished", "stopped")]
    step = min((trial.step for trial in scored), default=0)
    values = [_score_at(trial, step) for trial in scored]
    if len(scored) < FEWEST_FOR_IMPORTANCE or len(set(values)) < 2:
        return step, {}
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of a start point outside the range: it is taken all the same
        for trial, value in zip(scored, values, strict=True):
            study.add_trial(optuna.trial.create_trial(params=trial.point, distributions=dict(space), value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        try:
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # no tree splits on anything
            return step, {}
    return step, {name: float(value) for name, value in found.items()}


def _score_at(trial: Trial, step: int) -> float | None:
    if trial.status not in ("finished", "stopped"):
        return None
    return next((report["score"] for report in trial.reports if int(report["step"]) == step), None)


def _trial_row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "key": trial.key,
        "origin": trial.origin,
        "status": trial.status,
        "step": trial.step,
        "score": trial.score,
        "seconds": trial.seconds,
        "error": trial.error or None,
    }
    row |= {f"param/{name}": value for name, value in trial.point.items()}
    return row | (_values(trial.reports[-1]) if trial.reports else {})


def _report_row(trial: Trial, report: Report) -> dict[str, Any]:
    return {"number": trial.number, "key": trial.key, "step": int(report["step"]), "score": report["score"], **_values(report)}


def _values(report: Report) -> dict[str, float]:
    return {f"value/{name}": value for name, value in report.items() if name not in _REPORT_COLUMNS}


def _write(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> None:
    """A table of rows whose columns may differ: what a row lacks is null."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = (
        pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        if schema is not None
        else pa.table({name: [row.get(name) for row in rows] for name in columns})
    )
    aside = path.with_name(path.name + ".tmp")
    pq.write_table(table, aside)
    os.replace(aside, path)
