"""Timing: medians with their spread, peak memory, and what the machine is."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

WARM_UP = 2
"""Untimed calls: the first one allocates optimiser states and picks kernels."""
SHORTEST_SECONDS = 0.05
"""A quick action is called so often that one measurement takes at least this long."""
LONG_SECONDS = 60.0
"""An action of seconds to minutes is not repeated once its measurements have taken this long."""

Action = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of an action, over several measurements.

    Attributes:
        median, low, high: the middle, the fastest and the slowest measurement, in seconds.
        repeats: number of measurements.
        peak_bytes: highest memory while it ran: the whole process's resident memory, or torch's on a GPU.
    """

    median: float
    low: float
    high: float
    repeats: int
    peak_bytes: int

    @property
    def spread(self) -> float:
        """Distance of the slowest and the fastest measurement, as a share of the median."""
        return (self.high - self.low) / self.median


def total(parts: Sequence[tuple[Timing, float]]) -> Timing:
    """The sum of timings, each times its weight: what a cycle of lazily applied phases costs on average."""
    return Timing(
        median=sum(timing.median * weight for timing, weight in parts),
        low=sum(timing.low * weight for timing, weight in parts),
        high=sum(timing.high * weight for timing, weight in parts),
        repeats=min(timing.repeats for timing, _ in parts),
        peak_bytes=max(timing.peak_bytes for timing, _ in parts),
    )


def measure(
    actions: Mapping[str, Action], *, device: torch.device, repeats: int, units: Mapping[str, int] | None = None
) -> dict[str, Timing]:
    """Time actions that are to be compared.

    They take turns, so that a slow moment of the machine meets all of them and their ratios hold.

    Args:
        actions: name to what is timed.
        device: where they compute; a GPU is waited for.
        repeats: measurements of each.
        units: name to the units of work in one call, 1 where missing; the result is the time of one unit.

    Returns:
        Name to timing.
    """
    calls, peaks = {}, {}
    for name, action in actions.items():
        reset_peak(device)
        for _ in range(WARM_UP - 1):
            action()
        once = _seconds(action, 1, device)
        peaks[name] = peak_bytes(device)
        calls[name] = max(1, math.ceil(SHORTEST_SECONDS / once))
    measured: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            measured[name].append(_seconds(action, calls[name], device) / (calls[name] * (units or {}).get(name, 1)))
    return {
        name: Timing(statistics.median(seconds), min(seconds), max(seconds), repeats, peaks[name])
        for name, seconds in measured.items()
    }


def measure_long(action: Action, *, device: torch.device, repeats: int) -> Timing:
    """Time one action of seconds to minutes: without untimed calls, and no more often than `LONG_SECONDS` allow, once at least.

    Args:
        action: what is timed.
        device: where it computes; a GPU is waited for.
        repeats: measurements at most.
    """
    reset_peak(device)
    seconds = [_seconds(action, 1, device)]
    while len(seconds) < repeats and sum(seconds) < LONG_SECONDS:
        seconds.append(_seconds(action, 1, device))
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds), peak_bytes(device))


def _seconds(action: Action, calls: int, device: torch.device) -> float:
    synchronize(device)
    start = perf_counter()
    for _ in range(calls):
        action()
    synchronize(device)
    return perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let the peak memory begin anew; on a CPU outside of Linux it stays that of the process's whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # what earlier cases have freed goes back to the system first (glibc keeps it otherwise)
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the high-water mark of the resident memory


def peak_bytes(device: torch.device) -> int:
    """Highest memory since `reset_peak`: torch's allocations on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What the numbers were measured on: no names, only what explains speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine: dict[str, str | int] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        machine["cuda"] = str(torch.version.cuda)
    return machine
