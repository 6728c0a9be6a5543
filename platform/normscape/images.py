"""Small helpers to lay images out and write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, *, columns: int, gap: int = 1) -> Tensor:
    """Lay out uint8 images `(N, C, H, W)` in rows, on white; volumes `(N, C, D, H, W)` show their middle slice, the subject's
    right at the left and the front up.

    Returns:
        `(C, H', W')` uint8.
    """
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2].flip(-2, -1)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_png(image: Tensor, path: Path, *, scale: int = 3) -> None:
    """Write a uint8 image `(C, H, W)`, C of 1 or 3, enlarged by a whole factor."""
    array = image.permute(1, 2, 0).numpy()
    array = np.repeat(np.repeat(array, scale, axis=0), scale, axis=1)
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path)
