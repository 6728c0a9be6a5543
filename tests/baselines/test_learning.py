"""What networks of the baselines see, and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from normscape.baselines import learning
from normscape.baselines.learning import OUTSIDE, Course, Descent, Inputs, check_choice, check_positive, fresh_weights, minimise
from normscape.errors import DataError


def test_outside_of_the_masks_is_black(toy_training: Callable[..., Any]) -> None:
    """Noise is replaced there; what lies under the mask stays."""
    toy = toy_training("patches")
    seen = Inputs(toy.training)(toy.unseen)
    assert torch.equal(seen.images[toy.unseen.masks], toy.unseen.images[toy.unseen.masks])
    assert bool((seen.images[~toy.unseen.masks] == OUTSIDE).all())
    difference = seen.difference(torch.zeros_like(seen.images))
    assert torch.equal(difference[toy.unseen.masks], toy.unseen.images[toy.unseen.masks])
    assert not bool(difference[~toy.unseen.masks].any())


def test_known_values_are_normalised(toy_training: Callable[..., Any]) -> None:
    """Age from 20 to 80 years and position from -80 to 80 mm, side by side, from 0 to 1."""
    toy = toy_training("patches")
    inputs = Inputs(toy.training, "known")
    values = inputs(toy.unseen).values
    assert inputs.width == 4
    torch.testing.assert_close(values[:, :1], (toy.unseen.conditions["age"] - 20) / 60)
    torch.testing.assert_close(values[:, 1:], (toy.unseen.conditions["position"] + 80) / 160)
    assert Inputs(toy.training)(toy.unseen).values.shape == (len(toy.unseen), 0)


def test_shuffled_values_are_those_of_others(toy_training: Callable[..., Any]) -> None:
    """Values that training images have, hardly ever the image's own, whatever its own are; the same in every batch."""
    toy = toy_training("patches")
    inputs, known = Inputs(toy.training, "shuffled"), Inputs(toy.training, "known")
    batch = toy.training.healthy.batch(torch.arange(len(toy.training.healthy)))
    values, own = inputs(batch).values, known(batch).values
    same = (values[:, None] == own[None]).all(2)
    assert bool(same.any(1).all())
    assert float(same.diagonal().float().mean()) < 0.15
    assert len(values.unique(dim=0)) > 20
    assert abs(float(torch.corrcoef(torch.stack([values[:, 1], own[:, 1]]))[0, 1])) < 0.45
    other = replace(batch, conditions={name: torch.zeros_like(value) for name, value in batch.conditions.items()})
    assert torch.equal(inputs(other).values, values)
    assert torch.equal(inputs(batch.rows(slice(5, 6))).values, values[5:6])


def test_conditions_have_to_be_there(toy_training: Callable[..., Any]) -> None:
    """Neither an experiment without values nor images without them can be conditional."""
    toy = toy_training()
    with pytest.raises(DataError, match="known angle"):
        Inputs(toy.training, "known")(replace(toy.unseen, conditions={}))
    config = toy.training.config
    alone = config.model_copy(update={"attributes": config.attributes[:1]})
    with pytest.raises(DataError, match="kind value"):
        Inputs(replace(toy.training, config=alone), "known")


def test_batches_are_the_same_from_memory(toy_training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept images are drawn once; batch for batch nothing else changes."""
    toy = toy_training("patches", network_images=96)
    kept = list(Course(toy.training, "test", batch_size=32).batches())
    assert toy.training.healthy.drawn == len(toy.training.healthy)
    monkeypatch.setattr(learning, "KEPT_BYTES", 0)
    anew = list(Course(toy.training, "test", batch_size=32).batches())
    assert len(kept) == len(anew) == 3
    for a, b in zip(kept, anew, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.batch.images, b.batch.images)
        assert torch.equal(a.batch.masks, b.batch.masks)
        assert torch.equal(a.batch.conditions["age"], b.batch.conditions["age"])
    assert not torch.equal(kept[0].rows, kept[1].rows)


def test_a_course_goes_on_where_it_was(toy_training: Callable[..., Any]) -> None:
    """Two parts of a course hold what one has, and no more than there is; a small budget is one small step."""
    toy = toy_training(network_images=100)
    whole = [step.rows for step in Course(toy.training, "test", batch_size=16).batches()]
    course = Course(toy.training, "test", batch_size=16)
    parts = [step.rows for part in (4, 99) for step in course.batches(part)]
    assert len(parts) == len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
    small = Course(replace(toy.training, network_images=5), "test", batch_size=16)
    assert [len(step.rows) for step in small.batches()] == [5]


def test_minimise_trains_freezes_and_ends_at_rate_zero(toy_training: Callable[..., Any]) -> None:
    """A single weight finds the mean of the images; afterwards it cannot be trained by accident."""
    toy = toy_training(network_images=3200)
    module = nn.Linear(1, 1)
    course = Course(toy.training, "test", batch_size=16)

    def loss(step: learning.Step) -> torch.Tensor:
        return (module.bias - step.batch.images.mean()).square().sum()

    losses = minimise(course, module, loss, learning_rate=0.1)
    mean = toy.training.healthy.batch(torch.arange(len(toy.training.healthy))).images.mean()
    assert losses.shape == (200,)
    assert float(module.bias.detach()) == pytest.approx(float(mean), abs=0.05)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_the_rate_falls_along_half_a_cosine() -> None:
    """Half of it is left half-way, nothing at the end."""
    module = nn.Linear(1, 1)
    descent = Descent(module, learning_rate=0.2, steps=10)
    rates = []
    for _ in range(10):
        rates.append(descent.optimizer.param_groups[0]["lr"])
        descent.step(module.bias.square().sum())
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.1)
    assert descent.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_fresh_weights_follow_from_the_seed(toy_training: Callable[..., Any]) -> None:
    """Seed and detector decide, the global generator does not, and it goes on as if nothing had been drawn."""
    toy = toy_training()

    def weights(seed: int, name: str) -> torch.Tensor:
        with fresh_weights(replace(toy.training, seed=seed), name):
            return nn.Linear(4, 4).weight.detach()

    torch.manual_seed(5)
    first = weights(0, "vae")
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, weights(0, "vae"))
    assert not torch.equal(first, weights(1, "vae"))
    assert not torch.equal(first, weights(0, "fae"))


def test_settings_are_refused_by_name() -> None:
    """The message says which, and what would do."""
    with pytest.raises(ValueError, match=r"width is 0.*above 0"):
        check_positive(width=0, latent=3)
    with pytest.raises(ValueError, match=r"conditions is 'some'.*none, known, shuffled"):
        check_choice("conditions", "some", learning.Conditions)
    check_choice("conditions", "known", learning.Conditions)
