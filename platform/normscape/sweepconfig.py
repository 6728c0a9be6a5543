"""The schema of a sweep, and reading one: `configs/sweeps/*.yaml`.

A sweep says which experiment it searches settings for, what it tries and how often. Files inherit from each other by `base:` and
are changed by `--set`, as experiments are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from normscape.config import Config, FeatureSet, GanConfig, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from normscape.configdoc import describe
from normscape.configio import Problem, digest, fail, load_config, read_settings, validate_config
from normscape.errors import ConfigError


class SweepSection(Section):
    """What every sweep has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the sweep's folder and of its MLflow run."""
    description: str = ""
    """One line for the page."""
    experiment: str
    """Configuration of the experiment, relative to this file."""
    seed: NonNegativeInt = 0
    """Every random choice of the search follows from this."""
    max_concurrent: PositiveInt = 2
    """Trials that run at the same time."""
    cpus_per_trial: PositiveFloat = 1.0
    """CPUs that a trial holds."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs that a trial holds; a fraction lets trials share one."""
    retries: NonNegativeInt = 0
    """How often a trial that fails is tried again; above 0 where machines may be taken away."""


class ThresholdsSweep(SweepSection):
    """Search the thresholds and weights of the contrastive loss by short trainings."""

    kind: Literal["thresholds"] = "thresholds"
    """What is searched."""
    trials: PositiveInt = 16
    """Settings to try, those of the experiment and of the data-driven guess included."""
    steps: PositiveInt = 2000
    """Training steps of a trial that is not stopped early, after the warm-up, which all trials share."""
    report_every: PositiveInt = 250
    """Steps between two measurements."""
    first_cut: PositiveInt = 500
    """Steps after which the worst trials are stopped for the first time (ASHA's grace period)."""
    reduction: Annotated[float, Field(gt=1.0)] = 2.0
    """One in this many trials goes on after a cut (ASHA's reduction factor)."""
    gan: dict[str, Any] = Field(default_factory=dict)
    """Changes of the experiment's `gan` section for the short trainings."""
    tau_spread: Annotated[float, Field(gt=1.0)] = 4.0
    """Thresholds are searched from the guess divided by this to the guess times this."""
    weight_min: PositiveFloat = 0.3
    """Smallest weight of the contrastive loss."""
    weight_max: PositiveFloat = 10.0
    """Largest weight of the contrastive loss."""
    quality_weight: NonNegativeFloat = 0.1
    """lambda of the objective: what a Frechet distance larger by a factor e costs."""
    measure_images: Annotated[int, Field(ge=16)] = 512
    """Generated images for each part of the objective."""
    distance_pairs: Annotated[int, Field(ge=64)] = 2048
    """Pairs of real images that the guess and the scale of the objective rest on."""

    @model_validator(mode="after")
    def _check(self) -> ThresholdsSweep:
        if self.weight_max <= self.weight_min:
            raise ValueError("weight_max must be larger than weight_min")
        if self.first_cut > self.steps:
            raise ValueError(f"first_cut ({self.first_cut}) must not exceed steps ({self.steps})")
        for name in ("steps", "first_cut"):
            if getattr(self, name) % self.report_every:
                found = getattr(self, name)
                raise ValueError(
                    f"{name} ({found}) must be a multiple of report_every ({self.report_every}): there trials are measured"
                )
        unknown = [key for key in self.gan if key not in GanConfig.model_fields]
        if unknown:
            raise ValueError(f"gan ({', '.join(unknown)}) must be fields of the experiment's `gan` section")
        if owned := {"steps", "checkpoint_interval", "sample_interval"} & set(self.gan):
            raise ValueError(f"gan ({', '.join(sorted(owned))}) must leave to the sweep's own steps and report_every")
        return self


class ForestSpace(Section):
    """Values of the forest's settings; a grid takes each, a random or Optuna search everything from the least to the largest."""

    max_depth: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (3, 5, 7, 9, 11, 13)
    """Maximum depths."""
    n_estimators: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (100, 300)
    """Numbers of trees."""
    min_samples_leaf: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """Smallest leaves."""
    features: Annotated[tuple[FeatureSet, ...], Field(min_length=1)] = ("thesis", "residuals")
    """Feature sets, see `scoring.features`; `flat` can be named, too."""


class ForestSweep(SweepSection):
    """Search the random forest's settings by cross-validation, grouped by subject, on the training rows of a finished run."""

    kind: Literal["forest"] = "forest"
    """What is searched."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` tries every combination; `random` and `optuna` try `trials` of them."""
    trials: PositiveInt = 24
    """Settings to try; a grid has its own number."""
    space: ForestSpace = ForestSpace()
    """What is tried."""


Sweep = ThresholdsSweep | ForestSweep
_KINDS: dict[str, type[ThresholdsSweep] | type[ForestSweep]] = {"thresholds": ThresholdsSweep, "forest": ForestSweep}


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Sweep, Config, Path]:
    """Read a sweep and the experiment that it is about.

    Args:
        path: a YAML file; a `base: other.yaml` entry inherits from another one.
        overrides: `a.b=c` changes of the sweep, as given to `--set`.

    Returns:
        The sweep, the experiment, and the experiment's file.

    Raises:
        ConfigError: with every problem found, one a line, as `dotted.path: message`.
    """
    path = Path(path)
    data, problems = read_settings(path, overrides)
    kind = data.get("kind")
    if kind not in _KINDS:
        found = "is required" if kind is None else f"found {kind!r}"
        hint = "; this file is an experiment, run it with `normscape run`" if "attributes" in data else ""
        raise ConfigError(f"{path}: kind: {found}; a sweep is one of {', '.join(_KINDS)}{hint}")
    try:
        sweep = _KINDS[kind].model_validate(data)
    except ValidationError as error:
        problems += _sweep_problems(error, _KINDS[kind])
    if problems:
        fail(str(path), problems)
    experiment = path.parent / sweep.experiment
    return sweep, load_config(experiment), experiment


def _sweep_problems(error: ValidationError, model: type[Section]) -> list[Problem]:
    """Every problem as (dotted path, message), with what the field accepts."""
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        owner, accepts = _field(model, item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append((path, f"unknown key; known here: {', '.join(owner.model_fields)}"))
        elif item["type"] == "missing":
            problems.append((path, f"is required ({accepts})"))
        elif item["type"] == "value_error":
            problems.append((path, str(item["ctx"]["error"])))
        else:
            problems.append((path, f"must be {accepts}; found {item['input']!r}" if accepts else item["msg"]))
    return problems


def _field(model: type[Section], location: tuple[int | str, ...]) -> tuple[type[Section], str]:
    """The section that a path leads into, and what the field at its end accepts, in words."""
    accepts = ""
    for key in location:
        field = model.model_fields.get(str(key))
        if field is None:
            continue  # a position in a list: the list's own words say what it takes
        accepts = describe(field.annotation, list(field.metadata))
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                model = part
    return model, accepts


def trial_experiment(sweep: ThresholdsSweep, config: Config) -> Config:
    """The experiment as a trial trains it: shorter, with the sweep's changes of its `gan` section.

    Raises:
        ConfigError: the changes do not fit.
    """
    gan = config.gan.model_dump() | sweep.gan
    total = int(gan["warmup_steps"]) + sweep.steps
    gan |= {"steps": total, "checkpoint_interval": sweep.report_every, "sample_interval": total}
    source = f"sweep {sweep.name}: the experiment with its `gan` changes"
    return validate_config(config.model_dump(mode="json") | {"gan": gan}, source)


def sweep_digest(sweep: Sweep, config: Config) -> str:
    """Digest of all that a single trial depends on: what is tried and the experiment; not where, how many, how many at once."""
    omit = {"description", "experiment", "trials", "max_concurrent", "cpus_per_trial", "gpus_per_trial", "retries"}
    settings = sweep.model_dump(mode="json", exclude=omit)
    unread = {"name", "description", "device"} | (set() if isinstance(sweep, ForestSweep) else {"scoring", "projection"})
    return digest({"sweep": settings, "experiment": config.model_dump(mode="json", exclude=unread)})


def sweep_folder(sweep: Sweep, config: Config, runs_dir: Path) -> Path:
    """Where a sweep keeps its trials and results: `<runs>/sweeps/<name>-<digest8>`, absolute."""
    return runs_dir.resolve() / "sweeps" / f"{sweep.name}-{sweep_digest(sweep, config)[:8]}"
