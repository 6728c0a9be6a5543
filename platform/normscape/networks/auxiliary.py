"""Auxiliary networks M_k: images to an embedding or to an attribute's value (thesis II.A.1, III.A.3a)."""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from normscape.config import AttributeConfig, Config
from normscape.networks.layers import memory_format


class AuxiliaryNetwork(nn.Module):
    """A MONAI ResNet18 whose outputs can be compared in [0, 1].

    An embedding lies on the unit sphere (FaceNet, Schroff et al. 2015), where the Euclidean distance is at most
    2. A value is normalised, so that 0 and 1 stand for the ends of the attribute's range.

    Args:
        attribute: the attribute and its network's shape.
        dims: spatial dimensions.
        image_channels: channels of the image.
    """

    def __init__(self, attribute: AttributeConfig, *, dims: int, image_channels: int) -> None:
        super().__init__()
        self.attribute, self.dims = attribute, dims
        shape = attribute.auxiliary
        self.net = ResNet(
            block=ResNetBlock,
            layers=[2, 2, 2, 2],
            block_inplanes=[shape.width * 2**i for i in range(4)],
            spatial_dims=dims,
            n_input_channels=image_channels,
            conv1_t_size=shape.stem_kernel,
            conv1_t_stride=shape.stem_stride,
            no_max_pool=not shape.stem_pool,
            num_classes=attribute.output_dim,
        )

    @classmethod
    def from_config(cls, attribute: AttributeConfig, config: Config) -> AuxiliaryNetwork:
        """The attribute's network, with random weights."""
        return cls(attribute, dims=config.dims, image_channels=config.image_channels)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps `(B, C_l, *S_l)` of the stem and of the four stages, from fine to coarse."""
        net = self.net
        if not self.training:
            # faster, but only without weight gradients: on CPU, PyTorch 2.13 gets (and overruns) the weight gradient of
            # 1x1 convolutions with stride 2 and fewer than 8 input channels wrong in this layout
            images = images.contiguous(memory_format=memory_format(self.dims))
        x = net.act(net.bn1(net.conv1(images)))
        maps = [x]
        if not net.no_max_pool:
            x = net.maxpool(x)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def head(self, features: Tensor) -> Tensor:
        """The last feature map to the output."""
        output: Tensor = self.net.fc(torch.flatten(self.net.avgpool(features), 1))
        return nn.functional.normalize(output, dim=1) if self.attribute.kind == "embedding" else output

    def fold(self) -> AuxiliaryNetwork:
        """Freeze the network and fold its batch normalisations into the convolutions: same outputs, less work."""
        freeze(self)
        blocks = [block for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4) for block in stage]
        for owner, conv, norm in [(self.net, "conv1", "bn1"), *((b, f"conv{i}", f"bn{i}") for b in blocks for i in (1, 2))]:
            setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
            setattr(owner, norm, nn.Identity())
        for block in blocks:
            if isinstance(block.downsample, nn.Sequential):
                block.downsample = fuse_conv_bn_eval(*block.downsample)
        freeze(self)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, *S)` in [-1, 1] to `(B, D)`: a unit vector, or the normalised value."""
        return self.head(self.features(images)[-1])

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of outputs `(..., D)`, in [0, 1] (thesis II.A.1)."""
        return output_distance(self.attribute, a, b)


def output_distance(attribute: AttributeConfig, a: Tensor, b: Tensor) -> Tensor:
    """Distance of two auxiliary outputs `(..., D)` of an attribute, divided into [0, 1].

    Euclidean distances of unit vectors are halved; L1 distances of normalised values are averaged over the
    components and cut at 1.
    """
    if attribute.distance == "euclidean":
        # the small constant keeps the gradient finite where both outputs agree
        return ((a - b).square().sum(-1) + 1e-12).sqrt() / 2
    return (a - b).abs().mean(-1).clamp(max=1.0)


def normalize_value(attribute: AttributeConfig, value: Tensor) -> Tensor:
    """A value in its unit to the normalised scale."""
    return (value - attribute.value_min) / (attribute.value_max - attribute.value_min)


def denormalize_value(attribute: AttributeConfig, value: Tensor) -> Tensor:
    """A normalised value to the attribute's unit."""
    return value * (attribute.value_max - attribute.value_min) + attribute.value_min


def freeze(module: nn.Module) -> nn.Module:
    """Put a network into inference mode and stop gradients to its weights (not to its input)."""
    return module.eval().requires_grad_(False)
