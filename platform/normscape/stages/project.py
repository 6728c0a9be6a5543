"""Stage `project`: project normal and anomalous images of both splits (thesis II.B.1, III.A.3b; figure 7).

Half of each split's images carry a blot. Writes, row by row alike:

- `projections.parquet`: sample_id, subject, split, label (0 normal, 1 anomalous), the value columns in their units, randomised
  (1 where a training image is shown as another scanner might have shown it, see `normscape.datasets.randomisation`),
  `length/<sub-space>/<resolution>` (whitened length r), `residual_*`, network_log_odds (where there is a network),
  blot_radius_px (in a brain blot_radius_mm), blot_contrast (null where normal),
  steps_taken (where `projection.stop_tolerance` is above 0),
  `coordinates/<sub-space>` (whitened coordinates, resolutions one after the other);
- `inputs.npy`, `reconstructions.npy`: uint8 (N, C, *S);

and:

- `quarantined.parquet`: sample_id, subject, split, reason of the samples that could not be projected; they have no row above;
- `rotated.npy`: uint8, reconstructions of a few rows with the first value attribute moved, and `rotated.json`: rows, attribute,
  value, unit;
- `curve.parquet`, where `projection.curve_images` is above 0: residual against time, see `normscape.stages.curve`.

Work is done in shards, each written once, by this process or by any number of others; a resumed stage projects only what is
missing. Memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import to_uint8
from normscape.inversion.projector import Projector
from normscape.stages.core import StageContext
from normscape.stages.curve import draw_curve
from normscape.stages.files import discard, write_json
from normscape.stages.models import load_projector
from normscape.stages.projecting import ShardProjector, ShardResult
from normscape.stages.shards import QUARANTINE_NAME, TABLE_NAME, Shard, join_shards, plan_shards
from normscape.training.controllers import with_value

ROTATED_ROWS = 4
"""Rows of each split and label in figure 7."""
GROUPS = tuple((split, label) for split in ("train", "test") for label in (0, 1))


@dataclass(frozen=True)
class Work:
    """What is left to do."""

    shards: Sequence[Shard]
    """The missing ones."""
    folder: Path
    """Where shards are written."""
    done: int
    """Samples in the shards that are there already."""
    total: int
    """Samples in all shards."""


Workers = Callable[[StageContext, Work], Generator[ShardResult, None, None]]
"""Projects the missing shards, in any order, and tells of each one when its files are there."""


def run(context: StageContext) -> dict[str, float]:
    """Project what is missing in this process, then join the shards.

    Raises:
        DataError: the data changed, or no sample could be projected.
        UserError: the disk is full.
    """
    return run_with(context, in_this_process)


def run_with(context: StageContext, workers: Workers) -> dict[str, float]:
    """The stage, with its shards projected by `workers`; what it writes does not depend on them."""
    shards = context.folder / "shards"
    if not (context.folder / TABLE_NAME).exists():  # else cut off after joining: the shards may be gone
        _project_missing(context, workers, shards)
    metrics, rows = _survey(context.folder / TABLE_NAME)
    projector = load_projector(context.config, context.inputs, context.device)
    if context.config.value_attributes:
        _rotate(context.config, projector, rows, context.folder)
    if context.config.projection.curve_images:
        metrics |= draw_curve(context, projector)
    discard(shards)
    return metrics | {"quarantined": float(pq.read_metadata(context.folder / QUARANTINE_NAME).num_rows)}


def in_this_process(context: StageContext, work: Work) -> Generator[ShardResult, None, None]:
    """One shard after the other."""
    projector = ShardProjector(context.config, context.inputs, context.device)
    for shard in work.shards:
        yield projector.project(shard, work.folder)


def _project_missing(context: StageContext, workers: Workers, folder: Path) -> None:
    """Project the shards that are not there yet, and join all."""
    plan = plan_shards(context.config, context.inputs["prepare"])
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.tmp"):  # of a process that was killed
        left.unlink(missing_ok=True)
    missing = [shard for shard in plan if not shard.path(folder).exists()]
    total = sum(len(shard) for shard in plan)
    done = total - sum(len(shard) for shard in missing)
    context.recorder.progress(done, total, "image")
    if missing:
        with closing(workers(context, Work(missing, folder, done, total))) as results:
            for result in results:
                done += result.images
                context.recorder.progress(done, total, "image")
    join_shards([shard.path(folder) for shard in plan], context.folder)


def _survey(path: Path) -> tuple[dict[str, float], list[int]]:
    """Mean L1 residual of each split and label, and the rows of figure 7, in one pass over three columns."""
    total, count = dict.fromkeys(GROUPS, 0.0), dict.fromkeys(GROUPS, 0)
    rows: dict[tuple[str, int], list[int]] = {group: [] for group in GROUPS}
    begin = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["split", "label", "residual_l1"]):
            split = batch["split"].to_numpy(zero_copy_only=False)
            label, l1 = batch["label"].to_numpy(), batch["residual_l1"].to_numpy().astype(np.float64)
            for group in GROUPS:
                chosen = np.flatnonzero((split == group[0]) & (label == group[1]))
                total[group] += float(l1[chosen].sum())
                count[group] += len(chosen)
                rows[group] += (begin + chosen[: ROTATED_ROWS - len(rows[group])]).tolist()
            begin += len(batch)
    words = ("normal", "anomalous")
    means = {f"{s}_{words[k]}_l1": total[s, k] / count[s, k] if count[s, k] else float("nan") for s, k in GROUPS}
    return means, [row for group in GROUPS for row in rows[group]]


def _take(path: Path, rows: Sequence[int]) -> pa.Table:
    """Some rows of a table, in this order, without reading the row groups that hold none of them."""
    parts, places = [], np.empty(len(rows), dtype=np.int64)
    wanted, begin, kept = np.asarray(rows, dtype=np.int64), 0, 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            here = np.flatnonzero((wanted >= begin) & (wanted < end))
            if len(here):
                parts.append(file.read_row_group(group).take(wanted[here] - begin))
                places[here] = np.arange(kept, kept + len(here))
                kept += len(here)
            begin = end
    return pa.concat_tables(parts).take(places)


@torch.no_grad()
def _rotate(config: Config, projector: Projector, rows: Sequence[int], folder: Path) -> None:
    """Figure 7: some reconstructions with the first value attribute at a third of its range (an angle of 30 degrees)."""
    attribute = config.value_attributes[0]
    part = _take(folder / TABLE_NAME, rows)
    layers = len(projector.generator.resolutions)

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.stack(part[name].to_numpy(zero_copy_only=False))).float().to(projector.device)

    def value_of(column: str, width: int) -> Tensor:
        names = [column] if width == 1 else [f"{column}_{i}" for i in range(width)]
        return torch.stack([tensor(name) for name in names], dim=1)

    coordinates = {name: tensor(f"coordinates/{name}").reshape(len(rows), layers, -1) for name in projector.free}
    values = {a.name: value_of(a.column or "", a.output_dim) for a in config.value_attributes}
    styles = projector.styles(coordinates, projector.encode(values))
    span = attribute.value_max - attribute.value_min
    value = attribute.value_min + span / 3
    moved = torch.full_like(values[attribute.name], value)
    images = projector.generator.synthesize(with_value(projector.generator, projector.conditions[attribute.name], styles, moved))
    np.save(folder / "rotated.npy", to_uint8(images).cpu().numpy())
    described = {"rows": list(rows), "attribute": attribute.name, "value": value, "unit": attribute.unit}
    write_json(folder / "rotated.json", described)
