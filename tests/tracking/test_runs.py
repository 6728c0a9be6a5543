"""MLflow records a run once, goes on where it was cut off, and never stops a training. A real sqlite store serves."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from normscape.config import Config
from normscape.configio import config_digest, load_config, validate_config
from normscape.stages.core import Stage, StageContext, run_stages, stage_keys
from normscape.tracking.datasets import data_digest, dataset_inputs
from normscape.tracking.nested import nested_runs
from normscape.tracking.runs import MlflowListener
from normscape.tracking.store import artifact_location, default_tracking_uri, open_client, without_password
from normscape.tracking.system_metrics import SystemMetrics

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


def finished_stage(config: Config, folder: Path, name: str = "gan", steps: int = 100) -> dict[str, Any]:
    """A finished stage's folder, as the stages leave it, and its manifest."""
    key = stage_keys(config)[name]
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


def nested(client: MlflowClient, run_id: str | None, stage: str) -> str:
    """Id of the one nested run of a stage."""
    found = [run for run in nested_runs(client, client.get_run(run_id or "")) if run.data.tags["normscape.stage"] == stage]
    assert len(found) == 1
    return found[0].info.run_id


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
    assert steps(client, nested(client, second.run_id, "gan"), "loss") == list(range(10, 90, 10))
    assert steps(client, nested(client, second.run_id, "gan"), "new") == list(range(30, 90, 10))
    assert steps(client, nested(client, second.run_id, "gan"), "distance_same/angle") == list(range(10, 60, 10))


def test_metrics_go_in_batches(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Points wait in a buffer between writes; more than MLflow takes at once, odd names and NaN all arrive."""
    listener = started(config, folder, store)
    listener.metrics("gan", {"loss": 0.0}, 0)
    for step in range(1, 1201):
        listener.metrics("gan", {"loss": math.nan if step == 7 else step, "odd %name": 1.0}, step)
    assert len(steps(client, nested(client, listener.run_id, "gan"), "loss")) < 200
    listener.close()
    assert steps(client, nested(client, listener.run_id, "gan"), "loss") == list(range(1201))
    assert len(steps(client, nested(client, listener.run_id, "gan"), "odd _name")) == 1200


def test_finished_stage_is_recorded_whole_and_once(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Final metrics, the whole curve, small tables, pictures and the manifest; a later run that skips the stage adds nothing."""
    manifest = finished_stage(config, folder)
    listener = started(config, folder, store)
    listener.stage_started("gan", resumed=False)
    listener.metrics("gan", {"loss": 0.1}, 10)
    listener.stage_finished("gan", manifest)
    listener.close()
    again = started(config, folder, store)
    again.stage_skipped("gan", manifest)
    again.close()
    run = client.get_run(again.run_id or "")
    assert steps(client, nested(client, again.run_id, "gan"), "loss") == list(range(10, 101, 10))
    assert steps(client, nested(client, again.run_id, "gan"), "frechet") == [0]
    assert steps(client, nested(client, again.run_id, "gan"), "final/loss") == [0]
    assert run.data.metrics["gan/seconds"] == 12.5
    assert run.data.metrics["gan/frechet"] == 3.5
    assert steps(client, again.run_id, "gan/frechet") == [0]
    stage = client.get_run(nested(client, again.run_id, "gan"))
    assert (stage.info.run_name, stage.info.status) == ("gan", "FINISHED")
    expected = {"manifest.json", "metrics.jsonl", "distances.parquet", "samples/step-000010.png"}
    assert listed(client, stage.info.run_id) == expected
    assert listed(client, again.run_id) == {"config.yaml"}


def test_the_page_lies_with_the_run(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """A person who opens the run finds the page there; what it is made of lies with the stage."""
    manifest = finished_stage(config, folder, "report")
    (next(folder.glob("report-*")) / "index.html").write_text("<p>page</p>")
    listener = started(config, folder, store)
    listener.stage_finished("report", manifest)
    listener.close()
    assert listed(client, listener.run_id) == {"config.yaml", "report/index.html"}
    assert "distances.parquet" in listed(client, nested(client, listener.run_id, "report"))


def test_skipped_stage_of_another_run_is_recorded(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """A changed configuration begins its own MLflow run, which takes over what earlier runs finished."""
    manifest = finished_stage(config, folder)
    first = started(config, folder, store)  # left running, as after SIGKILL
    changed = started(config.model_copy(update={"seed": 1}), folder, store)
    changed.stage_skipped("gan", manifest)
    changed.close()
    assert changed.run_id != first.run_id
    assert client.get_run(first.run_id or "").info.status == "KILLED"
    assert steps(client, nested(client, changed.run_id, "gan"), "loss") == list(range(10, 101, 10))
    assert "distances.parquet" in listed(client, nested(client, changed.run_id, "gan"))


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
        listener.stage_finished("gan", finished_stage(config, folder))
        listener.failed("score", KeyboardInterrupt())
        listener.close("KILLED")
    assert len([record for record in caplog.records if record.name == "normscape.tracking"]) == 1
    assert "goes on without it" in caplog.text
    assert "secret" not in caplog.text


def test_store_that_goes_away_is_caught_up_with(
    config: Config, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written waits, the beginning and the end of a stage too; when the store is back it is written, once."""
    database = tmp_path / "store" / "mlflow.db"
    listener = started(config, folder, f"sqlite:///{database}")
    monkeypatch.setattr("normscape.tracking.runs.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("normscape.tracking.runs.PAUSE_SECONDS", 0.0)
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    client = listener._client
    assert client is not None
    client._tracking_client.store.engine.dispose()  # without the connections that the pool keeps open
    manifest = finished_stage(config, folder)
    with caplog.at_level(logging.WARNING, logger="normscape.tracking"):
        listener.stage_started("gan", resumed=False)
        listener.metrics("gan", {"live": 1.0}, 1)
        listener.metrics("gan", {"live": 2.0}, 2)
        listener.stage_finished("gan", manifest)
    assert "metrics wait" in caplog.text
    assert len([r for r in caplog.records if r.name == "normscape.tracking"]) == 1  # said once
    database.rmdir()
    database.with_suffix(".away").rename(database)
    listener.stage_started("controllers", resumed=False)
    stage = nested(client, listener.run_id, "gan")
    assert steps(client, stage, "live") == [1, 2]
    assert steps(client, stage, "loss") == list(range(10, 101, 10))
    assert client.get_run(stage).info.status == "FINISHED"
    assert "distances.parquet" in listed(client, stage)
    listener.close()


def test_a_finished_run_waits_for_its_store(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store comes back while the run ends: nothing is missing. One that was cut off does not wait."""
    database = tmp_path / "store" / "mlflow.db"
    listener = started(config, folder, f"sqlite:///{database}")
    client = listener._client
    assert client is not None
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    client._tracking_client.store.engine.dispose()
    listener.metrics("gan", {"loss": 1.0}, 1)

    def come_back(seconds: float) -> None:
        database.rmdir()
        database.with_suffix(".away").rename(database)

    monkeypatch.setattr("normscape.tracking.runs.time.sleep", come_back)
    listener.close("FINISHED")
    assert client.get_run(listener.run_id or "").info.status == "FINISHED"
    assert steps(client, nested(client, listener.run_id, "gan"), "loss") == [1]


def test_a_stage_that_runs_anew_gets_its_own_run(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Curves of two trainings never mix: the old nested run keeps its points and is marked as superseded."""
    listener = started(config, folder, store)
    for value in (1.0, 2.0):
        listener.stage_started("gan", resumed=False)
        for step in (10, 20):
            listener.metrics("gan", {"loss": value}, step)
    listener.close("KILLED")
    runs = nested_runs(client, client.get_run(listener.run_id or ""))
    assert sorted((run.data.metrics["loss"], "normscape.superseded" in run.data.tags) for run in runs) == [
        (1.0, True),
        (2.0, False),
    ]
    assert [steps(client, run.info.run_id, "loss") for run in runs] == [[10, 20], [10, 20]]
    assert {run.info.status for run in runs} == {"KILLED"}


def test_a_run_deleted_meanwhile_does_not_block_the_others(
    config: Config, folder: Path, store: str, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What the store refuses for good is left out with a warning; other stages go on being recorded."""
    listener = started(config, folder, store)
    listener.stage_started("gan", resumed=False)
    client.delete_run(nested(client, listener.run_id, "gan"))
    listener.metrics("gan", {"loss": 1.0}, 1)
    with caplog.at_level(logging.WARNING, logger="normscape.tracking"):
        listener.stage_started("controllers", resumed=False)
    assert "refuses" in caplog.text
    listener.metrics("controllers", {"error": 0.5}, 3)
    listener.close("KILLED")
    assert steps(client, nested(client, listener.run_id, "controllers"), "error") == [3]


def test_left_running_by_a_killed_process(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """The nested run of a process that was killed goes on when its stage is resumed, and ends as killed when it is not."""
    killed = started(config, folder, store)
    killed.stage_started("gan", resumed=False)
    killed.metrics("gan", {"loss": 1.0}, 1)
    killed._flush()
    stage = nested(client, killed.run_id, "gan")
    assert client.get_run(stage).info.status == "RUNNING"
    second = started(config, folder, store)
    assert client.get_run(stage).info.status == "KILLED"
    second.stage_started("gan", resumed=True)
    assert client.get_run(nested(client, second.run_id, "gan")).info.status == "RUNNING"
    second.close("FAILED")
    assert client.get_run(stage).info.status == "FAILED"


def test_tags_name_code_data_and_the_cluster_job(
    config: Config, folder: Path, store: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the run and its nested runs carry them; the job's id only where there is a job."""
    before = started(config, folder, store)
    assert "normscape.ray_job_id" not in client.get_run(before.run_id or "").data.tags
    before.close("KILLED")
    monkeypatch.setenv("NORMSCAPE_RAY_JOB_ID", "raysubmit_1")
    listener = started(config, folder, store)
    listener.stage_started("gan", resumed=False)
    listener.close()
    for run_id in (listener.run_id or "", nested(client, listener.run_id, "gan")):
        tags = client.get_run(run_id).data.tags
        assert tags["normscape.ray_job_id"] == "raysubmit_1"
        assert tags["normscape.config_digest"] == config_digest(config)
        assert tags["normscape.code_version"]


def test_datasets_are_inputs_with_digests(config: Config, folder: Path, store: str, client: MlflowClient) -> None:
    """Training and test samples are inputs of the run and of `prepare`, once; the digests change with the data."""
    manifest = finished_stage(config, folder, "prepare")
    samples = next(folder.glob("prepare-*")) / "samples.parquet"
    table = pa.table({"sample_id": [0, 1, 2], "subject": ["a", "b", "c"], "split": ["train", "test", "unused"]})
    pq.write_table(table, samples)
    for _ in range(2):
        listener = started(config, folder, store)
        listener.stage_finished("prepare", manifest)
        listener.close()
    for run_id in (listener.run_id or "", nested(client, listener.run_id, "prepare")):
        run = client.get_run(run_id)
        inputs = {i.dataset.name: i for i in run.inputs.dataset_inputs}
        assert set(inputs) == {"chairs-train", "chairs-test"}
        assert len(run.inputs.dataset_inputs) == 2
        assert inputs["chairs-test"].tags[0].value == "test"
        assert json.loads(inputs["chairs-test"].dataset.profile)["num_rows"] == 1
        assert run.data.tags["normscape.data_digest"] == data_digest(config, samples)
    before = {i.dataset.name: i.dataset.digest for i in dataset_inputs(config, samples)}
    pq.write_table(table, samples, compression="none", use_dictionary=False)  # other bytes, same data
    assert {i.dataset.name: i.dataset.digest for i in dataset_inputs(config, samples)} == before
    pq.write_table(table.set_column(1, "subject", pa.array(["a", "other", "c"])), samples)
    after = {i.dataset.name: i.dataset.digest for i in dataset_inputs(config, samples)}
    assert after["chairs-train"] == before["chairs-train"]
    assert after["chairs-test"] != before["chairs-test"]
    assert data_digest(config.model_copy(update={"image_size": 16}), samples) != data_digest(config, samples)


def test_the_machine_is_watched(
    config: Config, folder: Path, store: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load of processor and memory under MLflow's own names, with rising steps over a resume; nothing when it is switched off."""
    monkeypatch.setattr("normscape.tracking.system_metrics.SECONDS", 0.0)
    for _ in range(2):
        listener = started(config, folder, store)
        for step in range(3):
            listener.progress("gan", step, 3)
        listener.close("KILLED")
    assert steps(client, listener.run_id, "system/cpu_utilization_percentage") == list(range(6))
    assert client.get_run(listener.run_id or "").data.metrics["system/system_memory_usage_megabytes"] > 0
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert SystemMetrics().sample() == {}


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
    stages = (Stage("prepare", ("data",)),)
    for attempt in range(3):
        listener = started(config, folder, store, stages=stages)
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                run_stages(config, tmp_path, listener=listener, extra={"prepare": work}, stages=stages)
            listener.close("KILLED")
        else:
            broken = False
            run_stages(config, tmp_path, listener=listener, extra={"prepare": work}, stages=stages)
            listener.close("FINISHED")
    assert steps(client, nested(client, listener.run_id, "prepare"), "loss") == list(range(1, 11))
    assert steps(client, nested(client, listener.run_id, "prepare"), "best") == [0]
    assert "table.parquet" in listed(client, nested(client, listener.run_id, "prepare"))
    assert client.get_run(nested(client, listener.run_id, "prepare")).info.status == "FINISHED"
