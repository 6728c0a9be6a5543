"""Residual against time: the encoder's start in batches, and the thesis's way, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from normscape.report.source import Source, Table, rows, where
from normscape.report.style import FONT, Theme, grid, label, legend, panel
from normscape.report.words import duration, number
from normscape.stages.curve import CURVE_NAME, times_faster

_COLUMNS = ("start", "steps", "batch", "seconds_per_image", "residual_l1", "residual_l1_low", "residual_l1_high", "images")
THESIS_STEPS = 1000


def figure(source: Source, theme: Theme) -> Figure | None:
    """Mean residual against seconds an image, for both starts, with intervals by subject and the steps at each point."""
    table = _table(source)
    if table is None:
        return None
    drawn, (axis,) = panel(theme, width=6.4, height=3.3)
    for start, color in (("encoder", theme.series[0]), ("mean", theme.series[1])):
        part = where(table, start=start)
        if not rows(part):
            continue
        seconds, l1 = part["seconds_per_image"], part["residual_l1"]
        axis.plot(seconds, l1, "o-", color=color, markersize=4, linewidth=1.5, label=_way(part))
        axis.vlines(seconds, part["residual_l1_low"], part["residual_l1_high"], color=color, linewidth=1.1, alpha=0.5)
        for x, y, steps in zip(seconds, l1, part["steps"], strict=True):
            axis.annotate(
                f"{steps}", (x, y), xytext=(4, 4), textcoords="offset points", color=color, fontsize=FONT - 1.5, va="bottom",
            )  # fmt: skip
    axis.set_xscale("log")
    grid(axis, theme, "both")
    legend(axis, theme, above=True)
    label(axis, theme, "seconds an image", "mean L1 residual")
    return drawn


def _way(part: Table) -> str:
    """How the images of these rows were projected."""
    if part["start"][0] == "mean":
        return "mean style, one image at a time (seconds a step, times steps)"
    batch = int(part["batch"][0])
    return f"encoder's start, {batch} images at once" if batch > 1 else "encoder's start, one image at a time"


def sentence(source: Source) -> str:
    """What the encoder's start gains; empty without a curve of both starts."""
    table = _table(source)
    if table is None or set(table["start"]) != {"encoder", "mean"}:
        return ""
    lines: list[dict[str, Any]] = [{name: column[i] for name, column in table.items()} for i in range(rows(table))]
    full = max((line for line in lines if line["start"] == "mean"), key=lambda line: line["steps"])
    steps, images = int(full["steps"]), int(full["images"])
    way = "The thesis's way" if steps == THESIS_STEPS else f"The thesis's way, cut to {steps} of its {THESIS_STEPS} steps"
    begin = (
        f"{way}, from the mean style and one image at a time, takes {duration(float(full['seconds_per_image']))} an image with "
        f"{steps} steps and leaves a mean L1 residual of {number(float(full['residual_l1']), 4)} ({images} normal images). "
    )
    factor = times_faster(lines)
    if factor is None:
        best = min((line for line in lines if line["start"] == "encoder"), key=lambda line: line["residual_l1"])
        lowest, most = number(float(best["residual_l1"]), 4), int(best["steps"])
        return f"{begin}From the encoder's answer no run gets as low: {lowest} with {most} steps is the lowest."
    fits = (line for line in lines if line["start"] == "encoder" and line["residual_l1"] <= full["residual_l1"])
    ours = min(fits, key=lambda line: line["seconds_per_image"])
    return (
        f"{begin}From the encoder's answer {int(ours['steps'])} steps get as low ({number(float(ours['residual_l1']), 4)}), with "
        f"{int(ours['batch'])} images at once in {float(ours['seconds_per_image']):.2g} s each: "
        f"{factor:.3g} times as many images an hour."
    )


def _table(source: Source) -> Table | None:
    """The runs, by steps."""
    table = source.table("project", CURVE_NAME, *_COLUMNS)
    if table is None:
        return None
    order = np.argsort(table["steps"], kind="stable")
    return {name: column[order] for name, column in table.items()}
