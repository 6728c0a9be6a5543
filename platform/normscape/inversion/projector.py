"""Projection: the whitened style that rebuilds an image, its known conditions held fixed (thesis II.B.1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normscape.config import Config
from normscape.inversion.descent import Coordinates, Goal, descend
from normscape.inversion.normals import ATLAS, CONDITIONS, ENCODED, TEXTURE, Normals
from normscape.inversion.style_space import StyleSpace
from normscape.losses.masked import as_mask, local_means, neighbourhoods, resampled, weighted_mean, within, worst, worst_share
from normscape.losses.reconstruction import Features, feature_distances, feature_residuals, pixel_residual
from normscape.losses.similarity import structural_similarity
from normscape.networks.auxiliary import AuxiliaryNetwork, output_distance
from normscape.networks.controller import Controller, EncodedController
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator
from normscape.networks.values import denormalize_value


@dataclass(frozen=True)
class Projection:
    """The result for a batch of B images.

    Attributes:
        coordinates: free sub-space to whitened coordinates `(B, R, d)`, one vector a resolution.
        images: reconstructions `(B, C, *S)`.
        residuals: name to one value a sample `(B,)`.
        steps: that each sample took, int64 `(B,)`; less than asked for where it stopped improving.
    """

    coordinates: Coordinates
    images: Tensor
    residuals: dict[str, Tensor]
    steps: Tensor

    def lengths(self) -> dict[str, Tensor]:
        """r^k: free sub-space to the lengths `(B, R)` of its whitened coordinates."""
        return {name: u.norm(dim=2) for name, u in self.coordinates.items()}


class Projector:
    """Projects batches of images; a sample's result does not depend on the rest of its batch.

    Where a mask says what counts, the background, which nothing can rebuild, is taken from the image: reconstruction loss and
    residuals see the reconstruction of the brain before the image's own background.

    Args:
        config: the experiment.
        generator: the averaged generator, frozen.
        controllers: value attributes to their frozen controllers; their sub-spaces are encoded, not optimised.
        space: whitened style space.
        features: feature network of the perceptual loss.
        auxiliaries: attribute name to frozen network; their outputs are compared too.
        discriminator: frozen; its feature maps are compared too.
        encoder: frozen; gives the start when the configuration says so, and the styles of known conditions.
        normals: usual residuals at each place, where places are known; residuals are then compared with them, too.
    """

    def __init__(
        self,
        config: Config,
        generator: Generator,
        controllers: Mapping[str, Controller],
        space: StyleSpace,
        features: Features,
        *,
        auxiliaries: Mapping[str, AuxiliaryNetwork] | None = None,
        discriminator: Discriminator | None = None,
        encoder: Encoder | None = None,
        normals: Normals | None = None,
    ) -> None:
        self.settings = config.projection
        self.generator, self.controllers, self.features = generator, controllers, features
        self.auxiliaries, self.discriminator, self.encoder = auxiliaries or {}, discriminator, encoder
        if self.settings.start == "encoder" and encoder is None:
            raise ValueError("projection.start is encoder, and there is no encoder")
        self.device = generator.constant.device
        self.normals = None if normals is None else normals.to(self.device)
        self.place = None if config.position is None else config.position.name
        self.space = {name: part.to(self.device) for name, part in space.items()}
        self.free = tuple(name for name in generator.subspaces if name not in controllers)
        self.conditions = dict(controllers)
        if config.controllers.conditions == "encoder" and encoder is not None:
            self.conditions = {a.name: EncodedController.of(a, config, encoder, generator) for a in config.value_attributes}
        self.radii = {name: self.settings.radius or self.space[name].radius(self.settings.radius_quantile) for name in self.free}

    def changed(self, **settings: Any) -> Projector:
        """The same networks under other settings of the optimisation: `start`, `steps`, and what else is read while it runs."""
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update=settings)
        return other

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Known conditions `(B, D)` in their units to style sub-vectors `(B, d)`."""
        with torch.no_grad():
            return {name: controller(values[name].to(self.device)) for name, controller in self.conditions.items()}

    def styles(self, coordinates: Mapping[str, Tensor], encoded: Mapping[str, Tensor]) -> Tensor:
        """Assemble `(B, R, W)` styles from whitened coordinates `(B, R, d)` and encoded conditions `(B, d)`."""
        layers = len(self.generator.resolutions)
        parts = []
        for name in self.generator.subspaces:
            if name in coordinates:
                parts.append(self.space[name].restore(coordinates[name]))
            else:
                parts.append(encoded[name][:, None].expand(-1, layers, -1))
        return torch.cat(parts, dim=2)

    def length_penalty(self, coordinates: Mapping[str, Tensor]) -> Tensor:
        """L_r = sum over free sub-spaces and resolutions of max(0, r - radius), `(B,)`."""
        over = [(self._length(u) - self.radii[name]).clamp(min=0).sum(1) for name, u in coordinates.items()]
        return torch.stack(over).sum(0)

    @staticmethod
    def _length(u: Tensor) -> Tensor:
        return (u.square().sum(2) + 1e-12).sqrt()

    @property
    def unoptimised(self) -> tuple[str, ...]:
        """Kinds of reconstruction that need no optimisation."""
        return (ATLAS, CONDITIONS) if self.encoder is None else (ATLAS, CONDITIONS, ENCODED)

    @torch.no_grad()
    def rebuilt_at_start(self, kind: str, images: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Reconstructions `(B, C, *S)` without optimisation, see `normscape.inversion.normals`."""
        images = images.to(self.device)
        if kind == ATLAS:
            return torch.zeros_like(images)
        if kind == ENCODED and self.encoder is not None:
            latents = self.encoder(images, {name: value.to(self.device) for name, value in values.items()})
        else:
            latents = torch.zeros(len(images), sum(self.generator.subspaces.values()), device=self.device)
        styles = self.generator.mapping(latents)
        for name, style in self.encode(values).items():
            styles[:, self.generator.subspace_slice(name)] = style
        return self.generator.synthesize(styles)

    def excess(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Tensor | None:
        """By how much each voxel leaves what is usual under its conditions at its place, `(B, 1, *S)`, see `Normals.excess_map`.

        None where that is not known. Nothing is optimised.
        """
        if self.normals is None:
            return None
        images, mask = images.to(self.device), as_mask(masks, self.device)
        left = images - self.rebuilt_at_start(CONDITIONS, images, values)
        return self.normals.excess_map(CONDITIONS, left, self._positions(values, len(images)), mask)

    def gradient(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Tensor | None:
        """Where a change of an image would change most how unusual its style is, `(B, 1, *S)`, 0 outside the mask.

        The gradient of the squared whitened length of the encoder's answer, as of a variational autoencoder's divergence from
        its prior (Zimmerer et al. 2019): absolute, its mean over 3 voxels a side. No sample's length depends on another's, so
        that one backward pass serves the batch. None without an encoder.
        """
        if self.encoder is None:
            return None
        mask = as_mask(masks, self.device)
        known = {name: value.to(self.device) for name, value in values.items()}
        with torch.enable_grad():
            seen = images.detach().to(self.device).requires_grad_()
            styles = self.generator.mapping(self.encoder(seen, known))
            parts = [self.space[name].whiten(styles[:, self.generator.subspace_slice(name)]) for name in self.free]
            (slope,) = torch.autograd.grad(torch.cat(parts, dim=1).square().sum(), seen)
        near = local_means(slope.abs().mean(1, keepdim=True), 3, mask)[0]
        return near if mask is None else near * mask

    def _positions(self, values: Mapping[str, Tensor], count: int) -> Tensor:
        """Where images lie, `(B, 3)`, in the frame of the usual residuals; whole scans all lie at 0."""
        return torch.zeros(count, 3) if self.place is None else values[self.place]

    @torch.no_grad()
    def start(self, images: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whitened coordinates `(B, R, d)` to begin with: the mean style, or the encoder's answer at every resolution."""
        layers = len(self.generator.resolutions)
        if self.settings.start == "mean" or self.encoder is None:
            widths = self.generator.subspaces
            return {name: torch.zeros(len(images), layers, widths[name], device=self.device) for name in self.free}
        styles = self.generator.mapping(self.encoder(images, {name: value.to(self.device) for name, value in values.items()}))
        parts = {name: self.space[name].whiten(styles[:, self.generator.subspace_slice(name)]) for name in self.free}
        return {name: u[:, None].repeat(1, layers, 1) for name, u in parts.items()}

    def project(
        self,
        images: Tensor,
        values: Mapping[str, Tensor],
        masks: Tensor | None = None,
        *,
        start: Mapping[str, Tensor] | None = None,
    ) -> Projection:
        """Optimise the whitened coordinates of identity and `other`, one vector a resolution.

        Args:
            images: `(B, C, *S)` in [-1, 1].
            values: value attribute to known conditions `(B, D)` in the attribute's unit.
            masks: what counts, boolean or in [0, 1], `(B, 1, *S)`; everything when empty.
            start: coordinates `(B, R, d)` to begin with; those of `start` when empty.

        Returns:
            The projection; its images keep the background that the generator gave them.
        """
        goal = self.goal(images, values, masks)
        coordinates, steps = self.optimise(goal, start)
        with torch.no_grad():
            rebuilt = self.generator.synthesize(self.styles(coordinates, goal.encoded))
            residuals = self.residuals(goal.images, rebuilt, goal.target, values, goal.mask)
        return Projection(coordinates, rebuilt, residuals, steps)

    @torch.no_grad()
    def goal(self, images: Tensor, values: Mapping[str, Tensor], masks: Tensor | None = None) -> Goal:
        """What the optimisation works towards; arguments as of `project`."""
        images, mask = images.to(self.device), as_mask(masks, self.device)
        values = {name: value.to(self.device) for name, value in values.items()}
        return Goal(images, values, self.encode(values), self.features(images), mask)

    def optimise(self, goal: Goal, start: Mapping[str, Tensor] | None = None) -> tuple[Coordinates, Tensor]:
        """Coordinates `(B, R, d)` and the steps that each sample took, `(B,)`; the search alone, no residuals."""
        begin = self.start(goal.images, goal.values) if start is None else start
        return descend(begin, goal, self._objective, self.settings)

    def _objective(self, coordinates: Coordinates, goal: Goal) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and weighted length penalty, `(B,)` each."""
        rebuilt = self.generator.synthesize(self.styles(coordinates, goal.encoded))
        loss = self.reconstruction_loss(within(rebuilt, goal.images, goal.mask), goal.images, goal.target, goal.mask)
        return loss, self.settings.radius_weight * self.length_penalty(coordinates)

    def reconstruction_loss(self, rebuilt: Tensor, images: Tensor, target: list[Tensor], mask: Tensor | None) -> Tensor:
        """Pixel-wise and perceptual part, `(B,)`; in 3D the thesis takes L2 and the negative SSIM (II.B.1).

        Args:
            rebuilt: reconstructions `(B, C, *S)`, with the images' own background.
            images: `(B, C, *S)`.
            target: feature maps of the images.
            mask: boolean `(B, 1, *S)`.
        """
        settings = self.settings
        loss = settings.pixel_weight * pixel_residual(rebuilt, images, settings.pixel_loss, mask)
        if settings.perceptual_weight == 0:
            return loss
        if settings.perceptual == "ssim":
            perceptual = 1 - structural_similarity(rebuilt, images, mask)
        else:
            perceptual = torch.stack(feature_residuals(self.features(rebuilt), target, mask)).sum(0)
        return loss + settings.perceptual_weight * perceptual

    def residuals(
        self,
        images: Tensor,
        rebuilt: Tensor,
        target: list[Tensor],
        values: Mapping[str, Tensor],
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the reconstruction misses, one value a sample.

        - `l1`, `l2`: mean absolute and squared difference; `top1`: mean of the worst 1 % of the places; `local`: the worst
          neighbourhood of an eighth of the side.
        - `patch8`, `patch5`, `patch4`: the worst neighbourhood of an eighth, a fifth and a quarter of the side, where differences
          of opposite sign cancel: a shifted edge leaves little, a foreign patch all of it.
        - `flat8`, `flat5`, `flat4`: the same, less where the image itself varies within the neighbourhood (by
          `losses.masked.QUIET`): at edges and in textures reconstructions go astray, whatever the health.
        - `peak8`: `patch8` against the mean over all neighbourhoods: how local the difference is, whatever its size.
        - `atlas_z...`, `conditions_z...`, `encoded_z...`: of the reconstructions that need no optimisation, against what is usual
          for normal patches at the same place, see `normscape.inversion.normals`; where places are known. `texture_...`: of
          the image itself, likewise.
        - `ssim`: 1 - SSIM; in 3D, and where it is the loss.
        - `feature<i>`: of the perceptual features; `discriminator<i>`: of the discriminator's, from fine to coarse: the mean over
          the places, and at the worst place (`..._worst`).
        - `output_<attribute>`: distance of the auxiliary outputs, in [0, 1].
        - `condition_<attribute>`: what the auxiliary network reads from the image against the known value, in units of the range;
          the mean over the components of a vector.

        Under a mask, means weight each place, neighbourhood or window by the share of the mask in it, and the worst is sought
        where that is above one half. Every residual of the image is 0 where the mask is empty.

        Args:
            images: `(B, C, *S)`.
            rebuilt: the reconstructions.
            target: feature maps of the images.
            values: value attribute to known conditions `(B, D)`.
            mask: what counts, boolean `(B, 1, *S)`; everything when empty.
        """
        rebuilt = within(rebuilt, images, mask)
        signed = images - rebuilt
        difference = signed.abs().mean(1, keepdim=True)
        eighth, fifth, quarter = (max(2, images.shape[-1] // part) for part in (8, 5, 4))
        inside = None if mask is None else mask.flatten(1)
        patch8, share8 = neighbourhoods(signed, eighth, mask)
        peak8 = worst(patch8, share8)
        result = {
            "l1": weighted_mean(difference.flatten(1), inside),
            "l2": pixel_residual(images, rebuilt, "l2", mask),
            "top1": worst_share(difference.flatten(1), inside, 1),
            "local": worst(*neighbourhoods(difference, eighth, mask)),
            "patch8": peak8,
            "patch5": worst(*neighbourhoods(signed, fifth, mask)),
            "patch4": worst(*neighbourhoods(signed, quarter, mask)),
            "peak8": peak8 / (weighted_mean(patch8, share8) + 1e-6),
        }
        for part, side in ((8, eighth), (5, fifth), (4, quarter)):
            result[f"flat{part}"] = worst(*neighbourhoods(signed, side, mask, texture=images))
        if images.ndim == 5 or self.settings.perceptual == "ssim":
            result["ssim"] = 1 - structural_similarity(rebuilt, images, mask)
        if self.normals is not None:
            position = self._positions(values, len(images))
            for kind in self.unoptimised:
                left = images - within(self.rebuilt_at_start(kind, images, values), images, mask)
                found = self.normals.excess(kind, left, images, position, mask)
                result |= {f"{kind}_{name}": value for name, value in found.items()}
            rough = self.normals.texture(images, position, mask)
            result |= {f"{TEXTURE}_{name}": value for name, value in rough.items()}
        maps = {"feature": (self.features(rebuilt), target)}
        if self.discriminator is not None:
            maps["discriminator"] = (self.discriminator.features(rebuilt), self.discriminator.features(images))
        for kind, (seen, wanted) in maps.items():
            for i, (layer, distance) in enumerate(zip(seen, feature_distances(seen, wanted), strict=True)):
                share = resampled(mask, layer.shape[2:])
                result |= {f"{kind}{i}": weighted_mean(distance, share), f"{kind}{i}_worst": worst(distance, share)}
        for name, network in self.auxiliaries.items():
            read = network(images)
            result[f"output_{name}"] = output_distance(network.attribute, read, network(rebuilt))
            if name in values:
                attribute = network.attribute
                error = (denormalize_value(attribute, read) - values[name].to(self.device)).abs().mean(1)
                result[f"condition_{name}"] = error / (attribute.value_max - attribute.value_min)
        return {f"residual_{name}": value for name, value in result.items()}
