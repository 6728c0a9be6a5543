"""The networks and their training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from normscape.config.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class GeneratorConfig(Section):
    """StyleGAN2 generator and its mapping stacks (thesis II.A.1, III.A.3b)."""

    channels: tuple[PositiveInt, ...]
    """Channels from resolution 4 upwards, one entry a resolution."""
    mapping_layers: PositiveInt = 8
    """Layers of each sub-space's mapping stack."""
    mapping_lr_multiplier: PositiveFloat = 0.01
    """Learning-rate multiplier of the mapping stacks."""
    atlas_channels: NonNegativeInt = 0
    """Channels of a learned volume over the range of positions; a patch gets the window of it that it covers, weighed by its
    style. 0, as in the thesis: none. Needs an attribute with the column `position_mm`."""
    noise: bool = True
    """Per-pixel noise inputs, as in StyleGAN2; a fixed noise image is used outside training."""


class DiscriminatorConfig(Section):
    """StyleGAN2 residual discriminator (thesis III.A.3b)."""

    channels: tuple[PositiveInt, ...]
    """Channels from the image resolution down to 4, one entry a resolution."""
    deviation_group: PositiveInt = 4
    """Group size of the minibatch deviation; must divide the batch size."""


class EncoderConfig(Section):
    """Encoder trained with the generator when `gan.reconstruction_weight` is above 0 (beyond the thesis)."""

    channels: tuple[PositiveInt, ...] | None = None
    """Channels from the image resolution down to 4, one entry a resolution; the discriminator's when empty."""
    hidden: PositiveInt = 128
    """Width of the hidden layer that embeds a known value."""


class DiscriminatorAugmentationConfig(Section):
    """Random changes of what the discriminator sees (ADA, Karras et al. 2020; beyond the thesis). A strength of 0: none of it."""

    mode: Literal["none", "fixed", "adaptive"] = "none"
    """`none`, as in the thesis: images are seen as they are, and the other keys are unused. `fixed`: each change is made with
    `probability`. `adaptive`: the probability follows how sure the discriminator is of real images."""
    probability: Fraction = 0.0
    """Probability of each change of an image; with `adaptive` where it starts. Near 1 generated images begin to look changed."""
    target: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.6
    """Mean sign of the real images' logits above which the probability rises, and below which it falls; only for `adaptive`."""
    interval: PositiveInt = 4
    """Steps between two changes of the probability; the mean sign is taken over them."""
    images_to_full: PositiveInt = 500_000
    """Images over which a rising probability goes from 0 to 1; only for `adaptive`. A short training needs fewer: 400 steps of
    16 images bring the probability to 0.013 at most."""
    flip_axes: tuple[Annotated[str, Field(pattern=r"^[xyz]$")], ...] = ()
    """Axes along which images are mirrored, each in half of the changes; array axes are z, y, x. Of brains only x, left to
    right, and of chairs none: a mirrored chair is seen from another angle."""
    translation_fraction: Annotated[float, Field(ge=0.0, le=0.25)] = 0.125
    """Largest shift along each axis, in whole pixels, as a share of the image side; what is missing is mirrored in."""
    scale: Fraction = 0.1
    """Sizes change by a factor between 1 / (1 + this) and 1 + this, the same along all axes."""
    rotation_degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 10.0
    """Largest angle of a rotation; in 3D, in each of the three planes."""
    brightness: Fraction = 0.2
    """Largest number that is added to an image, whose range is [-1, 1]."""
    contrast: Fraction = 0.2
    """Intensities change by a factor between 1 / (1 + this) and 1 + this, about the middle of the range."""

    @model_validator(mode="after")
    def _check(self) -> DiscriminatorAugmentationConfig:
        if len(set(self.flip_axes)) != len(self.flip_axes):
            raise ValueError(f"flip_axes must name each axis once, found {', '.join(self.flip_axes)}")
        strengths = (self.translation_fraction, self.scale, self.rotation_degrees, self.brightness, self.contrast)
        if self.mode != "none" and not self.flip_axes and not any(strengths):
            raise ValueError(f"mode {self.mode} needs a change to make: all strengths are 0, and no axis is mirrored")
        if self.mode == "fixed" and not self.probability:
            raise ValueError("mode fixed needs a probability above 0: nothing would ever be changed")
        return self


class GanConfig(Section):
    """GAN training (thesis III.A.3b; optimiser settings of GAN-Control)."""

    steps: PositiveInt
    """Training steps; one step updates D once and G once."""
    batch_size: PositiveInt = 32
    """Images a step; a multiple of 2^N for N attributes (the pairing of II.A.1)."""
    learning_rate: PositiveFloat = 0.002
    """Adam's learning rate before the lazy-regularisation correction."""
    r1_gamma: NonNegativeFloat = 1.0
    """Weight of the R1 penalty, with the adversarial loss averaged over the batch."""
    r1_interval: PositiveInt = 16
    """R1 is computed every this many steps."""
    path_length_weight: NonNegativeFloat = 0.0
    """Weight of the path length penalty; 0 leaves it out."""
    path_length_interval: PositiveInt = 4
    """The path length penalty is computed every this many steps."""
    path_length_batch_shrink: PositiveInt = 2
    """The path length penalty uses batch_size / this many images."""
    path_length_decay: Fraction = 0.01
    """Decay of the running mean path length."""
    reconstruction_weight: NonNegativeFloat = 0.0
    """Weight of the L1 residual of real images rebuilt through the encoder; 0, as in the thesis, leaves the encoder out."""
    code_dropout: Fraction = 0.0
    """Share of the real images that are rebuilt from their known values alone, all else zero: so the generator learns what is
    usual under these conditions. Beyond the thesis, like the encoder; classifier-free guidance trains alike (Ho 2022)."""
    warmup_steps: NonNegativeInt = 0
    """First steps that only reconstruct, without discriminator and contrastive loss; needs a `reconstruction_weight`."""
    warmup_learning_rate: PositiveFloat | None = None
    """Learning rate of generator and encoder in the warm-up; `learning_rate` when empty."""
    warmup_schedule: Literal["constant", "cosine"] = "constant"
    """Whether the warm-up's rate stays, or falls as a cosine to `learning_rate`."""
    warmup_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Adam's first decay for generator and encoder in the warm-up; later it is 0."""
    augmentation: DiscriminatorAugmentationConfig = DiscriminatorAugmentationConfig()
    """Augmentation of what the discriminator sees."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16`: convolutions of the first-order phases in bfloat16 (autocast), for GPUs. Weights, styles, demodulation, minibatch
    deviation, losses and regularisers stay in float32."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """`torch.compile`'s mode for the networks of the first-order phases; `reduce-overhead` uses CUDA graphs. Needs a C++
    compiler; the first steps wait minutes for it. `generator.noise` cuts the generator's graph at each layer."""
    ema_half_life_images: PositiveInt = 10_000
    """Half-life, in images, of the averaged generator."""
    checkpoint_interval: PositiveInt = 1000
    """Steps between checkpoints."""
    log_interval: PositiveInt = 50
    """Steps between logged losses and distances."""
    sample_interval: PositiveInt = 1000
    """Steps between sample grids, and between Frechet and kernel distances."""
    quality_samples: PositiveInt = 2048
    """Generated and real images for the Frechet and kernel distances."""

    @model_validator(mode="after")
    def _check(self) -> GanConfig:
        if self.warmup_steps and not self.reconstruction_weight:
            raise ValueError("warmup_steps needs a reconstruction_weight above 0: there is nothing else to train on")
        return self


class ControllerConfig(Section):
    """Controllers: attribute value -> style (thesis II.A.2)."""

    source: Literal["generated", "encoder"] = "generated"
    """`generated`: learnt from styles of generated images and the values that the auxiliary network reads from them, as in the
    thesis. `encoder`: what the encoder, which has seen true values, makes of a value;
    the seven keys from `samples` to `lr_multiplier` are then unused."""
    conditions: Literal["controllers", "encoder"] = "controllers"
    """Whose styles the known conditions of a projected image have: those of the controllers, as in the thesis, or of the encoder,
    beyond it. Generated images have those of the controllers."""
    samples: PositiveInt = 32_000
    """N_s: generated images with predicted attributes."""
    epochs: PositiveInt = 100
    """Passes over the generated set."""
    batch_size: PositiveInt = 128
    """Pairs a step."""
    layers: PositiveInt = 4
    """Fully connected layers."""
    hidden: PositiveInt = 512
    """Width of the hidden layers."""
    learning_rate: PositiveFloat = 0.002
    """Adam's learning rate."""
    lr_multiplier: PositiveFloat = 0.01
    """Learning-rate multiplier of the layers."""
    check_samples: PositiveInt = 2048
    """Images generated at asked values to measure the controllers."""


class LatentsConfig(Section):
    """PCA of each style sub-space (thesis II.B.1, IV.A.1)."""

    samples: PositiveInt = 32_000
    """Style vectors that the PCA is fitted to."""
