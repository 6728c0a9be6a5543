"""`normscape run --workers 2`: interrupted, killed with all its processes, and run again, it ends with the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.cluster
Start = Callable[..., "subprocess.Popen[str]"]
ON_RAY = ("--to", "gan", "--workers", "2", "--address", "local")


@pytest.fixture(autouse=True)
def private_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, where the token goes, and no cluster to join."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def wait_for(process: subprocess.Popen[str], run: Path, pattern: str) -> None:
    """Until the run folder holds a file."""
    give_up = time.monotonic() + 400
    while not list(run.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up, f"never saw {pattern}"
        time.sleep(0.02)


def ray_processes(session: int) -> list[int]:
    """Processes of Ray whose session a process leads: all that it started, but for those that went their own way."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            words = (path / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if path.name.isdigit() and int(words[3]) == session and int(path.name) != session:
            found.append(int(path.name))
    return found


def test_an_interrupted_and_a_killed_run_end_with_the_numbers_of_an_undisturbed_one(
    tiny_yaml: Path, cache: Path, start: Start, tmp_path: Path
) -> None:
    """Ctrl-C at the first checkpoint is exit code 130 and one line; SIGKILL of the command ends all of its Ray too."""
    calm = start(tiny_yaml, tmp_path / "calm", cache, *ON_RAY)
    _, err = calm.communicate(timeout=600)
    assert calm.returncode == 0, err
    run = tmp_path / "struck" / "tiny"

    process = start(tiny_yaml, tmp_path / "struck", cache, *ON_RAY)
    wait_for(process, run, "gan-*.partial/checkpoint-*/state.json")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"stopped; finished work is kept; `normscape run {tiny_yaml}` goes on from here"
    assert "Traceback" not in err

    process = start(tiny_yaml, tmp_path / "struck", cache, *ON_RAY)
    wait_for(process, run, "gan-*.partial/checkpoint-00000032/state.json")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    give_up = time.monotonic() + 180  # on a machine that has other work to do
    while ray_processes(process.pid):
        assert time.monotonic() < give_up, "Ray outlives its driver"
        time.sleep(0.5)

    process = start(tiny_yaml, tmp_path / "struck", cache, *ON_RAY)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    for pattern in ("gan-*/generator.safetensors", "gan-*/discriminator.safetensors"):
        a, b = (load_file(next(folder.glob(pattern))) for folder in (tmp_path / "calm" / "tiny", run))
        assert all((a[key] == b[key]).all() for key in a)
    for name in ("metrics.jsonl", "triplets.parquet", "samples/step-000060.png"):
        assert (
            next((tmp_path / "calm" / "tiny").glob(f"gan-*/{name}")).read_bytes() == next(run.glob(f"gan-*/{name}")).read_bytes()
        )
