"""Triplet loss with online semi-hard mining (thesis III.A.3a; Schroff et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(embeddings: Tensor) -> Tensor:
    """Pairwise squared Euclidean distances `(B, B)` of unit vectors `(B, D)`."""
    return (2 - 2 * embeddings @ embeddings.t()).clamp(min=0)


def semi_hard_triplet_loss(embeddings: Tensor, subject: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Mean of d(a,p)^2 - d(a,n)^2 + m over the batch's semi-hard triplets.

    A triplet counts when its loss is greater than zero and lower than the margin: its negative is farther than
    its positive, but not by the margin. All triplets of the batch are looked at.

    Args:
        embeddings: unit vectors `(B, D)`.
        subject: subject index `(B,)`.
        margin: m, on squared distances.

    Returns:
        The loss (zero with a gradient when no triplet counts), and the share of all triplets that counted.
    """
    d2 = squared_distances(embeddings)
    alike = subject[:, None] == subject[None, :]
    positive = alike & ~torch.eye(len(subject), dtype=torch.bool, device=subject.device)
    triplet = d2[:, :, None] - d2[:, None, :] + margin
    valid = positive[:, :, None] & ~alike[:, None, :]
    semi_hard = valid & (triplet > 0) & (triplet < margin)
    count = semi_hard.sum()
    loss = (triplet * semi_hard).sum() / count.clamp(min=1)
    return loss, count / valid.sum().clamp(min=1)


def separated_shares(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[float, float]:
    """Shares of separated triplets (tables III and IV).

    Args:
        anchor, positive, negative: unit vectors `(T, D)`.
        margin: m.

    Returns:
        P(d(a,p) < d(a,n)) and P(d^2(a,p) < d^2(a,n) - m).
    """
    d2_positive = (anchor - positive).square().sum(1)
    d2_negative = (anchor - negative).square().sum(1)
    return (d2_positive < d2_negative).float().mean().item(), (d2_positive < d2_negative - margin).float().mean().item()
