"""A toy experiment: blobs whose colour is the identity and whose place is the angle, small enough to train in a test."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet

SUBJECTS, ANGLES = 6, 16


def pytest_configure() -> None:
    """Tests that interrupt a child with Ctrl-C must work in a background job too, whose children would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def toy_settings(dims: int = 2) -> dict[str, Any]:
    """A configuration of the least possible size: images of side 8."""
    auxiliary = {
        "width": 4,
        "stem_kernel": 3,
        "stem_stride": 1,
        "stem_pool": False,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.02,
    }
    return {
        "name": "toy",
        "dims": dims,
        "image_size": 8,
        "data": {"train_subjects": 4, "test_subjects": 2},
        "attributes": [
            {
                "name": "identity",
                "kind": "embedding",
                "latent_dim": 6,
                "output_dim": 8,
                "distance": "euclidean",
                "tau_same": 0.05,
                "tau_different": 0.35,
                "auxiliary": auxiliary,
            },
            {
                "name": "angle",
                "kind": "value",
                "latent_dim": 6,
                "output_dim": 1,
                "distance": "l1",
                "tau_same": 0.03,
                "tau_different": 0.15,
                "column": "angle_degrees",
                "value_max": 90.0,
                "unit": "degrees",
                "auxiliary": auxiliary | {"augment_hue": True},
            },
        ],
        "other_dim": 4,
        "generator": {"channels": [12, 8], "mapping_layers": 3},
        "discriminator": {"channels": [8, 12]},
        "gan": {
            "steps": 6,
            "batch_size": 8,
            "r1_interval": 2,
            "path_length_weight": 2.0,
            "path_length_interval": 3,
            "checkpoint_interval": 3,
            "log_interval": 1,
            "sample_interval": 3,
            "quality_samples": 32,
        },
        "controllers": {"samples": 64, "epochs": 4, "hidden": 16, "check_samples": 16, "batch_size": 16},
        "latents": {"samples": 256},
        "projection": {"train_samples": 8, "test_samples": 8, "steps": 5, "batch_size": 4},
    }


@pytest.fixture
def toy_config() -> Callable[..., Config]:
    """Makes the toy configuration; `toy_config(dims=3, gan={"steps": 2})` changes some of it."""

    def make(dims: int = 2, **changes: Any) -> Config:
        settings = toy_settings(dims)
        for name, value in changes.items():
            settings[name] = settings[name] | value if isinstance(value, dict) and name in settings else value
        return Config.model_validate(settings)

    return make


@pytest.fixture
def toy_samples() -> Callable[..., SampleSet]:
    """Makes toy images: a square of the subject's colour that moves with the angle, on white."""

    def make(dims: int = 2, side: int = 8) -> SampleSet:
        colours = torch.randint(0, 200, (SUBJECTS, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images = torch.full((SUBJECTS, ANGLES, 3, *(side,) * dims), 255, dtype=torch.uint8)
        for angle in range(ANGLES):
            start = angle * (side - 4) // (ANGLES - 1)
            images[(slice(None), angle, slice(None), *(slice(start, start + 4),) * dims)] = colours.view(
                SUBJECTS, 3, *(1,) * dims
            )
        degrees = torch.linspace(0, 90, ANGLES).repeat(SUBJECTS)[:, None]
        return SampleSet(
            images=images.flatten(0, 1),
            subject=torch.arange(SUBJECTS).repeat_interleave(ANGLES),
            subjects=tuple(f"toy-{i}" for i in range(SUBJECTS)),
            values={"angle_degrees": degrees},
            sample_id=torch.arange(SUBJECTS * ANGLES),
        )

    return make
