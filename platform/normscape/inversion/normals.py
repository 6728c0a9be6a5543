"""What normal images leave unexplained at each place of the atlas, and by how much a new image leaves more.

A residual means little by itself: folded cortex is rebuilt worse than white matter, whatever its health. So the signed
residuals of normal training patches are gathered on the atlas's grid, their mean and standard deviation at each voxel kept, and
the residual of a new patch is divided by them, as in normative modelling (Marquand et al. 2016). Beyond the thesis, whose only
residual is the mean absolute one. Three reconstructions that need no optimisation have statistics:

- `atlas`: nothing, so that the usual residual is the mean image and the excess says how unlike the normal images themselves a
  patch is: a yardstick that needs no generator;
- `conditions`: the generator at the known conditions and at latents of zero for everything else: with `gan.code_dropout` it is
  trained to give the mean of what is normal under these conditions there;
- `encoded`: the generator at the encoder's answer, where there is an encoder.

Whole scans lie upon each other: their place is the same, and is called 0 (`middle_frame`).

An image can have usual intensities in an unusual texture: too smooth for its place, or crossed by an edge that does not belong
there. So the local deviation of normal images has statistics, too (`texture`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normscape.losses.masked import INSIDE, local_deviation, local_means, neighbourhoods, weighted_mean, worst, worst_sides

ATLAS, CONDITIONS, ENCODED = "atlas", "conditions", "encoded"
TEXTURE = "texture"
FRACTIONS = (8, 5, 4, 3)
"""Neighbourhoods have these fractions of a patch's side."""
SIDED = (8, 4)
"""Those of them in which differences below and above the usual are told apart."""
SCALES = (1, 3, 5, 7, 9)
"""Sides, in voxels, of the neighbourhoods that a map of the excess looks at."""
WINDOW = 3
"""Voxels a side in which the local deviation is taken."""
LEAST_DEVIATION = 0.005
"""Added to a local deviation before its logarithm is taken; an image of 8 bits cannot tell less from nothing."""
PSEUDO_PATCHES = 4.0
"""Weight of the mean over all places, in patches: it steadies places that few patches cover."""
LEAST_SHARE = 0.1
"""Least standard deviation at a place, as a share of the one over all places."""


@dataclass(frozen=True)
class Normals:
    """Usual residuals on the atlas's grid.

    Attributes:
        mean: kind of reconstruction to float32 (Z, Y, X), in units of the images.
        std: likewise.
        frame: float64 (4, 4), index (z, y, x, 1) to the position in millimetres that patches are known by.
        scale: kind to float32 (len(SCALES),): root mean square of the mean z over a neighbourhood of that size in normal
            patches; see `excess_map`.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    frame: Tensor
    scale: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Normals:
        """The same on another device; the frame stays on the CPU."""
        parts = (self.mean, self.std, self.scale)
        mean, std, scale = ({kind: tensor.to(device) for kind, tensor in part.items()} for part in parts)
        return Normals(mean, std, self.frame, scale)

    def to_tensors(self) -> dict[str, Tensor]:
        """For a safetensors file."""
        parts = (("mean", self.mean), ("std", self.std), ("scale", self.scale))
        return {f"{name}/{kind}": tensor for name, part in parts for kind, tensor in part.items()} | {"frame": self.frame}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Normals:
        """Undoes `to_tensors`.

        Raises:
            KeyError: something is missing.
        """
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "std": {}, "scale": {}}
        for name, tensor in tensors.items():
            part, _, kind = name.partition("/")
            if kind:
                parts[part][kind] = tensor
        return cls(parts["mean"], parts["std"], tensors["frame"], parts["scale"])

    def excess(self, kind: str, residual: Tensor, images: Tensor, position: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """By how much residuals exceed the usual ones, one value a sample `(B,)`.

        - `z`: mean absolute difference from the usual residual, in standard deviations of it;
        - `z8`, `z5`, `z4`, `z3`: the worst neighbourhood of that fraction of the side, differences of opposite sign cancelling;
        - `z8_flat`, `z5_flat`, `z4_flat`, `z3_flat`: the same, less where the image itself varies within the neighbourhood;
        - `z8_low`, `z8_high`, `z4_low`, `z4_high`: the worst neighbourhood below and above the usual. Normal images leave it by
          more on one side than on the other, so that one number for both hides what is rare on the quiet side.

        Args:
            kind: of reconstruction.
            residual: image less reconstruction `(B, 1, *S)`.
            images: `(B, 1, *S)` in [-1, 1].
            position: of the patches' middles, millimetres `(B, 3)`.
            mask: what counts, boolean `(B, 1, *S)`; everything when empty.
        """
        side = residual.shape[-1]
        z, inside = self._z(kind, residual, position, mask)
        found = {"z": weighted_mean(z.abs().flatten(1), inside.flatten(1))}
        for part in FRACTIONS:
            found[f"z{part}"] = worst(*neighbourhoods(z, max(2, side // part), inside))
            found[f"z{part}_flat"] = worst(*neighbourhoods(z, max(2, side // part), inside, texture=images))
        for part in SIDED:
            found[f"z{part}_low"], found[f"z{part}_high"] = worst_sides(z, max(2, side // part), inside)
        return found

    def texture(self, images: Tensor, position: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """By how much an image is smoother (`low`) or rougher (`high`) than usual at its worst place, one value a sample `(B,)`.

        `low1`, `high1`: at a single voxel, whose window says enough; `low2`, `high2`: the mean over 2x2x2 of them. In standard
        deviations of the logarithm. Nothing where the statistics were gathered without.

        Args:
            images: `(B, 1, *S)` in [-1, 1].
            position: see `excess`.
            mask: see `excess`.
        """
        if TEXTURE not in self.mean:
            return {}
        value, counts = log_deviation(images, mask)
        mean, std = self._at(TEXTURE, position, images.shape[-1])
        z = torch.where(counts, (value - mean) / std, 0.0)
        found = {}
        for side in (1, 2):
            found[f"low{side}"], found[f"high{side}"] = worst_sides(z, side, counts)
        return found

    def excess_map(self, kind: str, residual: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """By how much each voxel leaves the usual, in standard deviations: `(B, 1, *S)`, 0 outside the mask; see `excess`.

        The largest over the sizes of `SCALES`: of the mean z over the voxel's neighbourhood, its absolute value divided by what
        is usual for a mean over so many voxels. A small lesion is lost in a wide neighbourhood, and a faint wide one in a single
        voxel.
        """
        z, inside = self._z(kind, residual, position, mask)
        found = torch.zeros_like(z)
        scales = self.scale.get(kind)
        sizes = ((WINDOW, 1.0),) if scales is None else zip(SCALES, scales, strict=True)  # None: a system of an older version
        for side, scale in sizes:
            found = torch.maximum(found, _near(z, side, inside).abs() / scale)
        return found * inside

    def _z(self, kind: str, residual: Tensor, position: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Residuals in standard deviations of the usual ones, 0 outside the mask, and the mask, `(B, 1, *S)` each."""
        mean, std = self._at(kind, position, residual.shape[-1])
        inside = torch.ones_like(residual, dtype=torch.bool) if mask is None else mask
        return torch.where(inside, (residual - mean) / std, 0.0), inside

    def _at(self, kind: str, position: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at the voxels of patches, `(B, 1, *S)` each; beyond the grid those of its border."""
        volume = self.mean[kind]
        corner = corners(position, self.frame, side).to(volume.device)
        steps = torch.arange(side, device=volume.device)
        z, y, x = ((corner[:, axis, None] + steps).clamp(0, volume.shape[axis] - 1) for axis in range(3))
        at = (z[:, :, None, None], y[:, None, :, None], x[:, None, None, :])
        return volume[at].unsqueeze(1), self.std[kind][at].unsqueeze(1)


def log_deviation(images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithm of the standard deviation in the window around every voxel, and where it counts.

    Args:
        images: `(B, 1, *S)` in [-1, 1].
        mask: `(B, 1, *S)`; everything counts when empty.

    Returns:
        Values `(B, 1, *S)`, and bool `(B, 1, *S)`: voxels under the mask more than half of whose window is so, too.
    """
    deviation, share = local_deviation(images, WINDOW, mask)
    counts = share > INSIDE
    return (deviation + LEAST_DEVIATION).log(), counts if mask is None else counts & mask


def middle_frame(side: int) -> NDArray[np.float64]:
    """Frame (4, 4) of images that all lie at the same place: from index (z, y, x, 1) to voxels from their middle."""
    frame = np.eye(4)
    frame[:3, 3] = -(side - 1) / 2
    return frame


def corners(position: Tensor, frame: Tensor, side: int) -> Tensor:
    """First voxels z, y, x of patches, int64 `(B, 3)`, from the positions of their middles, millimetres `(B, 3)`."""
    inverse = torch.linalg.inv(frame)
    index = position.cpu().double() @ inverse[:3, :3].T + inverse[:3, 3]
    return (index - (side - 1) / 2).round().long()


class NormalsBuilder:
    """Gathers the residuals of normal patches.

    Args:
        shape: (Z, Y, X) of the atlas.
        frame: see `Normals`.
    """

    def __init__(self, shape: tuple[int, int, int], frame: NDArray[np.float64]) -> None:
        self.shape, self.frame = shape, torch.from_numpy(frame)
        self._sums: dict[str, Tensor] = {}

    def add(self, kind: str, residual: Tensor, position: Tensor, mask: Tensor | None) -> None:
        """Residuals `(B, 1, *S)` of normal patches, the positions of their middles `(B, 3)` and their masks `(B, 1, *S)`."""
        side = residual.shape[-1]
        corner = corners(position, self.frame, side)
        axes = [corner[:, axis, None] + torch.arange(side) for axis in range(3)]
        inside = [(index >= 0) & (index < length) for index, length in zip(axes, self.shape, strict=True)]
        z, y, x = (index.clamp(0, length - 1) for index, length in zip(axes, self.shape, strict=True))
        place = ((z * self.shape[1])[:, :, None, None] + y[:, None, :, None]) * self.shape[2] + x[:, None, None, :]
        there = inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]
        weight = (there if mask is None else there & mask.cpu()[:, 0]).double().flatten()
        value = residual.detach().cpu().double().flatten()
        sums = self._sums.setdefault(kind, torch.zeros(3, int(np.prod(self.shape)), dtype=torch.float64))
        for row, part in zip(sums, (weight, weight * value, weight * value.square()), strict=True):
            row.index_add_(0, place.flatten(), part)

    def build(self, smoothing_voxels: float) -> Normals:
        """Mean and standard deviation at each voxel, from its surroundings.

        Args:
            smoothing_voxels: standard deviation of the Gaussian that pools neighbouring voxels.

        Raises:
            ValueError: no patch was added.
        """
        if not self._sums:
            raise ValueError("no normal patch to learn from")
        mean: dict[str, Tensor] = {}
        std: dict[str, Tensor] = {}
        for kind, sums in self._sums.items():
            total = sums.sum(1)
            overall_mean = total[1] / total[0]
            overall_variance = total[2] / total[0] - overall_mean.square()
            count, first, second = (
                torch.from_numpy(ndimage.gaussian_filter(row.view(self.shape).numpy(), smoothing_voxels)) for row in sums
            )
            count = count + PSEUDO_PATCHES
            centre = (first + PSEUDO_PATCHES * overall_mean) / count
            second = (second + PSEUDO_PATCHES * (overall_variance + overall_mean.square())) / count
            variance = (second - centre.square()).clamp(min=LEAST_SHARE**2 * float(overall_variance))
            mean[kind], std[kind] = centre.float(), variance.sqrt().float()
        return Normals(mean, std, self.frame)


def _near(z: Tensor, side: int, inside: Tensor) -> Tensor:
    """Mean over each voxel's neighbourhood, `(B, 1, *S)`, at most as wide as the patch."""
    length = z.shape[-1]
    return local_means(z, min(side, length - 1 + length % 2), inside)[0]


class ScaleBuilder:
    """Gathers how far means over neighbourhoods leave the usual in normal patches, once it is known what is usual.

    Args:
        normals: what is usual, without scales.
    """

    def __init__(self, normals: Normals) -> None:
        self.normals = normals
        self._sums: dict[str, Tensor] = {}

    def add(self, kind: str, residual: Tensor, position: Tensor, mask: Tensor | None) -> None:
        """See `NormalsBuilder.add`."""
        z, inside = self.normals._z(kind, residual, position, mask)
        sums = self._sums.setdefault(kind, torch.zeros(2, len(SCALES), dtype=torch.float64))
        for place, side in enumerate(SCALES):
            near = _near(z, side, inside)
            sums[0, place] += float(inside.sum())
            sums[1, place] += float((near.double().square() * inside).sum())

    def build(self) -> Normals:
        """With scales."""
        scale = {kind: (sums[1] / sums[0]).sqrt().clamp(min=1e-6).float() for kind, sums in self._sums.items()}
        return replace(self.normals, scale=scale)
