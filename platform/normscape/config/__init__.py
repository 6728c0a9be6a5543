"""The schema of an experiment: everything a run depends on, and nothing else.

A configuration is data: tables I and II of the thesis and every choice the thesis leaves open have one
field here. Reading files, ``--set`` overrides and error messages live in :mod:`normscape.configio`.
"""

from normscape.config.attributes import POSITION_COLUMN, AttributeConfig, AuxiliaryConfig
from normscape.config.data import AugmentationConfig, DataConfig
from normscape.config.evaluation import EvaluationConfig, PluginConfig
from normscape.config.experiment import Config, ConfigProblems
from normscape.config.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from normscape.config.scoring import (
    BrainsConfig,
    FeatureSet,
    NetworkConfig,
    NormalsConfig,
    ProjectionConfig,
    RandomisationConfig,
    ScoringConfig,
)
from normscape.config.training import (
    ControllerConfig,
    DiscriminatorAugmentationConfig,
    DiscriminatorConfig,
    EncoderConfig,
    GanConfig,
    GeneratorConfig,
    LatentsConfig,
)

__all__ = [
    "POSITION_COLUMN",
    "AttributeConfig",
    "AugmentationConfig",
    "AuxiliaryConfig",
    "BrainsConfig",
    "Config",
    "ConfigProblems",
    "ControllerConfig",
    "DataConfig",
    "DiscriminatorAugmentationConfig",
    "DiscriminatorConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FeatureSet",
    "Fraction",
    "GanConfig",
    "GeneratorConfig",
    "LatentsConfig",
    "NetworkConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NormalsConfig",
    "PluginConfig",
    "PositiveFloat",
    "PositiveInt",
    "ProjectionConfig",
    "RandomisationConfig",
    "ScoringConfig",
    "Section",
]
