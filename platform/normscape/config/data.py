"""What is learned from: images, split, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from normscape.config.fields import Fraction, PositiveFloat, PositiveInt, Section


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
    """Side of a voxel; the prepared cohort must have it, or a whole fraction of it: its voxels are then averaged in blocks."""
    patches: Literal["random", "whole"] = "random"
    """What is cut from a scan of a brain: `random` patches, as in the thesis, or the `whole` of it as one image, the cube of
    `image_size` voxels around the middle of the atlas's brain. The position is then no attribute: it is everywhere the same."""
    patches_per_subject: PositiveInt = 4096
    """Patches of each scan of a brain; one where scans are whole."""
    max_background: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Largest share of a patch outside the brain; any where scans are whole."""
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
        if self.patches == "whole" and self.source != "brain":
            raise ValueError(f"patches (whole) are scans of brains and need source brain, found {self.source}")
        if self.source == "brain" and self.root is None and self.spacing_mm != round(self.spacing_mm):
            raise ValueError(
                f"the simulated cohort has voxels of a whole number of millimetres, found spacing_mm {self.spacing_mm:g}"
            )
        if self.angle_max_degrees <= self.angle_min_degrees:
            raise ValueError("angle_max_degrees must be larger than angle_min_degrees")
        return self


class AugmentationConfig(Section):
    """Augmentation for auxiliary networks (thesis III.A.2); the GAN has its own, `gan.augmentation`, and none by default."""

    hue_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 180.0
    """Hue is rotated by up to this angle, for networks with `augment_hue`."""
    pad_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.125
    """Padding before the random crop, as a share of the image side."""
    noise_std_max: Fraction = 0.1
    """Largest standard deviation of the Gaussian noise; the intensity range is [-1, 1]."""
