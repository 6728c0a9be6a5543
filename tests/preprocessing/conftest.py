"""Scans made of the atlas: moved by a known affine transform, on a coarse grid in another orientation; so tests are quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from normscape.preprocessing.atlas import Atlas

SIDE = 64
SPACING_MM = 4.0


@pytest.fixture(scope="session")
def moved(atlas: Atlas, known: sitk.AffineTransform) -> sitk.Image:
    """The atlas as a scan: float32, 64^3 voxels of 4 mm, axes in the order posterior, superior, right."""
    centre = np.array(known.TransformPoint(atlas.image(atlas.mask).TransformContinuousIndexToPhysicalPoint([30.0, 30.0, 19.0])))
    direction = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]], dtype=float)  # columns: P, S, R in LPS
    origin = centre - direction @ np.full(3, SPACING_MM * (SIDE - 1) / 2)
    grid = sitk.Image([SIDE] * 3, sitk.sitkFloat32)
    grid.SetSpacing([SPACING_MM] * 3)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin(origin.tolist())
    scan, brain = (
        sitk.Resample(atlas.image(values.astype(np.float32)), grid, known.GetInverse(), sitk.sitkLinear, 0.0)
        for values in (atlas.t1, atlas.mask)
    )
    return sitk.Mask(scan, brain >= 0.5)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image as NIfTI."""

    def write(image: sitk.Image, name: str = "scan.nii.gz") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path

    return write
