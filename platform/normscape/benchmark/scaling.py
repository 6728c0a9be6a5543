"""Predictions for more scans and more machines, as Markdown: `python -m normscape.benchmark.scaling benchmark.json`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from normscape.benchmark.scaling_model import (
    HOUR,
    MEASURED,
    STAGES,
    Assumptions,
    Check,
    Costs,
    Prediction,
    check_actors,
    predict,
    read_files,
    read_json,
)
from normscape.benchmark.table import markdown_table
from normscape.errors import UserError

GPU_COUNTS, MACHINE_COUNTS = (1, 8, 64), (1,)
NOT_MEASURED = "not measured"
NO_GPU = (
    "GPUs: not measured. Run `python jobs/benchmark.py --config configs/brain/gpu.yaml --out runs/benchmark-gpu` on a machine "
    "with one, and give its `benchmark.json` beside this one."
)
COLUMNS = ("scans", "on", *STAGES, "in all", "bottleneck", "prepared volumes", "projections", "cost")
CHECK_COLUMNS = ("actors", "predicted images / s", "measured images / s", "measured / predicted")


def page(found: Sequence[Costs], given: Assumptions, scans: Sequence[int], workers: Sequence[int] | None) -> str:
    """A table for each experiment and device.

    Args:
        found: what was measured.
        given: assumptions.
        scans: numbers of scans.
        workers: numbers of GPUs or machines; `GPU_COUNTS` and `MACHINE_COUNTS` when None.
    """
    lines: list[str] = []
    for costs in found:
        counts = workers or (GPU_COUNTS if costs.gpu else MACHINE_COUNTS)
        lines += [f"{costs.config} on {_device(costs)}: {_measured(costs)}.", ""]
        rows = [_cells(costs, predict(costs, count, n, given)) for count in scans for n in counts]
        lines += markdown_table(COLUMNS, rows, numbers=(0, *range(2, 6), *range(7, len(COLUMNS))))
    if found:
        lines += [*([] if any(costs.gpu for costs in found) else [NO_GPU, ""]), assumptions(given), ""]
    return "\n".join(lines)


def assumptions(given: Assumptions) -> str:
    """What the predictions take for granted, in a sentence."""
    return (
        f"Assumed: {given.bandwidth_gb:g} GB/s a worker in an all-reduce, {given.fixed_share:.0%} of a training step that does "
        f"not shrink, {given.overhead:.0%} overhead of tasks and actors, {given.start_seconds:g} s until actors project, "
        f"{given.cores_a_gpu} cores a GPU."
    )


def check_page(checks: Sequence[Check], given: Assumptions) -> str:
    """Predicted and measured actors side by side."""
    rows = [
        (str(c.actors), f"{c.predicted:.2f}", f"{c.measured:.2f}", f"{c.measured / c.predicted:.2f}") for c in checks
    ]  # fmt: skip
    table = markdown_table(CHECK_COLUMNS, rows, numbers=range(4))
    return "\n".join(["", *table, f"Predicted with {given.overhead:.0%} overhead from the bare loop of the same run.", ""])


def time_text(seconds: float | None) -> str:
    """`3.2 h`: minutes, hours, days or years."""
    if seconds is None:
        return NOT_MEASURED
    for unit, size in (("years", 365.25 * 24 * HOUR), ("days", 24 * HOUR), ("h", HOUR)):
        if seconds >= (2 if unit == "days" else 1) * size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 60:.2g} min"


def bytes_text(size: float) -> str:
    """`3.2 GB`: powers of a thousand."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e6:.3g} MB"


def _cells(costs: Costs, found: Prediction) -> tuple[str, ...]:
    """A prediction in the order of `COLUMNS`."""
    noun = "GPU" if costs.gpu else f"machine of {costs.cores} core{'s' * (costs.cores > 1)}"
    place = f"{found.workers} {noun}" if found.workers == 1 else f"{found.workers} {noun.replace('machine', 'machines')}"
    place += "s" if costs.gpu and found.workers > 1 else ""
    if found.training_workers < found.workers:
        place += f", training on {found.training_workers}"
    return (
        f"{found.scans:,}",
        place,
        *(time_text(found.seconds[stage]) for stage in STAGES),
        time_text(found.total),
        found.bottleneck,
        bytes_text(found.prepared_bytes),
        bytes_text(found.projected_bytes),
        "no prices given" if found.price is None else f"{found.price:,.{0 if found.price >= 100 else 2}f}",
    )


def _device(costs: Costs) -> str:
    return costs.device if costs.gpu else f"{costs.cores} CPU core{'s' * (costs.cores > 1)}"


def _measured(costs: Costs) -> str:
    """The seconds that everything is multiplied from."""
    steps = costs.steps - costs.warmup_steps
    parts = [
        ("warm-up step", costs.warmup_step_seconds, f"x {costs.warmup_steps:g}"),
        ("training step", costs.step_seconds, f"x {steps:g}"),
        ("patch", costs.patch_seconds, f"x {costs.patches_a_scan:g} a scan"),
        ("preprocessing", costs.prepare_core_seconds, "of a core a scan"),
    ]
    return ", ".join(
        f"{name} {NOT_MEASURED if value is None else f'{value:.3g} s'} {times}" for name, value, times in parts
    )  # fmt: skip


def _named_seconds(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in MEASURED or float(value) <= 0:
        raise ValueError
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, predict, print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m normscape.benchmark.scaling", description="What more scans would cost.")
    parser.add_argument("files", nargs="*", type=Path, help="benchmark.json of one run or several, on CPUs and on GPUs")
    parser.add_argument("--scans", type=int, nargs="+", default=[600, 10_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", help="GPUs, or machines (default: 1 8 64 GPUs, one machine)")
    parser.add_argument(
        "--seconds", action="append", type=_named_seconds, default=[], metavar="NAME=SECONDS", help=", ".join(MEASURED)
    )  # fmt: skip
    parser.add_argument("--check", type=Path, help="JSON of normscape.distributed.projection_benchmark scaling")
    for field in fields(Assumptions):
        kind = int if field.name == "cores_a_gpu" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = parser.parse_args(arguments)
    given = Assumptions(**{name: getattr(options, name) for name in asdict(Assumptions())})
    try:
        if not options.files and options.check is None:
            raise UserError("expected a benchmark.json, or --check")
        text = page(read_files(options.files, dict(options.seconds)), given, options.scans, options.workers)
        if options.check is not None:
            text += check_page(check_actors(read_json(options.check), given), given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
