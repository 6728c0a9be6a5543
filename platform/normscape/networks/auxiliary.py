"""Auxiliary networks M_k: images to an embedding or to an attribute's value (thesis II.A.1, III.A.3a)."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from normscape.config import AttributeConfig, Config
from normscape.errors import DataError
from normscape.networks.layers import full_precision, memory_format


class PaddedShortcut(nn.Module):
    """Shortcut of a ResNet block without weights: every second place, and zeros in the new channels (He et al. 2016, option A).

    MONAI's own lets no gradient through.

    Args:
        outputs: channels.
        stride: distance of the places that are kept.
    """

    def __init__(self, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.outputs, self.stride = outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, *S)` to `(B, outputs, *(S / stride))`."""
        dims = x.ndim - 2
        for axis in range(2, x.ndim):
            x = x.index_select(axis, torch.arange(0, x.shape[axis], self.stride, device=x.device))
        return nn.functional.pad(x, (0, 0) * dims + (0, self.outputs - x.shape[1]))


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
        if shape.pretrained is not None:  # MedicalNet's ResNet18 has shortcuts without weights
            for stage in (self.net.layer2, self.net.layer3, self.net.layer4):
                stage[0].downsample = PaddedShortcut(stage[0].conv1.out_channels, stride=2)

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
        with full_precision(features):
            output: Tensor = self.net.fc(torch.flatten(self.net.avgpool(features.to(self.net.fc.weight.dtype)), 1))
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


def load_medicalnet(network: AuxiliaryNetwork, path: Path) -> None:
    """Start from MedicalNet's 3D ResNet18, pretrained on 23 medical data sets (Chen et al. 2019; thesis III.B.3).

    Everything but the last layer is taken.

    Args:
        network: a 3D network with one image channel, made for pretrained weights.
        path: `resnet_18_23dataset.pth` or `resnet_18.pth`, read with `weights_only=True`.

    Raises:
        DataError: the file is missing, is no file of weights, or holds those of another network.
    """
    where = f"auxiliary.pretrained: {path}"
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{where} does not exist; expected MedicalNet's 3D ResNet18 weights") from error
    except Exception as error:
        raise DataError(f"{where} is not a file of weights that can be read without running code from it ({error})") from error
    found = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    found = {str(key).removeprefix("module."): value for key, value in found.items() if isinstance(value, Tensor)}
    # the last layer is the attribute's own; files of old PyTorch versions do not count batches
    wanted = {
        key: value
        for key, value in network.net.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    missing = [key for key in wanted if key not in found]
    if missing:
        raise DataError(f"{where} holds no MedicalNet ResNet18: {len(missing)} of {len(wanted)} weights missing, as {missing[0]}")
    wrong = [key for key in wanted if found[key].shape != wanted[key].shape]
    if wrong:
        theirs, ours = tuple(found[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        raise DataError(
            f"{where} does not fit: its {wrong[0]} has shape {theirs}, expected {ours} (outputs, inputs, kernel); "
            "MedicalNet's needs dims 3, image_channels 1, width 64, stem_kernel 7"
        )
    network.net.load_state_dict({key: found[key] for key in wanted}, strict=False)


def output_distance(attribute: AttributeConfig, a: Tensor, b: Tensor) -> Tensor:
    """Distance of two auxiliary outputs `(..., D)` of an attribute, divided into [0, 1].

    Euclidean distances of unit vectors are halved; L1 distances of normalised values are averaged over the
    components and cut at 1.
    """
    if attribute.distance == "euclidean":
        # the small constant keeps the gradient finite where both outputs agree
        return ((a - b).square().sum(-1) + 1e-12).sqrt() / 2
    return (a - b).abs().mean(-1).clamp(max=1.0)


def freeze(module: nn.Module) -> nn.Module:
    """Put a network into inference mode and stop gradients to its weights (not to its input)."""
    return module.eval().requires_grad_(False)
