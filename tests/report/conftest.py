"""A small run whose stage folders have the formats that the stages write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from normscape.config import Config
from normscape.configio import config_digest, validate_config
from normscape.report import page
from normscape.scoring.features import read_projections
from normscape.scoring.forest import ForestDetector
from normscape.scoring.maps import REGION_SCHEMA
from normscape.stages.brains import MAP_SCHEMA, PANELS, VENTRICLE_SCHEMA, write_nifti
from normscape.stages.core import StageContext
from normscape.training.recorder import SilentRecorder

SIZE = 16
STAGES = ("prepare", "auxiliary", "gan", "controllers", "latents", "project", "score")


@dataclass
class Run:
    """A configuration and its finished stage folders."""

    config: Config
    folders: dict[str, Path]


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    """A run to change."""
    return build_run(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Numbers of the stage `report` of a whole run, and below `page` its page; built once, not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    run, out = build_run(root), root / "report"
    out.mkdir()
    context = StageContext(run.config, out, run.folders, torch.device("cpu"), SilentRecorder())
    return dict(page.run(context)) | {"page": out / "index.html"}


def make_config(size: int = SIZE, **changes: Any) -> Config:
    """A chairs configuration."""
    levels = size.bit_length() - 2
    identity = {"name": "identity", "kind": "embedding", "latent_dim": 48, "output_dim": 128, "distance": "euclidean"}
    angle = {"name": "angle", "kind": "value", "latent_dim": 24, "output_dim": 1, "distance": "l1", "column": "angle_degrees"}
    data = {
        "name": "chairs-small",
        "description": "A small run for <b>tests</b> & looks",
        "image_size": size,
        "attributes": [
            identity | {"tau_same": 0.05, "tau_different": 0.35},
            angle | {"tau_same": 0.03, "tau_different": 0.15, "value_max": 89.9, "unit": "degrees"},
        ],
        "generator": {"channels": [8] * levels},
        "discriminator": {"channels": [8] * levels},
        "gan": {"steps": 8000},
        "projection": {"curve_images": 16},
    }
    return validate_config(data | changes)


def chair(size: int, angle: float, hue: tuple[int, int, int], legs: float = 0.3) -> np.ndarray:
    """A drawing `(3, H, W)` uint8 that reminds of a turned chair."""
    image = Image.new("RGB", (4 * size, 4 * size), "white")
    draw = ImageDraw.Draw(image)
    turn = np.radians(angle)
    half, s = 0.9 * size * (0.6 + 0.4 * np.cos(turn)), 4 * size
    dark = tuple(int(0.6 * c) for c in hue)
    seat = 0.55 * s
    for x in (-half, -0.4 * half, 0.5 * half, half):
        draw.line([(s / 2 + x, seat), (s / 2 + 0.95 * x, seat + legs * s)], fill=dark, width=size // 5)
    draw.polygon(
        [(s / 2 - half, seat - 0.04 * s), (s / 2 + half, seat), (s / 2 + half, seat + 0.07 * s), (s / 2 - half, seat + 0.05 * s)],
        fill=hue,
    )
    draw.polygon(
        [
            (s / 2 - half, 0.15 * s),
            (s / 2 - half + 1.2 * size * np.sin(turn), 0.18 * s),
            (s / 2 - half + 1.2 * size * np.sin(turn), seat),
            (s / 2 - half, seat),
        ],
        fill=dark,
    )
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1).copy()


def write(path: Path, **columns: Any) -> None:
    """A Parquet table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def build_run(root: Path, size: int = SIZE, **changes: Any) -> Run:
    """Write all stage folders."""
    config = make_config(size, **changes)
    random = np.random.default_rng(3)
    hues = [tuple(int(c) for c in random.integers(30, 220, 3)) for _ in range(12)]
    folders = {stage: root / f"{stage}-0123abcd" for stage in STAGES}
    for i, (stage, folder) in enumerate(folders.items()):
        folder.mkdir(parents=True)
        manifest = {
            "stage": stage, "key": "0123abcd" * 8, "config_digest": config_digest(config), "code_version": "f" * 40, "inputs": {},
            "seed": 0,
            "metrics": {"loss": 0.25 * i}, "seconds": 31.0 * (i + 1) ** 2, "started": "2030-01-01T10:00:00+00:00",
            "finished": "2030-01-01T11:00:00+00:00", "normscape_version": "0.1.0",
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
    _prepare(folders["prepare"])
    _networks(folders, random)
    _gan(folders["gan"], random, size, hues)
    _controllers(folders, random, size, hues)
    _project(folders["project"], random, size, hues)
    _score(folders, random)
    return Run(config, folders)


def _prepare(folder: Path) -> None:
    n = 490
    subject = np.repeat(np.arange(49), 10)
    write(
        folder / "samples.parquet", sample_id=np.arange(n), subject=[f"chair-{s:02d}" for s in subject], subject_index=subject,
        split=["train" if s < 40 else "test" for s in subject], angle_degrees=np.tile(np.linspace(0, 89.9, 10), 49).astype("f4"),
    )  # fmt: skip


def _networks(folders: dict[str, Path], random: np.random.Generator) -> None:
    aux, gan = folders["auxiliary"], folders["gan"]
    write(
        aux / "triplets.parquet",
        split=["train", "test"],
        separated=[1.0, 0.968],
        separated_by_margin=[0.999, 0.87],
        n=[10000, 10000],
    )
    write(gan / "triplets.parquet", split=["generated"], separated=[0.991], separated_by_margin=[0.971], n=[10000])
    write(
        aux / "value_errors.parquet",
        attribute=["angle"] * 2,
        split=["train", "test"],
        mean_absolute_error=[0.61, 2.13],
        unit=["degrees"] * 2,
    )
    spread = {"train": (0.02, 0.6), "test": (0.09, 0.5), "generated": (0.05, 0.55)}
    for folder, splits in ((aux, ("train", "test")), (gan, ("generated",))):
        parts: dict[str, list[Any]] = {"attribute": [], "split": [], "pair": [], "distance": []}
        for split in splits:
            for attribute, scale in (("identity", 1.0), ("angle", 0.6)):
                for pair, centre in zip(("same", "different"), spread[split], strict=True):
                    values = np.clip(random.gamma(4.0, centre * scale / 4.0, 1500), 0, 1)
                    parts["attribute"] += [attribute] * 1500
                    parts["split"] += [split] * 1500
                    parts["pair"] += [pair] * 1500
                    parts["distance"] += values.tolist()
        write(folder / "distances.parquet", **parts)


def _gan(folder: Path, random: np.random.Generator, size: int, hues: list[Any]) -> None:
    lines = []
    for step in range(50, 8001, 50):
        t = step / 8000
        lines.append({
            "step": step, "loss_d": 1.1 - 0.3 * t + random.normal(0, 0.06), "loss_g": 0.8 + 0.6 * t + random.normal(0, 0.15),
            "contrastive": 0.4 * np.exp(-5 * t) + 0.02 + abs(random.normal(0, 0.01)), "r1": 0.01,
            "distance_same/identity": 0.3 * np.exp(-8 * t) + 0.05 + random.normal(0, 0.006),
            "distance_different/identity": 0.1 + 0.5 * (1 - np.exp(-6 * t)) + random.normal(0, 0.01),
            "distance_same/angle": 0.1 * np.exp(-8 * t) + 0.025 + random.normal(0, 0.004),
            "distance_different/angle": 0.05 + 0.25 * (1 - np.exp(-6 * t)) + random.normal(0, 0.01),
        })  # fmt: skip
        if step % 1000 == 0:
            lines.append({"step": step, "frechet": 40 * np.exp(-3 * t) + 3, "kernel": 0.3 * np.exp(-3 * t) + 0.01})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples").mkdir()
    for step in range(0, 8001, 1000):
        sheet = np.concatenate(
            [np.concatenate([chair(size, 12 * c, hues[r]) for c in range(8)], axis=2) for r in range(4)], axis=1
        )
        noisy = np.clip(sheet + random.normal(0, 120 * (1 - step / 8000), sheet.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy.transpose(1, 2, 0)).resize((8 * size * 3, 4 * size * 3), Image.Resampling.NEAREST).save(
            folder / f"samples/step-{step:06d}.png"
        )


def _controllers(folders: dict[str, Path], random: np.random.Generator, size: int, hues: list[Any]) -> None:
    folder = folders["controllers"]
    asked = random.uniform(0, 89.9, 1024)
    write(
        folder / "controllability.parquet", attribute=["angle"] * 1024, asked=asked, read=asked + random.normal(0, 2.2, 1024),
        identity_distance=np.clip(random.gamma(6, 0.012, 1024) + np.abs(asked - 45) / 1500, 0, 1),
    )  # fmt: skip
    values = np.linspace(0, 90, 19).tolist()
    np.save(folder / "sweep.npy", np.stack([np.stack([chair(size, v, hue) for v in values]) for hue in hues[:6]]))
    (folder / "sweep.json").write_text(json.dumps({"attribute": "angle", "values": values, "unit": "degrees"}))
    turn = random.uniform(0, 90, 2000)
    noise = random.normal(0, 0.12, (2, 2000))
    write(
        folders["latents"] / "scatter.parquet", attribute=["angle"] * 2000, pc1=3 * np.cos(np.radians(2 * turn)) + noise[0],
        pc2=1.4 * np.sin(np.radians(2 * turn)) + noise[1], value=turn, unit=["degrees"] * 2000,
    )  # fmt: skip
    ratios = {"identity": 0.8, "angle": 0.25, "other": 0.7}
    rows = [(name, i + 1, (1 - base) * base**i) for name, base in ratios.items() for i in range(24)]
    subspace, component, ratio = zip(*rows, strict=True)
    write(folders["latents"] / "explained_variance.parquet", subspace=subspace, component=component, ratio=ratio)


def _project(folder: Path, random: np.random.Generator, size: int, hues: list[Any]) -> None:
    n = 240
    subject = random.integers(0, 12, n)
    subject[:2] = (0, 11)
    split = np.where(subject < 8, "train", "test")
    label = np.arange(n) % 2
    angle = random.uniform(0, 89.9, n)
    rebuilt = np.stack([chair(size, a, hues[s], 0.28) for a, s in zip(angle, subject, strict=True)])
    images = np.stack([chair(size, a, hues[s]) for a, s in zip(angle, subject, strict=True)])
    rows, columns = np.mgrid[:size, :size]
    radius = np.where(label == 1, random.uniform(0.08, 0.16, n) * size, np.nan)
    for i in np.flatnonzero(label):
        y, x = random.integers(2, size - 2, 2)
        images[i][:, (rows - y) ** 2 + (columns - x) ** 2 <= radius[i] ** 2] = random.integers(0, 255, (3, 1))
    runs = [("encoder", steps, 16, 0.02 + 0.004 * steps) for steps in (0, 10, 50)]
    runs += [("mean", steps, 1, 0.02 * steps) for steps in (30, 1000)]
    start, steps, batch, seconds = zip(*runs, strict=True)
    l1 = np.array([0.09, 0.07, 0.055, 0.12, 0.06])
    write(
        folder / "curve.parquet", start=start, steps=steps, batch=batch, seconds_per_image=seconds, residual_l1=l1,
        residual_l1_low=0.9 * l1, residual_l1_high=1.1 * l1, images=[16] * len(runs), subjects=[5] * len(runs),
    )  # fmt: skip
    np.save(folder / "inputs.npy", images)
    np.save(folder / "reconstructions.npy", rebuilt)
    chosen = [int(i) for s in ("train", "test") for k in (0, 1) for i in np.flatnonzero((split == s) & (label == k))[:3]]
    np.save(folder / "rotated.npy", np.stack([chair(size, 30.0, hues[subject[i]], 0.28) for i in chosen]))
    (folder / "rotated.json").write_text(json.dumps({"rows": chosen, "value": 30.0, "attribute": "angle"}))
    write(
        folder / "projections.parquet", sample_id=np.arange(n), subject=[f"chair-{s:02d}" for s in subject],
        split=split, label=label, angle_degrees=angle,
        **{"length/identity/4": random.uniform(4, 8, n)}, residual_l1=random.uniform(0.02, 0.2, n),
        blot_radius_px=pa.array(radius, mask=label == 0), blot_contrast=pa.array(random.uniform(0, 1, n), mask=label == 0),
        **{"coordinates/identity": pa.array((random.normal(0, 1, (n, 4)) + label[:, None] * [0.0, 0.0, 2.0, 1.0]).tolist())},
    )  # fmt: skip


def _score(folders: dict[str, Path], random: np.random.Generator) -> None:
    folder = folders["score"]
    projected = read_projections(folders["project"] / "projections.parquet")
    images = {"sample_id": projected.sample_id, "split": projected.split, "subject": projected.subject, "label": projected.label}
    label = projected.label
    detectors = ("l1", "forest", "forest_residuals", "unsupervised")
    scores = {f"{d}_score": np.clip(random.normal(0.35 + 0.3 * label, 0.15), 0, 1) for d in detectors}
    seen = ["length/identity/4", "angle_degrees", "residual_l1"]
    forest = ForestDetector(max_depth=(4,), n_estimators=(10,))
    forest.fit(
        projected.features(seen)[projected.split == "train"],
        label[projected.split == "train"],
        projected.subject[projected.split == "train"],
    )
    forest.save(folder / "forest.skops", seen)
    scores["forest_score"] = forest.decision_function(projected.features(seen))
    write(folder / "scores.parquet", **images, **scores)
    thesis = {
        ("l1", "test", "accuracy"): 0.77,
        ("l1", "test", "auroc"): 0.937,
        ("forest", "test", "accuracy"): 0.884,
        ("forest", "test", "auroc"): 0.957,
    }
    rows, curves, strata = [], [], []
    for i, detector in enumerate(detectors):
        for split, bonus in (("train", 0.05), ("train_cv", 0.01), ("test", 0.0)):
            for metric, value in (("accuracy", 0.8), ("auroc", 0.9), ("auprc", 0.91), ("prevalence", 0.5)):
                value = value if metric == "prevalence" else value + bonus + 0.025 * (i % 3)
                rows.append((detector, split, metric, value, value - 0.03, value + 0.02, thesis.get((detector, split, metric))))
            fpr = np.linspace(0, 1, 60)
            curves += [(detector, split, float(x), float(x ** (0.25 - 0.05 * (i % 3)))) for x in fpr]
        for prop in ("blot_contrast", "blot_radius_px"):
            for t, tercile in enumerate(("low", "middle", "high")):
                value = 0.72 + 0.1 * t + 0.02 * i
                strata.append((detector, prop, tercile, t / 3, (t + 1) / 3, 40, 4, value, value - 0.05, min(1.0, value + 0.04)))
    for name, table, names in (
        ("metrics", rows, "detector split metric value low high thesis"),
        ("roc", curves, "detector split fpr tpr"),
        ("strata", strata, "detector property tercile from_value to_value rows subjects value low high"),
    ):
        write(folder / f"{name}.parquet", **dict(zip(names.split(), map(list, zip(*table, strict=True)), strict=True)))
    depth = [3, 5, 7, 9, 11, 13] * 2
    write(
        folder / "grid.parquet",
        max_depth=depth,
        n_estimators=[100] * 6 + [300] * 6,
        min_samples_leaf=[1] * 12,
        mean_auroc=random.uniform(0.9, 0.95, 12),
        std_auroc=[0.01] * 12,
    )
    features = [f"length/{s}/{r}" for s in ("identity", "other") for r in (4, 8, 16, 32, 64)] + ["angle_degrees", "residual_l1"]
    write(folder / "importance.parquet", feature=features, importance=random.dirichlet(np.ones(12)))
    (folder / "detectors.json").write_text(json.dumps({"forest": {"threshold": 0.5}}))


def build_brains(folder: Path) -> Path:
    """What stage `brains` leaves: two maps of one scan, with their volumes, and two generated identities at two ages."""
    folder.mkdir()
    random = np.random.default_rng(0)
    np.save(folder / "generated.npy", random.integers(1, 255, (2, 2, 1, 20, 40), dtype=np.uint8))
    np.save(folder / "maps.npy", random.integers(0, 255, (2, len(PANELS), 1, 20, 60), dtype=np.uint8))
    shared = {"subject": "p-1", "session": "1", "age_years": 61.0, "peak_score": 0.91, "mean_score": 0.3, "patches": 352}
    shared |= {"covered": 0.998, "seconds": 61.0}
    blot = {"blot_radius_mm": 6.5, "blot_contrast": 0.7, "peak_in_blot": 1.0, "anomaly_auroc": 0.83, "residual_auroc": 0.71}
    maps = [shared | {"name": "scan-1", "blot": 0}, shared | {"name": "scan-1_blot", "blot": 1} | blot]
    ages = [
        {"kind": "generated", "identity": str(i), "age_years": age, "volume_ml": age / 3 + i}
        for i in (1, 2)
        for age in (30.0, 70.0)
    ]
    ages += [{"kind": "scan", "identity": "p-1 1", "age_years": 61.0, "volume_ml": 21.0}]
    region: dict[str, Any] = dict.fromkeys(REGION_SCHEMA.names, 12.0) | {"name": "scan-1_blot", "peak_score": 0.91}
    schema = REGION_SCHEMA.insert(0, pa.field("name", pa.string()))
    for name, rows, kind in (("maps", maps, MAP_SCHEMA), ("ventricles", ages, VENTRICLE_SCHEMA), ("regions", [region], schema)):
        pq.write_table(pa.Table.from_pylist(rows, schema=kind), folder / f"{name}.parquet")
    (folder / "slices.json").write_text(json.dumps({"panels": PANELS, "threshold": 0.55, "excess_shown": 4.0}))
    growth = {"ventricle_growth_ml": 13.3, "ventricle_growth_ml_low": 12.9, "ventricle_growth_ml_high": 13.8}
    (folder / "manifest.json").write_text(json.dumps({"metrics": growth, "seconds": 120.0}))
    _brain_volumes(folder / "maps")
    return folder


def _brain_volumes(folder: Path) -> None:
    """A ball as a brain, at 2 mm; the blot, and the peak of its map, are around 12, 12, 12 mm."""
    affine = np.array([[0.0, 0.0, 2.0, -10.0], [0.0, 2.0, 0.0, -10.0], [2.0, 0.0, 0.0, -10.0], [0.0, 0.0, 0.0, 1.0]])
    z, y, x = np.mgrid[:22, :22, :22]
    brain = (z - 10.5) ** 2 + (y - 10.5) ** 2 + (x - 10.5) ** 2 < 100
    scan = np.where(brain, np.sin(x / 3) * 2 + 0.1, 0)
    blot = np.zeros(brain.shape, bool)
    blot[10:13, 10:13, 10:13] = True
    apart = (z - 11) ** 2 + (y - 11) ** 2 + (x - 11) ** 2
    for name, image in (("scan-1", scan), ("scan-1_blot", np.where(blot, -2.5, scan))):
        anomaly = np.where(brain, np.exp(-apart / 12.0), 0) * (0.95 if "blot" in name else 0.3)
        for kind, volume in (("scan", image), ("reconstruction", scan * 0.9), ("anomaly", anomaly)):
            write_nifti(folder / f"{name}_{kind}.nii.gz", volume, affine)
