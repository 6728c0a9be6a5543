"""Smooth regression on known conditions: what a number is expected to be at this age and this place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

Array = NDArray[np.float64]

LANDMARKS = 64
"""Most Gaussian bumps of a basis."""
ROWS_PER_LANDMARK = 10
"""Rows that a bump needs."""
PENALTIES = tuple(float(10.0**power) for power in range(-2, 6))
"""Ridge penalties that leave-one-out error chooses from, for each target by itself."""


@dataclass(frozen=True)
class ConditionBasis:
    """Conditions (N, D) to P smooth functions of them, each of mean 0 and deviation 1 over the rows it was made from.

    The functions are the conditions x (standardised), all products of two of them, and Gaussian bumps exp(-|x - l|^2 / V) around
    landmarks l, which are rows drawn at random, as in Nystroem's method (Williams & Seeger 2001); V is the number of conditions
    that vary. Beyond the range of the rows a condition counts as the end of it: nothing is extrapolated. Without any condition
    there is no function.

    Attributes:
        low, high: range of every condition, (D,).
        mean, deviation: of every condition, (D,).
        landmarks: standardised, (M, D).
        offset, spread: mean and deviation of every function, (P,).
    """

    low: Array
    high: Array
    mean: Array
    deviation: Array
    landmarks: Array
    offset: Array
    spread: Array

    @classmethod
    def fit(cls, conditions: Array, *, seed: int) -> Self:
        """Make the functions.

        Args:
            conditions: (N, D), N at least 1.
            seed: of the landmarks.
        """
        mean, deviation = conditions.mean(0), conditions.std(0)
        deviation = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 1.0)  # a condition that never changes says nothing
        standard = (conditions - mean) / deviation
        different = np.unique(standard, axis=0)
        count = min(LANDMARKS, len(conditions) // ROWS_PER_LANDMARK, len(different) if len(different) > 1 else 0)
        landmarks = different[np.random.default_rng(seed).permutation(len(different))[:count]]
        raw = cls(conditions.min(0), conditions.max(0), mean, deviation, landmarks, np.zeros(1), np.ones(1))._functions(
            conditions
        )
        spread = raw.std(0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        return cls(conditions.min(0), conditions.max(0), mean, deviation, landmarks, raw.mean(0), spread)

    def expand(self, conditions: Array) -> Array:
        """Conditions (N, D) to functions (N, P)."""
        return (self._functions(conditions) - self.offset) / self.spread

    def _functions(self, conditions: Array) -> Array:
        x = (conditions.clip(self.low, self.high) - self.mean) / self.deviation
        first, second = np.triu_indices(x.shape[1])
        away = np.square(x[:, None] - self.landmarks[None]).sum(2)
        varying = np.count_nonzero(self.high > self.low)  # one that never changes must not widen the bumps
        return np.concatenate([x, x[:, first] * x[:, second], np.exp(-away / max(varying, 1))], axis=1)


@dataclass(frozen=True)
class SmoothRegression:
    """Targets (N, F) as smooth functions of conditions (N, D): ridge regression on a `ConditionBasis`.

    Attributes:
        basis: of the conditions.
        weights: (P, F).
        intercept: (F,).
    """

    basis: ConditionBasis
    weights: Array
    intercept: Array

    @classmethod
    def fit(cls, conditions: Array, targets: Array, *, seed: int) -> Self:
        """Fit; the penalty of each target is the one of the least leave-one-out error.

        Args:
            conditions: (N, D).
            targets: (N, F).
            seed: of the basis.

        Raises:
            ValueError: there are fewer than two rows.
        """
        if len(conditions) < 2:
            raise ValueError(f"a regression on conditions needs at least two rows, found {len(conditions)}")
        basis = ConditionBasis.fit(conditions, seed=seed)
        functions = basis.expand(conditions)
        if not functions.any():
            return cls(basis, np.zeros((functions.shape[1], targets.shape[1])), targets.mean(0))
        ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(functions, targets)
        weights = np.reshape(ridge.coef_, (targets.shape[1], -1)).astype(np.float64).T
        return cls(basis, weights, np.reshape(ridge.intercept_, -1).astype(np.float64))

    def predict(self, conditions: Array) -> Array:
        """Expected targets (N, F)."""
        expected: Array = self.basis.expand(conditions) @ self.weights + self.intercept
        return expected

    def to_arrays(self, prefix: str) -> dict[str, Array]:
        """For a safetensors file."""
        parts = {f.name: getattr(self.basis, f.name) for f in fields(self.basis)}
        parts |= {"weights": self.weights, "intercept": self.intercept}
        return {f"{prefix}/{name}": np.ascontiguousarray(part) for name, part in parts.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], prefix: str) -> Self:
        """Undoes `to_arrays`.

        Raises:
            KeyError: something is missing.
        """
        basis = ConditionBasis(**{f.name: arrays[f"{prefix}/{f.name}"] for f in fields(ConditionBasis)})
        return cls(basis, arrays[f"{prefix}/weights"], arrays[f"{prefix}/intercept"])
