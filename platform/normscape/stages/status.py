"""How far a run is, read from its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normscape.config import Config
from normscape.stages.core import MANIFEST_NAME, STAGES, Stage, folder_name, partial_folder, stage_keys
from normscape.stages.files import is_locked, read_json
from normscape.stages.recording import PROGRESS_NAME


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is.

    Args:
        name: of the stage.
        state: `interrupted` stages go on with the next run.
        key: that the configuration gives the stage.
        folder: finished or partial, None when there is none yet.
        manifest: of a finished stage.
        progress: done, total, unit and seconds of an unfinished one, as far as it was noted.
        others: finished results of other configurations in the same run folder.
    """

    name: str
    state: Literal["finished", "running", "interrupted", "waiting"]
    key: str
    folder: Path | None
    manifest: Mapping[str, Any]
    progress: Mapping[str, Any]
    others: int


def stage_status(config: Config, runs_dir: Path, stages: Sequence[Stage] = STAGES) -> list[StageStatus]:
    """How far each stage is under this configuration; reads only."""
    run_folder = runs_dir.resolve() / config.name
    busy = is_locked(run_folder)
    found = []
    for name, key in stage_keys(config, stages).items():
        final = run_folder / folder_name(name, key)
        partial = partial_folder(final)
        manifest = read_json(final / MANIFEST_NAME)
        others = [p for p in run_folder.glob(f"{name}-*") if re.fullmatch(rf"{name}-[0-9a-f]{{8}}", p.name) and p != final]
        if manifest.get("key") == key:
            found.append(StageStatus(name, "finished", key, final, manifest, {}, len(others)))
        elif partial.exists():
            state: Literal["running", "interrupted"] = "running" if busy else "interrupted"
            found.append(StageStatus(name, state, key, partial, {}, read_json(partial / PROGRESS_NAME), len(others)))
        else:
            found.append(StageStatus(name, "waiting", key, None, {}, {}, len(others)))
    return found
