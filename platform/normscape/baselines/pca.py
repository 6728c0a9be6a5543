"""What the principal components of normal images cannot rebuild.

Images become z-scores of a normative model first, given place and conditions (`normscape.baselines.normative`), so that the
components describe how normal images differ from what is expected of them, wherever a patch lies. Components are learned batch
after batch (scikit-learn's IncrementalPCA, Ross et al. 2008), so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.normative import NormativeModel, Position
from normscape.baselines.places import training_batches
from normscape.baselines.residuals import as_scores, neighbourhood_side, positive_width, rated_neighbourhoods
from normscape.datasets.batches import ImageBatch


class PcaDetector:
    """Score: the largest residual of the reconstruction, averaged over neighbourhoods, in standard deviations of the model.

    Args:
        components: principal components; never more than images or pixels.
        width: of a neighbourhood in mm, or in pixels where there is no such scale; None: 8 mm, or an eighth of the side.
        conditions, position, degree, pseudo_images: see `NormativeModel`.

    Attributes:
        model_: the fitted normative model.
        mean_: of the z-scores, `(pixels,)`.
        components_: float32 `(components, pixels)`, orthonormal rows.
        side_: of a neighbourhood, in pixels.
    """

    supervision: Literal["none", "synthetic"] = "none"
    model_: NormativeModel
    mean_: Tensor
    components_: Tensor
    side_: int

    def __init__(
        self,
        *,
        components: int = 100,
        width: float | None = None,
        conditions: str | Sequence[str] = "all",
        position: Position = "known",
        degree: int = 1,
        pseudo_images: float = 2.0,
    ) -> None:
        if components < 1:
            raise ValueError(f"components must be at least 1, found {components}")
        self.components, self.width = components, positive_width(width)
        self.model_ = NormativeModel(conditions=conditions, position=position, degree=degree, pseudo_images=pseudo_images)

    def fit(self, training: Training) -> Self:
        """Fit the normative model, then the components of its z-scores."""
        self.model_.fit(training)
        self.side_ = neighbourhood_side(self.width, training.scene, training.healthy.shape[-1])
        images = min(training.images, len(training.healthy))
        pixels = int(torch.tensor(training.healthy.shape).prod())
        pca = IncrementalPCA(n_components=min(self.components, images, pixels))
        for batch in training_batches(training, "pca", least=self.components):
            pca.partial_fit(self.model_.z(batch).flatten(1).cpu().numpy(), check_input=False)
        self.mean_ = torch.from_numpy(pca.mean_).float().to(training.device)
        self.components_ = torch.from_numpy(pca.components_).float().to(training.device)
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores `(B,)`."""
        return as_scores(self._rate(batch)[0])

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """The length of the mean residual around each place, `(B, 1, *S)`."""
        return self._rate(batch)[1].cpu()

    def residual(self, batch: ImageBatch) -> Tensor:
        """z-scores less their reconstruction, `(B, C, *S)`."""
        z = self.model_.z(batch)
        centred = z.flatten(1) - self.mean_
        return (centred - centred @ self.components_.T @ self.components_).view(z.shape)

    def _rate(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        mask = None if batch.masks is None else batch.masks.to(self.model_.device_)
        return rated_neighbourhoods(self.residual(batch), self.side_, mask)
