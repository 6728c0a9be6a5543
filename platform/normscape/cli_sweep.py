"""`normscape sweep` and `normscape distances`; the Ray job `jobs/sweep.py` runs the same `sweep_and_report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    make_table,
    print_json,
    print_table,
)
from normscape.configio import load_config
from normscape.console import ConsoleListener
from normscape.runner import sigterm_as_ctrl_c
from normscape.sweepconfig import load_sweep

if TYPE_CHECKING:
    from normscape.distributed.sweep import SweepResult

_FIRST_STAGES = ["prepare", "auxiliary"]
"""What a sweep or the distances may have to run before they can begin."""


def sweep_and_report(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    runs_dir: Path = RUNS,
    address: str | None = None,
    track: bool = True,
    retry_failed: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> SweepResult:
    """Read a sweep, run what is left of it, write its results and page, and say how it ended.

    Args:
        path: `configs/sweeps/*.yaml`.
        overrides: `a.b=c` changes of it.
        runs_dir: where runs and sweeps are.
        address: of a Ray cluster; empty: `RAY_ADDRESS`, or a Ray of our own.
        track: record in MLflow.
        retry_failed: try again what failed before.
        quiet: say nothing but how it ended.
        verbose: say more on the way.
        as_json: say how it ended as JSON.

    Raises:
        UserError: a mistake in the sweep, an experiment that is not ready, or no trial that succeeded.
    """
    from normscape.distributed.cluster import check_runs_folder
    from normscape.distributed.sweep import failures, run_sweep
    from normscape.report.sweep import build_sweep_page
    from normscape.tracking.store import default_tracking_uri

    check_runs_folder(runs_dir)
    sweep, config, experiment = load_sweep(path, overrides)
    with sigterm_as_ctrl_c(), ConsoleListener(_FIRST_STAGES, Console(stderr=True), quiet=quiet, verbose=verbose) as bar:
        result = run_sweep(
            sweep,
            config,
            experiment,
            runs_dir,
            address=address,
            tracking_uri=default_tracking_uri(runs_dir) if track else None,
            retry_failed=retry_failed,
            say=(lambda text: None) if quiet else _say,
            listener=bar,
            page=build_sweep_page,
        )
    if lost := failures(result.trials):
        _say(f"{lost}\n`--retry-failed` tries them again")
    if as_json:
        best = {"trial": result.best.number, "score": result.best.score}
        files = {"folder": result.folder, "config": result.folder / "best.yaml", "page": result.folder / "index.html"}
        print_json({"best": best, "trials": len(result.trials), "run_id": result.run_id} | files)
        return result
    lines = [
        f"best         trial {result.best.number}, score {result.best.score:.4f}",
        f"its config   {result.folder / 'best.yaml'}",
        f"page         {result.folder / 'index.html'}",
    ]
    if result.run_id:
        lines.append(f"MLflow       run {result.run_id}")
    sys.stdout.write("\n".join(lines) + "\n")
    return result


def register(app: typer.Typer) -> None:
    """Add both commands to the `normscape` command."""
    shown = examples(
        "normscape sweep configs/sweeps/forest.yaml", "normscape sweep configs/sweeps/thresholds.yaml --set trials=40"
    )
    app.command("sweep", rich_help_panel=EXPERIMENTS, epilog=shown)(_sweep)
    shown = examples("normscape distances configs/chairs/demo.yaml")
    app.command("distances", rich_help_panel=EXPERIMENTS, epilog=shown)(_distances)


def _sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A sweep, for example configs/sweeps/forest.yaml.")],
    overrides: SetOption = None,
    runs_dir: RunsOption = RUNS,
    address: AddressOption = None,
    no_track: TrackOption = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search settings.

    What was tried is kept, and a sweep that was cut off goes on.
    """
    sweep_and_report(
        config,
        overrides or (),
        runs_dir=runs_dir,
        address=address,
        track=not no_track,
        retry_failed=retry_failed,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
    )


def _distances(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="An experiment, for example configs/chairs/demo.yaml.")],
    overrides: SetOption = None,
    pairs: Annotated[int, typer.Option("--pairs", min=64, help="Pairs of real images an attribute.")] = 4096,
    runs_dir: RunsOption = RUNS,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure real images and propose thresholds.

    It shows how far apart real images are under the auxiliary networks, and what follows for the contrastive loss.
    """
    from normscape.report.distances import measure_real

    loaded = load_config(config, overrides or ())
    with ConsoleListener(_FIRST_STAGES, Console(stderr=True), quiet=quiet, verbose=verbose) as bar:
        folder, proposed = measure_real(loaded, runs_dir, pairs=pairs, listener=bar)
    if as_json:
        thresholds = {
            a.name: {
                "tau_same": proposed[a.name].tau_same,
                "tau_different": proposed[a.name].tau_different,
                "configured": {"tau_same": a.tau_same, "tau_different": a.tau_different},
            }
            for a in loaded.attributes
        }
        print_json({"thresholds": thresholds, "folder": folder})
        return
    rows = []
    for attribute in loaded.attributes:
        taus = proposed[attribute.name]
        own = f"{attribute.tau_same:g}, {attribute.tau_different:g}"
        rows.append((attribute.name, f"{taus.tau_same:.3f}", f"{taus.tau_different:.3f}", own))
    title = "Thresholds that real training images suggest"
    print_table(make_table(title, ("attribute", "tau_same", "tau_different", "configured"), rows))
    sys.stdout.write(f"distances and figures  {folder}\n")


def _say(text: str) -> None:
    """Progress goes to the error stream."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
