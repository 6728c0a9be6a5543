"""The benchmark of projection pools: its arithmetic, and that its tiny experiment is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from normscape.benchmark.untrained import untrained_inputs
from normscape.config import Config
from normscape.distributed.projection_benchmark import Pace, measure, side_by_side, tiny_experiment
from normscape.stages.project import in_this_process
from normscape.stages.shards import plan_shards


def test_pace_leaves_out_the_start() -> None:
    """Ten shards of 4 images: loading 3 s, the first one 1 s, then 2 s each of which half a second is waiting."""
    pace = Pace(first=4.0, seconds=22.0, shards=10, images=40, first_images=4, working=1.0 + 9 * 1.5, first_working=1.0)
    assert pace.images_per_second == pytest.approx(36 / 18)
    assert pace.starting == pytest.approx(3.0)
    assert pace.waiting == pytest.approx(0.5)


def test_the_tiny_experiment_has_as_many_samples_as_asked_and_runs(tmp_path: Path) -> None:
    """Both splits are full, so that the memory measured is that of this many samples."""
    config = tiny_experiment(100, tmp_path)
    settings = config.model_dump()
    settings["projection"]["batch_size"] = 25
    config = Config.model_validate(settings)
    inputs = untrained_inputs(config, tmp_path / "inputs")
    assert [(shard.split, len(shard)) for shard in plan_shards(config, inputs["prepare"])] == [
        ("train", 25),
        ("train", 25),
        ("test", 25),
        ("test", 25),
    ]
    pace = measure(config, inputs, in_this_process)
    assert (pace.shards, pace.images, pace.first_images) == (4, 100, 25)
    assert 0 < pace.first < pace.seconds
    assert pace.working < pace.seconds
    assert side_by_side(config, inputs, 2) > 0
