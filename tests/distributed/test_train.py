"""Stages `auxiliary` and `gan` on real Ray Train workers: the results of a training without Ray, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from normscape.config import Config
from normscape.distributed.train import training_stages
from normscape.distributed.workers import Workers, sharing
from normscape.errors import CheckpointError
from normscape.stages.core import StageFunction, run_stages
from normscape.stages.recording import Listeners

pytestmark = pytest.mark.cluster
GAN = {"steps": 40, "checkpoint_interval": 5, "log_interval": 2, "sample_interval": 20, "batch_size": 8}
DATA = {"angle_step_degrees": 29.0, "supersample": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chairs are rendered into it once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(toy_config: Callable[..., Config], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The toy experiment on chairs with four views each."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))
    return toy_config(data=DATA, gan=GAN, device="cpu")


@pytest.fixture
def prepared(config: Config, cache: Path) -> Path:
    """A runs folder in which everything before the GAN is finished, made without Ray once."""
    runs = cache / "prepared"
    run_stages(config, runs, last="auxiliary")
    return runs


Run = Callable[..., Path]


@pytest.fixture
def run(config: Config, prepared: Path, tmp_path: Path) -> Run:
    """Runs the toy experiment up to the GAN in a folder of its own, by some functions of stages; gives the run folder."""

    def go(name: str, functions: Mapping[str, StageFunction] | None = None, listener: Listeners | None = None) -> Path:
        runs = tmp_path / name
        shutil.copytree(prepared, runs)
        return run_stages(config, runs, last="gan", extra=functions, listener=listener).folder

    return go


def results(folder: Path) -> dict[str, object]:
    """What a run holds of stage `gan`, but for times and the commit."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.glob("gan-*/**/*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = {key: manifest[key] for key in ("key", "inputs", "seed", "metrics")}
        elif path.suffix == ".safetensors":
            found[name] = {key: value.tobytes() for key, value in load_file(path).items()}
        else:
            found[name] = path.read_bytes()
    return found


def differences(a: Path, b: Path) -> list[str]:
    """Files that two runs do not have in common, byte for byte."""
    x, y = results(a), results(b)
    assert any(name.endswith("generator.safetensors") for name in x)
    return [name for name in x.keys() | y.keys() if x.get(name) != y.get(name)]


class Listening(Listeners):
    """Hears every step at which something was measured."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.seen: list[int] = []

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        if stage == "gan":
            self.steps.append(step)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        if stage == "gan":
            self.seen.append(done)


class Killer(Listening):
    """Kills a training worker with SIGKILL as soon as a step was measured."""

    def __init__(self, step: int, which: int) -> None:
        super().__init__()
        self.step, self.which, self.killed = step, which, 0

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        super().metrics(stage, values, step)
        if stage == "gan" and step >= self.step and not self.killed:
            self.killed = worker_pids()[self.which]
            os.kill(self.killed, signal.SIGKILL)


def worker_pids() -> list[int]:
    """Processes of Ray Train workers that this process's Ray has started."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            return 0

    def named(pid: int) -> bool:
        try:
            return "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False

    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return sorted(pid for pid in pids if named(pid) and parent(parent(pid)) == os.getpid())


def test_one_worker_gives_what_a_training_without_ray_gives(run: Run, local_ray: None) -> None:
    """All files of the stage byte for byte, metrics and pictures too; progress is heard, and nothing of Ray is left behind."""
    listening = Listening()
    assert not differences(run("alone"), run("ray", training_stages(Workers()), listening))
    assert sorted(set(listening.steps)) == list(range(2, 41, 2))
    assert listening.seen[-1] == 40
    assert listening.seen == sorted(listening.seen)


def test_two_workers_end_with_the_same_numbers_when_one_is_killed(run: Run, local_ray: None) -> None:
    """SIGKILL of either worker at a random step, after a checkpoint and before the next; metrics neither lack nor double."""
    calm = run("calm", training_stages(Workers(2, 2)))
    chance = random.Random(os.getpid())
    step, which = chance.randrange(6, 38, 2), chance.randrange(2)
    killer = Killer(step, which)
    struck = run(f"struck-{step}-{which}", training_stages(Workers(2, 2)), killer)
    assert killer.killed, "nobody was killed"
    assert not differences(calm, struck), f"worker {which} was killed at step {step}"
    assert len(killer.steps) > len(set(killer.steps)), "no step was trained again: the worker was not killed in between"
    lines = [json.loads(line) for line in next(struck.glob("gan-*/metrics.jsonl")).read_text().splitlines()]
    assert len(lines) == len({(line["step"], *line) for line in lines})


def test_workers_that_are_too_many_stand_by(config: Config, run: Run, local_ray: None) -> None:
    """Of three elastic workers two can share a batch of 8 in groups of 4: the third one changes nothing."""
    assert [sharing("gan", config, n) for n in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert not differences(run("two", training_stages(Workers(2, 2))), run("three", training_stages(Workers(1, 3))))


def test_auxiliary_networks_train_on_two_workers(config: Config, tmp_path: Path, local_ray: None) -> None:
    """They end, they are measured, and a second time they are the same; one worker gives what no Ray gives."""
    folders = {
        name: run_stages(config, tmp_path / name, last="auxiliary", extra=training_stages(Workers(n, n)) if n else None).folder
        for name, n in (("alone", 0), ("one", 1), ("two", 2), ("again", 2))
    }
    weights = {
        name: {path.name: path.read_bytes() for path in folder.glob("auxiliary-*/*.*") if path.name != "manifest.json"}
        for name, folder in folders.items()
    }
    assert weights["one"] == weights["alone"]
    assert weights["two"] == weights["again"]
    assert weights["two"] != weights["one"]  # batch normalisation sees half a batch
    assert weights["two"].keys() == weights["one"].keys()
    assert not list(folders["two"].glob("auxiliary-*/checkpoints/*/checkpoint-*"))


def test_a_mistake_that_a_worker_finds_is_a_persons_error(config: Config, run: Run, prepared: Path, local_ray: None) -> None:
    """A checkpoint of another configuration: one message, and no second attempt."""
    functions = training_stages(Workers(2, 2))

    def spoilt(context: Any) -> Mapping[str, float]:
        checkpoint = context.folder / "checkpoint-00000005"
        checkpoint.mkdir()
        (checkpoint / "state.json").write_text('{"digest": "another"}')
        shutil.copy(next(prepared.glob("toy/auxiliary-*/identity.safetensors")), checkpoint / "state.safetensors")
        return functions["gan"](context)

    with pytest.raises(CheckpointError, match="checkpoint-00000005: belongs to another configuration"):
        run("spoilt", {"gan": spoilt})
