"""A run of the benchmark in MLflow: its ratios as metrics, the machine as parameters, table and JSON as artifacts.

Every benchmark is a run of its own in the experiment `benchmark`, so that MLflow's table shows how ratios went over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normscape.benchmark.results import Results
from normscape.errors import UserError
from normscape.tracking.store import experiment_id, first_line, open_client, without_password
from normscape.tracking.values import code_tags, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "benchmark"


def open_store(uri: str) -> MlflowClient:
    """Open the store before anything is measured.

    Raises:
        UserError: MLflow is not installed, or the store cannot be opened.
    """
    try:
        client = open_client(uri)
        client.search_experiments(max_results=1)  # a server is asked only now
    except ImportError as error:
        raise UserError(f"--mlflow: {error.name or 'mlflow'} is not installed; install mlflow, or leave --mlflow out") from error
    except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors
        raise UserError(f"--mlflow: cannot use {without_password(uri)}: {first_line(error)}") from error
    return client


def record_benchmark(client: MlflowClient, uri: str, results: Results, files: Sequence[Path]) -> str:
    """Write one finished run.

    Args:
        client: of the open store.
        uri: its address.
        results: ratios become metrics `<configuration>/<ratio>`, the machine becomes parameters.
        files: kept as artifacts.

    Returns:
        The run's id.

    Raises:
        UserError: the store does not take it; the files are still where they are.
    """
    from mlflow.entities import Metric, Param

    name = "-".join(dict.fromkeys(row.config for row in results.rows))[:100] or EXPERIMENT
    try:
        run = client.create_run(experiment_id(client, EXPERIMENT, uri), run_name=name, tags=code_tags())
        metrics = [Metric(metric_name(ratio.name, ratio.config), ratio.value, run.info.start_time, 0) for ratio in results.ratios]
        machine = [Param(metric_name(key), str(value)) for key, value in results.machine.items()]
        client.log_batch(run.info.run_id, metrics=metrics, params=machine)
        for path in files:
            client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id)
    except Exception as error:
        raise UserError(f"--mlflow: cannot record in {without_password(uri)}: {first_line(error)}") from error
    return str(run.info.run_id)
