"""The commands `sweep` and `distances`, and the job that does the same: what they print, write and answer to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

from normscape.cli_sweep import register
from normscape.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def app() -> typer.Typer:
    """A command with the two commands alone."""
    made = typer.Typer()
    register(made)
    return made


def tiny(folder: Path) -> Path:
    """Rendered chairs of 8 pixels, four views each, and networks that train in a moment."""
    auxiliary = {"width": 4, "stem_stride": 1, "epochs": 1, "batch_size": 32}
    settings = {
        "base": str(ROOT / "configs" / "chairs" / "demo.yaml"),
        "name": "tiny",
        "device": "cpu",
        "image_size": 8,
        "data": {"angle_step_degrees": 29.0, "supersample": 1},
        "attributes": [
            {"name": "identity", "latent_dim": 8, "output_dim": 8, "auxiliary": auxiliary},
            {"name": "angle", "latent_dim": 8, "auxiliary": auxiliary},
        ],
        "generator": {"channels": [8, 8]},
        "discriminator": {"channels": [8, 8]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.cluster
def test_distances_are_measured_drawn_and_turned_into_thresholds(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attribute has its three kinds of pairs, a figure and thresholds that follow from the table by the stated rule."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    result = CliRunner().invoke(app, ["distances", str(tiny(tmp_path)), "--runs-dir", str(runs), "--pairs", "256", "--quiet"])
    assert result.exit_code == 0, result.output
    folder = runs / "tiny" / "distances"
    table = pd.read_parquet(folder / "distances.parquet")
    proposed = json.loads((folder / "thresholds.json").read_text())
    assert set(proposed) == {"identity", "angle"}
    for name, taus in proposed.items():
        rows = table[table.attribute == name].groupby("pair", observed=True).distance
        assert set(rows.groups) == {"same", "different", "hardest_different"}
        assert rows.min().min() >= 0
        assert rows.max().max() <= 1
        assert rows.median()["hardest_different"] < rows.median()["different"]
        assert taus["tau_same"] == pytest.approx(rows.median()["same"], abs=0.01)
        far = rows.median()["hardest_different"] if name == "identity" else rows.quantile(0.25)["different"]
        assert taus["tau_different"] == pytest.approx(max(far, taus["tau_same"]), abs=0.01)
        assert (folder / f"distances-{name}.png").stat().st_size > 5000
        assert f"{taus['tau_same']:.3f}" in result.output


def test_a_sweep_that_is_not_there_is_an_error_for_people(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", str(tmp_path / "gone.yaml")])
    assert isinstance(result.exception, ConfigError)
    assert "cannot read configuration" in str(result.exception)


def test_the_job_names_a_mistake_and_ends_with_2(tmp_path: Path) -> None:
    """As a process: a broken sweep is a message without a trace, and an exit code that Ray takes for FAILED."""
    broken = tmp_path / "sweep.yaml"
    broken.write_text(yaml.safe_dump({"kind": "forest", "name": "x", "experiment": "y.yaml", "search": "guess"}))
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(broken), "--runs-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "search: must be one of grid, random, optuna; found 'guess'" in result.stderr
    assert "Traceback" not in result.stderr
