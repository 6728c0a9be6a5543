"""What more scans and more machines would cost; `normscape.benchmark.scaling` prints it.

A model of a few multiplications on measured seconds, for experiments on brains. A worker is a GPU, or a machine of as many cores
as were measured. With n workers:

- training: a fixed number of steps with a fixed global batch, shared out among the m workers of the n that can share it;
  a step takes t (f + (1 - f) / m), where f is the share of it that does not shrink, and one ring all-reduce of its gradients,
  2 (m - 1) / m bytes a byte (Patarasuk and Yuan 2009). It does not depend on the number of scans;
- projection: scans x patches a scan x seconds a patch x (1 + overhead) / n, after a start: actors share nothing;
- preprocessing: scans x core seconds a scan x (1 + overhead) / cores, on the cores beside the workers;
- storage: prepared volumes, and a row of the table and two images for each projected patch, uncompressed.

Only the generator's training is in it: auxiliary networks, controllers, scoring and stripping are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from normscape.benchmark.brain_cases import SCORE_SCAN
from normscape.benchmark.projection_cases import WHOLE
from normscape.benchmark.training_cases import AVERAGE_STEP, WARM_UP_STEP
from normscape.errors import UserError

HOUR = 3600.0
STAGES = ("training", "projection", "preprocessing")


@dataclass(frozen=True)
class Costs:
    """What an experiment was measured to cost on one kind of device; None where it was not.

    Attributes:
        config: name of the configuration.
        device: what it was measured on.
        gpu: whether that is a GPU.
        cores: threads that were measured, which a worker without a GPU has.
        steps, warmup_steps: of the training; warm-up steps are part of the steps.
        batch_columns: numbers of workers that divide it can share a step.
        generator_bytes, discriminator_bytes: gradients; a warm-up step has those of the generator alone.
        patches_a_scan: of the grid over a brain.
        prepared_bytes: of a scan.
        projected_bytes: of a patch.
        step_seconds: a training step with its share of the regularisers.
        warmup_step_seconds: a warm-up step.
        patch_seconds: a whole projection of one patch, in a batch.
        prepare_core_seconds: of one core, to preprocess a scan.
    """

    config: str
    device: str
    gpu: bool
    cores: int
    steps: float
    warmup_steps: float
    batch_columns: float
    generator_bytes: float
    discriminator_bytes: float
    patches_a_scan: float
    prepared_bytes: float
    projected_bytes: float
    step_seconds: float | None = None
    warmup_step_seconds: float | None = None
    patch_seconds: float | None = None
    prepare_core_seconds: float | None = None


MEASURED = tuple(f.name for f in fields(Costs) if f.name.endswith("_seconds"))


@dataclass(frozen=True)
class Assumptions:
    """What no benchmark of one machine can measure."""

    bandwidth_gb: float = 10.0
    """Gigabytes a second that a worker sends in an all-reduce."""
    fixed_share: float = 0.1
    """Share of a training step that each worker has to do whatever its share of the batch: optimisers, starting of kernels."""
    overhead: float = 0.05
    """What a task or actor of Ray takes longer than a bare loop."""
    start_seconds: float = 30.0
    """Until actors project."""
    cores_a_gpu: int = 8
    """CPU cores beside each GPU, which preprocess."""
    gpu_price: float | None = None
    """Of a GPU, an hour, in any currency."""
    core_price: float | None = None
    """Of a CPU core, an hour."""


@dataclass(frozen=True)
class Prediction:
    """What a number of workers makes of a number of scans.

    Attributes:
        scans, workers: asked for.
        training_workers: of them, those that can share a step.
        seconds: stage to seconds; None where something was not measured.
        prepared_bytes, projected_bytes: storage.
        price: of all stages together; None without prices.
    """

    scans: int
    workers: int
    training_workers: int
    seconds: Mapping[str, float | None]
    prepared_bytes: float
    projected_bytes: float
    price: float | None

    @property
    def total(self) -> float | None:
        """Seconds of the stages one after the other; None where one is not known."""
        known = [value for value in self.seconds.values() if value is not None]
        return sum(known) if len(known) == len(self.seconds) else None

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest of those that are known; empty when none is."""
        known = {name: value for name, value in self.seconds.items() if value is not None}
        return max(known, key=lambda name: known[name]) if known else ""


def sharing(costs: Costs, workers: int) -> int:
    """The most of these workers that can share a training step evenly."""
    return next(n for n in range(min(workers, int(costs.batch_columns)), 0, -1) if int(costs.batch_columns) % n == 0)


def all_reduce_seconds(size_bytes: float, workers: int, bandwidth_gb: float) -> float:
    """Time of a ring all-reduce that is bound by bandwidth."""
    return 2 * (workers - 1) / workers * size_bytes / (bandwidth_gb * 1e9)


def training_seconds(costs: Costs, workers: int, given: Assumptions) -> float | None:
    """The whole training; None where its steps were not measured."""
    together = sharing(costs, workers)
    gradients = costs.generator_bytes + costs.discriminator_bytes
    phases = (
        (costs.steps - costs.warmup_steps, costs.step_seconds, gradients),
        (costs.warmup_steps, costs.warmup_step_seconds, costs.generator_bytes),
    )
    total = 0.0
    for steps, seconds, size_bytes in phases:
        if not steps:
            continue
        if seconds is None:
            return None
        share = given.fixed_share + (1 - given.fixed_share) / together
        total += steps * (seconds * share + all_reduce_seconds(size_bytes, together, given.bandwidth_gb))
    return total


def projection_seconds(costs: Costs, scans: int, workers: int, given: Assumptions) -> float | None:
    """All patches of all scans; None where a patch was not measured."""
    if costs.patch_seconds is None:
        return None
    work = scans * costs.patches_a_scan * costs.patch_seconds * (1 + given.overhead)
    return given.start_seconds + work / workers


def preprocessing_seconds(costs: Costs, scans: int, cores: int, given: Assumptions) -> float | None:
    """All scans, without stripping; None where a scan was not measured."""
    if costs.prepare_core_seconds is None:
        return None
    return scans * costs.prepare_core_seconds * (1 + given.overhead) / cores


def predict(costs: Costs, scans: int, workers: int, given: Assumptions) -> Prediction:
    """All stages for so many scans on so many workers."""
    cores_each = given.cores_a_gpu if costs.gpu else costs.cores
    cores, together = workers * cores_each, sharing(costs, workers)
    seconds = {
        "training": training_seconds(costs, workers, given),
        "projection": projection_seconds(costs, scans, workers, given),
        "preprocessing": preprocessing_seconds(costs, scans, cores, given),
    }
    core_price = given.core_price
    worker_price = given.gpu_price if costs.gpu else None if core_price is None else core_price * costs.cores
    price = None
    if worker_price is not None and core_price is not None:
        prices = (worker_price * together, worker_price * workers, core_price * cores)
        parts = [None if time is None else time / HOUR * each for time, each in zip(seconds.values(), prices, strict=True)]
        price = None if None in parts else sum(part for part in parts if part is not None)
    stored = scans * costs.prepared_bytes, scans * costs.patches_a_scan * costs.projected_bytes
    return Prediction(scans, workers, together, seconds, *stored, price)


def read_costs(results: Mapping[str, Any], measured: Mapping[str, float] | None = None) -> list[Costs]:
    """The costs of each experiment on brains in the benchmark's JSON.

    Args:
        results: what `benchmark.json` holds.
        measured: seconds that take the place of those in the JSON, by name in `MEASURED`.

    Raises:
        UserError: the JSON holds no such experiment.
    """
    machine = results.get("machine", {})
    found = []
    for config, facts in results.get("facts", {}).items():
        if "patches_a_scan" not in facts:
            continue
        rows = [row for row in results["rows"] if row["config"] == config]
        values: dict[str, Any] = {f.name: facts[f.name] for f in fields(Costs) if f.name in facts}
        values |= {
            "step_seconds": _seconds(rows, AVERAGE_STEP, "training step (D + G)"),
            "warmup_step_seconds": _seconds(rows, WARM_UP_STEP),
            "patch_seconds": _seconds(rows, WHOLE, SCORE_SCAN, of_image=True),
            "projected_bytes": facts["image_bytes"] + facts.get("row_bytes", 0.0),
            **(measured or {}),
        }
        gpu = "cuda" in machine
        found.append(Costs(config=config, device=str(machine["device"]), gpu=gpu, cores=int(machine["threads"]), **values))
    if not found:
        raise UserError("no experiment on brains in it: run the benchmark with configs/brain/cpu.yaml, or another of brains")
    return found


def _seconds(rows: Sequence[Mapping[str, Any]], *cases: str, of_image: bool = False) -> float | None:
    """Median time of the first of these cases that was measured; None when none was."""
    for case in cases:
        for row in rows:
            if row["case"].startswith(case):
                return float(row["seconds_per_image"] if of_image else row["timing"]["median"])
    return None


def read_files(paths: Sequence[Path], measured: Mapping[str, float] | None = None) -> list[Costs]:
    """Costs from several runs of the benchmark; preprocessing, always the CPU's, is taken from another run where one has none.

    Raises:
        UserError: a file cannot be read, or holds no experiment on brains.
    """
    found: list[Costs] = []
    for path in paths:
        try:
            found += read_costs(read_json(path), measured)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not written by this version of the benchmark ({error!r})") from error
    known = {costs.config: costs.prepare_core_seconds for costs in found if costs.prepare_core_seconds is not None}
    return [
        replace(costs, prepare_core_seconds=known.get(costs.config)) if costs.prepare_core_seconds is None else costs
        for costs in found
    ]


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        UserError: it is not readable JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from error


@dataclass(frozen=True)
class Check:
    """A number of actors, their predicted and measured images a second."""

    actors: int
    predicted: float
    measured: float


def check_actors(measured: Mapping[str, float], given: Assumptions) -> list[Check]:
    """The model beside what `python -m normscape.distributed.projection_benchmark scaling` measured.

    Args:
        measured: what that printed.
        given: whose overhead is checked.

    Raises:
        UserError: it is something else.
    """
    end = "_actors_images_per_second"
    pools = {int(name.removesuffix(end)): value for name, value in measured.items() if name.endswith(end)}
    if "bare_images_per_second" not in measured or not pools:
        raise UserError("expected what `python -m normscape.distributed.projection_benchmark scaling CONFIG` prints")
    bare = measured["bare_images_per_second"]
    return [Check(n, n * bare / (1 + given.overhead), value) for n, value in sorted(pools.items())]
