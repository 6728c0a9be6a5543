"""The stages of an experiment: their order, when one is up to date, and how one is resumed or run anew.

A run folder is `<runs>/<config.name>/`. A finished stage lies in `<stage>-<key8>/` with a `manifest.json`, work in
progress in `<stage>-<key8>.partial/`. The key covers the stage's name and version, the parts of the configuration that
it reads and the keys of its inputs: another configuration gets another folder beside the old one, and going back to
the old configuration finds the old results.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import normscape
from normscape.config import Config
from normscape.configio import config_digest, digest, dump_yaml, section_digest
from normscape.errors import CheckpointError, UserError
from normscape.stages.files import (
    discard,
    flush_folder,
    flush_to_disk,
    is_disk_full,
    locked,
    read_json,
    update_json,
    write_json,
    write_text,
)
from normscape.stages.provenance import choose_device, code_version
from normscape.stages.recording import PROGRESS_NAME, JsonLinesRecorder, Listener, Listeners

if TYPE_CHECKING:
    import torch

    from normscape.training.recorder import Recorder

MANIFEST_NAME = "manifest.json"
_STATE_NAME = "stage.json"


@dataclass(frozen=True)
class StageContext:
    """What a stage is given.

    Args:
        config: the experiment.
        folder: where to write; renamed when the stage ends well, handed back when it was cut off.
        inputs: the finished folders of all earlier stages, by name.
        device: where to compute.
        recorder: hears metrics and progress.
        key: the stage's key; a checkpoint of another key is not ours.
    """

    config: Config
    folder: Path
    inputs: Mapping[str, Path]
    device: torch.device
    recorder: Recorder
    key: str = ""


StageFunction = Callable[[StageContext], Mapping[str, float]]
"""Runs a stage and returns its headline metrics."""


@dataclass(frozen=True)
class Stage:
    """One step of an experiment.

    Args:
        name: of the stage and, with the key, of its folder.
        sections: top-level fields of the configuration that it reads.
        inputs: stages that it reads.
        omit: `section.field` entries that change nothing in its results.
        version: raised when the stage's results or formats change, so that old ones are not taken for new ones.
        module: module with `run(context)`, imported when it is needed; empty when the caller brings the function.
        source: `data.source` that it is for; under any other it does not exist. Empty: for all.
    """

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()
    version: int = 1
    module: str = ""
    source: str = ""

    def exists(self, config: Config) -> bool:
        """Whether the experiment has this stage."""
        return self.source in ("", config.data.source) and (self.name != "network" or config.network.images > 0)


_UNREAD_BY_AUXILIARY = ("latent_dim", "grids", "tau_same", "tau_different", "weight_same", "weight_different")

STAGES: tuple[Stage, ...] = (
    Stage("prepare", ("data", "image_size", "image_channels", "dims", "seed"), module="normscape.stages.prepare"),
    Stage(
        "auxiliary",
        ("attributes", "augmentation"),
        ("prepare",),
        omit=tuple(f"attributes.{name}" for name in _UNREAD_BY_AUXILIARY),
        module="normscape.stages.auxiliary",
    ),
    Stage(
        "gan",
        ("attributes", "other_dim", "generator", "discriminator", "encoder", "gan"),
        ("prepare", "auxiliary"),
        omit=("gan.checkpoint_interval",),
        module="normscape.stages.gan",
    ),
    Stage("controllers", ("controllers",), ("auxiliary", "gan"), module="normscape.stages.controllers", version=2),
    Stage("latents", ("latents",), ("auxiliary", "gan"), module="normscape.stages.latents"),
    Stage(
        "normals",
        ("normals",),
        ("prepare", "auxiliary", "gan", "controllers", "latents"),
        version=3,
        module="normscape.stages.normals",
        source="brain",
    ),
    # Without `network.images` it does not exist, and what follows is as if there were no such stage.
    Stage(
        "network",
        ("network", "randomisation"),
        ("prepare",),
        omit=("network.checkpoint_interval",),
        module="normscape.stages.network",
    ),
    Stage(
        "project",
        ("projection", "randomisation"),
        ("prepare", "auxiliary", "gan", "controllers", "latents", "normals", "network"),
        version=5,
        module="normscape.stages.project",
    ),
    Stage("score", ("scoring",), ("project",), version=4, module="normscape.stages.score"),
    Stage(
        "brains",
        ("brains",),
        ("prepare", "auxiliary", "gan", "controllers", "latents", "normals", "network", "project", "score"),
        version=2,
        module="normscape.stages.brains",
        source="brain",
    ),
    # The page lies above the stages: whoever runs them brings the function.
    Stage(
        "report",
        ("name", "description"),
        ("prepare", "auxiliary", "gan", "controllers", "latents", "network", "project", "score", "brains"),
    ),
)


def stage_keys(config: Config, stages: Sequence[Stage] = STAGES) -> dict[str, str]:
    """Key of every stage that the experiment has, in order."""
    keys: dict[str, str] = {}
    for stage in stages:
        if stage.exists(config):
            sections = section_digest(config, stage.sections, stage.omit)
            inputs = {name: keys[name] for name in stage.inputs if name in keys}
            keys[stage.name] = digest([stage.name, stage.version, sections, inputs])
    return keys


def folder_name(stage: str, key: str) -> str:
    """Name of a finished stage's folder."""
    return f"{stage}-{key[:8]}"


@dataclass(frozen=True)
class RunResult:
    """A run's folder, and the folder and manifest of each of its finished stages."""

    folder: Path
    stages: Mapping[str, Path]
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run_stages(
    config: Config,
    runs_dir: Path,
    *,
    first: str | None = None,
    last: str | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
    opened: Callable[[Path], None] | None = None,
    extra: Mapping[str, StageFunction] | None = None,
    stages: Sequence[Stage] = STAGES,
) -> RunResult:
    """Run what is not up to date, in order; go on with what was cut off.

    Args:
        config: the experiment.
        runs_dir: the run's folder is made in it.
        first: run this stage and all later ones anew. Old results are put aside (`.old`) until the new ones are finished.
        last: stop after this stage.
        fresh: run all stages anew.
        listener: hears metrics and progress.
        opened: called with the run folder as soon as it is held, before anything runs.
        extra: functions of stages that have no module of their own, by stage; stages with neither are left out.
        stages: the stages, in order.

    Raises:
        UserError: A name that is no stage, a run folder in use, a full disk; and what the stages raise.
    """
    extra = extra or {}
    plan = [stage for stage in stages if stage.exists(config) and (stage.module or stage.name in extra)]
    names = [stage.name for stage in plan]
    begin = _position(names, first, "--from") if first else len(names)
    end = _position(names, last, "--to") if last else len(names) - 1
    if first and begin > end:
        raise UserError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    run_folder = runs_dir.resolve() / config.name
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        with locked(run_folder):
            if opened is not None:
                opened(run_folder)
            session = _Session(config, run_folder, stage_keys(config, stages), listener or Listeners(), extra)
            for stage in plan[0 if fresh else begin :]:
                session.retire(stage)
            for stage in plan[: end + 1]:
                session.run(stage)
            return RunResult(run_folder, session.finished, session.manifests)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(runs_dir.resolve()):
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
        raise
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error, run_folder):
            where = getattr(error, "filename", None) or run_folder
            raise UserError(f"disk is full at {where}; finished work is kept; free some space and run again") from error
        raise


def _position(names: Sequence[str], name: str, option: str) -> int:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean `{close[0]}`?" if close else f"; the stages are {', '.join(names)}"
        raise UserError(f"{option} {name}: there is no such stage{hint}")
    return names.index(name)


class _Session:
    """One pass over the stages of a locked run folder."""

    def __init__(
        self, config: Config, run_folder: Path, keys: Mapping[str, str], listener: Listener, extra: Mapping[str, StageFunction]
    ) -> None:
        self.config = config
        self.run_folder = run_folder
        self.keys = keys
        self.listener = listener
        self.extra = extra
        self.finished: dict[str, Path] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        for left in run_folder.glob("*.trash"):
            shutil.rmtree(left)
        write_text(run_folder / "config.yaml", dump_yaml(config))
        self._note()

    def retire(self, stage: Stage) -> None:
        """Make a stage run anew; its finished folder is put aside until then."""
        final = self._final(stage)
        discard(partial_folder(final))
        if final.exists():
            discard(_old(final))
            os.replace(final, _old(final))

    def run(self, stage: Stage) -> None:
        """Bring one stage up to date."""
        final, key = self._final(stage), self.keys[stage.name]
        partial = partial_folder(final)
        if read_json(partial / MANIFEST_NAME).get("key") == key:  # cut off between the manifest and the rename
            self._publish(partial, final)
        manifest = read_json(final / MANIFEST_NAME)
        if manifest.get("key") == key:
            self._take(stage, final, manifest)
            self.listener.stage_skipped(stage.name, manifest)
            return
        resumed = read_json(partial / _STATE_NAME).get("key") == key
        if not resumed:
            discard(partial)
            partial.mkdir()
            write_json(partial / _STATE_NAME, {"key": key, "started": _now()})
        self.listener.stage_started(stage.name, resumed)
        recorder = JsonLinesRecorder(partial, stage.name, self.listener)
        try:
            inputs = {name: path for name, path in self.finished.items() if name != stage.name}
            context = StageContext(self.config, partial, inputs, choose_device(self.config.device), recorder, key)
            metrics = _function(stage, self.extra)(context)
            recorder.close()
            manifest = self._manifest(stage, partial, recorder.seconds, metrics)
            self._publish(partial, final)
        except BaseException as error:  # Ctrl-C too: the time spent is kept, and listeners hear of it
            if (partial / _STATE_NAME).exists():
                _quietly(recorder.note_seconds)
            self.listener.failed(stage.name, error)
            if isinstance(error, CheckpointError):
                raise self._with_remedy(error) from error
            raise
        self._take(stage, final, manifest)
        self.listener.stage_finished(stage.name, manifest)

    def _with_remedy(self, error: CheckpointError) -> CheckpointError:
        """The error with what to do, when an earlier stage's finished file is to blame."""
        for name, folder in self.finished.items():
            if str(folder) in str(error):
                return CheckpointError(f"{error}\nrun again with `--from {name}` to make it anew")
        return error

    def _manifest(self, stage: Stage, partial: Path, seconds: float, metrics: Mapping[str, float]) -> dict[str, Any]:
        manifest: dict[str, Any] = {
            "stage": stage.name,
            "key": self.keys[stage.name],
            "config_digest": config_digest(self.config),
            "code_version": code_version(),
            "inputs": {name: self.keys[name] for name in stage.inputs if name in self.keys},
            "seed": self.config.seed,
            "metrics": {name: float(value) for name, value in metrics.items() if abs(float(value)) < float("inf")},
            "seconds": round(seconds, 3),
            "started": read_json(partial / _STATE_NAME).get("started", ""),
            "finished": _now(),
            "normscape_version": normscape.__version__,
        }
        flush_folder(partial)
        write_json(partial / MANIFEST_NAME, manifest)
        return manifest

    def _publish(self, partial: Path, final: Path) -> None:
        """Give a complete folder its final name, and let go of what it replaces."""
        (partial / PROGRESS_NAME).unlink(missing_ok=True)
        (partial / _STATE_NAME).unlink(missing_ok=True)
        discard(final)  # only ever a folder without a manifest of this key
        os.replace(partial, final)
        flush_to_disk(self.run_folder)
        discard(_old(final))

    def _take(self, stage: Stage, final: Path, manifest: dict[str, Any]) -> None:
        self.finished[stage.name] = final
        self.manifests[stage.name] = manifest
        self._note()

    def _note(self) -> None:
        """Keep `run.json` up to date: what is finished under this configuration; entries of others (the MLflow run) stay."""
        folders = {name: folder_name(name, key) for name, key in self.keys.items()}
        values = {
            "name": self.config.name,
            "config_digest": config_digest(self.config),
            "code_version": code_version(),
            "stages": {name: folder for name, folder in folders.items() if (self.run_folder / folder / MANIFEST_NAME).exists()},
        }
        update_json(self.run_folder / "run.json", values)

    def _final(self, stage: Stage) -> Path:
        return self.run_folder / folder_name(stage.name, self.keys[stage.name])


def _function(stage: Stage, extra: Mapping[str, StageFunction]) -> StageFunction:
    if stage.name in extra:
        return extra[stage.name]
    function: StageFunction = importlib.import_module(stage.module).run
    return function


def partial_folder(final: Path) -> Path:
    """Where a stage works until it is finished."""
    return final.with_name(final.name + ".partial")


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _quietly(action: Callable[[], None]) -> None:
    """Do what is nice to have while another error is on its way."""
    try:
        action()
    except OSError:
        return
