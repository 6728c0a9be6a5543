"""Where MLflow keeps its records, and how to open it quietly and safely."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"


def default_tracking_uri(runs_dir: Path) -> str:
    """`MLFLOW_TRACKING_URI` when it is set, else a sqlite file in `runs_dir` (absolute, so that workers may be given it)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{runs_dir.resolve() / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The address without user name and password, fit for files and messages."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def first_line(error: Exception) -> str:
    """What an error says, in one line that is fit for files and messages: MLflow quotes the address, password and all."""
    lines = str(error).strip().splitlines()
    return re.sub(r"://[^/@\s]+@", "://", lines[0] if lines else type(error).__name__)[:300]


def artifact_location(uri: str) -> str | None:
    """Artifacts of a sqlite store lie beside it in `mlartifacts`; servers and other databases decide for themselves (None)."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts").as_uri()


def sqlite_path(uri: str) -> Path | None:
    """Absolute path of a sqlite store, None for any other kind."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def open_client(uri: str) -> MlflowClient:
    """Open the store, creating a sqlite file's tables when it is new.

    Call this on the driver before any worker opens the same sqlite file: MLflow's migrations do not survive several
    processes at once. Between drivers a lock file serves.

    Args:
        uri: tracking address.

    Raises:
        Exception: whatever MLflow raises when the store cannot be opened.
    """
    # No usage reports; and a server that is down is to be noticed in seconds, not minutes. All can be overridden from outside.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    # The migrations of a fresh database, and the steps of logging a model, are lines that tell a reader nothing.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock")):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # the client opens its store on first use
    return client


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the MLflow experiment of this name, made when it is new."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_location(uri)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
            raise
        found = client.get_experiment_by_name(name)
        assert found is not None
        return str(found.experiment_id)


@contextmanager
def active_store(uri: str) -> Iterator[None]:
    """Make a store the one that MLflow's module-level functions use, for a while; not for several threads."""
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")}
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri("")
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def quiet() -> Iterator[None]:
    """Without what MLflow prints; what it raises is raised."""
    from mlflow.utils.logging_utils import disable_logging, enable_logging

    disable_logging()
    try:
        yield
    finally:
        enable_logging()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
