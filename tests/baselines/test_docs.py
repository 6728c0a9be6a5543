"""docs/detectors.md can be followed: its table is complete, and its example runs as it stands there."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from normscape.baselines import DETECTORS, load_detector
from normscape.config import Config
from normscape.datasets.batches import ImageBatch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detectors.md"


def blocks(language: str) -> list[str]:
    """The page's blocks of code in this language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_table_names_every_setting() -> None:
    """Each row's settings are the keyword arguments of the class."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) >= 7
    for name, settings in rows:
        module, _, attribute = DETECTORS[name].partition(":")
        found = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in found.values())
        assert re.findall(r"`(\w+)`", settings) == list(found), name


@pytest.mark.parametrize("kind", ["pictures", "brains"])
def test_the_example_runs(
    kind: str,
    world: Callable[..., Any],
    with_blocks: Callable[..., ImageBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The class from the page, through the line of configuration from the page, in both kinds of images."""
    (code,), (lines,) = blocks("python"), blocks("yaml")
    (tmp_path / "my_detectors.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_detectors", raising=False)
    here = world(kind)
    config = Config.model_validate(here.training.config.model_dump(mode="json") | yaml.safe_load(lines))
    assert [entry.name for entry in config.evaluation.detectors] == ["atlas", "roughness"]
    detector = load_detector(config.evaluation.detectors[1]).fit(here.training)
    batch = here.others.batch(torch.arange(0, 48, 2))
    scores = detector.decision_function(batch)
    assert scores.shape == (24,)
    assert (detector.decision_function(with_blocks(batch)) > scores).mean() > 0.7
    np.testing.assert_allclose(detector.decision_function(batch.rows(slice(3, 4)))[0], scores[3], rtol=1e-4, atol=1e-6)
    found = detector.anomaly_map(batch)
    assert found.shape == (24, 1, *batch.images.shape[2:])
    assert batch.masks is None or bool((found[~batch.masks] == 0).all())
