"""What tells a good scan from a bad one: volume of the brain, overlap with the atlas, how far it was stretched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.registration import dice
from normscape.preprocessing.settings import PreprocessingSettings

if TYPE_CHECKING:
    import SimpleITK as sitk

USUAL_VOLUME_ML = (900.0, 2000.0)
"""Brain with its fluid, of adults."""
USUAL_STRETCH = (0.75, 1.35)
"""Of a brain to the atlas, along any axis."""
MAX_CUT_OFF = 0.005
"""Share of the mask on the border of the scan; more looks cut off."""
OUTLYING = 3.5
"""Robust z-score, from median and median absolute deviation, beyond which a scan stands out in its cohort (Iglewicz and
Hoaglin 1993)."""


def of_mask(mask: sitk.Image) -> dict[str, float]:
    """Of a brain mask on the scan's grid: `brain_volume_ml`, and `cut_off`, the share of it on the border of the scan."""
    import SimpleITK as sitk

    brain = sitk.GetArrayViewFromImage(mask) > 0
    inner = brain[1:-1, 1:-1, 1:-1]
    total = int(brain.sum())
    return {
        "brain_volume_ml": total * float(np.prod(mask.GetSpacing())) / 1000.0,
        "cut_off": 1.0 - int(inner.sum()) / max(total, 1),
    }


def of_labels(mask: sitk.Image, labels: sitk.Image, ventricles: Sequence[int]) -> dict[str, float]:
    """Against anatomical labels on the scan's grid: `labels_dice` of the brain masks; `ventricle_volume_ml`, where asked for."""
    import SimpleITK as sitk

    values = sitk.GetArrayViewFromImage(labels)
    found = {"labels_dice": dice(sitk.GetArrayViewFromImage(mask) > 0, values > 0)}
    if ventricles:
        count = int(np.isin(values, list(ventricles)).sum())
        found["ventricle_volume_ml"] = count * float(np.prod(labels.GetSpacing())) / 1000.0
    return found


def of_registration(mask: sitk.Image, transform: sitk.AffineTransform, atlas: Atlas) -> dict[str, float]:
    """Of a registered mask on the atlas's grid: `atlas_dice`; `stretch_min` and `stretch_max`, of the scan to the atlas."""
    import SimpleITK as sitk

    stretch = 1.0 / np.linalg.svd(np.array(transform.GetMatrix()).reshape(3, 3), compute_uv=False)
    return {
        "atlas_dice": dice(sitk.GetArrayViewFromImage(mask) > 0, atlas.mask > 0),
        "stretch_min": float(stretch.min()),
        "stretch_max": float(stretch.max()),
    }


def flags(measured: Mapping[str, float], settings: PreprocessingSettings) -> tuple[str, ...]:
    """What a person should look at in one scan."""
    found = []
    if not USUAL_VOLUME_ML[0] <= measured["brain_volume_ml"] <= USUAL_VOLUME_ML[1]:
        found.append("unusual brain volume")
    if measured["atlas_dice"] < settings.flag_overlap:
        found.append("low overlap with the atlas")
    if measured["stretch_min"] < USUAL_STRETCH[0] or measured["stretch_max"] > USUAL_STRETCH[1]:
        found.append("stretched far")
    if measured["cut_off"] > MAX_CUT_OFF:
        found.append("cut off at the border of the scan")
    return tuple(found)


def outlying(values: Sequence[float], *, low_only: bool = False) -> list[bool]:
    """Which values stand out among all, by their robust z-score; none among fewer than eight."""
    array = np.asarray(values, dtype=float)
    if len(array) < 8:
        return [False] * len(array)
    away = array - np.median(array)
    scale = 1.4826 * np.median(np.abs(away))
    if scale == 0:
        return [False] * len(array)
    return ((-away if low_only else np.abs(away)) / scale > OUTLYING).tolist()
