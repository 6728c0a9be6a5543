"""The projections table: reading it, checking it, and choosing columns as features (thesis III.A.3b, IV.A.3)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normscape.config import FeatureSet
from normscape.errors import DataError

LENGTH_PREFIX = "length/"
RESIDUAL_PREFIX = "residual_"
L1_COLUMN = "residual_l1"
ATLAS_COLUMN = "residual_atlas_z4"
"""The yardstick: how unlike the mean of the normal images at its place the worst quarter of a patch's side is."""
READ_BY_NETWORKS = re.compile(rf"({RESIDUAL_PREFIX}|masked/|spread/)(output|condition)_")
"""What auxiliary networks read from image and reconstruction, and from the image against the known value."""
NETWORK_COLUMN = "network_log_odds"
"""What the conditional network says of the image itself; only where an experiment has one."""
RANDOMISED_COLUMN = "randomised"
"""1 where a training image is shown as another scanner might have shown it."""
ID_COLUMNS = ("sample_id", "subject", "split", "label")
SPLITS = ("train", "test")
CALIBRATION = "calibration"
"""Rows of subjects in neither split, where there are any: no network has seen them."""


@dataclass(frozen=True)
class Projections:
    """A checked projections table of N rows, split into train, test and maybe calibration by subject.

    `subject` and `split` are arrays of strings, `label` is 0 (normal) or 1 (anomalous); `columns` holds the numeric columns, NaN
    where a value does not exist (blot columns of normal rows).
    """

    path: Path
    sample_id: NDArray[np.int64]  # (N,)
    subject: NDArray[np.str_]  # (N,)
    split: NDArray[np.str_]  # (N,)
    label: NDArray[np.int64]  # (N,)
    columns: Mapping[str, NDArray[np.float64]]  # each (N,)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def as_scanned(self) -> NDArray[np.bool_]:
        """Rows of images that were not changed by domain randomisation, (N,)."""
        changed = self.columns.get(RANDOMISED_COLUMN)
        return np.ones(len(self), dtype=np.bool_) if changed is None else changed == 0

    def of(self, *splits: str) -> Projections:
        """The rows of some splits."""
        rows = np.isin(self.split, splits)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Projections(self.path, self.sample_id[rows], self.subject[rows], self.split[rows], self.label[rows], columns)

    def features(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Columns side by side, `(N, len(names))`.

        Raises:
            DataError: a column is missing or holds a NaN or an infinity.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(f"{self.path}: columns missing: {', '.join(missing)}; found {', '.join(self.columns)}")
        matrix = np.stack([self.columns[name] for name in names], axis=1)
        bad = ~np.isfinite(matrix)
        if bad.any():
            counts = ", ".join(f"{name} ({n} of {len(self)} rows)" for name, n in zip(names, bad.sum(axis=0), strict=True) if n)
            raise DataError(
                f"{self.path}: expected finite numbers in every feature; found NaN, empty or infinite values in {counts}"
            )
        return matrix


def feature_columns(
    columns: Sequence[str], features: FeatureSet, value_columns: Sequence[str], *, path: Path | None = None
) -> list[str]:
    """Columns that the forest sees.

    `thesis`: every length (sub-space and resolution), the known conditions, the L1 residual: 12 for 64x64 chairs, 10 for 32x32.
    `residuals`: those and every other residual, but for those that speak of how flat the image is. `flat`: these, too.

    Args:
        columns: names in the table.
        features: which set.
        value_columns: columns of the conditions; a vector-valued one stands as `name_0`, `name_1`, ...
        path: the table's file, for the message of an error.

    Raises:
        DataError: the table lacks the lengths, a condition or the L1 residual.
    """
    lengths = [name for name in columns if name.startswith(LENGTH_PREFIX)]
    conditions = condition_names(columns, value_columns)
    missing = [] if lengths else [f"{LENGTH_PREFIX}<sub-space>/<resolution>"]
    missing += [value for value in value_columns if not condition_names(columns, [value])]
    if L1_COLUMN not in columns:
        missing.append(L1_COLUMN)
    if missing:
        raise DataError(f"{path or 'table'}: columns missing for the features: {', '.join(missing)}; found {', '.join(columns)}")
    chosen = [*lengths, *conditions, L1_COLUMN]
    if features != "thesis":
        chosen += [name for name in columns if _is_residual(name, flat=features == "flat") and name != L1_COLUMN]
    return chosen


def condition_names(columns: Sequence[str], value_columns: Sequence[str]) -> list[str]:
    """Columns of the conditions, in the order of `value_columns`; a vector-valued one stands as `name_0`, `name_1`, ..."""
    return [
        name for value in value_columns for name in columns if name == value or re.fullmatch(rf"{re.escape(value)}_\d+", name)
    ]


def feature_sets(columns: Sequence[str]) -> list[FeatureSet]:
    """The sets that a table has columns for."""
    found: list[FeatureSet] = ["thesis"]
    if any(_is_residual(name, flat=False) and name != L1_COLUMN for name in columns):
        found.append("residuals")
    if any(_is_flat(name) for name in columns):
        found.append("flat")
    return found


def evidence_columns(columns: Sequence[str], features: FeatureSet) -> list[str]:
    """Columns of which a high value means abnormal: lengths and residuals, no conditions; flat places in `flat` alone.

    What auxiliary networks read is left out. They have learned the values of the training subjects and read those far better than
    anybody else's, so that it would speak against every new subject.
    """
    return [
        name
        for name in columns
        if name.startswith(LENGTH_PREFIX) or (_is_residual(name, flat=features == "flat") and not READ_BY_NETWORKS.match(name))
    ]


def _is_residual(name: str, *, flat: bool) -> bool:
    return name.startswith(RESIDUAL_PREFIX) and (flat or not _is_flat(name))


def _is_flat(name: str) -> bool:
    """Whether a residual speaks of flat places; see `Projector.residuals`, `Normals.excess` and `Normals.texture`."""
    return re.fullmatch(rf"{RESIDUAL_PREFIX}(flat\d+|.+_flat|texture_low\d)", name) is not None


def read_projections(path: Path) -> Projections:
    """Read and check a projections table.

    Raises:
        DataError: the file is missing or is not Parquet; a column is missing; labels other than 0 and 1; a split that is empty or
            holds one class only; a subject in two splits.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected the table of projections, found no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a Parquet table, found a file that cannot be read ({error})") from error
    missing = [name for name in ID_COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: columns missing: {', '.join(missing)}; found {', '.join(table.column_names)}")
    empty = [f"{name} ({table[name].null_count})" for name in ID_COLUMNS if table[name].null_count]
    if empty:
        raise DataError(f"{path}: expected a value in every row; found empty values in {', '.join(empty)}")
    columns = {
        field.name: table[field.name].cast(pa.float64()).to_numpy()
        for field in table.schema
        if field.name not in ID_COLUMNS and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    }
    projections = Projections(
        path=path,
        sample_id=table["sample_id"].to_numpy().astype(np.int64),
        subject=np.asarray(table["subject"].to_pylist(), dtype=np.str_),
        split=np.asarray(table["split"].to_pylist(), dtype=np.str_),
        label=table["label"].to_numpy().astype(np.int64),
        columns=columns,
    )
    _check(projections)
    return projections


def _check(table: Projections) -> None:
    """Labels, splits and subjects; see `read_projections`."""
    splits = (*SPLITS, CALIBRATION) if (table.split == CALIBRATION).any() else SPLITS
    labels = sorted(set(table.label.tolist()))
    if not set(labels) <= {0, 1}:
        raise DataError(f"{table.path}: label must be 0 (normal) or 1 (anomalous), found {', '.join(map(str, labels))}")
    unknown = sorted(set(table.split.tolist()) - set(splits))
    if unknown:
        raise DataError(f"{table.path}: split must be train, test or calibration, found {', '.join(unknown)}")
    for split in splits:
        rows = table.split == split
        normal, anomalous = int((table.label[rows] == 0).sum()), int((table.label[rows] == 1).sum())
        if not normal or not anomalous:
            raise DataError(
                f"{table.path}: split {split} needs normal and anomalous rows, found {normal} normal and {anomalous} anomalous"
            )
    for one, other in itertools.combinations(splits, 2):
        both = sorted(set(table.subject[table.split == one].tolist()) & set(table.subject[table.split == other].tolist()))
        if both:
            raise DataError(
                f"{table.path}: subjects must be in one split only, found in both {one} and {other}: {', '.join(both)}"
            )
