"""A finished run of toy chairs with random weights: a scored system in seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.stages import project, score
from normscape.stages.core import StageContext, folder_name, stage_keys
from normscape.training.recorder import SilentRecorder


def system_settings() -> dict[str, Any]:
    """The least possible experiment on rendered chairs."""
    auxiliary = {"width": 4, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False, "batch_size": 16}
    shared = {"latent_dim": 6, "tau_same": 0.05, "tau_different": 0.35, "auxiliary": auxiliary}
    identity = {"name": "identity", "kind": "embedding", "output_dim": 8, "distance": "euclidean"}
    angle = {"name": "angle", "kind": "value", "output_dim": 1, "distance": "l1", "column": "angle_degrees", "value_max": 90.0}
    return {
        "name": "toy",
        "device": "cpu",
        "image_size": 8,
        "data": {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 30.0, "supersample": 1},
        "attributes": [identity | shared, angle | shared],
        "other_dim": 4,
        "generator": {"channels": [12, 8], "mapping_layers": 2},
        "discriminator": {"channels": [8, 12]},
        "gan": {"steps": 1, "batch_size": 8},
        "controllers": {"hidden": 16},
        "latents": {"samples": 256},
        "projection": {"train_samples": 16, "test_samples": 8, "steps": 3, "batch_size": 8},
        "scoring": {"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
    }


@pytest.fixture(scope="session")
def system_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`runs/toy`, finished up to `score`; read it only."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = Config.model_validate(system_settings())
    folder, keys = tmp_path_factory.mktemp("runs") / config.name, stage_keys(config)
    made = untrained_inputs(config, folder)
    inputs: dict[str, Path] = {}
    for name in ("prepare", "auxiliary", "gan", "controllers", "latents", "project", "score"):
        inputs[name] = folder / folder_name(name, keys[name])
        metrics: dict[str, float] = {}
        if name in made:
            os.rename(made[name], inputs[name])
        else:
            inputs[name].mkdir()
            stage = {"project": project, "score": score}[name]
            metrics = dict(stage.run(StageContext(config, inputs[name], inputs, torch.device("cpu"), SilentRecorder())))
        manifest = {"stage": name, "key": keys[name], "metrics": metrics, "code_version": "test"}
        (inputs[name] / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(dump_yaml(config))
    yield folder
    patch.undo()
