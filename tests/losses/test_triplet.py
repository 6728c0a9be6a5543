"""Semi-hard mining against its definition, written as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normscape.losses.triplet import semi_hard_triplet_loss, separated_shares


def test_equals_the_loop_over_all_triplets() -> None:
    """Exactly the triplets with a loss between zero and the margin count."""
    torch.manual_seed(0)
    e = F.normalize(torch.randn(12, 4), dim=1)
    subject = torch.arange(12) // 3
    losses, valid = [], 0
    for a in range(12):
        for p in range(12):
            for n in range(12):
                if a != p and subject[a] == subject[p] and subject[a] != subject[n]:
                    valid += 1
                    loss = ((e[a] - e[p]).square().sum() - (e[a] - e[n]).square().sum() + 0.5).item()
                    if 0 < loss < 0.5:
                        losses.append(loss)
    loss, share = semi_hard_triplet_loss(e, subject, 0.5)
    assert len(losses) > 5
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert share.item() == pytest.approx(len(losses) / valid)


def test_without_semi_hard_triplets_the_gradient_is_zero() -> None:
    """Perfectly separated embeddings leave the network alone."""
    e = torch.eye(4).repeat_interleave(2, 0).requires_grad_()
    loss, share = semi_hard_triplet_loss(e, torch.arange(8) // 2, 0.5)
    loss.backward()
    assert loss.item() == 0
    assert share.item() == 0
    assert e.grad is not None
    assert e.grad.abs().max() == 0


def test_shares_of_table_three() -> None:
    """One triplet apart by the margin, one apart by less, one not apart."""
    anchor = torch.zeros(3, 1)
    positive = torch.tensor([[0.1], [0.1], [0.9]])
    negative = torch.tensor([[1.0], [0.5], [0.5]])
    separated, by_margin = separated_shares(anchor, positive, negative, 0.5)
    assert separated == pytest.approx(2 / 3)
    assert by_margin == pytest.approx(1 / 3)
