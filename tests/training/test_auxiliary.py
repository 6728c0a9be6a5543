"""Auxiliary training: it learns, resumes exactly, and its triplets are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.training.auxiliary import SubjectIndex, embedding_quality, train_auxiliary, value_error
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")


def with_epochs(config: Config, number: int, epochs: int) -> Config:
    """The configuration with another number of epochs for one attribute."""
    data = config.model_dump()
    data["attributes"][number]["auxiliary"]["epochs"] = epochs
    return Config.model_validate(data)


@pytest.mark.parametrize("number", [0, 1], ids=["triplet", "regression"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    number: int, toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet], tmp_path: Path
) -> None:
    """Two epochs, killed after the first, give the same weights."""
    config, samples = toy_config(), toy_samples()
    arguments = {"digest": "d", "device": CPU, "recorder": SilentRecorder()}
    straight = train_auxiliary(config.attributes[number], config, samples, folder=tmp_path / "a", **arguments)
    newest = sorted((tmp_path / "a").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()  # as if killed between the two checkpoints
    again = train_auxiliary(config.attributes[number], config, samples, folder=tmp_path / "a", **arguments)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True))


def test_networks_learn_the_toy(toy_config: Callable[..., Config], toy_samples: Callable[..., SampleSet], tmp_path: Path) -> None:
    """Colours separate the subjects and the angle is read far better than by guessing (22.5 degrees)."""
    config, samples = toy_config(augmentation={"pad_fraction": 0.0}), toy_samples()
    arguments = {"digest": "d", "device": CPU, "recorder": SilentRecorder()}
    config = with_epochs(with_epochs(config, 0, 12), 1, 30)
    identity = train_auxiliary(config.attributes[0], config, samples, folder=tmp_path / "i", **arguments)
    quality = embedding_quality(identity, samples, triplets=500, seed=0, split="train", device=CPU)
    assert quality.separated > 0.9
    assert quality.distance_same.mean() < quality.distance_different.mean()
    angle = train_auxiliary(config.attributes[1], config, samples, folder=tmp_path / "v", **arguments)
    assert value_error(angle, samples, count=200, seed=0, split="train", device=CPU) < 12


def test_views_belong_to_their_subjects(toy_samples: Callable[..., SampleSet]) -> None:
    """Batches hold P different subjects with K views; a positive is never its own anchor."""
    samples = toy_samples()
    index = SubjectIndex(samples.select(torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))[:70]))
    assert len(index) == 6
    shuffled = samples.select(torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))[:70])
    views = index.views(torch.arange(6).repeat(50), 3, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.subject[views], torch.arange(6).repeat(50)[:, None].expand(-1, 3))
    assert (views[:, 0] != views[:, 1]).all()
    batch = index.batch(4, 3, torch.Generator().manual_seed(0))
    assert batch.shape == (12,)
    assert len(shuffled.subject[batch].unique()) == 4
