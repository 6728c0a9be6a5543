"""`normscape register`, `promote` and `models`: the model registry on the command line."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscape.configio import load_config
from normscape.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RunsOption = Annotated[Path, typer.Option("--runs-dir", metavar="FOLDER", help="Where run folders, and the MLflow file, are.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name in the registry, instead of normscape-<experiment>.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="CONFIG_OR_MODEL", help="A configuration, a run, or a registered model.")]
HEADLINE = "normscape.forest_test_auroc"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("register")(register_command)
    app.command("promote")(promote_command)
    app.command("models")(models_command)


def register_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's folder or name.")],
    model: ModelOption = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Register a finished run's scored system in MLflow, as challenger."""
    from normscape.tracking.registry import CHALLENGER, register_run

    folder = next((path for path in (Path(run), runs_dir / run) if (path / "config.yaml").is_file()), None)
    if folder is None:
        known = sorted(p.parent.name for p in runs_dir.glob("*/config.yaml"))
        raise UserError(f"{run}: no run folder; the runs in {runs_dir} are {', '.join(known) or 'none'}")
    done = register_run(folder.resolve(), model=model)
    how = f"registered as {CHALLENGER}" if done.created else "was registered before"
    sys.stdout.write(f"{done.model} version {done.version} {how} (run {done.run_id})\n")


def promote_command(model: ModelArgument, runs_dir: RunsOption = Path("runs")) -> None:
    """Make the challenger the champion, if it is better on the locked test; exit code 2 and the reason if it is not."""
    from normscape.tracking.promotion import promote
    from normscape.tracking.store import default_tracking_uri

    sys.stdout.write(promote(_model_name(model, runs_dir), default_tracking_uri(runs_dir)) + "\n")


def models_command(model: ModelArgument, runs_dir: RunsOption = Path("runs")) -> None:
    """List the registered versions of an experiment, with aliases and test AUROC."""
    from normscape.tracking.registry import versions, with_store
    from normscape.tracking.store import default_tracking_uri, open_client

    name, uri = _model_name(model, runs_dir), default_tracking_uri(runs_dir)

    def work() -> tuple[list[ModelVersion], dict[str, str]]:
        client = open_client(uri)
        found = versions(client, name)
        return found, client.get_registered_model(name).aliases if found else {}

    found, aliases = with_store(uri, work)
    if not found:
        raise UserError(f"{name}: no versions are registered; use `normscape register RUN`")
    table = Table(title=name, title_justify="left")
    for column in ("version", "alias", "test AUROC (95 %)", "registered", "run"):
        table.add_column(column)
    for version in found:
        names = [alias for alias, at in aliases.items() if int(at) == int(version.version)]
        row = (version.version, ", ".join(names), _area(version), _date(version), version.run_id)
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _model_name(text: str, runs_dir: Path) -> str:
    """The registered model that a configuration, a run or a name means."""
    from normscape.tracking.registry import model_name

    for path in (Path(text), Path(text) / "config.yaml", runs_dir / text / "config.yaml"):
        if path.is_file():
            return model_name(load_config(path))
    if Path(text).suffix in (".yaml", ".yml"):
        raise UserError(f"{text}: no such configuration")
    return text


def _area(version: ModelVersion) -> str:
    low, high = (version.tags.get(f"{HEADLINE}_{end}", "") for end in ("low", "high"))
    return f"{version.tags.get(HEADLINE, '')} ({low} to {high})" if low and high else version.tags.get(HEADLINE, "")


def _date(version: ModelVersion) -> str:
    return datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(sep=" ", timespec="minutes")[:16]
