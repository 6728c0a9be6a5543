"""Volume of the lateral ventricles of a brain on the atlas's grid: dark voxels near the atlas's own ventricles."""

from __future__ import annotations

import io
import json
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normscape.datasets.prepared import COHORT_NAME, PreparedCohort

GROWTH_MM = 6.0
"""How far around the atlas's ventricles dark voxels still count: those of old people are wider."""
ATLAS = "SRI24"
"""The only atlas whose ventricles are known here."""


def ventricle_region(cohort: PreparedCohort, growth_mm: float = GROWTH_MM) -> NDArray[np.bool_] | None:
    """Where lateral ventricles can be: bool (Z, Y, X) on the cohort's grid, within the atlas's mask; None for another atlas.

    Args:
        cohort: gives grid and atlas.
        growth_mm: how far the region reaches beyond the atlas's ventricles.
    """
    described = json.loads((cohort.folder / COHORT_NAME).read_text(encoding="utf-8"))
    if described.get("atlas") != ATLAS:
        return None
    content = resources.files("normscape.datasets").joinpath("assets/brains.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        ventricles, origin, spacing = arrays["ventricles"], arrays["origin_mm"], float(arrays["spacing_mm"])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in cohort.shape), indexing="ij"), axis=-1)
    place = (cohort.world(index.astype(np.float64)) - origin)[..., ::-1] / spacing  # z, y, x in voxels of the asset
    share = ndimage.map_coordinates(ventricles.astype(np.float32), np.moveaxis(place, -1, 0), order=1)
    away_mm = ndimage.distance_transform_edt(share < 0.5) * cohort.spacing_mm
    return (away_mm <= growth_mm) & (cohort.atlas_mask > 0)


def fluid_levels(parameters: Tensor) -> tuple[float, float]:
    """Mean intensities of fluid and of grey matter, in z-scores under the mask.

    Args:
        parameters: (N, 6) of `normscape.datasets.contrast`: means of fluid, grey and white matter, then variances.
    """
    fluid, grey = parameters[:, :2].mean(0).tolist()
    return fluid, grey


def ventricle_volume_ml(
    z: NDArray[np.floating], region: NDArray[np.bool_], levels: tuple[float, float], spacing_mm: float
) -> float:
    """Millilitres of fluid in the region. A voxel counts as wholly fluid at the fluid's level and below, as none at that of grey
    matter and above, and in between by its share, so that half-filled voxels and blurred images change little.

    Args:
        z: (Z, Y, X), z-scores under the mask.
        region: bool (Z, Y, X), see `ventricle_region`.
        levels: see `fluid_levels`.
        spacing_mm: side of a voxel.
    """
    fluid, grey = levels
    share = ((grey - z[region]) / (grey - fluid)).clip(0, 1)
    return float(share.sum(dtype=np.float64)) * spacing_mm**3 / 1000.0
