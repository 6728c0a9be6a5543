"""Maps lie where the patches lay, and regions stand where the map is high."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from normscape.config import DataConfig
from normscape.datasets.coarse import coarsened
from normscape.datasets.patches import PatchSource, open_patches
from normscape.datasets.prepared import PreparedCohort
from normscape.scoring.maps import EXCESS_HALF, REGION_SCHEMA, Rated, on_grid, regions, scan_maps, unit_volume, with_image

COLUMNS = {"age": "age_years", "position": "position_mm"}
SIDE = 8


class Brightness:
    """Rates a patch by its mean intensity, and rebuilds it half as bright; keeps what it was told."""

    def __init__(self) -> None:
        self.values: list[Mapping[str, Tensor]] = []

    def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Rated:
        """Mean intensity under the mask; in excess of the usual is a tenth of the intensity."""
        assert masks is not None
        self.values.append(values)
        return Rated((images * masks).sum((1, 2, 3, 4)) / masks.sum((1, 2, 3, 4)), images / 2, images.abs() / 10)


@pytest.fixture
def source(prepared_cohort: Callable[..., PreparedCohort]) -> PatchSource:
    """Patches of the toy cohort."""
    return open_patches(DataConfig(source="brain", patches_per_subject=16), SIDE, cohort=prepared_cohort(), seed=0)


def test_maps_of_a_scan(source: PatchSource) -> None:
    """Reconstruction and residual are what the rater makes of each voxel; ages and positions are those of the scan's patches."""
    rater, grid = Brightness(), on_grid(source, 3, stride=3, max_background=0.5)
    [maps] = scan_maps(grid, COLUMNS, rater, batch_size=7)
    image = unit_volume(source, 3)
    assert maps.patches == len(grid) == sum(len(v["age"]) for v in rater.values)
    np.testing.assert_allclose(maps.reconstruction[maps.covered], image[maps.covered] / 2, atol=1e-6)
    np.testing.assert_allclose(maps.residual[maps.covered], np.abs(image[maps.covered]) / 2, atol=1e-6)
    np.testing.assert_allclose(maps.excess[maps.covered], np.abs(image[maps.covered]) / 10, atol=1e-6)
    assert maps.covered[source.cohort.masks[3] > 0].mean() > 0.9
    for volume in (maps.score, maps.residual, maps.reconstruction, maps.excess):
        assert (volume[~maps.covered] == 0).all()
    ages = torch.cat([v["age"] for v in rater.values])
    assert ages.unique().tolist() == [source.cohort.subjects["age_years"][3].as_py()]
    positions = torch.cat([v["position"] for v in rater.values])
    assert len(positions.unique(dim=0)) == len(grid)
    [again] = scan_maps(grid, COLUMNS, Brightness(), batch_size=100)
    np.testing.assert_allclose(again.score, maps.score, atol=1e-6)


def test_a_changed_scan_is_seen_where_it_changed(source: PatchSource) -> None:
    """The score rises where a block was made brighter, the rest keeps the numbers of the scan as it was."""
    grid = on_grid(source, 3, stride=2, max_background=0.5)
    image = unit_volume(source, 3)
    changed = image.copy()
    changed[13:19, 11:17, 9:15] = 1.0
    form, rater = with_image(grid, 3, changed), Brightness()
    before, after = scan_maps(grid, COLUMNS, rater, batch_size=64, changed=[form])
    rated = sum(len(values["age"]) for values in rater.values)
    assert len(grid) < rated < 2 * len(grid)  # patches that did not change are rated once
    [alone] = scan_maps(form, COLUMNS, Brightness(), batch_size=64)
    for name, volume in vars(alone).items():
        if volume is None:
            assert getattr(after, name) is None
            continue
        np.testing.assert_allclose(volume, getattr(after, name), atol=1e-6, err_msg=name)
    difference = after.score - before.score
    assert difference[15, 13, 11] > 0.1
    assert np.abs(difference[:, :3]).max() < 1e-6
    top = np.unravel_index(difference.argmax(), difference.shape)
    assert np.abs(np.array(top) - (15.5, 13.5, 11.5)).max() <= 2.5


def test_the_anomaly_map_peaks_at_the_voxel_that_leaves_the_usual(source: PatchSource) -> None:
    """Patches around a bright spot score alike; weighed by the excess, the map's peak is the spot. Without, it is the score."""
    image = np.where(source.cohort.masks[3] > 0, np.float32(0.3), np.float32(0.0))
    image[15:17, 13:15, 11:13] = 1.0
    form = with_image(on_grid(source, 3, stride=2, max_background=0.5), 3, image)
    [maps] = scan_maps(form, COLUMNS, Brightness(), batch_size=64)
    spot = np.unravel_index(maps.anomaly.argmax(), maps.anomaly.shape)
    assert np.abs(np.array(spot) - (15.5, 13.5, 11.5)).max() <= 0.5
    np.testing.assert_allclose(maps.anomaly, maps.score * maps.excess / (maps.excess + EXCESS_HALF), atol=1e-6)
    assert maps.anomaly_threshold(0.6) == 0.3
    unknown = replace(maps, excess=np.zeros_like(maps.excess))
    assert np.array_equal(unknown.anomaly, maps.score)
    assert unknown.anomaly_threshold(0.6) == 0.6


def test_a_whole_scan_is_rated_once(prepared_cohort: Callable[..., PreparedCohort]) -> None:
    """One image, one score all over the brain; maps lie on the grid of the coarse cohort, and those of the gradient, too."""
    data = DataConfig(source="brain", patches="whole", spacing_mm=4.0)
    source = open_patches(data, 16, cohort=coarsened(prepared_cohort(), 2), seed=0)
    grid = on_grid(source, 3, stride=5, max_background=0.0)
    assert len(grid) == 1
    assert np.array_equal(grid.center[0], source.center[0])

    class Steep(Brightness):
        def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Rated:
            return super().rate(images, values, masks)._replace(gradient=images.abs())

    image = unit_volume(source, 3)
    changed = image.copy()
    changed[8, 8, 8] = 1.0
    form = with_image(grid, 3, changed)
    before, after = scan_maps(grid, {"age": "age_years"}, Steep(), batch_size=7, changed=[form])
    for maps, seen in ((before, image), (after, changed)):
        assert maps.patches == 1
        assert maps.score.shape == source.cohort.shape
        assert np.unique(maps.score[maps.covered]).size == 1
        assert maps.gradient is not None
        steep = np.abs(seen[maps.covered])
        np.testing.assert_allclose(maps.gradient[maps.covered], steep / steep.mean(), atol=5e-3)
    [plain] = scan_maps(grid, {"age": "age_years"}, Brightness(), batch_size=7)
    assert plain.gradient is None


def test_no_patch_is_an_error(source: PatchSource) -> None:
    """A brain in which no patch is full enough has no map."""
    empty = on_grid(source, 3, stride=3, max_background=0.0)
    empty = PatchSource(**{**vars(empty), "scan": empty.scan[:0], "center": empty.center[:0]})
    with pytest.raises(ValueError, match="no patch"):
        scan_maps(empty, COLUMNS, Brightness(), batch_size=4)


AFFINE = np.array([[0, 0, -2.0, 30], [0, 2.0, 0, -40], [2.0, 0, 0, -20], [0, 0, 0, 1]])


def test_regions_are_the_parts_above_the_threshold() -> None:
    """Two blocks and a speck: volumes, peaks and centres of each, the highest first; coordinates in millimetres x, y, z."""
    score = np.zeros((10, 12, 14), np.float32)
    score[2:4, 3:5, 6:8] = 0.7
    score[3, 4, 7] = 0.8
    score[6:9, 8:11, 1:4] = 0.9
    score[0, 0, 0] = 0.6
    table = regions(score, 0.5, 2.0, AFFINE, to_scan=lambda points: points + 100.0, least_ml=0.01)
    assert table.schema == REGION_SCHEMA
    large, small = table.to_pylist()
    assert large["volume_ml"] == pytest.approx(27 * 8 / 1000)
    assert large["peak_score"] == large["mean_score"] == pytest.approx(0.9)
    assert [large[f"atlas_{axis}_mm"] for axis in "xyz"] == pytest.approx([30 - 2 * 2, -40 + 2 * 9, -20 + 2 * 7])
    assert [large[f"scan_{axis}_mm"] for axis in "xyz"] == pytest.approx([126, 78, 94])
    assert small["peak_score"] == pytest.approx(0.8)
    assert [small[f"atlas_peak_{axis}_mm"] for axis in "xyz"] == pytest.approx([30 - 14, -40 + 8, -20 + 6])
    assert 2.5 < (small["atlas_z_mm"] + 20) / 2 < 3  # drawn towards the higher voxel
    assert len(regions(score, 0.5, 2.0, AFFINE)) == 3
    assert regions(score, 0.5, 2.0, AFFINE)["scan_x_mm"].null_count == 3
    assert len(regions(score, 0.95, 2.0, AFFINE)) == 0
