"""Anatomy of the simulated cohort: who a subject is, and what their brain looks like.

The asset `assets/brains.npz` (made by `infra/assets/pack_brains.py`, authors in `assets/BRAINS_ATTRIBUTION.md`) holds K = 4 real
brains deformed onto the SRI24 atlas, on a grid of 1.5 mm: `levels` uint8 (K, Z, Y, X), 0 outside, else the tissue level;
`velocities_mm` float16 (K, 3, *control grid), the field that brought each of them there, and `mirror_mm`, the field between the
atlas and its mirror image; `ventricles` uint8 (Z, Y, X); `growth`, a field that widens them by 1 mm; `origin_mm`
(x, y, z) and `spacing_mm` in the atlas's RAS space. A *level* is 0 in CSF, 0.5 in grey and 1 in white matter.

A subject's brain, in the atlas's space:

1. *Mosaic*: each place takes its folding from one of the four brains or their mirror images; which one follows smooth random
   fields, so that neighbouring regions may come from different brains.
2. *Pial surface*: cortex thins and sulci open as CSF takes over the outermost part of the cortex.
3. *Shape*: the flow of a velocity field, the sum of a random mix of the brains' own shapes, random fields of three sizes (lobes,
   gyri, folds), and the widening of the ventricles.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normscape.datasets.simulated_fields import box_points, flow, refined, sample, smooth_noise

AGE_RANGE_YEARS = (20.0, 86.0)
SITES = ("north", "river", "campus")
"""Scanners, one a site."""
OUTSIDE = -0.2
"""Lowest level in the asset; levels reach OUTSIDE + 1.5."""

VENTRICLES_AT_20_ML = 13.0
VENTRICLE_RATE, VENTRICLE_RATE_FROM_60 = 0.008, 0.030
"""Relative growth a year. 3 to 4 % a year in people over 60, slower before: Scahill et al. 2003 (Archives of Neurology 60, 989),
Fjell et al. 2009 (Journal of Neuroscience 29, 15223), Walhovd et al. 2011 (Neurobiology of Aging 32, 916)."""
VENTRICLE_SCATTER = 0.40
"""Standard deviation of log volume among people of one age: with it age explains a third to a half of log volume."""
CORTEX_MM, THINNING_RATE, DONOR_AGE_YEARS = 2.5, 0.005, 30.0
"""Cortical thickness, its loss a year (Salat et al. 2004, Cerebral Cortex 14, 721; Fjell et al. 2009), and the age that the
brains of the asset are taken to have."""
THINNING_SCATTER_MM = 0.15
CONTRAST_LOSS = 0.002
"""Share of the contrast between grey and white matter that is lost a year. That it falls: Salat et al. 2009 (NeuroImage 48,
21); the rate is a choice, small enough that age cannot be read off it among scanners that differ more."""

SHAPE_SIZES = ((5.0, 2.2), (2.2, 1.3), (1.3, 0.6))
"""Random shape: smoothing width in nodes of the control grid (4.5 mm) and standard deviation in mm, of lobes, gyri and folds."""
MOSAIC_WIDTH = 4.0
"""Smoothing width of the mosaic's fields, in nodes."""
MOSAIC_SHARPNESS = 14.0
TEMPLATE_WEIGHT = -0.6
"""Added to the fields of the atlas, whose cortex is the mean of 24 people's and less crisp."""
SHARPENING = 0.7
"""Share of the difference to a blurred image that is added to each brain: makes up for interpolating it three times."""
STRENGTHS_MM = (-8.0, 16.0)
"""Least and greatest widening of the ventricles."""
SECANT_STEPS = 4


@dataclass(frozen=True)
class Subject:
    """Who a simulated subject is; a pure function of (seed, number)."""

    seed: int
    number: int
    name: str
    age_years: float
    sex: str
    """F or M."""
    site: str
    head_scale: float
    """Size of the head, 1 is the atlas's; men's heads are larger by 5 % along each side."""


@dataclass(frozen=True)
class Anatomy:
    """A subject's brain without scanner, as functions of the place in the atlas's box.

    Attributes:
        channels: (3, Z, Y, X) on the asset's grid, before the flow: level, share of lateral ventricle, mask.
        displacement_mm: (3, *control grid): from a place in the subject to where `channels` shows it.
    """

    channels: Tensor
    displacement_mm: Tensor

    def at(self, points_mm: Tensor) -> Tensor:
        """Level, ventricle share and mask at places of the box, (A, B, D, 3) millimetres from its corner: (3, A, B, D)."""
        extent = assets().extent_mm
        moved = points_mm + sample(self.displacement_mm, points_mm, extent).movedim(0, -1)
        return sample(self.channels, moved, extent)


@dataclass(frozen=True)
class Assets:
    """The asset, ready for use: 2 K brains, each followed by its mirror image. Levels float32, fields in mm."""

    levels: Tensor
    """(2K, Z, Y, X); 0 outside."""
    masks: Tensor
    """bool (2K, Z, Y, X)."""
    velocities_mm: Tensor
    """(2K, 3, *control grid)."""
    ventricles: Tensor
    """(Z, Y, X) in [0, 1], a little wider than the ventricles themselves."""
    growth: Tensor
    """(3, *control grid)."""
    origin_mm: NDArray[np.float64]
    """x, y, z."""
    spacing_mm: float
    extent_mm: Tensor
    """z, y, x."""


@functools.lru_cache(maxsize=1)
def assets() -> Assets:
    """Read the asset and add the mirror images, moved onto the atlas by the field between it and its own mirror image."""
    content = resources.files("normscape.datasets").joinpath("assets/brains.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        data = dict(arrays)
    stored = torch.from_numpy(data["levels"])
    spacing = float(data["spacing_mm"])
    extent = torch.tensor([(n - 1) * spacing for n in stored.shape[1:]])
    shape = stored.shape[1:]
    masks = stored > 0
    levels = torch.where(masks, OUTSIDE + (stored - 1.0) / 254 * 1.5, 0.0)
    mirror = torch.from_numpy(data["mirror_mm"].astype(np.float32))
    place = box_points(shape, extent) + refined(flow(mirror, extent), shape).movedim(0, -1)
    moved = sample(torch.cat([levels, masks.float()]).flip(-1), place, extent)
    mirrored, mirrored_masks = moved[: len(stored)], moved[len(stored) :] > 0.5
    velocities = torch.from_numpy(data["velocities_mm"].astype(np.float32))
    sign = torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1, 1)
    ventricles = torch.from_numpy(data["ventricles"]).float()
    levels = torch.stack([levels, mirrored * mirrored_masks], dim=1).flatten(0, 1)
    blurred = torch.from_numpy(ndimage.gaussian_filter(levels.numpy(), (0, 1, 1, 1)))
    return Assets(
        levels=(levels + SHARPENING * (levels - blurred)).clamp(OUTSIDE, OUTSIDE + 1.5),
        masks=torch.stack([masks, mirrored_masks], dim=1).flatten(0, 1),
        velocities_mm=torch.stack([velocities, velocities.flip(-1) * sign + mirror], dim=1).flatten(0, 1),
        ventricles=F.max_pool3d(ventricles[None], 3, stride=1, padding=1)[0],
        growth=torch.from_numpy(data["growth"].astype(np.float32)),
        origin_mm=data["origin_mm"],
        spacing_mm=spacing,
        extent_mm=extent,
    )


def generator(seed: int, number: int, *stream: int) -> np.random.Generator:
    """Random numbers of one subject (and session), independent of all others."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, *stream])))


def describe(seed: int, number: int) -> Subject:
    """Age (uniform in AGE_RANGE_YEARS), sex, site and head size of a subject; cheap."""
    random = generator(seed, number, 0)
    age, sex = random.uniform(*AGE_RANGE_YEARS), "FM"[random.integers(2)]
    site = SITES[random.integers(len(SITES))]
    scale = random.normal(1.025 if sex == "M" else 0.975, 0.025)
    return Subject(seed, number, f"sim-{number:04d}", round(float(age), 2), sex, site, float(scale))


def ventricle_target_ml(age_years: float) -> float:
    """Volume of the lateral ventricles of an average person of this age, in ml."""
    years = VENTRICLE_RATE * (min(age_years, 60.0) - 20.0) + VENTRICLE_RATE_FROM_60 * max(age_years - 60.0, 0.0)
    return float(VENTRICLES_AT_20_ML * np.exp(years))


def build(subject: Subject) -> Anatomy:
    """The subject's brain; a pure function of (seed, number)."""
    data, random = assets(), generator(subject.seed, subject.number, 1)
    control = data.growth.shape[1:]
    level, mask = _mosaic(random, data)
    level = _thinned(level, mask, _pial_shift(random, subject, data), data)
    csf = (1 - 2 * level).clamp(0, 1)
    channels = torch.stack([level, csf * data.ventricles * mask, mask])

    share = torch.from_numpy(random.dirichlet(np.full(len(data.levels), 0.4)).astype(np.float32))
    velocity = -torch.tensordot(share, data.velocities_mm, dims=1)
    for width, size_mm in SHAPE_SIZES:
        velocity = velocity + size_mm * torch.from_numpy(smooth_noise(random, 3, control, width))
    wanted = np.log(ventricle_target_ml(subject.age_years)) + random.normal(0.0, VENTRICLE_SCATTER)
    return Anatomy(channels, _widened(velocity, channels[1], float(wanted), data))


def _widened(velocity: Tensor, ventricle: Tensor, log_volume: float, data: Assets) -> Tensor:
    """Displacement of a shape whose ventricles have this volume (natural logarithm of ml), found by the secant method.

    The volume is measured on the control grid, whose nodes see the mean of the voxels around them.
    """
    coarse = F.avg_pool3d(ventricle[None], 3, stride=3, padding=1)
    points = box_points(coarse.shape[1:], data.extent_mm)
    node_ml = float((data.extent_mm / (torch.tensor(coarse.shape[1:]) - 1)).prod()) / 1000
    strength, slope = 0.0, 0.12
    tried: tuple[float, float] | None = None
    for step in range(SECANT_STEPS + 1):
        displacement = flow(velocity + strength * data.growth, data.extent_mm)
        if step == SECANT_STEPS:
            break
        found = float(sample(coarse, points + displacement.movedim(0, -1), data.extent_mm).sum().log() + np.log(node_ml))
        if tried is not None and abs(strength - tried[0]) > 1e-3:
            slope = float(np.clip((found - tried[1]) / (strength - tried[0]), 0.02, 0.5))
        tried = strength, found
        strength = float(np.clip(strength + (log_volume - found) / slope, *STRENGTHS_MM))
    return displacement


def _mosaic(random: np.random.Generator, data: Assets) -> tuple[Tensor, Tensor]:
    """Level and mask (Z, Y, X), each place from the brain whose random field is highest there, with soft seams."""
    count, shape = len(data.levels), data.levels.shape[1:]
    fields = smooth_noise(random, count, data.growth.shape[1:], MOSAIC_WIDTH)
    fields += random.normal(0.0, 0.4, size=(count, 1, 1, 1)).astype(np.float32)  # some brains more than others
    fields[:2] += TEMPLATE_WEIGHT
    weights = torch.softmax(MOSAIC_SHARPNESS * torch.from_numpy(fields), dim=0)
    level, mask = torch.zeros(shape), torch.zeros(shape)
    for weight, one, inside in zip(weights, data.levels, data.masks, strict=True):
        fine = refined(weight[None], shape)[0]
        level += fine * one
        mask += fine * inside
    return level, mask


def _pial_shift(random: np.random.Generator, subject: Subject, data: Assets) -> Tensor:
    """How far the pial surface moves inwards, in mm (outwards when negative): (Z, Y, X); none within the ventricles."""
    years = subject.age_years - DONOR_AGE_YEARS
    mean = CORTEX_MM * THINNING_RATE * years + random.normal(0.0, THINNING_SCATTER_MM)
    regional = THINNING_SCATTER_MM * torch.from_numpy(smooth_noise(random, 1, data.growth.shape[1:], 3.0))
    return refined(mean + regional, data.levels.shape[1:])[0] * (1 - data.ventricles)


def _thinned(level: Tensor, mask: Tensor, shift_mm: Tensor, data: Assets) -> Tensor:
    """Let CSF advance by shift_mm into the cortex, or the cortex into CSF.

    A share p of CSF changes towards its neighbours' largest (smallest) share, by shift / voxel: the first-order motion of the
    surface p = 1/2 along its normal.
    """
    share = torch.where(mask > 0.5, (1 - 2 * level).clamp(0, 1), 1.0)
    steps = (shift_mm / data.spacing_mm).clamp(-1, 1)
    changed = share + steps.clamp_min(0) * (_neighbours(share) - share) - (-steps).clamp_min(0) * (share + _neighbours(-share))
    parenchyma = level * ((1 - changed) / (1 - share).clamp_min(0.05)).clamp(max=1)
    return torch.where(changed > share, torch.minimum(parenchyma, level), level + 0.5 * (share - changed))


def _neighbours(image: Tensor) -> Tensor:
    """Largest value among a voxel and its six neighbours."""
    one = image[None, None]
    along = (F.max_pool3d(one, k, stride=1, padding=[n // 2 for n in k]) for k in ((3, 1, 1), (1, 3, 1), (1, 1, 3)))
    return functools.reduce(torch.maximum, along)[0, 0]
