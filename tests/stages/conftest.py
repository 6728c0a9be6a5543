"""A scan in another pose with a bright ball in it, and a stand-in for the model that scores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from normscape.config import Config
from normscape.inversion.volumes import hann_window
from normscape.preprocessing.atlas import Atlas
from normscape.scoring.maps import Rated
from normscape.stages.scan import ScanModel, scan_model, stripped_by

SPACING_MM, SIDE = 4.0, 64
BLOB_RADIUS_MM = 16.0


class Brightness:
    """Rates a patch by how bright it is, most of all in its middle; its reconstruction is black."""

    def rate(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Rated:
        """Mean intensity under mask and window, from 0 (black) to 1."""
        assert masks is not None
        assert values["age"].unique().tolist() == [63.0]
        weight = masks * hann_window(images.shape[-1])
        score = ((images + 1) / 2 * weight).sum((1, 2, 3, 4)) / weight.sum((1, 2, 3, 4))
        return Rated(score, torch.full_like(images, -1.0), 2 * (images + 1) * masks)

    def read(self, name: str, images: Tensor) -> Tensor:
        """The age of everybody."""
        assert name == "age"
        return torch.full((len(images), 1), 63.0)


@pytest.fixture(scope="module")
def blob_mm(atlas: Atlas, known: sitk.AffineTransform) -> np.ndarray:
    """Centre of the blob in the scan, LPS millimetres: a place in the front left of the atlas, off every axis of symmetry."""
    place = atlas.image(atlas.mask).TransformContinuousIndexToPhysicalPoint([24.0, 37.0, 22.0])
    return np.array(known.TransformPoint(place))


@pytest.fixture(scope="module")
def scan_path(atlas: Atlas, known: sitk.AffineTransform, blob_mm: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The moved atlas with a bright ball, axes in the order posterior, superior, right, as a NIfTI file."""
    centre = np.array(known.TransformPoint(atlas.image(atlas.mask).TransformContinuousIndexToPhysicalPoint([30.0, 30.0, 19.0])))
    direction = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]], dtype=float)
    grid = sitk.Image([SIDE] * 3, sitk.sitkFloat32)
    grid.SetSpacing([SPACING_MM] * 3)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((centre - direction @ np.full(3, SPACING_MM * (SIDE - 1) / 2)).tolist())
    head = sitk.Resample(atlas.image(atlas.t1), grid, known.GetInverse(), sitk.sitkLinear, 0.0)
    values = sitk.GetArrayFromImage(head)
    index = np.stack(np.meshgrid(*(np.arange(SIDE),) * 3, indexing="ij"), axis=-1)[..., ::-1]
    points = index * SPACING_MM @ direction.T + head.GetOrigin()
    inside = (np.linalg.norm(points - blob_mm, axis=-1) < BLOB_RADIUS_MM) & (values > 0)
    assert inside.sum() > 150
    values[inside] = 1.5 * values.max()
    lit = sitk.GetImageFromArray(values)
    lit.CopyInformation(head)
    path = tmp_path_factory.mktemp("scan") / "odd.nii.gz"
    sitk.WriteImage(lit, str(path))
    return path


@pytest.fixture
def model(toy_brain_config: Callable[..., Config]) -> ScanModel:
    """The stand-in with the preprocessing of the simulated cohort, for scans that are stripped already."""
    config = toy_brain_config(data={"spacing_mm": 4.0, "background": "constant"}, brains={"stride": 2, "batch_size": 512})
    made = stripped_by(scan_model(config, Brightness(), 0.6), "none", None)
    return replace(made, settings=made.settings.model_copy(update={"bias_correction": False}))
