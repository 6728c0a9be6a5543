"""The scores of all finished units, row by row the same images, and what is resampled of them.

Intervals come from resampling subjects, once for all: the same resamples serve every detector, every seed and every metric, so
that differences are paired. A detector's number is the mean over its seeds, within each resample too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from normscape.errors import DataError
from normscape.evaluation.cases import NORMAL
from normscape.scoring.metrics import BLOCK_ELEMENTS, Array, Metric, resample_counts

ALL, NEW = "all families", "new families"
"""Means over families: over all of them, and over those that no detector has learned from."""
_PER_UNIT = ("detector", "seed", "score")


@dataclass(frozen=True)
class Estimate:
    """A number of one detector: its value with each seed, and its mean over seeds in each resample of subjects."""

    by_seed: Array
    """(S,)."""
    resampled: Array
    """(R,); not a number where a resample leaves it undefined."""

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.by_seed.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; not a number with one."""
        return float(self.by_seed.std(ddof=1)) if len(self.by_seed) > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval; not numbers where it cannot be had."""
        valid = self.resampled[np.isfinite(self.resampled)]
        if not len(valid):
            return float("nan"), float("nan")
        low, high = np.percentile(valid, [2.5, 97.5])
        return float(low), float(high)

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference, resample by resample; seed by seed where both have as many of them, else of the means."""
        paired = len(self.by_seed) == len(other.by_seed)
        by_seed = self.by_seed - other.by_seed if paired else np.array([self.value - other.value])
        return Estimate(by_seed, self.resampled - other.resampled)


def mean_of(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of several numbers of one detector, for example over families."""
    found = list(estimates)
    return Estimate(np.mean([e.by_seed for e in found], axis=0), np.mean([e.resampled for e in found], axis=0))


class RoleScores:
    """All scores of one role.

    Args:
        tables: of each detector, a table of scores a seed; all with the same rows in the same order.
        resamples: of subjects.
        seed: of the resampling.

    Raises:
        DataError: two units have scored other images.
    """

    def __init__(self, tables: Mapping[str, Sequence[pa.Table]], *, resamples: int, seed: int) -> None:
        first = next(iter(tables.values()))[0]
        self.columns = {name: first[name] for name in first.column_names if name not in _PER_UNIT}
        for detector, found in tables.items():
            for table in found:
                same = all(table[name].equals(self.columns[name]) for name in ("family", "sample_id", "subject"))
                if len(table) != len(first) or not same:
                    raise DataError(f"{detector} was scored on other images than the first detector; evaluate it again")
        self.score = {name: np.stack([table["score"].to_numpy() for table in found]) for name, found in tables.items()}  # (S, N)
        self.label = self.columns["label"].to_numpy()
        self.family: NDArray[np.object_] = self.columns["family"].to_numpy(zero_copy_only=False)
        self.subject: NDArray[np.object_] = self.columns["subject"].to_numpy(zero_copy_only=False)
        names, self._owner = np.unique(self.subject.astype(str), return_inverse=True)
        # of fewer than two subjects nothing can be resampled
        self._counts = resample_counts(len(names), resamples, seed) if len(names) > 1 else np.empty((0, 1))

    @property
    def families(self) -> list[str]:
        """Families with at least one anomaly, in order."""
        return [name for name in dict.fromkeys(self.family.tolist()) if name != NORMAL]

    def rows_of(self, family: str) -> NDArray[np.bool_]:
        """Normal rows and those of one family; of `ALL`, every row."""
        return np.ones(len(self.label), bool) if family == ALL else (self.family == NORMAL) | (self.family == family)

    def estimate(
        self, detector: str, metric: Metric, rows: NDArray[np.bool_], *, score: Array | None = None, resamples: int | None = None
    ) -> Estimate:
        """A metric of one detector on some rows.

        Args:
            detector: its name.
            metric: of `normscape.scoring.metrics`.
            rows: bool (N,).
            score: (S, N), in place of the scores; predictions, for example.
            resamples: only the first ones; all when None.
        """
        values = (self.score[detector] if score is None else score)[:, rows]
        label, owner = self.label[rows], self._owner[rows]
        counts = self._counts if resamples is None else self._counts[:resamples]
        once = np.ones((1, len(label)))
        by_seed = np.array([metric(label, row, once)[0] for row in values])
        block = max(1, BLOCK_ELEMENTS // max(1, len(label)))
        resampled = [
            np.mean([metric(label, row, counts[i : i + block][:, owner]) for row in values], axis=0)
            for i in range(0, len(counts), block)
        ]
        return Estimate(by_seed, np.concatenate(resampled) if resampled else np.empty(0))
