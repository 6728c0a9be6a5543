"""An evaluation from its configuration to its tables: what is finished is skipped, what was cut off is done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normscape.config import Config
from normscape.evaluation.experiment import Experiment, Workbench, find_experiment
from normscape.evaluation.locked import Reading
from normscape.evaluation.results import Page, Results, assemble
from normscape.evaluation.running import UnitProgress, UnitResult, run_here
from normscape.evaluation.units import Unit, discard_leftovers, finished_unit, plan_units
from normscape.stages.files import locked
from normscape.stages.recording import Listener, Listeners

Workers = Callable[[Experiment, Sequence[Unit], UnitProgress], Iterator[UnitResult]]
"""Runs units, in any order and any process."""
QUICK = {"train_images": 256, "network_images": 2000, "validation_images": 64, "test_images": 64, "bootstrap_samples": 200}
"""At most so much of each, with one seed and one scan, in `quick`."""


def evaluate(
    config: Config,
    runs_dir: Path,
    *,
    workers: Workers = run_here,
    listener: Listener | None = None,
    heard: Callable[[Reading], None] | None = None,
    opened: Callable[[Experiment, Sequence[Unit]], None] | None = None,
    page: Page | None = None,
    command: str = "normscape evaluate CONFIG",
    config_path: str = "CONFIG",
) -> Results:
    """Compare the detectors of a configuration.

    Args:
        config: the experiment, with its section `evaluation`.
        runs_dir: holds run folders; stages that detectors read must be finished there.
        workers: run the units; one after the other in this process when not given.
        listener: hears of units: each is a stage of its own.
        heard: is told of every reading of the locked test.
        opened: called as soon as the evaluation's folder is held, before anything runs.
        page: writes the page into a folder of tables.
        command: for the tables: what makes these numbers again.
        config_path: the configuration as a person gave it, for messages.

    Returns:
        Tables, page and failures. A detector that failed is among the failures, and the others stand.

    Raises:
        UserError: stages are missing, the folder is in use, or no detector could be evaluated.
        DataError: too few subjects, families that do not fit the images.
        ConfigError: detectors or families that cannot be loaded.
    """
    hearing = listener or Listeners()
    experiment = find_experiment(config, runs_dir, command=config_path)
    units = plan_units(experiment)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with locked(experiment.folder):
        discard_leftovers(experiment.folder)
        if opened is not None:
            opened(experiment, units)
        left = []
        for unit in units:
            about = finished_unit(experiment, unit)
            if about is None:
                left.append(unit)
            else:
                hearing.stage_skipped(unit.name, manifest(about))
        failures: dict[str, str] = {}
        if left:
            Workbench(experiment).try_families()
            for result in workers(experiment, left, _Progress(hearing)):
                if heard is not None:
                    for reading in result.readings:
                        heard(reading)
                if result.failure:
                    failures[result.unit.name] = result.failure
                    hearing.failed(result.unit.name, RuntimeError(result.failure))
                else:
                    hearing.stage_finished(result.unit.name, manifest(result.about))
        return assemble(experiment, units, failures, command=command, page=page)


class _Progress:
    """Tells a listener that a unit begins, when it is first heard of, and then how far it is."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._begun: set[str] = set()

    def __call__(self, unit: Unit, done: int, total: int, what: str) -> None:
        if unit.name not in self._begun:
            self._begun.add(unit.name)
            self._listener.stage_started(unit.name, False)
        self._listener.progress(unit.name, done, total, what)


def manifest(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a listener hears of a finished unit, in the form of a stage's manifest."""
    metrics = {"fit_seconds": about["fit_seconds"], "image_ms": 1000 * about["seconds_per_image"]}
    metrics["peak_megabytes"] = about["peak_bytes"] / 1e6
    return {"key": about.get("key", ""), "metrics": metrics, "seconds": about["fit_seconds"], "about": dict(about)}


def quick(config: Config) -> Config:
    """The same evaluation, small: few images, the first seed, at most one scan, networks that have hardly begun to learn."""
    settings = config.evaluation
    changes: dict[str, Any] = {name: min(getattr(settings, name), most) for name, most in QUICK.items()}
    changes |= {"seeds": settings.seeds[:1], "scans": min(settings.scans, 1)}
    return config.model_copy(update={"evaluation": settings.model_copy(update=changes)})


def choose_seeds(config: Config, seeds: Sequence[int]) -> Config:
    """The same evaluation with other seeds."""
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seeds": tuple(seeds)})})
