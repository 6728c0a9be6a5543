"""A pool of actors writes what one process writes: undisturbed, cut off, with a killed actor, a poisoned sample, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray import cloudpickle

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.distributed import projection
from normscape.distributed.projection import Batch, project_stage
from normscape.errors import CheckpointError, UserError
from normscape.stages import project, projecting
from normscape.stages.core import StageContext
from normscape.stages.shards import plan_shards
from normscape.training.recorder import SilentRecorder

pytestmark = pytest.mark.cluster
DATA = {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 15.0, "supersample": 1}
FILES = ("projections.parquet", "quarantined.parquet", "inputs.npy", "reconstructions.npy", "rotated.npy", "rotated.json")
IMAGES, SHARDS = 30, 15
PIDS = "actors"
"""Where the actors of these tests leave their process ids."""
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the tests


class Heard(SilentRecorder):
    """Keeps what it hears; calls `at` once, when so many images are projected."""

    def __init__(self, at: Callable[[], None] | None = None, images: int = 0) -> None:
        self.at, self.images = at, images
        self.done: list[tuple[int, int]] = []
        self.measured: dict[int, dict[str, float]] = {}

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        self.done.append((done, total))
        if self.at is not None and done >= self.images:
            at, self.at = self.at, None
            at()

    def metrics(self, values, step: int) -> None:
        self.measured[step] = dict(values)


@pytest.fixture
def context(
    toy_config: Callable[..., Config], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], StageContext]:
    """Makes the stage's context, in a new folder, on networks with random weights."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "project-cache"))
    settings = toy_config(
        data=DATA, projection={"train_samples": 20, "test_samples": 10, "steps": 40, "batch_size": 2}
    ).model_dump()
    for attribute in settings["attributes"]:
        attribute["auxiliary"]["width"] = 8
    config = Config.model_validate(settings)
    inputs = untrained_inputs(config, tmp_path / "inputs")
    count = iter(range(100))

    def make() -> StageContext:
        folder = tmp_path / f"project-{next(count)}"
        folder.mkdir()
        return StageContext(config, folder, inputs, torch.device("cpu"), Heard())

    return make


def check_equal(one: Path, other: Path) -> None:
    """Byte by byte, and nothing else left."""
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert not (other / "shards").exists()


class Watched(projection.Projecting):
    """Leaves its process id beside the shards before it begins one."""

    def __call__(self, batch: Batch) -> Batch:
        (self._folder.parent / PIDS).mkdir(exist_ok=True)
        (self._folder.parent / PIDS / str(os.getpid())).touch()
        return super().__call__(batch)


class Deadly(projection.Projecting):
    """Ends its process at the second shard, every time."""

    def __call__(self, batch: Batch) -> Batch:
        if batch["shard"][0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


class Poisoned(projection.Projecting):
    """Finds a value that is not a number in one row."""

    row = 0

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        projecting.open_prepared = with_poison(projecting.open_prepared, self.row)


def with_poison(sound: Callable[[Config, Path], SampleSet], row: int) -> Callable[[Config, Path], SampleSet]:
    def opened(config: Config, prepared: Path) -> SampleSet:
        samples = sound(config, prepared)
        samples.values["angle_degrees"][row] = float("nan")
        return samples

    return opened


def test_a_pool_writes_what_one_process_writes(local_ray: None, context: Callable[[], StageContext]) -> None:
    """Byte by byte; the pace is recorded; a finished stage starts no pool."""
    alone, heard = context(), Heard()
    fanned = replace(context(), recorder=heard)
    metrics = project.run(alone)
    assert project_stage(fanned, actors=(1, 2)) == metrics
    check_equal(alone.folder, fanned.folder)
    assert [total for _, total in heard.done] == [IMAGES] * (SHARDS + 1)
    assert [done for done, _ in heard.done] == sorted({done for done, _ in heard.done})
    assert heard.done[-1] == (IMAGES, IMAGES)
    assert heard.measured[IMAGES]["images_per_second"] > 0
    assert heard.measured[IMAGES]["seconds_left"] == 0
    again = Heard()
    assert project_stage(replace(fanned, recorder=again), actors=(1, 1)) == metrics
    assert again.done == []


def test_a_pool_that_is_cut_off_and_then_loses_an_actor_ends_the_same(
    local_ray: None, context: Callable[[], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, then SIGKILL of an actor while it projects: nothing lost, nothing twice, the same numbers."""
    alone, cut = context(), context()
    metrics = project.run(alone)

    with pytest.raises(KeyboardInterrupt):
        project_stage(replace(cut, recorder=Heard(at=lambda: signal.raise_signal(signal.SIGINT), images=4)), actors=(1, 1))
    finished = {path.name: path.stat().st_mtime_ns for path in (cut.folder / "shards").glob("*.parquet")}
    assert 2 <= len(finished) < SHARDS - 2
    give_up = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 4:  # the pool is gone, although its work was not done
        assert time.monotonic() < give_up
        time.sleep(0.2)

    def kill() -> None:
        (pid,) = os.listdir(cut.folder / PIDS)
        os.kill(int(pid), signal.SIGKILL)
        now = {path.name: path.stat().st_mtime_ns for path in (cut.folder / "shards").glob("*.parquet")}
        assert finished.items() <= now.items()  # not projected again

    monkeypatch.setattr(projection, "Projecting", Watched)
    heard = Heard(at=kill, images=2 * len(finished) + 1)  # with the first shard of this attempt
    assert project_stage(replace(cut, recorder=heard), actors=(1, 1)) == metrics
    assert len(os.listdir(cut.folder / PIDS)) == 2  # killed, and started again
    assert heard.done[-1] == (IMAGES, IMAGES)
    check_equal(alone.folder, cut.folder)
    ids = pq.read_table(cut.folder / "projections.parquet")["sample_id"].to_pylist()
    assert len(ids) == len(set(ids)) == IMAGES


def test_a_poisoned_sample_is_quarantined_in_an_actor_as_in_one_process(
    local_ray: None, context: Callable[[], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, fanned = context(), context()
    row = int(plan_shards(alone.config, alone.inputs["prepare"])[0].rows[0])
    monkeypatch.setattr(Poisoned, "row", row)
    monkeypatch.setattr(projection, "Projecting", Poisoned)
    with monkeypatch.context() as patch:
        patch.setattr(projecting, "open_prepared", with_poison(projecting.open_prepared, row))
        metrics = project.run(alone)
    assert project_stage(fanned, actors=(1, 1)) == metrics
    assert metrics["quarantined"] == 1
    check_equal(alone.folder, fanned.folder)
    (record,) = pq.read_table(fanned.folder / "quarantined.parquet").to_pylist()
    assert (record["sample_id"], record["reason"]) == (row, "angle_degrees is not finite")


@pytest.mark.disk("64k")
def test_a_disk_that_is_full_for_an_actor_is_one_message_and_keeps_finished_shards(
    local_ray: None, context: Callable[[], StageContext], small_disk: Path
) -> None:
    """What is missing may then be projected in another way."""
    alone, cut = context(), replace(context(), folder=small_disk)
    metrics = project.run(alone)
    (small_disk / "other").write_bytes(bytes(30_000))
    with pytest.raises(UserError, match=r"disk is full at .*/shards/\d+\..*; finished work is kept; free some space"):
        project_stage(cut, actors=(1, 1))
    kept = {path.name: path.stat().st_mtime_ns for path in (small_disk / "shards").glob("*.parquet")}
    assert 0 < len(kept) < SHARDS
    assert not list((small_disk / "shards").glob("*.tmp"))
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert project.run(cut) == metrics
    check_equal(alone.folder, small_disk)


def test_weights_that_an_actor_cannot_read_are_one_message(local_ray: None, context: Callable[[], StageContext]) -> None:
    here = context()
    path = here.inputs["gan"] / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=str(path)):
        project_stage(here, actors=(1, 1))


def test_a_shard_that_ends_its_process_every_time_is_given_up(
    local_ray: None, context: Callable[[], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would begin it again for ever."""
    here = context()
    monkeypatch.setattr(projection, "Projecting", Deadly)
    monkeypatch.setattr(projection, "DEATHS", 1)
    with pytest.raises(UserError, match="ended 2 times over the same shard; finished shards are kept"):
        project_stage(here, actors=(1, 1))
    assert (here.folder / "shards" / "00000.parquet").exists()


@pytest.mark.parametrize("actors", [(0, 1), (2, 1)])
def test_a_pool_needs_a_size(actors: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="expected at least one"):
        projection.ActorPool(actors)
