"""The experiment that is evaluated: its finished stages, and the samples, roles and families that all detectors share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from normscape.baselines import ImageDetector, load_detector
from normscape.baselines.anomalies import Donors, scene_of
from normscape.config import Config, PluginConfig
from normscape.configio import config_digest
from normscape.datasets.anomalies import AnomalyFamily, load_family
from normscape.datasets.batches import HealthyImages
from normscape.errors import ConfigError, DataError, UserError
from normscape.evaluation.cases import Cases, Memory
from normscape.evaluation.locked import LOCKED, Heard, open_locked_test
from normscape.evaluation.splits import HEALTHY, SYNTHETIC, assign_roles, of_subjects, persons
from normscape.stages.files import read_json
from normscape.stages.prepare import open_prepared
from normscape.stages.status import stage_status

FOLDER_NAME = "evaluation"
Progress = Callable[[int, int, str], None]
"""Told how far work is: (done, in all, kind of work)."""


@dataclass(frozen=True)
class Experiment:
    """What is evaluated, as it can be handed to another process."""

    config: Config
    """The experiment, with its section `evaluation`."""
    folder: Path
    """`<run>/evaluation`."""
    folders: Mapping[str, Path]
    """Finished stages, by name."""
    keys: Mapping[str, str]
    """Their keys."""
    digest: str
    """Of the whole configuration."""

    @property
    def prepared(self) -> Path:
        """The finished folder of stage `prepare`."""
        return self.folders["prepare"]

    @property
    def data_name(self) -> str:
        """What tables call the cohort; empty for pictures."""
        return str(read_json(self.prepared / "split.json").get("cohort", ""))


def find_experiment(config: Config, runs_dir: Path, *, command: str = "CONFIG") -> Experiment:
    """The finished stages of an experiment.

    Args:
        config: the experiment.
        runs_dir: holds run folders.
        command: the configuration as a person gave it, for the message of an error.

    Raises:
        UserError: a stage that a detector reads is not finished.
        ConfigError: a detector cannot be loaded.
    """
    status = stage_status(config, runs_dir)
    folders = {stage.name: stage.folder for stage in status if stage.state == "finished" and stage.folder is not None}
    names = [stage.name for stage in status]
    needed: dict[str, list[str]] = {"prepare": []}
    for entry in config.evaluation.detectors:
        for stage in stages_of(load_detector(entry)):
            if stage in names:  # a stage that experiments of other sources have is not missed here
                needed.setdefault(stage, []).append(entry.name)
    missing = sorted(set(needed) - set(folders), key=names.index)
    if missing:
        readers = sorted({name for stage in missing for name in needed[stage]})
        why = f"; {', '.join(readers)} read{'s' if len(readers) == 1 else ''} what comes of it" if readers else ""
        raise UserError(
            f"not finished yet: {', '.join(missing)}{why}. Run `normscape run {shlex.quote(command)} --to {missing[-1]}` first"
        )
    keys = {stage.name: stage.key for stage in status if stage.name in folders}
    return Experiment(config, runs_dir.resolve() / config.name / FOLDER_NAME, folders, keys, config_digest(config))


def stages_of(detector: ImageDetector) -> tuple[str, ...]:
    """Stages that a detector says it reads, in its attribute `stages`; a detector that reads none needs no such attribute."""
    return tuple(getattr(detector, "stages", ()))


class NotedFolders(dict[str, Path]):
    """Folders of finished stages that note which were asked for; one that is missing is an error for people."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        super().__init__(folders)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Path:
        self.asked.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Path:
        raise UserError(f"stage {name} is not finished; run `normscape run CONFIG --to {name}` first")

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(self.keys())
        return super().__iter__()

    def get(self, name: str, default: Path | None = None) -> Path | None:  # type: ignore[override]
        """As of any mapping; noted too."""
        self.asked.add(name)
        return super().get(name, default)


def load_families(config: Config) -> dict[str, AnomalyFamily]:
    """All families of the evaluation, by name.

    Raises:
        ConfigError: one cannot be loaded.
    """
    return {entry.name: load_family(entry) for entry in config.evaluation.families}


class Workbench:
    """One process's view of an experiment: samples, roles, families, cases. Costs seconds to open, little to keep.

    Args:
        experiment: what is evaluated.

    Raises:
        DataError: the data are not those that were split, or too few subjects are left for validation.
        ConfigError: a family cannot be loaded.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.config = experiment.config
        self._samples = open_prepared(self.config, experiment.prepared)
        self.roles = assign_roles(self.config, experiment.prepared, self._samples)
        self.people = persons(self._samples)
        self.families = load_families(self.config)
        self._memory = Memory()

    @property
    def training_families(self) -> dict[str, AnomalyFamily]:
        """Families that detectors may learn from."""
        return {name: self.families[name] for name in self.config.evaluation.training_families}

    def healthy_training(self) -> HealthyImages:
        """Normal images of the training subjects."""
        return HealthyImages(of_subjects(self._samples, self.roles.train), self.config.value_attributes)

    def validation(self, role: str) -> Cases:
        """Cases of healthy validation (normal images alone) or of synthetic validation."""
        if role not in (HEALTHY, SYNTHETIC):
            raise ValueError(f"{role} is no role of validation")
        families = self.families if role == SYNTHETIC else {}
        samples = of_subjects(self._samples, self.roles.of(role))
        return Cases(self.config, role, samples, families, self.config.evaluation.validation_images, self._memory)

    def locked(self, reader: str, heard: Heard | None = None, *, images: int | None = None) -> Cases:
        """Cases of the locked test; that they were opened is written down.

        Args:
            reader: who reads, and what for.
            heard: is told of the reading.
            images: how many are going to be read; `evaluation.test_images`, normal and with an anomaly, when None.
        """
        experiment, count = self.experiment, self.config.evaluation.test_images
        samples = open_locked_test(
            experiment.prepared,
            self._samples,
            reader=reader,
            images=2 * count if images is None else images,
            digest=experiment.digest,
            folder=experiment.folder,
            heard=heard,
        )
        return Cases(self.config, LOCKED, samples, self.families, count, self._memory)

    def try_families(self) -> None:
        """Draw every family once into training images, so that one that does not fit the images stops nothing later.

        Raises:
            DataError: a family cannot be drawn into such images.
        """
        images = self.healthy_training()
        rows = torch.arange(min(2, len(images)))
        batch, donors = images.batch(rows), Donors(images, self.config.seed)(rows)
        for name, family in self.families.items():
            try:
                drawn = family.draw(batch, seed=0, sample_ids=rows.tolist(), scene=scene_of(self.config), donors=donors)
            except (DataError, ConfigError) as error:
                raise DataError(f"evaluation.families: {name} cannot be drawn into these images: {error}") from error
            expected = (batch.images.shape, (len(rows), 1, *batch.images.shape[2:]))
            if (drawn.images.shape, tuple(drawn.masks.shape)) != expected or not bool(torch.isfinite(drawn.images).all()):
                raise DataError(
                    f"evaluation.families: {name} gives images of {tuple(drawn.images.shape)} and masks of "
                    f"{tuple(drawn.masks.shape)}; expected finite images of {tuple(expected[0])}, masks of {expected[1]}"
                )


def choose_detectors(config: Config, names: tuple[str, ...]) -> Config:
    """The same experiment with only some of its detectors.

    Raises:
        ConfigError: one is not among them.
    """
    known = {entry.name: entry for entry in config.evaluation.detectors}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--detectors: {', '.join(unknown)} unknown; evaluation.detectors names {', '.join(known)}")
    kept: tuple[PluginConfig, ...] = tuple(known[name] for name in known if name in names)
    reference = config.evaluation.reference if config.evaluation.reference in names else None
    evaluation = config.evaluation.model_copy(update={"detectors": kept, "reference": reference})
    return config.model_copy(update={"evaluation": evaluation})
