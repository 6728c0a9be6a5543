"""What `normscape evaluate` compares: detectors, anomaly families, how much of each, and how often."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from normscape.config.fields import Fraction, NonNegativeInt, PositiveInt, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class PluginConfig(Section):
    """A detector or an anomaly family. A plain text stands for its name alone."""

    name: Name
    """What it is called in tables and files."""
    use: str = ""
    """A built-in by its name, or `module:Class` of anything that can be imported. Empty: the built-in called `name`."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of its class."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Plugin = Annotated[PluginConfig, BeforeValidator(_named)]


class EvaluationConfig(Section):
    """Detectors compared on the same images, by subject: see docs/evaluation.md."""

    detectors: Annotated[tuple[Plugin, ...], Field(min_length=1)] = (PluginConfig(name="conditional"),)
    """Detectors, in the order of the tables."""
    families: Annotated[tuple[Plugin, ...], Field(min_length=1)] = (PluginConfig(name="standard"),)
    """Anomaly families that every detector is tested on."""
    training_families: tuple[Name, ...] = ("standard",)
    """Families, of those above, that detectors which learn from synthetic anomalies may see; all others are new to them."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    """Every detector is fitted anew with each."""
    train_images: PositiveInt = 4000
    """Normal images of training subjects that a detector without gradient steps may keep."""
    network_images: PositiveInt = 100_000
    """Normal images, repeats counted, that a detector with gradient steps may look at: the same for all."""
    validation_images: PositiveInt = 500
    """Normal images of validation subjects for thresholds, and as many again that get anomalies of each family."""
    test_images: PositiveInt = 500
    """Normal images of the locked test's subjects, and as many others that get anomalies of each family."""
    validation_share: Fraction = 0.5
    """Share of the validation subjects that thresholds are chosen on (healthy validation); the others check choices on synthetic
    anomalies (synthetic validation)."""
    false_positive_rates: Annotated[tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], Field(min_length=1)] = (0.01, 0.05, 0.1)
    """Rates of false positives that thresholds promise."""
    scans: NonNegativeInt = 0
    """Whole test scans that get anomaly maps, each as it is and with one anomaly of each of `scan_families`; only for brains."""
    scan_families: tuple[Name, ...] = ()
    """Families, of those above, for whole scans; all when empty."""
    scan_stride: PositiveInt = 8
    """Voxels from one patch of a whole scan to the next."""
    batch_size: PositiveInt = 128
    """Images scored at once; results do not depend on it."""
    bootstrap_samples: PositiveInt = 1000
    """Resamplings of subjects for the 95 % intervals."""
    reference: Name | None = None
    """Detector that all others are compared with in pairs; the first one when empty."""
    own: tuple[Name, ...] = ("conditional", "conditional_unsupervised", "conditional_network", "conditional_pooled")
    """Detectors that are not baselines: the best baseline, which all are compared with too, is none of them."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        for field in ("detectors", "families"):
            names = [entry.name for entry in getattr(self, field)]
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"`{field}` names {', '.join(repeated)} more than once")
        families = {entry.name for entry in self.families}
        for field in ("training_families", "scan_families"):
            unknown = sorted(set(getattr(self, field)) - families)
            if unknown:
                raise ValueError(
                    f"`{field}` names {', '.join(unknown)}, which `families` does not: {', '.join(sorted(families))}"
                )
        if self.reference is not None and self.reference not in {entry.name for entry in self.detectors}:
            raise ValueError(f"`reference` is {self.reference}, which is none of `detectors`")
        return self
