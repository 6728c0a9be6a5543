"""`normscape register`, `promote` and `models`: the model registry on the command line."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscape.cli_shared import (
    MODELS,
    RUNS,
    JsonOption,
    RunsOption,
    VerboseOption,
    complete_runs,
    examples,
    find_run,
    make_table,
    print_json,
    print_table,
)
from normscape.configio import load_config
from normscape.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Name in the registry, instead of normscape-<experiment>.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="CONFIG_OR_MODEL", help="A configuration, a run, or a registered model.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A finished run's folder or name.", autocompletion=complete_runs)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    shown = examples("normscape register chairs-demo", "normscape register runs/brain-cpu --model normscape-brain")
    app.command("register", rich_help_panel=MODELS, epilog=shown)(register_command)
    shown = examples("normscape promote normscape-chairs-demo", "normscape promote configs/chairs/demo.yaml --json")
    app.command("promote", rich_help_panel=MODELS, epilog=shown)(promote_command)
    app.command("models", rich_help_panel=MODELS, epilog=examples("normscape models normscape-chairs-demo"))(models_command)


def register_command(
    run: RunArgument,
    model: ModelOption = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Register a finished run's scored system in MLflow, as challenger."""
    from normscape.tracking.registry import CHALLENGER, register_run

    done = register_run(find_run(run, runs_dir), model=model)
    if as_json:
        print_json({"model": done.model, "version": done.version, "run_id": done.run_id, "created": done.created})
        return
    how = f"registered as {CHALLENGER}" if done.created else "was registered before"
    sys.stdout.write(f"{done.model} version {done.version} {how} (run {done.run_id})\n")


def promote_command(
    model: ModelArgument, runs_dir: RunsOption = RUNS, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """Make the challenger the champion, if it is better.

    It has to be better on the locked test, beyond doubt; exit code 2 and the reason if it is not.
    """
    from normscape.tracking.promotion import PromotionRefused, promote
    from normscape.tracking.store import default_tracking_uri

    name = _model_name(model, runs_dir)
    try:
        said = promote(name, default_tracking_uri(runs_dir))
    except PromotionRefused as refused:
        if as_json:
            print_json({"model": name, "promoted": False, "reason": str(refused)})
        raise
    if as_json:
        print_json({"model": name, "promoted": True, "reason": said})
    else:
        sys.stdout.write(said + "\n")


def models_command(model: ModelArgument, runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
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
        raise UserError(f"{name}: no versions are registered; use `normscape register RUN` or `normscape import FILE.zip`")
    names = {int(v.version): [alias for alias, at in aliases.items() if int(at) == int(v.version)] for v in found}
    if as_json:
        print_json({"model": name, "versions": [_described(v, names[int(v.version)]) for v in found]})
        return
    rows = [(v.version, ", ".join(names[int(v.version)]), _area(v), _date(v), v.run_id) for v in found]
    print_table(make_table(name, ("version", "alias", "test AUROC (95 %)", "registered", "run"), rows))


def _model_name(text: str, runs_dir: Path) -> str:
    """The registered model that a configuration, a run or a name means."""
    from normscape.tracking.registry import model_name

    for path in (Path(text), Path(text) / "config.yaml", runs_dir / text / "config.yaml"):
        if path.is_file():
            return model_name(load_config(path))
    if Path(text).suffix in (".yaml", ".yml"):
        raise UserError(f"{text}: no such configuration")
    return text


def _described(version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    """A version for a program; AUROC and its interval are null where they are not known."""
    auroc, low, high = (float(value) if value else None for value in _headline(version))
    return {
        "version": int(version.version),
        "aliases": aliases,
        "test_auroc": auroc,
        "test_auroc_low": low,
        "test_auroc_high": high,
        "registered": _date(version),
        "run_id": version.run_id,
        "tags": dict(version.tags),
    }


def _area(version: ModelVersion) -> str:
    area, low, high = _headline(version)
    return f"{area} ({low} to {high})" if low and high else area


def _headline(version: ModelVersion) -> list[str]:
    """Test AUROC of the detector that gives a version's anomaly score, and its interval; empty where they are not known."""
    from normscape.scoring.detectors import MAIN_DETECTORS

    names = (f"normscape.{name}_test_auroc" for name in MAIN_DETECTORS)
    name = next((name for name in names if name in version.tags), "")
    return [version.tags.get(name + end, "") for end in ("", "_low", "_high")]


def _date(version: ModelVersion) -> str:
    return datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(sep=" ", timespec="minutes")[:16]
