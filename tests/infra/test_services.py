"""`make services`: real servers start on 127.0.0.1 alone, ask for a token, and stopping ends them and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "services.py"
SHELL = {"OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": "that of another cluster"}


@pytest.fixture(scope="module")
def services() -> ModuleType:
    """infra/services.py as a module."""
    spec = importlib.util.spec_from_file_location("services", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["services"] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The script as a process, from a shell that still has another cluster's token; its servers compute on one thread."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=os.environ | SHELL, capture_output=True, text=True, timeout=500, check=False
    )


def free_ports(count: int) -> list[int]:
    """Ports that nothing uses now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def options(folder: Path, ports: list[int]) -> list[str]:
    """A start on private ports."""
    names = ("--ray-port", "--client-port", "--dashboard-port", "--mlflow-port")
    flags = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    return ["start", f"--folder={folder}", f"--runs-dir={folder / 'runs'}", "--cpus=2", "--store=sqlite", *flags]


def answer(url: str, **headers: str) -> int:
    """HTTP status of a GET."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def session(leader: int) -> list[int]:
    """Processes of the session that a process began, without those that have ended."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, owner, status in rows if owner == str(leader) and not status.startswith("Z")]


def listening(pids: list[int]) -> set[str]:
    """Addresses that processes listen on, as /proc shows them: hexadecimal, without the port."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == "0A" and f"socket:[{row[9]}]" in sockets:
                found.add(row[1].partition(":")[0])
    return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, list[int], str]]:
    """Ray and MLflow, started as a person does: their folder, ports, and what was printed."""
    ports = free_ports(4)
    try:
        done = call(*options(tmp_path, ports))
        assert done.returncode == 0, done.stdout + done.stderr
        yield tmp_path, ports, done.stdout
    finally:
        call("stop", f"--folder={tmp_path}")


@pytest.mark.cluster
def test_services_start_for_their_owner_alone_and_stop_without_touching_others(running: tuple[Path, list[int], str]) -> None:
    """One story, because a start takes most of a minute: start, use, start again, stop, stop again."""
    folder, (ray_port, _, dashboard_port, mlflow_port), printed = running
    dashboard, mlflow = f"http://127.0.0.1:{dashboard_port}", f"http://127.0.0.1:{mlflow_port}"
    token = (folder / "ray_token").read_text().strip()
    for line in (dashboard, mlflow, f"127.0.0.1:{ray_port}", f"source {folder / 'environment'}"):
        assert line in printed
    assert token not in printed

    # only with the token, only under its own name, only from this machine, only for this person
    assert answer(f"{dashboard}/api/jobs/") == 401
    assert answer(f"{dashboard}/api/jobs/", Authorization=f"Bearer {token}") == 200
    assert answer(f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1") == 200
    assert answer(f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1", Host="elsewhere.example") == 403
    state = json.loads((folder / "services.json").read_text())
    leaders = [process["pid"] for process in state["processes"]]
    members = [pid for leader in leaders for pid in session(leader)]
    assert [process["name"] for process in state["processes"]] == ["ray", "mlflow"]
    assert len(members) > 5
    if Path("/proc/net/tcp").exists():
        assert listening(members) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    for name in ("ray_token", "environment", "services.json"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    assert Path(state["scratch"]).stat().st_mode & 0o077 == 0

    # what a shell gets, and what jobs get
    shell = f". {folder / 'environment'}; echo $RAY_AUTH_MODE $RAY_ADDRESS $RAY_API_SERVER_ADDRESS $MLFLOW_TRACKING_URI"
    told = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["token", f"127.0.0.1:{ray_port}", dashboard, mlflow]

    # a driver of that shell joins: Ray and the driver agree that this machine is 127.0.0.1
    driver = "import ray; ray.init(address='auto', log_to_driver=False); print('AT', ray.nodes()[0]['NodeManagerAddress'])"
    joined = subprocess.run(
        ["sh", "-c", f'. {folder / "environment"}; exec {sys.executable} -c "{driver}"'],
        env=os.environ | SHELL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "AT 127.0.0.1" in joined.stdout, joined.stderr

    again = call(*options(folder, [ray_port, 1, dashboard_port, mlflow_port]))
    assert again.returncode == 0
    assert json.loads((folder / "services.json").read_text()) == state, "a second start changes nothing"

    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        stopped = call("stop", f"--folder={folder}")
        assert stopped.returncode == 0, stopped.stderr
        assert "mlflow" in stopped.stdout
        assert [pid for leader in leaders for pid in session(leader)] == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert not (folder / "services.json").exists()
    assert not Path(state["scratch"]).exists()
    assert (folder / "mlflow.db").exists(), "recorded runs stay"
    assert "nothing runs" in call("stop", f"--folder={folder}").stdout


@pytest.mark.cluster
def test_a_part_that_fails_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    """A port that Ray refuses: exit code 2, the end of its log, no stack trace of ours, no process, no note."""
    ports = free_ports(4)
    ports[1] = 1023
    done = call(*options(tmp_path, ports))
    assert done.returncode == 2
    assert "ray ended; the end of" in done.stderr
    assert "ray_client_server_port must be an integer between" in done.stderr
    assert not (tmp_path / "services.json").exists()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """Exit code 2 and one line, before anything is started."""
    ports = free_ports(4)
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[3]))
        other.listen()
        done = call(*options(tmp_path, ports))
    assert done.returncode == 2
    assert done.stderr == f"port {ports[3]} of 127.0.0.1 is taken; name another (see --help) or end what uses it\n"
    assert list(tmp_path.iterdir()) == []


def test_stop_spares_a_later_process_with_the_same_number(services: ModuleType, tmp_path: Path) -> None:
    """After a restart of the machine, a noted number may belong to somebody else."""
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        note = services.Process("ray", bystander.pid, "Thu Jan  1 00:00:00 1970", signal.SIGTERM)
        services.write_state(tmp_path, services.State(str(tmp_path / "scratch"), [note]))
        done = call("stop", f"--folder={tmp_path}")
        assert done.stdout == f"ray (process {bystander.pid}) has ended already\n"
        assert bystander.poll() is None
        assert not (tmp_path / "services.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_the_store_is_chosen_by_what_is_there(services: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL where it can run, else sqlite with the reason; an explicit wish that cannot be met is an error."""
    monkeypatch.setattr(services.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(services, "postgres_programs", lambda: Path("/usr/bin"))
    monkeypatch.setattr(services.importlib.util, "find_spec", lambda name: object())
    assert services.choose_store("auto") == ("postgres", "")
    assert services.choose_store("sqlite") == ("sqlite", "")
    monkeypatch.setattr(services, "postgres_programs", lambda: None)
    assert services.choose_store("auto") == ("sqlite", "PostgreSQL is not installed")
    with pytest.raises(services.ServiceError, match="PostgreSQL is not installed"):
        services.choose_store("postgres")


_POSTGRES_STORY = """
import importlib.util, json, subprocess, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("services", sys.argv[1])
services = sys.modules["services"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(services)
folder = Path(sys.argv[2])
found = []
for attempt in range(2):  # the second finds the first one's database
    state = services.State(str(folder / f"scratch{attempt}"))
    Path(state.scratch).mkdir(mode=0o700)
    uri = services.start_postgres(state, folder)
    psql = [services.postgres_programs() / "psql", "-h", f"{state.scratch}/pg", "-d", "mlflow", "-At", "-c"]
    subprocess.run([*psql, "create table if not exists kept (n int); insert into kept values (1)"], check=True, stdout=-3)
    count = subprocess.run([*psql, "select count(*) from kept"], check=True, capture_output=True, text=True).stdout.strip()
    tcp = subprocess.run([*psql, "show listen_addresses"], check=True, capture_output=True, text=True).stdout.strip()
    services.stop(folder)
    found.append([uri, count, tcp, services.alive(state.processes[0])])
print("FOUND" + json.dumps(found))
"""


@pytest.mark.cluster
def test_postgres_keeps_its_data_and_listens_on_no_port(services: ModuleType) -> None:
    """A real database is made, used, stopped, and found again; PostgreSQL refuses root, so root hands over to `nobody`."""
    if services.postgres_programs() is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    command = [sys.executable]
    folder = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp"))  # a short path that another user may enter
    try:
        script = Path(shutil.copy(SCRIPT, folder))
        if os.geteuid() == 0:
            system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
            if system is None or shutil.which("setpriv") is None:
                pytest.skip("as root, needs setpriv and a Python that `nobody` may run")
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", system]
            folder.chmod(0o755)
            os.chown(folder, 65534, 65534)
        done = subprocess.run(
            [*command, "-c", _POSTGRES_STORY, script, folder], capture_output=True, text=True, timeout=300, cwd="/", check=False
        )
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout.partition("FOUND")[2])
        for attempt, (uri, count, tcp, still_alive) in enumerate(found):
            assert uri.startswith("postgresql+psycopg2://")
            assert uri.endswith(f"@/mlflow?host={folder}/scratch{attempt}/pg")
            assert count == str(attempt + 1)
            assert tcp == ""
            assert still_alive is False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
