"""Search the thresholds and weights of the contrastive loss by short GAN trainings, from a guess that real images give.

Each attribute has four parameters: tau_same, tau_gap, weight_same and weight_different; tau_different is tau_same + tau_gap (at
most 1), which keeps the two in order whatever the search draws. A trial trains on the base run's finished `prepare` and
`auxiliary` stages in a folder of its own, from measurement to measurement; cut off, it goes on from its own checkpoint. Where the
experiment warms up without a contrastive loss, that part does not depend on the point: it is trained once and every trial goes on
from it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import FloatDistribution

from normscape.config import AttributeConfig, Config
from normscape.configio import digest
from normscape.distributed.sweep_search import Cuts, Search
from normscape.distributed.sweep_trials import Point, Report, Reports, trial_folder
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.generator import Generator
from normscape.stages.core import StageContext, run_stages, stage_keys
from normscape.stages.files import read_json, write_json
from normscape.stages.models import load_auxiliaries
from normscape.stages.prepare import open_samples
from normscape.stages.provenance import choose_device
from normscape.stages.recording import Listener
from normscape.sweepconfig import ThresholdsSweep, trial_experiment
from normscape.training.controllability import Scale, as_metrics, measure_control, reference_frechet, score
from normscape.training.distances import measure_all, propose
from normscape.training.gan import train_gan
from normscape.training.observer import GanObserver
from normscape.training.recorder import Recorder, SilentRecorder

TAU_LEAST = 0.005
"""Smallest threshold or gap that is searched; a logarithmic scale has no zero."""
FACTS_NAME = "real.json"
WARMUP_NAME = "warmup"


def prepare(sweep: ThresholdsSweep, config: Config, runs_dir: Path, folder: Path, *, listener: Listener | None = None) -> Search:
    """Bring the base run's `prepare` and `auxiliary` up to date, measure real images, and say what is tried.

    Args:
        sweep: the sweep.
        config: the experiment.
        runs_dir: holds the base run.
        folder: the sweep's; `real.json` in it keeps what was measured.
        listener: hears the stages.

    Raises:
        ConfigError: the sweep's changes do not fit the experiment.
        DataError: the data are not what they should be.
    """
    short = trial_experiment(sweep, config)
    base = run_stages(config, runs_dir, last="auxiliary", listener=listener)
    job = {
        "config": short.model_dump(mode="json"),
        "inputs": {name: str(path) for name, path in base.stages.items()},
        "sweep": sweep.model_dump(mode="json"),
        "folder": str(folder),
    }
    key = digest([stage_keys(short)["auxiliary"], sweep.distance_pairs, short.gan.model_dump(mode="json")])
    facts = read_json(folder / FACTS_NAME)
    if facts.get("key") != key:
        facts = {"key": key, **_measure_real(short, job, sweep)}
        write_json(folder / FACTS_NAME, facts)
    first = [("guess", to_point(config, facts["proposed"])), ("experiment", to_point(config, own_thresholds(config)))]
    space = distributions(sweep, first[0][1], first[1][1])
    return Search(
        trial=train_and_measure,
        before=warm_up if short.gan.warmup_steps else None,
        job=job | {"facts": facts},
        space=space,
        first=[(origin, _inside(space, point)) for origin, point in first],
        cuts=Cuts(sweep.first_cut, sweep.reduction),
        final_step=sweep.steps,
        winner=lambda point: {"attributes": [{"name": name, **values} for name, values in to_settings(config, point).items()]},
        score_name="control − leak − λ ln(F / F_ref)",
        facts=facts,
    )


# ---- points and settings ---------------------------------------------------------------------------------------------


def own_thresholds(config: Config) -> dict[str, dict[str, float]]:
    """The experiment's own tau_same and tau_different, by attribute."""
    return {a.name: {"tau_same": a.tau_same, "tau_different": a.tau_different} for a in config.attributes}


def to_point(config: Config, thresholds: Mapping[str, Mapping[str, float]]) -> Point:
    """Thresholds as a point of the search, with the experiment's own weights."""
    point: Point = {}
    for attribute in config.attributes:
        taus = thresholds[attribute.name]
        point[f"{attribute.name}.tau_same"] = max(TAU_LEAST, round(taus["tau_same"], 4))
        point[f"{attribute.name}.tau_gap"] = max(TAU_LEAST, round(taus["tau_different"] - taus["tau_same"], 4))
        point[f"{attribute.name}.weight_same"] = attribute.weight_same
        point[f"{attribute.name}.weight_different"] = attribute.weight_different
    return point


def to_settings(config: Config, point: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """A point as fields of the experiment's attributes, by attribute; four digits are all that a threshold needs."""
    settings = {}
    for attribute in config.attributes:
        same, gap, *weights = (
            float(point[f"{attribute.name}.{name}"]) for name in ("tau_same", "tau_gap", "weight_same", "weight_different")
        )
        same = round(min(same, 1.0), 4)
        settings[attribute.name] = {
            "tau_same": same,
            "tau_different": round(min(same + gap, 1.0), 4),
            "weight_same": round(weights[0], 4),
            "weight_different": round(weights[1], 4),
        }
    return settings


def with_point(config: Config, point: Mapping[str, float]) -> Config:
    """The experiment with a point's thresholds and weights."""
    settings = to_settings(config, point)
    attributes = tuple(AttributeConfig.model_validate(a.model_dump() | settings[a.name]) for a in config.attributes)
    return Config.model_validate(config.model_dump() | {"attributes": attributes})


def distributions(sweep: ThresholdsSweep, guess: Point, own: Point) -> dict[str, FloatDistribution]:
    """Ranges around the guess, widened so that the experiment's own values lie within; all on a logarithmic scale."""
    ranges = {}
    for name in guess:
        if ".weight_" in name:
            low, high = sweep.weight_min, sweep.weight_max
        else:
            low, high = max(TAU_LEAST, guess[name] / sweep.tau_spread), min(1.0, guess[name] * sweep.tau_spread)
        own_value = own[name] or low  # a weight of 0 switches a term off; the search keeps them on
        ranges[name] = FloatDistribution(round(min(low, own_value), 4), round(max(high, own_value), 4), log=True)
    return ranges


def _inside(space: Mapping[str, FloatDistribution], point: Point) -> Point:
    return {name: min(max(value, space[name].low), space[name].high) for name, value in point.items()}


# ---- on the driver, once ---------------------------------------------------------------------------------------------


def _context(config: Config, job: Mapping[str, Any], folder: Path) -> StageContext:
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    return StageContext(config, folder, inputs, choose_device(config.device), SilentRecorder())


def _measure_real(config: Config, job: Mapping[str, Any], sweep: ThresholdsSweep) -> dict[str, Any]:
    """Scales, proposed thresholds and the reference of the Frechet distance, from training images."""
    context = _context(config, job, Path(job["folder"]))
    train, _ = open_samples(context)
    networks = load_auxiliaries(config, context.inputs["auxiliary"], context.device)
    distances = measure_all(
        config.attributes,
        networks,
        train,
        pairs=sweep.distance_pairs,
        batch_size=config.gan.batch_size,
        seed=config.seed,
        device=context.device,
    )
    return {
        "scales": {name: asdict(Scale.of(found)) for name, found in distances.items()},
        "proposed": {a.name: asdict(propose(a, distances[a.name])) for a in config.attributes},
        "reference_frechet": reference_frechet(config, train, networks[config.attributes[0].name], device=context.device),
    }


# ---- on a worker, once a trial ---------------------------------------------------------------------------------------


def warm_up(job: dict[str, Any]) -> None:
    """Train the steps without a contrastive loss, into `warmup/` of the sweep's folder; goes on from where it was cut off."""
    config = Config.model_validate(job["config"])
    folder = Path(job["folder"]) / WARMUP_NAME
    folder.mkdir(exist_ok=True)
    if _warm(folder, config) is None:
        _train(config, job, folder, config.gan.warmup_steps, SilentRecorder())


def _warm(folder: Path, config: Config) -> Path | None:
    """The checkpoint at the end of the warm-up, if there is one."""
    return next((path for path in _checkpoints(folder) if int(path.name.split("-")[1]) == config.gan.warmup_steps), None)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.suffix != ".tmp"]


def _train(config: Config, job: Mapping[str, Any], folder: Path, steps: int, recorder: Recorder) -> Trained:
    """Train up to a step of the whole training, in a folder."""
    torch.set_num_threads(max(1, int(job["sweep"]["cpus_per_trial"])))  # more would take the CPUs of the neighbours
    context = _context(config, job, folder)
    train, _ = open_samples(context)
    networks = load_auxiliaries(config, context.inputs["auxiliary"], context.device)
    trainer = train_gan(
        config.model_copy(update={"gan": config.gan.model_copy(update={"steps": steps})}),
        train,
        networks,
        folder=folder,
        digest=job["facts"]["key"],
        device=context.device,
        recorder=recorder,
    )
    return Trained(trainer.averaged, networks, GanObserver(config, train, networks, folder=folder, device=context.device))


@dataclass(frozen=True)
class Trained:
    """A generator and what measures it."""

    generator: Generator
    networks: Mapping[str, AuxiliaryNetwork]
    observer: GanObserver


def train_and_measure(point: Point, job: dict[str, Any]) -> Iterator[Report]:
    """Train with a point's thresholds and measure now and then; goes on from where it was cut off.

    Args:
        point: thresholds and weights.
        job: `config`, `sweep`, `inputs`, `folder`, `facts`.

    Yields:
        `step` (counted from the end of the warm-up), `score`, `frechet`, and `control/<attribute>`, `leak/<attribute>`.

    Raises:
        FloatingPointError: the training diverged.
    """
    sweep = ThresholdsSweep.model_validate(job["sweep"])
    config = with_point(Config.model_validate(job["config"]), point)
    folder = trial_folder(Path(job["folder"]), point)
    folder.mkdir(parents=True, exist_ok=True)
    reports = Reports(folder)
    yield from list(reports.known)
    warm = _warm(folder.parents[1] / WARMUP_NAME, config)
    if warm is not None and not _checkpoints(folder):
        aside = folder / f"{warm.name}.tmp"  # a name that does not count until it is whole
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(warm, aside)
        aside.rename(folder / warm.name)
    scales = {name: Scale(**scale) for name, scale in job["facts"]["scales"].items()}
    for step in range(reports.step + sweep.report_every, sweep.steps + 1, sweep.report_every):
        recorder = _Newest()
        trained = _train(config, job, folder, config.gan.warmup_steps + step, recorder)
        frechet = recorder.values.get("frechet")
        if frechet is None:  # cut off after the last checkpoint: nothing was left to train, nor measured
            frechet = trained.observer.distances(trained.generator)["frechet"]
        controls = measure_control(
            trained.generator, trained.networks, config.attributes, scales, images=sweep.measure_images, seed=config.seed
        )
        value = score(controls, frechet, job["facts"]["reference_frechet"], sweep.quality_weight)
        if not math.isfinite(value):
            raise FloatingPointError(f"the training diverged before step {step}: Frechet distance {frechet}, score {value}")
        report = {"step": float(step), "score": value, "frechet": frechet, **as_metrics(controls)}
        reports.add(report)
        yield report


class _Newest(SilentRecorder):
    """Keeps the newest value of each metric."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See `Recorder`."""
        self.values |= values
