"""Every kind of bad file ends in one clear line; good ones are turned, and no point of them moves."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.errors import DataError
from normscape.preprocessing.reading import read_labels, read_scan

Save = Callable[..., Path]


def _image(values: np.ndarray, spacing: float = 4.0) -> sitk.Image:
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing([spacing] * image.GetDimension())
    return image


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape or (20, 20, 20)).astype(np.float32)


def test_axes_are_turned_and_points_stay(moved: sitk.Image, save: Save) -> None:
    """A scan stored as posterior, superior, right reads as LPS, with the same value at the same point."""
    scan = read_scan(save(moved))
    assert np.allclose(scan.GetDirection(), np.eye(3).ravel())
    index = (30, 33, 28)
    point = moved.TransformIndexToPhysicalPoint(index)
    assert moved[index] > 0
    assert scan[scan.TransformPhysicalPointToIndex(point)] == pytest.approx(moved[index])


def test_a_fourth_axis_of_one_is_dropped(save: Save) -> None:
    scan = read_scan(save(_image(_noise(1, 20, 20, 20)), "one.nii"))
    assert scan.GetDimension() == 3
    assert scan.GetSpacing() == (4.0, 4.0, 4.0)


def test_whole_numbers_become_floats(save: Save) -> None:
    assert read_scan(save(_image((_noise() * 100).astype(np.uint8)))).GetPixelID() == sitk.sitkFloat32


def _not_finite() -> np.ndarray:
    values = _noise()
    values[3, 4, 5], values[1, 1, 1] = np.nan, np.inf
    return values


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (_image(_noise(2, 20, 20, 20)), "expected one 3D image; found 20 x 20 x 20 x 2"),
        (_image(_noise(), 0.004), "Are its units millimetres"),
        (_image(_noise(60, 60, 60), 9.0), "field of view is 540 x 540 x 540 mm"),
        (_image(_noise(), 20.0), "voxels are 20 x 20 x 20 mm"),
        (_image(_noise(8, 20, 20), 8.0), "at least 16 a side"),
        (_image(_not_finite()), "2 of 8000 values are not finite"),
        (_image(np.full((20, 20, 20), 7, np.float32)), "all its values are 7"),
    ],
    ids=["4D", "metres", "huge", "coarse", "few voxels", "NaN", "constant"],
)
def test_what_no_head_looks_like(image: sitk.Image, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message):
        read_scan(save(image))


def test_zero_spacing(save: Save) -> None:
    """The header says that a voxel has no size; what a reader makes of that must not pass as a head."""
    path = save(_image(_noise()), "zero.nii")
    content = bytearray(path.read_bytes())
    content[80:92] = np.zeros(3, np.float32).tobytes()  # pixdim[1..3]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"zero\.nii"):
        read_scan(path)


def test_damaged_files(tmp_path: Path, save: Save) -> None:
    """Truncated, not compressed, not an image, of another kind, missing."""
    whole = save(_image(_noise(40, 40, 40))).read_bytes()
    cases = {
        "cut.nii.gz": (whole[: len(whole) // 2], "cut off"),
        "plain.nii.gz": (gzip.decompress(whole), "not a readable file"),
        "text.nii": (b"not an image" * 100, "not a readable NIfTI image"),
        "short.nii": (gzip.decompress(whole)[:1000], "cut off; 1000 of 256352 bytes"),
        "scan.png": (whole, "expected a NIfTI file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_scan(tmp_path / name)
    with pytest.raises(DataError, match="not a readable"):
        read_scan(tmp_path / "missing.nii.gz")


def test_labels_must_lie_on_the_scan(moved: sitk.Image, save: Save) -> None:
    """On the scan's grid they are turned with it; moved by two voxels, or of another size, they are refused."""
    scan = read_scan(save(moved))
    labels = sitk.Cast(moved > 0, sitk.sitkUInt8)
    read = read_labels(save(labels, "labels.nii.gz"), scan)
    assert np.array_equal(sitk.GetArrayFromImage(read) > 0, sitk.GetArrayFromImage(scan) > 0)
    labels.SetOrigin([x + 8.0 for x in labels.GetOrigin()])
    with pytest.raises(DataError, match="not on the scan's grid"):
        read_labels(save(labels, "away.nii.gz"), scan)
    with pytest.raises(DataError, match="not on the scan's grid"):
        read_labels(save(labels[:40], "small.nii.gz"), scan)
