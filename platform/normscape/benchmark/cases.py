"""The cases: what is timed for each configuration, with random weights and synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from normscape.benchmark.bench import Bench, Skipped
from normscape.benchmark.brain_cases import whole_brain
from normscape.benchmark.data_cases import patches, preprocessing, rendering
from normscape.benchmark.facts import facts_of
from normscape.benchmark.projection_cases import projection, whole_projection
from normscape.benchmark.results import Results
from normscape.benchmark.timing import describe_machine
from normscape.benchmark.training_cases import auxiliary, contrastive, training
from normscape.benchmark.work import matrix_product
from normscape.config import Config

CASES: dict[str, Callable[[Bench], None]] = {
    "training": training,
    "contrastive": contrastive,
    "auxiliary": auxiliary,
    "projection": projection,
    "whole-projection": whole_projection,
    "rendering": rendering,
    "patches": patches,
    "preprocessing": preprocessing,
    "brain": whole_brain,
}
"""Name, as given to `--only`, to what it measures."""


def benchmark(
    configs: Sequence[Config],
    *,
    device: torch.device,
    only: Sequence[str] = (),
    repeats: int = 5,
    say: Callable[[str], None] = print,
) -> Results:
    """Measure the cases of each configuration, and before them a large matrix product, which their rates are compared with.

    Args:
        configs: experiments.
        device: where to compute.
        only: names of cases; all when empty.
        repeats: measurements of each action.
        say: told what comes next.

    Returns:
        All measurements, and what could not be measured.
    """
    results = Results(describe_machine(device))
    for config in configs:
        bench = with_product(Bench(config, device, repeats, results))
        bench.note(**facts_of(config))
        for name, case in CASES.items():
            if only and name not in only:
                continue
            say(f"{config.name}: {name}")
            try:
                case(bench)
            except Skipped as reason:
                results.skipped.append((config.name, name, str(reason)))
    return results


def with_product(bench: Bench) -> Bench:
    """Measure the matrix product, keep its row, and compare the rows to come with it."""
    side, operations, timing = matrix_product(bench.device, bench.repeats)
    bench = replace(bench, product_rate=operations / timing.median)
    bench.keep(f"product of two matrices of {side}x{side}", 1, timing, operations=operations)
    return bench
