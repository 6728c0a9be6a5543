"""The atlas that all scans are brought to: SRI24, skull-stripped (Rohlfing et al. 2010), or a template of one's own.

Arrays are (Z, Y, X) in RAS orientation: x grows to the subject's right, y to the front, z upwards.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.coarse import block_mean
from normscape.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

LPS = np.diag([-1.0, -1.0, 1.0])
"""RAS to LPS millimetres and back; SimpleITK thinks in LPS, everything else here in RAS."""


@dataclass(frozen=True)
class Atlas:
    """A template on an isotropic grid.

    Attributes:
        name: as tables call it.
        spacing_mm: side of a voxel.
        t1: float32 (Z, Y, X), 0 outside the brain.
        mask: uint8 (Z, Y, X), 1 in the brain.
        origin: RAS millimetres (x, y, z) of the first voxel's centre.
        digest: of what it was made from.
    """

    name: str
    spacing_mm: float
    t1: NDArray[np.float32]
    mask: NDArray[np.uint8]
    origin: NDArray[np.float64]
    digest: str

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): index (z, y, x, 1) to RAS millimetres (x, y, z, 1)."""
        affine = np.zeros((4, 4))
        affine[[0, 1, 2], [2, 1, 0]] = self.spacing_mm
        affine[:3, 3] = self.origin
        affine[3, 3] = 1.0
        return affine

    def image(self, values: NDArray[np.generic]) -> sitk.Image:
        """An array (Z, Y, X) on the atlas's grid as a SimpleITK image."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(values)
        image.SetSpacing([float(self.spacing_mm)] * 3)
        image.SetDirection(LPS.ravel().tolist())
        image.SetOrigin((LPS @ self.origin).tolist())
        return image

    def at(self, spacing_mm: int) -> Atlas:
        """The same atlas on a coarser grid; a new voxel is the mean of a cube of old ones, the mask its majority.

        The grid begins at the same corner. Where its side is no multiple of a cube, it is padded with background.

        Raises:
            DataError: the spacing is no multiple of this atlas's.
        """
        factor = round(spacing_mm / self.spacing_mm)
        if factor < 1 or abs(factor * self.spacing_mm - spacing_mm) > 1e-3:
            raise DataError(f"spacing {spacing_mm} mm is no multiple of the {self.spacing_mm:g} mm of the atlas {self.name}")
        if factor == 1:
            return self
        mask = block_mean(self.mask.astype(np.float32), factor) >= 0.5
        t1 = np.where(mask, block_mean(self.t1, factor), 0).astype(np.float32)
        origin = self.origin + (factor - 1) / 2 * self.spacing_mm
        return Atlas(self.name, float(spacing_mm), t1, mask.astype(np.uint8), origin, self.digest)


def load_atlas(spacing_mm: int = 1, path: Path | None = None) -> Atlas:
    """SRI24, or another template, at a spacing.

    Args:
        spacing_mm: side of a voxel, a multiple of the template's.
        path: a skull-stripped T1 template, NIfTI, with cubic voxels and 0 in the background; SRI24 when empty.

    Raises:
        DataError: the file is no such template.
    """
    return _sri24(spacing_mm) if path is None else _read_template(path).at(spacing_mm)


@functools.lru_cache(maxsize=2)
def _sri24(spacing_mm: int) -> Atlas:
    with resources.as_file(resources.files("normscape.datasets") / "assets" / "sri24_t1.nii.gz") as asset:
        return _read_template(asset, "SRI24").at(spacing_mm)


def _read_template(path: Path, name: str = "") -> Atlas:
    import nibabel as nib

    try:
        image = nib.as_closest_canonical(nib.load(path))
        t1 = np.asarray(image.dataobj, dtype=np.float32).squeeze()
    except Exception as error:  # nibabel raises errors of its own, of zlib and of the system
        raise DataError(f"{path}: not a readable NIfTI template ({error})") from error
    linear = image.affine[:3, :3]
    spacing = float(linear[0, 0])
    if t1.ndim != 3 or not np.allclose(linear, np.eye(3) * spacing, atol=1e-3 * spacing):
        raise DataError(f"{path}: expected a 3D template with cubic voxels along the axes; found {t1.shape}, {linear.tolist()}")
    mask = ndimage.binary_fill_holes(t1 > 0)
    share = float(mask.mean())
    if not np.isfinite(t1).all() or not 0.01 < share < 0.6:
        raise DataError(f"{path}: expected a skull-stripped template, 0 in the background; {share:.0%} of it is brain")
    t1, mask = (np.ascontiguousarray(a.transpose(2, 1, 0)) for a in (np.where(mask, t1, 0), mask))
    digest = hashlib.sha256(t1.tobytes() + np.asarray(image.affine, np.float64).tobytes()).hexdigest()
    return Atlas(name or path.name.split(".")[0], spacing, t1, mask.astype(np.uint8), image.affine[:3, 3].copy(), digest)
