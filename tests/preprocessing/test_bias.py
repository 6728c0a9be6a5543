"""A field that was put in is taken out again."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.bias import correct_bias


def test_a_known_field_is_removed(atlas: Atlas) -> None:
    """A slope from 0.7 to 1.3 from left to right: afterwards the brain is like the flat one, at the same mean intensity."""
    mask = atlas.image(atlas.mask)
    slope = np.exp(np.linspace(-0.3, 0.3, atlas.mask.shape[2], dtype=np.float32))
    corrected = sitk.GetArrayFromImage(correct_bias(atlas.image(atlas.t1 * slope), mask))
    flat = sitk.GetArrayFromImage(correct_bias(atlas.image(atlas.t1), mask))
    inside = atlas.mask > 0

    def tilt(values: np.ndarray) -> float:
        """Slope of the logarithm of values / template along x, from one end of the grid to the other."""
        x = np.broadcast_to(np.linspace(0, 1, values.shape[2]), values.shape)[inside]
        return float(np.polyfit(x, np.log(values[inside] / atlas.t1[inside]), 1)[0])

    assert abs(tilt(atlas.t1 * slope)) > 0.55
    assert abs(tilt(corrected) - tilt(flat)) < 0.15
    assert np.isfinite(corrected).all()
    assert abs(np.log(corrected[inside]).mean() - np.log((atlas.t1 * slope)[inside]).mean()) < 0.01
