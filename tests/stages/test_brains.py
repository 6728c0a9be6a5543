"""The stage of whole brains, on a small cohort with random networks: what it writes, that it goes on, and for whom it exists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.datasets.patches import PatchSource
from normscape.datasets.prepared import PreparedCohort
from normscape.datasets.samples import load_samples, to_unit_range
from normscape.scoring.maps import EXCESS_HALF
from normscape.stages import brains, normals, project, score
from normscape.stages.core import STAGES, StageContext, stage_keys
from normscape.stages.prepare import open_prepared
from normscape.stages.system import ScoredSystem
from normscape.stages.system_files import write_package
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"stride": 6, "identities": 2, "ages": [30, 70], "scans": 2, "steps": 2, "batch_size": 16}
SETTINGS |= {"calibration_scans": 3}


@pytest.fixture
def context(
    tmp_path: Path, prepared_cohort: Callable[..., PreparedCohort], toy_brain_config: Callable[..., Config]
) -> StageContext:
    """Everything before the stage: random networks, real projections and detectors."""
    config = toy_brain_config(
        data={"root": str(prepared_cohort().folder), "patches_per_subject": 32},
        projection={"train_samples": 32, "test_samples": 16, "steps": 2, "batch_size": 16},
        scoring={"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
        brains=SETTINGS,
    )
    return finished_before(config, tmp_path)


def finished_before(config: Config, tmp_path: Path) -> StageContext:
    """The context of the stage, with everything before it finished."""
    inputs = untrained_inputs(config, tmp_path / "inputs")
    for stage in (normals, project, score):
        name = stage.__name__.rpartition(".")[2]
        inputs[name] = tmp_path / "inputs" / name
        inputs[name].mkdir()
        stage.run(StageContext(config, inputs[name], inputs, CPU, SilentRecorder()))
    (tmp_path / "brains").mkdir()
    return StageContext(config, tmp_path / "brains", inputs, CPU, SilentRecorder())


def test_what_the_stage_writes(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes on the cohort's grid, tables and pictures that agree with one another; cut off, it goes on after the last map."""
    import nibabel as nib

    calls: list[str] = []
    made = brains.scan_maps

    def breaks(source: Any, *arguments: Any, **options: Any) -> Any:
        calls.append("map")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(source, *arguments, **options)

    monkeypatch.setattr(brains, "scan_maps", breaks)
    with pytest.raises(KeyboardInterrupt):
        brains.run(context)
    metrics = brains.run(context)
    assert len(calls) == 3  # the first scan was not mapped again
    folder = context.folder
    table = pq.read_table(folder / "maps.parquet").to_pylist()
    names = ["scan-1", "scan-1_blot", "scan-2", "scan-2_blot"]
    assert [(row["name"], row["blot"]) for row in table] == list(zip(names, (0, 1, 0, 1), strict=True))
    assert metrics["maps"] == 4
    cohort = PreparedCohort.open(Path(str(context.config.data.root)))
    for row in table:
        parts = {
            name: nib.load(folder / "maps" / f"{row['name']}_{name}.nii.gz")
            for name in ("scan", "anomaly", "score", "excess", "gradient")
        }
        values = {name: np.asarray(image.dataobj).transpose(2, 1, 0) for name, image in parts.items()}
        assert values["score"].shape == cohort.shape
        assert values["anomaly"].max() == pytest.approx(row["peak_score"], abs=1e-4)
        assert 0 <= values["score"].min() <= values["score"].max() <= 1
        excess = values["excess"]
        np.testing.assert_allclose(values["anomaly"], values["score"] * excess / (excess + EXCESS_HALF), atol=1e-4)
        np.testing.assert_allclose(parts["scan"].affine @ [1, 2, 3, 1], [*cohort.world(np.array([3.0, 2.0, 1.0])), 1])
        assert (values["excess"] >= 0).all()
        assert values["gradient"].max() > 0
        assert (row["gradient_auroc"] is not None) == bool(row["blot"])
    scans = [nib.load(folder / "maps" / f"{row['name']}_scan.nii.gz").get_fdata().transpose(2, 1, 0) for row in table[:2]]
    changed = np.argwhere(np.abs(scans[0] - scans[1]) > 1e-3)
    place = np.array([table[1][f"blot_{axis}_mm"] for axis in "xyz"])
    assert np.linalg.norm(cohort.world(changed.mean(0)) - place) < 4.0
    generated = np.load(folder / "generated.npy")
    assert generated.shape[:3] == (2, 2, 1)
    assert generated.dtype == np.uint8
    made_brains = [nib.load(path).get_fdata() for path in (folder / "generated").glob("identity-*_age-*.nii.gz")]
    assert len(made_brains) == 4
    assert 0 < max(np.abs(brain).max() for brain in made_brains) <= 3
    pictures = np.load(folder / "maps.npy")
    assert pictures.shape[:3] == (4, 5, 1)
    assert (pictures[0, 0] != pictures[1, 0]).any()
    assert not list((folder / "maps").glob("*.npz"))
    regions = pq.read_table(folder / "regions.parquet")
    assert set(regions["name"].to_pylist()) <= set(names)
    _healthy_scans(context)


def test_whole_scans(
    tmp_path: Path, prepared_cohort: Callable[..., PreparedCohort], toy_whole_config: Callable[..., Config]
) -> None:
    """Of a cohort of 2 mm, at 6 mm: a scan is one image with one score, and places are known without being an attribute."""
    import nibabel as nib

    config = toy_whole_config(
        data={"root": str(prepared_cohort().folder)},
        projection={"train_samples": 5, "test_samples": 2, "steps": 2, "batch_size": 4},
        scoring={"max_depth": [3], "n_estimators": [10], "folds": 2, "bootstrap_samples": 20},
        brains=SETTINGS,
    )
    context = finished_before(config, tmp_path)
    table = pq.read_table(context.inputs["project"] / "projections.parquet")
    assert {"residual_atlas_z", "residual_conditions_z8", "residual_encoded_z"} <= set(table.column_names)
    brains.run(context)
    source = load_samples(config.data, config.image_size).images
    assert isinstance(source, PatchSource)
    cohort = source.cohort
    rows = pq.read_table(context.folder / "maps.parquet").to_pylist()
    assert [row["patches"] for row in rows] == [1] * 4
    for row in rows:
        read = {name: nib.load(context.folder / "maps" / f"{row['name']}_{name}.nii.gz") for name in ("score", "gradient")}
        score = read["score"].get_fdata().transpose(2, 1, 0)
        assert score.shape == cohort.shape
        assert np.unique(score[score > 0]).size == 1
        np.testing.assert_allclose(read["score"].affine @ [1, 2, 3, 1], [*cohort.world(np.array([3.0, 2.0, 1.0])), 1])
        assert read["gradient"].get_fdata().max() > 0
    assert np.load(context.folder / "generated.npy").shape[:3] == (2, 2, 1)
    folders = {**context.inputs, "brains": context.folder}
    system = ScoredSystem.load(config, folders, CPU)
    assert system.healthy_scans is not None
    assert system.healthy_scans.settings == {"steps": 2}


def _healthy_scans(context: StageContext) -> None:
    """The one person in neither split was mapped whole, once, and belongs to the system and its package."""
    healthy = pq.read_table(context.folder / "healthy_scans.parquet").to_pylist()
    split = json.loads((context.inputs["prepare"] / "split.json").read_text())
    assert [row["subject"] for row in healthy] == split["unused"]
    assert healthy[0]["place"] > healthy[0]["scan"] > 0
    assert not (context.folder / "calibration").exists()
    folders = {**context.inputs, "brains": context.folder}
    write_package(context.config, folders, context.folder.parent / "packed")
    for system in (
        ScoredSystem.load(context.config, folders, CPU),
        ScoredSystem.from_package(context.folder.parent / "packed"),
    ):
        assert system.healthy_scans is not None
        assert system.healthy_scans.settings == {"stride": 6, "steps": 2, "max_background": context.config.data.max_background}
        p = system.healthy_scans.scores["place"].p_value(np.array([0.0, healthy[0]["place"] + 1]))
        assert p.tolist() == [1.0, 0.5]


def test_only_brains_have_the_stage(toy_config: Callable[..., Config], toy_brain_config: Callable[..., Config]) -> None:
    """Chairs know nothing of it: no key, and nothing that it reads changes another stage of theirs."""
    assert "brains" not in stage_keys(toy_config())
    assert stage_keys(toy_config(brains={"stride": 4})) == stage_keys(toy_config())
    keys, other = stage_keys(toy_brain_config()), stage_keys(toy_brain_config(brains={"stride": 4}))
    assert [name for name in keys if keys[name] != other[name]] == ["brains", "report"]
    assert list(keys) == [stage.name for stage in STAGES if stage.name != "network"]  # which has to be asked for


def test_the_system_rates_patches_as_the_stages_did(context: StageContext, tmp_path: Path) -> None:
    """Patches and masks of the project stage get the scores of the score stage; a package keeps how scans were prepared."""
    table = pq.read_table(context.inputs["project"] / "projections.parquet")
    rows = np.flatnonzero(table["split"].to_numpy(zero_copy_only=False) == "test")
    samples = open_prepared(context.config, context.inputs["prepare"])
    ids = torch.from_numpy(table["sample_id"].to_numpy()[rows].copy())
    images = to_unit_range(torch.from_numpy(np.load(context.inputs["project"] / "inputs.npy")[rows]))
    values = {a.name: samples.values[a.column or ""][ids] for a in context.config.value_attributes}
    system = ScoredSystem.load(context.config, context.inputs, CPU)
    masks = samples.images.masks(ids)
    assert masks is not None
    assert not bool(masks.all())
    scores, rebuilt, excess, gradient = system.rate(images, values, masks)
    expected = pq.read_table(context.inputs["score"] / "scores.parquet")["forest_score"].to_numpy()[rows]
    np.testing.assert_array_equal(scores.numpy(), expected)
    assert rebuilt.shape == images.shape
    assert excess is not None
    assert (excess[~masks] == 0).all()
    assert gradient is not None
    assert (gradient[~masks] == 0).all()
    assert (gradient[masks] > 0).any()
    conditions = {name: value.numpy() for name, value in values.items()}
    assert np.array_equal(system.score(images, conditions, masks=masks)["anomaly_score"].to_numpy(), expected)
    write_package(context.config, context.inputs, tmp_path / "package")
    assert (tmp_path / "package" / "cohort.json").read_bytes() == (context.config.data.root / "cohort.json").read_bytes()
