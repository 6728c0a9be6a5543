"""Two workers give the tables that one process gives; a process that dies takes one unit with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from normscape.config import Config
from normscape.distributed.evaluate import RayUnits
from normscape.errors import UserError
from normscape.evaluation.evaluating import evaluate
from normscape.evaluation.experiment import find_experiment
from normscape.evaluation.locked import Reading, readings
from normscape.evaluation.results import Results
from normscape.evaluation.units import plan_units
from normscape.stages.core import run_stages
from tests.evaluation.toys import detector, evaluation

pytestmark = pytest.mark.cluster
CHAIRS = {"angle_max_degrees": 87.0, "angle_step_degrees": 29.0, "supersample": 1, "train_subjects": 24, "test_subjects": 14}


@pytest.fixture
def prepared(toy_config: Callable[..., Config], small_chairs: None, tmp_path: Path) -> Callable[..., tuple[Config, Path]]:
    """Makes an experiment with the toy evaluation, its stage `prepare` finished."""

    def make(runs: str, **changes: Any) -> tuple[Config, Path]:
        config = toy_config(data=CHAIRS, evaluation=evaluation(**changes))
        run_stages(config, tmp_path / runs, last="prepare")
        return config, tmp_path / runs

    return make


def tables(results: Results) -> dict[str, list[dict[str, Any]]]:
    names = ("metrics", "strata", "roc", "paired", "failures")
    return {name: pq.read_table(results.folder / f"{name}.parquet").to_pylist() for name in names}


def test_two_workers_give_the_same_tables_as_one(local_ray: None, prepared: Callable[..., tuple[Config, Path]]) -> None:
    """A failure among them; readings come back to the driver."""
    detectors = [detector("near"), detector("learner", "Learner"), detector("never", "Fails")]
    config, here = prepared("here", detectors=detectors)
    _, there = prepared("there", detectors=detectors)
    heard: list[Reading] = []
    one = evaluate(config, here)
    two = evaluate(config, there, workers=RayUnits(2), heard=heard.append)
    assert tables(one) == tables(two)
    for first, second in zip(plan_units(find_experiment(config, here)), plan_units(find_experiment(config, there)), strict=True):
        folders = (first.folder(find_experiment(config, here)), second.folder(find_experiment(config, there)))
        if folders[0].exists():
            scored = [pq.read_table(folder / "scores.parquet") for folder in folders]
            assert scored[0].equals(scored[1])
    assert sorted(r.reader for r in heard) == sorted(r.reader for r in readings(find_experiment(config, there).folder))
    assert len(heard) == 4


def test_a_process_that_dies_is_tried_again(
    local_ray: None, prepared: Callable[..., tuple[Config, Path]], tmp_path: Path
) -> None:
    """Killed once, the unit is run again and stands; its scores are those of the same detector that nobody killed."""
    dying = detector("dies", "Killed", marker=str(tmp_path / "mark"), seed=1, hard=True)
    config, runs = prepared("runs", detectors=[detector("near"), dying])
    results = evaluate(config, runs, workers=RayUnits(2))
    assert results.failures == ()
    assert (tmp_path / "mark").exists()
    found = {(r["detector"], r["metric"], r["family"], r["role"], r["rate"]): r for r in tables(results)["metrics"]}
    for key, row in found.items():
        if key[0] == "dies":
            assert row["value"] == found["near", *key[1:]]["value"]


def test_a_process_that_always_dies_is_one_failure(local_ray: None, prepared: Callable[..., tuple[Config, Path]]) -> None:
    """The others stand."""
    config, runs = prepared("runs", detectors=[detector("near"), detector("dies", "AlwaysKilled")], seeds=[0])
    results = evaluate(config, runs, workers=RayUnits(2))
    ((unit, reason),) = results.failures
    assert unit.detector.name == "dies"
    assert "ended its process 2 times" in reason


def test_at_least_one_worker() -> None:
    with pytest.raises(UserError, match="at least one"):
        RayUnits(0)
