"""A real experiment of the least possible size, run to its end once, and the command as a process or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from normscape import cli

ROOT = Path(__file__).resolve().parents[2]
AUXILIARY = {"width": 8, "stem_stride": 1, "epochs": 4, "batch_size": 32}


def tiny_settings() -> dict[str, object]:
    """What differs from the shipped demo: images of side 8, four views a chair, a handful of steps."""
    return {
        "base": str(ROOT / "configs" / "chairs" / "demo.yaml"),
        "name": "tiny",
        "device": "cpu",
        "image_size": 8,
        "data": {"angle_step_degrees": 29.0, "supersample": 1},
        "attributes": [
            {"name": "identity", "latent_dim": 8, "output_dim": 8, "auxiliary": AUXILIARY},
            {"name": "angle", "latent_dim": 8, "auxiliary": AUXILIARY},
        ],
        "other_dim": 4,
        "generator": {"channels": [8, 8], "mapping_layers": 2},
        "discriminator": {"channels": [8, 8]},
        "gan": {
            "steps": 60,
            "warmup_steps": 12,
            "batch_size": 8,
            "path_length_weight": 1.0,
            "checkpoint_interval": 8,
            "log_interval": 4,
            "sample_interval": 30,
            "quality_samples": 64,
        },
        "controllers": {"source": "generated", "samples": 256, "epochs": 60, "hidden": 16, "check_samples": 64},
        "latents": {"samples": 256},
        "network": {"images": 64, "width": 8, "batch_size": 8, "checkpoint_interval": 4},
        "projection": {
            "train_samples": 40,
            "test_samples": 24,
            "calibration_samples": 16,
            "steps": 20,
            "batch_size": 8,
            "curve_images": 4,
            "curve_steps": 10,
        },
        "scoring": {"n_estimators": [50], "max_depth": [3], "folds": 2, "bootstrap_samples": 100},
    }


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment's configuration file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(), sort_keys=False))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chairs are rendered into it once for the tests that do not interrupt rendering."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts `normscape run CONFIG ...` as a process group of its own, on one thread: `start(config, runs, cache, ...)`."""

    def run(config: Path, runs: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
        environment = os.environ | {"NORMSCAPE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(ROOT / "platform")
        command = [sys.executable, "-m", "normscape", "run", str(config), "--runs-dir", str(runs), "--no-track", *options]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return run


@pytest.fixture(scope="session")
def calm_run(
    tiny_yaml: Path, cache: Path, start: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of an undisturbed run, up to the scores."""
    runs = tmp_path_factory.mktemp("calm")
    process = start(tiny_yaml, runs, cache, "--to", "score")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return runs / "tiny"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path) -> Callable[..., tuple[int, str]]:
    """Runs `normscape ...` in this process and gives the exit code and all that it printed."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(cache))

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["normscape", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return int(str(code or 0)), out + err

    return run
