"""Jobs on a real Ray cluster with token authentication: submitted, finished, refused, and one that loses a machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SHORT = ("--set", "gan.steps=24", "--set", "gan.checkpoint_interval=4", "--no-track", "--quiet")
"""A shorter experiment than the tiny one."""


@dataclass
class Head:
    """A running head: where it is, where its processes keep their files, and what a client needs to be let in."""

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path

    def client(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray ...` as a process that has the token, unless the environment says otherwise."""
        command = [RAY, *arguments]
        return subprocess.run(
            command, env=self.environment | environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )

    def submit(self, work: Path, *entry_point: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, which waits for the job's end and prints its log."""
        return self.client("job", "submit", "--address", self.dashboard, "--working-dir", str(work), "--", "python", *entry_point)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with_ports = [socket.socket() for _ in range(count)]
    try:
        for one in with_ports:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in with_ports]
    finally:
        for one in with_ports:
            one.close()


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line or environment names a folder."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text:
                found.append(int(path.name))
    return found


def end(pids: list[int]) -> None:
    """SIGKILL some processes by their ids."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def node(folder: Path, environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --block`, ended by the ids of its processes: all of them name the folder in their environment."""
    log = (folder / "start.log").open("wb")
    command = [RAY, "start", "--block", "--num-gpus=0", "--object-store-memory=200000000", "--disable-usage-stats", *options]
    process = subprocess.Popen(
        command, env=environment | {"NODE_FOLDER": str(folder)}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end(processes_of(folder))
        log.close()


def comes_up(process: subprocess.Popen[bytes], head: Head, token: str) -> bool:
    """Whether all of Ray has started and the dashboard answers, before the process ends."""
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    give_up = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < give_up:
        time.sleep(1)
        try:
            with urllib.request.urlopen(request, timeout=30):
                if "Ray runtime started" in (head.folder / "start.log").read_text():
                    return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """Sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(short_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with the dashboard on 127.0.0.1 and a token in a file that only its owner can read."""
    folder = short_folder
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent, metrics = free_ports(5)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "NORMSCAPE_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is the head's
        "NORMSCAPE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": str(ROOT / "platform"),
    }
    found = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, folder)
    options = (
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={folder}",
        "--num-cpus=4",
    )
    for _ in range(5):  # on a busy machine Ray's processes lose patience with each other
        with node(folder, environment, *options) as process:
            if comes_up(process, found, token.read_text()):
                yield found
                break
    else:
        pytest.fail((folder / "start.log").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_yaml: Path) -> Path:
    """A working directory as a person would submit it: the entry points and configurations."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tiny.yaml").write_text(tiny_yaml.read_text())
    (folder / "broken.yaml").write_text(tiny_yaml.read_text() + "\nno_such_section: 1\n")
    return folder


def test_a_submitted_experiment_runs_to_its_end(head: Head, work: Path, tmp_path: Path) -> None:
    """`ray job submit -- python jobs/run.py` trains on two workers, projects with an actor, and ends SUCCEEDED with a page."""
    ended = head.submit(
        work, "jobs/run.py", "--config", "tiny.yaml", "--workers", "2", "--actors", "1", "--runs-dir", str(tmp_path), *SHORT
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "succeeded" in ended.stdout + ended.stderr
    assert list((tmp_path / "tiny").glob("report-*/index.html"))
    listed = head.client("job", "list", "--address", head.dashboard)
    assert "SUCCEEDED" in listed.stdout + listed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "broken.yaml", "--runs-dir", "/tmp/nowhere"), "no_such_section"),
        (
            ("--config", "tiny.yaml", "--runs-dir", "/tmp/nowhere", "--workers", "3"),
            "cannot be shared out evenly among 3 workers",
        ),
        (("--config", "tiny.yaml"), "--runs-dir runs: a job works in a copy of its working directory"),
    ],
)
def test_a_job_with_a_mistake_ends_failed_with_the_message(
    head: Head, work: Path, arguments: tuple[str, ...], message: str
) -> None:
    """The message stands in the job's log, without a stack trace."""
    ended = head.submit(work, "jobs/run.py", *arguments)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "FAILED" in said or "failed" in said
    assert message in said
    assert "Traceback" not in said


def test_a_client_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    """Neither without any, nor with a wrong one, by the command or by plain HTTP."""
    for token in ("", secrets.token_hex(32)):
        ended = head.client(
            "job", "list", "--address", head.dashboard, RAY_AUTH_TOKEN_PATH="", RAY_AUTH_TOKEN=token, HOME=str(tmp_path)
        )
        assert ended.returncode != 0
        assert "auth" in (ended.stdout + ended.stderr).lower()
        request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request if token else request.full_url, timeout=30)
        assert refused.value.code in (401, 403)


def test_a_training_that_loses_a_machine_goes_on_with_fewer_workers(head: Head, tiny_yaml: Path, tmp_path: Path) -> None:
    """Two machines with a worker each; the second is killed. One worker goes on from the checkpoint with the same batch."""
    folder = Path(tempfile.mkdtemp(prefix="ns-node-", dir="/tmp"))
    environment = head.environment | {"RAY_ADDRESS": head.address}
    agent, metrics = free_ports(2)
    options = (
        f"--address={head.address}",
        "--node-ip-address=127.0.0.2",
        f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}",
        "--num-cpus=3",
    )
    command = [sys.executable, "-m", "normscape", "run", str(tiny_yaml), "--runs-dir", str(tmp_path), "--to", "gan", "--no-track"]
    command += ["--set", "gan.log_interval=1", "--workers", "1-2", "--cpus-per-worker", "3"]
    run = tmp_path / "tiny"
    with node(folder, environment, *options):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        give_up = time.monotonic() + 400
        while not list(run.glob("gan-*.partial/checkpoint-00000016/state.json")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < give_up, "no checkpoint"
            time.sleep(0.05)
        strangers = processes_of(folder)
        end(strangers)
        said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in next(run.glob("gan-*/metrics.jsonl")).read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == list(range(1, 61))
    assert next(run.glob("gan-*/generator.safetensors")).exists()
    shutil.rmtree(folder, ignore_errors=True)
