"""One MLflow run for each run folder and configuration, continued when the run is resumed."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import normscape
from normscape.config import Config
from normscape.configio import config_digest, dump_yaml
from normscape.stages.core import folder_name
from normscape.stages.provenance import code_version
from normscape.tracking import values as naming
from normscape.tracking.store import artifact_location, default_tracking_uri, open_client, without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_log = logging.getLogger("normscape.tracking")

FLUSH_SECONDS = 5.0
"""Metrics wait at most about this long before they are written, many in one request."""
BATCH = 1000
"""Metrics in one request; MLflow takes no more."""
PARAM_BATCH = 100
"""Parameters in one request; MLflow takes no more."""
BUFFER_LIMIT = 200_000
"""Points kept while the store is away; older ones are dropped first."""
PAUSE_SECONDS = 60.0
"""After a failed write the store is left alone for this long, twice as long after each further one."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowListener:
    """Listens to a run's stages and records them in MLflow.

    The run's id is kept in `<run_folder>/mlflow.json`, one for each configuration digest and store. Metrics go by absolute
    step: after a resume, steps that were recorded before are left out. A store that cannot be reached costs a warning and
    nothing else; what was missed of a stage is recorded when it finishes, or when a later run finds it finished.

    Args:
        config: the experiment.
        run_folder: `runs/<config.name>`; its parent holds the default store.
        tracking_uri: the store; `MLFLOW_TRACKING_URI` or a sqlite file in the runs folder when empty.
        fresh: begin a new MLflow run even when this folder and configuration have one.

    Example:
        >>> listener = MlflowListener(config, Path("runs/demo"))  # doctest: +SKIP
        >>> listener.start()  # doctest: +SKIP
        >>> listener.metrics("gan", {"loss_g": 0.7}, step=50)  # doctest: +SKIP
        >>> listener.close("FINISHED")  # doctest: +SKIP
    """

    def __init__(self, config: Config, run_folder: Path, tracking_uri: str | None = None, *, fresh: bool = False) -> None:
        self.config = config
        self.run_folder = run_folder
        self.tracking_uri = tracking_uri or default_tracking_uri(run_folder.parent)
        self.run_id: str | None = None
        self._fresh = fresh
        self._digest = config_digest(config)
        self._client: MlflowClient | None = None
        self._recorded: set[str] = set()  # metric keys the store already has, not asked for yet
        self._last: dict[str, tuple[int, float]] = {}  # newest (step, value) of a key, written or buffered
        self._tags: dict[str, str] = {}
        self._buffer: list[Metric] = []
        self._next_flush = 0.0
        self._pause = 0.0
        self._pid = os.getpid()

    # ---------------------------------------------------------------- beginning and end

    def start(self) -> str | None:
        """Open the store and begin or continue the run.

        Call it when the run folder is held (`run_stages(..., opened=...)`): what MLflow still calls running in this folder is
        taken for a process that was killed.

        Returns:
            The run's id; None when the store cannot be reached.
        """
        try:
            client = open_client(self.tracking_uri)
            run = self._continued(client) or self._created(client)
            self._client, self.run_id = client, run.info.run_id
            self._recorded, self._tags = set(run.data.metrics), dict(run.data.tags)
            self._describe(run)
        except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors; none may stop a training
            self._warn("cannot be used; the run goes on without it", error)
        return self.run_id

    def close(self, status: Status = "FINISHED") -> None:
        """Write what is buffered and end the run; call it in `finally`. May be called twice."""
        if self._client is None or self.run_id is None or os.getpid() != self._pid:
            return
        self._flush()
        with self._guarded("lost the end of the run"):
            self._client.set_terminated(self.run_id, status=status)
        self._client = None

    def _continued(self, client: MlflowClient) -> Run | None:
        """The run of this folder and configuration, set running again; None when there is none (or it was deleted)."""
        from mlflow.exceptions import MlflowException

        known = self._known_runs()
        mine: Run | None = None
        for digest, stores in known.items():
            run_id = stores.get(without_password(self.tracking_uri))
            if run_id is None:
                continue
            try:
                run = client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                continue
            if run.info.lifecycle_stage != "active":
                continue
            if digest == self._digest and not self._fresh:
                client.update_run(run_id, status="RUNNING")
                mine = run
            elif run.info.status == "RUNNING":  # its process was killed: only one process works in a run folder
                client.set_terminated(run_id, status="KILLED")
        return mine

    def _created(self, client: MlflowClient) -> Run:
        """A new run in the experiment named like the configuration, noted in `mlflow.json`."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.config.name)
        if experiment is None:
            try:
                client.create_experiment(self.config.name, artifact_location=artifact_location(self.tracking_uri))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                    raise
            experiment = client.get_experiment_by_name(self.config.name)
            assert experiment is not None
        run = client.create_run(experiment.experiment_id, run_name=f"{self.config.name}-{self._digest[:8]}")
        known = self._known_runs()
        known.setdefault(self._digest, {})[without_password(self.tracking_uri)] = run.info.run_id
        self.run_folder.mkdir(parents=True, exist_ok=True)
        aside = self._note.with_name(self._note.name + ".tmp")
        aside.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, self._note)
        return run

    def _describe(self, run: Run) -> None:
        """Parameters, tags and `config.yaml`; on a continued run only what is new."""
        from mlflow.entities import Param, RunTag

        assert self._client is not None
        assert self.run_id is not None
        code = code_version()
        tags = {
            "normscape.version": normscape.__version__,
            "normscape.code_version": code,
            "normscape.config_digest": self._digest,
            "normscape.run_folder": str(self.run_folder.resolve()),
            "mlflow.source.name": "normscape",
            "mlflow.note.content": self.config.description,
        }
        if code != normscape.__version__:  # a git commit
            tags["mlflow.source.git.commit"] = code.removesuffix("-dirty")
        params = [Param(k, v) for k, v in naming.flat_params(self.config).items() if k not in run.data.params]
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        for start in range(0, len(params), PARAM_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + PARAM_BATCH])
        self._client.log_text(self.run_id, dump_yaml(self.config), "config.yaml")

    @property
    def _note(self) -> Path:
        return self.run_folder / "mlflow.json"

    def _known_runs(self) -> dict[str, dict[str, str]]:
        """Config digest -> store -> run id."""
        try:
            known = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    # ---------------------------------------------------------------- the listener protocol

    def stage_started(self, name: str, resumed: bool) -> None:
        """Note which stage works now."""
        self._tag({"normscape.stage": f"{name} (resumed)" if resumed else name})

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a stage that an earlier run finished, unless this MLflow run has it."""
        if self._tags.get(f"normscape.key.{name}") != str(manifest.get("key", "")):
            self._record_stage(name, manifest)

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Buffer values measured at an absolute step; steps recorded before are left out."""
        if self._client is None:
            return
        for name, value in values.items():
            self._add(naming.metric_name(stage, name), float(value), step)
        if time.monotonic() >= self._next_flush:
            self._flush()

    def progress(self, stage: str, done: int, total: int, unit: str = "step") -> None:
        """Progress is for the terminal; MLflow has no use for it."""

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a stage's final metrics, tables and figures."""
        self._record_stage(name, manifest)

    def failed(self, name: str, error: BaseException) -> None:
        """Note where and why a run broke off; `close` ends it."""
        self._flush()
        self._tag({"normscape.error": f"{name}: {type(error).__name__}: {error}"[:5000]})

    # ---------------------------------------------------------------- writing

    def _record_stage(self, name: str, manifest: Mapping[str, Any]) -> None:
        if self._client is None or self.run_id is None:
            return
        key = str(manifest.get("key", ""))
        folder = self.run_folder / folder_name(name, key)
        curves: set[str] = set()
        for step, row in naming.curve(folder):  # live points are known already; what the store missed is added
            for metric, value in row.items():
                curves.add(naming.metric_name(name, metric))
                self._add(naming.metric_name(name, metric), value, step)
        finals = {**manifest.get("metrics", {}), "seconds": manifest.get("seconds", 0.0)}
        for metric, value in finals.items():
            full = naming.metric_name(name, metric)
            # A final value is no further point of a curve of the same name.
            full = naming.metric_name(name, f"final/{metric}") if full in curves else full
            last = self._last_of(full)
            if last is None or not _same(last[1], float(value)):
                self._add(full, float(value), 0 if last is None else last[0] + 1)
        self._flush()
        with self._guarded(f"has no tables and figures of stage {name}"):
            for path in naming.artifacts(folder):
                place = path.relative_to(folder).parent
                self._client.log_artifact(self.run_id, str(path), str(Path(name) / place))
            self._tag({f"normscape.key.{name}": key})

    def _tag(self, tags: Mapping[str, str]) -> None:
        if self._client is None or self.run_id is None:
            return
        from mlflow.entities import RunTag

        with self._guarded("lost a tag"):
            self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
            self._tags.update(tags)

    def _last_of(self, key: str) -> tuple[int, float] | None:
        """Newest (step, value) of a metric; the store is asked once for each key it had at the start."""
        if key in self._recorded and self._client is not None and self.run_id is not None:
            with self._guarded(f"could not tell the last step of {key}"):
                newest = max(self._client.get_metric_history(self.run_id, key), key=lambda m: (m.step, m.timestamp))
                self._last[key] = (newest.step, newest.value)
            self._recorded.discard(key)
        return self._last.get(key)

    def _add(self, key: str, value: float, step: int) -> None:
        from mlflow.entities import Metric

        last = self._last_of(key)
        if last is None or step > last[0]:
            self._buffer.append(Metric(key, value, int(time.time() * 1000), step))
            self._last[key] = (step, value)

    def _flush(self) -> None:
        """Write the buffer; what could not be written stays in it."""
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        if self._client is None or self.run_id is None:
            return
        with self._guarded("is away; metrics wait"):
            while self._buffer:
                self._client.log_batch(self.run_id, metrics=self._buffer[:BATCH])
                del self._buffer[:BATCH]
            self._pause = 0.0
            return
        self._pause = min(max(PAUSE_SECONDS, 2 * self._pause), 1800.0)
        self._next_flush = time.monotonic() + self._pause
        del self._buffer[:-BUFFER_LIMIT]

    @contextmanager
    def _guarded(self, consequence: str) -> Iterator[None]:
        """Turn any trouble with the store into a warning."""
        try:
            yield
        except Exception as error:  # see start()
            self._warn(consequence, error)

    def _warn(self, consequence: str, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = re.sub(r"://[^/@\s]+@", "://", reason)  # MLflow quotes the address, password and all
        _log.warning("MLflow at %s %s: %s", without_password(self.tracking_uri), consequence, reason[:300])


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
