"""Projecting one shard: samples in, a written shard out, what cannot be projected quarantined.

Any process that sees the finished folders of the earlier stages can do it. A sample is quarantined when its image or its values
are not finite, when its result is not, or when it raises an error; the rest of its shard is projected without it. An error that
every sample of a shard raises is nobody's fault but ours, and is passed on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import Config, RandomisationConfig
from normscape.datasets.blots import draw_blots, standard_blots
from normscape.datasets.randomisation import randomised, randomised_rows
from normscape.datasets.samples import to_uint8, to_unit_range
from normscape.errors import UserError
from normscape.inversion.projector import Projection, Projector
from normscape.scoring.features import NETWORK_COLUMN, RANDOMISED_COLUMN
from normscape.stages.models import load_projector
from normscape.stages.network import load_network
from normscape.stages.prepare import open_prepared
from normscape.stages.shards import Quarantined, Shard, quarantined_in, write_shard

_LONGEST_REASON = 300


@dataclass(frozen=True)
class ShardResult:
    """What was done; the results themselves lie in the shard's files.

    Attributes:
        number: of the shard.
        images: samples in it, quarantined ones included.
        quarantined: samples that were left out.
        seconds: time spent; 0 when the shard was there already.
    """

    number: int
    images: int
    quarantined: int
    seconds: float


@dataclass(frozen=True)
class _Part:
    """Projected rows: their table, and inputs and reconstructions, uint8 (n, C, *S)."""

    table: pa.Table
    inputs: NDArray[np.uint8]
    reconstructions: NDArray[np.uint8]


class ShardProjector:
    """Projects shards, one after the other; networks and samples are loaded once.

    Args:
        config: the experiment.
        inputs: the finished folders of the earlier stages, by name.
        device: where to compute.

    Raises:
        UserError: a network or the data cannot be read.
    """

    def __init__(self, config: Config, inputs: Mapping[str, Path], device: torch.device) -> None:
        self.config = config
        self.projector = load_projector(config, inputs, device)
        self.network = load_network(config, inputs, device)
        self.samples = open_prepared(config, inputs["prepare"])

    def project(self, shard: Shard, folder: Path) -> ShardResult:
        """Project a shard and write its files; one that is there already is left alone.

        Raises:
            UserError: the disk is full, or the device's memory is too small for a batch.
        """
        began, path = time.perf_counter(), shard.path(folder)
        if path.exists():
            return ShardResult(shard.number, len(shard), len(quarantined_in(path)), 0.0)
        part, quarantined = self._try_all(shard)
        images = () if part is None else (part.inputs, part.reconstructions)
        write_shard(path, None if part is None else part.table, images, quarantined)
        return ShardResult(shard.number, len(shard), len(quarantined), time.perf_counter() - began)

    def _try_all(self, shard: Shard) -> tuple[_Part | None, list[Quarantined]]:
        """All samples at once; one by one when that fails."""
        try:
            return self._project(shard)
        except (UserError, MemoryError):
            raise
        except torch.OutOfMemoryError as error:
            where = f"{self.projector.device} has too little memory"
            raise UserError(f"{where} to project {len(shard)} images at once; lower projection.batch_size") from error
        except Exception as error:
            return self._try_each(shard, error)

    def _try_each(self, shard: Shard, first: Exception) -> tuple[_Part | None, list[Quarantined]]:
        """Sample by sample; those that raise an error are quarantined, unless all of several do."""
        parts: list[_Part] = []
        quarantined: list[Quarantined] = []
        failed = 0
        for place in range(len(shard)):
            try:
                part, bad = self._project(shard.only(place))
            except (UserError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                failed += 1
                part, bad = None, [self._quarantine(shard, place, f"{type(error).__name__}: {error}")]
            quarantined += bad
            parts += [] if part is None else [part]
        if failed == len(shard) > 1:
            raise first
        if not parts:
            return None, quarantined
        table = pa.concat_tables([part.table for part in parts])
        inputs, reconstructions = (np.concatenate([getattr(p, name) for p in parts]) for name in ("inputs", "reconstructions"))
        return _Part(table, inputs, reconstructions), quarantined

    def _quarantine(self, shard: Shard, place: int, reason: str) -> Quarantined:
        row = int(shard.rows[place])
        subject = self.samples.subjects[int(self.samples.subject[row])]
        return Quarantined(int(self.samples.sample_id[row]), subject, shard.split, " ".join(reason.split())[:_LONGEST_REASON])

    def _project(self, shard: Shard) -> tuple[_Part | None, list[Quarantined]]:
        """Project what is finite in a shard; the rest, and rows whose result is not finite, are quarantined."""
        index = torch.from_numpy(shard.rows)
        images = self.samples.batch(index)
        values = {a.name: self.samples.values[a.column or ""][index] for a in self.config.value_attributes}
        columns = {a.column or "": values[a.name] for a in self.config.value_attributes}
        reasons = _not_finite({"the image": images} | columns)
        keep = [place for place in range(len(shard)) if place not in reasons]
        part = None
        if keep:
            kept = Shard(shard.number, shard.split, shard.rows[keep], shard.labels[keep])
            part, bad = self._project_finite(kept, images[keep], {name: value[keep] for name, value in values.items()})
            reasons |= {keep[place]: reason for place, reason in bad.items()}
        return part, [self._quarantine(shard, place, reason) for place, reason in sorted(reasons.items())]

    def _project_finite(self, shard: Shard, images: Tensor, values: Mapping[str, Tensor]) -> tuple[_Part | None, dict[int, str]]:
        """Draw the blots, project, and set apart the places whose result is not finite."""
        index, labels = torch.from_numpy(shard.rows), torch.from_numpy(shard.labels)
        ids = self.samples.sample_id[index]
        anomalous = labels.nonzero().squeeze(1)
        masks, spec = self.samples.masks(index), standard_blots(self.config.data)
        learned = self.config.randomisation if shard.split == "train" else RandomisationConfig()
        changed = randomised_rows(learned, self.config.seed, ids.tolist())
        images = randomised(learned, images, masks, seed=self.config.seed, sample_ids=ids.tolist())
        blots = draw_blots(images[anomalous], self.config.seed, ids[anomalous], spec, None if masks is None else masks[anomalous])
        images[anomalous] = blots.images
        # what is projected is what is stored: 8-bit images
        stored = to_uint8(images)
        seen = to_unit_range(stored)
        projection = self.projector.project(seen, values, masks)
        said = {} if self.network is None else {NETWORK_COLUMN: self.network.log_odds(seen, values, masks)}
        in_mm = self.config.data.source == "brain"
        radius, contrast = (torch.full((len(shard),), float("nan"), dtype=torch.float64) for _ in range(2))
        radius[anomalous], contrast[anomalous] = (blots.radius_mm if in_mm else blots.radius_px).double(), blots.contrast.double()
        columns: dict[str, pa.Array] = {
            "sample_id": pa.array(ids.numpy()),
            "subject": pa.array([self.samples.subjects[s] for s in self.samples.subject[index].tolist()]),
            "split": pa.array([shard.split] * len(shard)),
            "label": pa.array(shard.labels),
        }
        for attribute in self.config.value_attributes:
            value, column = values[attribute.name].numpy(), attribute.column or ""
            if value.shape[1] == 1:
                columns[column] = pa.array(value[:, 0])
            else:
                columns |= {f"{column}_{i}": pa.array(value[:, i]) for i in range(value.shape[1])}
        columns[RANDOMISED_COLUMN] = pa.array(changed.astype(np.int64))
        columns |= _projection_columns(self.projector, projection)
        columns |= {name: pa.array(value.numpy()) for name, value in said.items()}
        columns["blot_radius_mm" if in_mm else "blot_radius_px"] = pa.array(radius.numpy(), from_pandas=True)
        columns["blot_contrast"] = pa.array(contrast.numpy(), from_pandas=True)
        if self.config.projection.stop_tolerance:
            columns["steps_taken"] = pa.array(projection.steps.cpu().numpy())
        table, rebuilt = pa.table(columns), to_uint8(projection.images).cpu().numpy()
        bad = _not_finite({f"coordinates/{name}": u for name, u in projection.coordinates.items()} | projection.residuals | said)
        if not bad:
            return _Part(table, stored.numpy(), rebuilt), bad
        good = np.array([place not in bad for place in range(len(shard))])
        part = _Part(table.filter(pa.array(good)), stored.numpy()[good], rebuilt[good]) if good.any() else None
        return part, bad


def _not_finite(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Place in the batch to the reason, for rows in which one of these `(B, ...)` is not finite."""
    reasons: dict[int, str] = {}
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else torch.isfinite(tensor)
        for place in (~finite).nonzero().squeeze(1).tolist():
            reasons.setdefault(place, f"{name} is not finite")
    return reasons


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
