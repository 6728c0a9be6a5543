"""The factorised contrastive loss and its pairing (thesis II.A.1)."""

from __future__ import annotations

import pytest
import torch

from normscape.config import AttributeConfig
from normscape.losses.contrastive import contrastive_loss, contrastive_term, pair_latents, same_mask
from normscape.networks.auxiliary import output_distance

VALUE = AttributeConfig(
    name="angle",
    kind="value",
    latent_dim=2,
    output_dim=1,
    distance="l1",
    tau_same=0.1,
    tau_different=0.5,
    weight_same=2.0,
    weight_different=3.0,
    column="angle_degrees",
)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 3])
def test_pairing_is_the_formula_of_the_thesis(n: int, factor: int) -> None:
    """For every k, i and i + 2^(k-1) share z^k exactly when (i mod 2^k) is in 1..2^(k-1), and nothing else is shared."""
    batch, widths = factor * 2**n, [2, 3, 4][:n]
    z = pair_latents(torch.randn(batch, sum(widths) + 5), widths)
    parts = z.split([*widths, 5], dim=1)
    for k in range(1, n + 1):
        expected = torch.zeros(batch, batch, dtype=torch.bool)
        for i in range(1, batch + 1):
            if i % 2**k in range(1, 2 ** (k - 1) + 1):
                j = i + 2 ** (k - 1)
                expected[i - 1, j - 1] = expected[j - 1, i - 1] = True
        shared = (parts[k - 1][:, None] == parts[k - 1][None]).all(2) & ~torch.eye(batch, dtype=torch.bool)
        assert torch.equal(shared, expected)
        assert torch.equal(same_mask(batch, k), expected)
        assert expected.sum(1).eq(1).all()  # exactly one partner each
    other = parts[n]
    assert not ((other[:, None] == other[None]).all(2) & ~torch.eye(batch, dtype=torch.bool)).any()


def test_pairing_leaves_the_given_latents_alone() -> None:
    """The input is not changed in place."""
    z = torch.randn(4, 6)
    kept = z.clone()
    pair_latents(z, [2, 2])
    assert torch.equal(z, kept)


def test_term_equals_the_sum_over_pairs() -> None:
    """The vectorised term equals the thesis's formula written as loops over pairs."""
    outputs = torch.rand(8, 1, generator=torch.Generator().manual_seed(1))
    same, different = [], []
    for i in range(8):
        for j in range(8):
            d = output_distance(VALUE, outputs[i], outputs[j]).item()
            if i != j and (i ^ 2) == j:
                same.append(d)
            elif i != j:
                different.append(d)
    expected = 2.0 * sum(max(d - 0.1, 0) for d in same) / len(same) + 3.0 * sum(max(0.5 - d, 0) for d in different) / len(
        different
    )
    term = contrastive_term(outputs, VALUE, 2)
    assert term.loss.item() == pytest.approx(expected, rel=1e-5)
    assert term.distance_same.item() == pytest.approx(sum(same) / len(same), rel=1e-5)
    assert term.distance_different.item() == pytest.approx(sum(different) / len(different), rel=1e-5)


def test_no_loss_when_pairs_are_as_they_should_be() -> None:
    """Pairs closer than tau+ and others farther than tau- cost nothing."""
    outputs = torch.tensor([[0.0], [0.05], [0.9], [0.95]])
    loss, terms = contrastive_loss({"angle": outputs}, [VALUE])
    assert loss.item() == 0.0
    assert set(terms) == {"angle"}
