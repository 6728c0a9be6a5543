"""An evaluation in MLflow, in a real sqlite store: a parent, a nested run a unit, every reading of the locked test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from normscape.config import Config
from normscape.evaluation.evaluating import evaluate
from normscape.evaluation.results import Results
from normscape.stages.core import run_stages
from normscape.tracking.evaluation import READING_METRIC, EvaluationTracker
from normscape.tracking.nested import PARENT_TAG
from normscape.tracking.store import open_client
from tests.evaluation.toys import detector, evaluation

CHAIRS = {"angle_max_degrees": 87.0, "angle_step_degrees": 29.0, "supersample": 1, "train_subjects": 24, "test_subjects": 14}


def page(folder: Path) -> None:
    """In place of the leaderboard, which takes seconds to draw."""
    for name in ("index.html", "leaderboard.md"):
        (folder / name).write_text("a page")


def tracked(config: Config, runs: Path, uri: str) -> tuple[EvaluationTracker, Results]:
    """Evaluate as the command does."""
    tracker = EvaluationTracker(config, uri)
    results = evaluate(
        config, runs, listener=tracker, heard=tracker.reading, opened=tracker.opened, page=page, command="a command"
    )
    tracker.finished(results)
    tracker.close("FINISHED")
    return tracker, results


@pytest.fixture
def prepared(toy_config: Callable[..., Config], small_chairs: None, tmp_path: Path) -> Config:
    detectors = [detector("near"), detector("never", "Fails", seeds=[1])]
    config = toy_config(data=CHAIRS, evaluation=evaluation(detectors=detectors))
    run_stages(config, tmp_path / "runs", last="prepare")
    return config


def test_units_readings_tables_and_page_are_recorded(prepared: Config, tmp_path: Path) -> None:
    """A second evaluation is a run of its own, that finds all but the failed unit done and reads nothing."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker, results = tracked(prepared, tmp_path / "runs", uri)
    client = open_client(uri)
    parent = client.get_run(tracker.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["evaluation.test_images"] == "24"
    assert parent.data.tags["normscape.failed"] == "never, seed 1"
    assert "auroc/near/dark" in parent.data.metrics
    assert [point.value for point in client.get_metric_history(tracker.run_id, READING_METRIC)] == [48.0] * 3
    tags = [json.loads(text) for name, text in parent.data.tags.items() if name.startswith("normscape.reading.")]
    assert sorted(tag["reader"] for tag in tags) == [
        "near, seed 0: patch scores", "near, seed 1: patch scores", "never, seed 0: patch scores",
    ]  # fmt: skip
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert {"index.html", "leaderboard.md", "metrics.parquet", "paired.parquet", "evaluation.json", "readings.jsonl"} <= files
    children = nested(client, parent.info.experiment_id, tracker.run_id)
    assert {name: run.info.status for name, run in children.items()} == {
        "near, seed 0": "FINISHED", "near, seed 1": "FINISHED", "never, seed 0": "FINISHED", "never, seed 1": "FAILED",
    }  # fmt: skip
    near = children["near, seed 0"]
    assert {"fit_seconds", "image_ms", "threshold/0.1"} <= set(near.data.metrics)
    assert near.data.tags["normscape.detector"] == "near"
    assert [file.path for file in client.list_artifacts(near.info.run_id)] == ["unit.json"]
    assert "nothing to hold on to" in children["never, seed 1"].data.tags["normscape.error"]
    assert results.failures

    again, _ = tracked(prepared, tmp_path / "runs", uri)
    assert again.run_id != tracker.run_id
    assert READING_METRIC not in client.get_run(again.run_id).data.metrics
    assert len(nested(client, parent.info.experiment_id, again.run_id)) == 4


def nested(client: MlflowClient, experiment: str, parent: str) -> dict:
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent}'")
    return {run.info.run_name: run for run in found}


def test_a_store_that_is_away_stops_nothing(prepared: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    tracker, results = tracked(prepared, tmp_path / "runs", f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    assert tracker.run_id is None
    assert (results.folder / "index.html").exists()
    assert "the evaluation goes on without it" in caplog.text
