"""What preprocessing does to a scan, and where it draws its lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Strip = Literal["deepbet", "hdbet", "mask", "none"]
Registration = Literal["simpleitk", "elastix"]


class PreprocessingSettings(BaseModel):
    """Settings of `normscape.preprocessing`; the same settings and the same scan give the same volume.

    Example:
        >>> PreprocessingSettings(strip="none").spacing_mm
        2
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    spacing_mm: Annotated[int, Field(ge=1, le=4)] = 2
    """Side of a voxel of the result, a multiple of the atlas's; the thesis has 1."""
    strip: Strip = "deepbet"
    """Who finds the brain: `deepbet`, `hdbet` (as in the thesis), each scan's own `mask` file, or `none`, where the background
    of the scans is 0 already."""
    bias_correction: bool = True
    """N4 bias field correction; the thesis has none."""
    registration: Registration = "simpleitk"
    """`elastix` as in the thesis, or `simpleitk`; affine both."""
    atlas: Path | None = None
    """A skull-stripped T1 template instead of SRI24."""
    min_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.85
    """Least Dice of the registered brain mask with the atlas's; a scan below is quarantined."""
    flag_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.92
    """Dice with the atlas's mask below which a scan is flagged."""
    min_volume_ml: Annotated[float, Field(ge=0.0)] = 300.0
    """Least volume of a brain mask; a scan below is quarantined."""
    max_volume_ml: Annotated[float, Field(gt=0.0)] = 3000.0
    """Largest volume of a brain mask; a scan above is quarantined."""
    opening_radius_mm: Annotated[float, Field(ge=0.0)] = 2.0
    """Radius of the binary opening of the registered mask (thesis III.B.2: 2 voxels of 1 mm)."""
    ventricle_labels: tuple[int, ...] = ()
    """Where scans come with anatomical labels: which ones are the lateral ventricles. Their volume is measured."""
    seed: int = 0
    """Of the points that the registration compares."""

    def digest(self) -> str:
        """Changes with any setting that changes a result; the atlas is told apart by its own digest."""
        values = self.model_dump(mode="json", exclude={"atlas"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
