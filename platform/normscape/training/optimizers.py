"""Optimisers of the GAN's training: Adam with lazy regularisation, and the rates of the warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normscape.config import GanConfig


def lazy_adam(parameters: list[Tensor], learning_rate: float, interval: int, *, lazy: bool) -> torch.optim.Adam:
    """Adam(0, 0.99) with the correction for a regulariser applied every `interval` steps (Karras et al. 2020, appendix B)."""
    c = interval / (interval + 1) if lazy else 1.0
    group = {"params": parameters, "lazy_factor": c}
    return torch.optim.Adam([group], lr=learning_rate * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)


def set_rates(optimizers: Sequence[torch.optim.Optimizer], settings: GanConfig, step: int) -> None:
    """Learn at the warm-up's rates until the discriminator joins in.

    Args:
        optimizers: those of generator and encoder, made by `lazy_adam`.
        settings: of the GAN.
        step: counted from 0.
    """
    adversarial, last = step >= settings.warmup_steps, settings.learning_rate
    rate = last if adversarial else settings.warmup_learning_rate or last
    if settings.warmup_schedule == "cosine" and not adversarial:
        rate = last + (rate - last) * 0.5 * (1 + math.cos(math.pi * step / settings.warmup_steps))
    beta1 = 0.0 if adversarial else settings.warmup_beta1
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lazy_factor"]
            group["betas"] = (beta1, group["betas"][1])
