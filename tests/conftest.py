"""A toy experiment: blobs whose colour is the identity and whose place is the angle, small enough to train in a test."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from normscape.baselines import Training
from normscape.config import Config
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.prepared import SUBJECT_SCHEMA, PreparedCohort
from normscape.datasets.samples import SampleSet, StoredImages

if TYPE_CHECKING:
    import SimpleITK as sitk

    from normscape.preprocessing.atlas import Atlas

SUBJECTS, ANGLES = 6, 16


def pytest_configure() -> None:
    """Tests that interrupt a child with Ctrl-C must work in a background job too, whose children would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def toy_settings(dims: int = 2) -> dict[str, Any]:
    """A configuration of the least possible size: images of side 8."""
    auxiliary = {
        "width": 4,
        "stem_kernel": 3,
        "stem_stride": 1,
        "stem_pool": False,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.02,
    }
    return {
        "name": "toy",
        "dims": dims,
        "image_size": 8,
        "data": {"train_subjects": 4, "test_subjects": 2},
        "attributes": [
            {
                "name": "identity",
                "kind": "embedding",
                "latent_dim": 6,
                "output_dim": 8,
                "distance": "euclidean",
                "tau_same": 0.05,
                "tau_different": 0.35,
                "auxiliary": auxiliary,
            },
            {
                "name": "angle",
                "kind": "value",
                "latent_dim": 6,
                "output_dim": 1,
                "distance": "l1",
                "tau_same": 0.03,
                "tau_different": 0.15,
                "column": "angle_degrees",
                "value_max": 90.0,
                "unit": "degrees",
                "auxiliary": auxiliary | {"augment_hue": True},
            },
        ],
        "other_dim": 4,
        "generator": {"channels": [12, 8], "mapping_layers": 3},
        "discriminator": {"channels": [8, 12]},
        "gan": {
            "steps": 6,
            "batch_size": 8,
            "r1_interval": 2,
            "path_length_weight": 2.0,
            "path_length_interval": 3,
            "checkpoint_interval": 3,
            "log_interval": 1,
            "sample_interval": 3,
            "quality_samples": 32,
        },
        "controllers": {"samples": 64, "epochs": 4, "hidden": 16, "check_samples": 16, "batch_size": 16},
        "latents": {"samples": 256},
        "projection": {"train_samples": 8, "test_samples": 8, "steps": 5, "batch_size": 4},
    }


@pytest.fixture
def toy_config() -> Callable[..., Config]:
    """Makes the toy configuration; `toy_config(dims=3, gan={"steps": 2})` changes some of it."""

    def make(dims: int = 2, **changes: Any) -> Config:
        settings = toy_settings(dims)
        for name, value in changes.items():
            settings[name] = settings[name] | value if isinstance(value, dict) and name in settings else value
        return Config.model_validate(settings)

    return make


@pytest.fixture(scope="session")
def small_chairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Chairs of 8 pixels are rendered once for all tests that ask for this: their cache is the session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def toy_samples() -> Callable[..., SampleSet]:
    """Makes toy images: a square of the subject's colour that moves with the angle, on white."""

    def make(dims: int = 2, side: int = 8) -> SampleSet:
        colours = torch.randint(0, 200, (SUBJECTS, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images = torch.full((SUBJECTS, ANGLES, 3, *(side,) * dims), 255, dtype=torch.uint8)
        for angle in range(ANGLES):
            start = angle * (side - 4) // (ANGLES - 1)
            images[(slice(None), angle, slice(None), *(slice(start, start + 4),) * dims)] = colours.view(
                SUBJECTS, 3, *(1,) * dims
            )
        degrees = torch.linspace(0, 90, ANGLES).repeat(SUBJECTS)[:, None]
        return SampleSet(
            images=StoredImages(images.flatten(0, 1)),
            subject=torch.arange(SUBJECTS).repeat_interleave(ANGLES),
            subjects=tuple(f"toy-{i}" for i in range(SUBJECTS)),
            values={"angle_degrees": degrees},
            sample_id=torch.arange(SUBJECTS * ANGLES),
        )

    return make


class LitImages:
    """Grey images, each as bright as augmentation draws it; as they are, they are all alike."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one image."""
        return 3, 8, 8

    def __len__(self) -> int:
        return self.count

    def draw(self, rows: torch.Tensor, random: torch.Generator | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Images float32 (B, 3, 8, 8) and, where it is drawn, `light` (B, 1) in [-1, 1]."""
        light = torch.zeros(len(rows), 1) if random is None else 2 * torch.rand(len(rows), 1, generator=random) - 1
        return light.view(-1, 1, 1, 1).repeat(1, *self.shape), {} if random is None else {"light": light}

    def masks(self, rows: torch.Tensor) -> None:
        """Everything counts."""


@pytest.fixture
def lit_samples() -> SampleSet:
    """Images of several subjects with one value, `light`, that augmentation draws and that is 0 otherwise."""
    count = SUBJECTS * ANGLES
    names = tuple(f"lit-{i}" for i in range(SUBJECTS))
    subject = torch.arange(SUBJECTS).repeat_interleave(ANGLES)
    return SampleSet(LitImages(count), subject, names, {"light": torch.zeros(count, 1)}, torch.arange(count))


def toy_brain_settings() -> dict[str, Any]:
    """The least possible experiment in 3D with masks: identity, age and position of grey patches of side 8."""
    settings = toy_settings(dims=3)
    identity, _ = settings["attributes"]
    auxiliary = identity["auxiliary"]
    shared = {"kind": "value", "latent_dim": 6, "distance": "l1", "tau_same": 0.02, "tau_different": 0.2, "auxiliary": auxiliary}
    age = {"name": "age", "output_dim": 1, "column": "age_years", "value_min": 20.0, "value_max": 80.0, "unit": "years"}
    position = {"name": "position", "output_dim": 3, "column": "position_mm", "value_min": -80, "value_max": 80, "unit": "mm"}
    position |= {"grids": [3]}
    return settings | {
        "image_channels": 1,
        "data": {"source": "brain", "train_subjects": 4, "test_subjects": 2},
        "augmentation": {"pad_fraction": 0.0},
        "attributes": [identity, shared | age, shared | position],
        "gan": settings["gan"] | {"reconstruction_weight": 5.0, "warmup_steps": 3, "path_length_weight": 0.0},
        "generator": settings["generator"] | {"atlas_channels": 2},
        "controllers": settings["controllers"] | {"source": "encoder"},
        "projection": settings["projection"] | {"perceptual": "ssim", "start": "encoder"},
    }


@pytest.fixture
def toy_brain_config() -> Callable[..., Config]:
    """Makes the toy configuration of a brain; `toy_brain_config(gan={"steps": 2})` changes some of it."""

    def make(**changes: Any) -> Config:
        settings = toy_brain_settings()
        for name, value in changes.items():
            settings[name] = settings[name] | value if isinstance(value, dict) and name in settings else value
        return Config.model_validate(settings)

    return make


@pytest.fixture
def toy_whole_config(toy_brain_config: Callable[..., Config]) -> Callable[..., Config]:
    """Makes the toy configuration of whole scans, images of side 8 of voxels of 6 mm; for the cohort of `prepared_cohort`."""

    def make(**changes: Any) -> Config:
        settings = toy_brain_settings()
        whole = {"patches": "whole", "spacing_mm": 6.0, "background": "constant", "contrast_augmentation": "pca"}
        changes["data"] = whole | changes.get("data", {})
        return toy_brain_config(attributes=settings["attributes"][:2], **changes)

    return make


@dataclass(frozen=True)
class ToyPatches:
    """Smooth patches under masks, noise outside; augmented patches are shifted in intensity and their noise is drawn anew."""

    brain: torch.Tensor
    mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of one patch."""
        return tuple(self.brain.shape[1:])

    def __len__(self) -> int:
        return len(self.brain)

    def draw(self, rows: torch.Tensor, random: torch.Generator | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Patches float32 (B, 1, *S)."""
        brain = self.brain[rows]
        shift = 0.0 if random is None else 0.2 * torch.rand(len(rows), 1, 1, 1, 1, generator=random)
        noise = torch.randn(self.brain.shape, generator=torch.Generator().manual_seed(0))[rows]
        noise = noise if random is None else torch.randn(brain.shape, generator=random)
        return torch.where(self.mask[rows], brain + shift, 0.3 * noise).clamp(-1, 1), {}

    def masks(self, rows: torch.Tensor) -> torch.Tensor:
        """Bool (B, 1, *S)."""
        return self.mask[rows]


@pytest.fixture
def toy_brain_samples() -> Callable[..., SampleSet]:
    """Makes toy patches: the subject's and age's grey with a slope of the place; a corner of each is background."""

    def make(side: int = 8, each: int = 12) -> SampleSet:
        count, random = SUBJECTS * each, torch.Generator().manual_seed(0)
        subject = torch.arange(SUBJECTS).repeat_interleave(each)
        age = 20 + 10 * subject[:, None].float()
        position = torch.rand(count, 3, generator=random) * 100 - 50
        axis = torch.linspace(-0.5, 0.5, side)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flatten(1)
        brain = (position / 100 @ grid).view(count, 1, side, side, side) + (subject / SUBJECTS - 0.5).view(-1, 1, 1, 1, 1)
        mask = torch.ones(count, 1, side, side, side, dtype=torch.bool)
        mask[..., : side // 2, :, : side // 2] = False
        values = {"age_years": age, "position_mm": position}
        names = tuple(f"person-{i}" for i in range(SUBJECTS))
        return SampleSet(ToyPatches(brain, mask), subject, names, values, torch.arange(count))

    return make


def obvious(batch: ImageBatch) -> ImageBatch:
    """The same images with a corner, which lies under every toy mask, as far from its own mean as can be."""
    images = batch.images.clone()
    corner = (..., *(slice(4, 8),) * (images.ndim - 2))
    mean = images[corner].mean(tuple(range(1, images.ndim)), keepdim=True)
    images[corner] = torch.where(mean > 0, -1.0, 1.0).expand_as(images[corner])
    return batch.with_images(images)


class CountedImages(HealthyImages):
    """Normal images that count how many were drawn."""

    drawn = 0

    def batch(self, rows: torch.Tensor) -> ImageBatch:
        self.drawn += len(rows)
        return super().batch(rows)


class ToyTraining:
    """What a detector is fitted to, other images of the same kind, and what was asked of it meanwhile.

    Args:
        training: what is fitted to.
        unseen: normal images of subjects that are not trained on.
    """

    def __init__(self, training: Training, unseen: ImageBatch) -> None:
        self.training, self.unseen = training, unseen
        self.anomalous_rows: list[torch.Tensor] = []
        self.progress: list[tuple[int, int]] = []

    @property
    def abnormal(self) -> ImageBatch:
        """The unseen images with an obvious anomaly each."""
        return obvious(self.unseen)


@pytest.fixture
def toy_training(
    toy_config: Callable[..., Config],
    toy_samples: Callable[..., SampleSet],
    toy_brain_config: Callable[..., Config],
    toy_brain_samples: Callable[..., SampleSet],
    tmp_path: Path,
) -> Callable[..., ToyTraining]:
    """Makes what detectors learn from: `toy_training("patches", network_images=320)`, or `"pictures"`."""
    from normscape.networks.auxiliary import AuxiliaryNetwork
    from normscape.training.checkpoint import save_module

    def make(kind: str = "pictures", *, network_images: int = 320) -> ToyTraining:
        pictures = kind == "pictures"
        config, samples = (toy_config(), toy_samples()) if pictures else (toy_brain_config(), toy_brain_samples())
        known = samples.subject < config.data.train_subjects
        healthy, others = (
            CountedImages(samples.select(rows.nonzero().squeeze(1)), config.value_attributes) for rows in (known, ~known)
        )
        torch.manual_seed(0)
        save_module(AuxiliaryNetwork.from_config(config.attributes[0], config), tmp_path / "identity.safetensors")

        def draw(batch: ImageBatch, rows: torch.Tensor) -> AnomalyBatch:
            toy.anomalous_rows.append(rows)
            images = obvious(batch).images
            change = (images - batch.images).abs()
            cover = (change > 0).any(1, keepdim=True).float()
            return AnomalyBatch(images, cover, torch.full((len(rows),), 2.0), change.flatten(1).mean(1))

        training = Training(
            config=config,
            healthy=healthy,
            anomalous=draw,
            scene=Scene(config.dims, None if pictures else 2.0),
            images=32,
            network_images=network_images,
            seed=0,
            device=torch.device("cpu"),
            folders={"auxiliary": tmp_path},
            progress=lambda done, total: toy.progress.append((done, total)),
        )
        toy = ToyTraining(training, others.batch(torch.arange(len(others))))
        return toy

    return make


COHORT_SHAPE = (26, 28, 24)


@pytest.fixture
def prepared_cohort(tmp_path: Path) -> Callable[..., PreparedCohort]:
    """Writes a small prepared cohort and opens it: ellipsoids of three tissues, in volumes of 26 x 28 x 24 voxels of 2 mm.

    Nine scans of eight persons (`p-0` comes twice, `p-7` has no known age), from two sites with other intensities. The brain
    touches the upper face of the volume. `volumes` replaces the intensities.
    """

    def make(name: str = "cohort", volumes: NDArray[np.floating] | None = None, spacing_mm: float = 2.0) -> PreparedCohort:
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(0)
        people = [0, 0, 1, 2, 3, 4, 5, 6, 7]
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in COHORT_SHAPE), indexing="ij"), axis=-1).astype(float)

        def ellipsoid(scale: float) -> NDArray[np.floating]:
            return np.linalg.norm((grid - (15, 14, 12)) / (np.array([11.5, 12.0, 10.5]) * scale), axis=-1)

        masks, scans = [], []
        for scan, person in enumerate(people):
            depth = ellipsoid(0.92 + 0.02 * person)
            tissue = np.select([depth < 0.3, depth < 0.7], [200.0, 1000.0], 650.0) * (1.5 if person % 2 else 1.0)
            masks.append(depth < 1)
            scans.append((tissue + random.normal(scale=60 + 5 * scan, size=COHORT_SHAPE)) * masks[-1])
        affine = np.array([[0, 0, -spacing_mm, 30], [0, spacing_mm, 0, -40], [spacing_mm, 0, 0, -20], [0, 0, 0, 1]], float)
        described = {"name": "toy cohort", "source": "table", "spacing_mm": spacing_mm, "affine": affine.tolist()}
        (folder / "cohort.json").write_text(json.dumps(described), encoding="utf-8")
        rows = [
            {
                "subject": f"p-{person}",
                "session": f"{scan}",
                "age_years": None if person == 7 else 20.0 + 8 * person + scan,
                "sex": "F",
                "site": "north" if person % 2 else "south",
                "scan": f"{scan}.nii.gz",
            }
            for scan, person in enumerate(people)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SUBJECT_SCHEMA), folder / "subjects.parquet")
        np.save(folder / "volumes.npy", np.asarray(scans if volumes is None else volumes, np.float16))
        np.save(folder / "masks.npy", np.asarray(masks, np.uint8))
        np.save(folder / "atlas.npy", (ellipsoid(1.0) < 1).astype(np.float32))
        np.save(folder / "atlas_mask.npy", (ellipsoid(1.0) < 1).astype(np.uint8))
        return PreparedCohort.open(folder)

    return make


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system of the size that the test's mark names: `@pytest.mark.disk("64k")`."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = request.node.get_closest_marker("disk").args[0]
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the permission to mount a small file system (root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """SRI24 at 4 mm."""
    from normscape.preprocessing.atlas import load_atlas

    return load_atlas(4)


@pytest.fixture(scope="session")
def known() -> sitk.AffineTransform:
    """Points of the atlas to points of a moved scan: turned by 8 degrees, stretched, moved by up to 25 mm."""
    import SimpleITK as sitk

    angle = np.deg2rad(8.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((turn @ np.diag([1.08, 0.95, 1.04])).ravel().tolist())
    transform.SetCenter([120.0, -110.0, 75.0])
    transform.SetTranslation([15.0, -25.0, 10.0])
    return transform
