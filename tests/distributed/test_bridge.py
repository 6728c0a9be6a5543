"""Metrics of rank 0 reach the driver's recorder in order, each once, and before rank 0 goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray

from normscape.distributed.bridge import BridgeRecorder, deliver, open_mailbox
from normscape.training.recorder import SilentRecorder

pytestmark = pytest.mark.cluster


class Keep(SilentRecorder):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def metrics(self, values, step):
        self.heard.append((step, dict(values)))

    def rewind(self, step):
        self.heard.append(("rewind", step))

    def progress(self, done, total, unit="step"):
        self.heard.append((done, total, unit))


@ray.remote(num_cpus=1)
def rank0(mailbox: Any, count: int) -> float:
    """Records some steps, as a training loop does; how long it took."""
    began = time.monotonic()
    recorder = BridgeRecorder(mailbox)
    recorder.rewind(0)
    for step in range(1, count + 1):
        recorder.metrics({"loss": step / 2}, step)
        recorder.progress(step, count)
    return time.monotonic() - began


def test_metrics_arrive_in_order_and_rank_0_waits_for_them(local_ray: None) -> None:
    """Nothing that rank 0 has left behind is still on its way: while the driver does not look, rank 0 stands still."""
    mailbox, kept = open_mailbox(), Keep()
    task = rank0.remote(mailbox, 20)
    assert not ray.wait([task], timeout=3)[0]
    while not ray.wait([task], timeout=0)[0]:
        for letter in ray.get(mailbox.take.remote()):
            deliver(letter, kept)
    for letter in ray.get(mailbox.take.remote()):
        deliver(letter, kept)
    assert [heard for heard in kept.heard if len(heard) == 2] == [("rewind", 0)] + [(n, {"loss": n / 2}) for n in range(1, 21)]
    assert kept.heard[-1] == (20, 20, "step")
    ray.kill(mailbox)


def test_an_earlier_attempt_is_turned_away(local_ray: None) -> None:
    """A worker that outlived its attempt cannot write among the metrics of the next one; a person's mistake gets through."""
    mailbox = open_mailbox()
    old, new = BridgeRecorder(mailbox), BridgeRecorder(mailbox)
    with pytest.raises(RuntimeError, match="attempt 1 is over, attempt 2 has begun"):
        old.metrics({"loss": 1.0}, 1)
    old.progress(1, 2)
    new.progress(2, 2)
    ray.get(mailbox.fail.remote("DataError", "no such file"))
    letters = ray.get(mailbox.take.remote())
    assert letters[0] == {"kind": "user error", "type": "DataError", "text": "no such file"}
    assert all(letter["done"] == 2 for letter in letters[1:])
    assert ray.get(mailbox.take.remote(0.1)) == [] or letters[1:] == []
    ray.kill(mailbox)
