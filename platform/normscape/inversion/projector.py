"""Projection: the whitened style that rebuilds an image, its known conditions held fixed (thesis II.B.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.config import Config
from normscape.inversion.style_space import StyleSpace
from normscape.losses.reconstruction import Features, feature_distances, feature_residuals, per_sample_mean, pixel_residual
from normscape.networks.auxiliary import AuxiliaryNetwork, denormalize_value, output_distance
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator


@dataclass(frozen=True)
class Projection:
    """The result for a batch of B images.

    Attributes:
        coordinates: free sub-space to whitened coordinates `(B, R, d)`, one vector a resolution.
        images: reconstructions `(B, C, *S)`.
        residuals: name to one value a sample `(B,)`.
    """

    coordinates: dict[str, Tensor]
    images: Tensor
    residuals: dict[str, Tensor]

    def lengths(self) -> dict[str, Tensor]:
        """r^k: free sub-space to the lengths `(B, R)` of its whitened coordinates."""
        return {name: u.norm(dim=2) for name, u in self.coordinates.items()}


def learning_rate(step: int, steps: int, peak: float, rampup: float, rampdown: float) -> float:
    """Linear ramp-up, constant, cosine ramp-down (Karras et al. 2020, appendix D)."""
    t = (step + 1) / steps
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t + 1 / steps) / max(rampdown, 1e-9)))
    return peak * down * min(1.0, t / max(rampup, 1e-9))


class Projector:
    """Projects batches of images; a sample's result does not depend on the rest of its batch.

    Args:
        config: the experiment.
        generator: the averaged generator, frozen.
        controllers: value attributes to their frozen controllers; their sub-spaces are encoded, not optimised.
        space: whitened style space.
        features: feature network of the perceptual loss.
        auxiliaries: attribute name to frozen network; their outputs are compared too.
        discriminator: frozen; its feature maps are compared too.
        encoder: frozen; gives the start when the configuration says so.
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
    ) -> None:
        self.settings = config.projection
        self.generator, self.controllers, self.features = generator, controllers, features
        self.auxiliaries, self.discriminator, self.encoder = auxiliaries or {}, discriminator, encoder
        if self.settings.start == "encoder" and encoder is None:
            raise ValueError("projection.start is encoder, and there is no encoder")
        self.device = generator.constant.device
        self.space = {name: part.to(self.device) for name, part in space.items()}
        self.free = tuple(name for name in generator.subspaces if name not in controllers)
        self.radii = {name: self.settings.radius or self.space[name].radius(self.settings.radius_quantile) for name in self.free}

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Known conditions `(B, D)` in their units to style sub-vectors `(B, d)`."""
        with torch.no_grad():
            return {name: controller(values[name].to(self.device)) for name, controller in self.controllers.items()}

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

    def project(self, images: Tensor, values: Mapping[str, Tensor]) -> Projection:
        """Optimise the whitened coordinates of identity and `other`, one vector a resolution.

        Args:
            images: `(B, C, *S)` in [-1, 1].
            values: value attribute to known conditions `(B, D)` in the attribute's unit.

        Returns:
            The projection.
        """
        settings = self.settings
        images = images.to(self.device)
        encoded = self.encode(values)
        coordinates = {name: u.requires_grad_() for name, u in self.start(images, values).items()}
        optimizer = torch.optim.Adam(list(coordinates.values()), lr=settings.learning_rate, betas=(0.9, 0.999), fused=True)
        with torch.no_grad():
            target = self.features(images)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings.steps, settings.learning_rate, settings.rampup, settings.rampdown)
            rebuilt = self.generator.synthesize(self.styles(coordinates, encoded))
            # summing over the batch keeps every sample's gradient its own
            loss = settings.pixel_weight * pixel_residual(rebuilt, images, settings.pixel_loss)
            loss = loss + settings.radius_weight * self.length_penalty(coordinates)
            if settings.perceptual_weight > 0:
                loss = loss + settings.perceptual_weight * torch.stack(feature_residuals(self.features(rebuilt), target)).sum(0)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
        with torch.no_grad():
            result = {name: u.detach() for name, u in coordinates.items()}
            rebuilt = self.generator.synthesize(self.styles(result, encoded))
            return Projection(result, rebuilt, self.residuals(images, rebuilt, target, values))

    def residuals(self, images: Tensor, rebuilt: Tensor, target: list[Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the reconstruction misses, one value a sample.

        - `l1`, `l2`: mean absolute and squared difference; `top1`: mean of the worst 1 % of the places; `local`: the worst
          neighbourhood of an eighth of the side.
        - `patch8`, `patch4`: the worst neighbourhood of an eighth and a quarter of the side, where differences of opposite sign
          cancel: a shifted edge leaves little, a foreign patch all of it.
        - `peak8`: `patch8` against the mean over all neighbourhoods: how local the difference is, whatever its size.
        - `feature<i>`: of the perceptual features; `discriminator<i>`: of the discriminator's, from fine to coarse: the mean over
          the places, and at the worst place (`..._worst`).
        - `output_<attribute>`: distance of the auxiliary outputs, in [0, 1].
        - `condition_<attribute>`: what the auxiliary network reads from the image against the known value, in units of the range.

        Args:
            images: `(B, C, *S)`.
            rebuilt: the reconstructions.
            target: feature maps of the images.
            values: value attribute to known conditions `(B, D)`.
        """
        signed = images - rebuilt
        patch8 = _neighbourhoods(signed, max(2, images.shape[-1] // 8))
        difference = signed.abs().mean(1)
        places = difference.flatten(1)
        side = images.shape[-1]
        result = {
            "l1": per_sample_mean(difference),
            "l2": per_sample_mean(signed.square()),
            "top1": places.topk(max(1, places.shape[1] // 100), dim=1).values.mean(1),
            "local": _neighbourhoods(difference[:, None], max(2, side // 8)).amax(1),
            "patch8": patch8.amax(1),
            "patch4": _neighbourhoods(signed, max(2, side // 4)).amax(1),
            "peak8": patch8.amax(1) / (patch8.mean(1) + 1e-6),
        }
        distances = {"feature": feature_distances(self.features(rebuilt), target)}
        if self.discriminator is not None:
            distances["discriminator"] = feature_distances(
                self.discriminator.features(rebuilt), self.discriminator.features(images)
            )
        for kind, layers in distances.items():
            for i, layer in enumerate(layers):
                result |= {f"{kind}{i}": layer.mean(1), f"{kind}{i}_worst": layer.amax(1)}
        for name, network in self.auxiliaries.items():
            read = network(images)
            result[f"output_{name}"] = output_distance(network.attribute, read, network(rebuilt))
            if name in values:
                attribute = network.attribute
                error = (denormalize_value(attribute, read) - values[name].to(self.device)).abs().mean(1)
                result[f"condition_{name}"] = error / (attribute.value_max - attribute.value_min)
        return {f"residual_{name}": value for name, value in result.items()}


def _neighbourhoods(difference: Tensor, side: int) -> Tensor:
    """Absolute mean of `(B, C, *S)` over every neighbourhood of this side, averaged over the channels, `(B, places)`."""
    pool = torch.nn.functional.avg_pool2d if difference.ndim == 4 else torch.nn.functional.avg_pool3d
    return pool(difference, kernel_size=side, stride=1).abs().mean(1).flatten(1)
