"""What MLflow's store says of a sweep whose driver was killed between its own files and the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.distributed.sweep_tracking import SweepTracker
from normscape.distributed.sweep_trials import Trial
from normscape.sweepconfig import load_sweep
from normscape.tracking.store import open_client

REPORTS = [{"step": 4.0, "score": 0.5}, {"step": 8.0, "score": 0.7}]


@pytest.fixture
def tracker(tmp_path: Path, toy_config: Callable[..., Config]) -> Callable[[], SweepTracker]:
    """Trackers of one sweep with one sqlite store, as driver after driver makes them."""
    (tmp_path / "toy.yaml").write_text(dump_yaml(toy_config()))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"kind": "forest", "name": "toy-forest", "experiment": "toy.yaml"}))
    sweep, config, _ = load_sweep(tmp_path / "sweep.yaml")
    return lambda: SweepTracker(sweep, config, tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")


def statuses(tracker: SweepTracker) -> dict[str, str]:
    """Name of every nested run to its status."""
    client = open_client(tracker.tracking_uri)
    experiment = client.get_experiment_by_name(tracker.config.name).experiment_id
    runs = client.search_runs([experiment])
    return {run.info.run_name: run.info.status for run in runs if run.data.tags.get("mlflow.parentRunId") == tracker.run_id}


def history(tracker: SweepTracker, trial: Trial) -> list[tuple[int, float]]:
    """(step, score) of a trial's run, all of them."""
    client = open_client(tracker.tracking_uri)
    return [(m.step, m.value) for m in client.get_metric_history(tracker._children[trial.key], "score")]


def test_a_store_that_missed_an_end_hears_of_it(tracker: Callable[[], SweepTracker]) -> None:
    """A trial that ended by its file ends in the store, each report once; one that was cut off is KILLED until it goes on."""
    first = tracker()
    assert first.start() is not None
    ended, cut_off, unheard = Trial(1, {"x": 1}), Trial(2, {"x": 2}), Trial(3, {"x": 3}, status="stopped", reports=REPORTS[:1])
    for trial in (ended, cut_off):
        first.trial_started(trial)
        first.trial_reported(trial, REPORTS[0])
    assert statuses(first) == {"trial 1": "RUNNING", "trial 2": "RUNNING"}
    # killed here: the files say more than the store
    ended.reports, ended.status = list(REPORTS), "finished"
    cut_off.reports = REPORTS[:1]
    second = tracker()
    assert second.start([ended, cut_off, unheard]) == first.run_id
    assert statuses(second) == {"trial 1": "FINISHED", "trial 2": "KILLED", "trial 3": "FINISHED"}
    assert history(second, ended) == [(4, 0.5), (8, 0.7)]
    assert history(second, unheard) == [(4, 0.5)]
    third = tracker()
    third.start([ended, cut_off, unheard])  # nothing is new: nothing is written
    assert history(third, ended) == [(4, 0.5), (8, 0.7)]
    third.trial_started(cut_off)
    third.trial_reported(cut_off, REPORTS[0])  # a resumed trial tells it again
    third.trial_reported(cut_off, REPORTS[1])
    assert statuses(third)["trial 2"] == "RUNNING"
    assert history(third, cut_off) == [(4, 0.5), (8, 0.7)]
