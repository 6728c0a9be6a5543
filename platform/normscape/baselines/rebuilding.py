"""Scores and maps of detectors that rebuild an image: how far it lies from what they make of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.baselines import Scores
from normscape.baselines.learning import Inputs, Seen, check_choice, check_positive
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import neighbourhoods, weighted_mean, worst, worst_share

ResidualScore = Literal["worst", "top", "mean"]
"""`worst`: the largest mean difference of a neighbourhood. `top`: the mean over the worst 1 % of the neighbourhoods. `mean`: the
mean absolute difference. Only what lies under the mask counts."""
TOP_PERCENT = 1


def local_residuals(difference: Tensor, masks: Tensor | None, side: int) -> tuple[Tensor, Tensor]:
    """Length over the channels of the mean difference in the neighbourhood of every place.

    Differences of opposite sign cancel, so that noise and misplaced edges weigh less than a foreign intensity.

    Args:
        difference: (B, C, *S), 0 outside of the masks.
        masks: bool (B, 1, *S); None when everything counts.
        side: of a neighbourhood, odd.

    Returns:
        The means, (B, 1, *S), 0 outside of the masks; and the share of each neighbourhood that counts, (B, places).
    """
    around = (side // 2, side // 2) * (difference.ndim - 2)
    inside = difference.new_ones(len(difference), 1, *difference.shape[2:]) if masks is None else masks.to(difference.dtype)
    means, share = neighbourhoods(F.pad(difference, around), side, F.pad(inside, around))
    assert share is not None
    return means.view_as(inside) * inside, share


class ResidualDetector(ABC):
    """A detector that rebuilds what it sees; its scores are differences.

    Args:
        score: how a difference becomes a score.
        neighbourhood: side of a neighbourhood in pixels, odd; about a sixth of an image's side when empty, at least 3.
    """

    supervision: Literal["none", "synthetic"] = "none"
    inputs_: Inputs
    loss_: Tensor
    """Loss of every training step, float32 (steps,)."""

    def __init__(self, *, score: str, neighbourhood: int | None, scores: object = ResidualScore) -> None:
        check_choice("score", score, scores)
        if neighbourhood is not None:
            check_positive(neighbourhood=neighbourhood)
            if not neighbourhood % 2:
                raise ValueError(f"neighbourhood is {neighbourhood}; expected an odd number")
        self.score, self.neighbourhood = score, neighbourhood

    @abstractmethod
    def rebuilt(self, seen: Seen) -> Tensor:
        """What the detector makes of images, (B, C, *S)."""

    @torch.no_grad()
    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores (B,), higher is more abnormal."""
        return self._scores(self.inputs_(batch)).double().cpu().numpy()

    @torch.no_grad()
    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """Mean difference around every place, float32 (B, 1, *S); 0 outside of the masks."""
        seen = self.inputs_(batch)
        difference = seen.difference(self.rebuilt(seen))
        return local_residuals(difference, seen.masks, self._side(difference))[0].cpu()

    def _scores(self, seen: Seen) -> Tensor:
        difference = seen.difference(self.rebuilt(seen))
        weight = None if seen.masks is None else seen.masks.flatten(1)
        if self.score == "mean":
            return weighted_mean(difference.abs().mean(1).flatten(1), weight)
        local, share = local_residuals(difference, seen.masks, self._side(difference))
        if self.score == "top":
            return worst_share(local.flatten(1), weight, TOP_PERCENT)
        return worst(local.flatten(1), share)

    def _side(self, images: Tensor) -> int:
        return self.neighbourhood or max(3, images.shape[-1] // 6 | 1)
