"""Projection by a pool of Ray actors: shards in, written shards out, as many at a time as there are actors.

A shard is one item of a Ray Data set. An actor loads networks and samples once, projects shard after shard and writes each one
under its final name when it is whole; only a few numbers come back to the driver, whose memory stays as it is for any number of
samples. An actor that dies is started again and its shard is done again, unless it was written already. All processes must see
the folders of the run and of the data: one machine, or shared storage.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.util.annotations import RayDeprecationWarning

from normscape import errors
from normscape.config import Config
from normscape.distributed.processes import shared_environment, with_absolute_paths
from normscape.errors import UserError
from normscape.stages import project
from normscape.stages.core import StageContext
from normscape.stages.projecting import ShardProjector, ShardResult
from normscape.stages.provenance import choose_device
from normscape.stages.shards import Shard
from normscape.training.recorder import Recorder

DEATHS = 3
"""How often a shard may be begun again because its actor died: of a machine that went, or of too little memory."""
METRICS_SECONDS = 5.0
"""Between two records of the throughput."""

Batch = dict[str, NDArray[Any]]


def project_stage(context: StageContext, *, actors: tuple[int, int], gpus_per_actor: float = 0.0) -> dict[str, float]:
    """Stage `project` on a pool of actors; it writes what `normscape.stages.project.run` writes.

    Args:
        context: what the stage is given. Ray is connected already.
        actors: fewest and most actors; the same number twice for a pool of fixed size.
        gpus_per_actor: GPUs of each actor, or a share of one; 0 projects on CPUs, one thread an actor.

    Returns:
        The stage's metrics.

    Raises:
        UserError: the pool has no size, the disk is full, an input cannot be read, or a shard ends its process time after time.
    """
    return project.run_with(context, ActorPool(actors, gpus_per_actor))


@dataclass(frozen=True)
class ActorPool:
    """Workers of stage `project`; see `project_stage` for the arguments."""

    actors: tuple[int, int]
    gpus_per_actor: float = 0.0

    def __post_init__(self) -> None:
        fewest, most = self.actors
        if not 1 <= fewest <= most:
            raise UserError(f"a pool of {fewest} to {most} actors: expected at least one, and not more at least than at most")
        if self.gpus_per_actor < 0:
            raise UserError(f"gpus_per_actor {self.gpus_per_actor}: expected 0 or more")

    def __call__(self, context: StageContext, work: project.Work) -> Generator[ShardResult, None, None]:
        """Project what is missing; tells of each shard as it is finished, and records the throughput."""
        throughput = _Throughput(context.recorder, work.done, work.total)
        with _quiet_ray_data(), closing(iter(self._dataset(context, work).iter_rows())) as rows:
            try:
                for row in rows:
                    result = _result(row)
                    throughput.add(result.images)
                    yield result
            except (RayActorError, OutOfMemoryError) as error:
                raise UserError(
                    f"a process that projects was ended {DEATHS + 1} times over the same shard; finished shards are kept. "
                    "Is memory short? Lower projection.batch_size or the number of actors, and run again"
                ) from error

    def _dataset(self, context: StageContext, work: project.Work) -> ray.data.Dataset:
        items = [{"shard": s.number, "split": s.split, "rows": s.rows, "labels": s.labels} for s in work.shards]
        inputs = {name: path.resolve() for name, path in context.inputs.items()}
        fewest, most = (min(size, len(items)) for size in self.actors)
        # A pool of fixed size hands out shards one by one, so that none waits behind another at the end; one that grows needs
        # waiting shards to see that it should.
        waiting = 1 if fewest == most else 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)  # there is no newer way to set `max_task_retries` yet
            dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Projecting,
                fn_constructor_args=(with_absolute_paths(context.config), inputs, work.folder.resolve(), shared_environment()),
                batch_size=1,
                compute=ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=waiting),
                num_cpus=None if self.gpus_per_actor else 1,
                num_gpus=self.gpus_per_actor or None,
                max_task_retries=DEATHS,
            )
        dataset.context.max_errored_blocks = 0  # with more, a dead actor lets the whole set hang
        dataset.context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        return dataset


class Projecting:
    """The actor. Errors that a person can fix come back as results: Ray would wrap them in stack traces."""

    def __init__(self, config: Config, inputs: Mapping[str, Path], folder: Path, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._config, self._inputs, self._folder = config, inputs, folder
        self._projector: ShardProjector | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Project one shard: `shard`, `split`, `rows` and `labels` in; what was done, or what went wrong, out."""
        # Ray's arrays are read-only views of shared memory
        rows, labels = (np.array(batch[name][0], dtype=np.int64) for name in ("rows", "labels"))
        shard = Shard(int(batch["shard"][0]), str(batch["split"][0]), rows, labels)
        try:
            if self._projector is None:
                self._projector = ShardProjector(self._config, self._inputs, choose_device(self._config.device))
            result = self._projector.project(shard, self._folder)
            kind, message = "", ""
        except UserError as error:
            result, kind, message = ShardResult(shard.number, 0, 0, 0.0), type(error).__name__, str(error)
        values = {
            "shard": result.number,
            "images": result.images,
            "quarantined": result.quarantined,
            "seconds": result.seconds,
            "kind": kind,
            "message": message,
        }
        return {name: np.array([value]) for name, value in values.items()}


def _result(row: Mapping[str, Any]) -> ShardResult:
    """What an actor did; an error that it met is raised here."""
    if row["kind"]:
        raise getattr(errors, row["kind"], UserError)(row["message"])
    return ShardResult(int(row["shard"]), int(row["images"]), int(row["quarantined"]), float(row["seconds"]))


class _Throughput:
    """Records images per second and the time to finish, every few seconds and at the end, at the number of images done."""

    def __init__(self, recorder: Recorder, done: int, total: int) -> None:
        self._recorder, self._before, self._done, self._total = recorder, done, done, total
        self._began = time.monotonic()
        self._next = self._began + METRICS_SECONDS

    def add(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now < self._next and self._done < self._total:
            return
        self._next = now + METRICS_SECONDS
        pace = (self._done - self._before) / max(now - self._began, 1e-9)
        self._recorder.metrics({"images_per_second": pace, "seconds_left": (self._total - self._done) / pace}, self._done)


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Only warnings: our own progress says the rest."""
    wanted = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in wanted}
    for name, level in wanted.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
