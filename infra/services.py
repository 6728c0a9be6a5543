"""A local Ray cluster and an MLflow server for one person, without containers: `make services`, `make services-stop`.

Both listen on 127.0.0.1 alone. Ray asks for a token, which is made here and readable by its owner only. MLflow keeps runs in
PostgreSQL where that is installed and in a sqlite file otherwise; artifacts go through the server into a folder. What is started
is noted in FOLDER/services.json, and `stop` ends exactly those processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pwd
import secrets
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 180.0
OTHER_TOKEN = "RAY_AUTH_TOKEN"
"""A token in the environment would go before the one in our file."""
STOP_SECONDS = 60.0


class ServiceError(Exception):
    """A mistake or a failure that a person can do something about."""


@dataclass(frozen=True)
class Process:
    """A process that was started here; its start time tells it from a later one with the same number."""

    name: str
    pid: int
    started: str
    stop_signal: int


@dataclass
class State:
    """What runs, and where Ray keeps its sockets and PostgreSQL its own: a short path, as sockets need."""

    scratch: str
    processes: list[Process] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, start, stop or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--folder", type=Path, default=Path("runs/services"), help="state, logs, token and data (%(default)s)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where jobs put run folders (%(default)s)")
    parser.add_argument("--ray-port", type=int, default=6379)
    parser.add_argument("--client-port", type=int, default=10001, help="of Ray's client protocol")
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--cpus", type=int, help="CPUs that Ray may use (default: all)")
    parser.add_argument("--store", choices=("auto", "sqlite", "postgres"), default="auto", help="where MLflow keeps runs")
    given = parser.parse_args(arguments)
    try:
        if given.action == "start":
            start(given)
        elif given.action == "stop":
            stop(given.folder)
        else:
            show(given.folder)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def start(given: argparse.Namespace) -> None:
    """Start everything; when one part fails, the others are ended again."""
    folder: Path = given.folder.resolve()
    before = read_state(folder)
    if before is not None and any(alive(process) for process in before.processes):
        if all(alive(process) for process in before.processes):
            show(folder)
            return
        raise ServiceError("some of the services have died; run `make services-stop` first, then start again")
    ports = (given.ray_port, given.client_port, given.dashboard_port, given.mlflow_port)
    for port in ports:
        if taken(port):
            raise ServiceError(f"port {port} of 127.0.0.1 is taken; name another (see --help) or end what uses it")
    store, reason = choose_store(given.store)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    state = State(tempfile.mkdtemp(prefix="normscape-", dir="/tmp"))  # mode 0700
    try:
        start_ray(state, folder, given)
        uri = start_postgres(state, folder) if store == "postgres" else f"sqlite:///{folder / 'mlflow.db'}"
        start_mlflow(state, folder, uri, given.mlflow_port)
    except BaseException:
        stop(folder)
        raise
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in state.environment.items())
    write_private(folder / "environment", f"unset {OTHER_TOKEN}\n{lines}")
    print(f"MLflow keeps runs in {store}" + (f" ({reason})" if reason else ""))
    show(folder)


def start_ray(state: State, folder: Path, given: argparse.Namespace) -> None:
    """A head with its dashboard and token."""
    token = folder / "ray_token"
    if not token.exists():
        write_private(token, secrets.token_hex(32) + "\n")
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Jobs have the head's environment, not that of the shell they are submitted from.
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{given.mlflow_port}",
        "NORMSCAPE_RUNS": str(given.runs_dir.resolve()),
    }
    # Without it, Ray puts the machine's outer address for 127.0.0.1 and listens on all interfaces. Clients need it as well.
    local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    # Ray's sockets, and its notes on "the cluster of this machine", apart from other people's.
    private = {"RAY_TMPDIR": state.scratch, "RAY_USAGE_STATS_ENABLED": "0"}
    # A job's `python` is the first on the head's path: it must be the one with the packages.
    private["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={given.ray_port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={given.dashboard_port}", "--disable-usage-stats"),
        f"--ray-client-server-port={given.client_port}",
        *([f"--num-cpus={given.cpus}"] if given.cpus else []),
    ]
    log = folder / "ray.log"
    address = f"http://127.0.0.1:{given.dashboard_port}"
    process = launch(state, folder, "ray", command, environment | local | private, log)
    wait_for(process, log, lambda: "Ray runtime started" in log.read_text(encoding="utf-8", errors="replace"))
    header = {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"}
    own_log = Path(state.scratch, "ray/session_latest/logs/dashboard.log")
    wait_for(process, own_log, lambda: answers(f"{address}/api/version", header))
    state.environment |= environment | local | {"RAY_ADDRESS": f"127.0.0.1:{given.ray_port}", "RAY_API_SERVER_ADDRESS": address}
    state.addresses |= {"Ray dashboard": f"{address}  (its token: {token})", "Ray": f"127.0.0.1:{given.ray_port}"}


def start_postgres(state: State, folder: Path) -> str:
    """A database of our own: no port, a socket in a folder that only its owner may enter. Returns MLflow's address of it."""
    programs = postgres_programs()
    assert programs is not None
    data, user = folder / "postgres", pwd.getpwuid(os.geteuid()).pw_name
    if not (data / "PG_VERSION").exists():
        run([programs / "initdb", "-D", data, "-U", user, "--auth-local=peer", "--auth-host=reject", "--encoding=UTF8"])
    sockets = Path(state.scratch, "pg")
    sockets.mkdir(mode=0o700)
    log = folder / "postgres.log"
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), "-c", "listen_addresses="]
    process = launch(state, folder, "postgres", command, {}, log, signal.SIGINT)  # SIGINT: end now, cleanly
    wait_for(process, log, lambda: run([programs / "pg_isready", "-h", sockets], check=False) == 0)
    found = run([programs / "psql", "-h", sockets, "-d", "mlflow", "-c", "select 1"], check=False)
    if found != 0:
        run([programs / "createdb", "-h", sockets, "mlflow"])
    return f"postgresql+psycopg2://{user}@/mlflow?host={sockets}"


def start_mlflow(state: State, folder: Path, store: str, port: int) -> None:
    """The server; artifacts pass through it into a folder."""
    command = [
        *(str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
        *(f"--backend-store-uri={store}", f"--artifacts-destination={folder / 'mlartifacts'}"),
        f"--allowed-hosts=127.0.0.1:{port},localhost:{port}",
    ]
    log = folder / "mlflow.log"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = launch(state, folder, "mlflow", command, quiet, log)
    address = f"http://127.0.0.1:{port}"
    wait_for(process, log, lambda: answers(f"{address}/health"))
    state.addresses["MLflow"] = address
    write_state(folder, state)


def stop(folder: Path) -> None:
    """End what was started here, the last first: first asked, then made to."""
    folder = folder.resolve()
    state = read_state(folder)
    if state is None:
        print(f"nothing runs: there is no {folder / 'services.json'}")
        return
    for process in reversed(state.processes):
        if not alive(process):
            print(f"{process.name} (process {process.pid}) has ended already")
            continue
        os.kill(process.pid, process.stop_signal)
        give_up = time.monotonic() + STOP_SECONDS
        while alive(process) and time.monotonic() < give_up:
            time.sleep(0.2)
        print(f"{process.name} (process {process.pid}) " + ("is killed" if alive(process) else "has ended"))
        end_session(process.pid)
    shutil.rmtree(state.scratch, ignore_errors=True)
    for name in ("services.json", "environment"):
        (folder / name).unlink(missing_ok=True)


def show(folder: Path) -> None:
    """Print what runs, and how to use it."""
    state = read_state(folder.resolve())
    if state is None:
        print("nothing runs; `make services` starts Ray and MLflow")
        return
    for process in state.processes:
        print(f"{process.name:<14} process {process.pid}" + ("" if alive(process) else ", has died: see the log in the folder"))
    for name, address in state.addresses.items():
        print(f"{name:<14} {address}")
    print(f"\nIn the shell that uses them:\n  source {shlex.quote(str(folder / 'environment'))}")
    print("  ray job submit --working-dir . -- python jobs/run.py --config configs/chairs/demo.yaml")


# ---- processes -------------------------------------------------------------------------------------------------------


def launch(
    state: State,
    folder: Path,
    name: str,
    command: Sequence[str],
    environment: dict[str, str],
    log: Path,
    stop_signal: int = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C here does not reach it, and note it at once."""
    inherited = {key: value for key, value in os.environ.items() if key != OTHER_TOKEN}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=inherited | environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    state.processes.append(Process(name, process.pid, start_time(process.pid), stop_signal))
    write_state(folder, state)
    return process


def wait_for(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    """Wait until it is ready.

    Raises:
        ServiceError: it ended, or it took too long; with the end of its log.
    """
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > give_up:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.exists() else []
            if any("timed out during startup" in line for line in lines):
                lines.append("Ray gives its parts 15 to 30 seconds to start: is this machine very busy? try again when it is not")
            raise ServiceError("\n".join([f"{log.stem} {'ended' if ended else 'does not answer'}; the end of {log}:", *lines]))
        time.sleep(0.3)


def run(command: Sequence[str | Path], check: bool = True) -> int:
    """Run a program to its end; its output is shown only when it fails and must not."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise ServiceError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.returncode


def start_time(pid: int) -> str:
    """When a process started, as the system tells it; empty when there is none (or only what is left of one)."""
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    status, _, started = done.stdout.strip().partition(" ")
    return "" if status.startswith("Z") else started.strip()


def alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return process.started != "" and start_time(process.pid) == process.started


def end_session(leader: int) -> None:
    """Kill what a process left behind in the session that it led."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,sess="], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        pid, session = line.split()
        if session == str(leader):
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


def answers(url: str, headers: dict[str, str] | None = None) -> bool:
    """Whether a server answers with a success."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5) as response:
            return bool(200 <= response.status < 300)
    except (urllib.error.URLError, OSError):
        return False


def taken(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


# ---- PostgreSQL and files --------------------------------------------------------------------------------------------


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them off the path."""
    found = shutil.which("initdb")
    if found and Path(found).resolve().with_name("postgres").exists():
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parent.parent.name), default=None)
    return newest.parent if newest else None


def choose_store(wanted: str) -> tuple[str, str]:
    """`postgres` or `sqlite`, and for sqlite why.

    Raises:
        ServiceError: PostgreSQL is wanted and cannot be had.
    """
    if wanted == "sqlite":
        return "sqlite", ""
    reason = ""
    if postgres_programs() is None:
        reason = "PostgreSQL is not installed"
    elif importlib.util.find_spec("psycopg2") is None:
        reason = "the Python package psycopg2 is not installed"
    elif os.geteuid() == 0:
        reason = "PostgreSQL does not run as root"
    if reason and wanted == "postgres":
        raise ServiceError(reason)
    return ("sqlite", reason) if reason else ("postgres", "")


def read_state(folder: Path) -> State | None:
    """What was noted by `start`."""
    try:
        found = json.loads((folder / "services.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return State(**(found | {"processes": [Process(**process) for process in found["processes"]]}))


def write_state(folder: Path, state: State) -> None:
    """Note what runs."""
    write_private(folder / "services.json", json.dumps(asdict(state), indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write aside, readable by the owner alone, then rename."""
    aside = path.with_name(path.name + ".tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
