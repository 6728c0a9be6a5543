"""Contrast augmentation of T1 scans (thesis III.B.2, after Meyer et al., Frontiers in Neuroscience 2021).

The intensities of a brain are a mixture of three Gaussians: cerebrospinal fluid, grey and white matter. Its parameters
theta = (mu_1, mu_2, mu_3, sigma_1^2, sigma_2^2, sigma_3^2) are shifted to theta' at random, and each intensity x moves with its
tissues,

    x' = sum_k p(k | x) [(x - mu_k) / sigma_k * sigma'_k + mu'_k],

then the whole scan is standardised again. Shifts are uniform within one standard deviation over the cohort's scans: of each
parameter on its own (Meyer et al.), or of each principal component of the parameters (the thesis), so that shifted scans stay
within what scanners do. All intensities here are z-scores under the scan's mask.

Everything about a scan is measured once (`measure_contrast`); a patch is then shifted as its whole scan would be, on the
patch's device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.errors import DataError

TISSUES = 3
PARAMETERS = 2 * TISSUES
VOXELS = 10_000
"""Voxels of a scan that its mixture is fitted to."""
QUANTILES = 64
"""Points that stand for a scan's intensities when the mean and standard deviation of its shifted form are computed."""
SMALLEST_VARIANCE_SHARE = 0.1
"""A shifted variance stays above this share of the scan's own, so that it is positive."""

SCHEMA = pa.schema(
    [("subject", pa.string()), ("session", pa.string()), ("mean", pa.float64()), ("std", pa.float64())]
    + [(name, pa.list_(pa.float32())) for name in ("means", "variances", "weights", "quantiles")]
)
"""Columns of `contrast.parquet`, a row a scan: mean and std of the intensities under the mask; of their z-scores, the mixture's
means, variances and weights, from the darkest tissue to the brightest, and `QUANTILES` quantiles."""


def measure_contrast(intensities: NDArray[np.floating]) -> dict[str, float | list[float]]:
    """Everything that is known of a scan's intensities, named as in `SCHEMA`.

    Args:
        intensities: (n,) of the voxels under the mask, in any unit.

    Raises:
        DataError: there are too few of them, or they do not differ.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(intensities, dtype=np.float64)
    if len(values) < 10 * TISSUES or not np.isfinite(values).all() or values.std() == 0:
        raise DataError(f"a brain needs finite intensities that differ, found {len(values)} voxels")
    mean, std = values.mean(), values.std()
    z = (values - mean) / std
    # Evenly spread ranks instead of a random draw: the same voxels every time, and the tails keep their share.
    few = np.sort(z)[np.linspace(0, len(z) - 1, min(len(z), VOXELS)).round().astype(int)]
    start = np.quantile(few, [0.1, 0.4, 0.8])
    mixture = GaussianMixture(
        TISSUES, covariance_type="diag", reg_covar=1e-3, max_iter=300, random_state=0,
        weights_init=np.array([0.2, 0.4, 0.4]), means_init=start[:, None], precisions_init=np.full((TISSUES, 1), 4.0),
    ).fit(few[:, None])  # fmt: skip
    order = np.argsort(mixture.means_[:, 0])
    return {
        "mean": float(mean),
        "std": float(std),
        "means": mixture.means_[order, 0].tolist(),
        "variances": mixture.covariances_[order, 0].tolist(),
        "weights": mixture.weights_[order].tolist(),
        "quantiles": np.quantile(few, (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist(),
    }


@dataclass(frozen=True)
class ContrastTable:
    """What was measured of N scans, as tensors."""

    mean: Tensor
    """float32 (N,): mean intensity under the mask."""
    std: Tensor
    """float32 (N,): standard deviation of the intensities under the mask."""
    parameters: Tensor
    """float32 (N, 6): theta, means then variances, of z-scores."""
    weights: Tensor
    """float32 (N, 3): shares of the tissues."""
    quantiles: Tensor
    """float32 (N, QUANTILES): of z-scores."""

    @classmethod
    def from_table(cls, table: pa.Table) -> ContrastTable:
        """From a table of `SCHEMA`."""
        lists = {name: torch.tensor(table[name].to_pylist()) for name in ("means", "variances", "weights", "quantiles")}
        mean, std = (torch.tensor(table[name].to_pylist(), dtype=torch.float32) for name in ("mean", "std"))
        return cls(mean, std, torch.cat([lists["means"], lists["variances"]], dim=1), lists["weights"], lists["quantiles"])

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class ContrastShifts:
    """The distribution of shifts: uniform within one standard deviation along each of six directions."""

    directions: Tensor
    """float32 (6, 6): unit vectors in the space of the parameters, a row each."""
    std: Tensor
    """float32 (6,): standard deviation of the scans along each direction."""

    @classmethod
    def fit(cls, parameters: Tensor, mode: Literal["pca", "independent"]) -> ContrastShifts:
        """From the parameters of the scans to learn from.

        Args:
            parameters: (N, 6), two or more scans.
            mode: `pca`: the principal components, the widest first; `independent`: the parameters themselves.
        """
        if len(parameters) < 2:
            raise DataError(f"contrast augmentation needs two scans or more to learn from, found {len(parameters)}")
        centred = parameters.double() - parameters.double().mean(0)
        if mode == "independent":
            directions = torch.eye(PARAMETERS, dtype=torch.float64)
        else:
            directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)
        return cls(directions.float(), (centred @ directions.T).std(0).float())

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Random shifts (count, 6) along the directions, in standard deviations: in [-1, 1]."""
        return 2 * torch.rand(count, PARAMETERS, generator=random, device=random.device) - 1

    def to_parameters(self, shift: Tensor) -> Tensor:
        """Shifts (B, 6) in standard deviations -> shifts of theta (B, 6)."""
        return (shift * self.std.to(shift.device)) @ self.directions.to(shift.device)


def shift_contrast(images: Tensor, parameters: Tensor, weights: Tensor, quantiles: Tensor, shift: Tensor) -> Tensor:
    """Give each image the contrast that its scan would have with the shifted parameters.

    After the map, the intensities are standardised as the whole scan's would be: with mean and standard deviation of the
    shifted scan, which its quantiles give. A shift of zero changes nothing.

    Args:
        images: float (B, C, *S), z-scores under the scan's mask.
        parameters: (B, 6), theta of each image's scan.
        weights: (B, 3).
        quantiles: (B, Q).
        shift: (B, 6), the shift of theta.
    """
    means, variances = parameters.chunk(2, dim=1)
    new_means, new_variances = (parameters + shift).chunk(2, dim=1)
    scale = (torch.maximum(new_variances, SMALLEST_VARIANCE_SHARE * variances) / variances).sqrt()

    def mapped(x: Tensor) -> Tensor:
        """(B, n) -> (B, n)."""
        log = [
            (weights[:, k].log() - 0.5 * variances[:, k].log())[:, None]
            - (x - means[:, k, None]).square() * (0.5 / variances[:, k, None])
            for k in range(TISSUES)
        ]
        share = torch.stack(log).softmax(0)
        moved = [(x - means[:, k, None]) * scale[:, k, None] + new_means[:, k, None] for k in range(TISSUES)]
        return sum((share[k] * moved[k] for k in range(1, TISSUES)), share[0] * moved[0])

    points = mapped(quantiles)
    # The quantiles' own mean and deviation miss 0 and 1 by a little, in both forms alike: dividing by them cancels that.
    gain = quantiles.std(1, keepdim=True) / points.std(1, keepdim=True)
    offset = quantiles.mean(1, keepdim=True) - points.mean(1, keepdim=True) * gain
    return (mapped(images.flatten(1)) * gain + offset).view_as(images)
