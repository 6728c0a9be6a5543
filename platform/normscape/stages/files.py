"""Files that are either whole or absent, one process a run folder, and disks that are full."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from normscape.errors import UserError

LOCK_NAME = ".lock"
_LOCK_PATIENCE_SECONDS = 1.0
_held: set[IO[str]] = set()


def _let_go() -> None:
    """A forked worker shares its parent's lock, and would keep it when the parent is killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside, flush it to the disk, then rename it; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text aside, flush it to the disk, then rename it."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update_json(path: Path, values: Mapping[str, Any]) -> None:
    """Change some entries of a JSON object, atomically."""
    write_json(path, read_json(path) | dict(values))


def flush_folder(folder: Path) -> None:
    """Flush everything in a folder to the disk, so that a rename that follows never names half-written files."""
    for here, _, names in os.walk(folder):
        for path in (*(os.path.join(here, name) for name in names), here):
            flush_to_disk(path)


def flush_to_disk(path: str | Path) -> None:
    """Flush one file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder; cut off in between, it leaves a `.trash` folder, never half of the original."""
    trash = folder.with_name(folder.name + ".trash")
    if trash.exists():
        shutil.rmtree(trash)
    if folder.exists():
        os.replace(folder, trash)
        shutil.rmtree(trash)


@contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Hold a run folder for one process; released by the system when the process ends in any way.

    Raises:
        UserError: Another process holds it.
    """
    with (run_folder / LOCK_NAME).open("a+", encoding="utf-8") as file:
        give_up = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() > give_up:  # `is_locked` of another process holds it for an instant only
                file.seek(0)
                owner = file.read().strip()
                by = f"process {owner}" if owner else "another process"
                raise UserError(f"{run_folder} is in use by {by}; wait for it to end, or stop it, and run again")
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            file.truncate(0)


def is_locked(run_folder: Path) -> bool:
    """Whether a process works in this run folder now."""
    try:
        with (run_folder / LOCK_NAME).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error, or one behind it, came from a full disk.

    Not every writer passes the system's error on: NumPy counts items, torch and safetensors raise errors of their own.
    """
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if isinstance(here, OSError) and here.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(here) for words in ("No space left on device", "os error 28", "disk is full")):
            return True
        here = here.__cause__ or here.__context__
    if not isinstance(error, OSError | RuntimeError):
        return False
    try:
        return shutil.disk_usage(folder).free < 65_536
    except OSError:
        return False
