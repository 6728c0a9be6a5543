"""Affine registration to the atlas, and the way back into the scan's own space."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normscape.errors import UserError
from normscape.preprocessing.atlas import Atlas
from normscape.preprocessing.settings import PreprocessingSettings
from normscape.preprocessing.threads import one_thread

if TYPE_CHECKING:
    import SimpleITK as sitk

WORKING_MM = 2
"""Registration compares on this grid; finer ones cost more and do not move an affine transform."""
SHRINK = (4, 2, 1)
SMOOTHING_MM = (4.0, 2.0, 0.0)
BINS = 32
SAMPLED = 0.2
"""Share of the voxels that are compared."""
ITERATIONS = 200
GOOD_OVERLAP = 0.9
"""Dice of the masks at which no second start is tried."""


def check_registration(settings: PreprocessingSettings) -> None:
    """Whether what the registration needs is installed.

    Raises:
        UserError: it is not.
    """
    if settings.registration == "elastix" and importlib.util.find_spec("itk") is None:
        raise UserError("registration elastix: itk-elastix is not installed; pip install 'normscape[elastix]', or take simpleitk")


def register(scan: sitk.Image, mask: sitk.Image, atlas: Atlas, settings: PreprocessingSettings) -> sitk.AffineTransform:
    """The affine transform that takes points of the atlas to points of the scan (LPS millimetres both).

    Both brains are compared without what is around them, by mutual information, from coarse to fine. It starts with the
    centres of mass on each other; when the masks then do not lie on each other, it starts again from the centres of the grids
    and keeps the better one. The same input gives the same transform.

    Args:
        scan: float32.
        mask: uint8, 1 in the brain, on the scan's grid.
        atlas: on any grid.
        settings: which registration, and its seed.
    """
    import SimpleITK as sitk

    working = atlas if atlas.spacing_mm >= WORKING_MM else atlas.at(WORKING_MM)
    fixed = working.image(working.t1)
    brain = sitk.Mask(smoothed(scan, working.spacing_mm), mask)
    method = _elastix if settings.registration == "elastix" else _simpleitk
    best, best_overlap = None, -1.0
    for centre in (sitk.CenteredTransformInitializerFilter.MOMENTS, sitk.CenteredTransformInitializerFilter.GEOMETRY):
        start = sitk.AffineTransform(sitk.CenteredTransformInitializer(fixed, brain, sitk.AffineTransform(3), centre))
        with one_thread():
            found = method(fixed, brain, start, settings.seed)
        placed = sitk.Resample(mask, fixed, found, sitk.sitkNearestNeighbor, 0)
        overlap = dice(sitk.GetArrayViewFromImage(placed) > 0, working.mask > 0)
        if overlap > best_overlap:
            best, best_overlap = found, overlap
        if best_overlap >= GOOD_OVERLAP:
            break
    assert best is not None
    return best


def _simpleitk(fixed: sitk.Image, moving: sitk.Image, start: sitk.AffineTransform, seed: int) -> sitk.AffineTransform:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLED, seed + 1)  # 0 would mean the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=ITERATIONS, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(SHRINK))
    method.SetSmoothingSigmasPerLevel(list(SMOOTHING_MM))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _elastix(fixed: sitk.Image, moving: sitk.Image, start: sitk.AffineTransform, seed: int) -> sitk.AffineTransform:
    """Elastix's own affine parameters (Klein et al. 2010), started from the same centres."""
    import itk
    import SimpleITK as sitk

    parameters = itk.ParameterObject.New()
    affine = parameters.GetDefaultParameterMap("affine", 4)
    affine["RandomSeed"] = [str(seed + 1)]
    affine["AutomaticTransformInitialization"] = ["false"]
    parameters.AddParameterMap(affine)
    offset = np.array(start.GetTranslation())
    shifted = sitk.Image(moving)  # elastix starts from identity: the scan is moved to where its start would have it
    shifted.SetOrigin((np.array(moving.GetOrigin()) - offset).tolist())
    _, found = itk.elastix_registration_method(
        _to_itk(fixed), _to_itk(shifted), parameter_object=parameters, log_to_console=False
    )
    result = found.GetParameterMap(0)
    numbers = [float(value) for value in result["TransformParameters"]]
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(numbers[:9])
    transform.SetCenter([float(value) for value in result["CenterOfRotationPoint"]])
    transform.SetTranslation((np.array(numbers[9:]) + offset).tolist())
    return transform


def _to_itk(image: sitk.Image) -> object:
    import itk
    import SimpleITK as sitk

    converted = itk.image_from_array(sitk.GetArrayFromImage(image))
    converted.SetSpacing(image.GetSpacing())
    converted.SetOrigin(image.GetOrigin())
    converted.SetDirection(itk.matrix_from_array(np.array(image.GetDirection()).reshape(3, 3)))
    return converted


def warp(scan: sitk.Image, transform: sitk.Transform, atlas: Atlas) -> sitk.Image:
    """A scan on the atlas's grid, linear between voxels, 0 where the scan does not reach; smoothed first where it is finer."""
    import SimpleITK as sitk

    return sitk.Resample(smoothed(scan, atlas.spacing_mm), atlas.image(atlas.mask), transform, sitk.sitkLinear, 0.0)


def warp_mask(mask: sitk.Image, transform: sitk.Transform, atlas: Atlas, opening_radius_mm: float) -> sitk.Image:
    """A mask on the atlas's grid: warped as its scan is, cut at 0.5, opened with a ball (thesis III.B.2).

    A radius of less than half a voxel opens nothing.
    """
    import SimpleITK as sitk

    soft = warp(sitk.Cast(mask, sitk.sitkFloat32), transform, atlas)
    hard = sitk.Cast(soft >= 0.5, sitk.sitkUInt8)
    radius = round(opening_radius_mm / atlas.spacing_mm)
    return sitk.BinaryMorphologicalOpening(hard, [radius] * 3, sitk.sitkBall) if radius else hard


def smoothed(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Without the detail that a coarser grid cannot hold; unchanged where the image is as coarse.

    The kernel widens a voxel to the new one: its variance is the difference of both voxels' variances.
    """
    import SimpleITK as sitk

    for axis, own in enumerate(image.GetSpacing()):
        if own < 0.9 * spacing_mm:
            sigma = float(np.sqrt((spacing_mm**2 - own**2) / 12.0))
            image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
    return sitk.Cast(image, sitk.sitkFloat32)


def to_scan_space(volume: sitk.Image, transform: sitk.Transform, reference: sitk.Image, *, labels: bool = False) -> sitk.Image:
    """Bring a volume from the atlas's grid back onto a scan's own.

    Args:
        volume: on the atlas's grid (`Atlas.image`), for example an anomaly map.
        transform: points of the atlas to points of the scan, as `register` returns it and `to_scan.tfm` holds it.
        reference: the scan, or any image on its grid, in any orientation.
        labels: take the nearest voxel instead of mixing neighbours.

    Returns:
        float32 (or the labels' type) on the reference's grid; 0 where the atlas's grid does not reach.
    """
    import SimpleITK as sitk

    how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    source = volume if labels else sitk.Cast(volume, sitk.sitkFloat32)
    return sitk.Resample(source, reference, transform.GetInverse(), how, 0.0, source.GetPixelID())


def write_transform(transform: sitk.AffineTransform, path: Path) -> None:
    """Write a transform in ITK's text format."""
    import SimpleITK as sitk

    sitk.WriteTransform(transform, str(path))


def read_transform(path: Path) -> sitk.Transform:
    """Read what `write_transform` wrote.

    Raises:
        UserError: there is no such file, or it is no transform.
    """
    import SimpleITK as sitk

    try:
        return sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: not a readable transform") from error


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean arrays; 0 when both are empty."""
    both, size = int(np.count_nonzero(first & second)), int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * both / size if size else 0.0
