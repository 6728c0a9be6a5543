"""What distinguishes one kind of sweep from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from normscape.distributed.sweep_trials import Point, Report


@dataclass(frozen=True)
class Cuts:
    """When the worst trials are stopped early (ASHA)."""

    first: int
    """Step of the first cut."""
    reduction: float
    """One in this many goes on; the next cut is this many times later."""


@dataclass(frozen=True)
class Search:
    """What is tried, how, and what a winner means."""

    trial: Callable[[Point, dict[str, Any]], Iterable[Report]]
    """Runs one trial on a worker and yields its reports; a function of a module, so that workers can import it."""
    job: dict[str, Any]
    """What every trial is given besides its point; plain JSON, paths absolute."""
    space: Mapping[str, BaseDistribution]
    """What may be tried."""
    final_step: int
    """Step of the last report of a trial that goes to the end."""
    winner: Callable[[Point], dict[str, Any]]
    """A point as changes of the experiment's configuration."""
    score_name: str
    """What the score is, for axes and tables."""
    points: list[Point] | None = None
    """All points to try; None where Optuna chooses one after the other."""
    first: Sequence[tuple[str, Point]] = ()
    """(origin, point) of what Optuna tries first."""
    before: Callable[[dict[str, Any]], None] | None = None
    """Work that all trials share, given the job; run once on a worker before the first of them."""
    cuts: Cuts | None = None
    """Early stopping; none when empty."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the search started from, for the page: plain JSON."""
