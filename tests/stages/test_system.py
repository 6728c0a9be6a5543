"""The scored system gives the numbers of the stages, from a run folder and from a package, and refuses what it cannot score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from normscape.config import Config
from normscape.configio import dump_yaml
from normscape.datasets.samples import to_unit_range
from normscape.errors import CheckpointError, DataError, UserError
from normscape.inversion.style_space import WhitenedSubspace, to_tensors
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.generator import Generator, draw_latents
from normscape.scoring.conformal import Calibration, Conformal
from normscape.stages import network, prepare, project, score
from normscape.stages.core import StageContext, folder_name, stage_keys
from normscape.stages.system import ScoredSystem
from normscape.stages.system_files import write_package
from normscape.tracking.package import signature
from normscape.training.checkpoint import save_module
from normscape.training.recorder import SilentRecorder
from normscape.training.seeding import seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: networks with random weights, and the real stages `prepare`, `project` and `score`."""
    runs = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "system-cache"))
    config = _config()
    _finish(config, runs / "toy")
    patch.undo()
    return runs / "toy"


def _finish(config: Config, run: Path) -> dict[str, Path]:
    """Random networks, and every later stage that the experiment has, for real; the folders by stage."""
    keys = stage_keys(config)
    folders = {name: run / folder_name(name, key) for name, key in keys.items() if name != "report"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_yaml(config))
    _write_networks(config, folders)
    for stage in (prepare, network, project, score):
        if folder := folders.get(stage.__name__.rpartition(".")[2]):
            stage.run(StageContext(config, folder, folders, CPU, SilentRecorder()))
    for name, folder in folders.items():
        (folder / "manifest.json").write_text(json.dumps({"stage": name, "key": keys[name], "metrics": {}}))
    return folders


def _config() -> Config:
    """Two value attributes would be one too many for the data: chairs know their angle."""
    auxiliary = {"width": 8, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False, "batch_size": 16}
    identity = {"name": "identity", "kind": "embedding", "latent_dim": 6, "output_dim": 8, "distance": "euclidean"}
    angle = {"name": "angle", "kind": "value", "latent_dim": 6, "output_dim": 1, "distance": "l1", "column": "angle_degrees"}
    thresholds = {"tau_same": 0.05, "tau_different": 0.35, "auxiliary": auxiliary}
    return Config.model_validate(
        {
            "name": "toy",
            "image_size": 8,
            "data": {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 30.0, "supersample": 1},
            "attributes": [identity | thresholds, angle | {"value_max": 90.0, "unit": "degrees"} | thresholds],
            "other_dim": 4,
            "generator": {"channels": [12, 8], "mapping_layers": 3},
            "discriminator": {"channels": [8, 12]},
            "gan": {"steps": 1, "batch_size": 8},
            "controllers": {"hidden": 16},
            "projection": {"train_samples": 16, "test_samples": 8, "steps": 5, "batch_size": 6},
            "scoring": {"max_depth": [3], "n_estimators": [20], "folds": 2, "bootstrap_samples": 20},
        }
    )


def _write_networks(config: Config, folders: dict[str, Path]) -> None:
    torch.manual_seed(3)
    for attribute in config.attributes:
        save_module(AuxiliaryNetwork.from_config(attribute, config), folders["auxiliary"] / f"{attribute.name}.safetensors")
    for attribute in config.value_attributes:
        save_module(Controller.from_config(attribute, config), folders["controllers"] / f"{attribute.name}.safetensors")
    generator = Generator.from_config(config)
    save_module(generator, folders["gan"] / "generator.safetensors")
    save_module(Discriminator.from_config(config), folders["gan"] / "discriminator.safetensors")
    with torch.no_grad():
        styles = generator.mapping(draw_latents(256, generator, seeded(0, "test")))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    save_file(to_tensors(space), folders["latents"] / "style_space.safetensors")


@pytest.fixture(scope="module")
def system(run_folder: Path) -> ScoredSystem:
    return ScoredSystem.from_run(run_folder)


def stage_folder(run_folder: Path, name: str) -> Path:
    return next(run_folder.glob(f"{name}-*"))


def projected(run_folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    """Images and conditions of the project stage, and its table."""
    folder = stage_folder(run_folder, "project")
    table = pq.read_table(folder / "projections.parquet")
    return np.load(folder / "inputs.npy"), {"angle": table["angle_degrees"].to_numpy()}, table


def test_scores_equal_those_of_the_stages(run_folder: Path, system: ScoredSystem) -> None:
    """Same images, same batches: every length, residual, score and reconstruction equal, bit for bit."""
    images, conditions, table = projected(run_folder)
    scores = pq.read_table(stage_folder(run_folder, "score") / "scores.parquet")
    rebuilt = np.load(stage_folder(run_folder, "project") / "reconstructions.npy")
    split = np.array(table["split"].to_pylist())
    for part in ("train", "test"):  # the stage's batches do not cross the splits
        rows = split == part
        result = system.score(images[rows], {"angle": conditions["angle"][rows]}, reconstructions=True)
        measured = [name for name in table.column_names if name.startswith(("length/", "residual_", "angle"))]
        assert {name for name in result.column_names if "/" in name or name.startswith("residual_")} < set(measured)
        for name in measured:
            assert np.array_equal(result[name].to_numpy(), table[name].to_numpy()[rows]), name
        for name in system.detectors:
            assert np.array_equal(result[f"{name}_score"].to_numpy(), scores[f"{name}_score"].to_numpy()[rows]), name
        main = scores["forest_score"].to_numpy()[rows]
        assert np.array_equal(result["anomaly_score"].to_numpy(), main)
        assert np.array_equal(result["anomalous"].to_numpy(), (main > 0.5).astype(int))
        pictures = np.array(result["reconstruction"].to_pylist(), dtype=np.uint8).reshape(-1, 3, 8, 8)
        assert np.array_equal(pictures, rebuilt[rows])


def test_a_network_is_part_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a conditional network, the pool gives the anomaly score: the same from stages, run and package."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    config = Config.model_validate(_config().model_dump() | {"network": {"images": 64, "width": 8}})
    folders = _finish(config, tmp_path / "toy")
    images, conditions, table = projected(tmp_path / "toy")
    rows = np.array(table["split"].to_pylist()) == "test"
    known = {"angle": conditions["angle"][rows]}
    stored = pq.read_table(folders["score"] / "scores.parquet")
    write_package(config, folders, tmp_path / "package")
    for system in (ScoredSystem.from_run(tmp_path / "toy"), ScoredSystem.from_package(tmp_path / "package")):
        assert system.main == "pooled"
        assert system.threshold == system.detectors["pooled"].detector.threshold_
        found = system.score(images[rows], known)
        for name in ("pooled", "network", "forest"):
            expected = stored[f"{name}_score"].to_numpy()[rows]
            np.testing.assert_allclose(found[f"{name}_score"].to_numpy(), expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(found["anomaly_score"], found["pooled_score"])
        tensors = {"angle": torch.from_numpy(known["angle"])[:, None]}
        rated = system.rate(to_unit_range(torch.from_numpy(images[rows])), tensors)
        np.testing.assert_allclose(rated.scores.numpy(), found["anomaly_score"].to_numpy(), rtol=1e-5)
    outputs = signature(config, table.column_names, system.detectors, p_values=False).outputs
    assert set(found.column_names) == {column.name for column in outputs} | {"angle_degrees"}


def test_the_threshold_is_the_stored_one(run_folder: Path, system: ScoredSystem) -> None:
    stored = json.loads((stage_folder(run_folder, "score") / "detectors.json").read_text())
    assert system.threshold == stored["forest"]["threshold"]
    assert system.detectors["l1"].detector.threshold_ == stored["l1"]["threshold"]
    assert {"forest", "l1", "unsupervised"} <= set(system.detectors)


def test_one_image_alone_and_as_floats(run_folder: Path, system: ScoredSystem) -> None:
    """A single image gets its numbers of the batch, to float tolerance; floats in [-1, 1] give what their bytes give."""
    images, conditions, _ = projected(run_folder)
    together = system.score(images[:6], {"angle": conditions["angle"][:6, None]})
    alone = system.score(to_unit_range(torch.from_numpy(images[2:3])), {"angle": conditions["angle"][2:3]})
    for name in together.column_names:
        if name.startswith(("length/", "residual_")):
            np.testing.assert_allclose(alone[name].to_numpy(), together[name].to_numpy()[2:3], rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_package_scores_the_same_and_holds_no_other_file(run_folder: Path, system: ScoredSystem, tmp_path: Path) -> None:
    folders = {p.name.rpartition("-")[0]: p for p in run_folder.iterdir() if p.is_dir()}
    write_package(system.config, folders, tmp_path / "package")
    names = {str(p.relative_to(tmp_path / "package")) for p in (tmp_path / "package").rglob("*") if p.is_file()}
    assert {"config.yaml", "gan/generator.safetensors", "latents/style_space.safetensors", "score/forest.skops"} <= names
    assert {Path(name).suffix for name in names} == {".yaml", ".safetensors", ".skops", ".json"}
    images, conditions, _ = projected(run_folder)
    packaged = ScoredSystem.from_package(tmp_path / "package")
    assert packaged.score(images[:6], {"angle": conditions["angle"][:6]}) == system.score(
        images[:6], {"angle": conditions["angle"][:6]}
    )


def test_p_values_come_with_healthy_subjects_and_only_with_them(run_folder: Path, system: ScoredSystem, tmp_path: Path) -> None:
    """A run without calibration rows, as old packages are, has no p. With its file, in the run or the package, every image has
    one: how often healthy subjects score as high. Projected with other steps, scores cannot be compared, and there is none."""
    images, conditions, _ = projected(run_folder)
    known = {"angle": conditions["angle"][:6]}
    plain = system.score(images[:6], known)
    assert "p_value" not in plain.column_names
    assert system.healthy is None
    folders = {p.name.rpartition("-")[0]: p for p in run_folder.iterdir() if p.is_dir()}
    score = tmp_path / "score"
    shutil.copytree(folders["score"], score)
    healthy = np.random.default_rng(0).uniform(0, 1, 40)
    one = Conformal.fit(healthy, np.repeat(np.arange(8), 5))
    Calibration({"forest": one}, {"conditions": ["angle_degrees"], "steps": 5}).save(score / "conformal")
    write_package(system.config, folders | {"score": score}, tmp_path / "package")
    packaged = ScoredSystem.from_package(tmp_path / "package")
    table = packaged.score(images[:6], known)
    main = table["anomaly_score"].to_numpy()
    assert np.array_equal(main, plain["anomaly_score"].to_numpy())
    expected = (1 + (healthy[None] >= main[:, None]).sum(1) / 5) / 9
    np.testing.assert_allclose(table["p_value"].to_numpy(), expected)
    tensors = {"angle": torch.from_numpy(known["angle"])[:, None]}
    among = packaged.p_values(torch.from_numpy(main.copy()), tensors, one_subject=True)
    assert among is not None
    np.testing.assert_allclose(among, one.pooled_p_value(main, np.zeros(6)))
    assert (among <= expected + 1e-12).all()
    for there in (True, False):
        outputs = signature(system.config, ["residual_l1"], ["forest"], p_values=there).outputs
        assert ("p_value" in [column.name for column in outputs]) is there
    other = ScoredSystem.from_package(tmp_path / "package", steps=4)
    assert "p_value" not in other.score(images[:6], known).column_names


IMAGE = np.zeros((2, 3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("images", "conditions", "message"),
    [
        (IMAGE[:, :1], {"angle": [1.0, 2.0]}, r"expected shape \(N, 3, 8, 8\), found \(2, 1, 8, 8\)"),
        (IMAGE.astype(np.int64), {"angle": [1.0, 2.0]}, "uint8 in 0..255 or floats .* found int64"),
        (IMAGE.astype(np.float32) + 2, {"angle": [1.0, 2.0]}, "values outside"),
        (IMAGE, {}, "`angle` is missing"),
        (IMAGE, {"angle": [1.0]}, r"shape \(2, 1\), found \(1,\)"),
        (IMAGE, {"angle": [1.0, np.nan]}, "must be finite"),
        (IMAGE, {"angle": ["a", "b"]}, "must be numbers"),
        (IMAGE, {"angle": [1.0, 2.0], "age": [3, 4]}, "age unknown; the system knows angle"),
        (IMAGE[:0], {"angle": []}, "at least one image"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(
    system: ScoredSystem, images: np.ndarray, conditions: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        system.score(images, conditions)


def test_an_unfinished_run_and_a_folder_that_is_no_package(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stage_folder(run_folder, "score") / "manifest.json"
    manifest.rename(manifest.with_suffix(".away"))
    try:
        with pytest.raises(UserError, match="not finished yet: score"):
            ScoredSystem.from_run(run_folder)
    finally:
        manifest.with_suffix(".away").rename(manifest)
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        ScoredSystem.from_package(tmp_path)


def test_a_damaged_detector_names_its_file(run_folder: Path, system: ScoredSystem, tmp_path: Path) -> None:
    folders: dict[str, Path] = {p.name.rpartition("-")[0]: p for p in run_folder.iterdir() if p.is_dir()}
    write_package(system.config, folders, tmp_path / "package")
    (tmp_path / "package" / "score" / "forest.skops").write_bytes(b"nothing")
    make: Callable[[Path], ScoredSystem] = ScoredSystem.from_package
    with pytest.raises(DataError, match=r"forest\.skops"):
        make(tmp_path / "package")
