"""A sweep in MLflow: one parent run, a nested run for each trial; all written by the driver.

Workers need no way to the store, a sqlite store has one writer, and a trial whose process was killed is still ended properly: the
driver hears of it. A store that cannot be reached costs a warning and nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import normscape
from normscape.config import Config
from normscape.configio import config_digest
from normscape.distributed.cluster import job_id
from normscape.distributed.sweep_trials import Report, Status, Trial
from normscape.stages.files import read_json, update_json
from normscape.stages.provenance import code_version
from normscape.sweepconfig import Sweep, sweep_digest
from normscape.tracking.store import experiment_id, open_client, without_password
from normscape.tracking.values import MAX_PARAM_LENGTH

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("normscape.tracking")

NOTE_NAME = "mlflow.json"
_MAX_TEXT = 5000
"""Longest tag value that all stores take."""
_ENDED: dict[Status, str] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "running": "KILLED"}


class SweepTracker:
    """The parent run of a sweep and its children, continued when the sweep is.

    Args:
        sweep: what is searched.
        config: the experiment; the runs stand in the MLflow experiment of its name.
        folder: the sweep's; `mlflow.json` in it keeps the ids, one set for each store.
        tracking_uri: the store.
    """

    def __init__(self, sweep: Sweep, config: Config, folder: Path, tracking_uri: str) -> None:
        self.sweep, self.config, self.folder, self.tracking_uri = sweep, config, folder, tracking_uri
        self.run_id: str | None = None
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._children: dict[str, str] = {}  # trial key -> run id
        self._steps: dict[str, int] = {}  # trial key -> newest step in the store

    def start(self, known: Sequence[Trial] = ()) -> str | None:
        """Open the store and begin or continue the parent run, before any trial starts.

        Args:
            known: trials of earlier attempts. Where one has ended and the store has not heard of it, it hears of it now: the
                driver was killed in between, or recorded elsewhere.

        Returns:
            Its id; None when the store cannot be reached.
        """
        with self._guarded("cannot be used; the sweep goes on without it"):
            client = open_client(self.tracking_uri)
            self._experiment_id = experiment_id(client, self.config.name, self.tracking_uri)
            noted = read_json(self._note).get(without_password(self.tracking_uri), {})
            parent = noted.get("parent")
            if parent and _exists(client, parent):
                client.update_run(parent, status="RUNNING")
                self._children = {key: run for key, run in noted.get("trials", {}).items() if _exists(client, run)}
            else:
                name = f"sweep {self.sweep.name}-{sweep_digest(self.sweep, self.config)[:8]}"
                parent = client.create_run(self._experiment_id, run_name=name, tags=self._tags()).info.run_id
            present = client.get_run(parent).data.params
            for name, value in self.sweep.model_dump(mode="json").items():
                if name not in present:
                    client.log_param(parent, name, json.dumps(value)[:MAX_PARAM_LENGTH])
            self._client, self.run_id = client, parent
            self._keep()
        for trial in known:
            if trial.status != "running" and self._is_open(trial):
                self.trial_started(trial)
                for report in trial.reports:
                    self.trial_reported(trial, report)
                self.trial_ended(trial)
        with self._guarded("lost the end of trials that were cut off"):
            self._kill_left()
        return self.run_id

    def trial_started(self, trial: Trial) -> None:
        """Begin or continue a trial's run."""
        if self._client is None:
            return
        with self._guarded(f"has no run of trial {trial.number}"):
            run_id = self._children.get(trial.key)
            if run_id is None:
                tags = self._tags() | {
                    "mlflow.parentRunId": str(self.run_id),
                    "normscape.trial": trial.key,
                    "normscape.origin": trial.origin,
                }
                run_id = self._client.create_run(self._experiment_id, run_name=f"trial {trial.number}", tags=tags).info.run_id
                self._children[trial.key] = run_id
                self._keep()
                for name, value in trial.point.items():
                    self._client.log_param(run_id, _metric_name(name), value)
            else:
                self._client.update_run(run_id, status="RUNNING")
                history = self._client.get_metric_history(run_id, "score")
                self._steps[trial.key] = max((metric.step for metric in history), default=0)

    def trial_reported(self, trial: Trial, report: Report) -> None:
        """Write a report at its absolute step, unless it stands there already."""
        run_id, step = self._children.get(trial.key), int(report["step"])
        if self._client is None or run_id is None or step <= self._steps.get(trial.key, 0):
            return
        from mlflow.entities import Metric

        with self._guarded(f"lost a report of trial {trial.number}"):
            now = int(time.time() * 1000)
            metrics = [Metric(_metric_name(name), float(v), now, step) for name, v in report.items() if name != "step"]
            self._client.log_batch(run_id, metrics=metrics)
            self._steps[trial.key] = step

    def trial_ended(self, trial: Trial) -> None:
        """End a trial's run as it ended."""
        run_id = self._children.get(trial.key)
        if self._client is None or run_id is None:
            return
        with self._guarded(f"lost the end of trial {trial.number}"):
            if trial.error:
                self._client.set_tag(run_id, "normscape.error", trial.error[-_MAX_TEXT:])
            self._client.set_tag(run_id, "normscape.trial_status", trial.status)
            self._client.set_terminated(run_id, status=_ENDED[trial.status])

    def close(
        self, status: Literal["FINISHED", "FAILED", "KILLED"], summary: Mapping[str, float], files: tuple[Path, ...] = ()
    ) -> None:
        """Write the results and end the parent run, and every child that still runs; call it in `finally`."""
        if self._client is None or self.run_id is None:
            return
        with self._guarded("lost the end of the sweep"):
            self._kill_left()
            for name, value in summary.items():
                self._client.log_metric(self.run_id, name, value, step=len(self._children))
            for path in files:
                self._client.log_artifact(self.run_id, str(path))
            self._client.set_terminated(self.run_id, status=status)
        self._client = None

    def _is_open(self, trial: Trial) -> bool:
        """Whether the store has no run of this trial, or one that says that it runs."""
        run_id = self._children.get(trial.key)
        with self._guarded(f"cannot tell of trial {trial.number}"):
            return self._client is not None and (run_id is None or self._client.get_run(run_id).info.status == "RUNNING")
        return False

    def _kill_left(self) -> None:
        """Runs that say they run, though no trial does: their process was killed, or stopped with the sweep."""
        if self._client is None:
            return
        for run_id in self._children.values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, status="KILLED")

    def _tags(self) -> dict[str, str]:
        code = code_version()
        tags = {
            "normscape.kind": "sweep",
            "normscape.sweep": self.sweep.name,
            "normscape.sweep_digest": sweep_digest(self.sweep, self.config),
            "normscape.config_digest": config_digest(self.config),
            "normscape.version": normscape.__version__,
            "normscape.code_version": code,
            "normscape.run_folder": str(self.folder),
            "mlflow.source.name": "normscape",
            "mlflow.note.content": self.sweep.description,
        }
        if code != normscape.__version__:
            tags["mlflow.source.git.commit"] = code.removesuffix("-dirty")
        if job := job_id(own=True):
            tags["normscape.ray_job_id"] = job
        return tags

    @property
    def _note(self) -> Path:
        return self.folder / NOTE_NAME

    def _keep(self) -> None:
        update_json(self._note, {without_password(self.tracking_uri): {"parent": self.run_id, "trials": self._children}})

    @contextmanager
    def _guarded(self, consequence: str) -> Iterator[None]:
        """Turn any trouble with the store into a warning."""
        try:
            yield
        except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and OS errors; none may stop a sweep
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = re.sub(r"://[^/@\s]+@", "://", reason)  # MLflow quotes the address, password and all
            _log.warning("MLflow at %s %s: %s", without_password(self.tracking_uri), consequence, reason[:300])


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def summary_of(trials: list[Trial], best: Trial | None) -> dict[str, float]:
    """Headline numbers of a sweep for the parent run."""
    counts: dict[str, Any] = {f"trials_{status}": sum(t.status == status for t in trials) for status in _ENDED}
    return counts | ({"best_score": best.score, "best_trial": best.number} if best is not None and best.score is not None else {})
