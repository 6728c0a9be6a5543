"""Thresholds from healthy validation: no anomaly has a part in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def promised_threshold(normal_score: ArrayLike, rate: float) -> float:
    """The least threshold t that `score > t` keeps its promise with: at most a share `rate` of normal images exceed it.

    It is the score of rank ceil((n + 1)(1 - rate)) of n, as in split conformal prediction (Vovk et al. 2005; Angelopoulos and
    Bates 2023): on an exchangeable new normal image the chance to exceed it is at most `rate`, and on the n themselves the share
    is, too. With fewer than 1 / rate - 1 images no score is high enough; then the highest one is taken, and `enough` says so.

    Args:
        normal_score: scores of normal validation images, `(n,)`.
        rate: of false positives, in (0, 1).
    """
    ordered = np.sort(np.asarray(normal_score, dtype=np.float64))
    if not len(ordered):
        raise ValueError("a threshold needs at least one score")
    rank = math.ceil((len(ordered) + 1) * (1 - rate) - 1e-9)
    return float(ordered[min(rank, len(ordered)) - 1])


def enough(count: int, rate: float) -> bool:
    """Whether so many normal images can promise such a rate on new ones."""
    return math.ceil((count + 1) * (1 - rate) - 1e-9) <= count


def promised_thresholds(normal_score: ArrayLike, rates: Sequence[float]) -> dict[float, float]:
    """A threshold for each rate."""
    return {rate: promised_threshold(normal_score, rate) for rate in rates}
