"""Faster forms of the phases that need first derivatives alone: bf16 autocast and compiled networks; both are off by default.

R1 and the path length penalty stay in float32 and uncompiled: they take derivatives of derivatives, which `torch.compile` does
not offer, and are due every few steps only. Weights, optimisers and averages are always float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from normscape.config import GanConfig

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function, settings: GanConfig) -> Function:
    """A function compiled for each shape that it meets, or itself; results agree to rounding."""
    if settings.compile == "none":
        return function
    return cast("Function", torch.compile(function, mode=settings.compile, dynamic=False))


def first_order(settings: GanConfig, device: torch.device) -> torch.autocast:
    """The context of one phase: convolutions and matrix products in the precision that is set.

    What bf16's eight bits are too few for stays in float32: styles, demodulation, minibatch deviation, latents, logits, the
    auxiliary outputs, images and losses (`normscape.networks.layers.full_precision`).
    """
    if settings.compile == "reduce-overhead":  # what CUDA graphs returned in the last phase may be overwritten
        torch.compiler.cudagraph_mark_step_begin()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
