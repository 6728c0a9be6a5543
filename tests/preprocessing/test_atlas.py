"""The vendored SRI24: where it lies, what coarser grids keep of it, and what is no template."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from normscape.errors import DataError
from normscape.preprocessing.atlas import Atlas, block_mean, load_atlas


@pytest.fixture(scope="module")
def fine() -> Atlas:
    return load_atlas(1)


def test_sri24_has_the_thesis_size_and_a_brain_in_the_middle(fine: Atlas) -> None:
    """155 x 240 x 240 voxels of 1 mm; about 1.45 litres of brain, as far to the left as to the right; nothing around it."""
    atlas = fine
    assert atlas.mask.shape == (155, 240, 240)
    assert atlas.mask.sum() / 1000 == pytest.approx(1451.7, abs=0.1)
    assert atlas.t1[atlas.mask == 0].max() == 0
    assert atlas.t1[atlas.mask == 1].min() > 0
    middle = atlas.mask[75]
    columns = np.flatnonzero(middle.any(axis=0))
    assert abs((columns[0] + columns[-1]) / 2 - 119.5) < 3


def test_coarser_grids_cover_the_same_space(atlas: Atlas, fine: Atlas) -> None:
    """A voxel's centre at 4 mm is the centre of the 4^3 voxels that it is the mean of; the volume stays."""
    assert atlas.mask.shape == (39, 60, 60)
    assert atlas.mask.sum() * 0.064 == pytest.approx(fine.mask.sum() * 0.001, rel=0.02)
    first = fine.affine[:3, :3] @ [1.5, 1.5, 1.5] + fine.affine[:3, 3]
    assert np.allclose(atlas.affine[:3, 3], first)
    assert np.allclose(fine.affine[:3, :3] @ [1, 0, 0], [0, 0, 1])  # the first index goes up


def test_simpleitk_sees_the_same_points(atlas: Atlas) -> None:
    """`image` turns RAS into LPS and changes no point: index to point is the affine, with x and y negated."""
    image = atlas.image(atlas.t1)
    index = (7, 11, 23)  # x, y, z
    point = atlas.affine @ [23, 11, 7, 1]
    assert np.allclose(image.TransformIndexToPhysicalPoint(index), [-point[0], -point[1], point[2]])
    assert sitk.GetArrayFromImage(image)[23, 11, 7] == atlas.t1[23, 11, 7]


def test_block_mean_pads_with_background() -> None:
    """3 voxels in blocks of 2: the last block is half empty."""
    assert np.allclose(block_mean(np.ones((2, 2, 3), np.float32), 2), [[[1.0, 0.5]]])


def test_a_template_by_path(fine: Atlas, tmp_path: Path) -> None:
    """The shipped file under another name and in another orientation gives the same atlas; a whole head is refused."""
    with resources.as_file(resources.files("normscape.datasets") / "assets" / "sri24_t1.nii.gz") as asset:
        image = nib.load(asset)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "L", "S")))
    nib.save(turned, tmp_path / "mine.nii.gz")
    mine, sri24 = load_atlas(2, tmp_path / "mine.nii.gz"), fine.at(2)
    assert mine.name == "mine"
    assert np.array_equal(mine.t1, sri24.t1)
    assert np.allclose(mine.affine, sri24.affine)
    assert mine.digest == sri24.digest
    head = nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4))
    nib.save(head, tmp_path / "head.nii.gz")
    with pytest.raises(DataError, match="skull-stripped"):
        load_atlas(2, tmp_path / "head.nii.gz")
    with pytest.raises(DataError, match="not a readable"):
        load_atlas(2, tmp_path / "missing.nii.gz")
