"""Blots: a pure function of seed and sample id, opaque inside, nothing outside, the same place at every resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscape.config import DataConfig
from normscape.datasets.blots import BlotSpec, BrainBlotSpec, draw_blot, draw_blots, standard_blots
from normscape.datasets.patches import INTENSITY_RANGE_SD

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


# ---- in a brain, in millimetres


def brain(side: int = 16) -> torch.Tensor:
    """A mask (1, S, S, S): most of a patch, with a slanted face."""
    index = torch.arange(side)
    return (index[:, None, None] + index[None, :, None] + 0.5 * index[None, None, :] < 1.6 * side)[None]


def test_brain_blots_stay_in_the_brain() -> None:
    """Centre in the brain, nothing painted outside, something always painted; a pure function of seed, id and mask."""
    images, masks = torch.zeros(200, 1, 16, 16, 16), brain().expand(200, -1, -1, -1, -1)
    spec = BrainBlotSpec(spacing_mm=2.0)
    blots = draw_blots(images, 3, range(200), spec, masks)
    assert (blots.images[~masks] == 0).all()
    assert (blots.masks[~masks[:, 0]] == 0).all()
    assert (blots.masks.sum((1, 2, 3)) > 1).all()
    voxel = blots.center_px.round().long().clamp(0, 15)
    assert masks[0, 0][tuple(voxel.T)].all()
    alone = draw_blot(images[7] + 0.3, 3, 7, spec, masks[7])
    assert torch.equal(alone.mask, blots.masks[7])
    assert alone.radius_mm == pytest.approx(blots.radius_mm[7].item())
    assert alone.radius_mm == 2 * alone.radius_px
    assert not torch.equal(draw_blot(images[7], 4, 7, spec, masks[7]).mask, alone.mask)


def test_brain_blots_are_distributed_as_defined() -> None:
    """Radius uniform in 4 to 8 mm, intensity uniform within 2.5 standard deviations, centre uniform over the brain's voxels."""
    mask = brain(8)
    blots = draw_blots(
        torch.zeros(1500, 1, 8, 8, 8),
        0,
        range(1500),
        standard_blots(DataConfig(source="brain")),
        mask.expand(1500, -1, -1, -1, -1),
    )
    for values, low, high in ((blots.radius_mm, 4.0, 8.0), (blots.color[:, 0] * INTENSITY_RANGE_SD, -2.5, 2.5)):
        share = (values - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        assert torch.histc(share, bins=4, min=0, max=1) == pytest.approx(torch.full((4,), 375.0), abs=75)
    voxel = blots.center_px.round().long().clamp(0, 7)
    hits = torch.zeros(8, 8, 8).index_put_(tuple(voxel.T), torch.ones(1500), accumulate=True)
    assert (hits[~mask[0]] == 0).all()
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        assert hits.sum(others) / 1500 == pytest.approx(mask[0].sum(others) / mask.sum(), abs=0.035)


def test_the_edge_wanders_by_millimetres() -> None:
    """Two standard deviations of the edge's distance are 2 mm, whatever the radius."""
    whole, found = torch.ones(1, 64, 64, 64, dtype=torch.bool), []
    for sample_id in range(60):
        blot = draw_blot(torch.zeros(1, 64, 64, 64), 0, sample_id, BrainBlotSpec(spacing_mm=0.5), whole)
        if all(20 < c < 44 for c in blot.center_px):
            voxels = torch.nonzero((blot.mask > 0) & (blot.mask < 1)).float()
            away = (voxels - torch.tensor(blot.center_px)).norm(dim=1) * 0.5
            found.append((away.mean().item() - blot.radius_mm, away.std().item()))
    offset, spread = np.array(found).T
    assert len(found) >= 3
    assert (abs(offset) < 1.2).all()
    assert ((spread > 0.5) & (spread < 1.8)).all()


def test_volumes_and_patches_of_any_spacing_have_the_same_blots() -> None:
    """At half the spacing a blot covers the same millimetres, and a whole volume takes it as a patch does."""
    covered = {}
    for spacing, side in ((2.0, 40), (1.0, 80)):
        everywhere = torch.ones(1, side, side, side, dtype=torch.bool)
        blots = [draw_blot(torch.zeros(1, side, side, side), 0, i, BrainBlotSpec(spacing), everywhere) for i in range(8)]
        covered[spacing] = torch.tensor([float(b.mask.sum()) * spacing**3 for b in blots])
        inside = [all(8 < c * spacing < 72 for c in b.center_px) for b in blots]
        radius = torch.tensor([b.radius_mm for b in blots])
    whole = torch.tensor(inside)
    assert whole.sum() >= 3
    assert covered[1.0][whole] == pytest.approx(covered[2.0][whole], rel=0.1)
    ball = 4 / 3 * torch.pi * radius**3
    assert (covered[1.0] / ball)[whole].mean().item() == pytest.approx(1.05, abs=0.2)


def test_no_brain_no_blot() -> None:
    with pytest.raises(ValueError, match="sample 5: its brain mask is empty"):
        draw_blot(torch.zeros(1, 8, 8, 8), 0, 5, BrainBlotSpec(2.0), torch.zeros(1, 8, 8, 8, dtype=torch.bool))
