"""Writes to one MLflow run, many points in one request; what cannot be written now waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

BATCH = 1000
"""Metrics in one request; MLflow takes no more."""
TAG_BATCH = 100
"""Tags, and parameters, in one request; MLflow takes no more."""
BUFFER_LIMIT = 200_000
"""Points kept while the store is away; older ones are dropped first."""


class RunWriter:
    """Buffers metrics and tags of one run.

    Metrics go by absolute step: a step that the run has already, or an earlier one, is left out, so that a resumed stage
    records nothing twice.

    Args:
        client: of the store.
        open_run: finds or makes the run; asked at the first write, and again while it fails.
    """

    def __init__(self, client: MlflowClient, open_run: Callable[[], Run]) -> None:
        self.run_id: str | None = None
        self.tags: dict[str, str] = {}  # that the run has
        self.params: dict[str, str] = {}
        self._client = client
        self._open_run = open_run
        self._last: dict[str, tuple[int, float]] = {}  # newest (step, value) of a key, written or waiting
        self._metrics: list[Metric] = []
        self._waiting_tags: dict[str, str] = {}

    @property
    def waiting(self) -> int:
        """Metrics and tags that are not written yet."""
        return len(self._metrics) + len(self._waiting_tags)

    def open(self) -> str:
        """The run's id.

        Raises:
            Exception: whatever MLflow raises when the store is away.
        """
        if self.run_id is None:
            run = self._open_run()
            recorded = {m.key: (int(m.step), float(m.value)) for m in run.data.to_proto().metrics}
            self._metrics = [m for m in self._metrics if m.key not in recorded or m.step > recorded[m.key][0]]
            for key, newest in recorded.items():
                if key not in self._last or self._last[key][0] <= newest[0]:
                    self._last[key] = newest
            self.tags, self.params, self.run_id = dict(run.data.tags), dict(run.data.params), run.info.run_id
        return self.run_id

    def add(self, key: str, value: float, step: int) -> None:
        """A point of a curve, unless that step or a later one is there."""
        from mlflow.entities import Metric

        last = self._last.get(key)
        if last is None or step > last[0]:
            self._metrics.append(Metric(key, value, int(time.time() * 1000), step))
            self._last[key] = (step, value)
            del self._metrics[:-BUFFER_LIMIT]

    def add_final(self, key: str, value: float) -> None:
        """A single value, unless it is there; one that changed goes by the next step. Call `open` before."""
        last = self._last.get(key)
        if last is None or not _same(last[1], value):
            self.add(key, value, 0 if last is None else last[0] + 1)

    def last_step(self, key: str) -> int:
        """Newest step of a key, written or waiting; -1 when there is none."""
        return self._last.get(key, (-1, 0.0))[0]

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags with the next write."""
        self._waiting_tags |= tags

    def flush(self) -> None:
        """Write what waits; what could not be written goes on waiting.

        Raises:
            Exception: whatever MLflow raises when the store is away.
        """
        from mlflow.entities import RunTag

        run_id = self.open()
        tags = {key: value for key, value in self._waiting_tags.items() if self.tags.get(key) != value}
        items = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(items), TAG_BATCH):
            self._client.log_batch(run_id, tags=items[start : start + TAG_BATCH])
        self.tags |= tags
        self._waiting_tags.clear()
        while self._metrics:
            self._client.log_batch(run_id, metrics=self._metrics[:BATCH])
            del self._metrics[:BATCH]

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write the parameters that the run does not have; MLflow's never change."""
        from mlflow.entities import Param

        run_id = self.open()
        items = [Param(key, value) for key, value in params.items() if key not in self.params]
        for start in range(0, len(items), TAG_BATCH):
            self._client.log_batch(run_id, params=items[start : start + TAG_BATCH])
        self.params |= {item.key: item.value for item in items}

    def discard(self) -> None:
        """Forget what waits: the store refuses it for good."""
        self._metrics.clear()
        self._waiting_tags.clear()


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
