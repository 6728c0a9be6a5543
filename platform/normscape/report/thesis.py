"""The thesis's own numbers (its section IV.A), for comparison. The only place of the report that knows an attribute by name.

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
    """Table III: split -> (separated, separated by the margin)."""
    value_error: dict[str, dict[str, float]]
    """Mean absolute error of a value network: attribute -> split -> error in the attribute's unit."""
    explained: dict[str, tuple[float, ...]]
    """Sub-space -> share of variance of its first principal components."""
    parameters: dict[str, tuple[int, float | None, float | None, str, int | None]]
    """Table I: attribute -> (latent dim, tau same, tau different, distance, outputs)."""
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

REFERENCES = {"chairs": RC49, "rc49": RC49}
"""Data source -> what its results are compared with."""

DATA_NAMES = {"chairs": "rendered chair models (not RC-49)", "rc49": "RC-49"}
"""Data source -> its plain name."""
