"""The thesis's own numbers (its sections IV.A and IV.B), to compare with. Only here the report knows attributes by name.

Accuracies and areas of the anomaly detection stand in the table that stage `score` writes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Published results of one experiment.

    All shares and accuracies lie in [0, 1].
    """

    dataset: str
    """The data set they were measured on."""
    triplets: dict[str, tuple[float, float]]
    """Tables III and IV: split -> (separated, separated by the margin)."""
    value_error: dict[str, dict[str, float]]
    """Mean absolute error of a value network: attribute -> split -> error in the attribute's unit."""
    explained: dict[str, tuple[float, ...]]
    """Sub-space -> share of variance of its first principal components."""
    parameters: dict[str, tuple[int, float | None, float | None, str, int | None]]
    """Tables I and II: attribute -> (latent dim, tau same, tau different, distance, outputs)."""
    forest: str
    """Settings that the grid search found."""
    threshold_l1: float
    """L1 threshold chosen on training images."""


RC49 = Reference(
    dataset="RC-49",
    triplets={"train": (1.000, 1.000), "test": (0.956, 0.858), "generated": (0.994, 0.975)},
    value_error={"angle": {"train": 0.5, "test": 2.4}},
    explained={"angle": (0.82, 0.08)},
    parameters={
        "identity": (48, 0.05, 0.35, "euclidean", 128),
        "angle": (48, 0.03, 0.15, "l1", 1),
        "other": (32, None, None, "", None),
    },
    forest="maximum depth 11, 100 trees",
    threshold_l1=0.107,
)

IXI = Reference(
    dataset="IXI",
    triplets={"train": (0.971, 0.930), "test": (0.964, 0.917), "generated": (0.951, 0.861)},
    value_error={"age": {"train": 5.5, "test": 6.9}, "position": {"train": 2.9, "test": 3.0}},
    explained={"age": (0.63, 0.08), "position": (0.26, 0.25, 0.19, 0.14, 0.01)},
    parameters={
        "identity": (64, 0.05, 0.45, "euclidean", 128),
        "age": (32, 0.02, 0.18, "l1", 1),
        "position": (128, 0.02, 0.22, "l1", 3),
        "other": (32, None, None, "", None),
    },
    forest="maximum depth 3, 100 trees",
    threshold_l1=0.444,
)
"""Positions are off by voxels of 1 mm; L1 is that of z-scores, three times as wide as images in [-1, 1]."""

REFERENCES = {"chairs": RC49, "rc49": RC49, "brain": IXI}
"""Data source -> what its results are compared with."""

DATA_NAMES = {"chairs": "rendered chair models (not RC-49)", "rc49": "RC-49"}
"""Data source -> its plain name; a brain's is its cohort's."""
