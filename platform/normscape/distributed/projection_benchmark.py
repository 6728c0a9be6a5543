"""What a pool of actors gains and costs, with random weights: `python -m normscape.distributed.projection_benchmark --help`.

- scaling: images per second of two actors with one thread each against one (needs two free cores to mean anything);
- overhead: seconds that Ray adds to the bare loop, to begin with and for every shard, as a share of ten minutes;
- memory: the driver's peak memory for a thousand and for a hundred thousand tiny images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.configio import load_config
from normscape.distributed.cluster import connect
from normscape.distributed.projection import ActorPool, project_stage
from normscape.errors import UserError
from normscape.stages import project
from normscape.stages.core import StageContext
from normscape.stages.shards import plan_shards
from normscape.training.recorder import SilentRecorder

LONG_SECONDS = 600.0
"""The projection of which Ray's cost is a share."""
MEMORY_SAMPLES = (1_000, 100_000)
TINY: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "image_size": 8,
    "data": {"source": "rc49", "train_subjects": 4, "test_subjects": 2},
    "attributes": [
        {
            "name": name,
            "kind": kind,
            "latent_dim": 4,
            "output_dim": width,
            "distance": distance,
            "tau_same": 0.05,
            "tau_different": 0.3,
            "auxiliary": {"width": 4, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False},
            **more,
        }
        for name, kind, width, distance, more in (
            ("identity", "embedding", 4, "euclidean", {}),
            ("angle", "value", 1, "l1", {"column": "angle_degrees", "value_max": 90.0, "unit": "degrees"}),
        )
    ],
    "other_dim": 4,
    "generator": {"channels": [4, 4], "mapping_layers": 2},
    "discriminator": {"channels": [4, 4]},
    "gan": {"steps": 1, "batch_size": 8},
    "latents": {"samples": 64},
}


@dataclass(frozen=True)
class Pace:
    """How one way of projecting went.

    Attributes:
        first: seconds until the first shard was there; start and loading included.
        seconds: seconds until the last one.
        shards: their number.
        images: in all.
        first_images: in the first shard that was there.
        working: seconds within the shards, summed, as those who projected them saw it.
        first_working: of these, those of the first shard.
    """

    first: float
    seconds: float
    shards: int
    images: int
    first_images: int
    working: float
    first_working: float

    @property
    def images_per_second(self) -> float:
        """After the first shard: without start and loading. The ends of the pool blur it by one shard at the most."""
        return (self.images - self.first_images) / (self.seconds - self.first)

    @property
    def starting(self) -> float:
        """Seconds before the first shard was begun."""
        return self.first - self.first_working

    @property
    def waiting(self) -> float:
        """Seconds between two shards; of a single process or actor."""
        return (self.seconds - self.first - (self.working - self.first_working)) / (self.shards - 1)


def measure(config: Config, inputs: Mapping[str, Path], workers: project.Workers) -> Pace:
    """Project all shards of an experiment into a folder of no further use."""
    shards = plan_shards(config, inputs["prepare"])
    total = sum(len(shard) for shard in shards)
    if len(shards) < 2:
        raise UserError(f"{total} images in batches of {config.projection.batch_size}: expected at least two batches")
    marks, results = [], []
    with tempfile.TemporaryDirectory(prefix="normscape-projection-") as folder:
        context = StageContext(config, Path(folder), inputs, torch.device("cpu"), SilentRecorder())
        began = time.perf_counter()
        with closing(workers(context, project.Work(shards, Path(folder), 0, total))) as stream:
            for result in stream:
                marks.append(time.perf_counter() - began)
                results.append(result)
    working = sum(result.seconds for result in results)
    return Pace(marks[0], marks[-1], len(results), total, results[0].images, working, results[0].seconds)


def side_by_side(config: Config, inputs: Mapping[str, Path], count: int) -> float:
    """Images per second of so many bare loops at once, a process of one thread each and all shards in each, added up.

    What the cores themselves give when all are busy: they share caches and memory, and may be two halves of one.
    """
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        return sum(pool.starmap(_bare_pace, [(config, inputs)] * count, chunksize=1))


def _bare_pace(config: Config, inputs: Mapping[str, Path]) -> float:
    torch.set_num_threads(1)
    return measure(config, inputs, project.in_this_process).images_per_second


def projection_scaling(config: Config, folder: Path, *, actors: Sequence[int] = (1, 2)) -> dict[str, float]:
    """Pace of the bare loop and of pools, and what Ray costs.

    Args:
        config: the experiment; with at least ten shards an actor, of a second or more, the numbers mean something.
        folder: receives the untrained networks.
        actors: sizes of the pools; the first one is compared with the bare loop.

    Returns:
        - `bare_images_per_second`, `<n>_actors_images_per_second`, and `<n>_actors_speedup` over the first pool;
        - `<n>_bare_speedup`: of as many bare loops side by side over one, the most that a pool could reach on these cores;
        - `start_seconds`: until a pool's first shard begins, beyond what loading takes in the bare loop;
        - `shard_seconds`: between two shards; `slowdown`: a shard's time in an actor against the bare loop;
        - `cost_share`: what start and waiting add to ten minutes of such shards.

    Raises:
        UserError: there are fewer than two shards.
    """
    torch.set_num_threads(1)  # as in an actor
    inputs = untrained_inputs(config, folder)
    bare = measure(config, inputs, project.in_this_process)
    pools = {n: measure(config, inputs, ActorPool((n, n))) for n in actors}
    one = pools[actors[0]]
    start = max(one.starting - bare.starting, 0.0)
    shard = max(one.waiting - bare.waiting, 0.0)
    after = (bare.working - bare.first_working) / (bare.shards - 1)
    in_actor = (one.working - one.first_working) / (one.shards - 1)
    result = {"bare_images_per_second": bare.images_per_second}
    for n, pace in pools.items():
        result[f"{n}_actors_images_per_second"] = pace.images_per_second
        result[f"{n}_actors_speedup"] = pace.images_per_second / one.images_per_second
        if n > 1:
            result[f"{n}_bare_speedup"] = side_by_side(config, inputs, n) / bare.images_per_second
    cost = (start + shard * LONG_SECONDS / after) / LONG_SECONDS
    return result | {"start_seconds": start, "shard_seconds": shard, "slowdown": in_actor / after, "cost_share": cost}


def tiny_experiment(samples: int, folder: Path) -> Config:
    """An experiment on so many images of noise, half of them of test subjects, with one step of projection; writes the images."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = TINY | {
        "data": TINY["data"] | {"path": str(_synthetic_rc49(folder / "images.h5", samples))},
        "projection": {"train_samples": samples // 2, "test_samples": samples // 2, "steps": 1, "batch_size": 500},
    }
    return Config.model_validate(settings)


def driver_memory(samples: int, folder: Path) -> int:
    """Peak resident memory in bytes of a fresh process that drives the whole stage for so many images of side 8, one step each.

    Args:
        samples: images in all, half of them of test subjects.
        folder: receives the images, the untrained networks and the projections.
    """
    config = tiny_experiment(samples, folder)
    untrained_inputs(config, folder / "inputs")
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "normscape.distributed.projection_benchmark", "drive", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _synthetic_rc49(path: Path, samples: int) -> Path:
    """Noise in the format of RC-49: six chairs of which four are for training, with enough images for half of the samples."""
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        count = samples * 2  # enough for each split, whichever chairs it gets
        file["images"] = random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        file["labels"] = random.uniform(0.0, 89.0, count)
        file["types"] = np.arange(count) % 6
        file["indx_train"] = np.arange(count)
    return path


def _drive(folder: Path) -> None:
    """Run the stage in this process with one actor, and print the peak of its memory."""
    config = Config.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    inputs = {path.name: path for path in (folder / "inputs").iterdir()}
    results = folder / "project"
    results.mkdir()
    with connect("local", cpus=2, gpus=0):
        project_stage(StageContext(config, results, inputs, torch.device("cpu"), SilentRecorder()), actors=(1, 1))
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main() -> int:
    """Read the arguments, measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    scaling = what.add_parser("scaling", help="pools against the bare loop: throughput and Ray's cost")
    scaling.add_argument("config", type=Path)
    scaling.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    scaling.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    memory = what.add_parser("memory", help="the driver's peak memory by number of samples")
    memory.add_argument("--samples", type=int, nargs="+", default=list(MEMORY_SAMPLES))
    drive = what.add_parser("drive", help="(used by memory)")
    drive.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        if given.what == "drive":
            _drive(given.folder)
            return 0
        with tempfile.TemporaryDirectory(prefix="normscape-benchmark-") as text:
            if given.what == "memory":
                values: dict[str, float] = {str(n): driver_memory(n, Path(text) / str(n)) / 2**20 for n in given.samples}
                found: dict[str, Any] = {"peak_mib": values, "growth": max(values.values()) / min(values.values()) - 1}
            else:
                config = load_config(given.config, given.overrides)
                with connect("local", cpus=max(given.actors) + 1, gpus=0):
                    found = projection_scaling(config, Path(text), actors=given.actors)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
