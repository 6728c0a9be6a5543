"""The normative model finds a known regression again, in pictures and in whole scans; the score reads from its z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normscape.baselines.atlas import AtlasDetector
from normscape.baselines.normative import NormativeModel, chosen_conditions, regressors
from normscape.datasets.batches import HealthyImages
from normscape.datasets.patches import PatchSource
from normscape.datasets.samples import SampleSet
from normscape.errors import ConfigError
from normscape.scoring.maps import unit_volume

SIDE = 6


@dataclass(frozen=True)
class Known:
    """Pictures that follow a known regression on the angle: mean a + b cos + c sin, deviation s, different at each pixel."""

    degrees: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, SIDE, SIDE)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, c and s `(3, SIDE, SIDE)`."""
        random = torch.Generator().manual_seed(0)
        a, b, c, s = torch.rand(4, *self.shape, generator=random) - 0.5
        return a, b, c, 0.05 + 0.2 * s.abs()

    def mean(self, degrees: Tensor) -> Tensor:
        a, b, c, _ = self.parts
        angle = torch.deg2rad(degrees).view(-1, 1, 1, 1)
        return a + b * angle.cos() + c * angle.sin()

    def __len__(self) -> int:
        return len(self.degrees)

    def draw(self, rows: Tensor, random: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(len(self), *self.shape, generator=torch.Generator().manual_seed(1))[rows]
        return self.mean(self.degrees[rows]) + self.parts[3] * noise, {}

    def masks(self, rows: Tensor) -> None:
        return None


@pytest.fixture
def known(world: Callable[..., Any]) -> Any:
    """A world of 4000 such pictures."""
    here = world("pictures")
    source = Known(torch.rand(4000, generator=torch.Generator().manual_seed(2)) * 90)
    columns = {"angle_degrees": source.degrees[:, None]}
    samples = SampleSet(source, torch.zeros(4000, dtype=torch.int64), ("one",), columns, torch.arange(4000))
    return here.changed(healthy=HealthyImages(samples, here.training.config.value_attributes), images=4000)


def test_a_known_regression_is_found_again(known: Any) -> None:
    """Mean at any angle and deviation, at every pixel of every channel."""
    model = NormativeModel().fit(known.training)
    batch = known.training.healthy.batch(torch.arange(50))
    source = known.training.healthy.samples.images
    mean, deviation = model.expected(batch)
    assert mean.shape == deviation.shape == batch.images.shape
    assert (mean - source.mean(source.degrees[:50])).abs().max() < 0.03
    np.testing.assert_allclose(deviation[0], source.parts[3], rtol=0.08)
    z = model.z(known.training.healthy.batch(torch.arange(1000)))
    assert float(z.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float(z.mean())) < 0.02


def test_shuffled_angles_teach_nothing(known: Any) -> None:
    """All that is left is the mean over all angles, and the deviation holds what the angle does."""
    source = known.training.healthy.samples.images
    batch = known.training.healthy.batch(torch.arange(200))
    right, shuffled, none = (NormativeModel(conditions=asked).fit(known.training) for asked in ("all", "shuffled", "none"))
    expected = source.mean(source.degrees[:200])
    errors = [float((model.expected(batch)[0] - expected).abs().mean()) for model in (right, shuffled, none)]
    assert errors[0] < 0.01
    assert errors[1] > 10 * errors[0]
    assert errors[1] == pytest.approx(errors[2], rel=0.1)
    assert (shuffled.coefficients_[1:].abs().mean() < 0.2 * right.coefficients_[1:].abs().mean()).item()
    assert len(none.coefficients_) == 1
    torch.testing.assert_close(shuffled.deviation_, none.deviation_, rtol=0.02, atol=0)
    assert bool((right.deviation_ < none.deviation_ * 1.01).all())


def test_scans_are_regressed_on_age_within_sites(world: Callable[..., Any]) -> None:
    """What NumPy's least squares finds at each voxel, each training scan counted once; sites steady the slope of the age."""
    training = world("brains").training
    model = NormativeModel(pseudo_images=1e-9).fit(training)
    source = training.healthy.samples.images
    assert isinstance(source, PatchSource)
    scans = np.unique(source.scan[training.healthy.samples.sample_id.numpy()])
    table = source.cohort.subjects.take(scans)
    sites = np.array(table["site"].to_pylist())
    assert len(set(sites)) == 2
    ages = np.array(table["age_years"].to_pylist())
    age, site = (ages - ages.mean()) / ages.std(), (sites == "north") - (sites == "north").mean()
    box = tuple(slice(low, low + length) for low, length in zip(model.grid_.low, model.grid_.shape, strict=True))
    values = np.stack([unit_volume(source, int(scan))[box].ravel() for scan in scans]).astype(float)
    inside = np.stack([source.cohort.masks[scan][box].ravel() > 0 for scan in scans]).all(0)
    values = values[:, inside]
    design = np.stack([np.ones_like(age), age, site], axis=1)
    found, *_ = np.linalg.lstsq(design, values, rcond=None)
    at = np.flatnonzero(inside)
    np.testing.assert_allclose(model.coefficients_[:, 0, at], found[:2], atol=1e-4)
    expected = np.sqrt(np.mean((values - design[:, :2] @ found[:2]) ** 2, axis=0))
    clear = expected > 0.05
    assert clear.mean() > 0.5
    np.testing.assert_allclose(model.deviation_[0, at][clear], expected[clear], rtol=1e-3)
    without = np.linalg.lstsq(design[:, :2], values, rcond=None)[0]
    assert np.abs(without[1] - found[1]).max() > 0.01


def test_places_without_scans_have_the_overall_values(world: Callable[..., Any]) -> None:
    """No image shows the corners of the box: there the mean over all places stands, without slope, and the whole deviation."""
    model = NormativeModel().fit(world("brains").training)
    assert torch.isfinite(model.coefficients_).all()
    assert bool((model.deviation_ > 0).all())
    assert model.coefficients_[1, 0, 0] == 0
    mean = float(model.coefficients_[0, 0, 0])
    assert abs(mean) < 0.1
    assert float(model.deviation_[0, 0]) == pytest.approx(float(model.deviation_.square().mean().sqrt()), rel=0.7)


def test_positions_can_be_left_out(world: Callable[..., Any]) -> None:
    """Then all patches are compared voxel with voxel, and folded places are no longer expected where they are."""
    here = world("brains")
    batch = here.others.batch(torch.arange(0, 64, 2))
    with_place, without = (NormativeModel(position=position).fit(here.training) for position in ("known", "none"))
    assert without.deviation_.shape == (1, 512)
    inside = batch.masks

    def error(model: NormativeModel) -> float:
        return float((batch.images - model.expected(batch)[0])[inside].abs().mean())

    assert error(with_place) < 0.8 * error(without)


def test_scores_read_from_z(known: Any) -> None:
    """`mean` and `top` are those of |z|, the length over the channels; `largest` that of averaged neighbourhoods."""
    batch = known.training.healthy.batch(torch.arange(8))
    detectors = {score: AtlasDetector(score=score, width=1).fit(known.training) for score in ("largest", "mean", "top")}
    length = detectors["mean"].model_.z(batch).square().mean(1).sqrt().flatten(1)
    for score, expected in (("largest", length.amax(1)), ("mean", length.mean(1)), ("top", length.amax(1))):
        np.testing.assert_allclose(detectors[score].decision_function(batch), expected, rtol=1e-5)
    found = detectors["largest"].anomaly_map(batch)
    torch.testing.assert_close(found.flatten(1), length)


def test_regressors(known: Any) -> None:
    """Powers of a value, from -1 to 1 over its range; waves of an angle."""
    (angle,) = known.training.config.value_attributes
    columns = regressors((angle,), {"angle": torch.tensor([[0.0], [90.0]])}, 2, 2)
    torch.testing.assert_close(columns, torch.tensor([[1.0, 1, 0, 1, 0], [1, 0, 1, -1, 0]], dtype=torch.float64))
    years = angle.model_copy(update={"name": "age", "unit": "years", "value_min": 20.0, "value_max": 60.0})
    columns = regressors((years,), {"age": torch.tensor([[20.0], [50.0]])}, 2, 2)
    torch.testing.assert_close(columns, torch.tensor([[1.0, -1, 1], [1, 0.5, 0.25]], dtype=torch.float64))


def test_which_conditions(world: Callable[..., Any]) -> None:
    config = world("brains").training.config
    names = {
        asked: [a.name for a in chosen_conditions(asked, config)]
        for asked in ("all", "shuffled", "none", "age", "position", ("age", "position"))
    }
    assert names == {
        "all": ["age"], "shuffled": ["age"], "none": [], "age": ["age"], "position": ["position"],
        ("age", "position"): ["age", "position"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="weight is no value attribute"):
        chosen_conditions(["age", "weight"], config)


def test_one_site_alone(world: Callable[..., Any]) -> None:
    """A cohort of one site has no column for it, and the same model as one without sites."""
    training = world("brains").training
    source = training.healthy.samples.images
    assert isinstance(source, PatchSource)
    index = source.cohort.subjects.column_names.index("site")
    models = []
    for value in ("here", None):
        subjects = source.cohort.subjects.set_column(index, "site", [[value] * len(source.cohort)])
        moved = replace(source, cohort=replace(source.cohort, subjects=subjects))
        healthy = HealthyImages(replace(training.healthy.samples, images=moved), training.config.value_attributes)
        models.append(NormativeModel().fit(replace(training, healthy=healthy)))
    assert torch.equal(models[0].coefficients_, models[1].coefficients_)
