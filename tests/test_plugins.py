"""Detectors and families by name: built-in or of one's own, and what is said of those that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from normscape.config import EvaluationConfig, PluginConfig
from normscape.errors import ConfigError
from normscape.plugins import build

CODE = """
class Mean:
    def __init__(self, *, width: int = 3) -> None:
        if width < 1:
            raise ValueError("width: too small")
        self.width = width
"""
BUILTIN = {
    "mean": "my_plugins:Mean",
    "median": "my_plugins:Median",
    "gone": "nowhere.at_all:Thing",
    "missing": "my_plugins:Missing",
}


@pytest.fixture(autouse=True)
def my_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that can be imported."""
    (tmp_path / "my_plugins.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def test_built_in_by_name_with_settings() -> None:
    assert build(PluginConfig(name="mean"), BUILTIN, kind="detector").width == 3
    assert build(PluginConfig(name="wide", use="mean", settings={"width": 9}), BUILTIN, kind="detector").width == 9


def test_ones_own_by_module_and_class() -> None:
    assert build(PluginConfig(name="mine", use="my_plugins:Mean", settings={"width": 5}), {}, kind="detector").width == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"name": "medain"},
            r"anomaly family `medain` is unknown; did you mean median\?; known are gone, mean, median, missing, and",
        ),
        ({"name": "gone"}, r"`gone`: nowhere\.at_all:Thing cannot be imported"),
        ({"name": "missing"}, r"`missing`: my_plugins:Missing cannot be imported"),
        ({"name": "mean", "settings": {"height": 1}}, r"`mean`: my_plugins:Mean does not take these settings .*height"),
        (
            {"name": "mean", "settings": {"width": 0}},
            r"`mean`: my_plugins:Mean does not take these settings \(width: too small\)",
        ),
    ],
)
def test_what_cannot_be_made_is_an_error_for_people(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PluginConfig.model_validate(entry), BUILTIN, kind="anomaly family")


def test_a_text_stands_for_a_name() -> None:
    config = EvaluationConfig.model_validate({"detectors": ["pca", {"name": "big", "use": "pca", "settings": {"components": 9}}]})
    assert [entry.name for entry in config.detectors] == ["pca", "big"]
    assert config.detectors[1].settings == {"components": 9}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"detectors": ["pca", "pca"]}, "`detectors` names pca more than once"),
        ({"training_families": ["clear"]}, "`training_families` names clear, which `families` does not: standard"),
        ({"scan_families": ["tumour"]}, "`scan_families` names tumour"),
        ({"reference": "vae"}, "`reference` is vae, which is none of `detectors`"),
        ({"detectors": []}, "at least 1 item"),
        ({"false_positive_rates": [0.0]}, "greater than 0"),
    ],
)
def test_sections_that_do_not_fit_together(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig.model_validate(section)
