"""Realistic lesions: each changes what its disease changes in T1, where it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from normscape.config import PluginConfig
from normscape.datasets.anomalies import AnomalyBatch, Scene, load_family
from normscape.datasets.anomalies.tissue import CSF_SD, FLUID_BELOW_SD, GREY_SD, WHITE_ABOVE_SD, WHITE_SD
from normscape.datasets.batches import ImageBatch
from normscape.datasets.patches import INTENSITY_RANGE_SD

COUNT = 24


def drawn_in(batch: ImageBatch, scene: Scene, name: str, **settings: float) -> AnomalyBatch:
    family = load_family(PluginConfig(name=name, settings=settings))
    return family.draw(batch, seed=1, sample_ids=range(len(batch)), scene=scene)


def patches(scenery: Callable, kind: str = "patches") -> tuple[ImageBatch, Scene]:
    batch, _, scene = scenery(kind)
    return batch.rows(torch.arange(COUNT) % len(batch)), scene


def flat(level_sd: float, side: int = 24, count: int = COUNT) -> ImageBatch:
    """Cubes of one tissue, all brain."""
    shape = (count, 1, side, side, side)
    return ImageBatch(torch.full(shape, level_sd / INTENSITY_RANGE_SD), torch.ones(shape, dtype=torch.bool), {})


def change_sd(batch: ImageBatch, drawn: AnomalyBatch) -> torch.Tensor:
    return (drawn.images - batch.images) * INTENSITY_RANGE_SD


@pytest.mark.parametrize("name", ["infarct", "white_matter"])
def test_infarcts_and_foci_only_darken(name: str, scenery: Callable) -> None:
    """Never brighter; by more than half a standard deviation somewhere; never darker than fluid already is."""
    batch, scene = patches(scenery)
    drawn = drawn_in(batch, scene, name)
    change = change_sd(batch, drawn)
    assert (change <= 1e-5).all()
    found = drawn.masks.flatten(1).any(1)
    assert (change[found].flatten(1).min(1).values < -0.5).float().mean() > 0.9
    darkened = drawn.images[change < -0.01] * INTENSITY_RANGE_SD
    assert darkened.min() >= CSF_SD - 1e-4


def test_white_matter_lesions_lie_in_white_matter_near_ventricles(scenery: Callable) -> None:
    """In a whole head: small, their middles in white matter, most within 10 mm of the ventricle (a tenth of white matter is)."""
    batch, scene = patches(scenery, "volume")
    drawn = drawn_in(batch, scene, "white_matter")
    near, total = 0, 0
    axes = [(torch.arange(n) - (n - 1) / 2) * 4.0 for n in batch.images.shape[2:]]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    ventricle = (place / torch.tensor([14.0, 30.0, 18.0])).norm(dim=-1) < 1
    fluid = place[ventricle]
    for image, mask in zip(batch.images[:, 0], drawn.masks[:, 0], strict=True):
        core = mask > 0.5
        assert core.any()
        level = image[core] * INTENSITY_RANGE_SD
        assert (level > WHITE_ABOVE_SD).float().mean() > 0.8
        distance = torch.cdist(place[core], fluid).min(dim=1).values
        near, total = near + int((distance < 14.0).sum()), total + int(core.sum())
    assert near / total > 0.5
    assert (drawn.size < 10).all()


def test_no_white_matter_no_foci() -> None:
    """A patch of cortex stays as it is; so does one of fluid."""
    for level in (GREY_SD, CSF_SD):
        batch = flat(level, side=12, count=3)
        drawn = drawn_in(batch, Scene(3, 2.0), "white_matter")
        assert torch.equal(drawn.images, batch.images)
        assert not drawn.masks.any()


def test_infarcts_widen_towards_the_surface() -> None:
    """A half-space of brain: the wedge's widest cross-section lies nearer to the surface than its middle, on average."""
    side, surface = 40, 32
    shape = (COUNT, 1, side, side, side)
    masks = torch.zeros(shape, dtype=torch.bool)
    masks[:, :, :surface] = True
    drawn = drawn_in(
        ImageBatch(torch.full(shape, WHITE_SD / INTENSITY_RANGE_SD), masks, {}), Scene(3, 2.0), "infarct", length_max_mm=18.0
    )
    leans = []
    for mask in drawn.masks[:, 0]:
        area = (mask > 0.5).sum(dim=(1, 2)).float()
        rows = torch.nonzero(area)[:, 0]
        inner = bool(rows[0] > 0 and rows[-1] < surface - 1 and not mask[:, [0, -1]].any() and not mask[:, :, [0, -1]].any())
        if inner:  # a wedge that is cut by nothing
            leans.append(float(area.argmax()) - float(rows.float().mean()))
    assert len(leans) >= 4
    assert np.mean(leans) > 1


def test_tumours_have_a_dark_core_and_a_rim() -> None:
    """In white matter: the middle darker than cortex, the rim brighter than the core, oedema between white matter and cortex."""
    batch = flat(WHITE_SD, side=40)
    drawn = drawn_in(batch, Scene(3, 2.0), "tumour")
    for image, mask in zip(drawn.images[:, 0] * INTENSITY_RANGE_SD, drawn.masks[:, 0], strict=True):
        changed = image[mask > 0.9]
        assert changed.min() < -0.8
        assert (image[mask == 0] == batch.images[0, 0, 0, 0, 0] * INTENSITY_RANGE_SD).all()
    halo = (drawn.masks > 0.9) & (drawn.images * INTENSITY_RANGE_SD > GREY_SD - 0.3) & (drawn.images < batch.images - 0.05)
    assert halo.flatten(1).any(1).float().mean() > 0.9
    assert drawn.size.min() > 5
    assert drawn.size.max() < 25


def test_tumours_push_tissue_away() -> None:
    """Among stripes more is changed than in flat tissue: the stripes beside a tumour are displaced. Grey, so without oedema."""
    batch = flat(GREY_SD - 0.3, side=40)
    stripes = batch.images.clone()
    stripes[..., ::3] -= 0.7 / INTENSITY_RANGE_SD
    striped = ImageBatch(stripes, batch.masks, {})
    plain, pushed = (drawn_in(images, Scene(3, 2.0), "tumour").masks.flatten(1).sum(1) for images in (batch, striped))
    assert (pushed > plain).float().mean() > 0.8
    assert pushed.sum() > 1.1 * plain.sum()


def test_haemorrhages_are_like_cortex_or_bright() -> None:
    """Three ages: some have nothing brighter than white matter, some a bright rim around a grey middle, some are bright."""
    batch = flat(WHITE_SD, side=32, count=60)
    drawn = drawn_in(batch, Scene(3, 2.0), "haemorrhage", radius_min_mm=8.0)
    image = drawn.images * INTENSITY_RANGE_SD
    kinds = [(bool((part > 1.7).any()), bool((part < 0.2).sum() > 60)) for part in image[:, 0]]
    assert {(False, True), (True, True), (True, False)} <= set(kinds)


def test_atrophy_widens_fluid(scenery: Callable) -> None:
    """More fluid in every image it is drawn into; what is not fluid keeps its levels, and nothing is painted far from fluid."""
    batch, scene = patches(scenery)
    drawn = drawn_in(batch, scene, "atrophy")
    found = drawn.masks.flatten(1).any(1)
    assert found.float().mean() > 0.7
    before, after = (
        ((images * INTENSITY_RANGE_SD < FLUID_BELOW_SD) & batch.masks).flatten(1).sum(1)
        for images in (batch.images, drawn.images)
    )
    assert (after > before)[found].float().mean() > 0.9
    wider = (after - before)[found].float() * scene.spacing_mm**3 / 1000
    assert wider.median() > 0.1
    assert (drawn.images[batch.masks] * INTENSITY_RANGE_SD > CSF_SD - 1).all()


def test_no_fluid_no_atrophy() -> None:
    """White matter through and through, and no outside to shrink from."""
    batch = flat(WHITE_SD, side=12, count=3)
    drawn = drawn_in(batch, Scene(3, 2.0), "atrophy")
    assert torch.equal(drawn.images, batch.images)
    assert not drawn.masks.any()


def test_clefts_widen_on_both_sides() -> None:
    """A narrow cleft of fluid between two walls becomes wider, and no tissue of the other side shows up in it."""
    batch = flat(WHITE_SD, side=24, count=8)
    batch.images[..., 11:13] = CSF_SD / INTENSITY_RANGE_SD
    drawn = drawn_in(batch, Scene(3, 2.0), "atrophy", radius_min_mm=16.0)
    for image in drawn.images[:, 0] * INTENSITY_RANGE_SD:
        width = (image < FLUID_BELOW_SD).sum(dim=-1)
        assert width.max() >= 3
        assert (image[..., 11:13] < FLUID_BELOW_SD).all()


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_sizes_are_in_millimetres(spacing: float) -> None:
    """Tumours and haemorrhages in patches of any spacing have the same sizes in millimetres."""
    side = round(80 / spacing)
    for name, low, high in (("haemorrhage", 4.0, 14.0), ("tumour", 6.0, 22.0)):
        batch = flat(WHITE_SD, side=side, count=6)
        size = drawn_in(batch, Scene(3, spacing), name).size
        assert low < size.min()
        assert size.max() < high
