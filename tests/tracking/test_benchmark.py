"""A benchmark in MLflow, in a real sqlite store."""

from __future__ import annotations

from pathlib import Path

import pytest

from normscape.benchmark.results import Ratio, Results, Row
from normscape.benchmark.timing import Timing
from normscape.errors import UserError
from normscape.tracking.benchmark import EXPERIMENT, open_store, record_benchmark

ROW = Row("chairs-cpu", "training step (D + G)", 32, Timing(0.2, 0.19, 0.21, 5, 2**30))


def test_two_benchmarks_are_two_runs(tmp_path: Path) -> None:
    """Ratios are metrics, the machine is parameters, files are artifacts; both runs stand in one experiment, finished."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = open_store(uri)
    table = tmp_path / "benchmark.md"
    table.write_text("# Benchmark\n", encoding="utf-8")
    ids = []
    for value in (0.2, 0.25):
        ratios = [Ratio("chairs-cpu", "projection: an image in a batch of 128 / alone", value, "at most", 0.25)]
        ids.append(record_benchmark(client, uri, Results({"device": "CPU", "cores": 2}, [ROW], ratios), [table]))
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], order_by=["attributes.start_time"])
    assert {run.info.run_id for run in runs} == set(ids)
    assert {run.info.status for run in runs} == {"FINISHED"}
    run = client.get_run(ids[1])
    assert run.data.metrics == {"chairs-cpu/projection: an image in a batch of 128 / alone": 0.25}
    assert run.data.params == {"device": "CPU", "cores": "2"}
    assert run.data.tags["normscape.version"]
    assert [file.path for file in client.list_artifacts(ids[1])] == ["benchmark.md"]


def test_a_store_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    """Before anything is measured, and without the password."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="--mlflow: cannot use sqlite"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
