"""Every case runs on a toy configuration and reports what its table needs; no test looks at how long anything takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from normscape.benchmark import bench, timing
from normscape.benchmark.cases import CASES, benchmark
from normscape.benchmark.facts import facts_of
from normscape.benchmark.projection_cases import PROJECTION_BATCHES
from normscape.benchmark.random_networks import random_projector
from normscape.benchmark.results import (
    BATCHED_SHARE,
    PATCHES_SHARE,
    PREPARING_MEMORY,
    PREPARING_SECONDS,
    PROJECTION_GAIN,
    STEP_SPEEDUP,
    TARGETS,
    Ratio,
    Results,
    Row,
)
from normscape.benchmark.table import to_markdown, write_results
from normscape.config import Config
from normscape.configio import load_config
from normscape.training.gan import GanTrainer

CPU = torch.device("cpu")


def quiet(text: str) -> None:
    """Say nothing."""


def test_every_case_runs(toy_config: Callable[..., Config], tmp_path: Path) -> None:
    """One repeat of everything: rows with positive times and memory, ratios, and files that can be read back."""
    config = toy_config()
    said: list[str] = []
    results = benchmark([config], device=CPU, repeats=1, say=said.append)
    assert said == [f"toy: {name}" for name in CASES]
    assert results.skipped == [
        ("toy", "patches", "images come from chairs, no patches are cut"),
        ("toy", "preprocessing", "images come from chairs, nothing is preprocessed"),
        ("toy", "brain", "images come from chairs, there are no brains"),
    ]
    assert all(row.timing.median > 0 and row.timing.peak_bytes > 0 and row.timing.repeats == 1 for row in results.rows)
    found = [(row.case, row.batch) for row in results.rows]
    expected = [
        ("product of two matrices of 64x64", 1),
        ("training step (D + G)", 8),
        ("discriminator phase", 8),
        ("R1 phase", 8),
        ("generator phase", 8),
        ("path length phase", 4),
        ("training step with its share of the regularisers", 8),
        ("contrastive loss", 8),
        ("auxiliary networks, forward + backward", 8),
        *(("projection step", batch) for batch in PROJECTION_BATCHES),
        ("one image at a time, 1000 steps from the mean (time of a step x 1000)", 1),
        ("whole projection (5 steps from the mean)", 4),
        ("rendering at 32 px, 3x3 rays a pixel", 1),
        ("rendering at 64 px, 3x3 rays a pixel", 1),
    ]
    assert found == expected
    assert all((row.reference is not None) == (1 <= i < 9) for i, row in enumerate(results.rows))
    assert {BATCHED_SHARE, PROJECTION_GAIN} <= {ratio.name for ratio in results.ratios}
    _check_work(results.rows)
    for path in write_results(results, tmp_path / "made"):
        assert path.exists()
    stored = json.loads((tmp_path / "made" / "benchmark.json").read_text())
    assert len(stored["rows"]) == len(results.rows)
    assert "projection step" in to_markdown(results)


def _check_work(rows: Sequence[Row]) -> None:
    """Rates compare with the product of the same run; phases add up; what renders or is multiplied up has no work."""
    product, *others = rows
    assert product.operations == 2 * 64**3
    assert product.share == pytest.approx(1)
    found = {row.case: row.operations for row in others}
    assert found["R1 phase"] > 0
    assert found["path length phase"] > 0
    assert found["training step (D + G)"] == pytest.approx(found["discriminator phase"] + found["generator phase"])
    average = found["training step (D + G)"] + found["R1 phase"] / 2 + found["path length phase"] / 3
    assert found["training step with its share of the regularisers"] == pytest.approx(average)
    assert found["rendering at 32 px, 3x3 rays a pixel"] is None
    assert found["contrastive loss"] is None
    steps = {row.batch: row.operations for row in others if row.case == "projection step"}
    assert steps[128] == pytest.approx(4 * steps[32], rel=0.02)
    for row in others:
        if row.operations is not None:
            assert row.rate == row.operations / row.timing.median
            assert row.share == row.rate / product.rate


def test_brain_patches(toy_brain_config: Callable[..., Config]) -> None:
    """Steps and projection under masks, and the patches of a step, cut from a small simulated cohort."""
    config = toy_brain_config(data={"spacing_mm": 4.0})
    results = benchmark([config], device=CPU, only=["training", "projection", "patches"], repeats=1, say=quiet)
    found = {row.case for row in results.rows}
    assert {"warm-up step", "training step (D + G)", "projection step", "cutting and augmenting patches"} <= found
    assert PATCHES_SHARE in {ratio.name for ratio in results.ratios}


def test_a_whole_brain(toy_brain_config: Callable[..., Config]) -> None:
    """A whole scan is projected, scored and laid into maps; its patches are the batch."""
    config = toy_brain_config(data={"spacing_mm": 4.0})
    results = benchmark([config], device=CPU, only=["brain"], repeats=1, say=quiet)
    assert results.skipped == []
    assert results.rows[-1].case == f"scoring a whole scan ({results.rows[-1].batch} patches)"
    # a person's brain and the atlas's are of about one size
    assert results.rows[-1].batch == pytest.approx(results.facts["toy"]["patches_a_scan"], rel=0.3)


def test_preprocessing_has_absolute_bounds(toy_brain_config: Callable[..., Config]) -> None:
    """Seconds and memory of one scan, and core seconds for the scaling model; no scan is taken for done already."""
    config = toy_brain_config(name="brain-cpu", data={"spacing_mm": 4.0})
    results = benchmark([config], device=CPU, only=["preprocessing"], repeats=2, say=quiet)
    row = results.rows[-1]
    assert row.case == "preprocessing a scan of 4 mm to 4 mm, stripping apart"
    assert row.timing.low > 0.2  # reading what was done before takes a thousandth of that
    ratios = {ratio.name: ratio for ratio in results.ratios}
    assert ratios[PREPARING_SECONDS].value == row.timing.median
    assert ratios[PREPARING_SECONDS].target == 60
    assert ratios[PREPARING_MEMORY].value == row.timing.peak_bytes / 2**30
    assert ratios[PREPARING_MEMORY].target == 4
    assert results.facts["brain-cpu"]["prepare_core_seconds"] > 0.2


def test_what_would_take_too_long_is_left_out(toy_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate counts the steps; what was measured before it stays."""
    monkeypatch.setattr("normscape.benchmark.projection_cases.LONGEST_SECONDS", 0.0)
    results = benchmark([toy_config()], device=CPU, only=["whole-projection"], repeats=1, say=quiet)
    assert [row.batch for row in results.rows] == [1, 1]
    [(_, case, why)] = results.skipped
    assert (case, why[:34]) == ("whole-projection", "5 steps with 4 images would take a")
    assert bench.LONGEST_SECONDS > 60


def test_the_whole_projector_holds_what_the_stage_gives_it(toy_brain_config: Callable[..., Config]) -> None:
    """With encoder, discriminator, auxiliary networks and usual residuals there are all kinds of residuals."""
    config = toy_brain_config(data={"spacing_mm": 4.0})
    work = bench.Bench(config, CPU, 1, Results({}))
    images, values, masks = work.samples(2).batch(torch.arange(2)), work.values(2), work.masks(2)
    projection = random_projector(config, work.auxiliaries(), CPU, whole=True).project(images, values, masks)
    for part in ("l1", "atlas_z", "conditions_z", "encoded_z", "discriminator0", "output_age", "condition_age"):
        assert f"residual_{part}" in projection.residuals
    assert all(bool(torch.isfinite(value).all()) for value in projection.residuals.values())
    mean = config.projection.model_copy(update={"start": "mean"})
    short = random_projector(config.model_copy(update={"projection": mean}), work.auxiliaries(), CPU)
    assert short.encoder is None


def test_facts_by_hand(toy_config: Callable[..., Config], toy_brain_config: Callable[..., Config]) -> None:
    """Of networks that are there; of brains the grid and the volume of the atlas at 4 mm, 39x60x60 voxels."""
    config = toy_brain_config(data={"spacing_mm": 4.0})
    facts = facts_of(config)
    trainer = GanTrainer(config, bench.Bench(config, CPU, 1, Results({})).auxiliaries(), CPU)
    assert trainer.encoder is not None
    networks: list[nn.Module] = [trainer.generator, trainer.encoder, trainer.discriminator]
    sizes = [4 * sum(p.numel() for p in network.parameters()) for network in networks]
    assert (facts["generator_bytes"], facts["discriminator_bytes"]) == (sizes[0] + sizes[1], sizes[2])
    assert facts["prepared_bytes"] == 39 * 60 * 60 * 3
    assert facts["image_bytes"] == 2 * 8**3
    assert 30 < facts["patches_a_scan"] < 100
    assert "patches_a_scan" not in facts_of(toy_config())


def test_long_actions_stop_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty seconds a call: after three, a minute is used up."""
    ticks = iter(range(0, 10_000, 20))
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(ticks)))
    calls: list[int] = []
    found = timing.measure_long(lambda: calls.append(1), device=CPU, repeats=10)
    assert (len(calls), found.repeats, found.median) == (3, 3, 20.0)
    assert timing.measure_long(lambda: calls.append(1), device=CPU, repeats=2).repeats == 2


def test_three_dimensions(toy_config: Callable[..., Config]) -> None:
    """The cases name no dimension."""
    results = benchmark([toy_config(dims=3)], device=CPU, only=["contrastive", "auxiliary"], repeats=1, say=quiet)
    assert len(results.rows) == 3


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
    assert [row.case for row in results.rows][1:] == ["contrastive loss"]
    assert results.skipped == [("toy", "rendering", "images come from rc49, nothing is rendered")]


def test_targets_hold_for_their_configuration_on_a_cpu_only(toy_config: Callable[..., Config]) -> None:
    """The bound of chairs-cpu is met at exactly a quarter; another configuration or a GPU has none."""
    config = toy_config(name="chairs-cpu")
    assert Ratio.of(config, BATCHED_SHARE, 0.25, CPU).met is True
    assert Ratio.of(config, BATCHED_SHARE, 0.26, CPU).met is False
    assert Ratio.of(config, BATCHED_SHARE, 0.26, torch.device("cuda")).met is None
    assert Ratio.of(toy_config(), BATCHED_SHARE, 0.26, CPU).met is None
    assert Ratio.of(toy_config(name="chairs-gpu"), STEP_SPEEDUP, 2.4, CPU).met is False


def test_every_target_is_of_a_configuration_that_is_there() -> None:
    """A misspelt name would never be missed."""
    root = Path(__file__).resolve().parents[2] / "configs"
    names = {load_config(path).name for folder in ("chairs", "brain") for path in (root / folder).glob("*.yaml")}
    assert {name for name, _ in TARGETS} <= names
    assert TARGETS["brain-cpu", STEP_SPEEDUP] == ("at least", 2.0)
    assert TARGETS["chairs-gpu", STEP_SPEEDUP] == ("at least", 2.5)
    assert TARGETS["chairs-cpu", PROJECTION_GAIN] == TARGETS["brain-cpu", PROJECTION_GAIN] == ("at least", 30.0)
