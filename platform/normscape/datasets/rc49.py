"""Reader of the RC-49 data set (Ding et al., CcGAN, 2021; thesis III.A.1): an HDF5 file of rendered chairs.

Keys: `images` (N, 3, H, W) integers 0..255; `labels` (N,) rotation angle in degrees, 0.0 to 359.9 in steps of 0.1; `types` (N,)
number of the chair, 0 to 48; `indx_train` (M,) rows of the CcGAN authors' own split by angle, which is not used: we split by
chair type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscape.errors import DataError

EXPECTED = "an RC-49 HDF5 file with images (N, 3, H, W) of 0..255, labels (N,) in degrees, types (N,) and indx_train (M,)"
TOLERANCE_DEGREES = 1e-3
"""Labels are stored in single precision: 89.9 reads as 89.90000153."""
BLOCK = 2048
"""Images read at once."""


def read_rc49(
    path: Path, *, image_size: int, angle_min: float, angle_max: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    """Read the images whose angle lies in [angle_min, angle_max].

    Args:
        path: the HDF5 file.
        image_size: side S; larger images are averaged over squares, so their side must be a multiple of it.
        angle_min: smallest angle in degrees, included.
        angle_max: largest angle in degrees, included.

    Returns:
        images uint8 (N, 3, S, S), types int64 (N,), angles float64 (N,) in degrees; sorted by type, then angle.

    Raises:
        DataError: the file is absent, not HDF5 or truncated, lacks a key, or holds other shapes, types or values than RC-49.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {EXPECTED}")
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file, image_size, angle_min, angle_max)
    except (OSError, RuntimeError) as error:  # h5py raises either for damaged files
        raise DataError(
            f"{path}: cannot be read as HDF5, it may be truncated or of another format ({error}); expected {EXPECTED}"
        ) from error


def _read(
    path: Path, file: Any, image_size: int, angle_min: float, angle_max: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    images = _dataset(path, file, "images", ndim=4)
    labels = _column(path, file, "labels", len(images))
    types = _column(path, file, "types", len(images))
    _column(path, file, "indx_train", None)
    _check_images(path, images, image_size)
    if labels.min() < -TOLERANCE_DEGREES or labels.max() > 360.0 + TOLERANCE_DEGREES:
        raise DataError(f"{path}: labels: expected degrees from 0 to 360, found {labels.min():g} to {labels.max():g}")
    odd = types[(types != np.rint(types)) | (types < 0)]
    if len(odd):
        raise DataError(f"{path}: types: expected whole numbers from 0, found {odd[0]:g}")
    rows = np.flatnonzero((labels >= angle_min - TOLERANCE_DEGREES) & (labels <= angle_max + TOLERANCE_DEGREES))
    if not len(rows):
        raise DataError(
            f"{path}: labels: none in [{angle_min:g}, {angle_max:g}] degrees, found {labels.min():g} to {labels.max():g}"
        )
    pictures = np.empty((len(rows), 3, image_size, image_size), dtype=np.uint8)
    # Whole blocks, then the rows wanted of them: picking single rows of an HDF5 dataset is slow.
    for block in range(0, len(images), BLOCK):
        first, last = np.searchsorted(rows, (block, block + BLOCK))
        if first < last:
            pictures[first:last] = _to_size(path, images[block : block + BLOCK][rows[first:last] - block], image_size)
    order = np.lexsort((labels[rows], types[rows]))
    return pictures[order], types[rows][order].astype(np.int64), labels[rows][order]


def _dataset(path: Path, file: Any, key: str, *, ndim: int) -> Any:
    """The HDF5 dataset `key`, checked to be numbers of `ndim` dimensions."""
    import h5py

    if key not in file or not isinstance(file[key], h5py.Dataset):
        raise DataError(f"{path}: no dataset {key!r}, found {', '.join(sorted(file)) or 'nothing'}; expected {EXPECTED}")
    dataset = file[key]
    if dataset.dtype.kind not in "uif":
        raise DataError(f"{path}: {key}: expected numbers, found dtype {dataset.dtype}")
    if dataset.ndim != ndim:
        raise DataError(f"{path}: {key}: expected {ndim} dimension{'s' * (ndim > 1)}, found shape {dataset.shape}")
    return dataset


def _column(path: Path, file: Any, key: str, length: int | None) -> NDArray[np.float64]:
    """A column of finite numbers, as long as the images (when `length` is given)."""
    dataset = _dataset(path, file, key, ndim=1)
    if length is not None and len(dataset) != length:
        raise DataError(f"{path}: {key}: expected {length} entries, as many as images, found {len(dataset)}")
    values = np.asarray(dataset[()], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(f"{path}: {key}: expected finite numbers, found {values[bad[0]]} in row {bad[0]} ({len(bad)} such)")
    return values


def _check_images(path: Path, images: Any, image_size: int) -> None:
    count, channels, height, width = images.shape
    if count == 0 or channels != 3 or height != width:
        raise DataError(f"{path}: images: expected shape (N, 3, H, H), found {images.shape}")
    if height % image_size:
        raise DataError(
            f"{path}: images: expected a side that is a multiple of image_size {image_size}, found {height} x {width}"
        )


def _to_size(path: Path, block: NDArray[Any], image_size: int) -> NDArray[np.uint8]:
    """(B, 3, H, H) checked to be 0..255, averaged over squares to (B, 3, S, S)."""
    if block.dtype != np.uint8:
        low, high = block.min(), block.max()  # NaN if one is
        if not (low >= 0 and high <= 255):
            raise DataError(f"{path}: images: expected values from 0 to 255, found {low:g} to {high:g}")
        if high <= 1.0 and block.dtype.kind == "f" and high > 0:
            raise DataError(
                f"{path}: images: expected values from 0 to 255, found values up to {high:g}; are they scaled to 0..1?"
            )
    factor = block.shape[-1] // image_size
    if factor > 1:
        count = len(block)
        block = block.reshape(count, 3, image_size, factor, image_size, factor).mean(axis=(3, 5), dtype=np.float32)
    return np.rint(block).astype(np.uint8) if block.dtype != np.uint8 else block
