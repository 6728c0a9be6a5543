"""Residuals, and other positive numbers, against what is usual under the same conditions.

A residual means little by itself: some places, and some angles of a chair, are rebuilt worse than others, whatever their health.
Its logarithm is compared with the median that is expected under the image's conditions, in units of the spread expected there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from normscape.errors import DataError
from normscape.scoring.conditions import Array, SmoothRegression

LEVEL_PREFIX = "level/"
"""Columns of levelled values: `level/<column>`."""
WINSOR = 3.0
"""Robust standard deviations beyond which a value does not pull the expected median any further."""
NORMAL_MEDIAN = 0.6745
"""Median absolute value of a standard normal number."""
SPREAD_RANGE = 5.0
"""Expected spreads lie within this factor of the overall one: a quiet corner of few images must not divide by nearly nothing."""


@dataclass(frozen=True)
class Levels:
    """Expected median and spread of F values given the conditions c, fitted to normal images.

    With y = log(value + e), e a thousandth of the median value, z = (y - m(c)) / s(c). m is a smooth regression
    (`scoring.conditions`), made twice: the second time with values brought to within 3 robust standard deviations of the first,
    so that it follows the median. s is exp of a smooth regression of log|y - m(c)| (Harvey 1976), times the constant that gives z
    the median absolute value of a standard normal number.

    Attributes:
        small: e of every value, (F,).
        logarithm: whether y is a logarithm, or the value itself.
        location: regression of y.
        log_spread: regression of log|y - m(c)|.
        factor: the constant, (F,).
        overall: robust standard deviation of y - m(c) over all images, (F,).
    """

    small: Array
    logarithm: bool
    location: SmoothRegression
    log_spread: SmoothRegression
    factor: Array
    overall: Array

    @classmethod
    def fit(cls, values: Array, conditions: Array, *, seed: int, logarithm: bool = True) -> Self:
        """Fit to normal images.

        Args:
            values: (N, F); with `logarithm` none is negative.
            conditions: (N, D).
            seed: of the regressions' basis.
            logarithm: take the logarithm of the values.

        Raises:
            ValueError: there are fewer than two images.
        """
        small = np.maximum(1e-3 * np.median(values, axis=0), 1e-9)
        y = np.log(values.clip(min=0) + small) if logarithm else values
        first = y - SmoothRegression.fit(conditions, y, seed=seed).predict(conditions)
        limit = WINSOR * _robust(first)
        # moved towards the first fit, not cut off: y stays the same wherever the first fit was near
        location = SmoothRegression.fit(conditions, y - first + first.clip(-limit, limit), seed=seed)
        left = np.abs(y - location.predict(conditions))
        overall = _robust(y - location.predict(conditions))
        log_spread = SmoothRegression.fit(conditions, np.log(left + 0.05 * overall), seed=seed)
        unscaled = np.exp(log_spread.predict(conditions))
        factor = np.median(left / unscaled, axis=0) / NORMAL_MEDIAN
        return cls(small, logarithm, location, log_spread, np.maximum(factor, 1e-9), overall)

    def z(self, values: Array, conditions: Array) -> Array:
        """By how many expected spreads values (N, F) exceed the median expected under conditions (N, D): (N, F)."""
        y = np.log(values.clip(min=0) + self.small) if self.logarithm else values
        spread = np.exp(self.log_spread.predict(conditions)) * self.factor
        spread = spread.clip(self.overall / SPREAD_RANGE, self.overall * SPREAD_RANGE)
        return (y - self.location.predict(conditions)) / spread

    def to_arrays(self, prefix: str) -> dict[str, Array]:
        """For a safetensors file."""
        arrays = {name: getattr(self, name) for name in ("small", "factor", "overall")}
        arrays["logarithm"] = np.array([self.logarithm], np.float64)
        own = {f"{prefix}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
        return own | self.location.to_arrays(f"{prefix}/location") | self.log_spread.to_arrays(f"{prefix}/log_spread")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], prefix: str) -> Self:
        """Undoes `to_arrays`.

        Raises:
            KeyError: something is missing.
        """
        location, log_spread = (SmoothRegression.from_arrays(arrays, f"{prefix}/{name}") for name in ("location", "log_spread"))
        small, factor, overall = (arrays[f"{prefix}/{name}"] for name in ("small", "factor", "overall"))
        return cls(small, bool(arrays[f"{prefix}/logarithm"][0]), location, log_spread, factor, overall)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file(self.to_arrays("levels"), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a file.
        """
        try:
            return cls.from_arrays(load_file(path), "levels")
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"{path}: expected usual levels as safetensors, found something else ({error})") from error


def _robust(left: Array) -> Array:
    """Standard deviation of (N, F) by the median absolute value, (F,); that of all values where more than half are equal."""
    deviation = np.median(np.abs(left), axis=0) / NORMAL_MEDIAN
    return np.maximum(np.where(deviation > 1e-9, deviation, left.std(0)), 1e-9)
