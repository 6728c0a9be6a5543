"""The scaling model: what doubles, what halves, what stays, against sums done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normscape.benchmark.cases import benchmark
from normscape.benchmark.scaling import bytes_text, main, page, time_text
from normscape.benchmark.scaling_model import (
    Assumptions,
    Costs,
    all_reduce_seconds,
    check_actors,
    predict,
    projection_seconds,
    read_files,
    sharing,
    training_seconds,
)
from normscape.benchmark.table import write_results
from normscape.config import Config
from normscape.errors import UserError

GPU = Costs(
    config="brain-gpu", device="Some GPU", gpu=True, cores=16, steps=1000, warmup_steps=600, batch_columns=8,
    generator_bytes=3e9, discriminator_bytes=1e9, patches_a_scan=100, prepared_bytes=30e6, projected_bytes=1e4,
    step_seconds=2.0, warmup_step_seconds=1.0, patch_seconds=0.5, prepare_core_seconds=40.0,
)  # fmt: skip
PLAIN = Assumptions(overhead=0.0, start_seconds=0.0, fixed_share=0.0, bandwidth_gb=1.0, cores_a_gpu=8)


def test_one_worker_is_a_plain_sum() -> None:
    """600 x 1 s + 400 x 2 s; 10 scans x 100 patches x 0.5 s; 10 scans x 40 s on 8 cores; nothing is reduced."""
    found = predict(GPU, 10, 1, PLAIN)
    assert found.seconds == {"training": 1400.0, "projection": 500.0, "preprocessing": 50.0}
    assert (found.total, found.bottleneck) == (1950.0, "training")
    assert (found.prepared_bytes, found.projected_bytes) == (3e8, 1e7)


def test_scans_are_linear_and_training_does_not_care() -> None:
    """A hundred times the scans: a hundred times the projection, preprocessing and storage; the bottleneck moves."""
    few, many = (predict(GPU, scans, 4, PLAIN) for scans in (10, 1000))
    for stage, factor in (("training", 1), ("projection", 100), ("preprocessing", 100)):
        assert many.seconds[stage] == pytest.approx(factor * few.seconds[stage])
    assert many.prepared_bytes == 100 * few.prepared_bytes
    assert many.projected_bytes == 100 * few.projected_bytes
    assert (few.bottleneck, many.bottleneck) == ("training", "projection")


def test_two_gpus_halve_the_projection_but_for_its_start() -> None:
    """With overhead the work is longer, and halves all the same."""
    given = replace(PLAIN, overhead=0.1, start_seconds=7.0)
    one, two = (projection_seconds(GPU, 50, n, given) for n in (1, 2))
    assert one == pytest.approx(7 + 50 * 100 * 0.5 * 1.1)
    assert two - 7 == pytest.approx((one - 7) / 2)


def test_training_is_shared_by_those_that_can() -> None:
    """Eight groups: 8 workers share them, 7 do as 4 do, 64 as 8 do; what does not shrink and the all-reduce stay."""
    assert [sharing(GPU, n) for n in (1, 2, 3, 7, 8, 64)] == [1, 2, 2, 4, 8, 8]
    assert all_reduce_seconds(4e9, 1, 1.0) == 0
    assert all_reduce_seconds(4e9, 8, 2.0) == pytest.approx(2 * 7 / 8 * 2)
    given = replace(PLAIN, fixed_share=0.2, bandwidth_gb=10.0)
    by_hand = 600 * (1.0 * (0.2 + 0.1) + 1.75 * 0.3) + 400 * (2.0 * (0.2 + 0.1) + 1.75 * 0.4)
    assert training_seconds(GPU, 64, given) == pytest.approx(by_hand)
    assert predict(GPU, 1, 64, given).training_workers == 8


def test_prices() -> None:
    """Workers that train, workers that project, cores that preprocess, each for their hours."""
    given = replace(PLAIN, gpu_price=3.0, core_price=0.5, bandwidth_gb=1e12)
    found = predict(GPU, 7200, 16, given)
    by_hand = (1400 / 8 * 8 * 3 + 7200 * 100 * 0.5 * 3 + 7200 * 40 * 0.5) / 3600
    assert found.price == pytest.approx(by_hand)
    assert predict(GPU, 7200, 16, replace(given, core_price=None)).price is None
    machine = predict(replace(GPU, gpu=False, cores=2), 0, 1, given)
    assert machine.price == pytest.approx(1400 / 3600 * 2 * 0.5)


def test_what_was_not_measured_is_said() -> None:
    """No total, no price, no number; the rest is predicted."""
    costs = replace(GPU, patch_seconds=None)
    found = predict(costs, 10, 1, replace(PLAIN, gpu_price=1.0, core_price=1.0))
    assert (found.seconds["projection"], found.total, found.price) == (None, None, None)
    assert training_seconds(replace(GPU, step_seconds=None), 1, PLAIN) is None
    assert training_seconds(replace(GPU, warmup_steps=0, warmup_step_seconds=None), 1, PLAIN) == 2000
    text = page([costs], PLAIN, [10], None)
    assert "not measured" in text
    assert "GPUs: not measured" not in text
    assert "GPUs: not measured" in page([replace(costs, gpu=False)], PLAIN, [10], None)


def test_columns_of_gpus_and_machines() -> None:
    """One line for each number of scans and workers."""
    text = page([GPU, replace(GPU, gpu=False, cores=2)], PLAIN, [600, 10_000], None)
    lines = [line for line in text.splitlines() if "|" in line]
    assert len(lines) == 2 + 2 * 3 + 2 + 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "64 GPUs, training on 8" in lines[4]
    assert "1 machine of 2 cores" in lines[-1]


def test_units() -> None:
    assert [time_text(s) for s in (30, 3600, 30 * 3600, 72 * 3600, 800 * 24 * 3600)] == [
        "0.5 min", "1 h", "30 h", "3 days", "2.19 years",
    ]  # fmt: skip
    assert [bytes_text(b) for b in (5e6, 2e9, 3.5e12, 1e15)] == ["5 MB", "2 GB", "3.5 TB", "1 PB"]


def test_the_check_multiplies_the_bare_loop() -> None:
    """Ten images a second in a loop: with 25 % overhead two actors make sixteen."""
    measured = {
        "bare_images_per_second": 10.0, "1_actors_images_per_second": 9.0, "2_actors_images_per_second": 17.6,
        "2_actors_speedup": 1.96,
    }  # fmt: skip
    one, two = check_actors(measured, replace(PLAIN, overhead=0.25))
    assert (one.actors, one.predicted, one.measured) == (1, 8.0, 9.0)
    assert (two.actors, two.predicted, two.measured) == (2, 16.0, 17.6)
    with pytest.raises(UserError, match="projection_benchmark"):
        check_actors({"peak_mib": 3.0}, PLAIN)


def test_from_a_run_to_its_predictions(
    toy_brain_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the benchmark writes is what the model reads; a second file gives what the first has not measured."""
    config = toy_brain_config(name="toy-brain", data={"spacing_mm": 4.0})
    results = benchmark(
        [config], device=torch.device("cpu"), only=["training", "whole-projection"], repeats=1, say=lambda text: None
    )
    write_results(results, tmp_path)
    [costs] = read_files([tmp_path / "benchmark.json"])
    rows = {row.case.split(" (")[0]: row for row in results.rows}
    assert costs.patch_seconds == rows["whole projection"].timing.median / config.projection.batch_size
    assert costs.step_seconds == rows["training step with its share of the regularisers"].timing.median
    assert costs.warmup_step_seconds == rows["warm-up step"].timing.median
    assert (costs.gpu, costs.prepare_core_seconds, costs.steps, costs.warmup_steps) == (False, None, 6, 3)
    assert costs.batch_columns == config.gan.batch_size / config.discriminator.deviation_group
    assert costs.projected_bytes > 2 * 8**3
    results.facts["toy-brain"]["prepare_core_seconds"] = 30.0
    write_results(results, tmp_path / "more")
    paths = [tmp_path / "benchmark.json", tmp_path / "more" / "benchmark.json"]
    assert [c.prepare_core_seconds for c in read_files(paths)] == [30.0, 30.0]
    assert main([str(paths[0]), "--scans", "600", "--seconds", "prepare_core_seconds=60"]) == 0
    assert "preprocessing 60 s" in capsys.readouterr().out


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without brains, another program's JSON, no file at all: exit code 2."""
    chairs = tmp_path / "chairs.json"
    chairs.write_text(json.dumps({"machine": {}, "rows": [], "facts": {"chairs-cpu": {"steps": 1.0}}}))
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    for arguments in ([], [str(chairs)], [str(other)], [str(tmp_path / "gone.json")]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit):
        main([str(chairs), "--seconds", "pairs=3"])
