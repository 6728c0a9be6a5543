"""Units of an evaluation on Ray: one task a unit, a bounded number in flight.

A task fits a detector, scores and writes its own folder; a description comes back. A process that dies takes one unit with it:
Ray tries that again, and what ends its process time after time is a failed unit while the rest goes on. All processes must see
the folders of the run and of the data: one machine, or shared storage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from normscape import errors
from normscape.distributed.processes import shared_environment, with_absolute_paths
from normscape.errors import UserError
from normscape.evaluation.experiment import Experiment, Workbench
from normscape.evaluation.running import UnitProgress, UnitResult, run_unit
from normscape.evaluation.units import Unit, write_failure

DEATHS = 1
"""How often a unit is tried again after the process that ran it died."""


@dataclass(frozen=True)
class RayUnits:
    """Workers of `evaluate`: so many units at a time, each on one CPU, or with a GPU. Ray is connected already."""

    workers: int
    gpus_each: float = 0.0
    """GPUs of each unit, or a share of one."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: expected at least one")

    def __call__(self, experiment: Experiment, units: Sequence[Unit], progress: UnitProgress) -> Iterator[UnitResult]:
        """Run units; tells of each as it is finished."""
        shared = ray.put(replace(experiment, config=with_absolute_paths(experiment.config)))
        waiting = list(reversed(units))
        running: dict[Any, Unit] = {}
        task = _run.options(num_gpus=self.gpus_each or None)
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    unit = waiting.pop()
                    progress(unit, 0, 1, "unit")
                    running[task.remote(shared, unit, shared_environment())] = unit
                (done,), _ = ray.wait(list(running), num_returns=1)
                unit = running.pop(done)
                result = _result(done, unit, experiment)
                progress(unit, 1, 1, "unit")
                yield result
        finally:
            for left in running:
                ray.cancel(left, force=True)


_bench: dict[tuple[str, str], Workbench] = {}
"""The open samples of this process, by the evaluation's folder and configuration; only the newest are kept."""


@ray.remote(num_cpus=1, max_retries=DEATHS)
def _run(experiment: Experiment, unit: Unit, environment: Mapping[str, str]) -> UnitResult | tuple[str, str]:
    """One unit; an error that a person can fix comes back as its kind and text: Ray would wrap it in stack traces."""
    import torch

    os.environ.update(environment)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # as many as the CPUs that the task asks for
    try:
        key = (str(experiment.folder), experiment.digest)
        if key not in _bench:
            _bench.clear()
            _bench[key] = Workbench(experiment)
        return run_unit(_bench[key], unit)
    except UserError as error:
        return type(error).__name__, str(error)


def _result(done: Any, unit: Unit, experiment: Experiment) -> UnitResult:
    try:
        result = ray.get(done)
    except (WorkerCrashedError, OutOfMemoryError):
        reason = f"it ended its process {DEATHS + 1} times; is memory short?"
        write_failure(experiment, unit, reason, "")
        return UnitResult(unit, failure=reason)
    except RayTaskError as error:  # what came before the unit: a package that does not import on that machine
        raise UserError(f"{unit.name}: the evaluation does not run on a machine of the cluster: {error.cause!r}") from error
    if isinstance(result, tuple):
        kind, message = result
        raise getattr(errors, kind, UserError)(message)
    return result
