"""MLflow with real parts: a server on PostgreSQL with proxied artifacts, a sqlite file, a model answering HTTP requests."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy
import yaml
from mlflow import MlflowClient

from normscape.configio import load_config
from normscape.stages.system import ScoredSystem
from normscape.tracking.nested import nested_runs
from normscape.tracking.promotion import PromotionRefused, promote
from normscape.tracking.registry import Registered, register_run, versions
from normscape.tracking.runs import MlflowListener
from normscape.tracking.store import open_client

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
MODEL = "normscape-tiny"
SECONDS = 300.0
"""Until a server must answer."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Server:
    """A process with an HTTP health page, in a process group of its own; it may be stopped and started again."""

    def __init__(self, command: list[str], health: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.command, self.health, self.log = command, health, log
        self.environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=self.log.parent
            )
        give_up = time.monotonic() + SECONDS
        while not answers(self.health):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < give_up, self.log.read_text()[-3000:]
            time.sleep(0.5)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A temporary PostgreSQL cluster of an ordinary user, on 127.0.0.1; its SQLAlchemy address."""
    pytest.importorskip("psycopg2", reason="needs psycopg2: pip install psycopg2-binary")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    path = os.pathsep.join([*map(str, reversed(found)), os.environ.get("PATH", "")])
    tools = {name: shutil.which(name, path=path) for name in ("initdb", "pg_ctl", "createdb")}
    if not all(tools.values()):
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a short path: sockets have at most 107 characters
    if os.getuid() == 0:  # initdb refuses root
        if shutil.which("setpriv") is None:
            pytest.skip("as root, needs setpriv (util-linux) to become an ordinary user")
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
    port = free_port()

    def run(name: str, *arguments: str) -> None:
        command = [*user, str(tools[name]), *arguments]
        with (folder.parent / f"{folder.name}.log").open("a+") as log:  # pg_ctl's server would hold a pipe open
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"LC_ALL": "C.UTF-8"})
            log.seek(0)
            assert done.returncode == 0, log.read()

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "server.log"), "-w", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.log").unlink()


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mlflow server` on that database, with proxied artifacts."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", postgres, "--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    started = Server(command, f"http://127.0.0.1:{port}/health", folder / "server.log", lean)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def address(server: Server) -> str:
    return server.health.removesuffix("/health")


@pytest.fixture(scope="module", params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both kinds of store, one after the other."""
    if request.param == "server":
        return address(request.getfixturevalue("server"))
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def copy_of(run_folder: Path, folder: Path, change: Callable[[pd.DataFrame], pd.Series] | None = None) -> Path:
    """A run folder of the same name, not recorded yet; the anomaly scores may be changed."""
    copy = folder / run_folder.name
    shutil.copytree(run_folder, copy)
    if change is not None:
        path = next(copy.glob("score-*")) / "scores.parquet"
        scores = pd.read_parquet(path)
        scores["pooled_score"] = change(scores)
        scores.to_parquet(path)
    return copy


@pytest.fixture(scope="module")
def registered(store: str, calm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """The first version, of a run whose scores are noise; it is champion."""
    noise = np.random.default_rng(0)
    folder = copy_of(calm_run, tmp_path_factory.mktemp("first"), lambda scores: noise.random(len(scores)))
    done = register_run(folder, tracking_uri=store)
    assert "there was none" in promote(MODEL, store)
    return done


def test_a_run_is_recorded_with_nested_runs_and_its_files(registered: Registered, store: str, calm_run: Path) -> None:
    """Parent with headline metrics and configuration, a nested run a stage with curves and tables; on a server, all by proxy."""
    client = open_client(store)
    run = client.get_run(registered.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "tiny"
    stages = {nested.info.run_name: nested for nested in nested_runs(client, run)}
    assert set(stages) == {"prepare", "auxiliary", "gan", "controllers", "latents", "network", "project", "score"}
    assert {nested.info.status for nested in stages.values()} == {"FINISHED"}
    manifest = json.loads((next(calm_run.glob("score-*")) / "manifest.json").read_text())
    assert run.data.metrics["score/forest_test_auroc"] == manifest["metrics"]["forest_test_auroc"]
    for metric, steps in curves(next(calm_run.glob("gan-*"))).items():
        assert sorted(p.step for p in client.get_metric_history(stages["gan"].info.run_id, metric)) == steps, metric
    assert {i.dataset.name for i in run.inputs.dataset_inputs} == {"chairs-train", "chairs-test"}
    if store.startswith("http"):
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    fetched = client.download_artifacts(stages["score"].info.run_id, "metrics.parquet")
    assert pq.read_table(fetched) == pq.read_table(next(calm_run.glob("score-*")) / "metrics.parquet")
    assert load_config(client.download_artifacts(registered.run_id, "config.yaml")) == load_config(calm_run / "config.yaml")


def curves(stage: Path) -> dict[str, list[int]]:
    """Steps of every metric in a stage's `metrics.jsonl`, in order."""
    found: dict[str, list[int]] = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append(row["step"])
    assert found
    return found


def test_a_version_has_card_signature_example_and_tags(registered: Registered, store: str, calm_run: Path) -> None:
    """What a person needs to use the version, and nothing that is pickled."""
    client = open_client(store)
    version = next(v for v in versions(client, MODEL) if int(v.version) == registered.version)
    assert version.run_id == registered.run_id
    assert "## Results on the test subjects" in version.description
    assert "| **pooled** | AUROC |" in version.description
    assert {"normscape.config_digest", "normscape.data_digest", "normscape.forest_test_auroc_low"} <= set(version.tags)
    import mlflow

    mlflow.set_tracking_uri(store)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{MODEL}/{version.version}"))
    mlflow.set_tracking_uri("")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if Path(name).suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    assert {"input_example.json", "requirements.txt", "code/normscape/stages/system.py"} <= names
    assert {"artifacts/model_card.md", "artifacts/system/score/forest.skops"} <= names
    described = (folder / "MLmodel").read_text()
    assert "angle_degrees" in described
    assert "anomaly_score" in described
    assert "torch==2.13.0" in (folder / "requirements.txt").read_text().split()


def test_champion_moves_only_for_a_better_challenger(registered: Registered, store: str, calm_run: Path, tmp_path: Path) -> None:
    """The same system is no new version; no challenger and a challenger that is no better are refused; a better one wins."""
    client = open_client(store)

    def alias(name: str) -> int:
        return int(client.get_model_version_by_alias(MODEL, name).version)

    with pytest.raises(PromotionRefused, match="no challenger; version 1 is the champion"):
        promote(MODEL, store)
    noise = np.random.default_rng(1)
    worse = copy_of(calm_run, tmp_path / "worse", lambda scores: noise.random(len(scores)))
    second = register_run(worse, tracking_uri=store)
    assert (second.version, second.created) == (2, True)
    assert (alias("challenger"), alias("champion")) == (2, 1)
    with pytest.raises(PromotionRefused, match=r"version 1 stays champion; version 2 is not better beyond doubt: .* in pairs"):
        promote(MODEL, store)
    assert alias("champion") == 1
    again = register_run(worse, tracking_uri=store)
    assert (again.version, again.created) == (2, False)
    better = copy_of(calm_run, tmp_path / "better", lambda scores: scores["label"] + 0.1 * noise.random(len(scores)))
    assert register_run(better, tracking_uri=store).version == 3
    said = promote(MODEL, store)
    assert "version 3 is the champion now, in place of version 1: AUROC 1.000" in said
    assert alias("champion") == 3
    assert client.get_model_version(MODEL, "3").tags["normscape.promotion"] in said


LOAD = """
import json, sys
class Blocker:  # packages of the project that are not among the model's requirements
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "optuna", "embreex", "h5py", "torchmetrics"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
images = np.load(sys.argv[3])
table = model.predict({"image": images, "angle_degrees": np.full((len(images), 1), 45.0)}, params={"reconstructions": True})
print(json.dumps([table["anomaly_score"].tolist(), np.array(table["reconstruction"].tolist()).shape]))
"""


@pytest.fixture(scope="module")
def pictures(calm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "images.npy"
    np.save(path, np.load(next(calm_run.glob("project-*")) / "inputs.npy")[:3])
    return path


def expected(calm_run: Path, pictures: Path) -> pa.Table:
    return ScoredSystem.from_run(calm_run).score(np.load(pictures), {"angle": np.full((3, 1), 45.0)})


def test_loads_by_alias_with_pickle_disallowed(registered: Registered, store: str, calm_run: Path, pictures: Path) -> None:
    """A fresh process that may not unpickle anything scores as the stages do."""
    environment = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", LOAD, store, f"models:/{MODEL}@champion", str(pictures)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    scores, shape = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(scores, expected(calm_run, pictures)["anomaly_score"].to_numpy(), atol=1e-6)
    assert shape == [3, 3, 8, 8]


def test_a_served_model_answers_http_requests(
    registered: Registered, store: str, calm_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """`mlflow models serve` scores images that come as JSON, and says what is wrong with a bad request."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    # `mlflow models serve` calls uvicorn by its name
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    serving = Server(command, f"http://127.0.0.1:{port}/ping", tmp_path / "serve.log", environment)
    try:
        serving.start()
        inputs: dict[str, Any] = {"image": np.load(pictures).tolist(), "angle_degrees": [[45.0]] * 3}
        answer = post(port, {"inputs": inputs})
        scores = [row["anomaly_score"] for row in answer["predictions"]]
        np.testing.assert_allclose(scores, expected(calm_run, pictures)["anomaly_score"].to_numpy(), atol=1e-6)
        assert {row["anomalous"] for row in answer["predictions"]} <= {0, 1}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(port, {"inputs": {"image": inputs["image"]}})
    finally:
        serving.stop()


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_metrics_wait_while_the_server_is_away(
    server: Server, calm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server process is stopped in a stage and started again in the next: nothing is lost, nothing is there twice."""
    for name in ("FLUSH_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(f"normscape.tracking.runs.{name}", 0.0)
    folder = copy_of(calm_run, tmp_path / "away")
    config = load_config(folder / "config.yaml")
    listener = MlflowListener(config, folder, address(server))
    assert listener.start() is not None
    listener.stage_started("auxiliary", resumed=False)
    listener.metrics("auxiliary", {"live": 1.0}, 1)
    with away(server):
        listener.metrics("auxiliary", {"live": 2.0}, 2)
        manifest = json.loads((next(folder.glob("auxiliary-*")) / "manifest.json").read_text())
        listener.stage_finished("auxiliary", manifest)
        listener.stage_started("gan", resumed=False)
        listener.metrics("gan", {"live": 5.0}, 5)
    listener.metrics("gan", {"live": 6.0}, 6)
    listener.close("FINISHED")
    client = MlflowClient(address(server))
    stages = {run.info.run_name: run for run in nested_runs(client, client.get_run(listener.run_id or ""))}
    assert [p.step for p in client.get_metric_history(stages["auxiliary"].info.run_id, "live")] == [1, 2]
    assert [p.step for p in client.get_metric_history(stages["gan"].info.run_id, "live")] == [5, 6]
    assert {run.info.status for run in stages.values()} == {"FINISHED"}
    recorded = {item.path for item in client.list_artifacts(stages["auxiliary"].info.run_id)}
    assert {"metrics.jsonl", "triplets.parquet"} <= recorded


@contextmanager
def away(server: Server) -> Iterator[None]:
    """The server's process ends, and another one takes its place."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_two_runs_at_once_on_one_new_sqlite_file(tiny_yaml: Path, cache: Path, calm_run: Path, tmp_path: Path) -> None:
    """Two `normscape run` processes make the file together; each run is recorded whole, each step once."""
    environment = os.environ | {"NORMSCAPE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    processes = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "normscape", "run", str(tiny_yaml), "--runs-dir", str(tmp_path), "--to", "auxiliary"]
        command += ["--set", f"name={name}"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "MLflow at" not in err, err
    client = open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    calm = next(calm_run.glob("auxiliary-*"))
    for name in ("one", "two"):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        stages = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
        assert set(stages) == {"prepare", "auxiliary"}
        assert len(runs) == 3
        assert {run.info.status for run in runs} == {"FINISHED"}
        for metric, steps in curves(calm).items():
            recorded = client.get_metric_history(stages["auxiliary"].info.run_id, metric)
            assert sorted(point.step for point in recorded) == steps, metric


def test_a_server_for_a_group_asks_who_is_there(postgres: str, tmp_path: Path) -> None:
    """The command of infra/mlflow/compose.yaml on a database of its own: strangers and foreign host names stay outside, the line
    of docs/cluster.md makes a user, who may read everything and change nothing of others."""
    pytest.importorskip("flask_wtf", reason="needs Flask-WTF: pip install 'normscape[server]'")
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    database, port, password = f"{postgres}_auth", free_port(), "twelve-letters-long"
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE mlflow_auth"))
    engine.dispose()
    settings = configparser.ConfigParser()
    settings.read(ROOT / "infra/mlflow/basic_auth.ini")
    settings["mlflow"]["database_uri"] = database
    with (tmp_path / "basic_auth.ini").open("w") as file:
        settings.write(file)
    compose = yaml.safe_load((ROOT / "infra/mlflow/compose.yaml").read_text())
    changed = {
        "--host": "127.0.0.1", "--port": str(port), "--workers": "1", "--backend-store-uri": database,
        "--artifacts-destination": str(tmp_path / "artifacts"), "--allowed-hosts": "localhost:*,127.0.0.1:*",
    }  # fmt: skip
    words = [word.partition("=") for word in compose["services"]["mlflow"]["command"]]
    command = [sys.executable, "-m", *(name + equals + changed.pop(name, value) for name, equals, value in words)]
    assert not changed
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test-alone",
    }  # fmt: skip
    server = Server(command, f"http://127.0.0.1:{port}/health", tmp_path / "server.log", environment)

    def asks(path: str, *options: str) -> int:
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/{path}"
        done = subprocess.run(
            ["curl", "--silent", "--output", str(tmp_path / "answer"), "--write-out", "%{http_code}", *options, url],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return int(done.stdout)

    def makes(name: str) -> tuple[str, ...]:
        return ("--json", json.dumps({"name": name}))

    try:
        server.start()
        search = ("experiments/search", "--json", '{"max_results": 5}')
        assert asks(*search) == 401
        assert asks(*search, "--user", f"admin:{password}", "--header", "Host: elsewhere.example.org") == 403
        [line] = re.findall(r"^ *(curl .*users/create.*)$", (ROOT / "docs/cluster.md").read_text(), re.MULTILINE)
        typed = [word.replace(":5000", f":{port}") for word in shlex.split(line)]
        typed[typed.index("admin")] = f"admin:{password}"  # else curl asks for the password
        done = subprocess.run([*typed, "--silent", "--fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
        ada = json.loads(typed[-1])
        assert json.loads(done.stdout)["user"]["username"] == ada["username"]
        known = ("--user", f"{ada['username']}:{ada['password']}")
        assert asks("experiments/create", "--user", f"admin:{password}", *makes("of-the-administrator")) == 200
        number = json.loads((tmp_path / "answer").read_text())["experiment_id"]
        assert asks(*search, *known) == 200
        assert "of-the-administrator" in (tmp_path / "answer").read_text()
        change = ("--json", json.dumps({"experiment_id": number}))
        assert asks("experiments/delete", *known, *change) == 403
        assert asks("experiments/delete", "--user", "ada:a-wrong-one", *change) == 401
    finally:
        server.stop()
