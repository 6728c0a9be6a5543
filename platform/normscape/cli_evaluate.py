"""`normscape evaluate`; the Ray job `jobs/evaluate.py` runs the same `evaluate_and_report`."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from normscape.cli_shared import (
    EXPERIMENTS,
    RUNS,
    AddressOption,
    JsonOption,
    QuietOption,
    RunsOption,
    SetOption,
    TrackOption,
    VerboseOption,
    examples,
    print_json,
)
from normscape.config import Config
from normscape.configio import load_config
from normscape.console import ConsoleListener
from normscape.errors import UserError
from normscape.runner import sigterm_as_ctrl_c
from normscape.stages.recording import Listeners

if TYPE_CHECKING:
    from normscape.evaluation.evaluating import Workers
    from normscape.evaluation.results import Results
    from normscape.evaluation.units import Unit
    from normscape.tracking.evaluation import EvaluationTracker

SOME_FAILED = 3
"""Exit code when a detector failed and the others stand."""


@dataclass(frozen=True)
class Options:
    """What of a configuration's evaluation is run, and how.

    Args:
        overrides: `a.b=c` changes of the configuration.
        small: few images, one seed, hardly trained networks.
        detectors: only these; all when empty.
        seeds: instead of the configuration's, when not empty.
        workers: units at a time on Ray; 0: one after the other in this process.
        address: of a Ray cluster.
        track: record in MLflow.
        quiet: only say how it ended.
        verbose: say more on the way.
        as_json: say how it ended as JSON.
    """

    overrides: tuple[str, ...] = ()
    small: bool = False
    detectors: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    workers: int = 0
    address: str | None = None
    track: bool = True
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False

    def config(self, path: Path) -> Config:
        """The configuration with these changes.

        Raises:
            ConfigError: it cannot be used, or names no such detector.
        """
        from normscape.evaluation.evaluating import choose_seeds, quick
        from normscape.evaluation.experiment import choose_detectors

        config = load_config(path, self.overrides)
        config = quick(config) if self.small else config
        config = choose_detectors(config, self.detectors) if self.detectors else config
        return choose_seeds(config, self.seeds) if self.seeds else config

    def command(self, path: Path) -> str:
        """The command that makes the same numbers again."""
        words = ["normscape", "evaluate", str(path)]
        for text in self.overrides:
            words += ["--set", text]
        words += ["--quick"] if self.small else []
        words += ["--detectors", ",".join(self.detectors)] if self.detectors else []
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds else []
        return shlex.join(words)


def evaluate_and_report(path: Path, options: Options, *, runs_dir: Path = RUNS) -> int:
    """Compare the detectors of a configuration, write the tables and the leaderboard, and say how it ended.

    Args:
        path: the configuration.
        options: what of it, and how.
        runs_dir: where runs are.

    Returns:
        The exit code: 0, or 3 when a detector failed and the others stand.

    Raises:
        UserError: a mistake in the configuration, an experiment that is not ready, or no detector that could be evaluated.
    """
    from normscape.evaluation.evaluating import evaluate
    from normscape.evaluation.running import run_here
    from normscape.report.leaderboard import build_leaderboard

    config = options.config(path)
    bar = ConsoleListener([], Console(stderr=True), quiet=options.quiet, verbose=options.verbose)
    tracker = _tracker(config, runs_dir) if options.track else None
    ended: Any = "FAILED"
    try:
        with sigterm_as_ctrl_c(), ExitStack() as stack:
            workers = _workers(stack, config, options, runs_dir) if options.workers or options.address else run_here
            stack.enter_context(bar)
            results = evaluate(
                config,
                runs_dir,
                workers=workers,
                listener=Listeners([bar, tracker] if tracker else [bar]),
                heard=tracker.reading if tracker else None,
                opened=tracker.opened if tracker else None,
                page=build_leaderboard,
                command=options.command(path),
                config_path=str(path),
            )
            if tracker is not None:
                tracker.finished(results)
            ended = "FINISHED"
    except KeyboardInterrupt:
        ended = "KILLED"
        sys.stderr.write("stopped; finished units are kept; the same command goes on from here\n")
        raise
    finally:
        if tracker is not None:
            tracker.close(ended)
    return _say_how(results, tracker.run_id if tracker else None, as_json=options.as_json)


def choose_and_report(path: Path, options: Options, *, runs_dir: Path = RUNS) -> int:
    """Compare the detectors on synthetic validation alone, and print their areas; the locked test stays closed.

    Args:
        path: the configuration.
        options: what of it.
        runs_dir: where runs are.

    Returns:
        The exit code: 0, or 3 when a detector failed and the others stand.

    Raises:
        UserError: a mistake in the configuration, an experiment that is not ready, or no detector that could be fitted.
    """
    from rich.table import Table

    from normscape.evaluation.choosing import compare_on_validation

    config = options.config(path)
    begun: set[str] = set()
    bar = ConsoleListener([], Console(stderr=True), quiet=options.quiet, verbose=options.verbose)

    def progress(unit: Unit, done: int, total: int, what: str) -> None:
        if unit.name not in begun:
            begun.add(unit.name)
            bar.stage_started(unit.name, resumed=False)
        bar.progress(unit.name, done, total, what)

    with sigterm_as_ctrl_c(), bar:
        choice = compare_on_validation(config, runs_dir, progress=progress, config_path=str(path))
    for name, reason in choice.failures.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    if options.as_json:
        found = {
            detector: {family: {"auroc": one.value, "interval": list(one.interval)} for family, one in families.items()}
            for detector, families in choice.areas.items()
        }
        print_json({"table": choice.table, "subjects": choice.subjects, "failures": choice.failures, "auroc": found})
    else:
        detectors = list(choice.areas)
        shown = Table("AUROC", *detectors)
        for family in choice.areas[detectors[0]]:
            shown.add_row(family, *(f"{choice.areas[detector][family].value:.3f}" for detector in detectors))
        # whole lines beside the table: in a narrow terminal, a title would be broken to the table's width
        Console().print(shown)
        sys.stdout.write(f"measured on  synthetic validation, {choice.subjects} subjects; the locked test was not opened\n")
        sys.stdout.write(f"table        {choice.table}\n")
    return SOME_FAILED if choice.failures else 0


def _workers(stack: ExitStack, config: Config, options: Options, runs_dir: Path) -> Workers:
    """Connect to Ray until the stack is left; what runs the units there."""
    from normscape.distributed import cluster
    from normscape.distributed.evaluate import RayUnits

    if options.workers < 1:
        raise UserError("--address: say too how many units are to run there at a time: `--workers 4`")
    cluster.check_runs_folder(runs_dir)
    stack.enter_context(cluster.connect(options.address, cpus=options.workers))
    return RayUnits(options.workers, cluster.gpus_each(config, options.workers))


def _tracker(config: Config, runs_dir: Path) -> EvaluationTracker | None:
    """Records in MLflow; None, with a word, where there is no MLflow."""
    try:
        import mlflow  # noqa: F401

        from normscape.tracking.evaluation import EvaluationTracker
        from normscape.tracking.store import default_tracking_uri
    except ImportError as error:
        sys.stderr.write(f"the evaluation is not recorded, MLflow does not import: {error}\n")
        return None
    return EvaluationTracker(config, default_tracking_uri(runs_dir))


def _say_how(results: Results, run_id: str | None, *, as_json: bool) -> int:
    """The last lines, and the exit code."""
    for unit, reason in results.failures:
        sys.stderr.write(f"failed: {unit.name}: {reason}\n")
    code = SOME_FAILED if results.failures else 0
    if as_json:
        failed = {unit.name: reason for unit, reason in results.failures}
        print_json({"folder": results.folder, "run_id": run_id, "failures": failed, "evaluation": results.about})
        return code
    lines = [
        f"leaderboard  {results.folder / 'index.html'}",
        f"             {results.folder / 'leaderboard.md'}",
        f"locked test  opened {results.about['readings']} times so far; {results.folder.parent / 'readings.jsonl'} lists all",
    ]
    lines += [f"MLflow       run {run_id}"] if run_id else []
    sys.stdout.write("\n".join(lines) + "\n")
    return code


def register(app: typer.Typer) -> None:
    """Add the command to the `normscape` command."""
    shown = examples(
        "normscape evaluate configs/chairs/demo.yaml --quick",
        "normscape evaluate configs/brain/cpu.yaml --workers 2",
        "normscape evaluate configs/brain/cpu.yaml --choose --detectors conditional_network,supervised",
        "normscape evaluate configs/brain/cpu.yaml --detectors conditional,atlas --seeds 0",
    )
    app.command("evaluate", rich_help_panel=EXPERIMENTS, epilog=shown)(_evaluate)


def _evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration, for example configs/chairs/demo.yaml.")],
    overrides: SetOption = None,
    small: Annotated[
        bool, typer.Option("--quick", help="Few images, one seed, hardly trained networks: shows that everything runs.")
    ] = False,
    detectors: Annotated[str, typer.Option("--detectors", metavar="A,B", help="Only these detectors.")] = "",
    choose: Annotated[
        bool,
        typer.Option("--choose", help="Compare on synthetic validation alone, to choose settings; the locked test stays closed."),
    ] = False,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1", help="These seeds instead of the configuration's.")] = "",
    runs_dir: RunsOption = RUNS,
    workers: Annotated[
        int, typer.Option("--workers", min=0, metavar="N", help="Run N units at a time on Ray. Without it one here.")
    ] = 0,
    address: AddressOption = None,
    no_track: TrackOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare detectors on the same anomalies.

    What is finished is kept, and what was cut off is done again. Stages of the experiment have to be finished as far as the
    detectors read them. Exit code 3: a detector failed, and the others stand.
    """
    given = Options(
        overrides=tuple(overrides or ()),
        small=small,
        detectors=words(detectors),
        seeds=numbers(seeds),
        workers=workers,
        address=address,
        track=not no_track,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
    )
    if choose and (workers or address):
        raise UserError("--choose fits one detector after the other in this process: leave out --workers and --address")
    code = (choose_and_report if choose else evaluate_and_report)(config, given, runs_dir=runs_dir)
    if code:
        raise typer.Exit(code)


def words(text: str) -> tuple[str, ...]:
    """`a,b` -> (a, b)."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[int, ...]:
    """`0,1` -> (0, 1), each once.

    Raises:
        UserError: something else.
    """
    try:
        found = tuple(dict.fromkeys(int(word) for word in words(text)))
    except ValueError as error:
        raise UserError(f"--seeds {text}: expected whole numbers like 0,1,2") from error
    if any(number < 0 for number in found):
        raise UserError(f"--seeds {text}: expected numbers of at least 0")
    return found
