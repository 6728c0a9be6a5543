"""The schema of an experiment: everything a run depends on, and nothing else.

A configuration is data: tables I and II of the thesis and every choice the thesis leaves open have one
field here. Reading files, ``--set`` overrides and error messages live in :mod:`normscape.configio`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the images come from and how the subjects are split (thesis III.A.1, III.B.1)."""

    source: Literal["chairs", "rc49", "brain"] = "chairs"
    """`chairs` renders the vendored chair models; `rc49` reads the RC-49 HDF5 file at `path`; `brain` cuts patches from the
    prepared cohort at `root`, or from the simulated cohort."""
    path: Path | None = None
    """The RC-49 HDF5 file; only for `source: rc49`."""
    train_subjects: PositiveInt = 40
    """Subjects to learn from: chair types, or persons."""
    test_subjects: PositiveInt = 9
    """Subjects kept for the test; no choice ever sees them."""
    angle_min_degrees: Annotated[float, Field(ge=0.0, lt=360.0)] = 0.0
    """Smallest rotation angle."""
    angle_max_degrees: Annotated[float, Field(gt=0.0, lt=360.0)] = 89.9
    """Largest rotation angle, included."""
    angle_step_degrees: Annotated[float, Field(ge=0.1)] = 0.1
    """Distance between two rendered angles."""
    supersample: Annotated[int, Field(ge=1, le=8)] = 3
    """Rays a pixel along each axis when rendering."""
    root: Path | None = None
    """Folder of a prepared cohort; only for `source: brain`. Empty: the simulated cohort."""
    simulated_subjects: PositiveInt = 200
    """Subjects of the simulated cohort."""
    spacing_mm: PositiveFloat = 2.0
    """Side of a voxel; the prepared cohort must have the same."""
    patches_per_subject: PositiveInt = 4096
    """Patches of each scan of a brain."""
    max_background: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Largest share of a patch outside the brain."""
    background: Literal["noise", "constant"] = "noise"
    """Outside the brain: Gaussian noise of the brain's standard deviation, as in the thesis, or the darkest intensity."""
    contrast_augmentation: Literal["none", "pca", "independent"] = "none"
    """Shifts of the tissues' means and variances in training: along the principal components of the cohort (the thesis), or each
    on its own (Meyer et al. 2021)."""

    def with_absolute_paths(self) -> DataConfig:
        """The same data for a process in another folder."""
        places = {"path": self.path, "root": self.root}
        return self.model_copy(update={name: place.resolve() for name, place in places.items() if place is not None})

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.source == "rc49" and self.path is None:
            raise ValueError("source rc49 needs `path`, the RC-49 HDF5 file")
        if self.root is not None and self.source != "brain":
            raise ValueError(f"`root` is the folder of a prepared cohort and needs source brain, found {self.source}")
        if self.source == "brain" and self.root is None and self.spacing_mm != round(self.spacing_mm):
            raise ValueError(
                f"the simulated cohort has voxels of a whole number of millimetres, found spacing_mm {self.spacing_mm:g}"
            )
        if self.angle_max_degrees <= self.angle_min_degrees:
            raise ValueError("angle_max_degrees must be larger than angle_min_degrees")
        return self


class AugmentationConfig(Section):
    """Augmentation for auxiliary networks; the GAN trains without (thesis III.A.2)."""

    hue_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 180.0
    """Hue is rotated by up to this angle, for networks with `augment_hue`."""
    pad_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.125
    """Padding before the random crop, as a share of the image side."""
    noise_std_max: Fraction = 0.1
    """Largest standard deviation of the Gaussian noise; the intensity range is [-1, 1]."""


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
        if self.value_max <= self.value_min:
            raise ValueError("value_max must be larger than value_min")
        if self.kind == "embedding" and self.auxiliary.batch_size % self.auxiliary.views_per_subject:
            raise ValueError(
                f"auxiliary.batch_size ({self.auxiliary.batch_size}) must be a multiple of "
                f"auxiliary.views_per_subject ({self.auxiliary.views_per_subject})"
            )
        return self


class GeneratorConfig(Section):
    """StyleGAN2 generator and its mapping stacks (thesis II.A.1, III.A.3b)."""

    channels: tuple[PositiveInt, ...]
    """Channels from resolution 4 upwards, one entry a resolution."""
    mapping_layers: PositiveInt = 8
    """Layers of each sub-space's mapping stack."""
    mapping_lr_multiplier: PositiveFloat = 0.01
    """Learning-rate multiplier of the mapping stacks."""
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
    warmup_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Adam's first decay for generator and encoder in the warm-up; later it is 0."""
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
    """Pairs to learn from: styles of generated images with the values that the auxiliary network reads from them (the thesis);
    or random values with the styles that the encoder, which has seen true values, gives them."""
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


class ProjectionConfig(Section):
    """Projection: image -> whitened style, conditions held fixed (thesis II.B.1)."""

    train_samples: PositiveInt = 5000
    """Projected images of training subjects, half of them with an anomaly."""
    test_samples: PositiveInt = 5000
    """Projected images of test subjects, half of them with an anomaly."""
    calibration_samples: NonNegativeInt = 0
    """Projected images of subjects in neither split, half of them with an anomaly; thresholds are then chosen on them.
    0: none, and thresholds come from training subjects, as in the thesis."""
    steps: PositiveInt = 1000
    """Optimisation steps."""
    batch_size: PositiveInt = 128
    """Images projected at once; results do not depend on it."""
    learning_rate: PositiveFloat = 0.1
    """Adam's peak learning rate."""
    start: Literal["mean", "encoder"] = "mean"
    """Where the optimisation starts: at the mean style as in the thesis, or at the encoder's answer."""
    rampup: Fraction = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    rampdown: Fraction = 0.25
    """Share of the steps in which the learning rate falls as a cosine."""
    perceptual: Literal["recognition", "efficientnet_lite0", "vgg16", "ssim"] = "recognition"
    """Features of the perceptual loss: the recognition network, EfficientNet-Lite0 (`perceptual` extra), or a VGG16 file; `ssim`
    is the negative structural similarity that the thesis takes instead in 3D."""
    perceptual_path: Path | None = None
    """torchvision's VGG16 weights; only for `perceptual: vgg16`."""
    perceptual_weight: NonNegativeFloat = 1.0
    """Weight of the perceptual loss."""
    pixel_loss: Literal["l1", "l2"] = "l2"
    """Pixel-wise part of the reconstruction loss."""
    pixel_weight: NonNegativeFloat = 1.0
    """Weight of the pixel-wise loss."""
    radius: PositiveFloat | None = None
    """Whitened lengths beyond this are penalised; 3 in the thesis. Empty: the quantile below."""
    radius_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Quantile of the chi distribution with the sub-space's dimension that serves as radius."""
    radius_weight: NonNegativeFloat = 1.0
    """Weight of the length penalty L_r."""

    @model_validator(mode="after")
    def _check(self) -> ProjectionConfig:
        if self.perceptual == "vgg16" and self.perceptual_path is None:
            raise ValueError("perceptual vgg16 needs `perceptual_path`, torchvision's VGG16 weights")
        return self


class ScoringConfig(Section):
    """Anomaly scores (thesis II.B.2, IV.A.3)."""

    features: Literal["thesis", "residuals"] = "thesis"
    """Features of the forest: `thesis` (lengths, conditions, L1); `residuals` adds the other residuals."""
    max_depth: tuple[PositiveInt, ...] = (3, 5, 7, 9, 11, 13)
    """Grid of the forest's maximum depths."""
    n_estimators: tuple[PositiveInt, ...] = (100, 300)
    """Grid of the forest's numbers of trees."""
    min_samples_leaf: tuple[PositiveInt, ...] = (1,)
    """Grid of the forest's smallest leaves."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation, grouped by subject."""
    bootstrap_samples: PositiveInt = 1000
    """Resamplings of subjects for the 95 % intervals."""


class NormalsConfig(Section):
    """What is usual at each place of the atlas; only for `data.source: brain`."""

    samples: PositiveInt = 8192
    """Normal training patches whose residuals are gathered."""
    smoothing_mm: PositiveFloat = 1.0
    """Standard deviation of the Gaussian that pools neighbouring voxels."""


class BrainsConfig(Section):
    """Whole brains from overlapping patches (thesis II.B, IV.B); only for `data.source: brain`."""

    stride: PositiveInt = 8
    """Voxels from one patch to the next."""
    identities: PositiveInt = 8
    """Brains that are generated at every age."""
    ages: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] = (30.0, 50.0, 70.0)
    """Ages, in years, that every identity is generated at; the oldest is compared with the youngest."""
    scans: PositiveInt = 2
    """Test scans that get anomaly maps, each as it is and with a drawn blot; the first one is shown rebuilt, too."""
    steps: PositiveInt | None = None
    """Projection steps of a patch; `projection.steps`, at which the detectors were fitted, when empty. With fewer, residuals and
    scores are a little higher everywhere."""
    batch_size: PositiveInt = 64
    """Patches projected or generated at once; results do not depend on it."""
    max_background: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Largest share of a patch outside the brain; `data.max_background`, which the networks know, when empty. Voxels that only
    emptier patches would cover have no score."""
    cases: Path | None = None
    """Table of scans from outside the cohort that get anomaly maps, too: columns as for `normscape prepare table`, and maybe
    `lesion` (a mask on the scan's grid) and `strip` (deepbet, hdbet, mask, or none). An unknown age is read from the scan."""


class Config(Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run's folder and of its MLflow experiment."""
    description: str = ""
    """One line for tables and pages."""
    seed: NonNegativeInt = 0
    """Every random choice follows from this."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    dims: Literal[2, 3] = 2
    """Spatial dimensions of an image or patch."""
    image_size: PositiveInt = 32
    """Side of an image, in pixels (voxels in 3D); a power of two, at least 8."""
    image_channels: PositiveInt = 3
    """Intensity channels of an image."""
    data: DataConfig = DataConfig()
    """Images and split."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Augmentation for the auxiliary networks."""
    attributes: Annotated[tuple[AttributeConfig, ...], Field(min_length=1)]
    """The attributes, in the order of their sub-spaces; the first one is the identity."""
    other_dim: PositiveInt = 32
    """Width of the last sub-space, `other`, which belongs to no attribute."""
    generator: GeneratorConfig
    """Generator."""
    discriminator: DiscriminatorConfig
    """Discriminator."""
    encoder: EncoderConfig = EncoderConfig()
    """Encoder."""
    gan: GanConfig
    """GAN training."""
    controllers: ControllerConfig = ControllerConfig()
    """Controllers."""
    latents: LatentsConfig = LatentsConfig()
    """Style space."""
    normals: NormalsConfig = NormalsConfig()
    """Usual residuals at each place."""
    projection: ProjectionConfig = ProjectionConfig()
    """Projection."""
    scoring: ScoringConfig = ScoringConfig()
    """Anomaly scores."""
    brains: BrainsConfig = BrainsConfig()
    """Whole brains."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Image sides from 4 to `image_size`."""
        return tuple(4 * 2**i for i in range(int(math.log2(self.image_size)) - 1))

    @property
    def value_attributes(self) -> tuple[AttributeConfig, ...]:
        """Attributes with a controller."""
        return tuple(a for a in self.attributes if a.kind == "value")

    @property
    def subspaces(self) -> dict[str, int]:
        """Name and width of every sub-space, in order; the last one is `other`."""
        return {a.name: a.latent_dim for a in self.attributes} | {"other": self.other_dim}

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems: list[tuple[str, str]] = []
        size = self.image_size
        if size < 8 or size & (size - 1):
            problems.append(("image_size", f"must be a power of two of at least 8, found {size}"))
        else:
            n = len(self.resolutions)
            sides = ", ".join(map(str, self.resolutions))
            parts = (
                ("generator", self.generator.channels),
                ("discriminator", self.discriminator.channels),
                ("encoder", self.encoder.channels),
            )
            for part, channels in parts:
                if channels is not None and len(channels) != n:
                    problems.append(
                        (f"{part}.channels", f"image_size {size} needs {n} entries (for sides {sides}), found {len(channels)}")
                    )
        unit = 2 ** len(self.attributes)
        if self.gan.batch_size % unit:
            problems.append(
                (
                    "gan.batch_size",
                    f"must be a multiple of 2^N = {unit} for N = {len(self.attributes)} attributes, found {self.gan.batch_size}",
                )
            )
        if self.gan.batch_size % self.discriminator.deviation_group:
            problems.append(
                (
                    "discriminator.deviation_group",
                    f"must divide gan.batch_size ({self.gan.batch_size}), found {self.discriminator.deviation_group}",
                )
            )
        if self.gan.path_length_weight and self.gan.batch_size % self.gan.path_length_batch_shrink:
            problems.append(
                (
                    "gan.path_length_batch_shrink",
                    f"must divide gan.batch_size ({self.gan.batch_size}), found {self.gan.path_length_batch_shrink}",
                )
            )
        if self.projection.start == "encoder" and not self.gan.reconstruction_weight:
            problems.append(("projection.start", "encoder needs gan.reconstruction_weight above 0, or there is no encoder"))
        if self.controllers.source == "encoder" and not self.gan.reconstruction_weight:
            problems.append(("controllers.source", "encoder needs gan.reconstruction_weight above 0, or there is no encoder"))
        if self.projection.perceptual in ("efficientnet_lite0", "vgg16") and (self.dims, self.image_channels) != (2, 3):
            found = f"found dims {self.dims}, image_channels {self.image_channels}"
            problems.append(("projection.perceptual", f"{self.projection.perceptual} sees 2D images of 3 channels only, {found}"))
        for attribute in self.attributes:
            shape = attribute.auxiliary
            medicalnet = (3, 1, 64, 7)
            if shape.pretrained and (self.dims, self.image_channels, shape.width, shape.stem_kernel) != medicalnet:
                problems.append(
                    (
                        f"attributes.{attribute.name}.auxiliary.pretrained",
                        "MedicalNet's ResNet18 needs dims 3, image_channels 1, width 64, stem_kernel 7 (its conv1); found dims "
                        f"{self.dims}, image_channels {self.image_channels}, width {shape.width}, stem_kernel "
                        f"{shape.stem_kernel}",
                    )
                )
        if self.data.source == "brain" and self.augmentation.pad_fraction:
            message = "must be 0 for source brain: its padding is white, and its shifts change the position"
            problems.append(("augmentation.pad_fraction", f"{message}; found {self.augmentation.pad_fraction:g}"))
        names = [a.name for a in self.attributes]
        if len(set(names)) != len(names) or "other" in names:
            problems.append(("attributes", f"names must be unique and not `other`, found {', '.join(names)}"))
        if self.attributes[0].kind != "embedding" or any(a.kind == "embedding" for a in self.attributes[1:]):
            problems.append(("attributes", "the first attribute, and only the first, must be of kind embedding (the identity)"))
        if problems:
            raise ConfigProblems(problems)
        return self


class ConfigProblems(ValueError):
    """Problems that involve several sections.

    Args:
        problems: (dotted path, message) of each.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))
