"""What is done with a trained generator: projection, scores, whole brains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from normscape.config.evaluation import Plugin, PluginConfig
from normscape.config.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

FeatureSet = Literal["thesis", "residuals", "flat"]
"""Features of a forest; each set holds those before it. See `normscape.scoring.features`."""


class NormalsConfig(Section):
    """What is usual at each place of the atlas; only for `data.source: brain`."""

    samples: PositiveInt = 8192
    """Normal training patches whose residuals are gathered."""
    smoothing_mm: PositiveFloat = 1.0
    """Standard deviation of the Gaussian that pools neighbouring voxels."""


class RandomisationConfig(Section):
    """Domain randomisation: how often images that detectors learn from are shown as another scanner might have shown them."""

    share: Fraction = 0.0
    """Share of the images that the forest and the conditional network learn from; only for `data.source: brain`."""
    strength: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """How far they are changed: 1 is more than most scanners differ by, see `normscape.datasets.randomisation`."""


class NetworkConfig(Section):
    """The conditional network: sees an image beside what is usual, learns from synthetic anomalies, is heard with the forest."""

    images: NonNegativeInt = 0
    """Normal training images that it looks at, repeats counted; every second one gets an anomaly. 0: no such network."""
    families: Annotated[tuple[Plugin, ...], Field(min_length=1)] = (PluginConfig(name="standard"),)
    """Anomaly families that it learns from, in turn."""
    width: PositiveInt | None = None
    """Channels of the U-Net's finest stage; 48 in 2D and 24 in 3D when empty."""
    batch_size: PositiveInt = 32
    """Images a step."""
    learning_rate: PositiveFloat = 0.002
    """Adam's learning rate at the start; it falls to 0 along half a cosine."""
    map_weight: NonNegativeFloat = 5.0
    """Weight of the cross-entropy of the places, beside that of the image."""
    checkpoint_interval: PositiveInt = 1000
    """Steps from one checkpoint to the next."""


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
    stop_tolerance: Fraction = 0.0
    """An image whose mean reconstruction loss falls by less than this share from one window of `stop_window` steps to the next
    goes into a ramp-down of its own and then leaves the batch. 0: every image takes all steps."""
    stop_window: PositiveInt = 10
    """Steps between two looks at whether an image still improves."""
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
    curve_images: NonNegativeInt = 0
    """Normal images, of subjects that no network was trained on, for the curve of residual against time: from the encoder's
    answer in batches, and from the mean style one at a time. 0: no curve."""
    curve_steps: PositiveInt = 1000
    """Most steps of the curve; 1000 are the thesis's. Fewer bound its time."""

    @model_validator(mode="after")
    def _check(self) -> ProjectionConfig:
        if self.perceptual == "vgg16" and self.perceptual_path is None:
            raise ValueError("perceptual vgg16 needs `perceptual_path`, torchvision's VGG16 weights")
        return self


class ScoringConfig(Section):
    """Anomaly scores (thesis II.B.2, IV.A.3)."""

    features: FeatureSet = "thesis"
    """Features of the forest: `thesis` (lengths, conditions, L1); `residuals` adds the other residuals; `flat` adds those that
    weigh less where the image varies, which tell more of blots of one colour than of lesions with a texture."""
    level: Literal["none", "calibration"] = "none"
    """`calibration` brings the lengths and residuals of training rows, which forests learn from, to the level of normal images
    of subjects that no network has seen; see `normscape.scoring.levels`. Needs `projection.calibration_samples`.
    The forest then knows calibration subjects, and p-values, which are measured on the same, keep their promise only nearly."""
    max_depth: tuple[PositiveInt, ...] = (3, 5, 7, 9, 11, 13)
    """Grid of the forest's maximum depths."""
    n_estimators: tuple[PositiveInt, ...] = (100, 300)
    """Grid of the forest's numbers of trees."""
    min_samples_leaf: tuple[PositiveInt, ...] = (1,)
    """Grid of the forest's smallest leaves."""
    max_features: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the features that a tree tries at each split; as many as the square root of their number when empty."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation, grouped by subject."""
    bootstrap_samples: PositiveInt = 1000
    """Resamplings of subjects for the 95 % intervals."""


class BrainsConfig(Section):
    """Whole brains from overlapping patches (thesis II.B, IV.B); only for `data.source: brain`."""

    stride: PositiveInt = 8
    """Voxels from one patch to the next."""
    identities: PositiveInt = 8
    """Brains that are generated at every age."""
    truncation: Fraction = 1.0
    """Share of the way from the neutral style to that of random latents that a generated brain's identity lies at: the truncation
    trick (Karras et al. 2019). 1, as in the thesis: all of it."""
    ages: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] = (30.0, 50.0, 70.0)
    """Ages, in years, that every identity is generated at; the oldest is compared with the youngest."""
    scans: PositiveInt = 2
    """Test scans that get anomaly maps, each as it is and with a drawn blot; the first one is shown rebuilt, too."""
    calibration_scans: NonNegativeInt = 0
    """Healthy scans of subjects in neither split, one a subject, that are mapped whole, so that `normscape score` can say how
    often a healthy scan looks as abnormal: with n of them that p-value is at least 1 / (n + 1). 0: none."""
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
