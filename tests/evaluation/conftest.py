"""A prepared experiment of rendered chairs of 8 pixels, four views each, and one of a small cohort of brains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from normscape.config import Config
from normscape.datasets.prepared import PreparedCohort
from normscape.evaluation.experiment import Experiment, Workbench, find_experiment
from normscape.stages.core import run_stages
from tests.evaluation.toys import evaluation


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory is measured from a clean slate, which costs half a second a unit; here nobody looks at it."""
    monkeypatch.setattr("normscape.evaluation.running.reset_peak", lambda device: None)


CHAIRS = {"angle_max_degrees": 87.0, "angle_step_degrees": 29.0, "supersample": 1, "train_subjects": 24, "test_subjects": 14}
"""16 of 54 chairs are left for validation."""


@dataclass
class Prepared:
    """A configuration whose stage `prepare` is finished."""

    config: Config
    runs: Path

    @property
    def experiment(self) -> Experiment:
        """Its finished stages."""
        return find_experiment(self.config, self.runs)

    @property
    def bench(self) -> Workbench:
        """Its samples, roles and families."""
        return Workbench(self.experiment)

    def evaluating(self, **changes: Any) -> Prepared:
        """The same experiment with another section `evaluation`."""
        data = self.config.model_dump(mode="json") | {"evaluation": evaluation(**changes)}
        return Prepared(Config.model_validate(data), self.runs)


@pytest.fixture
def chairs(toy_config: Callable[..., Config], small_chairs: None, tmp_path: Path) -> Prepared:
    """Chairs, with the toy evaluation."""
    config = toy_config(data=CHAIRS, evaluation=evaluation())
    run_stages(config, tmp_path / "runs", last="prepare")
    return Prepared(config, tmp_path / "runs")


@pytest.fixture
def brains(toy_brain_config: Callable[..., Config], prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path) -> Prepared:
    """The small cohort: seven persons with a known age, two for training, two for the test, three left over."""
    cohort = prepared_cohort()
    data = {"root": str(cohort.folder), "train_subjects": 2, "test_subjects": 2, "patches_per_subject": 24}
    config = toy_brain_config(data=data, evaluation=evaluation(test_images=12, validation_images=12))
    run_stages(config, tmp_path / "runs", last="prepare")
    return Prepared(config, tmp_path / "runs")
