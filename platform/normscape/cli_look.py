"""`normscape status` and `normscape doctor`: how far a run is, and what this machine offers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from normscape.cli_shared import (
    EXPERIMENTS,
    OTHERS,
    RUNS,
    JsonOption,
    RunsOption,
    SetOption,
    complete_runs,
    examples,
    known_runs,
    make_table,
    print_json,
    print_table,
)
from normscape.configio import config_digest, load_config
from normscape.console import headlines
from normscape.errors import UserError
from normscape.report.words import duration
from normscape.stages.status import StageStatus, stage_status

if TYPE_CHECKING:
    from normscape.doctor import Finding

RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN_OR_CONFIG", help="A run's folder or name, or a configuration.", autocompletion=complete_runs),
]


def register_status(app: typer.Typer) -> None:
    """Add `status`."""
    shown = examples("normscape status chairs-demo", "normscape status configs/chairs/cpu.yaml --json")
    app.command("status", rich_help_panel=EXPERIMENTS, epilog=shown)(status)


def register_doctor(app: typer.Typer) -> None:
    """Add `doctor`."""
    app.command("doctor", rich_help_panel=OTHERS, epilog=examples("normscape doctor", "normscape doctor --json"))(doctor)


def status(
    run_or_config: RunArgument, overrides: SetOption = None, runs_dir: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Show how far each stage of a run is."""
    path, folder = _find(run_or_config, runs_dir)
    loaded = load_config(path, overrides or ())
    parent = folder.parent if folder is not None else runs_dir
    stages = stage_status(loaded, parent)
    if as_json:
        run = {"run": loaded.name, "folder": parent / loaded.name, "config_digest": config_digest(loaded)}
        print_json(run | {"stages": [_described(stage) for stage in stages]})
        return
    title = f"{parent / loaded.name}   configuration {config_digest(loaded)[:8]}"
    print_table(make_table(title, ("stage", "state", "time", "what came out"), [_row(stage) for stage in stages]))


def doctor(runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Show what is installed, which device will be used, and what is missing."""
    from normscape import doctor as examine

    findings = {"machine": examine.machine(runs_dir), "packages": examine.packages(), "extras": examine.extras()}
    faults = [line for lines in findings.values() for line in lines if not line.ok]
    if as_json:
        print_json({"ok": not faults} | {title: [asdict(line) for line in lines] for title, lines in findings.items()})
        return
    for title, lines in findings.items():
        print_table(_findings_table(title, lines))
    print_table(Text("All is well." if not faults else f"To look at: {', '.join(line.what for line in faults)}."))


def _find(text: str, runs_dir: Path) -> tuple[Path, Path | None]:
    """Configuration file and, where a run is meant, its folder."""
    for folder in (Path(text), runs_dir / text):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml", folder.resolve()
    if Path(text).is_file():
        return Path(text), None
    raise UserError(f"{text}: neither a run nor a configuration; {known_runs(runs_dir)}")


def _row(stage: StageStatus) -> tuple[str, str, str, str]:
    if stage.state == "finished":
        shown = headlines(stage.manifest.get("metrics", {}), 6)
        return stage.name, "finished", duration(stage.manifest.get("seconds")), shown
    done = stage.progress
    how_far = f"{done['done']}/{done['total']} {done['unit']}s" if "done" in done else ""
    if stage.state == "waiting" and stage.others:
        how_far = f"{stage.others} finished under other settings"
    return stage.name, stage.state, duration(done.get("seconds")) if done else "", how_far


def _described(stage: StageStatus) -> dict[str, Any]:
    """A stage for a program: name, state, folder, seconds, metrics, and how far it is."""
    seconds = stage.manifest.get("seconds") if stage.state == "finished" else stage.progress.get("seconds")
    progress = {key: stage.progress[key] for key in ("done", "total", "unit") if key in stage.progress}
    return {
        "stage": stage.name,
        "state": stage.state,
        "folder": stage.folder,
        "seconds": seconds,
        "metrics": dict(stage.manifest.get("metrics", {})),
        "progress": progress or None,
    }


def _findings_table(title: str, lines: Iterable[Finding]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text(line.what), Text(line.found, style="" if line.ok else "bold red"), Text(line.remark))
    return table
