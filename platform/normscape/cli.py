"""The `normscape` command.

Exit codes: 0 when all is well, 2 for a mistake that a person can fix, 130 for Ctrl-C (and SIGTERM), 1 for a bug.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import normscape
from normscape import cli_models, cli_prepare, cli_score, cli_sweep
from normscape.configio import config_digest, dump_yaml, load_config, reference_markdown
from normscape.console import headlines
from normscape.errors import UserError
from normscape.report.words import duration
from normscape.runner import INTERRUPTED, Fleet, Plan, run_experiment
from normscape.stages.status import StageStatus, stage_status

if TYPE_CHECKING:
    from normscape.doctor import Finding

app = typer.Typer(
    help="Learn the landscape of the normal, and show where an image leaves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
cli_models.register(app)
cli_prepare.register(app)
cli_score.register(app)
cli_sweep.register(app)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration, for example configs/chairs/demo.yaml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a value, for example gan.steps=2000; may be repeated."),
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", envvar="NORMSCAPE_RUNS", metavar="FOLDER", help="Where run folders are.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only say what finished.")]
WorkersOption = Annotated[
    str | None,
    typer.Option("--workers", metavar="N|A-B", help="Train on N Ray workers, or on as many of A to B as there is room for."),
]
ActorsOption = Annotated[
    str | None, typer.Option("--actors", metavar="N|A-B", help="Project on N Ray actors, or on A to B as there is room.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="The Ray cluster: host:port, `auto`, or `local` for a Ray of our own. Without it RAY_ADDRESS, or a Ray of our own.",
    ),
]
WorkerGpusOption = Annotated[
    float | None, typer.Option("--gpus-per-worker", min=0.0, help="GPUs of each worker. Without it one, where there are some.")
]
ActorGpusOption = Annotated[
    float | None, typer.Option("--gpus-per-actor", min=0.0, help="GPUs of each actor. Without it one, where there are some.")
]
WorkerCpusOption = Annotated[int, typer.Option("--cpus-per-worker", min=1, help="CPUs of each worker.")]
FailuresOption = Annotated[
    int, typer.Option("--max-failures", min=0, help="How often a training that lost a worker goes on from its last checkpoint.")
]
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
    workers: WorkersOption = None,
    actors: ActorsOption = None,
    address: AddressOption = None,
    gpus_per_worker: WorkerGpusOption = None,
    gpus_per_actor: ActorGpusOption = None,
    cpus_per_worker: WorkerCpusOption = 1,
    max_failures: FailuresOption = 3,
    no_track: TrackOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run an experiment: what is up to date is skipped, what was cut off goes on.

    With --workers and --actors it trains and projects on Ray.
    """
    loaded = load_config(config, overrides or ())
    plan = Plan(first, last, fresh, track=not no_track, quiet=quiet)
    fleet = None
    if workers or actors or address:
        fleet = Fleet(address, workers, actors, gpus_per_worker, gpus_per_actor, cpus_per_worker, max_failures)
    _exit(run_experiment(loaded, runs_dir, plan, fleet, command=str(config)))


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
    plan = Plan(first="report", track=not no_track, quiet=quiet)
    _exit(run_experiment(loaded, runs_dir, plan, command=str(config)))


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


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a person's mistake is one message on stderr and exit code 2, Ctrl-C is 130.

    Args:
        arguments: of the command line; this process's when empty.
    """
    try:
        app(args=arguments, prog_name="normscape")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(INTERRUPTED)


def job(*options: str) -> None:
    """Entry point of `jobs/*.py`: `normscape run` with some options set, and the configuration as `--config` too.

    Args:
        options: come first, so that the command line has the last word.
    """
    given = [word.removeprefix("--config=") for word in sys.argv[1:] if word != "--config"]
    main(["run", *options, *given])
