"""MLflow records a run once, goes on where it was cut off, and never stops a training. A real sqlite store serves."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from normscape.config import Config
from normscape.configio import load_config, validate_config
from normscape.stages.core import Stage, StageContext, run_stages
from normscape.tracking.runs import MlflowListener
from normscape.tracking.store import artifact_location, default_tracking_uri, open_client, without_password

DATA: dict[str, Any] = {
    "name": "demo",
    "description": "a small run",
    "image_size": 8,
    "attributes": [
        {"name": "identity", "kind": "embedding", "latent_dim": 8, "output_dim": 16, "distance": "euclidean"}
        | {"tau_same": 0.05, "tau_different": 0.35},
        {"name": "angle", "kind": "value", "latent_dim": 8, "output_dim": 1, "distance": "l1", "column": "angle_degrees"}
        | {"tau_same": 0.03, "tau_different": 0.15},
    ],
    "generator": {"channels": [8, 8]},
    "discriminator": {"channels": [8, 8]},
    "gan": {"steps": 100},
}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for all tests: its migrations take seconds. The folder's name has a space."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow store') / 'mlflow.db'}"


@pytest.fixture
def config(request: pytest.FixtureRequest) -> Config:
    """A configuration, and so an experiment, for each test."""
    return validate_config(DATA | {"name": request.node.name[:60].replace("[", "-").replace("]", "")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run folder."""
    return tmp_path / "runs" / "demo"


@pytest.fixture
def client(store: str) -> MlflowClient:
    """Reads back what was recorded."""
    return open_client(store)


def started(config: Config, folder: Path, store: str, **options: Any) -> MlflowListener:
    """A listener whose run has begun."""
    listener = MlflowListener(config, folder, store, **options)
    assert listener.start() is not None
    return listener


def finished_stage(folder: Path, name: str = "gan", key: str = "0123abcd" * 8, steps: int = 100) -> dict[str, Any]:
    """A finished stage's folder, as the stages leave it, and its manifest."""
    stage = folder / f"{name}-{key[:8]}"
    (stage / "samples").mkdir(parents=True)
    lines = [{"step": step, "loss": step / 100, "gap": None} for step in range(10, steps + 1, 10)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 11')
    manifest = {"stage": name, "key": key, "metrics": {"frechet": 3.5, "loss": 0.9}, "seconds": 12.5}
    (stage / "manifest.json").write_text(json.dumps(manifest))
    pq.write_table(pa.table({"a": [1, 2]}), stage / "distances.parquet")
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(800_000)}), stage / "large.parquet")
    (stage / "samples" / "step-000010.png").write_bytes(b"png")
    (stage / "generator.safetensors").write_bytes(b"weights")
    return manifest


def steps(client: MlflowClient, run_id: str | None, key: str) -> list[int]:
    """Steps recorded for a metric, in order, repetitions included."""
    assert run_id is not None
    return sorted(point.step for point in client.get_metric_history(run_id, key))


def listed(client: MlflowClient, run_id: str | None, path: str | None = None) -> set[str]:
    """Paths of all artifacts."""
    assert run_id is not None
    found: set[str] = set()
    for item in client.list_artifacts(run_id, path):
        found |= listed(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def test_a_run_is_described(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Experiment, parameters by dotted path, tags and a `config.yaml` that reads back to an equal configuration."""
    listener = started(config, folder, store)
    listener.close()
    run = client.get_run(listener.run_id or "")
    assert client.get_experiment(run.info.experiment_id).name == config.name
    assert run.data.params["attributes.identity.tau_same"] == "0.05"
    assert run.data.params["generator.channels"] == "[8, 8]"
    assert run.data.tags["normscape.config_digest"] == next(iter(json.loads((folder / "mlflow.json").read_text())))
    assert {"normscape.version", "normscape.code_version"} <= set(run.data.tags)
    assert load_config(client.download_artifacts(run.info.run_id, "config.yaml")) == config
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_close_ends_the_run(config: Config, folder: Path, store: str, client: MlflowClient, status: Any) -> None:
    """The run gets the status it ended with; closing twice does no harm; a failure is told in a tag."""
    listener = started(config, folder, store)
    listener.failed("gan", ValueError("no more"))
    listener.close(status)
    listener.close("FINISHED")
    run = client.get_run(listener.run_id or "")
    assert run.info.status == status
    assert run.data.tags["normscape.error"] == "gan: ValueError: no more"


def test_resume_continues_the_run_without_duplicates(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Steps that are measured again after a resume are left out, later ones are added, to the same run."""
    first = started(config, folder, store)
    for step in range(10, 60, 10):
        first.metrics("gan", {"loss": step / 10, "distance_same/angle": 0.1}, step)
    first.close("KILLED")
    second = started(config, folder, store)
    assert second.run_id == first.run_id
    assert client.get_run(second.run_id or "").info.status == "RUNNING"
    for step in range(30, 90, 10):
        second.metrics("gan", {"loss": step / 10, "new": 1.0}, step)
    second.close("FINISHED")
    assert steps(client, second.run_id, "gan/loss") == list(range(10, 90, 10))
    assert steps(client, second.run_id, "gan/new") == list(range(30, 90, 10))
    assert steps(client, second.run_id, "gan/distance_same/angle") == list(range(10, 60, 10))


def test_metrics_go_in_batches(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Points wait in a buffer between writes; more than MLflow takes at once, odd names and NaN all arrive."""
    listener = started(config, folder, store)
    listener.metrics("gan", {"loss": 0.0}, 0)
    for step in range(1, 1201):
        listener.metrics("gan", {"loss": math.nan if step == 7 else step, "odd %name": 1.0}, step)
    assert len(listener._buffer) > 1000
    listener.close()
    assert steps(client, listener.run_id, "gan/loss") == list(range(1201))
    assert len(steps(client, listener.run_id, "gan/odd _name")) == 1200


def test_finished_stage_is_recorded_whole_and_once(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Final metrics, the whole curve, small tables, pictures and the manifest; a later run that skips the stage adds nothing."""
    manifest = finished_stage(folder)
    listener = started(config, folder, store)
    listener.stage_started("gan", resumed=False)
    listener.metrics("gan", {"loss": 0.1}, 10)
    listener.stage_finished("gan", manifest)
    listener.close()
    again = started(config, folder, store)
    again.stage_skipped("gan", manifest)
    again.close()
    run = client.get_run(again.run_id or "")
    assert steps(client, again.run_id, "gan/loss") == list(range(10, 101, 10))
    assert steps(client, again.run_id, "gan/frechet") == [0]
    assert steps(client, again.run_id, "gan/final/loss") == [0]
    assert run.data.metrics["gan/seconds"] == 12.5
    expected = {"gan/manifest.json", "gan/metrics.jsonl", "gan/distances.parquet", "gan/samples/step-000010.png", "config.yaml"}
    assert listed(client, again.run_id) == expected


def test_skipped_stage_of_another_run_is_recorded(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """A changed configuration begins its own MLflow run, which takes over what earlier runs finished."""
    manifest = finished_stage(folder)
    first = started(config, folder, store)  # left running, as after SIGKILL
    changed = started(config.model_copy(update={"seed": 1}), folder, store)
    changed.stage_skipped("gan", manifest)
    changed.close()
    assert changed.run_id != first.run_id
    assert client.get_run(first.run_id or "").info.status == "KILLED"
    assert steps(client, changed.run_id, "gan/loss") == list(range(10, 101, 10))
    assert "gan/distances.parquet" in listed(client, changed.run_id)


def test_fresh_begins_a_new_run(config: Config, folder: Path, store: str) -> None:
    """`fresh` leaves the old MLflow run alone; later runs go on with the new one."""
    first = started(config, folder, store)
    first.close()
    fresh = started(config, folder, store, fresh=True)
    fresh.close()
    assert fresh.run_id != first.run_id
    later = started(config, folder, store)
    later.close()
    assert later.run_id == fresh.run_id


def test_deleted_run_is_replaced(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """A run that somebody deleted in MLflow is begun anew."""
    first = started(config, folder, store)
    first.close()
    client.delete_run(first.run_id or "")
    second = started(config, folder, store)
    second.close()
    assert second.run_id != first.run_id


@pytest.mark.parametrize("kind", ["no-server", "no-folder", "no-scheme", "no-database"])
def test_unreachable_store_costs_a_warning(
    config: Config, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever is wrong with the store, nothing is raised, one warning says so, without the password, and the run goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("")
    (tmp_path / "odd.db").write_text("this is no database " * 100)
    uris = {
        "no-server": "http://me:secret@127.0.0.1:9",
        "no-folder": f"sqlite:///{tmp_path / 'file' / 'x.db'}",
        "no-scheme": "nonsense://x",
        "no-database": f"sqlite:///{tmp_path / 'odd.db'}",
    }
    listener = MlflowListener(config, folder, uris[kind])
    with caplog.at_level(logging.WARNING, logger="normscape.tracking"):
        assert listener.start() is None
        listener.stage_started("gan", False)
        listener.metrics("gan", {"loss": 1.0}, 1)
        listener.progress("gan", 1, 2)
        listener.stage_finished("gan", finished_stage(folder))
        listener.failed("score", KeyboardInterrupt())
        listener.close("KILLED")
    assert len([record for record in caplog.records if record.name == "normscape.tracking"]) == 1
    assert "goes on without it" in caplog.text
    assert "secret" not in caplog.text


def test_store_that_goes_away_is_caught_up_with(
    config: Config, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics that could not be written wait; when the store is back they are written, each once."""
    database = tmp_path / "store" / "mlflow.db"
    listener = started(config, folder, f"sqlite:///{database}")
    monkeypatch.setattr("normscape.tracking.runs.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("normscape.tracking.runs.PAUSE_SECONDS", 0.0)
    os.chmod(database, 0o444)
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    with caplog.at_level(logging.WARNING, logger="normscape.tracking"):
        listener._client = open_client_again(listener)
        listener.metrics("gan", {"loss": 1.0}, 1)
    assert "metrics wait" in caplog.text
    database.rmdir()
    database.with_suffix(".away").rename(database)
    os.chmod(database, 0o644)
    listener.metrics("gan", {"loss": 2.0}, 2)
    listener.close()
    assert steps(MlflowClient(f"sqlite:///{database}"), listener.run_id, "gan/loss") == [1, 2]


def open_client_again(listener: MlflowListener) -> MlflowClient:
    """The listener's client, without the connections that its pool keeps open."""
    client = listener._client
    assert client is not None
    client._tracking_client.store.engine.dispose()
    return client


def test_default_store_lies_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting the store is an absolute sqlite file with artifacts beside it; `MLFLOW_TRACKING_URI` wins."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    uri = default_tracking_uri(Path("runs"))
    assert uri == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert artifact_location(uri) == (tmp_path / "runs" / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert default_tracking_uri(Path("runs")) == "http://mlflow.example:5000"
    assert artifact_location("http://mlflow.example:5000") is None
    assert without_password("https://me:secret@host:1/x") == "https://host:1/x"


def test_listens_to_real_stages(config: Config, tmp_path: Path, store: str, client: MlflowClient) -> None:
    """Run under the stages' runner: a stage that breaks off and is resumed leaves one complete curve and its files."""
    broken = True

    def work(context: StageContext) -> dict[str, float]:
        for step in range(1, 11):
            context.recorder.metrics({"loss": 1.0 / step}, step)
            if broken and step == 6:
                raise KeyboardInterrupt
        pq.write_table(pa.table({"a": [1]}), context.folder / "table.parquet")
        return {"best": 0.1}

    folder = tmp_path / config.name
    for attempt in range(3):
        listener = started(config, folder, store)
        stages = (Stage("prepare", ("data",)),)
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                run_stages(config, tmp_path, listener=listener, extra={"prepare": work}, stages=stages)
            listener.close("KILLED")
        else:
            broken = False
            run_stages(config, tmp_path, listener=listener, extra={"prepare": work}, stages=stages)
            listener.close("FINISHED")
    assert steps(client, listener.run_id, "prepare/loss") == list(range(1, 11))
    assert steps(client, listener.run_id, "prepare/best") == [0]
    assert "prepare/table.parquet" in listed(client, listener.run_id)
