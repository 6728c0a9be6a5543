"""Auxiliary training: it learns, resumes exactly, and its triplets are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import AttributeConfig, Config
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import SampleSet, load_samples
from normscape.networks.auxiliary import AuxiliaryNetwork
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


def test_a_value_that_augmentation_draws_is_learnt(
    toy_config: Callable[..., Config], lit_samples: SampleSet, tmp_path: Path
) -> None:
    """The network is told what was drawn: its error is far below that of guessing, 0.5."""
    config = toy_config(augmentation={"pad_fraction": 0.0, "hue_degrees": 0.0, "noise_std_max": 0.02})
    light = config.attributes[1].model_copy(update={"column": "light", "value_min": -1.0, "value_max": 1.0})
    light = light.model_copy(update={"auxiliary": light.auxiliary.model_copy(update={"epochs": 20})})
    arguments = {"folder": tmp_path, "digest": "d", "device": CPU, "recorder": SilentRecorder()}
    network = train_auxiliary(light, config, lit_samples, **arguments)
    assert value_error(network, lit_samples, count=300, seed=0, split="train", device=CPU) < 0.2


class Guess(torch.nn.Module):
    """Reads the middle of the range, whatever it sees."""

    def __init__(self, attribute: AttributeConfig) -> None:
        super().__init__()
        self.attribute = attribute

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, D)` in [0, 1]."""
        return torch.full((len(images), self.attribute.output_dim), 0.5)


def test_the_error_of_what_augmentation_draws_is_measured_on_drawn_values(
    toy_brain_config: Callable[..., Config], prepared_cohort: Callable[..., PreparedCohort]
) -> None:
    """A network that never sees a shift of contrast must not look perfect because images as they are have none."""
    data = {"root": str(prepared_cohort().folder), "patches_per_subject": 8, "contrast_augmentation": "pca"}
    config = toy_brain_config(data=data)
    age, position = config.value_attributes
    contrast = position.model_copy(
        update={"name": "contrast", "column": "contrast", "output_dim": 6, "value_min": -1.0, "value_max": 1.0, "grids": ()}
    )
    samples = load_samples(config.data, config.image_size)
    error = value_error(Guess(contrast), samples, count=600, seed=0, split="train", device=CPU)
    assert error == pytest.approx(1.39, abs=0.05)  # mean distance from the middle of a cube of six dimensions and side 2
    assert value_error(Guess(contrast), samples, count=600, seed=0, split="train", device=CPU) == error
    ages = value_error(Guess(age), samples, count=600, seed=0, split="train", device=CPU)
    assert ages == pytest.approx((samples.values["age_years"] - 50).abs().mean().item(), rel=0.1)


def test_of_one_image_a_subject_the_views_are_drawn(toy_config: Callable[..., Config], lit_samples: SampleSet) -> None:
    """Batches hold the image several times, drawn anew each time; two views of a subject are no longer the same image."""
    config = toy_config()
    one = lit_samples.select(torch.arange(0, len(lit_samples), len(lit_samples) // len(lit_samples.subjects)))
    assert int(SubjectIndex(one).counts.max()) == 1
    index = SubjectIndex(one).batch(4, 3, torch.Generator().manual_seed(0))
    assert (one.subject[index].view(4, 3) == one.subject[index].view(4, 3)[:, :1]).all()
    assert one.batch(index, torch.Generator().manual_seed(0)).flatten(1)[:, 0].unique().numel() == len(index)
    torch.manual_seed(0)
    network = AuxiliaryNetwork.from_config(config.attributes[0], config).eval()
    found = embedding_quality(network, one, triplets=50, seed=0, split="train", device=CPU)
    assert (found.distance_same > 0).all()
    again = embedding_quality(network, one, triplets=50, seed=0, split="train", device=CPU)
    assert torch.equal(found.distance_same, again.distance_same)


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
