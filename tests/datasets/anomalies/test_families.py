"""What every family promises: a pure function of seed and sample id that changes nothing but what its mask says."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from normscape.config import PluginConfig
from normscape.datasets.anomalies import FAMILIES, AnomalyBatch, Scene, load_family
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each
from normscape.datasets.anomalies.masses import Tumour
from normscape.datasets.batches import ImageBatch
from normscape.errors import ConfigError, DataError

PICTURE_FAMILIES = ("standard", "clear", "matched", "textured", "foreign")
BRAIN_FAMILIES = tuple(name for name in FAMILIES if name not in PICTURE_FAMILIES)
CASES = [(name, kind) for name in FAMILIES for kind in ("patches", "volume", "slices")]
CASES += [(name, "pictures") for name in PICTURE_FAMILIES]


def draw(name: str, scenery, seed: int = 5, ids: list[int] | None = None) -> AnomalyBatch:
    batch, donors, scene = scenery
    family = load_family(PluginConfig(name=name))
    return family.draw(batch, seed=seed, sample_ids=ids or list(range(10, 10 + len(batch))), scene=scene, donors=donors)


def same(one: AnomalyBatch, other: AnomalyBatch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "masks", "size", "contrast"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_drawn(name: str, kind: str, scenery: Callable) -> None:
    """Shapes, types and ranges; something is drawn; nothing changes where the mask is 0 or outside the brain."""
    batch, donors, scene = scenery(kind)
    before = batch.images.clone()
    drawn = draw(name, (batch, donors, scene))
    assert torch.equal(batch.images, before)
    assert drawn.images.shape == batch.images.shape
    assert drawn.masks.shape == (len(batch), 1, *batch.images.shape[2:])
    assert drawn.images.dtype == drawn.masks.dtype == drawn.size.dtype == drawn.contrast.dtype == torch.float32
    assert drawn.size.shape == drawn.contrast.shape == (len(batch),)
    assert drawn.images.abs().max() <= 1
    assert drawn.masks.min() >= 0
    assert drawn.masks.max() <= 1
    unchanged = (drawn.masks == 0).expand_as(before)
    assert torch.equal(drawn.images[unchanged], before[unchanged])
    if batch.masks is not None:
        assert (drawn.masks[~batch.masks] == 0).all()
    found = drawn.masks.flatten(1).sum(1) > 0
    assert found.float().mean() >= 0.5
    assert ((drawn.size > 0) == found).all()
    changed = (drawn.images != before).flatten(1).any(1)
    assert torch.equal(changed, found)
    assert (drawn.contrast[found] > 0.01).all()
    assert (drawn.contrast <= 2).all()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] in ("patches", "pictures")])
def test_a_pure_function_of_seed_and_id(name: str, kind: str, scenery: Callable) -> None:
    """Alone or among others, in any order, whatever the global random state; another seed or id gives another anomaly."""
    batch, donors, scene = scenery(kind)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    together = draw(name, (batch, donors, scene))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    order = torch.tensor([2, 0, 3, 1])
    shuffled = draw(name, (batch.rows(order), donors.rows(order), scene), ids=[10 + int(i) for i in order])
    for place, i in enumerate(order.tolist()):
        part = slice(i, i + 1)
        alone = draw(name, (batch.rows(part), donors.rows(part), scene), ids=[10 + i])
        assert same(
            alone, AnomalyBatch(together.images[part], together.masks[part], together.size[part], together.contrast[part])
        )
        assert torch.equal(alone.images[0], shuffled.images[place])
    assert same(together, draw(name, (batch, donors, scene)))
    assert not torch.equal(together.masks, draw(name, (batch, donors, scene), seed=6).masks)
    assert not torch.equal(together.masks, draw(name, (batch, donors, scene), ids=[20, 21, 22, 23]).masks)


def test_families_have_random_numbers_of_their_own() -> None:
    """Every family but `standard` has a number, none twice."""
    classes = [getattr(importlib.import_module(path.split(":")[0]), path.split(":")[1]) for path in FAMILIES.values()]
    numbers = [found.NUMBER for found in classes if hasattr(found, "NUMBER")]
    assert len(numbers) == len(FAMILIES) - 1
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_image_without_a_brain_stays_as_it_is(name: str, scenery: Callable) -> None:
    """A mask of nothing gives a mask of nothing; the images beside it are drawn into as ever."""
    batch, donors, scene = scenery("patches")
    masks = batch.masks.clone()
    masks[1] = False
    bare = ImageBatch(batch.images, masks, {})
    drawn, usual = draw(name, (bare, donors, scene)), draw(name, (batch, donors, scene))
    assert torch.equal(drawn.images[1], batch.images[1])
    assert not drawn.masks[1].any()
    assert drawn.size[1] == drawn.contrast[1] == 0
    for i in (0, 2, 3):
        assert torch.equal(drawn.images[i], usual.images[i])


@pytest.mark.parametrize("name", BRAIN_FAMILIES)
def test_lesions_are_not_for_pictures(name: str, scenery: Callable) -> None:
    with pytest.raises(DataError, match=f"{name} belongs to T1 brains.*3 channels and voxels of no known size"):
        draw(name, scenery("pictures"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_empty_batch(name: str, scenery: Callable) -> None:
    batch, donors, scene = scenery("patches")
    none = slice(0, 0)
    drawn = load_family(PluginConfig(name=name)).draw(
        batch.rows(none), seed=0, sample_ids=[], scene=scene, donors=donors.rows(none)
    )
    assert drawn.images.shape == (0, 1, 16, 16, 16)
    assert len(drawn.size) == len(drawn.contrast) == 0


def test_settings() -> None:
    """Sizes of lesions can be set; what makes no sense is refused with the family's name."""
    assert load_family(PluginConfig(name="big", use="tumour", settings={"radius_max_mm": 20})) == Tumour(radius_max_mm=20)
    for name, settings, message in (
        ("tumour", {"radius_max_mm": 2}, "radius_min_mm 5.0 and radius_max_mm 2"),
        ("haemorrhage", {"radius_min_mm": -1}, "radius_min_mm -1"),
        ("infarct", {"length_min_mm": 40}, "length_min_mm 40"),
        ("white_matter", {"radius_max_mm": 1}, "at least 1.5"),
        ("atrophy", {"widening_max_mm": 0}, "widening_max_mm 0"),
        ("foreign", {"weight_max": 2}, "weight_max 2"),
        ("standard", {"colour": "red"}, "unexpected keyword argument"),
    ):
        with pytest.raises(ConfigError, match=f"(?s)`{name}`.*{message}"):
            load_family(PluginConfig(name=name, settings=settings))
    with pytest.raises(ConfigError, match="did you mean tumour"):
        load_family(PluginConfig(name="tumor"))


@pytest.mark.parametrize("name", ["standard", "clear"])
def test_ids_have_to_fit(name: str, scenery: Callable) -> None:
    with pytest.raises(DataError, match="4 images need as many sample ids, found 2"):
        draw(name, scenery("patches"), ids=[1, 2])


@pytest.mark.parametrize(("dims", "spacing"), [(2, None), (2, 0.5), (3, 2.0), (3, 0.5)])
def test_size_and_contrast_of_a_known_ball(dims: int, spacing: float | None) -> None:
    """A ball of 9 voxels that changes everything in it by 0.4 in one of two channels: its radius and a mean change of 0.2."""

    def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
        away = np.linalg.norm(np.indices(canvas.shape) - 14.0, axis=0)
        ball = (0.5 - (away - 9)).clip(0, 1).astype(np.float32)
        image = canvas.image.copy()
        image[1] += 0.4 * ball
        return image, ball

    batch = ImageBatch(torch.zeros(1, 2, *[29] * dims), None, {})
    drawn = draw_each(batch, paint, number=99, seed=0, sample_ids=[0], scene=Scene(dims, spacing))
    assert drawn.size.item() == pytest.approx(9 * (spacing or 1), rel=0.02)
    assert drawn.contrast.item() == pytest.approx(0.2, rel=1e-5)


def test_painters_cannot_leave_the_brain_or_the_range() -> None:
    """Whatever a family paints: outside the brain nothing changes, intensities stay in [-1, 1], and None changes nothing."""
    images, masks = torch.zeros(2, 1, 6, 6), torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    masks[:, :, :3] = True

    def paint(canvas: Canvas, random: np.random.Generator) -> Painted | None:
        return None if random.uniform() < 0.5 else (np.full((1, 6, 6), 7.0, np.float32), np.full((6, 6), 3.0, np.float32))

    ids = [next(i for i in range(99) if (_first(i) < 0.5) == none) for none in (True, False)]
    drawn = draw_each(ImageBatch(images, masks, {}), paint, number=99, seed=0, sample_ids=ids, scene=Scene(2, None))
    assert not drawn.images[0].any()
    assert not drawn.masks[0].any()
    assert torch.equal(drawn.images[1], masks[1].float())
    assert torch.equal(drawn.masks[1], masks[1].float())


def _first(sample_id: int) -> float:
    """The first number of an image's stream in family 99 with seed 0, as the contract defines it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([0, sample_id, 99]))).uniform()
