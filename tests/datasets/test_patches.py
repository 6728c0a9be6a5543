"""Patches of a prepared cohort: where they lie, what they show, and that they are functions of their row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import correlate

from normscape.config import DataConfig
from normscape.datasets.patches import (
    INTENSITY_RANGE_SD,
    PatchSource,
    box_sums,
    open_cohort,
    open_patches,
    simulated_spacing,
)
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import SampleSet, load_samples
from normscape.datasets.simulated import atlas_grid
from normscape.errors import DataError

SIDE, COUNT = 8, 40
Cohorts = Callable[..., PreparedCohort]


def config(cohort: PreparedCohort, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"source": "brain", "root": cohort.folder, "patches_per_subject": COUNT} | changes)


def opened(cohort: PreparedCohort, *, seed: int = 0, folder: Path | None = None, **changes: object) -> PatchSource:
    return open_patches(config(cohort, **changes), SIDE, cohort=cohort, seed=seed, folder=folder)


def patches_of(samples: SampleSet) -> PatchSource:
    assert isinstance(samples.images, PatchSource)
    return samples.images


def test_samples_of_a_cohort(prepared_cohort: Cohorts) -> None:
    """As many patches of every scan with a known age, its person's, with age and position; nothing of the scan without."""
    cohort = prepared_cohort()
    samples = load_samples(config(cohort), SIDE)
    assert samples.subjects == tuple(f"p-{i}" for i in range(7))
    assert torch.bincount(samples.subject).tolist() == [2 * COUNT] + [COUNT] * 6
    assert samples.images.shape == (1, SIDE, SIDE, SIDE)
    assert len(samples.images) == len(samples) == 8 * COUNT
    assert set(samples.values) == {"age_years", "position_mm"}
    assert samples.values["position_mm"].shape == (8 * COUNT, 3)
    ages = samples.values["age_years"].view(8, COUNT)
    assert ages[:, 0].tolist() == [20.0, 21.0, 30.0, 39.0, 48.0, 57.0, 66.0, 75.0]
    assert (ages == ages[:, :1]).all()
    part = samples.select(torch.arange(100, 110))
    assert torch.equal(part.batch(torch.arange(10)), samples.batch(torch.arange(100, 110)))
    assert torch.equal(part.masks(torch.tensor([3])), samples.masks(torch.tensor([103])))


def test_at_most_half_is_background(prepared_cohort: Cohorts) -> None:
    """Of the scan's own mask, also where a patch leaves the volume; every centre lies in the atlas mask; the limit can be set."""
    cohort = prepared_cohort()
    source = opened(cohort)
    share = source.masks(torch.arange(len(source))).float().mean((1, 2, 3, 4))
    assert share.min() >= 0.5
    assert share.min() < 0.6
    assert ((source.center + SIDE // 2) > np.array(cohort.shape)).any(), "no patch at the edge: the test shows too little"
    assert cohort.atlas_mask[tuple(source.center.T)].all()
    source = opened(cohort, max_background=0.1)
    assert source.masks(torch.arange(len(source))).float().mean((1, 2, 3, 4)).min() >= 0.9


@pytest.mark.parametrize("side", [4, 5])
def test_box_sums_count_voxels(side: int) -> None:
    """The same as a convolution with a cube of ones, even and odd sides."""
    mask = (np.random.default_rng(0).random((9, 11, 7)) < 0.4).astype(np.uint8)
    expected = correlate(mask.astype(int), np.ones((side,) * 3, int), mode="constant")
    assert np.array_equal(box_sums(mask, side), expected)


def test_intensities_are_z_scores_under_the_mask(prepared_cohort: Cohorts) -> None:
    """Against a plain cut of the padded volume."""
    cohort = prepared_cohort()
    source = opened(cohort)
    rows = torch.arange(0, len(source), 7)
    images, masks = source.draw(rows)[0], source.masks(rows)
    assert images.dtype == torch.float32
    for image, mask, row in zip(images, masks, rows.tolist(), strict=True):
        scan = source.scan[row]
        own, volume = cohort.masks[scan] > 0, cohort.volumes[scan].astype(np.float64)
        z = np.pad((volume - volume[own].mean()) / volume[own].std(), SIDE)
        block = tuple(slice(c + SIDE // 2, c + SIDE // 2 + SIDE) for c in source.center[row])
        assert np.array_equal(mask[0].numpy(), np.pad(own, SIDE)[block])
        expected = (z[block] / INTENSITY_RANGE_SD).clip(-1, 1)
        np.testing.assert_allclose(image[mask].numpy(), expected[mask[0].numpy()], atol=2e-3)


def test_positions_are_world_coordinates(prepared_cohort: Cohorts) -> None:
    """Volumes that hold their own x, y or z in millimetres: the mean of a patch is its position from the atlas's middle."""
    cohort = prepared_cohort("plain")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in cohort.shape), indexing="ij"), axis=-1).astype(float)
    world = cohort.world(index)
    ramps = prepared_cohort("ramps", volumes=np.stack([world[..., i % 3] for i in range(9)]))
    samples = load_samples(config(ramps, max_background=0.0), SIDE)
    rows = torch.arange(0, len(samples), 3)
    source = patches_of(samples)
    table, scan = source.contrast, torch.from_numpy(source.scan[rows.numpy()].astype(int))
    mean = samples.batch(rows).mean((1, 2, 3, 4)) * INTENSITY_RANGE_SD * table.std[scan] + table.mean[scan]
    brain = world[cohort.atlas_mask > 0]
    middle = torch.from_numpy((brain.min(0) + brain.max(0)) / 2).float()
    expected = samples.values["position_mm"][rows] + middle
    torch.testing.assert_close(mean, expected[torch.arange(len(rows)), scan % 3], atol=0.05, rtol=0)


def test_a_patch_is_a_function_of_its_row(prepared_cohort: Cohorts) -> None:
    """The same alone, among others, in another order and in another process's source; noise included."""
    cohort = prepared_cohort()
    source, again = opened(cohort), opened(cohort)
    assert np.array_equal(source.center, again.center)
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:64]
    together = source.draw(rows)[0]
    torch.manual_seed(7)
    for place in (0, 17, 63):
        torch.testing.assert_close(again.draw(rows[place : place + 1])[0][0], together[place], atol=1e-6, rtol=0)
    assert torch.equal(source.draw(rows.flip(0))[0].flip(0), together)
    assert not np.array_equal(source.center, opened(cohort, seed=1).center)


def test_centers_do_not_depend_on_other_scans_or_their_number(prepared_cohort: Cohorts) -> None:
    cohort = prepared_cohort()
    many, few = opened(cohort, patches_per_subject=60), opened(cohort, patches_per_subject=20)
    for scan in range(8):
        assert np.array_equal(many.center[many.scan == scan][:20], few.center[few.scan == scan])
    assert not np.array_equal(few.center[few.scan == 0], few.center[few.scan == 1])


def test_background_is_noise_of_the_brain_s_spread(prepared_cohort: Cohorts) -> None:
    """Fresh with a generator, fixed without; or constant. The brain is the same in all."""
    cohort = prepared_cohort()
    source, constant = opened(cohort), opened(cohort, background="constant")
    rows = torch.arange(len(source))
    outside = ~source.masks(rows)
    fixed, fresh = source.draw(rows)[0], source.draw(rows, torch.Generator().manual_seed(0))[0]
    for images in (fixed, fresh):
        assert images[outside].mean().item() == pytest.approx(0, abs=0.01)
        assert images[outside].std().item() == pytest.approx(1 / 3, abs=0.01)
    assert (fixed != fresh)[outside].float().mean() > 0.99
    assert torch.equal(fixed[~outside], fresh[~outside])
    dark = constant.draw(rows)[0]
    assert (dark[outside] == -1).all()
    assert torch.equal(dark[~outside], fixed[~outside])
    assert not torch.equal(fixed[0], fixed[1])


@pytest.mark.parametrize("mode", ["pca", "independent"])
def test_contrast_is_shifted_in_training_only(prepared_cohort: Cohorts, mode: str) -> None:
    """The drawn shift is the value; the same generator gives the same; without one nothing is shifted."""
    cohort = prepared_cohort()
    samples = load_samples(config(cohort, contrast_augmentation=mode), SIDE)
    rows = torch.arange(0, len(samples), 5)
    plain, values = samples.draw(rows)
    assert torch.equal(plain, load_samples(config(cohort), SIDE).batch(rows))
    assert values["contrast"].shape == (len(rows), 6)
    assert (values["contrast"] == 0).all()
    shifted, drawn = samples.draw(rows, torch.Generator().manual_seed(3))
    assert 0.9 < drawn["contrast"].abs().max() <= 1
    assert torch.equal(drawn["age_years"], values["age_years"])
    brain = samples.masks(rows)
    assert (shifted - plain)[brain].abs().mean() > 0.005
    assert torch.equal(shifted, samples.batch(rows, torch.Generator().manual_seed(3)))
    redrawn = [name for name in samples.values if samples.redraws(name)]
    assert redrawn == ["contrast"]
    assert not load_samples(config(cohort), SIDE).redraws("contrast")


def test_shifts_are_learnt_from_the_subjects_named(prepared_cohort: Cohorts) -> None:
    """A scanner that only test subjects have must not widen them."""
    cohort = prepared_cohort()
    settings = config(cohort, contrast_augmentation="pca")
    some = patches_of(load_samples(settings, SIDE, learn_from=("p-0", "p-2", "p-4")))
    every = patches_of(load_samples(settings, SIDE))
    assert torch.equal(some.contrast.parameters, every.contrast.parameters)
    assert some.shifts is not None
    assert every.shifts is not None
    assert not torch.allclose(some.shifts.std, every.shifts.std)


def test_tables_are_made_once(prepared_cohort: Cohorts, tmp_path: Path) -> None:
    cohort, calls = prepared_cohort(), []
    folder = tmp_path / "prepare"
    folder.mkdir()
    settings = config(cohort, contrast_augmentation="pca")
    first, second = (
        open_patches(settings, SIDE, cohort=cohort, seed=0, folder=folder, progress=lambda *done: calls.append(done))
        for _ in range(2)
    )
    assert calls == [(i + 1, 9) for i in range(9)]
    assert torch.equal(first.draw(torch.arange(50))[0], second.draw(torch.arange(50))[0])
    assert pq.read_schema(folder / "patches.parquet").names == ["scan", "z", "y", "x"]
    assert len(pq.read_table(folder / "contrast.parquet")) == 9


def test_a_cohort_that_changed_is_noticed(prepared_cohort: Cohorts, tmp_path: Path) -> None:
    cohort = prepared_cohort()
    opened(cohort, folder=tmp_path)
    table = cohort.subjects.to_pandas()
    table.loc[2, "subject"] = "somebody else"
    table.to_parquet(cohort.folder / "subjects.parquet")
    with pytest.raises(DataError, match="the cohort changed since"):
        opened(PreparedCohort.open(cohort.folder), folder=tmp_path)
    (tmp_path / "patches.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="not readable tables of patches"):
        opened(cohort, folder=tmp_path)


def test_what_does_not_fit_is_refused(prepared_cohort: Cohorts) -> None:
    cohort = prepared_cohort()
    with pytest.raises(DataError, match=r"data\.spacing_mm is 1, the cohort has voxels of 2 mm"):
        opened(cohort, spacing_mm=1.0)
    with pytest.raises(DataError, match="hold no patch with a side of 32"):
        open_patches(config(cohort), 32, cohort=cohort, seed=0)
    flat = prepared_cohort("flat", volumes=np.ones((9, *cohort.shape)))
    with pytest.raises(DataError, match=r"scan 0 \(p-0_0\): a brain needs finite intensities that differ"):
        opened(flat)
    with pytest.raises(DataError, match=r"nowhere: not a prepared cohort"):
        load_samples(DataConfig(source="brain", root=cohort.folder / "nowhere"), SIDE)


def test_without_scans_there_is_the_simulated_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made into the cache once, and called what it is."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    settings, calls = DataConfig(source="brain", simulated_subjects=2, spacing_mm=6.0, patches_per_subject=5), []
    samples = load_samples(settings, SIDE, progress=lambda *done: calls.append(done))
    assert patches_of(samples).cohort.name == "simulated cohort"
    assert len(samples.subjects) == 2
    assert calls == [(1, 2), (2, 2)] * 2  # simulated, then measured
    again = load_samples(settings, SIDE, progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)] * 3
    assert torch.equal(samples.batch(torch.arange(10)), again.batch(torch.arange(10)))


WHOLE = 16
"""Side of a cube that holds the atlas's brain of the coarse toy cohort, 12 x 12 x 11 voxels of 4 mm."""


def test_a_whole_scan_is_one_patch(prepared_cohort: Cohorts) -> None:
    """A row a scan of known age, all at the middle of the atlas's brain; it holds all of its brain, at twice the spacing."""
    cohort = prepared_cohort()
    samples = load_samples(config(cohort, patches="whole", spacing_mm=4.0, background="constant"), WHOLE)
    source = patches_of(samples)
    assert source.whole
    assert torch.bincount(samples.subject).tolist() == [2, 1, 1, 1, 1, 1, 1]
    assert samples.images.shape == (1, WHOLE, WHOLE, WHOLE)
    assert min(source.cohort.shape) >= WHOLE  # 13 x 14 x 12, padded
    found = np.argwhere(source.cohort.atlas_mask)
    middle = (found.min(0) + found.max(0)) / 2
    assert (source.center == source.center[0]).all()
    assert (np.abs(source.center[0] - 0.5 - middle) <= 0.5).all()
    assert (samples.values["position_mm"].abs() <= 2.0).all()  # half a voxel, where sides are odd
    masks = source.masks(torch.arange(len(source)))
    inside = source.cohort.masks[source.scan].reshape(len(source), -1).sum(1)
    assert masks.flatten(1).sum(1).tolist() == inside.tolist()  # nothing of a brain is cut off
    again = load_samples(config(cohort, patches="whole", spacing_mm=4.0, background="constant"), WHOLE)
    assert torch.equal(samples.batch(torch.arange(8)), again.batch(torch.arange(8)))


def test_a_brain_that_does_not_fit_into_the_cube(prepared_cohort: Cohorts) -> None:
    with pytest.raises(DataError, match=r"brain of 22 x 23 x 21 voxels of 2 mm does not fit into a cube of 16 \(image_size\)"):
        load_samples(config(prepared_cohort(), patches="whole"), 16)


def test_a_coarse_simulated_cohort_is_made_of_a_finer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 2 mm, because 6 mm has no anatomy to sample; the grid is that of 6 mm."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    data = DataConfig(source="brain", simulated_subjects=1, spacing_mm=6.0)
    cohort = open_cohort(data)
    assert cohort.folder.name.endswith("1-subjects-2mm")
    shape, affine = atlas_grid(6)
    assert (cohort.spacing_mm, cohort.shape) == (6.0, shape)
    np.testing.assert_allclose(cohort.affine, affine)
    assert [simulated_spacing(side) for side in (1.0, 3.0, 4.0, 5.0, 8.0)] == [1, 3, 4, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "chairs", "patches": "whole"}, "need source brain, found chairs"),
        ({"source": "chairs", "root": "somewhere"}, "needs source brain, found chairs"),
        ({"source": "brain", "spacing_mm": 1.5}, "whole number of millimetres, found spacing_mm 1.5"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(settings)
