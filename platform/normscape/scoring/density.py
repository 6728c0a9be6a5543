"""How far a style lies from what is usual under its conditions, in place of its length alone.

The thesis measures how unusual a style is by the length of its whitened coordinates (II.B.1): their distance from the mean of all
generated styles, whatever is known of the subject, as if the styles of real images had the spread of generated ones. Here the
mean is regressed on the known conditions, and the covariance is that of normal training images around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.covariance import ledoit_wolf

from normscape.errors import DataError
from normscape.scoring.conditions import Array, SmoothRegression

DENSITY_PREFIX = "density/"


@dataclass(frozen=True)
class StyleDensity:
    """A Gaussian of the whitened coordinates u of each free sub-space and resolution, its mean depending on the conditions c.

    Its Mahalanobis distance is m = sqrt((u - mu(c))' S^-1 (u - mu(c)) / d): about 1 for a normal image in any dimension d. mu is
    a ridge regression on smooth functions of c; S is the covariance of what it leaves, shrunk towards a multiple of the identity
    (Ledoit & Wolf 2004), because there may be fewer images than coordinates. S is the same under all conditions.

    Attributes:
        resolutions: R image sides, in the order of the coordinates.
        means: sub-space to the regression of its R * d coordinates.
        precisions: sub-space to the inverse covariances, (R, d, d).
    """

    resolutions: tuple[int, ...]
    means: Mapping[str, SmoothRegression]
    precisions: Mapping[str, Array]

    @classmethod
    def fit(cls, coordinates: Mapping[str, Array], conditions: Array, resolutions: tuple[int, ...], *, seed: int) -> Self:
        """Fit to normal images.

        Args:
            coordinates: free sub-space to whitened coordinates (N, R, d).
            conditions: (N, D).
            resolutions: the R image sides.
            seed: of the regression's basis.

        Raises:
            ValueError: there are fewer than two images.
        """
        means, precisions = {}, {}
        for name, u in coordinates.items():
            flat = u.reshape(len(u), -1).astype(np.float64)
            means[name] = SmoothRegression.fit(conditions, flat, seed=seed)
            left = (flat - means[name].predict(conditions)).reshape(u.shape)
            covariances = [ledoit_wolf(left[:, r], assume_centered=True)[0] for r in range(u.shape[1])]
            # where styles do not vary at all, any distance from them counts, and none divides by zero
            precisions[name] = np.stack([np.linalg.inv(c + 1e-9 * np.eye(len(c))) for c in covariances])
        return cls(resolutions, means, precisions)

    def columns(self, coordinates: Mapping[str, Array], conditions: Array) -> dict[str, Array]:
        """Distances of images, (N,) each: `density/<sub-space>/<resolution>`, and their root mean square `density/<sub-space>`.

        Args:
            coordinates: free sub-space to whitened coordinates (N, R, d).
            conditions: (N, D).
        """
        found: dict[str, Array] = {}
        for name, mean in self.means.items():
            u = coordinates[name].astype(np.float64)
            left = u - mean.predict(conditions).reshape(u.shape)
            square = np.einsum("nri,rij,nrj->nr", left, self.precisions[name], left, optimize=True).clip(min=0) / u.shape[2]
            found |= {f"{DENSITY_PREFIX}{name}/{side}": np.sqrt(square[:, r]) for r, side in enumerate(self.resolutions)}
            found[f"{DENSITY_PREFIX}{name}"] = np.sqrt(square.mean(1))
        return found

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays: dict[str, Array] = {"resolutions": np.array(self.resolutions, np.int64)}
        for name, mean in self.means.items():
            arrays |= mean.to_arrays(f"mean/{name}") | {f"precision/{name}": self.precisions[name]}
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a file.
        """
        try:
            found = load_file(path)
            names = [name.removeprefix("precision/") for name in found if name.startswith("precision/")]
            means = {name: SmoothRegression.from_arrays(found, f"mean/{name}") for name in names}
            sides = tuple(int(side) for side in found["resolutions"])
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"{path}: expected a density of styles as safetensors, found something else ({error})") from error
        return cls(sides, means, {name: found[f"precision/{name}"] for name in names})
