"""The attributes, each with its sub-space and its auxiliary network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from normscape.config.fields import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

POSITION_COLUMN = "position_mm"
"""Column that holds where a patch of a brain lies."""


class AuxiliaryConfig(Section):
    """One auxiliary network M_k: a MONAI ResNet18 and its training (thesis III.A.3a)."""

    width: PositiveInt = 64
    """Channels of the first residual stage; 64 is the standard ResNet18."""
    stem_kernel: Literal[3, 5, 7] = 7
    """Side of the first convolution's kernel."""
    stem_stride: Literal[1, 2] = 2
    """Stride of the first convolution."""
    stem_pool: bool = True
    """Max-pooling after the first convolution, as in the standard ResNet18."""
    pretrained: Path | None = None
    """MedicalNet's weights to start from (`resnet_18_23dataset.pth`): 3D, one channel, `width: 64`, `stem_kernel: 7`."""
    augment_hue: bool = False
    """Rotate hues while training (the angle network), or not (the recognition network)."""
    epochs: PositiveInt = 10
    """Passes over the training images."""
    epoch_samples: PositiveInt | None = None
    """Images of one epoch; all training images when empty."""
    batch_size: PositiveInt = 32
    """Images a step."""
    views_per_subject: Annotated[int, Field(ge=2)] = 4
    """K of the P x K batches of the triplet loss; P is batch_size / K. Unused by regression."""
    margin: PositiveFloat = 0.5
    """Margin m of the triplet loss, on squared distances. Unused by regression."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, as in the thesis, or AdamW, which learns a value in a third of the steps."""
    value_loss: Literal["l2", "huber"] = "l2"
    """Loss of a value: squared, as in the thesis, or Huber's, linear beyond 2 % of the range. Unused by an embedding."""
    learning_rate: PositiveFloat = 0.05
    """Peak learning rate (one cosine cycle to zero)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay: SGD's L2 penalty, or AdamW's decoupled one."""


class AttributeConfig(Section):
    """One attribute: its sub-space, its distance and its auxiliary network (tables I and II)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name, used in tables and file names."""
    kind: Literal["embedding", "value"]
    """`embedding`: compared only (identity, triplet loss, no controller). `value`: a number or vector with a controller."""
    latent_dim: PositiveInt
    """Width of the attribute's sub-spaces of z and of w."""
    output_dim: PositiveInt
    """D_k: outputs of the auxiliary network (the embedding's width, or the value's components)."""
    distance: Literal["euclidean", "l1"]
    """Distance between two outputs, divided into [0, 1]."""
    tau_same: Fraction
    """tau+: pairs that share the sub-vector may differ by this much."""
    tau_different: Fraction
    """tau-: pairs that do not share it must differ by at least this much."""
    weight_same: NonNegativeFloat = 1.0
    """c+ of the contrastive loss."""
    weight_different: NonNegativeFloat = 1.0
    """c- of the contrastive loss."""
    column: str | None = None
    """Column of the sample table that holds the value (`angle_degrees`); only for `kind: value`."""
    value_min: float = 0.0
    """Value that is 0 after normalisation; only for `kind: value`."""
    value_max: float = 1.0
    """Value that is 1 after normalisation; only for `kind: value`."""
    grids: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Learned grids through which the encoder sees a known value, beside smooth waves: nodes along each axis of the range, one
    number a grid. They tell near places apart, and would let a network learn single subjects by their age."""
    unit: str = ""
    """Unit of the value, for tables and axes."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """The attribute's auxiliary network."""

    @model_validator(mode="after")
    def _check(self) -> AttributeConfig:
        if self.tau_same > self.tau_different:
            raise ValueError(f"tau_same ({self.tau_same}) must not exceed tau_different ({self.tau_different})")
        if self.kind == "value" and not self.column:
            raise ValueError("an attribute of kind value needs `column`, where its value stands")
        if self.grids and (self.kind != "value" or self.output_dim > 3):
            raise ValueError("grids are for attributes of kind value with at most 3 components")
        if self.value_max <= self.value_min:
            raise ValueError("value_max must be larger than value_min")
        if self.kind == "embedding" and self.auxiliary.batch_size % self.auxiliary.views_per_subject:
            raise ValueError(
                f"auxiliary.batch_size ({self.auxiliary.batch_size}) must be a multiple of "
                f"auxiliary.views_per_subject ({self.auxiliary.views_per_subject})"
            )
        return self
