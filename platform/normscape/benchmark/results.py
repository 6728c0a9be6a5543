"""What a run of the benchmark has found: rows, ratios and their targets."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from normscape.benchmark.timing import Timing
from normscape.config import Config

BATCHED_SHARE = "projection: an image in a batch of 128 / alone"
STEP_SPEEDUP = "training step: reference / fast"
PATCHES_SHARE = "first training step / cutting and augmenting its patches"
PROJECTION_GAIN = "projection: images an hour, ours / one at a time with 1000 steps"
PREPARING_SECONDS = "preprocessing a scan, stripping apart: seconds"
PREPARING_MEMORY = "preprocessing a scan, stripping apart: peak memory in GiB"
TARGETS: dict[tuple[str, str], tuple[str, float]] = {
    ("chairs-cpu", BATCHED_SHARE): ("at most", 0.25),
    ("chairs-cpu", PROJECTION_GAIN): ("at least", 30.0),
    ("chairs-gpu", STEP_SPEEDUP): ("at least", 2.5),
    ("brain-cpu", STEP_SPEEDUP): ("at least", 2.0),
    ("brain-cpu", PROJECTION_GAIN): ("at least", 30.0),
    ("brain-cpu", PATCHES_SHARE): ("at least", 3.0),
    ("brain-cpu", PREPARING_SECONDS): ("at most", 60.0),
    ("brain-cpu", PREPARING_MEMORY): ("at most", 4.0),
}
"""(configuration, ratio) -> bound, on two CPU cores."""


@dataclass(frozen=True)
class Row:
    """One measured action.

    Attributes:
        config: name of the configuration.
        case: what was measured.
        batch: images that one step or call works on.
        timing: of one step or call.
        reference: the straightforward form's.
        operations: floating-point operations of one step or call, see `normscape.benchmark.work`; None where not counted.
        product_rate: operations a second of the large matrix product of the same run.
    """

    config: str
    case: str
    batch: int
    timing: Timing
    reference: Timing | None = None
    operations: float | None = None
    product_rate: float | None = None

    @property
    def speedup(self) -> float | None:
        """How many times slower the straightforward form is."""
        return None if self.reference is None else self.reference.median / self.timing.median

    @property
    def rate(self) -> float | None:
        """Operations a second."""
        return None if self.operations is None else self.operations / self.timing.median

    @property
    def share(self) -> float | None:
        """The rate as a share of the matrix product's."""
        return None if self.rate is None or self.product_rate is None else self.rate / self.product_rate


@dataclass(frozen=True)
class Ratio:
    """A quotient of two medians of the same run, or a value with an absolute bound; and its target where there is one."""

    config: str
    name: str
    value: float
    bound: str = ""
    target: float | None = None

    @classmethod
    def of(cls, config: Config, name: str, value: float, device: torch.device) -> Ratio:
        """A ratio with its target; targets are set for the CPU."""
        bound, target = TARGETS.get((config.name, name), ("", None)) if device.type == "cpu" else ("", None)
        return cls(config.name, name, value, bound, target)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.bound == "at most" else self.value >= self.target


@dataclass
class Results:
    """Everything one run of the benchmark has measured."""

    machine: dict[str, str | int]
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    """(configuration, case, why it was not measured)"""
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Configuration to what its cost at scale depends on besides times, see `normscape.benchmark.facts`."""
