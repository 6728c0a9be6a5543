"""An experiment from its configuration to its last line of output: what `normscape run` and the jobs have in common."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from normscape.config import Config
from normscape.console import ConsoleListener
from normscape.errors import UserError
from normscape.stages.core import STAGES, RunResult, StageFunction, run_stages
from normscape.stages.files import update_json
from normscape.stages.recording import Listeners

if TYPE_CHECKING:
    from normscape.distributed.workers import Workers
    from normscape.stages.core import StageContext
    from normscape.tracking.runs import MlflowListener

INTERRUPTED = 130
"""Exit code after Ctrl-C and SIGTERM."""


@dataclass(frozen=True)
class Fleet:
    """What an experiment is given of a Ray cluster, as a person writes it.

    Args:
        address: of the cluster; see `normscape.distributed.cluster.connect`.
        workers: that train, `2` or `1-8`; training stays in this process when empty.
        actors: that project, likewise.
        gpus_per_worker, gpus_per_actor: empty: one where the configuration allows it and the cluster has some.
        cpus_per_worker: CPUs of each worker.
        max_failures: of a training, before it gives up.
    """

    address: str | None = None
    workers: str | None = None
    actors: str | None = None
    gpus_per_worker: float | None = None
    gpus_per_actor: float | None = None
    cpus_per_worker: int = 1
    max_failures: int = 3


@dataclass(frozen=True)
class Plan:
    """Which stages run, and what is shown and kept of it.

    Args:
        first: run this stage and all later ones anew.
        last: stop after this stage.
        fresh: run all stages anew.
        track: record the run in MLflow.
        quiet: only say what finished.
        verbose: also say what is measured on the way.
    """

    first: str | None = None
    last: str | None = None
    fresh: bool = False
    track: bool = True
    quiet: bool = False
    verbose: bool = False


def run_experiment(config: Config, runs_dir: Path, plan: Plan, fleet: Fleet | None = None, *, command: str = "CONFIG") -> int:
    """Run an experiment; what is up to date is skipped, what was cut off goes on.

    Args:
        config: the experiment.
        runs_dir: holds run folders.
        plan: which stages.
        fleet: workers and actors of a Ray cluster; everything happens in this process when empty.
        command: the configuration as it was given, for the line that says how to go on.

    Returns:
        The exit code: 0, or 130 when it was interrupted.

    Raises:
        UserError: what a person can mend.
    """
    names = [stage.name for stage in STAGES if stage.exists(config)]
    bar = ConsoleListener(names, Console(stderr=True), quiet=plan.quiet, verbose=plan.verbose)
    listeners = Listeners([bar])
    tracker: MlflowListener | None = None

    def opened(folder: Path) -> None:
        """MLflow's run begins when the folder is ours: another process may be recording in it."""
        nonlocal tracker
        tracker = _tracker(config, folder, fresh=plan.fresh) if plan.track else None
        listeners.listeners = (bar, tracker) if tracker else (bar,)

    ended: Any = "FAILED"
    try:
        with sigterm_as_ctrl_c(), ExitStack() as stack:
            functions = {"report": _report_stage} | (_join(stack, fleet, config, plan, runs_dir) if fleet else {})
            stack.enter_context(bar)
            result = run_stages(
                config,
                runs_dir,
                first=plan.first,
                last=plan.last,
                fresh=plan.fresh,
                listener=listeners,
                opened=opened,
                extra=functions,
            )
            ended = "FINISHED"
    except KeyboardInterrupt:
        ended = "KILLED"
        sys.stderr.write(f"stopped; finished work is kept; `normscape run {shlex.quote(command)}` goes on from here\n")
        return INTERRUPTED
    finally:
        if tracker is not None:
            tracker.close(ended)
    _say_where(result, tracker)
    return 0


def _join(stack: ExitStack, fleet: Fleet, config: Config, plan: Plan, runs_dir: Path) -> dict[str, StageFunction]:
    """Connect to Ray until the stack is left; the functions of the stages that run on it."""
    from normscape.distributed import cluster
    from normscape.distributed.workers import check_batch, check_room, parse_count

    cluster.check_runs_folder(runs_dir)
    if not fleet.workers and not fleet.actors:
        raise UserError("--address: say too how many are to work there: `--workers 2` that train, `--actors 2` that project")
    workers, least_cpus = None, 1
    if fleet.workers:
        workers = _workers(fleet, *parse_count(fleet.workers, "--workers"))
        least_cpus = workers.cpus * workers.least
        if plan.last not in ("prepare", "auxiliary"):
            check_batch(config, workers)
    actors = parse_count(fleet.actors, "--actors") if fleet.actors else None
    if actors:
        least_cpus = max(least_cpus, actors[0] + 1)  # one that reads what they are to do
    own = stack.enter_context(cluster.connect(fleet.address, cpus=least_cpus))
    if job := cluster.job_id(own=own):
        os.environ["NORMSCAPE_RAY_JOB_ID"] = job
    functions: dict[str, StageFunction] = {}
    if workers:
        from normscape.distributed.train import training_stages

        check_room(config, workers, own=own)
        functions |= training_stages(workers)
    if actors:
        from normscape.distributed.projection import project_stage

        gpus = cluster.gpus_each(config, actors[0]) if fleet.gpus_per_actor is None else fleet.gpus_per_actor
        functions["project"] = partial(project_stage, actors=actors, gpus_per_actor=gpus)
    return functions


def _workers(fleet: Fleet, least: int, most: int) -> Workers:
    from normscape.distributed.workers import Workers

    return Workers(least, most, gpus=fleet.gpus_per_worker, cpus=fleet.cpus_per_worker, max_failures=fleet.max_failures)


def _report_stage(context: StageContext) -> dict[str, float]:
    from normscape.report.page import run as build

    return build(context)


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
def sigterm_as_ctrl_c() -> Iterator[None]:
    """A batch system's SIGTERM ends a run as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
