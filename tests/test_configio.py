"""Reading configurations: problems all at once, overrides, inheritance, digests, the reference page."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from normscape.configio import config_digest, digest, dump_yaml, load_config, reference_markdown, section_digest, validate_config
from normscape.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "chairs" / "demo.yaml"


@pytest.fixture
def plain() -> dict:
    """A valid configuration as plain data."""
    data = yaml.safe_load(dump_yaml(load_config(DEMO)))
    assert isinstance(data, dict)
    return data


def write(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


# ---- problems


def test_all_problems_come_at_once_with_paths_and_suggestions(tmp_path: Path, plain: dict) -> None:
    """Wrong types, ranges, choices, unknown keys and problems across sections, in one message."""
    plain["atributes"] = []
    plain["data"] |= {"source": "rc49", "train_subjcts": 3}
    plain["attributes"][0] |= {"tau_same": 0.5, "tau_different": 0.2, "distance": "euclid"}
    plain["attributes"][1] |= {"tau_same": 1.5}
    plain["attributes"][1]["auxiliary"]["epoch"] = 3
    plain["discriminator"]["channels"] = [16, 32]
    plain["gan"] |= {"steps": "many", "batch_size": 30}
    lines = problems(write(tmp_path / "a.yaml", plain))
    assert lines[0] == f"{tmp_path / 'a.yaml'}: 11 problems"
    assert {line.strip() for line in lines[1:]} == {
        "atributes: unknown key; did you mean `attributes`?",
        "data.train_subjcts: unknown key; did you mean `train_subjects`?",
        "data.source: rc49 needs `path`, the RC-49 HDF5 file",
        "attributes.identity.distance: must be one of euclidean, l1; found 'euclid'",
        "attributes.identity.tau_same: must not exceed tau_different (0.2); found 0.5",
        "attributes.angle.tau_same: must be a number, from 0 to 1; found 1.5",
        "attributes.angle.auxiliary.epoch: unknown key; did you mean `epochs`?",
        "discriminator.channels: image_size 32 needs 4 entries (for sides 4, 8, 16, 32), found 2",
        "gan.steps: must be a whole number, at least 1; found 'many'",
        "gan.batch_size: must be a multiple of 2^N = 4 for N = 2 attributes, found 30",
        "discriminator.deviation_group: must divide gan.batch_size (30), found 4",
    }


def test_an_unknown_key_without_a_near_one_lists_what_there_is(tmp_path: Path, plain: dict) -> None:
    plain["latents"]["xyzzy"] = 1
    assert problems(write(tmp_path / "a.yaml", plain))[1].strip() == "latents.xyzzy: unknown key; known here: samples"


def test_missing_keys_say_what_they_accept(tmp_path: Path, plain: dict) -> None:
    del plain["gan"]["steps"], plain["attributes"][1]["tau_same"]
    assert {line.strip() for line in problems(write(tmp_path / "a.yaml", plain))[1:]} == {
        "attributes.angle.tau_same: is required (number, from 0 to 1)",
        "gan.steps: is required (whole number, at least 1)",
    }


def test_an_entry_without_a_name_is_shown_by_position(tmp_path: Path, plain: dict) -> None:
    del plain["attributes"][1]["name"]
    assert problems(write(tmp_path / "a.yaml", plain))[1].strip().startswith("attributes.1.name: is required")


@pytest.mark.parametrize("value", [None, 3, "x", {"a": 1}, [3], []])
def test_attributes_of_a_wrong_shape_are_a_message(tmp_path: Path, plain: dict, value: object) -> None:
    plain["attributes"] = value
    lines = problems(write(tmp_path / "a.yaml", plain))
    assert "attributes" in lines[1]


def test_validate_config_reports_like_load_config(plain: dict) -> None:
    plain["gan"]["step"] = 3
    with pytest.raises(ConfigError, match=r"gan\.step: unknown key; did you mean `steps`"):
        validate_config(plain)


# ---- files


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read configuration .*nope.yaml: No such file"):
        load_config(tmp_path / "nope.yaml")


def test_a_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory"):
        load_config(tmp_path)


def test_invalid_yaml_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\ngan: {steps: 3\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"a\.yaml, line 3, column \d+: not valid YAML"):
        load_config(path)


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\ngan:\n  steps: 3\n  steps: 4\n")
    with pytest.raises(ConfigError, match=r"line 4.*key `steps` stands twice \(first on line 3\)"):
        load_config(path)


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- 1\n", "a list"), ("hello\n", "a str")])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"found {found}"):
        load_config(write(tmp_path / "a.yaml", text))


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


# ---- inheritance


def test_base_merges_sections_replaces_lists_and_merges_attributes_by_name(tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.yaml",
        textwrap.dedent(f"""
            base: {DEMO}
            name: child
            gan: {{steps: 7}}
            scoring: {{max_depth: [2]}}
            attributes:
              - name: angle
                tau_same: 0.01
                auxiliary: {{epochs: 3}}
        """),
    )
    base, config = load_config(DEMO), load_config(child)
    assert config.name == "child"
    assert config.gan == base.gan.model_copy(update={"steps": 7})
    assert config.scoring.max_depth == (2,)
    assert config.attributes[0] == base.attributes[0]
    assert config.attributes[1].tau_same == 0.01
    assert config.attributes[1].auxiliary == base.attributes[1].auxiliary.model_copy(update={"epochs": 3})


def test_base_is_found_beside_the_file_and_a_new_attribute_is_added(tmp_path: Path, plain: dict) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.yaml", plain)
    extra = plain["attributes"][1] | {"name": "colour"}
    child = write(tmp_path / "deep" / "child.yaml", {"base": "../base.yaml", "attributes": [extra]})
    assert [a.name for a in load_config(child).attributes] == ["identity", "angle", "colour"]


def test_an_attribute_of_the_base_can_be_dropped(tmp_path: Path, plain: dict) -> None:
    """By its name; one that is not there is added, and `drop` is then no key of it."""
    write(tmp_path / "base.yaml", plain)
    child = write(tmp_path / "child.yaml", {"base": "base.yaml", "attributes": [{"name": "angle", "drop": True}]})
    assert [a.name for a in load_config(child).attributes] == ["identity"]
    wrong = write(tmp_path / "wrong.yaml", {"base": "base.yaml", "attributes": [{"name": "angel", "drop": True}]})
    with pytest.raises(ConfigError, match=r"attributes\.angel\.drop: unknown key"):
        load_config(wrong)


def test_a_circle_of_bases_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_missing_base_says_who_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml \(`base` of .*a\.yaml\)"):
        load_config(write(tmp_path / "a.yaml", "base: no.yaml\n"))


# ---- overrides


def test_set_changes_values_by_path_position_and_name() -> None:
    config = load_config(
        DEMO,
        [
            "gan.steps=5",
            "name=mine",
            "projection.radius=null",
            "attributes.0.tau_same=0.1",
            "attributes.angle.auxiliary.epochs=2",
            "generator.channels.1=40",
            "scoring.max_depth=[2, 3]",
            "gan.learning_rate=1e-4",
        ],
    )
    assert (config.gan.steps, config.name, config.projection.radius) == (5, "mine", None)
    assert config.attributes[0].tau_same == 0.1
    assert config.attributes[1].auxiliary.epochs == 2
    assert config.generator.channels[:2] == (64, 40)
    assert config.scoring.max_depth == (2, 3)
    assert config.gan.learning_rate == 1e-4


def test_the_last_set_wins() -> None:
    assert load_config(DEMO, ["seed=1", "seed=2"]).seed == 2


def test_bad_overrides_are_reported_together_with_everything_else() -> None:
    lines = problems(
        DEMO,
        "seed",
        "seed.deep=1",
        "attributes.age.tau_same=0.1",
        "generator.channels.9=1",
        "name=[",
        "attributes.angle.tau_diferent=0.3",
        "gan.batch_size=30",
    )
    text = "\n".join(lines)
    assert lines[0] == f"{DEMO}: 8 problems"
    assert "--set seed: must look like section.key=value" in text
    assert "--set seed.deep=1: `seed` is a single value (0), it has no `deep`" in text
    assert "`attributes` has no entry `age`; it has the names identity, angle or the positions 0 to 1" in text
    assert "`generator.channels` has no entry `9`; it has the positions 0 to 3" in text
    assert "--set name=[: the value is not valid YAML" in text
    assert "attributes.angle.tau_diferent: unknown key; did you mean `tau_different`?" in text
    assert "gan.batch_size: must be a multiple of 2^N = 4" in text


# ---- digests and writing


def test_dump_reads_back_to_the_same_configuration(tmp_path: Path) -> None:
    config = load_config(DEMO)
    again = load_config(write(tmp_path / "a.yaml", dump_yaml(config)))
    assert again == config
    assert config_digest(again) == config_digest(config)


def test_digest_depends_on_values_not_on_how_they_are_written(tmp_path: Path, plain: dict) -> None:
    one = load_config(write(tmp_path / "a.yaml", plain))
    plain["gan"]["r1_gamma"] = 1  # was 1.0
    del plain["image_channels"]  # the default
    two = load_config(write(tmp_path / "b.yaml", dict(reversed(plain.items()))))
    assert config_digest(one) == config_digest(two)
    assert config_digest(one) != config_digest(load_config(DEMO, ["seed=1"]))


FIXED = {
    "name": "fixed",
    "image_size": 16,
    "attributes": [
        {
            "name": "identity",
            "kind": "embedding",
            "latent_dim": 4,
            "output_dim": 4,
            "distance": "euclidean",
            "tau_same": 0.1,
            "tau_different": 0.2,
        }
    ],
    "generator": {"channels": [4, 4, 4]},
    "discriminator": {"channels": [4, 4, 4]},
    "gan": {"steps": 1},
}


def test_digest_is_the_same_on_every_machine() -> None:
    """A fixed configuration has a fixed digest; when this changes, finished runs are no longer found."""
    config = validate_config(FIXED)
    assert section_digest(config, ("seed", "image_size")) == "ef2debdb166cfd37ad366afb27307c4fe8cf51c1e3013cb3b6a443ce7a62e49a"


def test_a_field_that_holds_its_default_changes_no_digest() -> None:
    """A later version may add fields: work of an earlier one stays up to date."""
    config = validate_config(FIXED)
    assert section_digest(config, ("gan",)) == digest({"gan": {"steps": 1}})
    assert config_digest(validate_config(config.model_dump(mode="json"))) == config_digest(config)


def test_section_digest_sees_only_its_sections_without_what_is_omitted() -> None:
    base = load_config(DEMO)
    changed = load_config(DEMO, ["attributes.angle.tau_same=0.02", "gan.steps=3"])
    assert section_digest(base, ("attributes",)) != section_digest(changed, ("attributes",))
    assert section_digest(base, ("attributes",), ("attributes.tau_same",)) == section_digest(
        changed, ("attributes",), ("attributes.tau_same",)
    )


# ---- reference


def test_reference_page_is_current() -> None:
    """Else: `normscape config reference --output docs/configuration.md`."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference_markdown()


def test_reference_explains_every_field() -> None:
    page = reference_markdown()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(lines) > 90
    assert all(line.count(" | ") == 3 and line.split(" | ")[3].strip(" |") for line in lines)
    assert "| `tau_same` | number, from 0 to 1 | **required** |" in page
    assert "## `attributes[].auxiliary`" in page
