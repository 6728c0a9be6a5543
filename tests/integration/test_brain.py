"""The brain experiment from end to end at toy size: a prepared cohort in, scores, maps and a page out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from normscape.datasets.prepared import PreparedCohort

ROOT = Path(__file__).resolve().parents[2]
AUXILIARY = {"width": 8, "epochs": 2, "epoch_samples": 128, "batch_size": 16}


def settings(root: Path) -> dict[str, object]:
    """What differs from the shipped demo: patches of side 8 of eight people, a handful of steps."""
    return {
        "base": str(ROOT / "configs" / "brain" / "demo.yaml"),
        "name": "tiny-brain",
        "device": "cpu",
        "image_size": 8,
        "data": {"root": str(root), "train_subjects": 4, "test_subjects": 2, "patches_per_subject": 64},
        "attributes": [{"name": name, "latent_dim": 8, "auxiliary": AUXILIARY} for name in ("identity", "age", "position")],
        "other_dim": 4,
        "generator": {"channels": [8, 8], "mapping_layers": 2},
        "discriminator": {"channels": [8, 8]},
        "gan": {
            "steps": 16,
            "warmup_steps": 10,
            "checkpoint_interval": 8,
            "log_interval": 4,
            "sample_interval": 8,
            "quality_samples": 32,
        },
        "controllers": {"samples": 128, "epochs": 5, "hidden": 16, "check_samples": 32},
        "latents": {"samples": 256},
        "normals": {"samples": 64},
        "network": {"images": 64, "width": 8, "batch_size": 8, "checkpoint_interval": 4},
        "projection": {
            "train_samples": 32,
            "test_samples": 16,
            "calibration_samples": 8,
            "steps": 4,
            "batch_size": 16,
            "curve_images": 4,
            "curve_steps": 5,
        },
        "scoring": {"n_estimators": [20], "max_depth": [3], "folds": 2, "bootstrap_samples": 50},
    }


@pytest.mark.slow
def test_the_brain_pipeline_runs_to_its_page(
    prepared_cohort: Callable[..., PreparedCohort], command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Every stage in order; what is written speaks of the cohort by its own name; a second run does nothing again."""
    config = tmp_path / "tiny-brain.yaml"
    config.write_text(yaml.safe_dump(settings(prepared_cohort().folder), sort_keys=False))
    code, told = command("run", config, "--runs-dir", tmp_path / "runs", "--no-track")
    assert code == 0, told
    folders = {path.name.rsplit("-", 1)[0]: path for path in (tmp_path / "runs" / "tiny-brain").iterdir() if path.is_dir()}
    errors = pd.read_parquet(folders["auxiliary"] / "value_errors.parquet")
    assert set(errors["attribute"]) == {"age", "position"}
    table = pd.read_parquet(folders["project"] / "projections.parquet")
    assert set(table["split"]) == {"train", "test", "calibration"}
    excess = [
        name for name in table.columns if name.startswith(("residual_atlas_z", "residual_conditions_z", "residual_encoded_z"))
    ]
    # the mean; four sizes of neighbourhoods, each also weighed by flatness; two of them below and above the usual
    assert len(excess) == 3 * (1 + 2 * 4 + 2 * 2)
    texture = [f"residual_texture_{side}{size}" for side in ("low", "high") for size in (1, 2)]
    assert np.isfinite(table[excess + texture]).all(axis=None)
    curve = pd.read_parquet(folders["project"] / "curve.parquet")
    assert list(zip(curve["start"], curve["steps"], strict=True)) == [("encoder", 0), ("mean", 5)]
    assert np.isfinite(curve["residual_l1"]).all()
    assert "atlas" in set(pd.read_parquet(folders["score"] / "metrics.parquet")["detector"])
    blots = table[table["label"] == 1]
    assert blots["blot_radius_mm"].between(4, 8).all()
    assert np.isfinite(blots["blot_contrast"]).all()
    forest = json.loads((folders["score"] / "forest_thesis.json").read_text())
    plain, flat = (
        json.loads((folders["score"] / f"{name}.json").read_text())["features"] for name in ("forest_residuals", "forest")
    )
    assert {name for name in set(flat) - set(plain) if "flat" not in name} == {"residual_texture_low1", "residual_texture_low2"}
    assert len(set(flat) - set(plain)) == 3 * 4 + 3 + 2
    coordinates = [f"position_mm_{i}" for i in range(3)]
    assert set(forest["features"]) >= {"age_years", *coordinates, "residual_l1", "length/identity/8"}
    page = (folders["report"] / "index.html").read_text()
    assert "toy cohort" in page
    assert "The data are toy cohort" in page
    code, told = command("run", config, "--runs-dir", tmp_path / "runs", "--no-track")
    assert code == 0
    assert told.count("up to date") >= 7
