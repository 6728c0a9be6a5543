"""The optimisation: who stops, when, and that nobody notices who else was there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normscape.config import ProjectionConfig
from normscape.inversion.descent import Coordinates, Goal, Watch, descend, learning_rate

STOPPING = {"steps": 240, "learning_rate": 0.05, "stop_tolerance": 0.02, "stop_window": 10}


class Bowls:
    """A bowl a sample, nearer or farther away, and a floor that shows whose it is. Notes what it is asked for."""

    def __init__(self, size: int) -> None:
        random = torch.Generator().manual_seed(5)
        self.floor = torch.linspace(0.1, 0.2, size, dtype=torch.float64)
        middle = torch.randn(size, 6, generator=random, dtype=torch.float64) * torch.logspace(-0.7, 0.5, size)[:, None]
        self.goal = Goal(middle, {}, {"floor": self.floor}, [], None)
        self.asked: list[Tensor] = []

    def __call__(self, coordinates: Coordinates, goal: Goal) -> tuple[Tensor, Tensor]:
        away = coordinates["identity"].flatten(1) - goal.images
        self.asked.append(goal.encoded["floor"])
        return (away.square() * torch.arange(1, 7)).sum(1) + goal.encoded["floor"], 0.01 * away.abs().sum(1)

    def run(self, rows: list[int], **settings: Any) -> tuple[Coordinates, Tensor]:
        """Descend from the middle for some of the samples."""
        self.asked = []
        start = {"identity": torch.zeros(len(rows), 2, 3, dtype=torch.float64)}
        return descend(start, self.goal.rows(torch.tensor(rows)), self, ProjectionConfig(**settings))


def test_learning_rate_schedule() -> None:
    """Up, flat, down to nearly zero."""
    rates = [learning_rate(step, 100, 0.1, 0.05, 0.25) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[4] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_who_stops_when_does_not_depend_on_company() -> None:
    """Alone, in a batch of others, in another order: the same steps, and the same numbers but for the last bits."""
    bowls = Bowls(7)
    together, taken = bowls.run(list(range(7)), **STOPPING)
    assert len(set(taken.tolist())) > 2
    assert taken.min() < taken.max()
    for rows in ([0], [3], [6], [5, 1], [6, 5, 4, 3, 2, 1, 0]):
        found, steps = bowls.run(rows, **STOPPING)
        assert steps.tolist() == taken[rows].tolist()
        torch.testing.assert_close(found["identity"], together["identity"][rows], atol=1e-9, rtol=1e-9)


def test_who_has_stopped_is_asked_no_more() -> None:
    """The batch shrinks to those who still have steps to take, and each loss belongs to its own sample."""
    bowls = Bowls(7)
    _, taken = bowls.run(list(range(7)), **STOPPING)
    assert len(bowls.asked) == taken.max()
    assert sum(len(floor) for floor in bowls.asked) == taken.sum()
    for step, floor in enumerate(bowls.asked):
        assert torch.equal(floor, bowls.floor[taken > step])
    assert set((taken % STOPPING["stop_window"]).tolist()) == {0}


def test_those_who_stop_end_as_well_as_the_others() -> None:
    """The ramp-down of their own takes out the noise of the full learning rate, which would leave several times this bound."""
    bowls = Bowls(7)
    stopped, taken = bowls.run(list(range(7)), **STOPPING)
    full, _ = bowls.run(list(range(7)), **STOPPING | {"stop_tolerance": 0.0})
    losses = [sum(bowls(found, bowls.goal)) for found in (stopped, full)]
    assert taken.float().mean() < 0.9 * STOPPING["steps"]
    assert (losses[0] < losses[1] + 1e-4).all()


def test_without_a_tolerance_all_take_all_steps() -> None:
    """And a watch that sends nobody off changes no bit: windows as long as this leave it no time to."""
    bowls = Bowls(4)
    plain, taken = bowls.run([0, 1, 2, 3], steps=30)
    assert taken.tolist() == [30] * 4
    watched, taken = bowls.run([0, 1, 2, 3], steps=30, stop_tolerance=1.0, stop_window=15)
    assert taken.tolist() == [30] * 4
    assert torch.equal(plain["identity"], watched["identity"])


def test_a_sample_that_stops_has_a_ramp_down_of_its_own() -> None:
    """One gains nothing and one gains half each step: the first one's share of a step falls as a cosine, then it leaves."""
    settings = ProjectionConfig(steps=100, rampdown=0.1, stop_tolerance=0.1, stop_window=5)
    watch, seen, shares = Watch(settings, torch.zeros(2)), {}, []
    assert watch.fall == 10
    for step in range(20):
        shares.append(watch.share(step))
        kept = watch.see(torch.tensor([1.0, 0.5**step]), step + 1)
        if kept is not None:
            seen[step + 1] = kept.tolist()
    # the windows 1..5 and 6..10 are alike: the fall begins after step 10 and ends ten steps later
    assert seen == {5: [0, 1], 10: [0, 1], 15: [0, 1], 20: [1]}
    own = torch.stack(shares)
    assert (own[:, 1] == 1).all()
    assert (own[:10, 0] == 1).all()
    expected = [0.5 + 0.5 * math.cos(math.pi * i / 10) for i in range(10)]
    torch.testing.assert_close(own[10:, 0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_nobody_is_sent_off_in_the_schedules_own_ramp_down_and_numbers_that_are_none_stay() -> None:
    """Losses that stand still from the start end with all steps where no time is left; a loss that is no number never stops."""
    late = Watch(ProjectionConfig(steps=20, rampdown=0.5, stop_tolerance=0.5, stop_window=5), torch.zeros(1))
    assert all(kept is None or kept.tolist() == [0] for kept in (late.see(torch.ones(1), step + 1) for step in range(20)))
    poisoned = Watch(ProjectionConfig(steps=100, rampdown=0.0, stop_tolerance=0.5, stop_window=5), torch.zeros(2))
    losses = torch.tensor([math.nan, 1.0])
    kept = [found.tolist() for step in range(10) if (found := poisoned.see(losses, step + 1)) is not None]
    assert kept == [[0, 1], [0]]


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "unique")
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[Waits]:
    with Waits() as counted:
        yield counted


def test_the_host_waits_at_most_once_a_window() -> None:
    """However many stop."""
    bowls = Bowls(7)
    with waits() as counted:
        _, taken = bowls.run(list(range(7)), **STOPPING)
    assert 0 < counted.count <= int(taken.max()) // STOPPING["stop_window"]
    with waits() as counted:
        bowls.run(list(range(7)), **STOPPING | {"stop_tolerance": 0.0})
    assert counted.count == 0
