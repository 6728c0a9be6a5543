"""A Ray of our own in this process, or a cluster that is already there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address

from normscape.config import Config
from normscape.errors import UserError

LOCAL = "local"
"""The address that stands for a Ray of our own."""
OBJECT_STORE_BYTES = 500_000_000
"""Shared memory of a Ray of our own; taken page by page as it is used."""
_PROBE_SECONDS = 10.0
_STARTS = 3
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray inside a job's entry point: its runtime environment and metadata."""
_TOKEN_FILE = Path(".ray/auth_token")


@contextmanager
def connect(
    address: str | None = None,
    *,
    cpus: int = 0,
    gpus: int | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    temp_dir: Path | None = None,
) -> Iterator[bool]:
    """Be connected to Ray; afterwards end what was started here, and only that.

    A process that is connected already stays so, and keeps its connection.

    Args:
        address: `auto` or `host:port` of a cluster, `local` for a Ray of our own. Empty: `RAY_ADDRESS`, as it is set
            inside a Ray job, else a Ray of our own.
        cpus: logical CPUs that a Ray of our own has at least, whatever the machine has.
        gpus: GPUs of a Ray of our own; what the machine has when empty.
        object_store_bytes: shared memory of a Ray of our own.
        temp_dir: where a Ray of our own keeps its sockets and logs; a short path.

    Yields:
        Whether it is a Ray of our own.

    Raises:
        UserError: there is no such cluster, or it does not let us in.
    """
    if ray.is_initialized():
        yield False
        return
    place = address or os.environ.get("RAY_ADDRESS") or LOCAL
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if place == LOCAL:
        secure_token()
        options |= {
            "num_cpus": max(cpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": object_store_bytes,
            "_temp_dir": str(temp_dir) if temp_dir else None,
        }
    _join(place, options)
    try:
        yield place == LOCAL
    finally:
        with _quiet_shutdown():
            ray.shutdown()


def _join(place: str, options: Mapping[str, Any]) -> None:
    """`ray.init`, with errors for people, and with this process's signal handlers as they were."""
    if "://" in place:
        raise UserError(
            f"--address {place}: give the address of the cluster's head as host:port (port 6379 as a rule), or `auto` on one of "
            "its machines; from elsewhere, submit a job: `ray job submit -- python jobs/run.py ...`"
        )
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        if place == LOCAL:
            _start(options)
        else:
            _probe(place)
            ray.init(address=place, **options)
    except Exception as error:  # Ray raises ConnectionError, AuthenticationError, RuntimeError, ValueError and plain Exception
        with contextlib.suppress(Exception):
            ray.shutdown()  # half a connection
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        if place == LOCAL:
            raise UserError(f"Ray does not start on this machine: {reason}") from error
        raise UserError(
            f"cannot join the Ray cluster at {place}: {reason}\n"
            "is it running (`ray status`)? if it asks for a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(options: Mapping[str, Any]) -> None:
    """Start a Ray of our own; again when the machine was too busy for Ray's patience of half a minute."""
    for _ in range(_STARTS - 1):
        try:
            ray.init(address=LOCAL, **options)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    ray.init(address=LOCAL, **options)


def _probe(place: str) -> None:
    """Whether anybody listens; Ray would try for minutes.

    Raises:
        OSError: nobody does.
    """
    address = canonicalize_bootstrap_address(place) or ""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS):
        return


@contextmanager
def _quiet_shutdown() -> Iterator[None]:
    """Ctrl-C while Ray ends its processes must not leave some of them behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def secure_token() -> None:
    """Make sure that a Ray of our own finds a token that only its owner can read.

    Ray 2.60 makes one where there is none, in `~/.ray/auth_token`, readable by everybody on the machine.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / _TOKEN_FILE
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(aside, path)
            aside.unlink()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:  # a home that cannot be written: a token for this process and its children alone
        sys.stderr.write(f"Ray's token stays in memory, {path} cannot be kept: {error.strerror}\n")
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def gpus_each(config: Config, count: int) -> float:
    """GPUs for each of `count` workers or actors, where nobody said: one, if the configuration allows it and they are there."""
    if config.device == "cpu":
        return 0.0
    return 1.0 if config.device == "cuda" or ray.cluster_resources().get("GPU", 0) >= count else 0.0


def job_id(*, own: bool) -> str | None:
    """The id that `ray job submit` printed, inside a submitted job; else that of the connection to a cluster.

    Args:
        own: whether this process is connected to a Ray of its own, whose job is nothing to tell of.
    """
    submitted = _job_config().get("metadata", {}).get("job_submission_id")
    if submitted:
        return str(submitted)
    return None if own else str(ray.get_runtime_context().get_job_id())


def check_runs_folder(runs_dir: Path) -> None:
    """Whether results would outlive the job that this process is.

    Raises:
        UserError: they would lie in the job's copy of its working directory, which Ray removes.
    """
    if _job_config().get("runtime_env", {}).get("working_dir") and not runs_dir.is_absolute():
        raise UserError(
            f"--runs-dir {runs_dir}: a job works in a copy of its working directory, which goes with it; give a folder on "
            "storage that all machines have, as an absolute path, here or in NORMSCAPE_RUNS"
        )


def _job_config() -> dict[str, Any]:
    try:
        found = json.loads(os.environ.get(_JOB_CONFIG, ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
