"""Shards of a projection: which samples each one holds, how one is written, and joining them all.

A shard is a batch of samples that is projected at once and written once, in any process and any order. Its files are
`NNNNN.inputs.npy`, `NNNNN.reconstructions.npy` and, last, `NNNNN.parquet`, which stands for all of them and lists in its metadata
the samples that were quarantined: left out because they cannot be projected. Joining holds a few shards in memory at a time.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from normscape.config import Config
from normscape.errors import DataError, UserError
from normscape.stages.files import flush_to_disk, is_disk_full
from normscape.training.seeding import seeded

TABLE_NAME = "projections.parquet"
QUARANTINE_NAME = "quarantined.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [("sample_id", pa.int64()), ("subject", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)
IMAGE_ARRAYS = ("inputs", "reconstructions")
_METADATA_KEY = b"normscape.quarantined"
_ROW_GROUP = 4096
"""Rows of the joined table that are written at once, about."""


@dataclass(frozen=True)
class Shard:
    """Samples that are projected together."""

    number: int
    split: str
    """train, test or calibration."""
    rows: NDArray[np.int64]
    """(n,): places in the full sample set."""
    labels: NDArray[np.int64]
    """(n,): 0 stays normal, 1 gets a blot."""

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, folder: Path) -> Path:
        """The file that stands for this shard once it is finished."""
        return folder / f"{self.number:05d}.parquet"

    def only(self, place: int) -> Shard:
        """Just one of its samples."""
        return replace(self, rows=self.rows[place : place + 1], labels=self.labels[place : place + 1])


@dataclass(frozen=True)
class Quarantined:
    """A sample that was left out, and why."""

    sample_id: int
    subject: str
    split: str
    reason: str


def plan_shards(config: Config, prepared: Path) -> list[Shard]:
    """Distinct random samples of every split, every second one anomalous, in batches; the same in every process.

    Samples for calibration are of subjects that are neither for training nor for the test.

    Args:
        config: the experiment.
        prepared: the finished folder of stage `prepare`.

    Raises:
        DataError: the table of samples cannot be read, or no subject is left for calibration.
    """
    path = prepared / "samples.parquet"
    try:
        split_of = pq.read_table(path, columns=["split"])["split"]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable table of samples ({error}); run again with `--from prepare`") from error
    size = config.projection.batch_size
    settings = config.projection
    shards: list[Shard] = []
    for split, source, count in (
        ("train", "train", settings.train_samples),
        ("test", "test", settings.test_samples),
        ("calibration", "unused", settings.calibration_samples),
    ):
        rows = np.flatnonzero(pc.equal(split_of, source).to_numpy())
        if count and not len(rows):
            raise DataError(
                f"projection.{split}_samples: {count} asked for, and the data has no subject left for it; "
                "lower data.train_subjects or data.test_subjects"
            )
        chosen = rows[torch.randperm(len(rows), generator=seeded(config.seed, "project", split))[:count].numpy()]
        labels = np.arange(len(chosen)) % 2
        for begin in range(0, len(chosen), size):
            shards.append(Shard(len(shards), split, chosen[begin : begin + size], labels[begin : begin + size]))
    return shards


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file to write to, flushed and renamed to `path` at the end, removed on an error.

    Its name is like no other, so that two processes that write the same file never write into each other's.

    Raises:
        UserError: the disk is full.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        flush_to_disk(aside)
        os.replace(aside, path)
    except Exception as error:
        full = is_disk_full(error, path.parent)  # asked before the space is free again
        aside.unlink(missing_ok=True)
        if full:
            raise UserError(f"disk is full at {path}; finished work is kept; free some space and run again") from error
        raise


def write_shard(
    path: Path, table: pa.Table | None, images: Sequence[NDArray[np.uint8]], quarantined: Sequence[Quarantined]
) -> None:
    """Write the files of a shard; the table comes last and stands for all of them.

    Args:
        path: `Shard.path`.
        table: a row for every projected sample; None when all were quarantined.
        images: inputs and reconstructions, uint8 (n, C, *S) each, row by row as the table.
        quarantined: what is left out.

    Raises:
        UserError: the disk is full.
    """
    if table is not None:
        for name, array in zip(IMAGE_ARRAYS, images, strict=True):
            with written_aside(path.with_suffix(f".{name}.npy")) as aside, aside.open("wb") as file:
                np.save(file, array)
    else:
        table = pa.table({})
    records = json.dumps([asdict(record) for record in quarantined])
    with written_aside(path) as aside:
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: records}), aside)


def quarantined_in(path: Path) -> list[Quarantined]:
    """The samples that a finished shard left out."""
    metadata = pq.read_schema(path).metadata or {}
    return [Quarantined(**record) for record in json.loads(metadata.get(_METADATA_KEY, b"[]"))]


def join_shards(paths: Sequence[Path], folder: Path) -> None:
    """Write the joined files; the table comes last and appears whole, so that it stands for all of them.

    Args:
        paths: the shards, in order.
        folder: receives `projections.parquet`, `quarantined.parquet`, `inputs.npy` and `reconstructions.npy`.

    Raises:
        DataError: every sample was quarantined.
        UserError: the disk is full.
    """
    quarantined = [record for path in paths for record in quarantined_in(path)]
    with written_aside(folder / QUARANTINE_NAME) as aside:
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in quarantined], schema=QUARANTINE_SCHEMA), aside)
    filled = [path for path in paths if pq.read_metadata(path).num_rows]
    if not filled:
        why = quarantined[0].reason if quarantined else "there are no samples"
        raise DataError(f"no sample could be projected; the first one: {why}; {folder / QUARANTINE_NAME} lists all")
    rows = sum(pq.read_metadata(path).num_rows for path in filled)
    for name in IMAGE_ARRAYS:
        with written_aside(folder / f"{name}.npy") as aside:
            _join_arrays([path.with_suffix(f".{name}.npy") for path in filled], rows, aside)
    with written_aside(folder / TABLE_NAME) as aside:
        _join_tables(filled, aside)


def _join_arrays(paths: Sequence[Path], rows: int, target: Path) -> None:
    """What `np.save` of all of them gives. Plain writes, not a memory map: a full disk is then an error, not a bus error."""
    with target.open("wb") as file:
        for place, path in enumerate(paths):
            array = np.load(path)
            if place == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.tobytes())


def _join_tables(paths: Sequence[Path], target: Path) -> None:
    """One table with row groups of a fair size, whatever the size of the shards."""
    schema = pq.read_schema(paths[0]).remove_metadata()
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(target, schema) as writer:
        for path in paths:
            waiting.append(pq.read_table(path).replace_schema_metadata(None))
            if path == paths[-1] or sum(len(table) for table in waiting) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
