"""The conditional detectors: what a generator that knows the conditions cannot rebuild. See docs/conditional-detector.md.

Both work with the networks of a finished run. Those were trained on the training images that the detectors are fitted to, and
images of new subjects are rebuilt worse: scores of new healthy subjects lie higher than those of training images. Thresholds have
to come from healthy validation subjects, as they do in the evaluation. Settings are the fields of
`normscape.evaluation.inverting.Parts`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.conditional_network import with_randomised
from normscape.datasets.batches import ImageBatch
from normscape.evaluation.inverting import MASKED_PREFIX, SPREAD_PREFIX, STAGES, Inverted, Parts
from normscape.evaluation.linear import LINEAR_PREFIX
from normscape.evaluation.usual import ConditionalFeatures, matrix
from normscape.scoring.density import DENSITY_PREFIX
from normscape.scoring.evidence import EvidenceDetector
from normscape.scoring.expected import LEVEL_PREFIX
from normscape.scoring.features import LENGTH_PREFIX, READ_BY_NETWORKS, condition_names, evidence_columns, feature_columns
from normscape.scoring.forest import ForestDetector
from normscape.scoring.maps import EXCESS_HALF


class ConditionalDetector:
    """A random forest on all features of projected training images, every second one with a synthetic anomaly.

    Features: those that `scoring.features` names; with `masked_rounds`, `inversions` and `linear` theirs; the densities of the
    styles; and, with `levels`, of every one of them but conditions and densities its level. The score is the forest's probability
    of anomalous, in [0, 1]; grid and folds of the forest are those of `scoring`.

    Args:
        randomise: share of the training images that are shown as another scanner might have shown them
            (`normscape.datasets.randomisation`); that of the experiment when empty.
        settings: fields of `Parts`.
    """

    supervision: Literal["none", "synthetic"] = "synthetic"
    stages = STAGES
    sections = ("projection", "scoring", "randomisation")
    forest_: ForestDetector
    columns_: list[str]  # that the forest reads, in order

    def __init__(self, *, randomise: float | None = None, **settings: Any) -> None:
        self.features, self.randomise = ConditionalFeatures(Parts(**settings)), randomise

    def fit(self, training: Training) -> Self:
        """Project training images with and without anomalies, and grow the forest; see `ConditionalFeatures.fit`."""
        training = with_randomised(training, self.randomise)
        config = training.config
        values = [a.column for a in config.value_attributes if a.column]

        def read(names: Sequence[str]) -> list[str]:
            return feature_columns(names, config.scoring.features, values) + _beside(names)

        def levelled(names: Sequence[str]) -> list[str]:
            known = set(condition_names(names, values))
            return [name for name in read(names) if name not in known]

        learned = self.features.fit(training, anomalies=True, levelled=levelled)
        names = list(learned.columns)
        self.columns_ = read(names) + [name for name in names if name.startswith((DENSITY_PREFIX, LEVEL_PREFIX))]
        self.forest_ = ForestDetector(
            max_depth=config.scoring.max_depth,
            n_estimators=config.scoring.n_estimators,
            min_samples_leaf=config.scoring.min_samples_leaf,
            max_features=config.scoring.max_features,
            folds=config.scoring.folds,
            seed=training.seed,
            jobs=_cores(),
        ).fit(matrix(learned.columns, self.columns_), learned.label, learned.subject)
        return self

    @property
    def saved_seconds(self) -> float:
        """See `saved_by`."""
        return self.features.inverter_.saved_seconds

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Probabilities of anomalous (B,)."""
        return self.forest_.decision_function(matrix(self.features.columns(batch), self.columns_))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """See `place_scores`."""
        images, columns = self.features.of(batch)
        return place_scores(self.forest_.decision_function(matrix(columns, self.columns_)), images)


class UnsupervisedConditionalDetector:
    """How rare the evidence of a projection is among projected normal training images; no anomaly is seen.

    Evidence: the residuals but for what auxiliary networks read (their levels with `levels`), with `masked_rounds`, `inversions`
    and `linear` also theirs, and for each sub-space the density of its styles (their lengths without `density`). The score is the
    largest of -log of the share of normal images with a value as high, see `normscape.scoring.evidence`.
    """

    supervision: Literal["none", "synthetic"] = "none"
    stages = STAGES
    sections = ("projection", "scoring")
    evidence_: EvidenceDetector
    columns_: list[str]  # that are evidence, in order

    def __init__(self, **settings: Any) -> None:
        self.features = ConditionalFeatures(Parts(**settings))

    def fit(self, training: Training) -> Self:
        """Project normal training images, and learn how high their evidence gets; see `ConditionalFeatures.fit`."""
        parts = self.features.parts

        def levelled(names: Sequence[str]) -> list[str]:
            beside = [name for name in _beside(names) if not READ_BY_NETWORKS.match(name)]
            found = [*evidence_columns(names, training.config.scoring.features), *beside]
            return [name for name in found if not (parts.density and name.startswith(LENGTH_PREFIX))]

        learned = self.features.fit(training, anomalies=False, levelled=levelled)
        chosen = [f"{LEVEL_PREFIX if parts.levels else ''}{name}" for name in levelled(list(learned.columns))]
        # of a density the value of the whole sub-space: its resolutions say the same several times
        chosen += [name for name in learned.columns if name.startswith(DENSITY_PREFIX) and name.count("/") == 1]
        self.columns_ = chosen
        self.evidence_ = EvidenceDetector().fit(matrix(learned.columns, chosen))
        return self

    @property
    def saved_seconds(self) -> float:
        """See `saved_by`."""
        return self.features.inverter_.saved_seconds

    def decision_function(self, batch: ImageBatch) -> Scores:
        """The largest evidence (B,), at least 0."""
        return self.evidence_.decision_function(matrix(self.features.columns(batch), self.columns_))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """See `place_scores`."""
        images, columns = self.features.of(batch)
        return place_scores(self.evidence_.decision_function(matrix(columns, self.columns_)), images)


def place_scores(scores: Scores, images: Inverted) -> Tensor:
    """Maps (B, 1, *S), 0 outside the masks: score times e / (e + 4), e the excess over what is usual at a voxel's place.

    As stage `brains` does (`normscape.scoring.maps`). Where no positions are known, the score times the residual of the last
    reconstruction (`Inverted.residual`).
    """
    score = torch.from_numpy(scores).float().view(-1, *[1] * (images.residual.ndim - 1))
    return score * (images.residual if images.excess is None else images.excess / (images.excess + EXCESS_HALF))


def _beside(names: Sequence[str]) -> list[str]:
    """Columns of masked rounds, of further starts and of the linear generator."""
    return [name for name in names if name.startswith((MASKED_PREFIX, SPREAD_PREFIX, LINEAR_PREFIX))]


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
