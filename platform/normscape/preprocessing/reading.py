"""Reading a scan, or saying clearly why it is none."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normscape.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

FIELD_OF_VIEW_MM = (50.0, 500.0)
"""Least and largest side of a scan of a head; beyond, the header holds metres, micrometres or nothing."""
MAX_SPACING_MM = 10.0
MIN_VOXELS = 16
"""Along each side."""
_CHUNK = 1 << 22
_GRID_TOLERANCE_MM = 0.5


def read_scan(path: Path) -> sitk.Image:
    """A scan as float32, its axes turned to LPS (SimpleITK's own order), points in space unchanged.

    Args:
        path: `.nii` or `.nii.gz`; a fourth dimension of length one is dropped.

    Raises:
        DataError: not a NIfTI image, cut off, not 3D, spacing or size that no head has, values that are not finite, or all
            the same.
    """
    import SimpleITK as sitk

    image = _read_nifti(path)
    spacing, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    shown = " x ".join(f"{s:g}" for s in spacing)
    if not np.all(spacing > 0) or spacing.max() > MAX_SPACING_MM:
        raise DataError(f"{path.name}: its voxels are {shown} mm; expected more than 0 and at most {MAX_SPACING_MM:g}")
    extent = spacing * size
    if extent.min() < FIELD_OF_VIEW_MM[0] or extent.max() > FIELD_OF_VIEW_MM[1]:
        sides = " x ".join(f"{side:.4g}" for side in extent)
        raise DataError(
            f"{path.name}: its field of view is {sides} mm; expected {FIELD_OF_VIEW_MM[0]:g} to {FIELD_OF_VIEW_MM[1]:g} a side. "
            "Are its units millimetres?"
        )
    if size.min() < MIN_VOXELS:
        raise DataError(f"{path.name}: {' x '.join(map(str, size))} voxels; expected at least {MIN_VOXELS} a side")
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise DataError(f"{path.name}: all its values are {values.flat[0]:g}")
    return sitk.DICOMOrient(image, "LPS")


def read_labels(path: Path, scan: sitk.Image) -> sitk.Image:
    """A mask or a label image on a scan's grid, uint32, turned as the scan is.

    Raises:
        DataError: not a readable image, or not on the scan's grid.
    """
    import SimpleITK as sitk

    image = sitk.DICOMOrient(sitk.Cast(_read_nifti(path), sitk.sitkUInt32), "LPS")
    corner = np.array(scan.TransformIndexToPhysicalPoint([side - 1 for side in scan.GetSize()]))
    same = image.GetSize() == scan.GetSize()
    if same:
        ends = np.array(image.TransformIndexToPhysicalPoint([side - 1 for side in image.GetSize()]))
        off = max(np.abs(np.array(image.GetOrigin()) - scan.GetOrigin()).max(), np.abs(ends - corner).max())
        same = off <= _GRID_TOLERANCE_MM
    if not same:
        raise DataError(
            f"{path.name}: not on the scan's grid: {image.GetSize()} voxels, the scan has {scan.GetSize()}, or elsewhere"
        )
    image.CopyInformation(scan)
    return image


def _read_nifti(path: Path) -> sitk.Image:
    """A 3D image of float32."""
    import SimpleITK as sitk

    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError(f"{path.name}: expected a NIfTI file, .nii or .nii.gz")
    held = _bytes_held(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        if components != 1 or len(size) < 3 or any(side != 1 for side in size[3:]):
            kind = f"{' x '.join(map(str, size))} voxels" + (f" of {components} values" if components != 1 else "")
            raise DataError(f"{path.name}: expected one 3D image; found {kind}")
        needed = float(reader.GetMetaData("vox_offset")) + float(np.prod(size)) * int(reader.GetMetaData("bitpix")) / 8
        if held < needed:
            raise DataError(f"{path.name}: cut off; {held} of {needed:.0f} bytes are there")
        if reader.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64):
            _check_finite(path)
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path.name}: not a readable NIfTI image ({_reason(error)})") from error
    while image.GetDimension() > 3:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    return image


def _check_finite(path: Path) -> None:
    """ITK's reader turns what is not finite into 0, and says nothing; nibabel's does not."""
    import nibabel as nib

    values = np.asanyarray(nib.load(path).dataobj)
    wrong = values.size - int(np.isfinite(values).sum())
    if wrong:
        raise DataError(f"{path.name}: {wrong} of {values.size} values are not finite")


def _bytes_held(path: Path) -> int:
    """Length of a file's content, compressed or not: NIfTI readers may take a truncated image for a dark one."""
    try:
        if not path.name.lower().endswith(".gz"):
            return path.stat().st_size
        length = 0
        with gzip.open(path) as file:
            while part := file.read(_CHUNK):
                length += len(part)
    except EOFError as error:
        raise DataError(f"{path.name}: the compressed file is cut off") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path.name}: not a readable file ({getattr(error, 'strerror', None) or error})") from error
    return length


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's message, without its place in the sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error)).split("ERROR:")[-1].strip()
