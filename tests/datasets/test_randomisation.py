"""Domain randomisation: a pure function of (seed, sample id), within the mask, for the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from normscape.config import RandomisationConfig
from normscape.datasets.batches import HealthyImages
from normscape.datasets.randomisation import RandomisedImages, _normal, _uniform, randomised, randomised_rows
from normscape.datasets.samples import SampleSet

ALL = RandomisationConfig(share=1.0)


def _images(count: int = 6, dims: int = 3, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.rand(count, channels, *[8] * dims, generator=random) * 1.6 - 0.8
    masks = torch.rand(count, 1, *[8] * dims, generator=random) > 0.3
    return images, masks


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 1)])
def test_an_image_is_changed_as_if_it_were_alone(dims: int, channels: int) -> None:
    """In any batch and order; another seed or id gives another image; outside the mask nothing moves, and the range is kept."""
    images, masks = _images(dims=dims, channels=channels)
    ids = [5, 0, 7, 10**12, 3, 2]
    made = randomised(ALL, images, masks, seed=4, sample_ids=ids)
    alone = randomised(ALL, images[3:4], masks[3:4], seed=4, sample_ids=ids[3:4])
    torch.testing.assert_close(alone, made[3:4], rtol=0, atol=1e-6)
    back = randomised(ALL, images.flip(0), masks.flip(0), seed=4, sample_ids=ids[::-1]).flip(0)
    torch.testing.assert_close(back, made, rtol=0, atol=1e-6)
    where = masks.expand_as(images)
    assert torch.equal(made[~where], images[~where])
    assert float(made.abs().max()) <= 1.0
    for i in range(len(images)):
        assert float((made[i] - images[i]).abs().max()) > 0.01
    assert not torch.allclose(randomised(ALL, images, masks, seed=5, sample_ids=ids), made)
    twins = randomised(ALL, images[:1].expand(2, *images.shape[1:]), None, seed=4, sample_ids=[1, 2])
    assert not torch.allclose(twins[0], twins[1])


def test_share_and_strength() -> None:
    """None, some or all of the images; a small strength changes little."""
    images, masks = _images(400)
    ids = range(400)
    half = RandomisationConfig(share=0.5)
    rows = randomised_rows(half, 0, ids)
    assert 160 < rows.sum() < 240
    made = randomised(half, images, masks, seed=0, sample_ids=ids)
    np.testing.assert_array_equal((made != images).flatten(1).any(1).numpy(), rows)
    assert randomised(RandomisationConfig(), images, masks, seed=0, sample_ids=ids) is images
    faint = randomised(RandomisationConfig(share=1.0, strength=0.01), images, masks, seed=0, sample_ids=ids)
    assert float((faint - images).abs().max()) < 0.03


def test_numbers_are_what_they_say() -> None:
    """Uniform and standard normal, without a trace of neighbouring ids; small golden numbers hold them fast."""
    uniform = _uniform(3, range(2000), 1, 50)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005
    assert abs(uniform.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.01
    normal = _normal(3, np.arange(500), 200)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    golden = [[0.8292054232671148, 0.300691432814181], [0.9665193019929356, 0.9515410462987225]]
    np.testing.assert_allclose(_uniform(0, [0, 1], 0, 2), golden, rtol=1e-12)


def test_images_of_a_split(toy_samples: Callable[..., SampleSet]) -> None:
    """Rows are the same images in any batch; what is known of them stays."""
    samples = toy_samples()
    plain = HealthyImages(samples, ())
    varied = RandomisedImages(plain, RandomisationConfig(share=0.5), 2)
    rows = torch.arange(8)
    batch, part = varied.batch(rows), varied.batch(rows[4:6])
    torch.testing.assert_close(batch.images[4:6], part.images)
    changed = (batch.images != plain.batch(rows).images).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(changed, randomised_rows(varied.config, 2, samples.sample_id[rows].tolist()))
    assert len(varied) == len(plain)
    np.testing.assert_array_equal(varied.subject, plain.subject)
