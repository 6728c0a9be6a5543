"""The `normscape` command.

Exit codes: 0 when all is well, 2 for a mistake that a person can fix, 3 when an evaluation stands but for detectors that failed,
130 for Ctrl-C (and SIGTERM), 1 for a bug.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import normscape
from normscape import cli_bundle, cli_evaluate, cli_explore, cli_init, cli_look, cli_models, cli_prepare, cli_score, cli_sweep
from normscape.cli_shared import (
    EXPERIMENTS,
    OTHERS,
    RUNS,
    AddressOption,
    JsonOption,
    QuietOption,
    RunsOption,
    Sections,
    SetOption,
    TrackOption,
    VerboseOption,
    examples,
    forget_verbose,
    is_verbose,
    print_json,
)
from normscape.configio import config_digest, dump_yaml, load_config, reference_markdown
from normscape.errors import UserError
from normscape.runner import INTERRUPTED, Fleet, Plan, run_experiment
from normscape.stages.status import stage_status

EPILOG = """\
\b
A first experiment, in minutes on two CPU cores:
  normscape run configs/chairs/demo.yaml
  normscape status chairs-demo

\b
From a folder of scans to the map of a new one:
  normscape prepare table --table scans/subjects.csv --out runs/cohorts/mine
  normscape init brain --cohort runs/cohorts/mine --out configs/mine.yaml
  normscape run configs/mine.yaml
  normscape score new.nii.gz --age 63 --run mine

`normscape COMMAND --help` has examples of each. Results go to standard output, progress and messages to standard error: a bar in
a terminal, a line now and then in a log. Colours are left out where there is no terminal, and with NO_COLOR=1.

\b
Exit codes:
  0    all is well
  1    a bug of this program; the stack trace says where
  2    a mistake that you can mend; the message says how
  3    an evaluation stands, but for detectors that failed; their reasons are listed
  130  stopped by Ctrl-C or SIGTERM; the same command goes on from there
"""

app = typer.Typer(
    cls=Sections,
    help="Learn the landscape of the normal, and show where an image leaves it.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help reads the same in a terminal, a log and a page
    context_settings={"max_content_width": 110},
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration, for example configs/chairs/demo.yaml.")]
WorkersOption = Annotated[
    str | None,
    typer.Option("--workers", metavar="N|A-B", help="Train on N Ray workers, or on as many of A to B as there is room for."),
]
ActorsOption = Annotated[
    str | None, typer.Option("--actors", metavar="N|A-B", help="Project on N Ray actors, or on A to B as there is room.")
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
FirstOption = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones anew.")]
LastOption = Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Run all stages anew.")]


@app.command(
    rich_help_panel=EXPERIMENTS,
    epilog=examples(
        "normscape run configs/chairs/demo.yaml",
        "normscape run configs/chairs/cpu.yaml --set name=longer --set gan.steps=20000",
        "normscape run configs/chairs/cpu.yaml --to gan",
        "normscape run configs/chairs/cpu.yaml --workers 2 --actors 2",
    ),
)
def run(
    config: ConfigArgument,
    overrides: SetOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    fresh: FreshOption = False,
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
    verbose: VerboseOption = False,
) -> None:
    """Run an experiment.

    What is up to date is skipped, what was cut off goes on. With --workers and --actors it trains and projects on Ray.
    """
    loaded = load_config(config, overrides or ())
    plan = Plan(first, last, fresh, track=not no_track, quiet=quiet, verbose=verbose)
    fleet = None
    if workers or actors or address:
        fleet = Fleet(address, workers, actors, gpus_per_worker, gpus_per_actor, cpus_per_worker, max_failures)
    _exit(run_experiment(loaded, runs_dir, plan, fleet, command=str(config)))


cli_look.register_status(app)


@app.command(rich_help_panel=EXPERIMENTS, epilog=examples("normscape report configs/chairs/demo.yaml"))
def report(
    config: ConfigArgument,
    overrides: SetOption = None,
    runs_dir: RunsOption = RUNS,
    no_track: TrackOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build the page of a finished run anew."""
    loaded = load_config(config, overrides or ())
    missing = [stage.name for stage in stage_status(loaded, runs_dir) if stage.state != "finished" and stage.name != "report"]
    if missing:
        raise UserError(f"not finished yet: {', '.join(missing)}; run `normscape run {shlex.quote(str(config))}` first")
    plan = Plan(first="report", track=not no_track, quiet=quiet, verbose=verbose)
    _exit(run_experiment(loaded, runs_dir, plan, command=str(config)))


cli_evaluate.register(app)
cli_sweep.register(app)
cli_init.register(app)
cli_prepare.register(app)
cli_score.register(app)
cli_explore.register(app)
cli_models.register(app)
cli_bundle.register(app)
cli_look.register_doctor(app)
app.add_typer(config_app, name="config", rich_help_panel=OTHERS)


@config_app.command("show", epilog=examples("normscape config show configs/chairs/demo.yaml --set gan.steps=3000"))
def config_show(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Print a configuration with everything it inherits and all defaults."""
    loaded = load_config(config, overrides or ())
    if as_json:
        print_json(loaded.model_dump(mode="json"))
    else:
        sys.stdout.write(dump_yaml(loaded))


@config_app.command("check", epilog=examples("normscape config check configs/mine.yaml"))
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a person's mistake is one message on stderr and exit code 2, Ctrl-C is 130.

    Args:
        arguments: of the command line; this process's when empty.
    """
    forget_verbose()
    try:
        app(args=arguments, prog_name="normscape")
    except UserError as error:
        if is_verbose():
            traceback.print_exc()
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
