"""An evaluation in MLflow: a run of its own in the experiment of its configuration, and in it a nested run for each unit.

The parent holds parameters, the headline areas, every reading of the locked test (as `readings.jsonl` and as the metric
`locked_test_readings`, a point a reading), tables and page; a nested run holds the unit's cost, its thresholds and its file. A
store that cannot be reached costs a warning, and nothing else.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from normscape.config import Config
from normscape.evaluation.experiment import Experiment
from normscape.evaluation.locked import LOCKED, READINGS_NAME, Reading
from normscape.evaluation.results import Results
from normscape.evaluation.units import UNIT_NAME, Unit
from normscape.tracking.nested import PARENT_TAG
from normscape.tracking.store import experiment_id, first_line, open_client, without_password
from normscape.tracking.values import artifacts, code_tags, flat_params, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("normscape.tracking")
_BATCH = 100
"""Parameters in one request."""
KIND_TAG, READING_METRIC = "normscape.kind", "locked_test_readings"
_MAX_TEXT = 5000

Status = Literal["FINISHED", "FAILED", "KILLED"]


class EvaluationTracker:
    """Listens to an evaluation (`normscape.stages.recording.Listener`) and records it.

    Args:
        config: the experiment.
        tracking_uri: of the store.
    """

    def __init__(self, config: Config, tracking_uri: str) -> None:
        self.config = config
        self.tracking_uri = tracking_uri
        self.run_id: str | None = None  # the parent's, None while the store could not be reached
        self._client: MlflowClient | None = None
        self._experiment: Experiment | None = None
        self._units: dict[str, Unit] = {}
        self._children: dict[str, str] = {}  # unit -> run id
        self._readings = 0

    # ---------------------------------------------------------------- beginning and end

    def opened(self, experiment: Experiment, units: Sequence[Unit]) -> None:
        """Begin the run; call it when the evaluation's folder is held."""
        self._experiment = experiment
        self._units = {unit.name: unit for unit in units}
        with self._guarded("cannot be used; the evaluation goes on without it"):
            from mlflow.entities import Param

            client = open_client(self.tracking_uri)
            tags = code_tags() | {KIND_TAG: "evaluation", "normscape.config_digest": experiment.digest}
            tags["normscape.run_folder"] = str(experiment.folder.parent)
            run = client.create_run(
                experiment_id(client, self.config.name, self.tracking_uri),
                run_name=f"{self.config.name}-evaluation-{experiment.digest[:8]}",
                tags=tags,
            )
            self._client, self.run_id = client, str(run.info.run_id)
            items = [Param(key, value) for key, value in flat_params(self.config).items()]
            for begin in range(0, len(items), _BATCH):
                client.log_batch(self.run_id, params=items[begin : begin + _BATCH])

    def finished(self, results: Results) -> None:
        """Record tables, page and headline areas."""
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        with self._guarded("has no tables of the evaluation"):
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            found = headline(results.folder)
            client.log_batch(run_id, metrics=[Metric(metric_name(name), value, now, 0) for name, value in found.items()])
            for path in artifacts(results.folder):
                place = path.relative_to(results.folder).parent
                client.log_artifact(run_id, str(path), "" if place == Path() else str(place))
            for name in ("leaderboard.md", "config.yaml"):
                if (results.folder / name).exists():
                    client.log_artifact(run_id, str(results.folder / name))
            if results.failures:
                client.set_tag(run_id, "normscape.failed", ", ".join(unit.name for unit, _ in results.failures)[:_MAX_TEXT])

    def close(self, status: Status) -> None:
        """Keep the list of readings and end all runs; call it in `finally`."""
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        with self._guarded("lost the end of the evaluation"):
            path = self._experiment.folder / READINGS_NAME if self._experiment is not None else None
            if path is not None and path.exists():
                client.log_artifact(run_id, str(path))
            for child in self._children.values():
                client.set_terminated(child, status="KILLED" if status == "KILLED" else "FAILED")
            client.set_terminated(run_id, status=status)
        self._client = None

    def reading(self, reading: Reading) -> None:
        """The locked test was opened: a point of a metric and a tag that says by whom."""
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        self._readings += 1
        with self._guarded("lost a reading of the locked test; it stands in readings.jsonl"):
            client.log_metric(run_id, READING_METRIC, float(reading.images), step=self._readings)
            client.set_tag(run_id, f"normscape.reading.{self._readings:04d}", json.dumps(asdict(reading))[:_MAX_TEXT])

    # ---------------------------------------------------------------- the listener protocol: a unit is a stage

    def stage_started(self, name: str, resumed: bool) -> None:
        """Begin a unit's nested run."""
        self._child(name)

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """An evaluation before this one has run the unit: its results are recorded here too."""
        self.stage_finished(name, manifest)

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Units record none by step."""

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """Progress is for the terminal."""

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record what a unit cost and chose, and end its run."""
        child = self._child(name)
        client = self._client
        if client is None or child is None or self._experiment is None:
            return
        with self._guarded(f"lost the results of {name}"):
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            about = manifest.get("about", {})
            values = dict(manifest.get("metrics", {}))
            values |= {f"threshold/{rate}": threshold for rate, threshold in about.get("thresholds", {}).items()}
            client.log_batch(child, metrics=[Metric(metric_name(key), float(value), now, 0) for key, value in values.items()])
            path = self._units[name].folder(self._experiment) / UNIT_NAME
            if path.exists():
                client.log_artifact(child, str(path))
            client.set_terminated(child, status="FINISHED")
            self._children.pop(name, None)

    def failed(self, name: str, error: BaseException) -> None:
        """Note why a unit failed, and end its run."""
        child = self._child(name)
        client = self._client
        if client is None or child is None:
            return
        with self._guarded(f"lost the failure of {name}"):
            client.set_tag(child, "normscape.error", str(error)[:_MAX_TEXT])
            client.set_terminated(child, status="FAILED")
            self._children.pop(name, None)

    # ---------------------------------------------------------------- writing

    def _child(self, name: str) -> str | None:
        """The nested run of a unit, begun when there is none."""
        client, run_id, unit = self._client, self.run_id, self._units.get(name)
        if client is None or run_id is None or unit is None:
            return None
        if name not in self._children:
            with self._guarded(f"has no run of {name}"):
                tags = code_tags() | {PARENT_TAG: run_id, "normscape.key": unit.key, KIND_TAG: "evaluation unit"}
                tags |= {"normscape.detector": unit.detector.name, "normscape.seed": str(unit.seed)}
                parent = client.get_run(run_id)
                run = client.create_run(parent.info.experiment_id, run_name=name, tags=tags)
                self._children[name] = str(run.info.run_id)
        return self._children.get(name)

    @contextmanager
    def _guarded(self, consequence: str) -> Iterator[None]:
        """Any trouble with the store becomes a warning: MLflow raises its own, requests', SQLAlchemy's and OS errors."""
        try:
            yield
        except Exception as error:
            _log.warning("MLflow at %s %s: %s", without_password(self.tracking_uri), consequence, first_line(error))


def headline(folder: Path) -> dict[str, float]:
    """Test areas by detector and family (`auroc/<detector>/<family>`), of a folder of results."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    chosen = [row for row in rows if row["role"] == LOCKED and row["metric"] == "auroc" and row["value"] is not None]
    return {f"auroc/{row['detector']}/{row['family']}": row["value"] for row in chosen}
