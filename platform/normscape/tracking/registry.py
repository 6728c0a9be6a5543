"""The model registry: every finished run may become a version of `normscape-<experiment>`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from normscape.config import Config
from normscape.configio import config_digest, load_config
from normscape.errors import UserError
from normscape.stages.files import locked, read_json
from normscape.stages.status import stage_status
from normscape.stages.system import finished_folders, system_digest
from normscape.tracking import values as naming
from normscape.tracking.datasets import SAMPLES_NAME, data_digest
from normscape.tracking.model_card import Origin, model_card
from normscape.tracking.package import log_system
from normscape.tracking.runs import NOTE_NAME, MlflowListener
from normscape.tracking.store import active_store, default_tracking_uri, first_line, open_client, quiet, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "normscape-"
CHALLENGER, CHAMPION = "challenger", "champion"
SYSTEM_TAG = "normscape.system_digest"
"""Tells whether a system is registered already."""

T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `created` is false where an earlier registration is found."""

    model: str
    version: int
    run_id: str
    created: bool


def model_name(config: Config) -> str:
    """`normscape-<experiment>`."""
    return PREFIX + config.name


def register_run(run_folder: Path, *, tracking_uri: str | None = None, model: str | None = None) -> Registered:
    """Register the scored system of a finished run as a new version, and give it the alias `challenger`.

    A run that was not recorded yet, or not wholly, is recorded first. A system that is registered already is left as it is.

    Args:
        run_folder: `runs/<name>`, finished up to `score` under the configuration that it holds.
        tracking_uri: the store; `MLFLOW_TRACKING_URI` or the sqlite file beside the run folder when empty.
        model: name in the registry; `normscape-<experiment>` when empty.

    Raises:
        UserError: a stage is not finished, or the store cannot be used.
    """
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"{run_folder}: expected a run folder, found no config.yaml")
    config = load_config(run_folder / "config.yaml")
    folders = finished_folders(config, run_folder)
    uri = tracking_uri or default_tracking_uri(run_folder.parent)
    name = model or model_name(config)
    system = system_digest(folders)

    def work() -> Registered:
        client = open_client(uri)
        run_id = _recorded_run(client, config, run_folder, uri)
        for version in versions(client, name):
            if version.tags.get(SYSTEM_TAG) == system:
                return Registered(name, int(version.version), run_id, created=False)
        origin = Origin(
            name,
            run_id,
            config_digest(config),
            data_digest(config, folders["prepare"] / SAMPLES_NAME),
            str(read_json(folders["score"] / "manifest.json").get("code_version", "")),
        )
        return _register(client, config, folders, origin, system, uri)

    return with_store(uri, work)


def with_store(uri: str, work: Callable[[], T]) -> T:
    """Do something with the store; trouble with it is a person's to mend, not a stack trace.

    Raises:
        UserError: whatever the store said.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return work()
    except (MlflowException, SQLAlchemyError, ConnectionError) as error:
        raise UserError(f"MLflow at {without_password(uri)}: {first_line(error)}") from error


def versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """All versions of a model, the newest first; none where there is no such model."""
    found = client.search_model_versions(f"name = '{model}'", max_results=1000)
    return sorted(found, key=lambda version: -int(version.version))


def _recorded_run(client: MlflowClient, config: Config, run_folder: Path, uri: str) -> str:
    """The run's id in MLflow; what is missing there is recorded first."""
    finished = {s.name: s.manifest for s in stage_status(config, run_folder.resolve().parent) if s.state == "finished"}
    known = read_json(run_folder / NOTE_NAME).get(config_digest(config), {}).get(without_password(uri))
    run = _active_run(client, known) if known else None
    if run is not None and all(run.data.tags.get(f"normscape.key.{n}") == m.get("key") for n, m in finished.items()):
        return str(run.info.run_id)
    with locked(run_folder):
        listener = MlflowListener(config, run_folder, uri)
        if listener.start() is None:
            raise UserError(f"MLflow at {without_password(uri)} cannot be used; see the warning above")
        for name, manifest in finished.items():
            listener.stage_skipped(name, manifest)
        listener.close("FINISHED")
    assert listener.run_id is not None
    return listener.run_id


def _active_run(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _register(
    client: MlflowClient, config: Config, folders: Mapping[str, Path], origin: Origin, system: str, uri: str
) -> Registered:
    import mlflow

    card = model_card(config, folders, origin)
    tags = {
        SYSTEM_TAG: system,
        "normscape.config_digest": origin.config_digest,
        "normscape.data_digest": origin.data_digest,
        "normscape.code_version": origin.code_version,
    }
    before = client.get_run(origin.run_id).info
    with active_store(uri):
        with mlflow.start_run(run_id=origin.run_id, log_system_metrics=False):
            logged = log_system(config, folders, card, tags)
        with quiet():
            version = mlflow.register_model(logged.model_uri, origin.model, tags=tags | _metric_tags(folders["score"]))
    if before.end_time is None:  # logging a model has ended the run, or set its end anew
        client.update_run(origin.run_id, status=before.status)
    else:
        client.set_terminated(origin.run_id, before.status, before.end_time)
    client.update_model_version(origin.model, version.version, description=card)
    client.update_registered_model(origin.model, description=config.description or f"Scored system of {config.name}")
    client.set_registered_model_alias(origin.model, CHALLENGER, version.version)
    return Registered(origin.model, int(version.version), origin.run_id, created=True)


def _metric_tags(score: Path) -> dict[str, str]:
    """Headline metrics of the score stage, with their intervals, as tags of a version."""
    metrics = read_json(score / "manifest.json").get("metrics", {})
    return {naming.metric_name(f"normscape.{name}"): f"{value:.4f}" for name, value in metrics.items() if "_test_" in name}
