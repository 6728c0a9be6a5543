"""Case of a whole brain: every patch of a scan projected, scored, and laid into maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from normscape.benchmark.bench import LONGEST_SECONDS, Bench, Skipped
from normscape.benchmark.data_cases import small_cohort
from normscape.benchmark.random_networks import random_projector
from normscape.benchmark.timing import measure_long
from normscape.datasets.patches import PatchSource
from normscape.scoring.maps import on_grid, scan_maps

if TYPE_CHECKING:
    from normscape.stages.system import ScoredSystem

SCORE_SCAN = "scoring a whole scan"
_FOREST_ROWS = 256


def whole_brain(bench: Bench) -> None:
    """A scan of the small simulated cohort: patch grid, projection, forest, fusion; preprocessing apart."""
    config = bench.config
    if config.data.source != "brain":
        raise Skipped(f"images come from {config.data.source}, there are no brains")
    source = small_cohort(config).images
    assert isinstance(source, PatchSource)
    most = config.brains.max_background
    grid = on_grid(
        source, 0, stride=config.brains.stride, max_background=config.data.max_background if most is None else most
    )  # fmt: skip
    try:
        rater = _random_system(bench, grid)
    except ImportError as error:
        raise Skipped.without(error) from error
    columns = {a.name: a.column or "" for a in config.value_attributes}
    batch = config.brains.batch_size
    rows = torch.arange(min(batch, len(grid)))
    known = {name: grid.values()[column][rows] for name, column in columns.items()}
    part = measure_long(lambda: rater.rate(grid.draw(rows)[0], known, grid.masks(rows)), device=bench.device, repeats=1)
    expected = part.median * len(grid) / len(rows)
    if expected > LONGEST_SECONDS:
        raise Skipped(f"{len(grid)} patches would take about {expected / 60:.0f} minutes here")
    timing = measure_long(
        lambda: scan_maps(grid, columns, rater, batch_size=batch), device=bench.device, repeats=bench.repeats
    )  # fmt: skip
    bench.keep(f"{SCORE_SCAN} ({len(grid)} patches)", len(grid), timing)


def _random_system(bench: Bench, grid: PatchSource) -> ScoredSystem:
    """Random networks and a forest of the configuration's size, grown on noise.

    Raises:
        ImportError: a package that forests need is not installed.
    """
    from normscape.scoring.detectors import MAIN_DETECTORS
    from normscape.scoring.features import feature_columns
    from normscape.scoring.forest import ForestDetector
    from normscape.stages.system import (  # fmt: skip
        FittedDetector,
        ScoredSystem,
        condition_columns,
        projecting_with,
        projection_columns,
    )

    config = projecting_with(bench.config, bench.config.brains.steps)
    auxiliaries = bench.auxiliaries()
    projector = random_projector(projecting_with(config, 1), auxiliaries, bench.device, whole=True)
    images, values = bench.samples(2).batch(torch.arange(2)), bench.values(2)
    columns = condition_columns(config, values) | projection_columns(projector, projector.project(images, values, bench.masks(2)))
    names = feature_columns(list(columns), config.scoring.features, [a.column or "" for a in config.value_attributes])
    scoring = config.scoring
    forest = ForestDetector(
        max_depth=scoring.max_depth[-1:], n_estimators=scoring.n_estimators[-1:], min_samples_leaf=scoring.min_samples_leaf[:1]
    )
    noise = np.random.default_rng(0).normal(size=(_FOREST_ROWS, len(names)))
    label = np.arange(_FOREST_ROWS) % 2
    forest.fit(noise, label, label.astype(str))
    projector = random_projector(config, auxiliaries, bench.device, whole=True)
    return ScoredSystem(config, projector, {MAIN_DETECTORS[-1]: FittedDetector(forest, tuple(names))})
