"""A brain at toy size, from end to end, whose fourth attribute are the shifts of contrast that augmentation draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from normscape.config import Config
from normscape.configio import load_config
from normscape.datasets.prepared import PreparedCohort
from normscape.stages.core import RunResult, run_stages
from normscape.stages.prepare import open_prepared
from normscape.training.batches import draw_real

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(toy_brain_config: Callable[..., Config], prepared_cohort: Callable[..., PreparedCohort]) -> Config:
    """The toy brain with the fourth attribute of the shipped configuration, its widths those of a toy."""
    shipped = load_config(ROOT / "configs" / "brain" / "contrast.yaml").attributes[-1].model_dump()
    attributes = [a.model_dump() for a in toy_brain_config().attributes]
    auxiliary = attributes[0]["auxiliary"] | {"epoch_samples": 64}
    attributes.append(shipped | {"latent_dim": 6})
    return toy_brain_config(
        device="cpu",
        attributes=[attribute | {"auxiliary": auxiliary} for attribute in attributes],
        data={"root": str(prepared_cohort().folder), "patches_per_subject": 32, "contrast_augmentation": "pca"},
        gan={"batch_size": 16},
        normals={"samples": 64},
        projection={"train_samples": 32, "test_samples": 16, "calibration_samples": 8, "steps": 2, "batch_size": 16},
        scoring={"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
    )


@pytest.mark.slow
def test_contrast_in_a_sub_space_of_its_own(config: Config, tmp_path: Path) -> None:
    """Drawn in training, asked for by controllers, 0 in every image that is scored."""
    run = run_stages(config, tmp_path / "runs", last="score")
    _drawn_in_training(config, run)
    _asked_for_over_its_range(run)
    table = pq.read_table(run.stages["project"] / "projections.parquet")
    columns = [f"contrast_{i}" for i in range(6)]
    assert all(not table[name].to_numpy().any() for name in columns)
    assert "length/contrast/8" not in table.column_names  # a known condition: encoded, not searched for
    read = table["residual_condition_contrast"].to_numpy()
    assert np.isfinite(read).all()
    assert read.any()  # what the network reads from the image against no shift
    known = json.loads((run.stages["score"] / "conformal.json").read_text())["settings"]["conditions"]
    assert known == ["age_years", *(f"position_mm_{i}" for i in range(3)), *columns]


def _drawn_in_training(config: Config, run: RunResult) -> None:
    """The auxiliary network is measured on drawn shifts, and the encoder is told of each image's own."""
    errors = pq.read_table(run.stages["auxiliary"] / "value_errors.parquet").to_pylist()
    mine = {row["split"]: row for row in errors if row["attribute"] == "contrast"}
    assert set(mine) == {"train", "test"}
    assert all(row["mean_absolute_error"] > 1 and row["unit"] == "SD" for row in mine.values())  # hardly trained: it guesses
    samples = open_prepared(config, run.stages["prepare"])
    images, values = draw_real(samples, config, 3)
    assert values["contrast"].shape == (16, 6)
    assert 0.8 < values["contrast"].abs().max() <= 1
    assert len(values["contrast"].unique(dim=0)) == len(images)


def _asked_for_over_its_range(run: RunResult) -> None:
    table = pq.read_table(run.stages["controllers"] / "controllability.parquet").to_pandas()
    asked = table[table["attribute"] == "contrast"]["asked"]
    assert len(asked) == 16 * 6
    assert -1 <= asked.min() < -0.8
    assert 0.8 < asked.max() <= 1
