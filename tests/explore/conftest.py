"""Two finished runs of the least possible size, random networks in them, and real servers that show them."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.explore.server import Settings, listening
from normscape.explore.trained import Trained, load_run
from normscape.stages import normals, project, score
from normscape.stages.core import StageContext, folder_name, stage_keys
from normscape.training.recorder import SilentRecorder
from tests.explore.visitors import Serve, Site, running

RAN = {"normals": normals, "project": project, "score": score}


def toys() -> ModuleType:
    """The settings of the toy experiments, which lie in the conftest of all tests."""
    spec = importlib.util.spec_from_file_location("toy_settings", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(config: Config, runs: Path, stages: tuple[str, ...]) -> Path:
    """A run folder with these stages: networks are random, the rest is what the stages make of them."""
    folder, keys = runs / config.name, stage_keys(config)
    made = untrained_inputs(config, folder)
    inputs: dict[str, Path] = {}
    for name in stages:
        inputs[name] = folder / folder_name(name, keys[name])
        if name in made:
            os.rename(made[name], inputs[name])
        else:
            inputs[name].mkdir()
            RAN[name].run(StageContext(config, inputs[name], inputs, torch.device("cpu"), SilentRecorder()))
        (inputs[name] / "manifest.json").write_text(json.dumps({"stage": name, "key": keys[name], "metrics": {}}))
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder


@pytest.fixture(scope="session")
def chairs_run(tmp_path_factory: pytest.TempPathFactory, small_chairs: None) -> Path:
    """A run on chairs of 8 pixels, up to its projected images."""
    settings = toys().toy_settings()
    settings["data"] |= {"angle_step_degrees": 9.0, "supersample": 1}
    config = Config.model_validate(settings)
    return finish(config, tmp_path_factory.mktemp("chairs"), ("prepare", "auxiliary", "gan", "controllers", "latents", "project"))


@pytest.fixture(scope="session")
def brain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the simulated cohort at 4 mm, up to its scores."""
    settings = toys().toy_brain_settings() | {"name": "toy-brain"}
    changes: dict[str, Any] = {
        "data": {"spacing_mm": 4.0, "simulated_subjects": 7, "patches_per_subject": 24},
        "projection": {"train_samples": 32, "test_samples": 16, "calibration_samples": 16, "steps": 2, "batch_size": 16},
        "scoring": {"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
        "brains": {"stride": 6, "batch_size": 64},
    }
    for name, change in changes.items():
        settings[name] = settings.get(name, {}) | change
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        stages = ("prepare", "auxiliary", "gan", "controllers", "latents", "normals", "project", "score")
        return finish(Config.model_validate(settings), tmp_path_factory.mktemp("brains"), stages)


@pytest.fixture(scope="session")
def chairs(chairs_run: Path) -> Trained:
    """The chairs as the page shows them."""
    return load_run(chairs_run)


@pytest.fixture(scope="session")
def brains(brain_run: Path) -> Trained:
    """The brains as the page shows them."""
    return load_run(brain_run)


@pytest.fixture(scope="session")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stripped simulated scan that no network has seen."""
    from normscape.datasets.simulated import simulate_cohort

    folder = tmp_path_factory.mktemp("scan")
    simulate_cohort(folder, subjects=1, seed=9, spacing_mm=4.0)
    return next((folder / "t1").iterdir())


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts real servers: `serve(trained, most_uploads=2)`; they end with the test."""
    with ExitStack() as stack:

        def start(trained: Trained, **changes: Any) -> Site:
            given: dict[str, Any] = {
                "host": "127.0.0.1", "port": 0, "folder": None, "most_bytes": 8 << 20, "most_uploads": 8, "token": None,
            }  # fmt: skip
            page = stack.enter_context(listening(trained, Settings(**(given | changes))))
            return stack.enter_context(running(page))

        yield start
