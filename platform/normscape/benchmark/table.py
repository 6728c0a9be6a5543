"""The results as a table: in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from normscape.benchmark.results import Ratio, Results, Row

COLUMNS = (
    "configuration", "what", "batch", "time", "spread", "an image", "reference", "reference / fast", "GFLOP", "GFLOP/s",
    "of the product", "peak memory",
)  # fmt: skip
RATIO_COLUMNS = ("configuration", "ratio or bound", "value", "target")
WIDTH_WITHOUT_TERMINAL = 190
NOTE = (
    "Times are medians; the spread is slowest minus fastest, as a share of the median; what takes longer than a minute is "
    "measured once. Forms that are compared take turns in one run. The reference is the straightforward form: grouped "
    "per-sample convolutions, interpolate-then-convolve, convolutions at full resolution before down-sampling, Python loops over "
    "pairs, default memory layout; for the auxiliary networks, batch normalisations that are not folded. GFLOP are the "
    "operations of one call in the fast form: convolutions and matrix products alone, a multiply-add as two; filters, "
    "activations and optimisers count as nothing. The last share is that of the rate in what a large matrix product reaches "
    "in the same run, with the same threads and number format; convolutions by an algorithm with fewer operations could "
    "exceed it. Weights are random, images are noise. Peak memory is the whole process's resident memory (on a GPU: what "
    "torch had allocated) and includes the networks of both forms."
)


def seconds_text(seconds: float) -> str:
    """`12.3 ms`: three digits in the largest unit that leaves something before the point."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds * 1e6)} µs"


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def row_cells(row: Row) -> tuple[str, ...]:
    """A measured row in the order of `COLUMNS`; empty where it does not apply."""
    timing = row.timing
    return (
        row.config,
        row.case,
        str(row.batch),
        seconds_text(timing.median),
        f"{timing.spread:.0%}",
        seconds_text(timing.median / row.batch),
        "" if row.reference is None else seconds_text(row.reference.median),
        "" if row.speedup is None else f"{row.speedup:.2f}",
        "" if row.operations is None else _three(row.operations / 1e9),
        "" if row.rate is None else _three(row.rate / 1e9),
        "" if row.share is None else f"{row.share:.0%}",
        f"{timing.peak_bytes / 2**20:.0f} MiB",
    )


def ratio_cells(ratio: Ratio) -> tuple[str, ...]:
    """A ratio in the order of `RATIO_COLUMNS`."""
    target = "" if ratio.target is None else f"{ratio.bound} {ratio.target:g}: {'met' if ratio.met else 'missed'}"
    return ratio.config, ratio.name, f"{ratio.value:.3f}", target


def to_markdown(results: Results) -> str:
    """The whole report."""
    lines = ["# Benchmark", "", ", ".join(f"{name}: {value}" for name, value in results.machine.items()), ""]
    lines += markdown_table(RATIO_COLUMNS, [ratio_cells(ratio) for ratio in results.ratios], numbers=(2,))
    lines += markdown_table(COLUMNS, [row_cells(row) for row in results.rows], numbers=range(2, len(COLUMNS)))
    lines += [f"Not measured: {config}, {case}: {why}." for config, case, why in results.skipped]
    lines += ["", NOTE, ""] if results.skipped else [NOTE, ""]
    return "\n".join(lines)


def markdown_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers: range | tuple[int, ...]) -> list[str]:
    """Lines of a table and an empty one; none without rows. The columns of these numbers are aligned to the right."""
    if not rows:
        return []
    rule = ["---:" if i in numbers else "---" for i in range(len(columns))]
    # a bar inside a cell would end it
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, tuple(rule), *rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def to_json(results: Results) -> dict[str, Any]:
    """Everything, in seconds and bytes."""
    return {
        "machine": results.machine,
        "rows": [
            asdict(row)
            | {
                "speedup": row.speedup,
                "seconds_per_image": row.timing.median / row.batch,
                "operations_per_second": row.rate,
                "share_of_product": row.share,
            }
            for row in results.rows
        ],
        "ratios": [asdict(ratio) | {"met": ratio.met} for ratio in results.ratios],
        "facts": results.facts,
        "skipped": [{"config": config, "case": case, "why": why} for config, case, why in results.skipped],
    }


def write_results(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write `benchmark.md` and `benchmark.json` into a folder, which is made; an old pair is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, data = folder / "benchmark.md", folder / "benchmark.json"
    for path, text in ((markdown, to_markdown(results)), (data, json.dumps(to_json(results), indent=2) + "\n")):
        aside = path.with_name(path.name + ".tmp")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    return markdown, data


def print_results(results: Results) -> None:
    """Show the tables in the terminal; as Markdown where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(to_markdown(results))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    for name in dict.fromkeys(row.config for row in results.rows):
        ratios = [ratio_cells(ratio)[1:] for ratio in results.ratios if ratio.config == name]
        rows = [row_cells(row)[1:] for row in results.rows if row.config == name]
        for columns, cells in ((COLUMNS[1:], rows), (RATIO_COLUMNS[1:], ratios)):
            if cells:
                table = Table(title=name, title_justify="left")
                for i, column in enumerate(columns):
                    table.add_column(column, justify="right" if i else "left")
                for row in cells:
                    table.add_row(*row)
                console.print(table)
    for config, case, why in results.skipped:
        console.print(f"not measured: {config}, {case}: {why}", markup=False)
