"""Random numbers without hidden state: each use has its own generator, made from (seed, purpose, step).

A resumed run therefore draws what the uninterrupted one would have drawn, and no random state is stored.
"""

from __future__ import annotations

import hashlib

import torch


def seeded(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments.

    Args:
        seed: the experiment's seed.
        purpose: what the numbers are for, for example `("gan", "latents", rank, step)`.
    """
    text = repr((seed, *purpose)).encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(value)
