"""The queue: one job after the other, none of which can end it, and files that outlive nobody who wanted them gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normscape.errors import UserError
from normscape.explore.storage import Full, Storage
from normscape.explore.work import CANCELLED, FAILED, FINISHED, QUEUED, RUNNING, Job, Tell, Worker
from tests.explore.visitors import wait_for


@pytest.fixture
def worker() -> Iterator[Worker]:
    """With room for two jobs that wait."""
    made = Worker(most=2)
    yield made
    assert made.close(30)


class Held:
    """Work that goes on when it is told to, and is over after its next step."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, tell: Tell) -> dict[str, Any]:
        self.begun.set()
        assert self.go_on.wait(30)
        tell("patches", 1, 2)
        return {"regions": 3}


def state_of(worker: Worker, name: str) -> str:
    """Where a job is."""
    found = worker.described(name)
    assert found is not None
    return str(found["state"])


def test_one_after_the_other_and_no_more_than_may_wait(worker: Worker, tmp_path: Path) -> None:
    """Places count what comes before; who is cancelled gives up the place; one too many is refused."""
    first, second = Held(), Held()
    worker.add(Job("a", tmp_path, first))
    assert first.begun.wait(30)
    worker.add(Job("b", tmp_path, second))
    worker.add(Job("c", tmp_path, Held()))
    with pytest.raises(Full, match="2 scans are waiting already"):
        worker.add(Job("d", tmp_path, Held()))
    found = [worker.described(name) for name in "abc"]
    assert [(one["state"], one["place"]) for one in found if one] == [(RUNNING, 0), (QUEUED, 1), (QUEUED, 2)]
    worker.cancel("b")
    assert state_of(worker, "b") == CANCELLED
    assert worker.described("c")["place"] == 1
    worker.cancel("c")
    first.go_on.set()
    wait_for(lambda: state_of(worker, "a") == FINISHED)
    assert worker.described("a")["result"] == {"regions": 3}
    assert not second.begun.is_set()
    assert worker.described("d") is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("head.nii: no brain in it"), "head.nii: no brain in it"),
        (MemoryError(), "too little memory"),
        (OSError(28, "No space left on device"), "the disk of this machine is full"),
        (OSError("odd"), "a bug of normscape (OSError)"),
        (ValueError("odd"), "a bug of normscape (ValueError)"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_one_runs(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """Even where the folder in which the page was started is gone."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    def fail(tell: Tell) -> dict[str, Any]:
        raise error

    worker.add(Job("a", tmp_path, fail))
    worker.add(Job("b", tmp_path, lambda tell: {}))
    wait_for(lambda: state_of(worker, "b") == FINISHED)
    found = worker.described("a")
    assert (found["state"], message in found["message"]) == (FAILED, True), found
    os.chdir(tmp_path)


def deleted_while_it_runs(worker: Worker, storage: Storage, work: Callable[[Tell], dict[str, Any]]) -> Path:
    """Folder of a scan whose owner deletes it while it is being mapped."""
    with storage.receive("somebody", "head.nii", 1) as upload:
        worker.add(Job(upload.id, upload.folder, work))
    wait_for(lambda: state_of(worker, upload.id) == RUNNING)
    assert storage.hide("somebody else", upload.id) is None
    assert storage.hide("somebody", upload.id) is upload
    assert storage.hide("somebody", upload.id) is None  # who asks twice has deleted it once
    assert storage.find("somebody", upload.id) is None
    worker.forget(upload.id, lambda: storage.remove(upload))
    return upload.folder


def test_what_is_deleted_goes_after_its_next_step(worker: Worker, tmp_path: Path) -> None:
    """Not while the job may be writing there."""
    held = Held()
    folder = deleted_while_it_runs(worker, Storage(tmp_path / "kept", most=2), held)
    assert folder.is_dir()
    held.go_on.set()
    wait_for(lambda: not folder.exists())


def test_what_was_deleted_does_not_stay_when_the_page_ends_first(worker: Worker, tmp_path: Path) -> None:
    """In a folder of the user's own all other scans stay."""
    held = Held()
    storage = Storage(tmp_path / "kept", most=2)
    with storage.receive("somebody", "other.nii", 1) as other:
        pass
    folder = deleted_while_it_runs(worker, storage, held)
    storage.close()
    assert (folder.exists(), other.folder.exists()) == (False, True)
    held.go_on.set()
