"""Files that are whole or absent."""

from __future__ import annotations

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from normscape.errors import UserError
from normscape.stages.files import discard, is_disk_full, is_locked, locked, read_json, update_json, write_json


def test_json_goes_there_and_back_and_leaves_nothing_aside(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, "é"]})
    update_json(tmp_path / "a.json", {"y": None})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5, "é"], "y": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_value_that_json_does_not_know_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_file_reads_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == {}


def test_discard_removes_a_folder_and_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for path in (folder, tmp_path / "a.trash"):
        path.mkdir()
        (path / "file").write_text("x")
    discard(folder)
    discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_lock_is_exclusive_and_let_go_at_the_end(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="in use by process"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker may outlive a killed parent; the folder must be free all the same."""
    with locked(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        worker.start()
    try:
        with locked(tmp_path):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_full_disk_is_recognised_behind_other_errors(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "x")
    wrapped = RuntimeError("could not write")
    wrapped.__cause__ = full
    assert is_disk_full(full, tmp_path)
    assert is_disk_full(wrapped, tmp_path)
    assert is_disk_full(ValueError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert not is_disk_full(RuntimeError("shapes do not match"), tmp_path)
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"), tmp_path)
