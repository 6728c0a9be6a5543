"""The schema: what a configuration may hold, and the shipped configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from normscape.baselines import load_detector
from normscape.config import Config, ConfigProblems
from normscape.configio import load_config
from normscape.stages.core import stage_keys

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EVALUATIONS = sorted([*CONFIGS.glob("*/conditions.yaml"), *CONFIGS.glob("*/scans.yaml")])
"""They evaluate the run of the `cpu.yaml` beside them in other ways."""
SHIPPED = sorted(set((CONFIGS / "chairs").glob("*.yaml")) - set(EVALUATIONS))


def _plain(**changes: object) -> dict[str, object]:
    return load_config(CONFIGS / "chairs" / "demo.yaml").model_dump(mode="json") | changes


def test_all_four_chairs_configurations_ship() -> None:
    assert [p.stem for p in SHIPPED] == ["cpu", "demo", "gpu", "paper"]


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_further_evaluations_are_of_the_same_run(path: Path) -> None:
    """Nothing but the evaluation differs, so that no stage is run again; every detector can be made."""
    config, run = load_config(path), load_config(path.with_name("cpu.yaml"))
    assert config.name == run.name
    assert stage_keys(config) == stage_keys(run)
    assert config.evaluation != run.evaluation
    for entry in config.evaluation.detectors:
        load_detector(entry)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configurations_load_and_say_what_they_are(path: Path) -> None:
    config = load_config(path)
    assert config.name == f"chairs-{path.stem}"
    assert config.description
    assert config.data.train_subjects == 40
    assert config.data.test_subjects == 9


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_configuration_has_the_thresholds_of_table_1(path: Path) -> None:
    """Those of the CPU apart, which separate identities further: see its own words."""
    identity, angle = load_config(path).attributes
    apart = 0.45 if path.stem in ("cpu", "demo") else 0.35
    assert (identity.tau_same, identity.tau_different, identity.distance) == (0.05, apart, "euclidean")
    assert (identity.output_dim, identity.latent_dim) == (128, 48)
    assert (angle.tau_same, angle.tau_different, angle.distance, angle.output_dim, angle.latent_dim) == (0.03, 0.15, "l1", 1, 48)
    assert load_config(path).other_dim == 32


def test_paper_is_literal() -> None:
    """The numbers of section III.A.3 and of table I."""
    config = load_config(CONFIGS / "chairs" / "paper.yaml")
    assert config.image_size == 64
    assert config.generator.channels == (16, 32, 64, 128, 256)
    assert config.discriminator.channels == (32, 64, 128, 256, 256)
    assert (config.gan.steps, config.gan.batch_size) == (300_000, 32)
    assert [a.auxiliary.epochs for a in config.attributes] == [10, 50]
    assert {a.auxiliary.batch_size for a in config.attributes} == {32}
    assert {a.auxiliary.width for a in config.attributes} == {64}
    assert [a.auxiliary.augment_hue for a in config.attributes] == [False, True]
    assert config.attributes[0].auxiliary.margin == 0.5
    assert (config.controllers.samples, config.controllers.epochs, config.latents.samples) == (32_000, 100, 32_000)
    assert (config.projection.train_samples, config.projection.test_samples, config.projection.radius) == (5000, 5000, 3.0)
    assert config.scoring.features == "thesis"
    assert (config.data.angle_min_degrees, config.data.angle_max_degrees, config.data.angle_step_degrees) == (0.0, 89.9, 0.1)


def test_derived_properties() -> None:
    config = load_config(CONFIGS / "chairs" / "paper.yaml")
    assert config.resolutions == (4, 8, 16, 32, 64)
    assert config.subspaces == {"identity": 48, "angle": 48, "other": 32}
    assert [a.name for a in config.value_attributes] == ["angle"]


def test_values_never_change_after_reading() -> None:
    config = Config.model_validate(_plain())
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]


def test_problems_across_sections_come_together() -> None:
    data = _plain(image_size=64)
    data["gan"] = {**data["gan"], "batch_size": 30}  # type: ignore[dict-item]
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(data)
    cause = caught.value.errors()[0]["ctx"]["error"]
    assert isinstance(cause, ConfigProblems)
    assert {path for path, _ in cause.problems} == {
        "generator.channels",
        "discriminator.channels",
        "gan.batch_size",
        "discriminator.deviation_group",
    }


@pytest.mark.parametrize("size", [4, 33, 48])
def test_image_size_is_a_power_of_two_of_at_least_8(size: int) -> None:
    with pytest.raises(ValidationError, match="power of two"):
        Config.model_validate(_plain(image_size=size))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    data = _plain()
    data["gan"] = {**data["gan"], "learning_rate": value}  # type: ignore[dict-item]
    with pytest.raises(ValidationError, match="finite"):
        Config.model_validate(data)


@pytest.mark.parametrize("path", sorted((CONFIGS / "brain").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_brain_configuration_has_the_numbers_of_table_2(path: Path) -> None:
    config = load_config(path)
    assert config.dims == 3
    found = {a.name: (a.latent_dim, a.tau_same, a.tau_different, a.distance, a.output_dim) for a in config.attributes[:3]}
    expected = {
        "identity": (64, 0.05, 0.45, "euclidean", 128),
        "age": (32, 0.02, 0.18, "l1", 1),
        "position": (128, 0.02, 0.22, "l1", 3),
    }
    if config.whole_scans:
        del expected["position"]
    assert found == expected
    assert config.other_dim == 32
    # the same physical size of a patch everywhere, but for the one that asks what a smaller one is worth, and a whole head
    side_mm = {"small": 16.0, "volume": 192.0}.get(path.stem, 32.0)
    assert config.image_size * config.data.spacing_mm == side_mm


def test_whole_scans_have_no_position_and_need_views() -> None:
    """Both problems are named at once, where they are; only brains have scans; a learned atlas is theirs as it is of patches."""
    whole = load_config(CONFIGS / "brain" / "volume.yaml")
    assert whole.whole_scans
    assert [a.name for a in whole.attributes] == ["identity", "age"]
    assert whole.generator.atlas_channels
    patches = load_config(CONFIGS / "brain" / "cpu.yaml").model_dump(mode="json")
    patches["data"] |= {"patches": "whole", "contrast_augmentation": "none"}
    patches["augmentation"]["noise_std_max"] = 0.0
    with pytest.raises(ValidationError) as raised:
        Config.model_validate(patches)
    text = str(raised.value)
    assert "attributes.position: must not be there with data.patches whole" in text
    assert "data.contrast_augmentation: must not be none with data.patches whole" in text
    with pytest.raises(ValidationError, match="need source brain, found chairs"):
        Config.model_validate(_plain(data={"patches": "whole"}))


def test_brain_paper_is_literal() -> None:
    """The numbers of section III.B."""
    config = load_config(CONFIGS / "brain" / "paper.yaml")
    assert config.generator.channels == (32, 64, 128, 256)
    assert config.discriminator.channels == (64, 128, 256, 256)
    assert (config.gan.steps, config.gan.batch_size, config.gan.reconstruction_weight) == (100_000, 32, 0.0)
    assert [a.auxiliary.epochs for a in config.attributes] == [30, 40, 40]
    assert (config.data.train_subjects, config.data.test_subjects) == (300, 263)
    assert (config.projection.train_samples, config.projection.test_samples) == (2000, 1000)
    assert (config.projection.perceptual, config.projection.pixel_loss, config.projection.radius) == ("ssim", "l2", 3.0)
    assert (config.data.contrast_augmentation, config.data.background, config.data.max_background) == ("pca", "noise", 0.5)


def test_only_one_brain_configuration_goes_beyond_the_attributes_of_table_2() -> None:
    """The shifts of contrast are its fourth, after those of `cpu.yaml`; all else but the name is the same."""
    every = {path.stem: load_config(path) for path in (CONFIGS / "brain").glob("*.yaml")}
    assert {name for name, config in every.items() if len(config.attributes) > 3} == {"contrast"}
    config, plain = every["contrast"], every["cpu"]
    assert [a.name for a in config.attributes] == ["identity", "age", "position", "contrast"]
    same = config.model_copy(
        update={"attributes": config.attributes[:3], "name": plain.name, "description": plain.description}
    )  # fmt: skip
    assert same == plain


def _all_shipped() -> dict[str, Config]:
    return {f"{path.parent.name}/{path.stem}": load_config(path) for path in sorted(CONFIGS.glob("[bc]*/*.yaml"))}


def test_projection_starts_at_the_encoders_answer_wherever_an_encoder_is_trained() -> None:
    """All configurations but the literal ones have one."""
    shipped = _all_shipped()
    assert len(shipped) == 14
    at_the_mean = {name for name, config in shipped.items() if config.projection.start == "mean"}
    assert at_the_mean == {"chairs/paper", "brain/paper"}
    assert at_the_mean == {name for name, config in shipped.items() if not config.gan.reconstruction_weight}


def test_the_curve_is_drawn_everywhere_but_in_the_literal_configurations_and_of_volumes() -> None:
    """The thesis's 1000 steps are in it, but for the demos, which have no time for that."""
    for name, config in _all_shipped().items():
        images, steps = config.projection.curve_images, config.projection.curve_steps
        assert images == 0 if name.endswith(("/paper", "/volume")) else 10 <= images <= 32, name
        assert (steps < 1000) == name.endswith("/demo"), name
        assert config.projection.stop_tolerance == 0, name


AUGMENTED = {"mode": "adaptive"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fixed"}, "mode fixed needs a probability above 0"),
        ({"mode": "sometimes"}, "none.*fixed.*adaptive"),
        ({"target": 1.0}, "less than 1"),
        ({"flip_axes": ["left"]}, "pattern"),
        (AUGMENTED | {"flip_axes": ["x", "x"]}, "flip_axes must name each axis once, found x, x"),
        (AUGMENTED | {"flip_axes": ["x"]}, "must be empty for source chairs: a mirrored chair is seen from another angle"),
        (AUGMENTED | {"translation_fraction": 0.01}, "less than half a pixel at image_size 32"),
        (
            AUGMENTED | {"translation_fraction": 0, "scale": 0, "rotation_degrees": 0, "brightness": 0, "contrast": 0},
            "mode adaptive needs a change to make",
        ),
    ],
)
def test_contradictions_of_the_discriminators_augmentation(settings: dict[str, object], message: str) -> None:
    data = _plain()
    data["gan"] = {**data["gan"], "augmentation": settings}  # type: ignore[dict-item]
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(data)


def test_brains_may_be_mirrored_left_to_right_alone() -> None:
    data = load_config(CONFIGS / "brain" / "cpu.yaml").model_dump(mode="json")
    data["gan"]["augmentation"] |= AUGMENTED | {"flip_axes": ["x"]}
    assert Config.model_validate(data).gan.augmentation.flip_axes == ("x",)
    data["gan"]["augmentation"]["flip_axes"] = ["y", "x"]
    with pytest.raises(ValidationError, match=r"may hold x, left to right, alone for source brain.*found y, x"):
        Config.model_validate(data)


def test_no_shipped_configuration_augments_what_the_discriminator_sees() -> None:
    assert {config.gan.augmentation.mode for config in _all_shipped().values()} == {"none"}
