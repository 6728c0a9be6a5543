"""A known transform is found again, masks go along, and maps come back into the scan's own space."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.errors import UserError
from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.registration import (
    check_registration,
    dice,
    read_transform,
    register,
    smoothed,
    to_scan_space,
    warp,
    warp_mask,
    write_transform,
)
from normscape.preprocessing.settings import PreprocessingSettings

SETTINGS = PreprocessingSettings(spacing_mm=4, strip="none")


@pytest.fixture(scope="module")
def mask(moved: sitk.Image) -> sitk.Image:
    return sitk.Cast(moved > 20, sitk.sitkUInt8)


@pytest.fixture(scope="module")
def found(moved: sitk.Image, mask: sitk.Image, atlas: Atlas) -> sitk.AffineTransform:
    return register(moved, mask, atlas, SETTINGS)


def _brain_points(atlas: Atlas) -> np.ndarray:
    """Points (100, 3) in the atlas's brain, LPS millimetres."""
    places = np.argwhere(atlas.mask)
    chosen = places[np.random.default_rng(0).choice(len(places), 100, replace=False)]
    image = atlas.image(atlas.mask)
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in place[::-1]]) for place in chosen])


def test_a_known_transform_is_found(found: sitk.AffineTransform, known: sitk.AffineTransform, atlas: Atlas) -> None:
    """Within half a voxel on average over the brain, though the scan was moved by up to 25 mm, turned and stretched."""
    points = _brain_points(atlas)
    away = [np.linalg.norm(np.subtract(found.TransformPoint(p), known.TransformPoint(p))) for p in points.tolist()]
    assert np.mean(away) < 2.0
    assert np.max(away) < 4.0


def test_the_same_input_gives_the_same_transform(
    found: sitk.AffineTransform, moved: sitk.Image, mask: sitk.Image, atlas: Atlas
) -> None:
    """To the last digit, whatever number of threads SimpleITK would take."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
    try:
        again = register(moved, mask, atlas, SETTINGS)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert again.GetParameters() == found.GetParameters()


def test_masks_go_along(found: sitk.AffineTransform, moved: sitk.Image, mask: sitk.Image, atlas: Atlas) -> None:
    """The warped mask lies on the atlas's, and the warped scan looks like the atlas."""
    placed = sitk.GetArrayFromImage(warp_mask(mask, found, atlas, 0.0)) > 0
    assert dice(placed, atlas.mask > 0) > 0.95
    values = sitk.GetArrayFromImage(warp(moved, found, atlas))
    assert np.corrcoef(values[placed], atlas.t1[placed])[0, 1] > 0.9


def test_opening_removes_what_is_thinner_than_its_ball(atlas: Atlas) -> None:
    """A plate of one voxel goes, a block of five stays; a radius of less than half a voxel removes nothing."""
    values = np.zeros(atlas.mask.shape, np.uint8)
    values[10:15, 10:15, 10:15] = 1
    values[25, 20:40, 20:40] = 1
    image, identity = atlas.image(values), sitk.AffineTransform(3)
    opened = sitk.GetArrayFromImage(warp_mask(image, identity, atlas, 4.0))
    assert opened[25].sum() == 0
    assert opened[12, 12, 12] == 1
    assert np.array_equal(sitk.GetArrayFromImage(warp_mask(image, identity, atlas, 1.0)), values)


def test_maps_come_back(known: sitk.AffineTransform, moved: sitk.Image, atlas: Atlas, tmp_path: Path) -> None:
    """A spot on the atlas's grid lies where the transform takes it, on the scan's own grid; the transform survives its file."""
    values = np.zeros(atlas.mask.shape, np.float32)
    values[20, 28, 35] = 1.0
    volume = atlas.image(values)
    expected = known.TransformPoint(volume.TransformIndexToPhysicalPoint([35, 28, 20]))
    write_transform(known, tmp_path / "to_scan.tfm")
    back = to_scan_space(volume, read_transform(tmp_path / "to_scan.tfm"), moved)
    assert back.GetSize() == moved.GetSize()
    assert back.GetDirection() == moved.GetDirection()
    z, y, x = (int(i) for i in np.unravel_index(np.argmax(sitk.GetArrayFromImage(back)), back.GetSize()[::-1]))
    assert np.linalg.norm(np.subtract(back.TransformIndexToPhysicalPoint([x, y, z]), expected)) < 4.0
    with pytest.raises(UserError, match="not a readable transform"):
        read_transform(tmp_path / "missing.tfm")


def test_labels_come_back_unmixed(known: sitk.AffineTransform, moved: sitk.Image, atlas: Atlas) -> None:
    back = to_scan_space(atlas.image(atlas.mask * 7), known, moved, labels=True)
    assert set(np.unique(sitk.GetArrayFromImage(back))) == {0, 7}


def test_finer_scans_are_smoothed_first() -> None:
    """Noise of 1 mm voxels loses most of its variance on the way to 4 mm, one axis of 4 mm is left alone."""
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32))
    fine = np.std(sitk.GetArrayFromImage(smoothed(noise, 4.0)))
    assert fine < 0.3
    noise.SetSpacing([1.0, 1.0, 4.0])
    assert np.std(sitk.GetArrayFromImage(smoothed(noise, 4.0))) > 1.5 * fine
    noise.SetSpacing([4.0, 4.0, 4.0])
    assert np.array_equal(sitk.GetArrayFromImage(smoothed(noise, 4.0)), sitk.GetArrayFromImage(noise))


def test_a_missing_package_is_named() -> None:
    elastix = PreprocessingSettings(registration="elastix")
    if importlib.util.find_spec("itk") is None:
        with pytest.raises(UserError, match="itk-elastix"):
            check_registration(elastix)
    else:
        check_registration(elastix)


def test_elastix_finds_it_too(known: sitk.AffineTransform, moved: sitk.Image, mask: sitk.Image, atlas: Atlas) -> None:
    """Where it is installed."""
    pytest.importorskip("itk")
    found = register(moved, mask, atlas, SETTINGS.model_copy(update={"registration": "elastix"}))
    points = _brain_points(atlas).tolist()
    away = [np.linalg.norm(np.subtract(found.TransformPoint(p), known.TransformPoint(p))) for p in points]
    assert np.mean(away) < 2.5
