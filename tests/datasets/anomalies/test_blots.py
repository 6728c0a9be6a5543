"""Families of blots: the standard ones are those of `draw_blot`; clear, matched and textured ones keep what they promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from normscape.config import PluginConfig
from normscape.datasets.anomalies import Scene, load_family
from normscape.datasets.anomalies.blots import CLEAR_GAP, CLEAR_GAP_SD
from normscape.datasets.batches import ImageBatch
from normscape.datasets.blots import BlotSpec, BrainBlotSpec, draw_blots
from normscape.datasets.patches import INTENSITY_RANGE_SD

IDS = list(range(40))
KINDS = pytest.mark.parametrize("kind", ["patches", "pictures"])


def many(scenery: Callable, kind: str) -> tuple[ImageBatch, Scene]:
    """40 images: each of the four ten times."""
    batch, _, scene = scenery(kind)
    return batch.rows(torch.arange(40) % 4), scene


def under(values: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean of each channel under the mask, (B, C)."""
    return (values * masks).flatten(2).double().sum(2) / masks.flatten(2).double().sum(2)


@KINDS
def test_standard_is_draw_blot(kind: str, scenery: Callable) -> None:
    """The very images and masks of `draw_blots`, and its contrast."""
    batch, scene = many(scenery, kind)
    drawn = load_family(PluginConfig(name="standard")).draw(batch, seed=3, sample_ids=IDS, scene=scene)
    spec = BlotSpec() if scene.spacing_mm is None else BrainBlotSpec(scene.spacing_mm)
    blots = draw_blots(batch.images, 3, IDS, spec, batch.masks)
    assert torch.equal(drawn.images, blots.images)
    assert torch.equal(drawn.masks[:, 0], blots.masks)
    assert drawn.contrast == pytest.approx(blots.contrast, abs=1e-5)


def test_size_is_near_the_nominal_radius() -> None:
    """Where a blot lies free in the image: the radius that was drawn, up to the waves of its edge; in mm, and in pixels."""
    for shape, scene, spec in (((32,) * 3, Scene(3, 2.0), BrainBlotSpec(2.0)), ((64,) * 2, Scene(2, None), BlotSpec())):
        images = torch.zeros(60, 1, *shape)
        masks = torch.ones(60, 1, *shape, dtype=torch.bool) if scene.spacing_mm else None
        drawn = load_family(PluginConfig(name="standard")).draw(
            ImageBatch(images, masks, {}), seed=3, sample_ids=range(60), scene=scene
        )
        blots = draw_blots(images, 3, range(60), spec, masks)
        free = ((blots.center_px > 0.3 * shape[0]) & (blots.center_px < 0.7 * shape[0])).all(1)
        radius = (blots.radius_mm if scene.spacing_mm else blots.radius_px)[free]
        assert len(radius) >= 3
        assert (drawn.size[free] / radius).mean().item() == pytest.approx(1.03, abs=0.1)


@KINDS
def test_clear_blots_are_far_from_what_lies_below(kind: str, scenery: Callable) -> None:
    """In every channel at least 1.5 standard deviations (0.75 in pictures) from the mean below, inside the range, and larger."""
    batch, scene = many(scenery, kind)
    drawn = load_family(PluginConfig(name="clear")).draw(batch, seed=3, sample_ids=IDS, scene=scene)
    gap, most = (CLEAR_GAP, 1.0) if scene.spacing_mm is None else (CLEAR_GAP_SD / INTENSITY_RANGE_SD, 2.5 / INTENSITY_RANGE_SD)
    below, colour = under(batch.images, drawn.masks), under(drawn.images, (drawn.masks == 1).float())
    assert ((colour - below).abs() >= gap - 1e-4).all()
    assert (colour.abs() <= most + 1e-4).all()
    assert (drawn.contrast >= gap - 1e-4).all()
    assert (colour > below).any()
    assert (colour < below).any()
    standard = load_family(PluginConfig(name="standard")).draw(batch, seed=3, sample_ids=IDS, scene=scene)
    assert drawn.size.mean() > 1.25 * standard.size.mean()
    assert drawn.contrast.mean() > 1.2 * standard.contrast.mean()


@KINDS
def test_matched_blots_leave_the_mean(kind: str, scenery: Callable) -> None:
    """The mean of every channel under the blot, and of the image, is what it was; the blot itself is flat."""
    batch, scene = many(scenery, kind)
    drawn = load_family(PluginConfig(name="matched")).draw(batch, seed=3, sample_ids=IDS, scene=scene)
    touched = (drawn.masks > 0).float()
    assert under(drawn.images, touched) == pytest.approx(under(batch.images, touched), abs=1e-5)
    for image, mask in zip(drawn.images, drawn.masks, strict=True):
        inside = image[:, mask[0] == 1]
        assert inside.shape[1] > 1
        assert inside.std(dim=1).max() < 1e-5
    assert (drawn.contrast > 0).all()


@KINDS
def test_textured_blots_are_not_flat(kind: str, scenery: Callable) -> None:
    """Their mean is that of a colour far and near; their local deviation is at least half of the image's own texture."""
    batch, scene = many(scenery, kind)
    drawn = load_family(PluginConfig(name="textured")).draw(batch, seed=3, sample_ids=IDS, scene=scene)
    means, ratios = [], []
    for i, (image, mask) in enumerate(zip(drawn.images, drawn.masks, strict=True)):
        inside = image[:, mask[0] == 1]
        brain = torch.ones_like(mask[0], dtype=torch.bool) if batch.masks is None else batch.masks[i, 0]
        usual = batch.images[i][:, brain]
        noise = 0.15 / INTENSITY_RANGE_SD if scene.spacing_mm is not None else usual.std(dim=1).mean()
        ratios.append(float(inside.std(dim=1).mean() / noise))
        means.append(float(inside.mean()))
    assert np.median(ratios) > 0.7
    assert np.min(ratios) > 0.35
    assert np.std(means) > 0.2


def test_texture_comes_from_the_same_image() -> None:
    """Stripes in, stripes out: under the blot they have the image's period, and lie in another phase now and then."""
    place = torch.arange(64)
    stripes = (0.2 * torch.sin(2 * torch.pi * place / 4)).expand(1, 1, 64, 64).expand(12, -1, -1, -1)
    batch = ImageBatch(stripes, None, {})
    drawn = load_family(PluginConfig(name="textured")).draw(batch, seed=0, sample_ids=range(12), scene=Scene(2, None))
    moved = 0
    for image, mask in zip(drawn.images[:, 0], drawn.masks[:, 0], strict=True):
        rows, columns = torch.nonzero(mask == 1, as_tuple=True)
        here = image[rows, columns] - image[rows, columns].mean()
        waves = torch.stack([wave(2 * torch.pi * columns / 4) for wave in (torch.sin, torch.cos)], 1)
        fitted = waves @ torch.linalg.lstsq(waves, here[:, None]).solution
        if image[rows, columns].abs().max() < 0.999:  # clipped stripes are no sine
            assert (here - fitted[:, 0]).std() < 0.2 * here.std()
        moved += int(torch.nn.functional.cosine_similarity(here, stripes[0, 0, rows, columns], dim=0) < 0.5)
    assert moved >= 2
