"""Search the random forest's settings by cross-validation grouped by subject, on training rows only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from sklearn.metrics import roc_auc_score

from normscape.config import Config
from normscape.distributed.sweep_search import Search
from normscape.distributed.sweep_trials import Point
from normscape.errors import UserError
from normscape.scoring.detectors import grouped_folds
from normscape.scoring.features import CALIBRATION, feature_columns, read_projections
from normscape.scoring.forest import ForestDetector
from normscape.scoring.levels import levelled_features
from normscape.stages.core import folder_name, stage_keys
from normscape.sweepconfig import ForestSpace, ForestSweep

_SEARCH_LOG = {"n_estimators", "min_samples_leaf"}
"""Settings of which twice as much matters as much anywhere; drawn evenly on a logarithmic scale."""


def prepare(sweep: ForestSweep, config: Config, runs_dir: Path) -> Search:
    """Find the finished run's projections, check them, and say what is tried.

    Raises:
        UserError: there are no projections of this experiment.
        DataError: the projections are damaged, or their subjects do not suffice for the folds.
    """
    folder = runs_dir.resolve() / config.name / folder_name("project", stage_keys(config)["project"])
    path = folder / "projections.parquet"
    if not path.is_file():
        raise UserError(
            f"{folder}: experiment {config.name} is not projected yet under its present settings; "
            "run it first: `normscape run CONFIG --to project`"
        )
    job = {"projections": str(path), "config": config.model_dump(mode="json")}
    _training_rows(job, "thesis")  # a table that cannot be used is one clear message here, not one error a trial
    return Search(
        trial=cross_validate,
        job=job,
        space=distributions(sweep.space),
        points=points(sweep),
        final_step=config.scoring.folds,
        winner=winner,
        score_name="AUROC, mean of the held-out folds",
    )


def distributions(space: ForestSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    """The space that a random or Optuna search draws from, and that importance is measured on."""
    found: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(min(values), max(values), log=name in _SEARCH_LOG)
        for name, values in space.model_dump().items()
        if name != "features"
    }
    return found | {"features": optuna.distributions.CategoricalDistribution(space.features)}


def points(sweep: ForestSweep) -> list[Point] | None:
    """All settings of a grid or of a random search; None where Optuna chooses one after the other."""
    space = sweep.space.model_dump()
    if sweep.search == "grid":
        return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if sweep.search == "optuna":
        return None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=sweep.seed))
    drawn = (study.ask(distributions(sweep.space)).params for _ in range(20 * sweep.trials))  # small spaces give some twice
    different = list({tuple(point.items()): {name: point[name] for name in space} for point in drawn}.values())
    return different[: sweep.trials]


def cross_validate(point: Point, job: dict[str, Any]) -> list[dict[str, float]]:
    """Mean AUROC of the held-out folds; runs on a worker.

    Args:
        point: the forest's settings.
        job: `projections`, `config`.

    Returns:
        One report, whose step is the number of folds.
    """
    config = Config.model_validate(job["config"])
    features, label, subject = _training_rows(job, point["features"])
    settings: dict[str, Any] = {name: (int(value),) for name, value in point.items() if name != "features"}
    areas = []
    for fit, held_out in grouped_folds(label, subject, folds=config.scoring.folds, seed=config.seed):
        forest = ForestDetector(**settings, max_features=config.scoring.max_features, seed=config.seed).fit(
            features[fit], label[fit], subject[fit]
        )
        areas.append(float(roc_auc_score(label[held_out], forest.decision_function(features[held_out]))))
    folds = {f"fold/{number}": area for number, area in enumerate(areas, start=1)}
    return [{"step": len(areas), "score": float(np.mean(areas)), "fold_std": float(np.std(areas)), **folds}]


def _training_rows(job: dict[str, Any], chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and subjects of the training rows; nothing of the test rows leaves this function."""
    config = Config.model_validate(job["config"])
    table = read_projections(Path(job["projections"])).of("train", CALIBRATION)
    train = table.split == "train"
    columns = feature_columns(
        list(table.columns), chosen, [a.column for a in config.value_attributes if a.column], path=table.path
    )
    label, subject = table.label[train], table.subject[train]
    grouped_folds(label, subject, folds=config.scoring.folds, seed=config.seed)
    if config.scoring.level == "calibration":
        return levelled_features(table, columns)[train], label, subject
    return table.of("train").features(columns), label, subject


def winner(point: Point) -> dict[str, Any]:
    """Changes of the experiment that make it use these settings, and only them."""
    grid = {name: [value] for name, value in point.items() if name != "features"}
    return {"scoring": {"features": point["features"], **grid}}
