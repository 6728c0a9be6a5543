"""N4 bias field correction (Tustison et al. 2010)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscape.preprocessing.threads import one_thread

if TYPE_CHECKING:
    import SimpleITK as sitk

WORKING_MM = 4.0
"""The field is smooth: it is fitted on voxels of about this side."""
ITERATIONS = (50, 50, 30, 20)
"""At most, for each level of the spline, coarse to fine."""


def correct_bias(scan: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """Divide a scan by its bias field.

    The field is fitted to the brain alone: that is all that is kept, and bright fat would pull at it.

    Args:
        scan: float32.
        mask: 1 in the brain, on the scan's grid.

    Returns:
        float32, on the same grid; the field is 1 on average over the brain, so that intensities keep their scale.
    """
    import SimpleITK as sitk

    shrink = [max(1, round(WORKING_MM / spacing)) for spacing in scan.GetSpacing()]
    # the logarithm wants positive values; a brain has few others
    positive = sitk.And(sitk.Cast(scan > 0, sitk.sitkUInt8), sitk.Cast(mask, sitk.sitkUInt8))
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(list(ITERATIONS))
    with one_thread():
        corrector.Execute(sitk.Shrink(scan, shrink), sitk.Shrink(positive, shrink))
    field = corrector.GetLogBiasFieldAsImage(scan)
    statistics = sitk.LabelStatisticsImageFilter()
    statistics.Execute(field, positive)
    # around the brain the spline runs free; what is mixed in at the edge when the scan is resampled must stay sane
    field = sitk.Clamp(field, sitk.sitkFloat32, statistics.GetMinimum(1), statistics.GetMaximum(1)) - statistics.GetMean(1)
    return sitk.Cast(scan / sitk.Exp(field), sitk.sitkFloat32)
