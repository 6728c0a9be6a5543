"""Rates of the GAN's optimisers: the warm-up's own, then the corrected ones of lazy regularisation."""

from __future__ import annotations

import itertools

import pytest
import torch

from normscape.config import GanConfig
from normscape.training.optimizers import lazy_adam, set_rates

SETTINGS = GanConfig(
    steps=20, warmup_steps=10, reconstruction_weight=1.0, learning_rate=0.002, warmup_learning_rate=0.01, warmup_beta1=0.9,
    warmup_schedule="cosine",
)  # fmt: skip


def test_a_lazy_regulariser_shrinks_rate_and_memory() -> None:
    """c = k / (k + 1), as every k-th step has one more; without a regulariser nothing changes."""
    weights = [torch.zeros(2, requires_grad=True)]
    (group,) = lazy_adam(weights, 0.002, 4, lazy=True).param_groups
    assert group["lr"] == pytest.approx(0.002 * 4 / 5)
    assert group["betas"] == (0.0, pytest.approx(0.99 ** (4 / 5)))
    (group,) = lazy_adam(weights, 0.002, 4, lazy=False).param_groups
    assert (group["lr"], group["betas"]) == (0.002, (0.0, 0.99))


def test_the_warm_up_falls_to_the_rate_of_what_follows() -> None:
    """From its own rate at the first step towards the later one, which then stands, each times the optimiser's correction."""
    optimizer = lazy_adam([torch.zeros(2, requires_grad=True)], SETTINGS.learning_rate, 4, lazy=True)
    rates, memories = [], []
    for step in range(12):
        set_rates([optimizer], SETTINGS, step)
        rates.append(optimizer.param_groups[0]["lr"] / 0.8)
        memories.append(optimizer.param_groups[0]["betas"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx((0.01 + 0.002) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[:11]))
    assert rates[10] == rates[11] == pytest.approx(0.002)
    assert [first for first, _ in memories] == [0.9] * 10 + [0.0] * 2
    assert len({second for _, second in memories}) == 1
