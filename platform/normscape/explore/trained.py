"""What the explorer shows: the networks of a run or of a registered model, and what a scan is scored with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from normscape.config import Config
from normscape.errors import UserError
from normscape.inversion.projector import Projector
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator
from normscape.stages.scan import ScanModel

GENERATING = ("gan", "controllers")
"""Stages that have to be finished before anything can be shown."""
PROJECTING = ("auxiliary", "gan", "controllers", "latents", "project")
"""Stages that have to be finished before the run's own images can be shown at other values."""


@dataclass(frozen=True)
class Trained:
    """A trained system.

    Attributes:
        config: the experiment.
        generator: the averaged generator; the page's own copy, so that no scan that is scored meanwhile shares it.
        controllers: value attributes to their controllers.
        projector: turns stored coordinates into styles; None where the run has no projected images.
        projected: folder of stage `project`, where there is a projector.
        scan_model: scores scans; None for experiments without scans.
        origin: where it was read from, for people.
    """

    config: Config
    generator: Generator
    controllers: dict[str, Controller]
    projector: Projector | None = None
    projected: Path | None = None
    scan_model: ScanModel | None = None
    origin: str = field(default="")


def load_run(folder: Path) -> Trained:
    """The networks of a run: as soon as generator and controllers are trained; of brains when everything is.

    Args:
        folder: `runs/<name>`.

    Raises:
        UserError: a stage that is needed is not finished.
        CheckpointError: weights are damaged.
    """
    from normscape.configio import load_config
    from normscape.stages.models import load_projector
    from normscape.stages.provenance import choose_device
    from normscape.stages.status import stage_status

    config = load_config(folder / "config.yaml")
    status = stage_status(config, folder.resolve().parent)
    finished = {stage.name: stage.folder for stage in status if stage.state == "finished" and stage.folder is not None}
    missing = [name for name in GENERATING if name not in finished]
    if missing:
        raise UserError(f"{folder}: not finished yet: {', '.join(missing)}; the page needs a trained generator and controllers")
    device = choose_device(config.device)
    projector = None
    known = {stage.name for stage in status}
    if all(name in finished for name in PROJECTING) and ("normals" in finished or "normals" not in known):
        projector = load_projector(config, finished, device)
    scans = _scan_model(config, folder, device, package=False) if config.data.source == "brain" else None
    return _trained(config, finished, device, projector, finished.get("project"), scans, f"run {folder.name}")


def load_registered(uri: str, runs_dir: Path) -> Trained:
    """The networks of a registered model.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        runs_dir: where the MLflow file is, unless MLFLOW_TRACKING_URI names another store.

    Raises:
        UserError: no such model, or the store cannot be used.
        CheckpointError: weights are damaged.
    """
    from normscape.configio import load_config
    from normscape.stages.provenance import choose_device
    from normscape.tracking.registry import fetch_model
    from normscape.tracking.store import default_tracking_uri

    folder = fetch_model(uri, default_tracking_uri(runs_dir)).system
    config = load_config(folder / "config.yaml")
    device = choose_device(config.device)
    folders = {name: folder / name for name in GENERATING}
    scans = _scan_model(config, folder, device, package=True) if config.data.source == "brain" else None
    return _trained(config, folders, device, None, None, scans, uri)


def _trained(
    config: Config,
    folders: dict[str, Path],
    device: torch.device,
    projector: Projector | None,
    projected: Path | None,
    scans: ScanModel | None,
    origin: str,
) -> Trained:
    from normscape.stages.models import load_controllers, load_generator

    generator = load_generator(config, folders["gan"], device).eval()
    controllers = load_controllers(config, folders["controllers"], device)
    return Trained(config, generator, controllers, projector, projected if projector is not None else None, scans, origin)


def _scan_model(config: Config, folder: Path, device: torch.device, *, package: bool) -> ScanModel:
    """What `normscape score` loads, too."""
    from normscape.datasets.prepared import COHORT_NAME
    from normscape.stages.scan import scan_model
    from normscape.stages.system import ScoredSystem, projecting_with

    make = ScoredSystem.from_package if package else ScoredSystem.from_run
    system = make(folder, device, steps=config.brains.steps)
    described = folder / COHORT_NAME
    return scan_model(
        projecting_with(config, config.brains.steps), system, system.threshold,
        cohort_file=described if described.is_file() else None,
    )  # fmt: skip
