"""The factorised contrastive loss and the pairing of latents it needs (thesis II.A.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normscape.config import AttributeConfig
from normscape.networks.auxiliary import output_distance


def pair_latents(z: Tensor, widths: Sequence[int]) -> Tensor:
    """Make pairs of rows share one attribute's sub-vector each.

    For the k-th attribute (k from 1), row i (from 1) with (i mod 2^k) in {1, ..., 2^(k-1)} shares z^k with row
    i + 2^(k-1), and with no other. The remaining sub-spaces stay independent.

    Args:
        z: latents `(B, W)`; B must be a multiple of 2^N.
        widths: widths of the N attributes' sub-spaces, which stand first in z.

    Returns:
        A new tensor `(B, W)`.
    """
    batch = len(z)
    parts = list(z.split([*widths, z.shape[1] - sum(widths)], dim=1))
    for k, width in enumerate(widths, start=1):
        blocks = parts[k - 1].reshape(batch // 2**k, 2, 2 ** (k - 1), width)
        parts[k - 1] = blocks[:, :1].expand_as(blocks).reshape(batch, width)
    return torch.cat(parts, dim=1)


def same_mask(batch: int, k: int, device: torch.device | None = None) -> Tensor:
    """Boolean `(B, B)`: which two different rows share the sub-vector of the k-th attribute (k from 1)."""
    row = torch.arange(batch, device=device)
    # rows that share have the same number apart from bit k - 1
    partner = row ^ (1 << (k - 1))
    return partner[:, None] == row[None, :]


@dataclass(frozen=True)
class ContrastiveTerm:
    """One attribute's part of the loss, and the mean distances to watch."""

    loss: Tensor
    distance_same: Tensor
    distance_different: Tensor


def contrastive_term(outputs: Tensor, attribute: AttributeConfig, k: int) -> ContrastiveTerm:
    """c+ <max(d - tau+, 0)> over pairs that share z^k, plus c- <max(tau- - d, 0)> over pairs that do not.

    Args:
        outputs: auxiliary outputs `(B, D)` of a paired batch.
        attribute: thresholds, weights and distance.
        k: the attribute's number, from 1.
    """
    batch = len(outputs)
    distance = output_distance(attribute, outputs[:, None], outputs[None, :])
    same = same_mask(batch, k, outputs.device)
    different = ~same & ~torch.eye(batch, dtype=torch.bool, device=outputs.device)
    n_same, n_different = batch, batch * (batch - 2)
    loss_same = ((distance - attribute.tau_same).clamp(min=0) * same).sum() / n_same
    loss_different = ((attribute.tau_different - distance).clamp(min=0) * different).sum() / n_different
    return ContrastiveTerm(
        loss=attribute.weight_same * loss_same + attribute.weight_different * loss_different,
        distance_same=(distance * same).sum().detach() / n_same,
        distance_different=(distance * different).sum().detach() / n_different,
    )


def contrastive_loss(
    outputs: Mapping[str, Tensor], attributes: Sequence[AttributeConfig]
) -> tuple[Tensor, dict[str, ContrastiveTerm]]:
    """L_c, the sum over the attributes (thesis II.A.1).

    Args:
        outputs: attribute name to auxiliary outputs `(B, D_k)` of one paired batch.
        attributes: in the order of the pairing.

    Returns:
        The loss and each attribute's term.
    """
    terms = {a.name: contrastive_term(outputs[a.name], a, k) for k, a in enumerate(attributes, start=1)}
    return torch.stack([term.loss for term in terms.values()]).sum(), terms
