"""The model registry: every finished run may become a version of `normscape-<experiment>`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from normscape.config import Config
from normscape.configio import config_digest, load_config
from normscape.errors import CheckpointError, UserError
from normscape.stages.files import locked, read_json
from normscape.stages.status import stage_status
from normscape.stages.system_files import finished_folders, system_digest
from normscape.tracking import values as naming
from normscape.tracking.datasets import SAMPLES_NAME, data_digest
from normscape.tracking.model_card import Origin, model_card
from normscape.tracking.package import SYSTEM, log_system
from normscape.tracking.runs import NOTE_NAME, MlflowListener
from normscape.tracking.store import active_store, default_tracking_uri, first_line, open_client, quiet, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

PREFIX = "normscape-"
CHALLENGER, CHAMPION = "challenger", "champion"
SYSTEM_TAG = "normscape.system_digest"
"""Tells whether a system is registered already."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")

T = TypeVar("T")


@dataclass(frozen=True)
class Fetched:
    """A registered model, brought to this machine.

    Attributes:
        name: in the registry.
        version: of it.
        tags: of the version.
        run_id: of the MLflow run that logged it.
        folder: holds the system, its test scores and its card.
    """

    name: str
    version: int
    tags: Mapping[str, str]
    run_id: str
    folder: Path

    @property
    def system(self) -> Path:
        """What `ScoredSystem.from_package` reads."""
        return self.folder / SYSTEM


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
        if (known := registered_before(client, name, system)) is not None:
            return replace(known, run_id=run_id)
        origin = run_origin(config, folders, model=name, run_id=run_id)
        card, before = model_card(config, folders, origin), client.get_run(run_id).info
        tags = system_tags(origin, system)
        with active_store(uri), mlflow_run(run_id):
            logged = log_system(config, folders, card, tags)
        if before.end_time is None:  # logging a model has ended the run, or set its end anew
            client.update_run(run_id, status=before.status)
        else:
            client.set_terminated(run_id, before.status, before.end_time)
        tags |= metric_tags(folders["score"])
        return publish(client, config, logged, Publication(name, run_id, card, tags), uri)

    return with_store(uri, work)


def run_origin(config: Config, folders: Mapping[str, Path], *, model: str, run_id: str) -> Origin:
    """Where the system of a run comes from.

    Args:
        config: the experiment.
        folders: the finished folders of its stages.
        model: name in the registry.
        run_id: of the MLflow run.
    """
    data = data_digest(config, folders["prepare"] / SAMPLES_NAME)
    code = str(read_json(folders["score"] / "manifest.json").get("code_version", ""))
    return Origin(model, run_id, config_digest(config), data, code)


def system_tags(origin: Origin, system: str) -> dict[str, str]:
    """Tags that tell what a version is made of; `system` is its digest."""
    return {
        SYSTEM_TAG: system,
        "normscape.config_digest": origin.config_digest,
        "normscape.data_digest": origin.data_digest,
        "normscape.code_version": origin.code_version,
    }


def registered_before(client: MlflowClient, name: str, system: str) -> Registered | None:
    """The version that holds this very system, where there is one."""
    for version in versions(client, name):
        if version.tags.get(SYSTEM_TAG) == system:
            return Registered(name, int(version.version), str(version.run_id or ""), created=False)
    return None


def fetch_model(uri: str, tracking_uri: str) -> Fetched:
    """Bring a registered model to this machine.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: the store.

    Raises:
        UserError: no such model, or the store cannot be used.
        CheckpointError: a model of something else.
    """
    asked = _MODEL_URI.fullmatch(uri)
    if asked is None:
        raise UserError(f"--model {uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name = asked["name"]

    def work() -> Fetched:
        import mlflow

        client = open_client(tracking_uri)
        if asked["alias"]:
            version = client.get_model_version_by_alias(name, asked["alias"])
        else:
            version = client.get_model_version(name, asked["version"])
        with active_store(tracking_uri):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version.version}"))
        return Fetched(name, int(version.version), dict(version.tags), str(version.run_id or ""), folder / "artifacts")

    found = with_store(tracking_uri, work)
    if not found.system.is_dir():
        raise CheckpointError(f"{uri}: holds no packaged system of normscape")
    return found


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


@dataclass(frozen=True)
class Publication:
    """What the registry says of a new version.

    Attributes:
        model: name in the registry.
        run_id: of the MLflow run that logged the system.
        card: in Markdown.
        tags: of the version.
    """

    model: str
    run_id: str
    card: str
    tags: Mapping[str, str]


@contextmanager
def mlflow_run(run_id: str) -> Iterator[None]:
    """An MLflow run of the active store as the one that is logged to."""
    import mlflow

    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        yield


def publish(client: MlflowClient, config: Config, logged: ModelInfo, about: Publication, uri: str) -> Registered:
    """Make a logged system a new version, and give it the alias `challenger`.

    Args:
        client: of the store.
        config: the experiment.
        logged: what `log_package` gave.
        about: what the registry says of it.
        uri: the store.
    """
    import mlflow

    with active_store(uri), quiet():
        version = mlflow.register_model(logged.model_uri, about.model, tags=dict(about.tags))
    client.update_model_version(about.model, version.version, description=about.card)
    client.update_registered_model(about.model, description=config.description or f"Scored system of {config.name}")
    client.set_registered_model_alias(about.model, CHALLENGER, version.version)
    return Registered(about.model, int(version.version), about.run_id, created=True)


def metric_tags(score: Path) -> dict[str, str]:
    """Headline metrics of the score stage, with their intervals, as tags of a version."""
    metrics = read_json(score / "manifest.json").get("metrics", {})
    return {naming.metric_name(f"normscape.{name}"): f"{value:.4f}" for name, value in metrics.items() if "_test_" in name}
