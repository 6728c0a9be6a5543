"""Preprocessing on Ray: one task a scan, a bounded number in flight.

A task writes the scan's files and sends a few numbers back. A process that dies takes one scan with it: Ray tries that again,
and what ends its process time after time is quarantined while the rest goes on. All processes must see the folders of the scans
and of the cohort: one machine, or shared storage.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from normscape import errors
from normscape.datasets.cohort import Scan
from normscape.errors import UserError
from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.cohort import Work, prepare_one
from normscape.preprocessing.scan import PreparedScan, quarantined
from normscape.preprocessing.settings import PreprocessingSettings

DEATHS = 2
"""How often a scan is tried again after the process that prepared it died."""
WAITING = 2
"""Tasks in flight for each that can run: nobody waits for work, and a million scans are not all sent at once."""


@dataclass(frozen=True)
class RayTasks:
    """Workers of `prepare_cohort`: so many scans at a time, each on one CPU. Ray is connected already."""

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"{self.workers} workers: expected at least one")

    def __call__(self, work: Work) -> Generator[PreparedScan, None, None]:
        """Prepare what is missing; tells of each scan as it is finished."""
        atlas = ray.put(work.atlas)
        folder = work.folder.resolve()
        waiting = list(reversed(work.scans))
        running: dict[Any, Scan] = {}
        try:
            while waiting or running:
                while waiting and len(running) < WAITING * self.workers:
                    scan = waiting.pop()
                    running[_prepare.remote(_absolute(scan), work.settings, atlas, folder)] = scan
                (done,), _ = ray.wait(list(running), num_returns=1)
                yield _result(done, running.pop(done), work)
        finally:
            for task in running:
                ray.cancel(task, force=True)


@ray.remote(num_cpus=1, max_retries=DEATHS)
def _prepare(scan: Scan, settings: PreprocessingSettings, atlas: Atlas, folder: Path) -> PreparedScan | tuple[str, str]:
    """One scan; an error that a person can fix comes back as its kind and text: Ray would wrap it in stack traces."""
    if settings.strip in ("deepbet", "hdbet"):  # the others need no torch, which takes seconds to import
        import torch

        torch.set_num_threads(1)  # as many as the CPUs that the task asks for
    try:
        return prepare_one(scan, settings, atlas, folder)
    except UserError as error:
        return type(error).__name__, str(error)


def _result(done: Any, scan: Scan, work: Work) -> PreparedScan:
    try:
        result = ray.get(done)
    except (WorkerCrashedError, OutOfMemoryError):
        reason = f"it ended its process {DEATHS + 1} times; is memory short?"
        return quarantined(scan, work.folder, "process", reason)
    except RayTaskError as error:  # what came before the scan: a package that does not import on that machine
        raise UserError(f"{scan.name}: preprocessing does not run on a machine of the cluster: {error.cause!r}") from error
    if isinstance(result, tuple):
        kind, message = result
        raise getattr(errors, kind, UserError)(message)
    return replace(result, scan=scan, folder=work.folder / result.folder.relative_to(work.folder.resolve()))


def _absolute(scan: Scan) -> Scan:
    """The same scan for a process in another folder."""
    mask, labels = (None if path is None else path.absolute() for path in (scan.mask, scan.labels))
    return replace(scan, path=scan.path.absolute(), mask=mask, labels=labels)
