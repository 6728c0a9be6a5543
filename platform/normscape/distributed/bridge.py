"""What rank 0 measures reaches the recorder of the driver: nothing is lost, nothing comes twice, whoever is killed when.

Metrics are handed over one by one, and rank 0 waits until the driver has written them: a checkpoint that is made later never
knows of a step whose metrics are not on disk. Progress is only shown; rank 0 does not wait for it, and only the newest counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from normscape.training.recorder import Recorder

PROGRESS_SECONDS = 0.5
"""Progress is sent at most this often."""
_PATIENCE_SECONDS = 0.5


class Mailbox:
    """Letters from rank 0 to the driver; an actor without a CPU.

    Every attempt to train opens the box anew. A worker of an earlier attempt that is still alive is turned away, so that it
    cannot write among the letters of the new one.
    """

    def __init__(self) -> None:
        self._attempt = 0
        self._letters: list[tuple[Mapping[str, Any], asyncio.Event]] = []
        self._taken: list[asyncio.Event] = []
        self._progress: Mapping[str, Any] | None = None
        self._news = asyncio.Event()

    async def open(self) -> int:
        """Begin an attempt; its number."""
        self._attempt += 1
        return self._attempt

    async def put(self, attempt: int, letter: Mapping[str, Any]) -> None:
        """Hand a letter over; returns when the driver has dealt with it.

        Raises:
            RuntimeError: a newer attempt has begun.
        """
        if attempt != self._attempt:
            raise RuntimeError(f"attempt {attempt} is over, attempt {self._attempt} has begun")
        read = asyncio.Event()
        self._letters.append((letter, read))
        self._news.set()
        await read.wait()

    async def fail(self, kind: str, text: str) -> None:
        """Tell of a person's mistake: the name of the error's class, and its message."""
        self._letters.append(({"kind": "user error", "type": kind, "text": text}, asyncio.Event()))
        self._news.set()

    async def note(self, attempt: int, progress: Mapping[str, Any]) -> None:
        """Leave the newest progress."""
        if attempt == self._attempt:
            self._progress = progress
            self._news.set()

    async def take(self, patience: float = _PATIENCE_SECONDS) -> list[Mapping[str, Any]]:
        """The driver has dealt with what it took before; the next letters, empty after `patience` seconds without any."""
        for read in self._taken:
            read.set()
        self._taken = []
        try:
            await asyncio.wait_for(self._news.wait(), patience)
        except TimeoutError:
            return []
        self._news.clear()
        letters, self._letters = self._letters, []
        self._taken = [read for _, read in letters]
        newest = [self._progress] if self._progress is not None else []
        self._progress = None
        return [letter for letter, _ in letters] + newest


def open_mailbox() -> ActorHandle:
    """A mailbox on the driver's machine, which goes when the driver goes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()


class BridgeRecorder:
    """The recorder of rank 0, far from the driver.

    Args:
        mailbox: the driver's.
    """

    def __init__(self, mailbox: ActorHandle) -> None:
        self._mailbox = mailbox
        self._attempt = ray.get(mailbox.open.remote())
        self._next_progress = 0.0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values measured at an absolute step; returns when they are on the driver's disk."""
        self._put({"kind": "metrics", "values": {name: float(value) for name, value in values.items()}, "step": int(step)})

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        """Report that `done` of `total` units of work are finished."""
        now = time.monotonic()
        if now >= self._next_progress or done == total:
            self._next_progress = now + PROGRESS_SECONDS
            self._mailbox.note.remote(self._attempt, {"kind": "progress", "done": done, "total": total, "unit": unit})

    def rewind(self, step: int) -> None:
        """Forget metrics of later steps; a loop that resumes from `step` records those again."""
        self._put({"kind": "rewind", "step": int(step)})

    def _put(self, letter: Mapping[str, Any]) -> None:
        ray.get(self._mailbox.put.remote(self._attempt, letter))


def deliver(letter: Mapping[str, Any], recorder: Recorder) -> None:
    """Do on the driver what rank 0 asked for."""
    if letter["kind"] == "metrics":
        recorder.metrics(letter["values"], letter["step"])
    elif letter["kind"] == "rewind":
        recorder.rewind(letter["step"])
    else:
        recorder.progress(letter["done"], letter["total"], letter["unit"])
