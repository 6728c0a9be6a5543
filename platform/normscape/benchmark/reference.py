"""The straightforward form of the training step, kept to compare with: the same numbers, computed as the papers write them.

- Modulated convolutions build one weight a sample and run as one grouped convolution.
- Up-sampling layers interpolate and then convolve at the high resolution.
- Down-sampling layers convolve at the full resolution and then keep every second place.
- The contrastive loss loops over the pairs that share a sub-vector, with boolean masks.
- Images and features lie in torch's default layout.
- Everything is eager and in float32, whatever the configuration says.

All else (optimisers, auxiliary networks in inference form, the blur itself, averaging) is shared, so that a ratio
shows what these six points cost and nothing else. The outputs equal those of the fast form at every place, edges included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscape.config import AttributeConfig, Config
from normscape.losses.contrastive import ContrastiveTerm
from normscape.networks.auxiliary import AuxiliaryNetwork, output_distance
from normscape.networks.discriminator import Discriminator
from normscape.networks.layers import SLOPE, EqualizedConv, ModulatedConv, blur, upsample
from normscape.training.gan import GanTrainer

_CONV = {2: F.conv2d, 3: F.conv3d}


class GroupedConv(ModulatedConv):
    """Modulated convolution with a weight a sample (Karras et al. 2020, equations 1 and 3)."""

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`(B, inputs, *S)` and styles `(B, style_dim)` to `(B, outputs, *S)`, or `*(2 S)` when up-sampling."""
        batch, dims = len(x), self.dims
        ones = (1,) * dims
        weight = (self.weight * self.weight_gain)[None] * self.affine(w).reshape(batch, 1, -1, *ones)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().flatten(2).sum(2) + 1e-8).reshape(batch, -1, 1, *ones)
        weight = weight * self.gain
        padding = self.kernel // 2
        if self.up:
            # a transposed convolution mirrors its kernel; the ring of zeros around x makes the edges equal too
            weight = weight.flip(tuple(range(3, 3 + dims)))
            x = upsample(F.pad(x, (1, 1) * dims))
            for axis in range(2, 2 + dims):
                x = x.narrow(axis, 1, x.shape[axis] - 2)
            padding = 0
        grouped = x.reshape(1, -1, *x.shape[2:])
        x = _CONV[dims](grouped, weight.flatten(0, 1), padding=padding, groups=batch)
        return x.reshape(batch, -1, *x.shape[2:])


class FullResolutionConv(EqualizedConv):
    """Convolution at the full resolution, of which a down-sampling layer keeps every second place."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, *S)` to `(B, outputs, *S)`, or `*(S / 2)` when down-sampling."""
        bias = None if self.bias is None else self.bias * self.bias_gain
        weight = self.weight * self.weight_gain
        if self.down:
            x = _CONV[self.dims](blur(x, padding=self.kernel // 2 + 1), weight, bias)
            every_second: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, 2),) * self.dims)
            x = x[every_second]
        else:
            x = _CONV[self.dims](x, weight, bias, padding=self.kernel // 2)
        return F.leaky_relu(x, SLOPE) if self.activate else x


class DefaultLayoutDiscriminator(Discriminator):
    """The discriminator on images as they come."""

    def features(self, images: Tensor) -> list[Tensor]:
        """As the fast form's."""
        maps = [self.from_image(images.contiguous())]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    ModulatedConv: GroupedConv,
    EqualizedConv: FullResolutionConv,
    Discriminator: DefaultLayoutDiscriminator,
}


def straightforward(network: nn.Module) -> nn.Module:
    """Give a generator or discriminator the straightforward form, in place; weights stay the very same tensors."""
    for module in network.modules():
        if type(module) in _FORMS:
            # the forms differ in `forward` alone, so changing the class is all there is to do
            module.__class__ = _FORMS[type(module)]
    return network


def looped_contrastive_loss(
    outputs: Mapping[str, Tensor], attributes: Sequence[AttributeConfig]
) -> tuple[Tensor, dict[str, ContrastiveTerm]]:
    """The factorised contrastive loss (thesis II.A.1), pair by pair.

    Args:
        outputs: attribute name to auxiliary outputs `(B, D_k)` of one paired batch.
        attributes: in the order of the pairing.

    Returns:
        The loss and each attribute's term.
    """
    terms = {}
    for k, attribute in enumerate(attributes, start=1):
        output = outputs[attribute.name]
        row = torch.arange(len(output))
        same, different = [], []
        for i in range(len(output)):
            j = i + 2 ** (k - 1)
            if (i // 2 ** (k - 1)) % 2:  # the second row of a pair
                continue
            others = output[(row != i) & (row != j)]
            same.append(output_distance(attribute, output[i], output[j]))
            different += [output_distance(attribute, output[i], others), output_distance(attribute, output[j], others)]
        d_same, d_different = torch.stack(same), torch.cat(different)
        loss_same = (d_same - attribute.tau_same).clamp(min=0).mean()
        loss_different = (attribute.tau_different - d_different).clamp(min=0).mean()
        terms[attribute.name] = ContrastiveTerm(
            loss=attribute.weight_same * loss_same + attribute.weight_different * loss_different,
            distance_same=d_same.detach().mean(),
            distance_different=d_different.detach().mean(),
        )
    return torch.stack([term.loss for term in terms.values()]).sum(), terms


class ReferenceTrainer(GanTrainer):
    """GanTrainer in the straightforward form; same arguments, same start."""

    def __init__(self, config: Config, auxiliaries: Mapping[str, AuxiliaryNetwork], device: torch.device) -> None:
        plain = config.gan.model_copy(update={"compile": "none", "precision": "float32"})
        super().__init__(config.model_copy(update={"gan": plain}), auxiliaries, device)
        for network in (self.generator, self.discriminator, self.averaged):
            straightforward(network)
        self.contrastive_loss = looped_contrastive_loss
