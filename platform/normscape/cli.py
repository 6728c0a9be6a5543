"""The `normscape` command.

Exit codes: 0 when all is well, 2 for a mistake that a person can fix, 130 for Ctrl-C (and SIGTERM), 1 for a bug.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import normscape
from normscape.config import Config
from normscape.configio import config_digest, dump_yaml, load_config, reference_markdown
from normscape.console import ConsoleListener, headlines
from normscape.errors import UserError
from normscape.report.words import duration
from normscape.stages.core import STAGES, RunResult, StageFunction, run_stages
from normscape.stages.files import update_json
from normscape.stages.recording import Listeners
from normscape.stages.status import StageStatus, stage_status

if TYPE_CHECKING:
    from normscape.doctor import Finding
    from normscape.stages.core import StageContext
    from normscape.tracking.runs import MlflowListener

INTERRUPTED = 130

app = typer.Typer(
    help="Learn the landscape of the normal, and show where an image leaves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration, for example configs/chairs/demo.yaml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a value, for example gan.steps=2000; may be repeated."),
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", metavar="FOLDER", help="Where run folders are.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only say what finished.")]
TrackOption = Annotated[bool, typer.Option("--no-track", help="Do not record the run in MLflow.")]

RUNS = Path("runs")


@app.command()
def run(
    config: ConfigArgument,
    overrides: SetOption = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones anew.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages anew.")] = False,
    runs_dir: RunsOption = RUNS,
    no_track: TrackOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run an experiment: what is up to date is skipped, what was cut off goes on."""
    loaded = load_config(config, overrides or ())
    _run(loaded, runs_dir, command=str(config), first=first, last=last, fresh=fresh, track=not no_track, quiet=quiet)


@app.command()
def report(
    config: ConfigArgument,
    overrides: SetOption = None,
    runs_dir: RunsOption = RUNS,
    no_track: TrackOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build the page of a finished run anew."""
    loaded = load_config(config, overrides or ())
    missing = [stage.name for stage in stage_status(loaded, runs_dir) if stage.state != "finished" and stage.name != "report"]
    if missing:
        raise UserError(f"not finished yet: {', '.join(missing)}; run `normscape run {shlex.quote(str(config))}` first")
    _run(loaded, runs_dir, command=str(config), first="report", last=None, fresh=False, track=not no_track, quiet=quiet)


@app.command()
def status(
    run_or_config: Annotated[str, typer.Argument(metavar="RUN_OR_CONFIG", help="A run's folder or name, or a configuration.")],
    overrides: SetOption = None,
    runs_dir: RunsOption = RUNS,
) -> None:
    """Show how far each stage of a run is."""
    path, folder = _find_run(run_or_config, runs_dir)
    loaded = load_config(path, overrides or ())
    parent = folder.parent if folder is not None else runs_dir
    stages = stage_status(loaded, parent)
    table = Table(title=f"{parent / loaded.name}   configuration {config_digest(loaded)[:8]}", title_justify="left")
    for column in ("stage", "state", "time", "what came out"):
        table.add_column(column, overflow="fold")
    for stage in stages:
        table.add_row(*(Text(cell) for cell in _status_row(stage)))
    _print(table)


@app.command()
def doctor(runs_dir: RunsOption = RUNS) -> None:
    """Show what is installed, which device will be used, and what is missing."""
    from normscape import doctor as examine

    findings = [("machine", examine.machine(runs_dir)), ("packages", examine.packages()), ("extras", examine.extras())]
    for title, lines in findings:
        _print(_findings_table(title, lines))
    faults = [line for _, lines in findings for line in lines if not line.ok]
    _print(Text("All is well." if not faults else f"To look at: {', '.join(line.what for line in faults)}."))


@config_app.command("show")
def config_show(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Print a configuration with everything it inherits and all defaults."""
    sys.stdout.write(dump_yaml(load_config(config, overrides or ())))


@config_app.command("check")
def config_check(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Name every problem of a configuration."""
    loaded = load_config(config, overrides or ())
    sys.stdout.write(f"{config}: fine; {loaded.name}, digest {config_digest(loaded)[:8]}\n")


@config_app.command("reference")
def config_reference(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead.")] = None,
) -> None:
    """Print the reference of every configuration key, as Markdown."""
    if output is None:
        sys.stdout.write(reference_markdown())
    else:
        output.write_text(reference_markdown(), encoding="utf-8")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"normscape {normscape.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Learn the landscape of the normal, and show where an image leaves it."""


# ---- running ---------------------------------------------------------------------------------------------------------


def _run(
    config: Config, runs_dir: Path, *, command: str, first: str | None, last: str | None, fresh: bool, track: bool, quiet: bool
) -> None:
    bar = ConsoleListener([stage.name for stage in STAGES], Console(stderr=True), quiet=quiet)
    listeners = Listeners([bar])
    tracker: MlflowListener | None = None

    def opened(folder: Path) -> None:
        """MLflow's run begins when the folder is ours: another process may be recording in it."""
        nonlocal tracker
        tracker = _tracker(config, folder, fresh=fresh) if track else None
        listeners.listeners = (bar, tracker) if tracker else (bar,)

    ended: Any = "FAILED"
    try:
        with _sigterm_as_ctrl_c(), bar:
            result = run_stages(
                config, runs_dir, first=first, last=last, fresh=fresh, listener=listeners, opened=opened, extra=_FUNCTIONS
            )
        ended = "FINISHED"
    except KeyboardInterrupt:
        ended = "KILLED"
        _interrupted(f"; `normscape run {shlex.quote(command)}` goes on from here")
    finally:
        if tracker is not None:
            tracker.close(ended)
    _say_where(result, tracker)


def _report_stage(context: StageContext) -> dict[str, float]:
    from normscape.report.page import run as build

    return build(context)


_FUNCTIONS: dict[str, StageFunction] = {"report": _report_stage}


def _tracker(config: Config, folder: Path, *, fresh: bool) -> MlflowListener | None:
    """Begin the MLflow run; a run goes on without when there is no MLflow."""
    try:
        from normscape.tracking.runs import MlflowListener
    except ImportError as error:
        sys.stderr.write(f"the run is not recorded, MLflow does not import: {error}\n")
        return None
    tracker = MlflowListener(config, folder, fresh=fresh)
    return tracker if tracker.start() else None


def _say_where(result: RunResult, tracker: MlflowListener | None) -> None:
    """The last lines: where the page and the recorded run are."""
    lines = [f"run folder  {result.folder}"]
    if "report" in result.stages:
        lines.append(f"page        {result.stages['report'] / 'index.html'}")
    if tracker is not None and tracker.run_id:
        from normscape.tracking.store import without_password

        store = without_password(tracker.tracking_uri)
        update_json(result.folder / "run.json", {"mlflow": {"tracking_uri": store, "run_id": tracker.run_id}})
        lines += [f"MLflow      run {tracker.run_id} in {store}"]
        if not store.startswith("http"):
            lines += [f"            mlflow ui --backend-store-uri {shlex.quote(store)}"]
    sys.stdout.write("\n".join(lines) + "\n")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A batch system's SIGTERM ends a run as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(more: str = "") -> NoReturn:
    sys.stderr.write(f"stopped; finished work is kept{more}\n")
    raise typer.Exit(INTERRUPTED)


# ---- tables ----------------------------------------------------------------------------------------------------------


def _print(shown: Table | Text) -> None:
    """Tables as wide as they need where there is no terminal, so that nothing is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(shown)


def _find_run(text: str, runs_dir: Path) -> tuple[Path, Path | None]:
    """Configuration file and, where a run is meant, its folder."""
    for folder in (Path(text), runs_dir / text):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml", folder.resolve()
    if Path(text).is_file():
        return Path(text), None
    known = sorted(p.parent.name for p in runs_dir.glob("*/config.yaml"))
    hint = f"the runs in {runs_dir} are {', '.join(known)}" if known else f"there are no runs in {runs_dir}"
    raise UserError(f"{text}: neither a run nor a configuration; {hint}")


def _status_row(stage: StageStatus) -> tuple[str, str, str, str]:
    if stage.state == "finished":
        shown = headlines(stage.manifest.get("metrics", {}), 6)
        return stage.name, "finished", duration(stage.manifest.get("seconds")), shown
    done = stage.progress
    how_far = f"{done['done']}/{done['total']} {done['unit']}s" if "done" in done else ""
    if stage.state == "waiting" and stage.others:
        how_far = f"{stage.others} finished under other settings"
    return stage.name, stage.state, duration(done.get("seconds")) if done else "", how_far


def _findings_table(title: str, lines: Iterable[Finding]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text(line.what), Text(line.found, style="" if line.ok else "bold red"), Text(line.remark))
    return table


def main() -> None:
    """Entry point: a person's mistake is one message on stderr and exit code 2, Ctrl-C is 130."""
    try:
        app(prog_name="normscape")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(INTERRUPTED)
