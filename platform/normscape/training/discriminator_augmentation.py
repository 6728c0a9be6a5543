"""Random changes of what the discriminator sees (Karras et al. 2020, "Training GANs with limited data"; beyond the thesis).

A discriminator that knows its few real images by heart has nothing left to tell the generator. Here real and generated images
are changed alike before D sees them, in all its phases. As long as each change is left out often enough, what D sees of G can
match what it sees of real images only if G's unchanged images do. How often changes are made is set by hand, or follows how
sure D is of real images:

    r = E[sign D(real)],    p <- p + sign(r - target) * images / images_to_full,    0 <= p <= 1.

Every change is affine in the image, with coefficients that depend on random numbers alone, so that derivatives of any order pass:
R1 takes them with respect to the unchanged image. D knows neither places nor masks: a patch is judged whole, background
included, and a shifted patch is one from beside, so nothing else has to move along.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.config import Config
from normscape.networks.layers import full_precision, spatial


class DiscriminatorAugmentation:
    """The changes, and their probability.

    Nothing here waits for the device: probability and signs stay tensors on it.

    Args:
        config: the experiment.
        device: where to train.

    Attributes:
        probability: `()`, of each change of an image.
        signs: `()`, sum of the signs of D's logits of real images since the probability was last changed.
        overfitting: `()`, their mean over the last whole interval, r.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.settings = settings = config.gan.augmentation
        self.images = config.gan.batch_size * settings.interval  # of one interval
        dims = config.dims
        self.mirrored = tuple(dims - 1 - "xyz".index(name) for name in settings.flip_axes)  # array axes are z, y, x
        self.reach = round(settings.translation_fraction * config.image_size)
        # of each image: a number for each mirror; for each other change one that decides, and those that say how far it goes
        self.widths = (dims, 1 + dims, 1 + 1, 1 + math.comb(dims, 2), 1 + 1, 1 + 1)
        self.probability = torch.tensor(settings.probability, device=device)
        self.signs, self.overfitting = torch.zeros((), device=device), torch.zeros((), device=device)

    def measured(self) -> dict[str, Tensor]:
        """What is worth watching, by name."""
        return {"augmentation/probability": self.probability, "augmentation/overfitting": self.overfitting}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name."""
        return {**self.measured(), "augmentation/signs": self.signs}

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Random numbers in [0, 1) for so many images, `(count, n)`; an image's changes follow from its row alone."""
        return torch.rand(count, sum(self.widths), generator=random)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Changed images.

        Args:
            images: `(b, C, *S)`.
            numbers: `(b, n)`, rows of what `draw` gave, on the same device.

        Returns:
            `(b, C, *S)`; not clipped: a clipped pixel has no derivative.
        """
        settings, dims = self.settings, images.ndim - 2
        with full_precision(images):
            mirror, *rest = numbers.to(images.dtype).split(self.widths, dim=1)
            shift, size, turn, brightness, contrast = (self._strength(part) for part in rest)
            if self.mirrored or self.reach:
                flip = torch.zeros_like(mirror, dtype=torch.bool)
                for axis in self.mirrored:
                    flip[:, axis] = mirror[:, axis] < self.probability / 2
                images = move(images, (shift * (self.reach + 0.5)).round().long().clamp(-self.reach, self.reach), flip)
            if settings.scale or settings.rotation_degrees:
                factor, angles = (1 + settings.scale) ** size, torch.deg2rad(turn * settings.rotation_degrees)
                touched = (factor != 1) | (angles != 0).any(1, keepdim=True)  # interpolation would round all others
                images = torch.where(spatial(touched, dims), turned(images, factor, angles), images)
            if settings.brightness or settings.contrast:
                factor, offset = (1 + settings.contrast) ** contrast, settings.brightness * brightness
                images = images * spatial(factor, dims) + spatial(offset, dims)
        return images

    def _strength(self, part: Tensor) -> Tensor:
        """Numbers `(b, 1 + k)` to strengths `(b, k)` in [-1, 1) for the share of images that `probability` asks for, else 0."""
        return torch.where(part[:, :1] < self.probability, 2 * part[:, 1:] - 1, 0.0)

    def follow(self, signs: Tensor, steps: int) -> None:
        """Take note of D's logits; change the probability, if it is `adaptive`, at the end of an interval.

        Args:
            signs: `()`, sum of the signs of a step's logits of real images, over all workers: a whole number, exact in any order
                of summation.
            steps: that D has been trained for, this one included.
        """
        self.signs += signs
        if steps % self.settings.interval:
            return
        self.overfitting.copy_(self.signs / self.images)
        self.signs.zero_()
        if self.settings.mode == "adaptive":
            way = (self.overfitting - self.settings.target).sign()
            self.probability.add_(way * (self.images / self.settings.images_to_full)).clamp_(0, 1)


def move(images: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Shift each image by whole pixels, and mirror it; what comes in from beyond an edge is its mirror image.

    Args:
        images: `(b, C, *S)`.
        shift: whole numbers `(b, dims)`, at most a side, along each array axis.
        flip: bool `(b, dims)`.
    """
    for axis in range(images.ndim - 2):  # both are separable: one gather an axis
        side = images.shape[2 + axis]
        place = torch.arange(side, device=images.device) + shift[:, axis, None]  # (b, side): where each pixel comes from
        place = torch.minimum(torch.maximum(place, -1 - place), 2 * side - 1 - place)
        place = torch.where(flip[:, axis, None], side - 1 - place, place)
        shape = [len(images), *(1,) * (images.ndim - 1)]
        shape[2 + axis] = side
        images = images.gather(2 + axis, place.view(shape).expand_as(images))
    return images


def turned(images: Tensor, factor: Tensor, angles: Tensor) -> Tensor:
    """Enlarge and rotate each image about its middle; edges are mirrored, values between pixels interpolated.

    Args:
        images: `(b, C, *S)` with equal sides.
        factor: `(b, 1)`; 2 doubles the size.
        angles: radians `(b, planes)`: one in 2D, in 3D those of the planes xy, xz and yz.
    """
    dims = images.ndim - 2
    matrix = torch.eye(dims, dtype=images.dtype, device=images.device) / factor[:, :, None]
    for (i, j), angle in zip(itertools.combinations(range(dims), 2), angles.unbind(1), strict=True):
        rotation = torch.eye(dims, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1)
        rotation[:, i, i] = rotation[:, j, j] = angle.cos()
        rotation[:, j, i] = angle.sin()
        rotation[:, i, j] = -rotation[:, j, i]
        matrix = matrix @ rotation
    grid = F.affine_grid(F.pad(matrix, (0, 1)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
