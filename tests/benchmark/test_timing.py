"""Timing: who is called when, what a unit is, and how memory is read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from normscape.benchmark import timing
from normscape.benchmark.timing import WARM_UP, Timing, describe_machine, measure, total

CPU = torch.device("cpu")


def test_actions_take_turns_after_their_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is warmed up alone, then both are measured in turns."""
    monkeypatch.setattr(timing, "SHORTEST_SECONDS", 0.0)
    calls: list[str] = []
    result = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, device=CPU, repeats=3)
    assert calls == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * 3
    assert result["a"].repeats == 3
    assert result["a"].low <= result["a"].median <= result["a"].high


def test_a_unit_divides_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances one second a look: every call takes one second, of which five units take a fifth each."""
    ticks = iter(range(1000))
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(ticks)))
    result = measure({"whole": lambda: None, "fifth": lambda: None}, device=CPU, repeats=2, units={"fifth": 5})
    assert result["whole"].median == 1.0
    assert result["fifth"].median == pytest.approx(0.2)


def test_the_peak_is_that_of_the_action_and_not_of_an_earlier_one() -> None:
    """An action that holds 256 MiB shows them; the one after it does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its high-water mark")
    result = measure({"large": lambda: torch.ones(2**26), "small": lambda: None}, device=CPU, repeats=1)
    assert result["large"].peak_bytes - result["small"].peak_bytes > 200 * 2**20


def test_total_weighs_its_parts() -> None:
    """A phase of every fourth step adds a quarter of its time and all of its memory."""
    whole = total([(Timing(1.0, 0.9, 1.2, 5, 100), 1.0), (Timing(2.0, 1.6, 4.0, 3, 300), 0.25)])
    assert (whole.median, whole.low, whole.high) == pytest.approx((1.5, 1.3, 2.2))
    assert (whole.repeats, whole.peak_bytes) == (3, 300)
    assert whole.spread == pytest.approx(0.6)


def test_the_machine_is_described_without_its_name() -> None:
    """Cores, threads and torch's version; no host name."""
    machine = describe_machine(CPU)
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["device"] == "CPU"
    assert socket.gethostname() not in [str(value) for value in machine.values()]
