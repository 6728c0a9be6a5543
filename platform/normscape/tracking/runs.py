"""One MLflow run for each run folder and configuration, with a nested run for each stage, continued when the run is resumed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from normscape.config import Config
from normscape.configio import config_digest, dump_yaml
from normscape.stages.core import STAGES, Stage, folder_name, stage_keys
from normscape.stages.files import read_json, write_json
from normscape.tracking import values as naming
from normscape.tracking.datasets import SAMPLES_NAME, data_digest, dataset_inputs
from normscape.tracking.nested import StageRuns, end_running, milliseconds
from normscape.tracking.store import default_tracking_uri, experiment_id, first_line, open_client, without_password
from normscape.tracking.system_metrics import SystemMetrics
from normscape.tracking.writer import RunWriter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger("normscape.tracking")

FLUSH_SECONDS = 5.0
"""Metrics wait at most about this long before they are written, many in one request."""
PAUSE_SECONDS = 60.0
"""After a failed write the store is left alone for this long, twice as long after each further one."""
LONGEST_PAUSE_SECONDS = 1800.0
NOTE_NAME = "mlflow.json"
CLOSE_SECONDS = 90.0
"""A finished run waits this long for a store that is away, so that nothing is missing in the end."""
CLOSE_PAUSE_SECONDS = 3.0
REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED")
"""Answers of a store that is there: asking again would not help."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowListener:
    """Listens to a run's stages and records them in MLflow.

    The experiment is called like the configuration. The parent run holds parameters, `config.yaml`, the headline metrics
    (`<stage>/<metric>`), the datasets, the machine's load and the page; a nested run for each stage holds its curves by absolute
    step, its final metrics, tables and figures. The parent's id is kept in `<run_folder>/mlflow.json`, one for each
    configuration digest and store; nested runs are found by their tags. After a resume, steps that were recorded before are left
    out. A store that cannot be reached costs a warning and nothing else: what is missing is written when it is back, or when a
    later run finds the stage finished.

    Args:
        config: the experiment.
        run_folder: `runs/<config.name>`; its parent holds the default store.
        tracking_uri: the store; `MLFLOW_TRACKING_URI` or a sqlite file in the runs folder when empty.
        fresh: begin a new MLflow run even when this folder and configuration have one.
        stages: the stages that will run.

    Example:
        >>> listener = MlflowListener(config, Path("runs/demo"))  # doctest: +SKIP
        >>> listener.start()  # doctest: +SKIP
        >>> listener.metrics("gan", {"loss_g": 0.7}, step=50)  # doctest: +SKIP
        >>> listener.close("FINISHED")  # doctest: +SKIP
    """

    def __init__(
        self,
        config: Config,
        run_folder: Path,
        tracking_uri: str | None = None,
        *,
        fresh: bool = False,
        stages: Sequence[Stage] = STAGES,
    ) -> None:
        self.config = config
        self.run_folder = run_folder
        self.tracking_uri = tracking_uri or default_tracking_uri(run_folder.parent)
        self.run_id: str | None = None  # the parent's, None while the store could not be reached
        self._fresh = fresh
        self._digest = config_digest(config)
        self._keys = stage_keys(config, stages)
        self._client: MlflowClient | None = None
        self._run: RunWriter | None = None
        self._stages: StageRuns | None = None
        self._owed: dict[str, Mapping[str, Any]] = {}  # finished stages whose record is not whole yet
        self._system = SystemMetrics()
        self._next_flush = 0.0
        self._retry_at = 0.0
        self._pause = 0.0
        self._warned = ""
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
            run = RunWriter(client, lambda: self._continued(client) or self._created(client))
            run.open()
            end_running(client, client.get_run(run.open()))
            stages = StageRuns(client, run, naming.stage_tags(self.config))
            run.tag(naming.run_tags(self.config, self.run_folder))
            run.flush()
            run.log_params(naming.flat_params(self.config))
            client.log_text(run.open(), dump_yaml(self.config), "config.yaml")
            self._client, self._run, self._stages, self.run_id = client, run, stages, run.run_id
        except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors; none may stop a training
            self._warn("cannot be used; the run goes on without it", error)
        return self.run_id

    def close(self, status: Status = "FINISHED") -> None:
        """Write what waits and end the runs; call it in `finally`. May be called twice.

        A finished run waits a while for a store that is away; one that was cut off does not.
        """
        if self._client is None or self._run is None or self._stages is None or os.getpid() != self._pid:
            return
        client, run, stages = self._client, self._run, self._stages

        def end() -> None:
            stages.end_all(status)
            client.set_terminated(run.open(), status=status)

        give_up = time.monotonic() + (CLOSE_SECONDS if status == "FINISHED" else 0.0)
        while True:
            self._retry_at = 0.0
            self._flush()
            if not self._missing() and self._attempt("does not hear that the run ended", end):
                break
            if time.monotonic() >= give_up:
                self._retry_at = 0.0
                self._attempt("lost the end of the run", end)
                break
            time.sleep(CLOSE_PAUSE_SECONDS)
        self._client = self._run = self._stages = None

    def _missing(self) -> bool:
        """Whether something still waits."""
        assert self._run is not None
        assert self._stages is not None
        return bool(self._owed or self._run.waiting or any(writer.waiting for writer in self._stages.open_writers()))

    def _continued(self, client: MlflowClient) -> Run | None:
        """The run of this folder and configuration, set running again; None when there is none (or it was deleted)."""
        from mlflow.exceptions import MlflowException

        mine: Run | None = None
        for digest, stores in self._known_runs().items():
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
                end_running(client, run)
                client.set_terminated(run_id, status="KILLED")
        return mine

    def _created(self, client: MlflowClient) -> Run:
        """A new run in the experiment named like the configuration, noted in `mlflow.json`."""
        experiment = experiment_id(client, self.config.name, self.tracking_uri)
        run = client.create_run(experiment, run_name=f"{self.config.name}-{self._digest[:8]}")
        known = self._known_runs()
        known.setdefault(self._digest, {})[without_password(self.tracking_uri)] = run.info.run_id
        self.run_folder.mkdir(parents=True, exist_ok=True)
        write_json(self.run_folder / NOTE_NAME, known)
        return run

    def _known_runs(self) -> dict[str, dict[str, str]]:
        """Config digest -> store -> run id."""
        return read_json(self.run_folder / NOTE_NAME)

    # ---------------------------------------------------------------- the listener protocol

    def stage_started(self, name: str, resumed: bool) -> None:
        """Begin the stage's nested run, or go on with it."""
        if self._run is None or self._stages is None:
            return
        self._flush()  # what an attempt before this one has left
        self._stages.begin(name, self._key(name), anew=not resumed)
        self._run.tag({"normscape.stage": f"{name} (resumed)" if resumed else name})
        self._flush()

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a stage that an earlier run finished, unless this MLflow run has it."""
        if self._run is not None and self._run.tags.get(f"normscape.key.{name}") != str(manifest.get("key", "")):
            self._owed[name] = manifest
            self._flush()

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Buffer values measured at an absolute step; steps recorded before are left out."""
        if self._run is None or self._stages is None:
            return
        writer = self._stages.writer(stage, self._key(stage))
        for name, value in values.items():
            writer.add(naming.metric_name(name), float(value), step)
        self._tick()

    def progress(self, stage: str, done: int, total: int, unit: str = "step") -> None:
        """Progress is for the terminal; MLflow takes the chance to look at the machine's load."""
        self._tick()

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a stage's final metrics, tables and figures."""
        if self._run is not None:
            self._owed[name] = manifest
            self._flush()

    def failed(self, name: str, error: BaseException) -> None:
        """Note where and why a run broke off; `close` ends it."""
        if self._run is None or self._stages is None:
            return
        reason = {"normscape.error": f"{name}: {type(error).__name__}: {error}"[:5000]}
        self._run.tag(reason)
        self._stages.writer(name, self._key(name)).tag(reason)
        self._flush()

    # ---------------------------------------------------------------- writing

    def _key(self, name: str) -> str:
        return self._keys.get(name, "")

    def _tick(self) -> None:
        """Sample the machine, and write what waits, when it is time to."""
        if self._run is None:
            return
        sample = self._system.sample()
        step = 1 + max((self._run.last_step(key) for key in sample), default=-1)
        for key, value in sample.items():
            self._run.add(key, value, step)
        if time.monotonic() >= self._next_flush:
            self._flush()

    def _flush(self) -> None:
        """Write what waits, then what is owed of finished stages; what could not be written goes on waiting."""
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        if self._run is None or self._stages is None:
            return
        for writer in (self._run, *self._stages.open_writers()):
            if not self._attempt("is away; metrics wait", writer.flush, refused=writer.discard):
                return
        for name, manifest in list(self._owed.items()):
            record = partial(self._record_stage, name, manifest)
            if not self._attempt(f"has no tables and figures of stage {name} yet", record, refused=partial(self._owed.pop, name)):
                return
            self._owed.pop(name, None)

    def _record_stage(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Everything of a finished stage: nested run, headline metrics, datasets, page."""
        assert self._client is not None
        assert self._run is not None
        assert self._stages is not None
        key = str(manifest.get("key", ""))
        folder = self.run_folder / folder_name(name, key)
        writer = self._stages.writer(name, key, started=milliseconds(manifest.get("started")))
        run_id = writer.open()
        curves: set[str] = set()
        for step, row in naming.curve(folder):  # live points are known already; what the store missed is added
            for metric, value in row.items():
                curves.add(naming.metric_name(metric))
                writer.add(naming.metric_name(metric), value, step)
        finals = {**manifest.get("metrics", {}), "seconds": manifest.get("seconds", 0.0)}
        for metric, value in finals.items():
            # A final value is no further point of a curve of the same name.
            full = naming.metric_name(metric)
            writer.add_final(f"final/{full}" if full in curves else full, float(value))
            self._run.add_final(naming.metric_name(metric, name), float(value))
        writer.flush()
        for path in naming.artifacts(folder):
            place = path.relative_to(folder).parent
            if path.suffix == ".html":
                self._client.log_artifact(self._run.open(), str(path), str(Path(name) / place))
            else:
                self._client.log_artifact(run_id, str(path), "" if place == Path() else str(place))
        if (folder / SAMPLES_NAME).exists():
            digest = {"normscape.data_digest": data_digest(self.config, folder / SAMPLES_NAME)}
            inputs = dataset_inputs(self.config, folder / SAMPLES_NAME)
            for target in (self._run, writer):
                target.tag(digest)
                self._client.log_inputs(target.open(), datasets=inputs)
        writer.flush()
        self._stages.end(name, "FINISHED", milliseconds(manifest.get("finished")))
        self._run.tag({f"normscape.key.{name}": key})  # last: it says that all of the above is there
        self._run.flush()

    def _attempt(self, consequence: str, action: Callable[[], object], refused: Callable[[], object] | None = None) -> bool:
        """Do something with the store. Any trouble becomes a warning, and the store is left alone for a while.

        Args:
            consequence: for the warning.
            action: what to do.
            refused: what to do when the store is there and says no.

        Returns:
            Whether to go on.
        """
        from mlflow.exceptions import MlflowException

        if time.monotonic() < self._retry_at:
            return False
        try:
            action()
        except Exception as error:  # see start()
            if refused is not None and isinstance(error, MlflowException) and error.error_code in REFUSED:
                self._warn("refuses what it is given; it is left out", error)
                refused()
                return True
            self._warn(consequence, error)
            self._pause = min(max(PAUSE_SECONDS, 2 * self._pause), LONGEST_PAUSE_SECONDS)
            self._retry_at = time.monotonic() + self._pause
            return False
        self._pause = 0.0
        return True

    def _warn(self, consequence: str, error: Exception) -> None:
        reason = first_line(error)
        if consequence + reason == self._warned:  # said already
            return
        self._warned = consequence + reason
        _log.warning("MLflow at %s %s: %s", without_password(self.tracking_uri), consequence, reason)
