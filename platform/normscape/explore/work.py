"""One worker for all who ask: a bounded queue, one job after the other, each with its place and its progress."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscape.errors import UserError
from normscape.explore.storage import Full
from normscape.stages.files import is_disk_full

_log = logging.getLogger(__name__)
QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = "queued", "running", "finished", "failed", "cancelled"
Tell = Callable[[str, int, int], None]


class Cancelled(Exception):
    """Somebody does not want a job's result any more."""


@dataclass
class Job:
    """One piece of work.

    Attributes:
        id: of the file that it works on.
        folder: where it writes.
        run: does it; told a function to say (step, done, in all) with, gives what a page shows of the result.
        state: where it is.
        message: why it failed.
        result: what `run` gave.
    """

    id: str
    folder: Path
    run: Callable[[Tell], dict[str, Any]]
    state: str = QUEUED
    step: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    step_began: float = 0.0
    ended: float = 0.0
    wants_stop: bool = False

    def tell(self, step: str, done: int, total: int) -> None:
        """How far it is.

        Raises:
            Cancelled: it shall stop.
        """
        if self.wants_stop:
            raise Cancelled
        if step != self.step or done == 0:
            self.step_began = time.monotonic()
        self.step, self.done, self.total = step, done, total

    def described(self, place: int) -> dict[str, Any]:
        """For the page; `place` jobs come before it."""
        now = self.ended or time.monotonic()
        left = None
        if self.state == RUNNING and 0 < self.done < self.total:
            left = round((now - self.step_began) / self.done * (self.total - self.done), 1)
        return {
            "state": self.state,
            "place": place,
            "step": self.step,
            "done": self.done,
            "total": self.total,
            "seconds": round(now - self.began, 1) if self.began else 0.0,
            "seconds_left": left,
            "stopping": self.wants_stop and self.state == RUNNING,
            "message": self.message,
            "result": self.result,
        }


class Worker:
    """Runs jobs in a thread of its own.

    Args:
        most: jobs that may wait.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._closed = False
        self._afterwards: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._work, name="normscape-explore", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            Full: as many wait as may.
        """
        with self._change:
            if len(self._waiting) >= self.most:
                raise Full(f"{self.most} scans are waiting already; try again when one of them is done")
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._change.notify_all()

    def described(self, job_id: str) -> dict[str, Any] | None:
        """A job for the page; None when there is none of this name."""
        with self._change:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            place = 0
            if job.state == QUEUED:
                place = self._waiting.index(job) + (self._running is not None)
            return job.described(place)

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or ask it to stop at its next step."""
        with self._change:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.wants_stop = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = CANCELLED

    def forget(self, job_id: str, then: Callable[[], None]) -> None:
        """Cancel a job, and do something once it no longer touches its files: now, or after its next step."""
        self.cancel(job_id)
        with self._change:
            job = self._jobs.pop(job_id, None)
            busy = job is not None and job is self._running
            if busy:
                self._afterwards = then
        if not busy:
            then()

    def close(self, patience_seconds: float) -> bool:
        """Stop: nothing that waits begins, what runs is asked to stop. Whether it did within so many seconds."""
        with self._change:
            self._closed = True
            self._waiting.clear()
            if self._running is not None:
                self._running.wants_stop = True
            self._change.notify_all()
        self._thread.join(patience_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.state, job.began = RUNNING, time.monotonic()
            state, message = _outcome(job)
            with self._change:
                job.state, job.message, job.ended = state, message, time.monotonic()
                self._running, then, self._afterwards = None, self._afterwards, None
            if then is not None:
                then()


def _outcome(job: Job) -> tuple[str, str]:
    """Run a job; how it ended, and why it failed. Nothing that goes wrong in a job ends the worker."""
    try:
        job.result = job.run(job.tell)
        return FINISHED, ""
    except Cancelled:
        return CANCELLED, ""
    except UserError as error:
        return FAILED, str(error)
    except MemoryError:
        return FAILED, "this machine has too little memory for this scan"
    except Exception as error:
        if is_disk_full(error, job.folder):
            return FAILED, "the disk of this machine is full"
        _log.exception("scoring failed")
        return (
            FAILED,
            f"a bug of normscape ({type(error).__name__}); the terminal where the page was started says more",
        )
