"""Roles of subjects: who is learned from, whose images choose thresholds, whose images check choices.

Nothing here, and nothing else in this package but `normscape.evaluation.locked`, touches the subjects of the locked test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from normscape.config import Config
from normscape.datasets.cohort import split_subjects
from normscape.datasets.patches import PatchSource
from normscape.datasets.samples import SampleSet
from normscape.errors import DataError
from normscape.stages.files import read_json

TRAIN, HEALTHY, SYNTHETIC = "train", "healthy", "synthetic"
"""Roles: to learn from; healthy validation, for thresholds; synthetic validation, for choices."""
_SEED_STREAM = 2
"""Keeps this split's seed apart from that of stage `prepare`, which has the same function draw."""


@dataclass(frozen=True)
class Roles:
    """Subjects of each role, sorted; nobody has two."""

    train: tuple[str, ...]
    """To learn from."""
    healthy: tuple[str, ...]
    """Healthy validation: thresholds are chosen on their normal images."""
    synthetic: tuple[str, ...]
    """Synthetic validation: choices between detectors and settings are made on their images, normal and with anomalies."""

    def of(self, role: str) -> tuple[str, ...]:
        """Subjects of one role."""
        return {TRAIN: self.train, HEALTHY: self.healthy, SYNTHETIC: self.synthetic}[role]


@dataclass(frozen=True)
class Person:
    """What is known of a subject, as far as anything is."""

    age_years: float | None = None
    """Mean over the subject's scans."""
    site: str | None = None
    """Of the first scan."""


def assign_roles(config: Config, prepared: Path, samples: SampleSet) -> Roles:
    """Training subjects as stage `prepare` drew them; those that it left over divided into healthy and synthetic validation.

    The division has the same shares of sites and of thirds of age on both sides, as far as they are known and numbers allow. It
    is a pure function of the experiment's seed and `evaluation.validation_share`.

    Args:
        config: the experiment.
        prepared: the finished folder of stage `prepare`.
        samples: all samples, as `open_prepared` gives them.

    Raises:
        DataError: fewer than two subjects are left over.
    """
    split = read_json(prepared / "split.json")
    present = set(np.asarray(samples.subjects)[samples.subject.unique().numpy()].tolist())
    left = [name for name in split["unused"] if name in present]
    if len(left) < 2:
        raise DataError(
            "the evaluation needs at least 2 subjects that are neither for training nor for the test, one for thresholds and one "
            f"for choices; {len(left)} of {len(present)} are left over. Lower data.train_subjects "
            f"({config.data.train_subjects}) or data.test_subjects ({config.data.test_subjects})"
        )
    healthy = min(max(round(config.evaluation.validation_share * len(left)), 1), len(left) - 1)
    people = persons(samples)
    first, second = split_subjects(
        left,
        [people[name].age_years for name in left],
        [people[name].site or "" for name in left],
        train=healthy,
        test=len(left) - healthy,
        seed=int(np.random.SeedSequence([config.seed, _SEED_STREAM]).generate_state(1)[0]),
    )
    return Roles(tuple(sorted(split["train"])), first, second)


def persons(samples: SampleSet) -> dict[str, Person]:
    """Age and site of every subject, where the samples come from a cohort; nothing is known of a chair."""
    if not isinstance(samples.images, PatchSource):
        return {name: Person() for name in samples.subjects}
    table = samples.images.cohort.subjects.select(["subject", "age_years", "site"]).to_pylist()
    found = {}
    for name in samples.subjects:
        scans = [row for row in table if row["subject"] == name]
        ages = [row["age_years"] for row in scans if row["age_years"] is not None]
        sites = [row["site"] for row in scans if row["site"]]
        found[name] = Person(float(np.mean(ages)) if ages else None, sites[0] if sites else None)
    return found


def of_subjects(samples: SampleSet, names: Sequence[str]) -> SampleSet:
    """The samples of some subjects, in their old order."""
    wanted = torch.tensor([samples.subjects.index(name) for name in names], dtype=torch.int64)
    return samples.select(torch.isin(samples.subject, wanted).nonzero().squeeze(1))
