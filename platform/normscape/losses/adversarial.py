"""Adversarial losses and regularisers of StyleGAN2 (Karras et al. 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of D, averaged over the batch; logits `(B,)`."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of G, averaged over the batch; logits `(B,)`."""
    return F.softplus(-fake_logits).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared gradient of D at real images, averaged over the batch (Mescheder et al. 2018).

    Args:
        real_logits: `(B,)`, computed from `real_images`.
        real_images: `(B, C, *S)` that require a gradient.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, styles: Tensor, probe: Tensor) -> Tensor:
    """Lengths `(B,)` of the Jacobian-transposed product with a random image (Karras et al. 2020, section 3.2).

    Args:
        images: `(B, C, *S)`, computed from `styles`.
        styles: `(B, W)` that require a gradient.
        probe: standard normal noise of the images' shape.
    """
    probe = probe / math.sqrt(math.prod(images.shape[2:]))
    (gradient,) = torch.autograd.grad((images * probe).sum(), styles, create_graph=True)
    return gradient.square().sum(1).sqrt()
