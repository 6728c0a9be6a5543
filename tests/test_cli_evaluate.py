"""The command `evaluate` and the job that does the same: what they write, print and answer to mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from normscape.cli_evaluate import SOME_FAILED, Options, numbers, register, words
from normscape.configio import load_config
from normscape.errors import ConfigError, UserError
from normscape.stages.core import run_stages
from tests.evaluation.toys import detector, evaluation

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def app() -> typer.Typer:
    """A command with this one, and another, so that it keeps its name."""
    made = typer.Typer()
    register(made)
    made.command("other")(lambda: None)
    return made


@pytest.fixture
def config(small_chairs: None, tmp_path: Path) -> Path:
    """A prepared experiment of rendered chairs of 8 pixels."""
    return write(tmp_path)


def write(folder: Path, **changes: Any) -> Path:
    auxiliary = {"width": 4, "stem_stride": 1, "epochs": 1, "batch_size": 32}
    settings = {
        "base": str(ROOT / "configs" / "chairs" / "demo.yaml"),
        "name": "tiny",
        "device": "cpu",
        "image_size": 8,
        "data": {"angle_step_degrees": 29.0, "supersample": 1, "train_subjects": 24, "test_subjects": 14},
        "attributes": [{"name": name, "latent_dim": 8, "auxiliary": auxiliary} for name in ("identity", "angle")],
        "generator": {"channels": [8, 8]},
        "discriminator": {"channels": [8, 8]},
        "evaluation": evaluation(**changes),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    run_stages(load_config(path), folder / "runs", last="prepare")
    return path


def run(app: typer.Typer, path: Path, *options: str) -> Any:
    command = ["evaluate", str(path), "--runs-dir", str(path.parent / "runs"), "--no-track", "--quiet", *options]
    return CliRunner().invoke(app, command)


def results(path: Path) -> list[Path]:
    return sorted((path.parent / "runs" / "tiny" / "evaluation").glob("results-*"))


def test_it_writes_the_leaderboard_and_says_where(app: typer.Typer, config: Path) -> None:
    result = run(app, config)
    assert result.exit_code == 0, result.output
    (folder,) = results(config)
    assert str(folder / "index.html") in result.output
    assert "opened 4 times so far" in result.output
    for name in ("index.html", "leaderboard.md", "metrics.parquet", "config.yaml"):
        assert (folder / name).stat().st_size > 0
    about = json.loads((folder / "evaluation.json").read_text())
    assert about["command"] == f"normscape evaluate {config}"
    again = run(app, config)
    assert "opened 4 times so far" in again.output  # nothing was left to do


def test_quick_one_detector_other_seeds(app: typer.Typer, config: Path) -> None:
    """The command that made the numbers stands with them."""
    result = run(app, config, "--quick", "--detectors", "near", "--seeds", "5", "--set", "evaluation.test_images=4")
    assert result.exit_code == 0, result.output
    (folder,) = results(config)
    about = json.loads((folder / "evaluation.json").read_text())
    assert about["command"] == f"normscape evaluate {config} --set evaluation.test_images=4 --quick --detectors near --seeds 5"
    assert (about["detectors"], about["seeds"]) == (["near"], [5])
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    assert {row["normals"] for row in rows if row["role"] == "test"} == {4}


def test_choosing_leaves_the_locked_test_closed(app: typer.Typer, config: Path) -> None:
    """A table of areas on synthetic validation, for people and as JSON; no reading is written down."""
    result = run(app, config, "--choose")
    assert result.exit_code == 0, result.output
    assert "the locked test was not opened" in result.output
    assert results(config) == []
    evaluated = config.parent / "runs" / "tiny" / "evaluation"
    assert not (evaluated / "readings.jsonl").exists()
    told = json.loads(run(app, config, "--choose", "--json").stdout)
    assert set(told["auroc"]) == {"near", "blind"}
    assert Path(told["table"]).exists()


def test_a_failed_detector_is_in_the_exit_code(app: typer.Typer, small_chairs: None, tmp_path: Path) -> None:
    path = write(tmp_path, detectors=[detector("near"), detector("never", "Fails")], seeds=[0])
    result = run(app, path)
    assert result.exit_code == SOME_FAILED == 3
    assert "failed: never, seed 0: while it was fitted: RuntimeError: nothing to hold on to" in result.output
    assert len(results(path)) == 1


def test_mistakes_are_errors_for_people(app: typer.Typer, config: Path) -> None:
    for options, error, text in (
        (("--detectors", "nothing"), ConfigError, "--detectors: nothing unknown"),
        (("--seeds", "a"), UserError, "expected whole numbers"),
        (("--seeds", "-1"), UserError, "at least 0"),
        (("--set", "evaluation.reference=gone"), ConfigError, "none of `detectors`"),
        (("--address", "auto"), UserError, "--workers 4"),
        (("--choose", "--workers", "2"), UserError, "--choose fits one detector after the other"),
    ):
        result = run(app, config, *options)
        assert isinstance(result.exception, error), result.output
        assert text in str(result.exception)


def test_lists_of_the_command_line() -> None:
    assert words(" a, b,,c ") == ("a", "b", "c")
    assert numbers("0,1,1") == (0, 1)
    assert Options(small=True, seeds=(1,)).command(Path("a b.yaml")) == "normscape evaluate 'a b.yaml' --quick --seeds 1"


@pytest.mark.cluster
def test_the_job_runs_the_same_code(config: Path) -> None:
    """On a Ray of its own, two units at a time."""
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--config", str(config), "--no-track", "--quiet"]
    command += ["--runs-dir", str(config.parent / "runs"), "--address", "local"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # where the toys are
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(results(config)) == 1
