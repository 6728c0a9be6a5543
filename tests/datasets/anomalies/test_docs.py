"""The guide's own family, taken from docs/anomalies.md as it stands there, works; its tables name all families and settings."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from normscape.config.evaluation import EvaluationConfig
from normscape.datasets.anomalies import FAMILIES, load_family

GUIDE = Path(__file__).parents[3] / "docs" / "anomalies.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenery: Callable) -> None:
    """The file is saved, the configuration loads it by its line, and it draws what it says."""
    (code,) = (block for block in blocks("python") if block.startswith("# my_families.py"))
    (settings,) = (block for block in blocks("yaml") if "my_families" in block)
    (tmp_path / "my_families.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = EvaluationConfig.model_validate(yaml.safe_load(settings)["evaluation"])
    family = load_family(config.families[1])
    batch, _, scene = scenery("patches")
    drawn = family.draw(batch, seed=0, sample_ids=[1, 2, 3, 4], scene=scene)
    again = family.draw(batch.rows(slice(2, 3)), seed=0, sample_ids=[3], scene=scene)
    assert torch.equal(again.images[0], drawn.images[2])
    whole = drawn.masks == 1
    assert whole.flatten(1).any(1).all()
    assert drawn.images[whole] == pytest.approx(torch.full((int(whole.sum()),), -0.8), abs=1e-6)
    assert not drawn.masks[~batch.masks].any()


def test_other_configurations_are_right() -> None:
    """Every example of a configuration is one, and its built-in families take their settings."""
    found = [yaml.safe_load(block)["evaluation"] for block in blocks("yaml")]
    assert len(found) == 2
    for entry in EvaluationConfig.model_validate(found[0]).families:
        load_family(entry)


def test_every_family_is_told_of() -> None:
    """The first table has a row for each family, the second one a row for each that has settings, and they are the right ones."""
    text = GUIDE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (.*) \|$", text, flags=re.MULTILINE)
    first, second = ([row for row in rows if ("|" in row[1]) == wide] for wide in (True, False))
    assert sorted(name for names, _ in first for name in re.findall(r"[a-z_]+", names)) == sorted(FAMILIES)
    told = {name: set(re.findall(r"[a-z_]+", settings)) for names, settings in second for name in re.findall(r"[a-z_]+", names)}
    real = {}
    for name, path in FAMILIES.items():
        module, _, kind = path.partition(":")
        real[name] = {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), kind))}
    assert told == {name: settings for name, settings in real.items() if settings}
