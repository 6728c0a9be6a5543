"""The files that make a scored system: found in a run's folders, copied into a package, and their digest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.datasets.prepared import COHORT_NAME
from normscape.errors import UserError
from normscape.stages.calibration import CONFORMAL_NAME
from normscape.stages.status import stage_status

SCANS_NAME = "scan_conformal"
"""Files of stage `brains` that hold the scores of whole healthy scans."""
PARTS: dict[str, tuple[str, ...]] = {
    "auxiliary": ("*.safetensors",),
    "gan": ("generator.safetensors", "discriminator.safetensors", "encoder.safetensors"),
    "controllers": ("*.safetensors",),
    "latents": ("style_space.safetensors",),
    "normals": ("normals.safetensors",),
    "network": ("network.safetensors",),
    "score": (
        "*.skops",
        "forest*.json",
        "l1.json",
        "atlas.json",
        "network.json",
        "pooled.json",
        "unsupervised.safetensors",
        "detectors.json",
        f"{CONFORMAL_NAME}.*",
    ),
}
"""Stages whose folders make the system, as far as the experiment has them, and their files that belong to it."""
EXTRAS: dict[str, tuple[str, ...]] = {"brains": (f"{SCANS_NAME}.*",)}
"""Later stages whose files belong to the system, too, where they are there: it works without them."""
PERCEPTUAL = "perceptual"
"""Folder of a package that holds the weights of the perceptual network, where the experiment has one."""


def finished_folders(config: Config, run_folder: Path) -> dict[str, Path]:
    """The finished folders of a run, by stage; all of `PARTS`, and others as far as there are any.

    Raises:
        UserError: one that the system needs is not finished under this configuration.
    """
    status = stage_status(config, run_folder.resolve().parent)
    found = {stage.name: stage.folder for stage in status if stage.state == "finished" and stage.folder is not None}
    missing = [stage.name for stage in status if stage.name in PARTS and stage.name not in found]
    if missing:
        raise UserError(f"{run_folder}: not finished yet: {', '.join(missing)}; run it to its end first")
    return found


def write_package(config: Config, folders: Mapping[str, Path], destination: Path) -> None:
    """Copy what `ScoredSystem.from_package` reads into a new folder.

    Args:
        config: the experiment.
        folders: the finished folders of the stages in `PARTS`, and maybe `EXTRAS`.
        destination: made here.
    """
    destination.mkdir(parents=True)
    (destination / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    if config.data.root is not None:  # how its scans were prepared: a new one has to be, too
        shutil.copyfile(config.data.root / COHORT_NAME, destination / COHORT_NAME)
    for stage in filter(folders.__contains__, (*PARTS, *EXTRAS)):
        for path in _files(folders, stage):
            (destination / stage).mkdir(exist_ok=True)
            shutil.copyfile(path, destination / stage / path.name)
    weights = config.projection.perceptual_path
    if weights is not None:
        (destination / PERCEPTUAL).mkdir()
        shutil.copyfile(weights, destination / PERCEPTUAL / os.path.basename(weights))


def system_digest(folders: Mapping[str, Path]) -> str:
    """Digest of a system's files and of the scores that it gave: two trainings of one configuration differ."""
    found = hashlib.sha256()
    for stage in filter(folders.__contains__, (*PARTS, *EXTRAS)):
        for path in _files(folders, stage):
            found.update(f"{stage}/{path.name}".encode())
            found.update(path.read_bytes())
    found.update((folders["score"] / "scores.parquet").read_bytes())
    return found.hexdigest()


def _files(folders: Mapping[str, Path], stage: str) -> list[Path]:
    """A stage's files that belong to the system, sorted."""
    return sorted({path for pattern in (PARTS | EXTRAS)[stage] for path in folders[stage].glob(pattern)})
