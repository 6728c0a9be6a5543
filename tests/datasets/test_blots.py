"""Blots: a pure function of seed and sample id, opaque inside, nothing outside, the same place at every resolution."""

from __future__ import annotations

import pytest
import torch

from normscape.datasets.blots import BlotSpec, draw_blot, draw_blots

GOLDEN_RADIUS = 3.7672074
GOLDEN_CENTER = (-0.0498549, 7.7485519)
GOLDEN_COLOR = (0.1563678, -0.9567641, 0.7271291)
GOLDEN_AREA = 20.7102
SHAPES = pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16, 16)])


def image(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@SHAPES
def test_depends_on_seed_and_sample_id_only(shape: tuple[int, ...]) -> None:
    """Same arguments, same blot, whatever the image or the global random state; another id or seed, another blot."""
    torch.manual_seed(1)
    first = draw_blot(image(shape), 7, 123)
    torch.manual_seed(2)
    second = draw_blot(image(shape, 5), 7, 123)
    assert torch.equal(first.mask, second.mask)
    assert (first.radius_px, first.center_px, first.color) == (second.radius_px, second.center_px, second.color)
    assert first.center_px != draw_blot(image(shape), 7, 124).center_px
    assert first.center_px != draw_blot(image(shape), 8, 123).center_px


def test_first_blot_is_the_one_fixed_for_all_work() -> None:
    """Golden numbers: a change here changes every published result."""
    blot = draw_blot(torch.ones(3, 32, 32), 0, 0)
    assert blot.radius_px == pytest.approx(GOLDEN_RADIUS, abs=1e-6)
    assert blot.center_px == pytest.approx(GOLDEN_CENTER, abs=1e-6)
    assert blot.color == pytest.approx(GOLDEN_COLOR, abs=1e-6)
    assert float(blot.mask.sum()) == pytest.approx(GOLDEN_AREA, abs=1e-3)


@SHAPES
def test_opaque_inside_unchanged_outside(shape: tuple[int, ...]) -> None:
    """Where the mask is 1 the image is the colour, where it is 0 the image is untouched, and the input is not written to."""
    for sample_id in range(20):
        before = image(shape)
        blot = draw_blot(before, 0, sample_id)
        assert torch.equal(before, image(shape))
        inside, outside = blot.mask == 1, blot.mask == 0
        assert inside.any()
        assert outside.any()
        assert torch.equal(blot.image[:, outside], before[:, outside])
        colour = torch.tensor(blot.color).unsqueeze(1)
        assert torch.allclose(blot.image[:, inside], colour.expand(-1, int(inside.sum())), atol=1e-6)
        assert blot.image.abs().max() <= 1


def test_distributions() -> None:
    """Radius uniform in 8 to 16 % of the side, centre uniform over the image, colours uniform in [-1, 1]."""
    blots = draw_blots(torch.zeros(1500, 3, 32, 32), 3, range(1500))
    radius = blots.radius_px / 32
    assert 0.08 <= radius.min() < 0.082
    assert 0.158 < radius.max() <= 0.16
    assert radius.mean() == pytest.approx(0.12, abs=0.002)
    assert radius.std() == pytest.approx(0.08 / 12**0.5, abs=0.001)
    for values, low, high in ((blots.center_px, -0.5, 31.5), (blots.color, -1, 1)):
        assert values.min() >= low
        assert values.max() <= high
        quarters = (values - low) / (high - low)
        for column in quarters.T:
            assert torch.histc(column, bins=4, min=0, max=1) == pytest.approx(torch.full((4,), 375.0), abs=75)


def test_mask_area_is_that_of_the_radius() -> None:
    """Blots that lie whole in the image cover pi r^2 on average (a little more for the waves), and their edges are wavy."""
    blots = draw_blots(torch.zeros(600, 1, 64, 64), 0, range(600))
    whole = ((blots.center_px > 16) & (blots.center_px < 47)).all(dim=1)
    ratio = blots.masks[whole].sum(dim=(1, 2)) / (torch.pi * blots.radius_px[whole] ** 2)
    assert ratio.mean() == pytest.approx(1.02, abs=0.04)
    round_blots = draw_blots(torch.zeros(600, 1, 64, 64), 0, range(600), BlotSpec(waviness_fraction=0.0))
    difference = (blots.masks - round_blots.masks)[whole].abs().sum(dim=(1, 2)) / round_blots.masks[whole].sum(dim=(1, 2))
    assert difference.mean() > 0.1


@SHAPES
def test_same_place_at_twice_the_resolution(shape: tuple[int, ...]) -> None:
    """The definition is physical: averaging the finer mask down gives the coarser one, up to the edge."""
    fine_shape = (shape[0], *(2 * n for n in shape[1:]))
    pool = torch.nn.functional.avg_pool2d if len(shape) == 3 else torch.nn.functional.avg_pool3d
    for sample_id in range(10):
        coarse, fine = draw_blot(torch.zeros(shape), 0, sample_id), draw_blot(torch.zeros(fine_shape), 0, sample_id)
        assert fine.radius_px == pytest.approx(2 * coarse.radius_px)
        assert fine.color == coarse.color
        pooled = pool(fine.mask[None, None], 2)[0, 0]
        assert (pooled[coarse.mask == 1] > 0.3).all()
        assert float(pooled.sum()) == pytest.approx(float(coarse.mask.sum()), rel=0.2)


def test_contrast_is_the_difference_to_what_lies_below() -> None:
    """On a flat image it is the mean difference of the colours; on the blot's own colour it is 0."""
    blot = draw_blot(torch.full((3, 32, 32), 0.5), 0, 4)
    assert blot.contrast == pytest.approx(sum(abs(c - 0.5) for c in blot.color) / 3, abs=1e-5)
    own = torch.tensor(blot.color).view(3, 1, 1).expand(3, 32, 32)
    assert draw_blot(own, 0, 4).contrast == pytest.approx(0, abs=1e-6)


def test_batch_equals_single_blots() -> None:
    images = torch.stack([image((3, 16, 16), i) for i in range(4)])
    batch = draw_blots(images, 5, torch.tensor([9, 2, 77, 2]))
    for i, sample_id in enumerate([9, 2, 77, 2]):
        single = draw_blot(images[i], 5, sample_id)
        assert torch.equal(batch.images[i], single.image)
        assert torch.equal(batch.masks[i], single.mask)
        assert batch.contrast[i] == pytest.approx(single.contrast)
    assert torch.equal(batch.masks[1], batch.masks[3])
    with pytest.raises(ValueError, match="4 images need as many sample ids, found 2"):
        draw_blots(images, 0, [1, 2])
