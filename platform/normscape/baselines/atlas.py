"""How far an image leaves what is normal at its place, given what is known: z-scores of a voxel-wise normative model.

Marquand et al. 2016, in the thesis's setting: for brains, mean and standard deviation at each voxel of the atlas given the age;
for pictures, at each pixel given the angle. See `normscape.baselines.normative`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, get_args

from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.normative import NormativeModel, Position
from normscape.baselines.residuals import as_scores, neighbourhood_side, positive_width, rated_neighbourhoods
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import weighted_mean, worst_share

Kind = Literal["largest", "mean", "top"]


class AtlasDetector:
    """Score: the largest |z| after averaging the signed z over neighbourhoods.

    Args:
        width: of a neighbourhood in mm, or in pixels where there is no such scale; None: 8 mm, or an eighth of the side.
        score: `largest`; or of |z| without averaging: `mean`, or `top`, the mean of the largest 1 %.
        conditions, position, degree, pseudo_images: see `NormativeModel`.

    Attributes:
        model_: the fitted normative model.
        side_: of a neighbourhood, in pixels.
    """

    supervision: Literal["none", "synthetic"] = "none"
    model_: NormativeModel
    side_: int

    def __init__(
        self,
        *,
        width: float | None = None,
        score: Kind = "largest",
        conditions: str | Sequence[str] = "all",
        position: Position = "known",
        degree: int = 1,
        pseudo_images: float = 2.0,
    ) -> None:
        if score not in get_args(Kind):
            raise ValueError(f"score must be one of {', '.join(get_args(Kind))}, found {score}")
        self.width, self.score = positive_width(width), score
        self.model_ = NormativeModel(conditions=conditions, position=position, degree=degree, pseudo_images=pseudo_images)

    def fit(self, training: Training) -> Self:
        """Fit the regressions."""
        self.model_.fit(training)
        self.side_ = neighbourhood_side(self.width, training.scene, training.healthy.shape[-1])
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores `(B,)`, in standard deviations."""
        z, mask = self._z(batch)
        if self.score == "largest":
            return as_scores(rated_neighbourhoods(z, self.side_, mask)[0])
        length = z.square().mean(1).sqrt().flatten(1)
        counts = None if mask is None else mask.flatten(1)
        return as_scores(weighted_mean(length, counts) if self.score == "mean" else worst_share(length, counts, 1))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """|z| averaged over the neighbourhood of each place, `(B, 1, *S)`."""
        z, mask = self._z(batch)
        return rated_neighbourhoods(z, self.side_, mask)[1].cpu()

    def _z(self, batch: ImageBatch) -> tuple[Tensor, Tensor | None]:
        return self.model_.z(batch), None if batch.masks is None else batch.masks.to(self.model_.device_)
