"""Load of the machine (processor, memory, disk, GPU), under the names that MLflow's pages know.

MLflow's own monitor runs in a thread and stops for good when the store is away once. Here its collectors are asked from time
to time by whoever reports metrics, and the values wait with the others.
"""

from __future__ import annotations

import os
import time
from typing import Any

SECONDS = 10.0
"""Time between two samples."""
PREFIX = "system/"


class SystemMetrics:
    """Samples the machine, at most every `SECONDS`; nothing where psutil is missing or
    `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` is false."""

    def __init__(self) -> None:
        self._monitors = _monitors() if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() == "true" else []
        self._next = time.monotonic()

    def sample(self) -> dict[str, float]:
        """Values by metric name; empty while it is too early for the next sample."""
        if not self._monitors or time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + SECONDS
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"{PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


def _monitors() -> list[Any]:
    """MLflow's collectors that work here."""
    found: list[Any] = []
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    except ImportError:  # no psutil
        return found
    for make in (CPUMonitor, DiskMonitor, GPUMonitor):
        try:
            found.append(make())
        except Exception:  # no GPU, or no nvidia-ml-py: MLflow raises either kind
            continue
    return found
