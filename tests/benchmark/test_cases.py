"""Every case runs on a toy configuration and reports what its table needs; no test looks at how long anything takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.benchmark import cases
from normscape.benchmark.cases import BATCHED_SHARE, CASES, PATCHES_SHARE, PROJECTION_BATCHES, Ratio, benchmark
from normscape.benchmark.table import to_markdown, write_results
from normscape.config import Config

CPU = torch.device("cpu")


def quiet(text: str) -> None:
    """Say nothing."""


def test_every_case_runs(toy_config: Callable[..., Config], tmp_path: Path) -> None:
    """One repeat of everything: rows with positive times and memory, ratios, and files that can be read back."""
    config = toy_config()
    said: list[str] = []
    results = benchmark([config], device=CPU, repeats=1, say=said.append)
    assert said == [f"toy: {name}" for name in CASES]
    assert results.skipped == [("toy", "patches", "images come from chairs, no patches are cut")]
    assert all(row.timing.median > 0 and row.timing.peak_bytes > 0 and row.timing.repeats == 1 for row in results.rows)
    found = [(row.case, row.batch) for row in results.rows]
    expected = [
        ("training step (D + G)", 8),
        ("discriminator phase", 8),
        ("R1 phase", 8),
        ("generator phase", 8),
        ("path length phase", 4),
        ("training step with its share of the regularisers", 8),
        ("contrastive loss", 8),
        ("auxiliary networks, forward + backward", 8),
        *(("projection step", batch) for batch in PROJECTION_BATCHES),
        ("rendering at 32 px, 3x3 rays a pixel", 1),
        ("rendering at 64 px, 3x3 rays a pixel", 1),
    ]
    assert found == expected
    assert all((row.reference is not None) == (i < 8) for i, row in enumerate(results.rows))
    assert BATCHED_SHARE in [ratio.name for ratio in results.ratios]
    for path in write_results(results, tmp_path / "made"):
        assert path.exists()
    stored = json.loads((tmp_path / "made" / "benchmark.json").read_text())
    assert len(stored["rows"]) == len(results.rows)
    assert "projection step" in to_markdown(results)


def test_brain_patches(toy_brain_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and projection under masks, and the patches of a step, cut from a small simulated cohort."""
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path))
    config = toy_brain_config(data={"spacing_mm": 4.0})
    results = benchmark([config], device=CPU, only=["training", "projection", "patches"], repeats=1, say=quiet)
    found = {row.case for row in results.rows}
    assert {"warm-up step", "training step (D + G)", "projection step", "cutting and augmenting patches"} <= found
    assert PATCHES_SHARE in {ratio.name for ratio in results.ratios}


def test_three_dimensions(toy_config: Callable[..., Config]) -> None:
    """The cases name no dimension."""
    results = benchmark([toy_config(dims=3)], device=CPU, only=["contrastive", "auxiliary"], repeats=1, say=quiet)
    assert len(results.rows) == 2


def test_the_averaged_step_adds_each_regulariser_by_its_interval(toy_config: Callable[..., Config]) -> None:
    """Toy: R1 every second step, path length every third."""
    results = benchmark([toy_config()], device=CPU, only=["training"], repeats=1, say=quiet)
    rows = {row.case: row.timing.median for row in results.rows}
    expected = rows["training step (D + G)"] + rows["R1 phase"] / 2 + rows["path length phase"] / 3
    assert rows["training step with its share of the regularisers"] == pytest.approx(expected)


def test_what_cannot_be_measured_is_listed_with_its_reason(toy_config: Callable[..., Config], tmp_path: Path) -> None:
    """RC-49 images come from a file: there is nothing to render, and the rest goes on."""
    config = toy_config(data={"source": "rc49", "path": str(tmp_path / "rc49.h5")})
    results = benchmark([config], device=CPU, only=["contrastive", "rendering"], repeats=1, say=quiet)
    assert [row.case for row in results.rows] == ["contrastive loss"]
    assert results.skipped == [("toy", "rendering", "images come from rc49, nothing is rendered")]


def test_targets_hold_for_their_configuration_on_a_cpu_only(toy_config: Callable[..., Config]) -> None:
    """The bound of chairs-cpu is met at exactly a quarter; another configuration or a GPU has none."""
    config = toy_config(name="chairs-cpu")
    assert Ratio.of(config, BATCHED_SHARE, 0.25, CPU).met is True
    assert Ratio.of(config, BATCHED_SHARE, 0.26, CPU).met is False
    assert Ratio.of(config, BATCHED_SHARE, 0.26, torch.device("cuda")).met is None
    assert Ratio.of(toy_config(), BATCHED_SHARE, 0.26, CPU).met is None
    assert Ratio.of(toy_config(name="chairs-gpu"), cases.STEP_SPEEDUP, 2.4, CPU).met is False
