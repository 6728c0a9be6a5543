"""The whitened style space: PCA of each sub-space, divided by the standard deviations (thesis II.B.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.stats import chi
from torch import Tensor


@dataclass(frozen=True)
class WhitenedSubspace:
    """An affine map between a style sub-vector w^k and its whitened coordinates u.

    Attributes:
        mean: `(d,)`.
        components: principal directions as rows, `(d, d)`, by falling variance.
        deviation: standard deviation along each, `(d,)`.
    """

    mean: Tensor
    components: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, styles: Tensor) -> WhitenedSubspace:
        """Fit to styles `(N, d)`; directions without variance get a deviation of a millionth of the largest."""
        data = styles.double()
        mean = data.mean(0)
        _, singular, components = torch.linalg.svd(data - mean, full_matrices=False)
        # the sign of a singular vector is arbitrary: make its largest entry positive, so that refits agree
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        deviation = singular / (len(data) - 1) ** 0.5
        deviation = deviation.clamp(min=1e-6 * deviation[0].item())
        return cls(mean.float(), components.float(), deviation.float())

    @property
    def explained(self) -> Tensor:
        """Share of the variance along each component, `(d,)`."""
        variance = self.deviation.square()
        return variance / variance.sum()

    def whiten(self, styles: Tensor) -> Tensor:
        """Styles `(..., d)` to coordinates `(..., d)`: standard normal if the styles were."""
        return ((styles - self.mean) @ self.components.t()) / self.deviation

    def restore(self, coordinates: Tensor) -> Tensor:
        """Coordinates `(..., d)` to styles `(..., d)`."""
        return (coordinates * self.deviation) @ self.components + self.mean

    def radius(self, quantile: float) -> float:
        """Length that this share of healthy coordinates does not exceed: a quantile of the chi distribution.

        The thesis takes 3 in any dimension; a standard normal vector of d dimensions has a typical length of sqrt(d).
        """
        return float(chi.ppf(quantile, len(self.mean)))

    def to(self, device: torch.device) -> WhitenedSubspace:
        """The same map on another device."""
        return WhitenedSubspace(self.mean.to(device), self.components.to(device), self.deviation.to(device))


StyleSpace = dict[str, WhitenedSubspace]


def to_tensors(space: Mapping[str, WhitenedSubspace]) -> dict[str, Tensor]:
    """Flatten a style space for safetensors: `<sub-space>/mean`, `/components`, `/deviation`."""
    return {
        f"{name}/{key}": getattr(part, key).contiguous()
        for name, part in space.items()
        for key in ("mean", "components", "deviation")
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> StyleSpace:
    """The reverse of :func:`to_tensors`."""
    names = dict.fromkeys(key.split("/")[0] for key in tensors)
    return {
        name: WhitenedSubspace(tensors[f"{name}/mean"], tensors[f"{name}/components"], tensors[f"{name}/deviation"])
        for name in names
    }
