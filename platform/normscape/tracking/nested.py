"""The nested runs of a run, one for each stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from normscape.tracking.writer import RunWriter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
STAGE_TAG = "normscape.stage"
KEY_TAG = "normscape.key"
SUPERSEDED_TAG = "normscape.superseded"


class StageRuns:
    """Finds, makes and ends the nested run of each stage.

    A stage that is resumed, or found finished, goes on with the newest nested run of its name and key; one that runs anew gets
    a new one, and the old one is marked `normscape.superseded`. Nothing is asked of the store before it must be.

    Args:
        client: of the store.
        parent: the experiment run.
        tags: of every nested run.
    """

    def __init__(self, client: MlflowClient, parent: RunWriter, tags: Mapping[str, str]) -> None:
        self._client = client
        self._parent = parent
        self._tags = dict(tags)
        self._writers: dict[str, tuple[str, RunWriter]] = {}  # stage -> key, writer; of stages at work

    def open_writers(self) -> Iterable[RunWriter]:
        """Writers of the stages at work."""
        return [writer for _, writer in self._writers.values()]

    def begin(self, name: str, key: str, *, anew: bool) -> None:
        """A stage starts; `anew` from its first step."""
        self._writers.pop(name, None)
        self._make(name, key, anew=anew, started=None)

    def writer(self, name: str, key: str, *, started: int | None = None) -> RunWriter:
        """The writer of a stage.

        Args:
            name: of the stage.
            key: of the stage.
            started: beginning in ms since 1970, of a stage that has finished before.
        """
        known = self._writers.get(name)
        return known[1] if known and known[0] == key else self._make(name, key, anew=False, started=started)

    def end(self, name: str, status: str, ended: int | None = None) -> None:
        """End a stage's run, at a time in ms since 1970 (now when empty)."""
        _, writer = self._writers[name]
        self._client.set_terminated(writer.open(), status=status, end_time=ended)
        del self._writers[name]

    def end_all(self, status: str) -> None:
        """End the runs of the stages that are still at work."""
        for name in list(self._writers):
            self.end(name, status)

    def _make(self, name: str, key: str, *, anew: bool, started: int | None) -> RunWriter:
        writer = RunWriter(self._client, lambda: self._opened(name, key, anew, started))
        self._writers[name] = (key, writer)
        return writer

    def _opened(self, name: str, key: str, anew: bool, started: int | None) -> Run:
        """The stage's run, set running; a new one where there is none to go on with."""
        parent = self._client.get_run(self._parent.open())
        same = [run for run in nested_runs(self._client, parent) if _is(run.data.tags, name, key)]
        if anew:
            for run in same:
                self._client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")
                if run.info.status == "RUNNING":
                    self._client.set_terminated(run.info.run_id, status="KILLED")
        elif same:
            self._client.update_run(same[0].info.run_id, status="RUNNING")
            return self._client.get_run(same[0].info.run_id)
        tags = self._tags | {PARENT_TAG: parent.info.run_id, STAGE_TAG: name, KEY_TAG: key}
        return self._client.create_run(parent.info.experiment_id, start_time=started, tags=tags, run_name=name)


def nested_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """The nested runs of a run's stages, the newest first."""
    wanted = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([parent.info.experiment_id], wanted, order_by=["attributes.start_time DESC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return [run for run in found if STAGE_TAG in run.data.tags]


def end_running(client: MlflowClient, parent: Run) -> None:
    """End the nested runs that a process that was killed has left running."""
    for run in nested_runs(client, parent):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status="KILLED")


def _is(tags: Mapping[str, str], name: str, key: str) -> bool:
    return tags.get(STAGE_TAG) == name and tags.get(KEY_TAG) == key and SUPERSEDED_TAG not in tags


def milliseconds(text: object) -> int | None:
    """An ISO time in ms since 1970; None when it is none."""
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except ValueError:
        return None
