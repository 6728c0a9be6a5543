"""Residual against time: what a projection gains from the encoder's start. Part of stage `project`.

Normal images of subjects that no network was trained on (those for calibration, or else of test subjects; nothing is chosen by
them) are projected with several numbers of steps, from the encoder's answer and in the thesis's way, from the mean style. Each
number of steps is a run of its own, because the learning rate depends on it. All other settings are those of the experiment.
Writes `curve.parquet`, a row a run:

- start: encoder or mean; steps; batch: images at once that the time is of;
- seconds_per_image: of the encoder's start the whole projection in batches, residuals included. From the mean style one image at
  a time, as in the thesis: the steps times the seconds of a step, which are measured over a few (the fastest of three tries; the
  residuals themselves are projected in batches, which changes only the time);
- residual_l1, residual_l1_low, residual_l1_high: mean over the images, with its 95 % interval by subject (null for one subject);
- images, subjects: their numbers.

A run that is written is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import to_uint8, to_unit_range
from normscape.inversion.projector import Projector
from normscape.scoring.metrics import Array, bootstrap_by_subject
from normscape.stages.core import StageContext
from normscape.stages.prepare import open_prepared
from normscape.stages.shards import QUARANTINE_NAME, plan_shards, written_aside

CURVE_NAME = "curve.parquet"
STEPS: dict[str, tuple[int, ...]] = {"encoder": (0, 10, 25, 50, 100), "mean": (30, 100, 300, 1000)}
"""Steps of the runs from each start, as far as `projection.curve_steps` goes."""
SCHEMA = pa.schema(
    [("start", pa.string()), ("steps", pa.int64()), ("batch", pa.int64())]
    + [(name, pa.float64()) for name in ("seconds_per_image", "residual_l1", "residual_l1_low", "residual_l1_high")]
    + [("images", pa.int64()), ("subjects", pa.int64())]
)
_TIMED_STEPS = 10
_TRIES = 3
_RESAMPLES = 1000


@dataclass(frozen=True)
class Chosen:
    """The N images of the curve.

    Attributes:
        images: `(N, C, *S)` in [-1, 1].
        values: value attribute to known conditions `(N, D)`.
        masks: what counts, `(N, 1, *S)`; everything when empty.
        subjects: whose they are.
    """

    images: Tensor
    values: dict[str, Tensor]
    masks: Tensor | None
    subjects: Sequence[str]

    def batches(self, size: int) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor | None]]:
        """Images, values and masks of one batch after the other."""
        for rows in torch.arange(len(self.images)).split(size):
            masks = None if self.masks is None else self.masks[rows]
            yield self.images[rows], {name: value[rows] for name, value in self.values.items()}, masks


def draw_curve(context: StageContext, projector: Projector) -> dict[str, float]:
    """Do the runs that are missing from `curve.parquet`, and write each one as it ends.

    Args:
        context: of stage `project`, whose joined files are there.
        projector: of the experiment.

    Returns:
        `times_faster`, see `times_faster`, where it is known. Being a time, it is another number each time.

    Raises:
        UserError: the disk is full.
    """
    path, config = context.folder / CURVE_NAME, context.config
    chosen = choose(config, context.inputs, context.folder)
    if not chosen.subjects:
        return {}
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.exists() else []
    plan = planned(config.projection.curve_steps, encoder=projector.encoder is not None)
    there = {(row["start"], row["steps"]) for row in rows}
    missing = [run for run in plan if run not in there]
    if missing:  # the first use of a device or a kernel costs more
        projector.changed(start="mean", steps=1).project(*next(chosen.batches(config.projection.batch_size)))
    for start, steps in missing:
        context.recorder.progress(len(rows), len(plan), "curve run")
        stop = {} if start == "encoder" else {"stop_tolerance": 0.0}  # the thesis takes all steps
        rows.append(_run(projector.changed(start=start, steps=steps, **stop), chosen, config.projection.batch_size))
        with written_aside(path) as aside:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)
    context.recorder.progress(len(plan), len(plan), "curve run")
    factor = times_faster(pq.read_table(path).to_pylist())
    return {} if factor is None else {"times_faster": factor}


def planned(most: int, *, encoder: bool) -> list[tuple[str, int]]:
    """Start and steps of every run; from the mean style the last one has all steps that are allowed.

    Args:
        most: steps of a run.
        encoder: whether there is one to start from.
    """
    runs = [("encoder", steps) for steps in STEPS["encoder"] if steps <= most and encoder]
    return [*runs, *(("mean", steps) for steps in STEPS["mean"] if steps < most), ("mean", most)]


def times_faster(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """How many times as many images an hour the encoder's start gives, at no higher a residual than the thesis's way in full.

    The thesis's way in full is the longest run from the mean style, one image at a time; against it stands the fastest run from
    the encoder's answer whose mean residual is as low.

    Args:
        rows: of `curve.parquet`.

    Returns:
        The factor; None where no run from the encoder's answer gets as far.
    """
    full = max((row for row in rows if row["start"] == "mean"), key=lambda row: row["steps"], default=None)
    if full is None:
        return None
    reached = [r["seconds_per_image"] for r in rows if r["start"] == "encoder" and r["residual_l1"] <= full["residual_l1"]]
    return float(full["seconds_per_image"] / min(reached)) if reached else None


def choose(config: Config, inputs: Mapping[str, Path], folder: Path) -> Chosen:
    """The first normal images of subjects that no network was trained on, in the order in which they were projected.

    Args:
        config: the experiment.
        inputs: the finished folders of the earlier stages, by name.
        folder: of stage `project`, with the list of samples that could not be projected.
    """
    split = "calibration" if config.projection.calibration_samples else "test"
    samples = open_prepared(config, inputs["prepare"])
    bad = pq.read_table(folder / QUARANTINE_NAME, columns=["sample_id"])["sample_id"].to_numpy()
    normal = [shard.rows[shard.labels == 0] for shard in plan_shards(config, inputs["prepare"]) if shard.split == split]
    rows = np.concatenate(normal)
    rows = rows[~np.isin(samples.sample_id.numpy()[rows], bad)][: config.projection.curve_images]
    index = torch.from_numpy(rows)
    images = to_unit_range(to_uint8(samples.batch(index)))  # 8 bits, like all that is projected
    values = {a.name: samples.values[a.column or ""][index] for a in config.value_attributes}
    return Chosen(images, values, samples.masks(index), [samples.subjects[s] for s in samples.subject[index].tolist()])


def _run(projector: Projector, chosen: Chosen, batch_size: int) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    parts = [projector.project(*batch).residuals["residual_l1"].cpu() for batch in chosen.batches(batch_size)]
    seconds, count = (time.perf_counter() - began) / len(chosen.images), len(chosen.images)
    settings, batch = projector.settings, min(batch_size, count)
    if settings.start == "mean":
        seconds, batch = settings.steps * seconds_per_step(projector, chosen), 1
    l1 = torch.cat(parts).double().numpy()
    interval = bootstrap_by_subject(_mean, np.zeros(count, np.int64), l1, chosen.subjects, n=_RESAMPLES, seed=0)
    return {
        "start": settings.start,
        "steps": settings.steps,
        "batch": batch,
        "seconds_per_image": seconds,
        "residual_l1": interval.value,
        "residual_l1_low": interval.low if np.isfinite(interval.low) else None,
        "residual_l1_high": interval.high if np.isfinite(interval.high) else None,
        "images": count,
        "subjects": len(set(chosen.subjects)),
    }


def seconds_per_step(projector: Projector, chosen: Chosen) -> float:
    """Of one image alone: the fastest of a few short searches, which is what an idle machine would take."""
    short = projector.changed(steps=_TIMED_STEPS)
    goal = short.goal(*next(chosen.batches(1)))
    tries = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        _, taken = short.optimise(goal)
        taken.cpu()  # waits for the device
        tries.append(time.perf_counter() - began)
    return min(tries) / _TIMED_STEPS


def _mean(_: NDArray[np.int64], value: Array, weight: Array) -> Array:
    """Weighted means, (R,)."""
    return (weight @ value) / weight.sum(axis=1)
