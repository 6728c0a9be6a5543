"""Stage `project`: project normal and anomalous images of both splits (thesis II.B.1, III.A.3b; figure 7).

Half of each split's images carry a blot. Writes, row by row alike:

- `projections.parquet`: sample_id, subject, split, label (0 normal, 1 anomalous), the value columns in their units,
  `length/<sub-space>/<resolution>` (whitened length r), `residual_*`, blot_radius_px, blot_contrast (null where normal),
  `coordinates/<sub-space>` (whitened coordinates, resolutions one after the other);
- `inputs.npy`, `reconstructions.npy`: uint8 (N, C, *S);
- `rotated.npy`: uint8, reconstructions of a few rows with the first value attribute moved, and `rotated.json`: rows, attribute,
  value, unit.

Work is done in shards, each written once; a resumed stage projects only what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.blots import draw_blots
from normscape.datasets.samples import SampleSet, to_uint8, to_unit_range
from normscape.inversion.projector import Projection, Projector
from normscape.stages.core import StageContext
from normscape.stages.files import discard, write_json
from normscape.stages.models import load_projector
from normscape.stages.prepare import open_samples
from normscape.training.controllers import with_value
from normscape.training.seeding import seeded

TABLE_NAME = "projections.parquet"
ROTATED_ROWS = 4
"""Rows of each split and label in figure 7."""


def run(context: StageContext) -> dict[str, float]:
    """Project what is missing, then join the shards."""
    config, device = context.config, context.device
    train, test = open_samples(context)
    projector = load_projector(config, context.inputs, device)
    shards = context.folder / "shards"
    if not (context.folder / TABLE_NAME).exists():  # else cut off after joining: the shards may be gone
        _project_missing(context, projector, {"train": train, "test": test}, shards)
    table = pq.read_table(context.folder / TABLE_NAME)
    _rotate(config, projector, table, context.folder)
    discard(shards)
    return _summary(table)


def _project_missing(context: StageContext, projector: Projector, splits: Mapping[str, SampleSet], shards: Path) -> None:
    """Project the shards that are not there yet, and join them."""
    config = context.config
    counts = {"train": config.projection.train_samples, "test": config.projection.test_samples}
    work = [
        (split, samples, index, labels)
        for split, samples in splits.items()
        for index, labels in _batches(config, samples, split, counts[split])
    ]
    shards.mkdir(exist_ok=True)
    total, done = sum(len(index) for _, _, index, _ in work), 0
    for number, (split, samples, index, labels) in enumerate(work):
        path = shards / f"{number:05d}.parquet"
        if not path.exists():
            _project_shard(config, projector, samples, index, labels, split=split, path=path)
        done += len(index)
        context.recorder.progress(done, total, "image")
    _join(shards, len(work), context.folder)


def _batches(config: Config, samples: SampleSet, split: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Row indices and labels of the split's batches: distinct random samples, every second one anomalous."""
    chosen = torch.randperm(len(samples), generator=seeded(config.seed, "project", split))[:count]
    labels = torch.arange(len(chosen)) % 2
    size = config.projection.batch_size
    return list(zip(chosen.split(size), labels.split(size), strict=True))


def _project_shard(
    config: Config, projector: Projector, samples: SampleSet, index: Tensor, labels: Tensor, *, split: str, path: Path
) -> None:
    images = samples.batch(index)
    ids = samples.sample_id[index]
    anomalous = labels.nonzero().squeeze(1)
    blots = draw_blots(images[anomalous], config.seed, ids[anomalous])
    images[anomalous] = blots.images
    # what is projected is what is stored: 8-bit images
    stored = to_uint8(images)
    images = to_unit_range(stored)
    values = {a.name: samples.values[a.column or ""][index] for a in config.value_attributes}
    projection = projector.project(images, values)
    radius, contrast = (torch.full((len(index),), float("nan"), dtype=torch.float64) for _ in range(2))
    radius[anomalous], contrast[anomalous] = blots.radius_px.double(), blots.contrast.double()
    names = [samples.subjects[s] for s in samples.subject[index].tolist()]
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array(ids.numpy()),
        "subject": pa.array(names),
        "split": pa.array([split] * len(index)),
        "label": pa.array(labels.numpy()),
    }
    for attribute in config.value_attributes:
        value = values[attribute.name].numpy()
        column = attribute.column or ""
        if value.shape[1] == 1:
            columns[column] = pa.array(value[:, 0])
        else:
            columns |= {f"{column}_{i}": pa.array(value[:, i]) for i in range(value.shape[1])}
    columns |= _projection_columns(projector, projection)
    columns["blot_radius_px"] = pa.array(radius.numpy(), from_pandas=True)
    columns["blot_contrast"] = pa.array(contrast.numpy(), from_pandas=True)
    np.save(path.with_suffix(".inputs.npy"), stored.numpy())
    np.save(path.with_suffix(".reconstructions.npy"), to_uint8(projection.images).cpu().numpy())
    aside = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), aside)
    os.replace(aside, path)


def _projection_columns(projector: Projector, projection: Projection) -> dict[str, pa.Array]:
    columns = {}
    for name, lengths in projection.lengths().items():
        for resolution, r in zip(projector.generator.resolutions, lengths.cpu().numpy().T, strict=True):
            columns[f"length/{name}/{resolution}"] = pa.array(r)
    columns |= {name: pa.array(value.cpu().numpy()) for name, value in projection.residuals.items()}
    for name, u in projection.coordinates.items():
        flat = u.flatten(1).cpu().numpy()
        columns[f"coordinates/{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    return columns


def _join(shards: Path, count: int, folder: Path) -> None:
    """Write the joined files; the table comes last and appears whole, so that it stands for all of them."""
    paths = [shards / f"{number:05d}.parquet" for number in range(count)]
    for name in ("inputs", "reconstructions"):
        np.save(folder / f"{name}.npy", np.concatenate([np.load(path.with_suffix(f".{name}.npy")) for path in paths]))
    aside = shards / "joined.tmp"
    pq.write_table(pa.concat_tables([pq.read_table(path) for path in paths]), aside)
    os.replace(aside, folder / TABLE_NAME)


@torch.no_grad()
def _rotate(config: Config, projector: Projector, table: pa.Table, folder: Path) -> None:
    """Figure 7: some reconstructions with the first value attribute at a third of its range (an angle of 30 degrees)."""
    if not config.value_attributes:
        return
    attribute = config.value_attributes[0]
    split, label = table["split"].to_numpy(zero_copy_only=False), table["label"].to_numpy()
    rows = np.concatenate(
        [np.flatnonzero((split == s) & (label == kind))[:ROTATED_ROWS] for s in ("train", "test") for kind in (0, 1)]
    )
    part = table.take(rows)
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
    images = projector.generator.synthesize(with_value(projector.generator, projector.controllers[attribute.name], styles, moved))
    np.save(folder / "rotated.npy", to_uint8(images).cpu().numpy())
    described = {"rows": rows.tolist(), "attribute": attribute.name, "value": value, "unit": attribute.unit}
    write_json(folder / "rotated.json", described)


def _summary(table: pa.Table) -> dict[str, float]:
    split, label = table["split"].to_numpy(zero_copy_only=False), table["label"].to_numpy()
    l1 = table["residual_l1"].to_numpy()
    return {
        f"{s}_{word}_l1": float(l1[(split == s) & (label == kind)].mean())
        for s in ("train", "test")
        for kind, word in ((0, "normal"), (1, "anomalous"))
    }
