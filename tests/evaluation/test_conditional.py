"""The conditional detectors on toy runs with random networks: what they learn from, and what a setting changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normscape.baselines import DETECTORS, Training, load_detector
from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config, PluginConfig
from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import ConfigError, DataError
from normscape.evaluation import usual
from normscape.evaluation.conditional import ConditionalDetector, UnsupervisedConditionalDetector
from normscape.evaluation.inverting import Inverted, Inverter, Parts, suspected
from normscape.evaluation.linear import LinearResidual
from normscape.evaluation.running import saved_by
from normscape.evaluation.usual import ConditionalFeatures
from normscape.inversion.projector import Projector
from normscape.stages import normals
from normscape.stages.core import StageContext
from normscape.stages.prepare import open_samples
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
FOREST: dict[str, Any] = {"max_depth": [3], "n_estimators": [20], "folds": 2, "features": "flat"}
BOTH: dict[str, type] = {"conditional": ConditionalDetector, "conditional_unsupervised": UnsupervisedConditionalDetector}


def _blots(batch: ImageBatch, rows: torch.Tensor) -> AnomalyBatch:
    """A black block in the middle of every image."""
    images = batch.images.clone()
    middle = (..., *(slice(2, 6),) * (images.ndim - 2))
    images[middle] = -1.0
    masks = torch.zeros_like(images[:, :1])
    masks[middle] = 1.0
    count = len(batch)
    return AnomalyBatch(images, masks, torch.full((count,), 2.0), torch.full((count,), 1.0))


def _training(config: Config, folders: dict[str, Path], scene: Scene, **changes: Any) -> Training:
    context = StageContext(config, folders["prepare"], folders, CPU, SilentRecorder())
    samples, _ = open_samples(context)
    plain = Training(
        config=config,
        healthy=HealthyImages(samples, config.value_attributes),
        anomalous=_blots,
        scene=scene,
        images=10_000,
        network_images=10_000,
        seed=0,
        device=CPU,
        folders=folders,
        progress=lambda done, total: None,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def toy_settings_of() -> dict[str, Any]:
    """The least experiment on rendered chairs."""
    auxiliary = {"width": 4, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False, "batch_size": 16}
    identity = {"name": "identity", "kind": "embedding", "latent_dim": 6, "output_dim": 8, "distance": "euclidean"}
    angle = {"name": "angle", "kind": "value", "latent_dim": 6, "output_dim": 1, "distance": "l1", "column": "angle_degrees"}
    thresholds = {"tau_same": 0.05, "tau_different": 0.35, "auxiliary": auxiliary}
    return {
        "name": "toy",
        "image_size": 8,
        "data": {"train_subjects": 4, "test_subjects": 2, "angle_step_degrees": 15.0, "supersample": 1},
        "attributes": [identity | thresholds, angle | {"value_max": 90.0, "unit": "degrees"} | thresholds],
        "other_dim": 4,
        "generator": {"channels": [12, 8], "mapping_layers": 3},
        "discriminator": {"channels": [8, 12]},
        "gan": {"steps": 1, "batch_size": 8, "reconstruction_weight": 5.0},
        "latents": {"samples": 256},
        "projection": {"steps": 3, "batch_size": 8, "start": "encoder"},
        "scoring": FOREST,
    }


@pytest.fixture(scope="module")
def chairs(tmp_path_factory: pytest.TempPathFactory, toy_settings_of: dict[str, Any]) -> Training:
    """24 images of four chairs, random networks with an encoder."""
    config = Config.model_validate(toy_settings_of)
    patch = pytest.MonkeyPatch()
    patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "conditional-cache"))
    folders = untrained_inputs(config, tmp_path_factory.mktemp("chairs"))
    training = _training(config, folders, Scene(2, None))
    patch.undo()
    return training


@pytest.fixture
def brains(tmp_path: Path, prepared_cohort: Callable[..., PreparedCohort], toy_brain_config: Callable[..., Config]) -> Training:
    """Patches of four persons under masks, with what is usual at each place."""
    config = toy_brain_config(
        data={"root": str(prepared_cohort().folder), "patches_per_subject": 8},
        projection={"train_samples": 24, "steps": 2, "batch_size": 8},
        normals={"samples": 16},
        scoring=FOREST,
    )
    folders = untrained_inputs(config, tmp_path / "run")
    folders["normals"] = tmp_path / "run" / "normals"
    folders["normals"].mkdir()
    normals.run(StageContext(config, folders["normals"], folders, CPU, SilentRecorder()))
    return _training(config, folders, Scene(3, 2.0))


def _batch(training: Training, rows: Sequence[int]) -> ImageBatch:
    return training.healthy.batch(torch.tensor(rows))


def test_they_are_found_by_name(chairs: Training) -> None:
    """Both stand in the list of built-in detectors, and say what they learn from."""
    for name, made in BOTH.items():
        assert name in DETECTORS
        detector = load_detector(PluginConfig(name=name, settings={"density": False}))
        assert isinstance(detector, made)
        assert detector.supervision == ("synthetic" if name == "conditional" else "none")
    assert list(DETECTORS) == sorted(DETECTORS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"densty": True}, "densty"),
        ({"density": "yes"}, "density: expected true or false"),
        ({"inversions": 0}, "inversions: expected a whole number of at least 1"),
        ({"masked_rounds": -1}, "masked_rounds: expected a whole number of at least 0"),
        ({"steps": 1.5}, "steps: expected a whole number of at least 1"),
        ({"conditions": 3}, "conditions: expected a text"),
        ({"optimise": False, "inversions": 3}, "only noise"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_detector(PluginConfig(name="conditional", settings=settings))


def test_anomalies_score_higher_and_results_repeat(chairs: Training) -> None:
    """The forest has seen such blots: it tells them from normal images. Fitted again, every score is the same, bit for bit."""
    told: list[tuple[int, int]] = []
    detector = ConditionalDetector(levels=True).fit(replace(chairs, progress=lambda done, total: told.append((done, total))))
    batch = _batch(chairs, range(1, 24, 2))
    spoilt = batch.with_images(_blots(batch, torch.arange(12)).images)
    normal, anomalous = detector.decision_function(batch), detector.decision_function(spoilt)
    assert normal.shape == (12,)
    assert 0 <= normal.min() <= anomalous.max() <= 1
    assert anomalous.mean() > normal.mean() + 0.3
    assert told[-1] == (24, 24)
    again = ConditionalDetector(levels=True).fit(chairs)
    assert np.array_equal(again.decision_function(batch), normal)
    assert {name.split("/")[0] for name in detector.columns_ if "/" in name} == {"length", "density", "level"}


def test_no_anomaly_is_drawn_for_the_unsupervised_one(chairs: Training) -> None:
    """It never asks for one; its score is finite, at least 0, and the same again."""

    def refuse(batch: ImageBatch, rows: torch.Tensor) -> AnomalyBatch:
        raise AssertionError("an anomaly was asked for")

    detector, again = (UnsupervisedConditionalDetector(levels=True).fit(replace(chairs, anomalous=refuse)) for _ in range(2))
    batch = _batch(chairs, range(8))
    scores = detector.decision_function(batch)
    assert (np.isfinite(scores) & (scores >= 0)).all()
    assert np.array_equal(again.decision_function(batch), scores)
    assert "density/identity" in detector.columns_
    assert not any(name.startswith(("length/", "level/length/")) or name.count("/") > 1 for name in detector.columns_)
    assert not any("angle_degrees" in name for name in detector.columns_)
    plain = UnsupervisedConditionalDetector(density=False).fit(chairs)
    assert "length/identity/4" in plain.columns_
    assert "residual_l1" in plain.columns_


@pytest.mark.parametrize("conditions", ["both", "shuffled"])
def test_an_image_alone_equals_one_among_others(chairs: Training, conditions: str) -> None:
    """With everything switched on: columns, maps and scores of one image are those that it has in a batch."""
    settings: dict[str, Any] = {"conditions": conditions, "masked_rounds": 1, "inversions": 2}
    detector = UnsupervisedConditionalDetector(**settings).fit(chairs)
    batch = _batch(chairs, range(10))
    # images that it has not learned from: beside their own values a rounding error moves a rank of 24 by one
    batch = batch.with_images(0.9 * batch.images + 0.03)
    together, columns = detector.features.of(batch)
    alone, own = detector.features.of(batch.rows(torch.tensor([9])))
    for name, values in columns.items():
        if not name.startswith("level/"):  # nearly constant columns are divided by next to nothing
            np.testing.assert_allclose(own[name], values[9:], rtol=2e-3, atol=2e-4, err_msg=name)
    torch.testing.assert_close(alone.residual, together.residual[9:], rtol=2e-3, atol=2e-4)
    scores = detector.decision_function(batch)
    np.testing.assert_allclose(detector.decision_function(batch.rows(torch.tensor([9]))), scores[9:], rtol=0.05)
    assert {"masked/under_l1", "masked/under_shift", "masked/l1", "spread/images", "spread/l1"} <= set(columns)
    assert not any("atlas_" in name for name in columns)
    assert (columns["spread/images"] > 0).all()


def test_further_starts_and_masked_rounds_leave_the_first_projection_alone(chairs: Training) -> None:
    """Lengths and styles are those of the plain projection; residuals become means over the starts."""
    plain, more = (
        Inverter(chairs.config, chairs.folders, parts, {}, seed=0, device=CPU).invert(_batch(chairs, range(4)))
        for parts in (Parts(), Parts(inversions=3, masked_rounds=2))
    )
    for name, column in plain.columns.items():
        if name.startswith("length/"):
            assert np.array_equal(more.columns[name], column)
    assert np.array_equal(more.coordinates["other"], plain.coordinates["other"])
    assert (more.columns["residual_l1"] != plain.columns["residual_l1"]).all()
    assert (np.abs(more.columns["residual_l1"] - plain.columns["residual_l1"]) < 4 * more.columns["spread/l1"] + 1e-6).all()


def test_conditions_can_be_taken_away(chairs: Training) -> None:
    """`none`: the mean angle for all; a name: its own; `shuffled`: that of another image, always the same one."""
    pool = {"angle": torch.linspace(0, 75, 50)[:, None]}
    batch = _batch(chairs, range(8))
    turned = ImageBatch(batch.images, batch.masks, {"angle": batch.conditions["angle"] + 11.0})

    def known(which: str, images: ImageBatch) -> Inverted:
        return Inverter(chairs.config, chairs.folders, Parts(conditions=which), pool, seed=0, device=CPU).invert(images)

    true, named, none, shuffled = (known(which, batch) for which in ("both", "angle", "none", "shuffled"))
    np.testing.assert_allclose(true.conditions[:, 0], batch.conditions["angle"][:, 0])
    for name, column in true.columns.items():
        assert np.array_equal(named.columns[name], column)
    assert np.allclose(none.columns["angle_degrees"], 37.5)
    drawn = shuffled.conditions[:, 0]
    assert np.isin(drawn.astype(np.float32), pool["angle"].numpy()).all()
    assert len(np.unique(drawn)) > 4
    assert not np.isclose(drawn, true.conditions[:, 0]).any()
    for which, before, changes in (("none", none, False), ("shuffled", shuffled, False), ("both", true, True)):
        after = known(which, turned)
        same = np.array_equal(after.columns["residual_l1"], before.columns["residual_l1"])
        assert same is not changes, which
    part = known("shuffled", batch.rows(slice(5, 7)))
    assert np.array_equal(part.conditions, shuffled.conditions[5:7])
    with pytest.raises(ConfigError, match=r"conditions: age is unknown; choose one of both, none, shuffled, angle"):
        known("age", batch)


def test_parts_are_switched_off(chairs: Training) -> None:
    """No column of the discriminator or the auxiliary networks; the encoder's answer alone is another reconstruction."""
    detector = ConditionalDetector(discriminator=False, auxiliary=False, density=False, levels=False, images=12).fit(chairs)
    assert not any("discriminator" in name or "output_" in name or "condition_" in name for name in detector.columns_)
    assert not any(name.startswith(("density/", "level/")) for name in detector.columns_)
    assert "residual_feature0" in detector.columns_
    batch = _batch(chairs, range(3))
    plain, encoded, longer = (
        Inverter(chairs.config, chairs.folders, parts, {}, seed=0, device=CPU).invert(batch).columns["residual_l1"]
        for parts in (Parts(), Parts(optimise=False), Parts(steps=30))
    )
    assert (longer < plain).all()
    assert (plain < encoded).all()


def test_a_linear_generator_beside_the_projection(chairs: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its residuals are columns that the forest reads; those of a training image come from components of other subjects alone;
    and without true angles it knows no angle either."""
    fitted: list[tuple[set[str], object]] = []
    plain = LinearResidual.fit

    def noted(self: LinearResidual, training: Training, subjects: Sequence[str] | None = None) -> LinearResidual:
        fitted.append((set(training.healthy.subject if subjects is None else subjects), self.pca.model_.conditions))
        return plain(self, training, subjects)

    monkeypatch.setattr(LinearResidual, "fit", noted)
    everybody = set(chairs.healthy.subject)
    detector = ConditionalDetector(linear=3).fit(chairs)
    names = [name for name in detector.columns_ if name.startswith("linear/")]
    assert names == ["linear/4", "linear/5", "linear/8", "linear/mean"]
    assert fitted[0] == (everybody, "all")
    left_out = [everybody - subjects for subjects, _ in fitted[1:]]
    assert sorted(name for names in left_out for name in names) == sorted(everybody)
    batch = _batch(chairs, range(6))
    found = detector.features.columns(batch)
    alone = detector.features.columns(batch.rows(slice(2, 3)))
    for name in names:
        assert (found[name] > 0).all()
        assert alone[name] == pytest.approx(found[name][2:3], rel=1e-5)
    fitted.clear()
    blind = UnsupervisedConditionalDetector(linear=3, conditions="none").fit(chairs)
    assert {known for _, known in fitted} == {"none"}
    assert np.isfinite(blind.decision_function(batch)).all()


def test_what_it_needs(chairs: Training, toy_settings_of: dict[str, Any]) -> None:
    """A finished run; an encoder, where its answer is to be taken as it is; several subjects."""
    with pytest.raises(DataError, match=r"needs a finished run of toy; missing: auxiliary, gan, controllers, latents"):
        ConditionalDetector().fit(replace(chairs, folders={}))
    settings = toy_settings_of | {"gan": {"steps": 1, "batch_size": 8}, "projection": {"steps": 1}}
    with pytest.raises(ConfigError, match="no encoder"):
        ConditionalDetector(optimise=False).fit(replace(chairs, config=Config.model_validate(settings)))
    one = chairs.healthy.samples.subject == chairs.healthy.samples.subject[0]
    few = HealthyImages(chairs.healthy.samples.select(one.nonzero().squeeze(1)), chairs.config.value_attributes)
    with pytest.raises(DataError, match="at least two training subjects"):
        UnsupervisedConditionalDetector().fit(replace(chairs, healthy=few))


def test_an_image_without_room_for_an_anomaly_stays_normal(chairs: Training) -> None:
    """A family may find no place: the image is normal then, and called so."""

    def nowhere(batch: ImageBatch, rows: torch.Tensor) -> AnomalyBatch:
        drawn = _blots(batch, rows)
        keep = (rows % 2 == 0).view(-1, 1, 1, 1)
        images = torch.where(keep, drawn.images, batch.images)
        return AnomalyBatch(images, drawn.masks * keep, drawn.size, drawn.contrast)

    features = ConditionalFeatures(Parts(density=False, levels=False))
    learned = features.fit(replace(chairs, anomalous=nowhere), anomalies=True, levelled=lambda names: [])
    rows = chairs.healthy.random_rows(24, torch.Generator().manual_seed(0))
    assert 0 < learned.label.sum() < len(rows) // 2


def test_suspect_regions_hold_the_worst_places() -> None:
    """A strong block is suspected whole, with its rim, and nothing outside the mask is."""
    strong = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    strong[0, :, 4:7, 4:7] = 1.0
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[1, ..., 8:] = False
    found = suspected(strong, mask)
    assert bool(found[0, 0, 3:8, 3:8].all())
    assert not bool(found[1, ..., 8:].any())
    assert 0.05 <= found.float().mean((1, 2, 3))[0] < 0.4
    assert bool((suspected(strong[:1], mask[:1]) == found[:1]).all())
    assert not bool(suspected(strong, torch.zeros_like(mask)).any())


def test_normal_images_do_not_look_more_usual_because_they_took_part(chairs: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anomalies that change nothing, and styles of pure noise in many dimensions: both labels have the same distances.

    Compared with all normal images, themselves among them, normal ones would lie nearer.
    """

    class Noise:
        resolutions = (4,)

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.random = np.random.default_rng(0)

        def invert_without_maps(self, batch: ImageBatch) -> Inverted:
            n = len(batch)
            columns = {"residual_l1": self.random.lognormal(size=n)}
            known = batch.conditions["angle"].double().numpy()
            return Inverted(columns, {"other": self.random.normal(size=(n, 1, 30))}, known, torch.zeros(n, 0), None)

    monkeypatch.setattr(usual, "Inverter", Noise)
    samples = chairs.healthy.samples
    many = samples.select(torch.arange(len(samples)).repeat(20))
    training = replace(chairs, healthy=HealthyImages(many, chairs.config.value_attributes))
    features = ConditionalFeatures(Parts(images=480, levels=True))
    learned = features.fit(training, anomalies=True, levelled=lambda names: ["residual_l1"])
    distance, normal = learned.columns["density/other"], learned.label == 0
    assert distance[normal].mean() == pytest.approx(distance[~normal].mean(), rel=0.03)
    assert set(learned.columns) == {"residual_l1", "density/other", "density/other/4", "level/residual_l1"}
    assert len(distance) == len(learned.subject) == 480


@pytest.mark.slow
def test_patches_under_masks(brains: Training) -> None:
    """Brains: maps are 0 outside the masks, follow the excess over what is usual, and the yardsticks are among the evidence."""
    batch = _batch(brains, range(6))
    assert batch.masks is not None
    for detector in (ConditionalDetector(masked_rounds=1).fit(brains), UnsupervisedConditionalDetector().fit(brains)):
        scores, maps = detector.decision_function(batch), detector.anomaly_map(batch)
        assert maps.shape == batch.images.shape
        assert bool((maps[~batch.masks] == 0).all())
        assert bool((maps >= 0).all())
        assert bool((maps.flatten(1).amax(1) <= torch.from_numpy(scores).float() + 1e-6).all())
        assert any("atlas_z4" in name for name in detector.columns_)
        assert not any(name.startswith(("masked/atlas", "masked/conditions")) for name in detector.columns_)
    known = ("position", "age")
    one = Inverter(
        brains.config,
        brains.folders,
        Parts(conditions="age"),
        {name: batch.conditions[name] for name in known},
        seed=0,
        device=CPU,
    ).invert(batch)
    np.testing.assert_allclose(one.columns["age_years"], batch.conditions["age"][:, 0])
    assert np.ptp(one.columns["position_mm_0"]) == 0


def test_what_one_detector_projected_another_does_not(chairs: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same scores bit for bit, with and without keeping; other settings, and other seeds of several starts, share nothing."""
    batch = chairs.healthy.batch(torch.arange(12))
    plain = load_detector(PluginConfig(name="conditional")).fit(chairs).decision_function(batch)
    keeping = replace(chairs, kept=tmp_path / "kept")
    first = load_detector(PluginConfig(name="conditional")).fit(keeping)
    assert np.array_equal(first.decision_function(batch), plain)
    assert saved_by(first) == 0

    projected: list[int] = []
    project = Projector.project

    def counted(self: Projector, images: torch.Tensor, *rest: Any, **more: Any) -> Any:
        projected.append(len(images))
        return project(self, images, *rest, **more)

    monkeypatch.setattr(Projector, "project", counted)
    again = load_detector(PluginConfig(name="conditional", settings={"density": False})).fit(keeping)
    assert not projected  # densities come after the projection
    whole = load_detector(PluginConfig(name="conditional")).fit(keeping)
    assert np.array_equal(whole.decision_function(batch), plain)
    assert not projected
    assert saved_by(whole) > 0.01  # seconds that it would have cost: its costs count them
    assert again.anomaly_map(batch).shape == (12, 1, 8, 8)
    assert sum(projected) == 12  # maps are not kept
    projected.clear()
    load_detector(PluginConfig(name="conditional", settings={"steps": 2})).fit(keeping)
    assert sum(projected) == len(chairs.healthy)
    for seed in (1, 2):
        projected.clear()
        several = PluginConfig(name="conditional", settings={"inversions": 2})
        load_detector(several).fit(replace(keeping, seed=seed))
        assert projected
