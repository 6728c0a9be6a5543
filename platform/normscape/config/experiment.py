"""One experiment: all sections, and what has to fit together among them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from normscape.config.attributes import POSITION_COLUMN, AttributeConfig
from normscape.config.data import AugmentationConfig, DataConfig
from normscape.config.evaluation import EvaluationConfig
from normscape.config.fields import NonNegativeInt, PositiveInt, Section
from normscape.config.scoring import (
    BrainsConfig,
    NetworkConfig,
    NormalsConfig,
    ProjectionConfig,
    RandomisationConfig,
    ScoringConfig,
)
from normscape.config.training import (
    ControllerConfig,
    DiscriminatorConfig,
    EncoderConfig,
    GanConfig,
    GeneratorConfig,
    LatentsConfig,
)


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
    randomisation: RandomisationConfig = RandomisationConfig()
    """Domain randomisation for detectors."""
    network: NetworkConfig = NetworkConfig()
    """Conditional network."""
    projection: ProjectionConfig = ProjectionConfig()
    """Projection."""
    scoring: ScoringConfig = ScoringConfig()
    """Anomaly scores."""
    brains: BrainsConfig = BrainsConfig()
    """Whole brains."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Comparison of detectors."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Image sides from 4 to `image_size`."""
        return tuple(4 * 2**i for i in range(int(math.log2(self.image_size)) - 1))

    @property
    def value_attributes(self) -> tuple[AttributeConfig, ...]:
        """Attributes with a controller."""
        return tuple(a for a in self.attributes if a.kind == "value")

    @property
    def position(self) -> AttributeConfig | None:
        """The attribute that says where a patch lies, where there is one."""
        return next((a for a in self.value_attributes if a.column == POSITION_COLUMN), None)

    @property
    def whole_scans(self) -> bool:
        """Whether an image is a whole scan, so that all images lie at the same place."""
        return self.data.patches == "whole"

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
        placed = self.whole_scans or (self.position is not None and self.position.output_dim == 3)
        if self.generator.atlas_channels and not (self.dims == 3 and placed):
            message = "needs dims 3 and an attribute with 3 components and column `position_mm`, or data.patches whole"
            problems.append(("generator.atlas_channels", message))
        if self.projection.start == "encoder" and not self.gan.reconstruction_weight:
            problems.append(("projection.start", "encoder needs gan.reconstruction_weight above 0, or there is no encoder"))
        if self.scoring.level == "calibration" and not self.projection.calibration_samples:
            problems.append(("scoring.level", "calibration needs projection.calibration_samples above 0"))
        for name in ("source", "conditions"):
            if getattr(self.controllers, name) == "encoder" and not self.gan.reconstruction_weight:
                problems.append(
                    (f"controllers.{name}", "encoder needs gan.reconstruction_weight above 0, or there is no encoder")
                )
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
        if self.data.source != "brain" and self.randomisation.share:
            message = f"must be 0 for source {self.data.source}: its images come from no scanner"
            problems.append(("randomisation.share", f"{message}; found {self.randomisation.share:g}"))
        problems += self._augmentation_problems() + self._whole_problems()
        names = [a.name for a in self.attributes]
        if len(set(names)) != len(names) or "other" in names:
            problems.append(("attributes", f"names must be unique and not `other`, found {', '.join(names)}"))
        if self.attributes[0].kind != "embedding" or any(a.kind == "embedding" for a in self.attributes[1:]):
            problems.append(("attributes", "the first attribute, and only the first, must be of kind embedding (the identity)"))
        if problems:
            raise ConfigProblems(problems)
        return self

    def _whole_problems(self) -> list[tuple[str, str]]:
        """What does not suit whole scans."""
        if not self.whole_scans:
            return []
        problems = []
        if self.position is not None:
            message = "must not be there with data.patches whole: all scans lie at the same place"
            problems.append((f"attributes.{self.position.name}", message))
        if self.data.contrast_augmentation == "none" and not self.augmentation.noise_std_max:
            message = "must not be none with data.patches whole, unless augmentation.noise_std_max is above 0"
            reason = "a person has one image, of which the identity's triplets need several views"
            problems.append(("data.contrast_augmentation", f"{message}: {reason}"))
        return problems

    def _augmentation_problems(self) -> list[tuple[str, str]]:
        """What of the discriminator's augmentation does not suit these images."""
        augmentation, problems = self.gan.augmentation, list[tuple[str, str]]()
        if augmentation.mode == "none":
            return problems
        axes = augmentation.flip_axes
        if axes and self.data.source != "brain":
            message = f"must be empty for source {self.data.source}: a mirrored chair is seen from another angle"
            problems.append(("gan.augmentation.flip_axes", f"{message}; found {', '.join(axes)}"))
        elif set(axes) - {"x"}:
            message = "may hold x, left to right, alone for source brain: along other axes a mirrored brain is no brain"
            problems.append(("gan.augmentation.flip_axes", f"{message}; found {', '.join(axes)}"))
        share = augmentation.translation_fraction
        if share and not round(share * self.image_size):
            message = f"is less than half a pixel at image_size {self.image_size}, and nothing would move"
            problems.append(("gan.augmentation.translation_fraction", f"{message}; found {share:g}"))
        return problems


class ConfigProblems(ValueError):
    """Problems that involve several sections.

    Args:
        problems: (dotted path, message) of each.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))
