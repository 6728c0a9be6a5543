"""One slice of a generated brain: only the patches that it goes through are made, so that a slider can follow a hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config.attributes import POSITION_COLUMN
from normscape.datasets import slices
from normscape.explore.trained import Trained
from normscape.inversion.brains import generate_brain
from normscape.inversion.volumes import patch_grid

PLANES = ("axial", "coronal", "sagittal")
_AXES = {"axial": slices.AXIAL, "coronal": slices.CORONAL, "sagittal": slices.SAGITTAL}
PLACE_MM = {"axial": 4.0, "coronal": -8.0, "sagittal": 8.0}
"""Where the slices lie, from the middle of the brain's bounding box (z, y, x): through the lateral ventricles."""
_STEPS_A_SIDE = 2
"""Patches begin every half of their side."""


@dataclass(frozen=True)
class Slab:
    """The patches of one layer in each plane.

    Attributes:
        trained: the system.
        mask: uint8 (Z, Y, X), the atlas's brain.
        centres: plane to (P, 3) voxels z, y, x of its patches.
        positions: plane to their positions (P, 3) in millimetres.
        voxel: (z, y, x) that all slices go through.
    """

    trained: Trained
    mask: NDArray[np.uint8]
    centres: dict[str, NDArray[np.int64]]
    positions: dict[str, Tensor]
    voxel: tuple[int, int, int]

    @staticmethod
    def of(trained: Trained) -> Slab | None:
        """Of an experiment whose patches know where in a brain they lie; None for all others."""
        config, model = trained.config, trained.scan_model
        known = [a for a in config.value_attributes if a.column == POSITION_COLUMN]
        if model is None or not known:
            return None
        mask, side = model.grid.mask, config.image_size
        most = config.brains.max_background if config.brains.max_background is not None else config.data.max_background
        grid = patch_grid(mask, side, max(1, side // _STEPS_A_SIDE), most)
        if not len(grid):
            return None
        found = np.argwhere(mask)
        middle = (found.min(0) + found.max(0)) / 2
        offset = np.array([PLACE_MM[plane] for plane in PLANES]) / model.grid.spacing_mm
        voxel = [int(v) for v in (middle + offset).round()]
        centres, positions = {}, {}
        for plane, axis in _AXES.items():
            layers = np.unique(grid[:, axis])
            nearest = layers[np.abs(layers - voxel[axis]).argmin()]
            centres[plane] = grid[grid[:, axis] == nearest]
            positions[plane] = patch_positions(centres[plane], side, mask, model.grid.affine)
        return Slab(trained, mask, centres, positions, (voxel[0], voxel[1], voxel[2]))

    def frame(self, z: Tensor, values: dict[str, Tensor], plane: str) -> NDArray[np.uint8]:
        """One slice.

        Args:
            z: latents of the subject, `(W,)`.
            values: attribute to its value `(1, D)`; the position comes from here.
            plane: one of `PLANES`.

        Returns:
            (H, W, 3), the subject's right at the left.
        """
        config, centres = self.trained.config, self.centres[plane]
        given: dict[str, Tensor] = {}
        for a in config.value_attributes:
            given[a.name] = self.positions[plane] if a.column == POSITION_COLUMN else values[a.name].expand(len(centres), -1)
        shape: Any = self.mask.shape
        made = generate_brain(
            self.trained.generator, self.trained.controllers, z, given, centres, shape,
            truncation=config.brains.truncation, batch_size=config.brains.batch_size,
        )  # fmt: skip
        inside = (self.mask > 0) & made.covered.numpy()
        grey = slices.to_grey(np.where(inside, made.result().numpy(), 0), inside)
        cut = slices.panel(grey, self.voxel, slices.brain_box(self.mask), (_AXES[plane],))
        return np.repeat(np.asarray(cut, np.uint8)[..., None], 3, axis=-1)


def patch_positions(centres: NDArray[np.int64], side: int, frame_mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> Tensor:
    """Where patches lie, as `normscape.datasets.patches.PatchSource.values` says it.

    Args:
        centres: (P, 3) voxels z, y, x.
        side: of a patch, in voxels.
        frame_mask: from the middle of whose bounding box positions count.
        affine: (4, 4), index (z, y, x, 1) to RAS millimetres.

    Returns:
        `(P, 3)` millimetres, x, y, z.
    """
    found = np.argwhere(frame_mask)
    middle = (found.min(0) + found.max(0)) / 2
    place = centres - (side // 2 - (side - 1) / 2) - middle
    return torch.from_numpy((place @ affine[:3, :3].T).astype(np.float32))
