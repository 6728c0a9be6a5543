"""A run that is killed or interrupted in every stage ends with the numbers of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from normscape.stages.core import STAGES

pytestmark = pytest.mark.slow
NAMES = [stage.name for stage in STAGES if not stage.source]
Start = Callable[..., "subprocess.Popen[str]"]

# Where to strike: the stage, what its partial folder holds by then, and how.
STRIKES: list[tuple[str, str, signal.Signals]] = [
    ("prepare", "progress.json", signal.SIGKILL),
    ("auxiliary", "checkpoints/angle/checkpoint-00000005/state.json", signal.SIGKILL),
    ("gan", "checkpoint-00000008/state.json", signal.SIGINT),
    ("gan", "checkpoint-00000032/state.json", signal.SIGKILL),
    ("controllers", "metrics.jsonl", signal.SIGKILL),
    ("latents", "stage.json", signal.SIGKILL),
    ("network", "checkpoints/checkpoint-00000004/state.json", signal.SIGKILL),
    ("project", "shards/00004.parquet", signal.SIGKILL),
    ("project", "curve.parquet", signal.SIGKILL),
    ("score", "progress.json", signal.SIGKILL),
    ("report", "stage.json", signal.SIGKILL),
]


def strike(process: subprocess.Popen[str], run: Path, stage: str, seen: str, number: signal.Signals) -> str:
    """Wait until a stage's partial folder holds a file, then signal the whole process group, as a terminal does.

    Returns:
        What the process printed on stderr.
    """
    give_up = time.monotonic() + 300
    try:
        while not list(run.glob(f"{stage}-*.partial/{seen}")):
            assert process.poll() is None, f"ended before {stage} held {seen}: {process.communicate()}"
            assert time.monotonic() < give_up, f"{stage} never held {seen}"
            time.sleep(0.002)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
        return err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def results(run: Path) -> dict[str, object]:
    """Everything that the finished stages hold, but for times and the commit."""
    found: dict[str, object] = {}
    for path in sorted(p for p in run.glob("*-????????/**/*") if p.is_file()):
        name = str(path.relative_to(run))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            manifest["metrics"].pop("times_faster", None)
            found[name] = {k: v for k, v in manifest.items() if k not in ("seconds", "started", "finished", "code_version")}
        elif path.name == "curve.parquet":
            found[name] = pq.read_table(path).drop_columns(["seconds_per_image"])
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path)
        elif path.suffix == ".safetensors":
            found[name] = {k: v.tobytes() for k, v in load_file(path).items()}
        elif path.suffix == ".npy":
            found[name] = np.load(path).tobytes()
        elif path.suffix == ".skops":  # an archive with times in it; what it computes stands in the scores
            found[name] = "forest"
        else:
            found[name] = path.read_bytes()
    return found


def check_interrupted(process: subprocess.Popen[str], err: str, config: Path) -> None:
    """Ctrl-C: exit code 130 and one clear line at the end, no stack trace."""
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"stopped; finished work is kept; `normscape run {config}` goes on from here"


def test_a_run_struck_in_every_stage_ends_with_the_numbers_of_an_undisturbed_one(
    tiny_yaml: Path, calm_run: Path, start: Start, tmp_path: Path
) -> None:
    """SIGKILL and Ctrl-C, one after the other; every next run goes on from there, and a last one finds nothing to do."""
    run, cache = tmp_path / "tiny", tmp_path / "cache"  # a cache of its own, to strike while chairs are rendered
    for stage, seen, number in STRIKES:
        process = start(tiny_yaml, tmp_path, cache)
        err = strike(process, run, stage, seen, number)
        if number == signal.SIGINT:
            check_interrupted(process, err, tiny_yaml)
        else:
            assert process.returncode == -signal.SIGKILL
        finished = {path.parent.name.split("-")[0] for path in run.glob("*-????????/manifest.json")}
        assert finished == set(NAMES[: NAMES.index(stage)]), f"after the strike in {stage}"
    for expected in ("finished in", "up to date"):
        process = start(tiny_yaml, tmp_path, cache)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert f"report: {expected}" in err
    assert all(f"{name}: up to date" in err for name in NAMES), err
    assert not list(run.glob("*.partial"))

    assert next(run.glob("report-*/index.html")).stat().st_size > 100_000
    # the page shows times, so that no two are the same
    calm, struck = ({k: v for k, v in results(r).items() if not k.startswith("report-")} for r in (calm_run, run))
    assert sorted(calm) == sorted(struck)
    assert sum(name.endswith("manifest.json") for name in calm) == len(NAMES) - 1  # all but the page
    different = [name for name, value in calm.items() if value != struck[name]]
    assert not different
