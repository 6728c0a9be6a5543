"""Run a sweep with Ray Tune: Optuna or a list of points, early stopping by ASHA, every trial recorded as it goes.

A sweep that was cut off in any way goes on when it is run again. Its memory are the open files of its trials, not Ray's pickled
state, which is thrown away: what was tried before is told to the search and to the scheduler, and what was cut off is tried
first and continues from its own checkpoints.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from normscape.config import Config
from normscape.distributed import sweep_forest, sweep_thresholds
from normscape.distributed.cluster import connect
from normscape.distributed.sweep_results import write_results
from normscape.distributed.sweep_search import Search
from normscape.distributed.sweep_tracking import SweepTracker, summary_of
from normscape.distributed.sweep_trials import (
    Point,
    Report,
    Status,
    Trial,
    best_trial,
    point_key,
    read_trials,
    trial_folder,
    write_trial,
)
from normscape.errors import UserError
from normscape.stages.files import discard, is_disk_full, locked
from normscape.stages.recording import Listener
from normscape.sweepconfig import ForestSweep, Sweep, sweep_folder
from normscape.training.checkpoint import TrainingState

METRIC = "score"
RESULT_FILES = ("trials.parquet", "reports.parquet", "importance.parquet", "best.yaml", "sweep.json", "index.html")


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    folder: Path
    trials: list[Trial]
    best: Trial
    run_id: str | None
    """The parent run in MLflow; None when nothing is recorded."""

    @property
    def failed(self) -> list[Trial]:
        """Trials that raised an error or lost their process."""
        return [trial for trial in self.trials if trial.status == "failed"]


def run_sweep(
    sweep: Sweep,
    config: Config,
    experiment: Path,
    runs_dir: Path,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    retry_failed: bool = False,
    say: Callable[[str], None] = lambda text: None,
    listener: Listener | None = None,
    page: Callable[[Path], Path] | None = None,
) -> SweepResult:
    """Run what of a sweep is not done yet, and write its results.

    Args:
        sweep: what is searched.
        config: the experiment.
        experiment: its file.
        runs_dir: the sweep's folder is made in `sweeps/` in it.
        address: of a Ray cluster; see `connect`.
        tracking_uri: MLflow's store; nothing is recorded when empty.
        retry_failed: try again what failed before.
        say: hears one line a trial.
        listener: hears the stages that have to be run first.
        page: builds the page of a sweep's folder; the page lies above this module, so whoever runs the sweep brings it.

    Raises:
        UserError: the experiment is not ready, another process runs the sweep, or every trial failed.
    """
    folder = sweep_folder(sweep, config, runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if isinstance(sweep, ForestSweep):
            search = sweep_forest.prepare(sweep, config, runs_dir)
        else:
            search = sweep_thresholds.prepare(sweep, config, runs_dir, folder, listener=listener)
        known = read_trials(folder)
        tracker = SweepTracker(sweep, config, folder, tracking_uri) if tracking_uri else None
        if tracker is not None:
            tracker.start(known)
        run_id = tracker.run_id if tracker is not None else None
        watcher = _Watcher(folder, known, search, tracker, say)
        ended: Any = "FAILED"
        files: tuple[Path, ...] = ()
        try:
            _search(sweep, search, folder, watcher, address=address, retry_failed=retry_failed)
            best = best_trial(watcher.trials)
            write_results(folder, sweep, config, experiment, search, watcher.trials, best)
            if page is not None:
                page(folder)
            files = tuple(folder / name for name in RESULT_FILES if (folder / name).exists())
            if best is None:
                raise UserError(f"sweep {sweep.name}: no trial succeeded; {failures(watcher.trials)}\nall of them: {folder}")
            ended = "FINISHED"
        except KeyboardInterrupt:
            ended = "KILLED"
            raise
        except UserError:
            raise
        except Exception as error:
            if is_disk_full(error, folder):
                raise UserError(f"disk is full at {folder}; finished trials are kept; free some space and run again") from error
            raise
        finally:
            if tracker is not None:
                tracker.close(ended, summary_of(watcher.trials, best_trial(watcher.trials)), files)
    return SweepResult(folder, watcher.trials, best, run_id)


def failures(trials: Sequence[Trial]) -> str:
    """How many trials failed and why, a reason once; empty when none did."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if not failed:
        return ""
    by_reason: dict[str, list[str]] = {}
    for trial in failed:
        by_reason.setdefault(trial.reason, []).append(str(trial.number))
    lines = [f"  trial {', '.join(numbers)}: {reason}" for reason, numbers in by_reason.items()]
    return "\n".join([f"{len(failed)} of {len(trials)} trials FAILED:", *lines])


# ---- the search ------------------------------------------------------------------------------------------------------


def _search(sweep: Sweep, search: Search, folder: Path, watcher: _Watcher, *, address: str | None, retry_failed: bool) -> None:
    """Try what is left to try."""
    again = ("running", "failed") if retry_failed else ("running",)
    done = [trial for trial in watcher.trials if trial.status not in again]
    keys = {trial.key for trial in done}
    if search.points is not None:
        left = [point for point in search.points if point_key(point) not in keys]
        count, total = len(left), len(search.points)
    else:
        left = [trial.point for trial in watcher.trials if trial.status in again]
        left += [point for _, point in search.first if point_key(point) not in {*keys, *map(point_key, left)}]
        count, total = max(0, sweep.trials - len(done)), sweep.trials
    watcher.total = max(total, len(done))
    if done:
        watcher.say(f"{len(done)} of {watcher.total} trials are done already")
    if count == 0:
        return
    _quiet_tune()
    settings: dict[str, Any] = {"num_samples": count, "scheduler": _scheduler(search, done)}
    if search.points is not None:
        settings |= {"num_samples": 1}
        space: dict[str, Any] | None = {"point": tune.grid_search(left)}
    else:
        settings["search_alg"], space = _optuna(sweep, search, done, left[:count]), None
    trainable = tune.with_resources(
        tune.with_parameters(_trial, function=search.trial, job=search.job),
        {"CPU": sweep.cpus_per_trial, **({"GPU": sweep.gpus_per_trial} if sweep.gpus_per_trial else {})},
    )
    scratch = folder / "ray"
    discard(scratch)
    try:
        with connect(address, cpus=math.ceil(sweep.cpus_per_trial)) as own:
            found = ray.cluster_resources().get("GPU", 0.0)
            if own and sweep.gpus_per_trial > found:
                raise UserError(
                    f"gpus_per_trial: {sweep.gpus_per_trial:g} GPUs are asked for each trial, this machine has {found:g}"
                )
            if search.before is not None:
                watcher.say("what all trials share comes first")
                held = {"num_cpus": sweep.cpus_per_trial, "num_gpus": sweep.gpus_per_trial}
                ray.get(ray.remote(search.before).options(**held).remote(search.job))
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(max_concurrent_trials=sweep.max_concurrent, **settings),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[watcher],
                    failure_config=tune.FailureConfig(max_failures=sweep.retries),
                ),
            )
            tuner.fit()  # does not raise for trials that failed: the watcher has them
            watcher.close()
    finally:
        discard(scratch)


def _optuna(sweep: Sweep, search: Search, done: Sequence[Trial], first: Sequence[Point]) -> OptunaSearch:
    """Optuna's search (TPE), which knows what was tried before and begins with the given points.

    The seed differs from attempt to attempt: with the same one, a continued search would draw again what it drew at the start.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=sweep.seed + 1000 * len(done), n_startup_trials=5, multivariate=True)
    found = OptunaSearch(
        dict(search.space), metric=METRIC, mode="max", points_to_evaluate=[dict(p) for p in first], sampler=sampler
    )
    for trial in done:
        if trial.status != "failed" and trial.score is not None:
            found.add_evaluated_point(trial.point, trial.score)
    return found


def _scheduler(search: Search, done: Sequence[Trial]) -> ASHAScheduler | None:
    """ASHA, which knows what was reported before."""
    if search.cuts is None:
        return None
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=METRIC,
        mode="max",
        max_t=search.final_step,
        grace_period=search.cuts.first,
        reduction_factor=search.cuts.reduction,
    )
    for trial in done:
        stand_in = SimpleNamespace(trial_id=trial.key)
        scheduler.on_trial_add(None, stand_in)
        for report in trial.reports:
            scheduler.on_trial_result(None, stand_in, report)
    return scheduler


def _quiet_tune() -> None:
    """The watcher tells what happens; Tune's tables, log files and handling of Ctrl-C would stand in its way."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _trial(settings: dict[str, Any], function: Callable[..., Any], job: dict[str, Any]) -> None:
    """What a worker runs."""
    for report in function(settings.get("point", settings), job):
        tune.report({METRIC: report["score"], "step": report["step"], "report": report})


# ---- what happens, as the driver hears it ----------------------------------------------------------------------------


class _Watcher(tune.Callback):
    """Keeps every trial's file, tells MLflow and the person.

    Args:
        folder: the sweep's.
        known: trials of earlier attempts.
        search: what is searched.
        tracker: MLflow; None when nothing is recorded.
        say: hears one line a trial.
    """

    def __init__(
        self, folder: Path, known: Sequence[Trial], search: Search, tracker: SweepTracker | None, say: Callable[[str], None]
    ) -> None:
        self.folder, self.search, self.tracker, self.say = folder, search, tracker, say
        self.trials = list(known)
        self.total = len(self.trials)
        self._begun: dict[str, float] = {}

    def __deepcopy__(self, _: Any) -> _Watcher:
        return self  # Tune copies its settings, and has to call this one

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its settings for a restore that this module does not use

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        record = self._record(trial)
        record.status, record.error = "running", ""
        self._begun[record.key] = time.monotonic() - record.seconds
        write_trial(self.folder, record)
        if self.tracker is not None:
            self.tracker.trial_started(record)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """See `ray.tune.Callback`."""
        if "report" not in result:
            return
        record = self._record(trial)
        report: Report = result["report"]
        if record.add(report):
            record.seconds = self._seconds(record)
            write_trial(self.folder, record)
        if self.tracker is not None:
            self.tracker.trial_reported(record, report)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        record = self._record(trial)
        self._end(record, "finished" if record.step >= self.search.final_step else "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        record = self._record(trial)
        # Tune has written the error here; `get_error` looks where it will be copied to later
        path = Path(trial.error_file) if trial.error_file else None
        found = path.read_text(encoding="utf-8", errors="replace") if path is not None and path.is_file() else ""
        record.error = found.strip() or "no reason is known"
        self._end(record, "failed")

    def close(self) -> None:
        """When Tune has ended, a trial of which no end was heard counts as failed."""
        for record in self.trials:
            if record.status == "running" and record.key in self._begun:
                record.error = "its end was not heard of"
                self._end(record, "failed")

    def _end(self, record: Trial, status: Status) -> None:
        record.status, record.seconds = status, self._seconds(record)
        write_trial(self.folder, record)
        if status != "failed":  # a failed one may be tried again, from where it came to
            TrainingState.clear(trial_folder(self.folder, record.point))
        if self.tracker is not None:
            self.tracker.trial_ended(record)
        outcome = f"score {record.score:.4f} at step {record.step}" if record.score is not None else "no score"
        words = {"finished": outcome, "stopped": f"stopped early, {outcome}", "failed": f"FAILED: {record.reason}"}
        origin = f" ({record.origin})" if record.origin != "search" else ""
        self.say(f"trial {record.number} of {self.total}{origin}: {words[status]}")

    def _record(self, trial: Any) -> Trial:
        """What is kept of one of Ray's trials; new when it is the first that is heard of it, be it that it could not start."""
        point = _point(trial)
        key = point_key(point)
        found = next((record for record in self.trials if record.key == key), None)
        if found is None:
            origins = {point_key(p): origin for origin, p in self.search.first}
            found = Trial(number=len(self.trials) + 1, point=point, origin=origins.get(key, "search"))
            self.trials.append(found)
        return found

    def _seconds(self, record: Trial) -> float:
        """Time spent on a trial, earlier attempts included."""
        begun = self._begun.get(record.key)
        return record.seconds if begun is None else time.monotonic() - begun


def _point(trial: Any) -> Point:
    """The settings of one of Ray's trials."""
    return dict(trial.config.get("point", trial.config))
