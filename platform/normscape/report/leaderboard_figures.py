"""Figures of the leaderboard: areas by detector and family, ROC curves, strata, paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from normscape.evaluation.locked import LOCKED
from normscape.evaluation.scorebook import ALL
from normscape.report.board import Board, Row, said
from normscape.report.figures import Stratum
from normscape.report.figures import strata as strata_figure
from normscape.report.style import FONT, Theme, grid, label, legend, panel

SHOWN = 6
"""Detectors that a figure of curves or strata shows: those of this project and the best others."""


def shown_detectors(board: Board) -> list[str]:
    """Our own detectors, then the best others, as many as a reader can tell apart."""
    ranked = board.ranked()
    own = [name for name in ranked if name in board.about["own"]]
    return (own + [name for name in ranked if name not in own])[:SHOWN]


def heat_map(board: Board, theme: Theme) -> Figure | None:
    """AUROC of every detector on every family."""
    names, families = board.ranked(), board.columns
    rows = [[board.metric(LOCKED, name, family, "auroc") for family in families] for name in names]
    values = np.array([[np.nan if row is None or row["value"] is None else row["value"] for row in line] for line in rows])
    if not values.size or not np.isfinite(values).any():
        return None
    figure, (axis,) = panel(theme, width=max(4.8, 2.2 + 0.62 * len(families)), height=1.5 + 0.3 * len(names))
    low = min(0.5, float(np.nanmin(values)))
    axis.imshow(values, cmap=theme.ramp, vmin=low, vmax=1.0, aspect="auto")
    axis.set_xticks(range(len(families)), [said(name) for name in families], rotation=40, ha="right")
    axis.set_yticks(range(len(names)), [said(name) for name in names])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = theme.ramp((value - low) / max(1.0 - low, 1e-9))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            axis.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=FONT - 1.5, color="#14171a" if bright else "#ffffff"
            )
    return figure


def roc(board: Board, family: str, theme: Theme) -> Figure | None:
    """ROC curves of a few detectors on one family, mean over seeds."""
    names = [name for name in shown_detectors(board) if any(r["detector"] == name and r["family"] == family for r in board.roc)]
    if not names:
        return None
    figure, (axis,) = panel(theme, width=4.4, height=4.4)
    axis.plot([0, 1], [0, 1], color=theme.rule, linewidth=0.9)
    for i, name in enumerate(names):
        points = [(row["fpr"], row["tpr"]) for row in board.roc if row["detector"] == name and row["family"] == family]
        row = board.metric(LOCKED, name, family, "auroc")
        area = f"  {row['value']:.3f}" if row is not None and row["value"] is not None else ""
        axis.plot(*zip(*points, strict=True), color=theme.series[i % len(theme.series)], linewidth=1.5, label=said(name) + area)
    axis.set_aspect("equal")
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    grid(axis, theme, "both")
    legend(axis, theme, place="lower right").get_title().set_color(theme.muted)
    label(axis, theme, "false positive rate", "true positive rate")
    return figure


def strata(board: Board, family: str, properties: Sequence[str], theme: Theme) -> Figure | None:
    """Areas within parts of the locked test, of a few detectors.

    Args:
        board: the evaluation.
        family: whose anomalies; `ALL` for strata of subjects and known values.
        properties: of `strata.parquet`, in order.
        theme: light or dark.
    """
    names = shown_detectors(board)
    groups: list[tuple[str, list[Stratum]]] = []
    for name in properties:
        mine = [row for row in board.strata if row["family"] == family and row["property"] == name]
        levels = list(dict.fromkeys(row["level"] for row in mine))
        part: list[Stratum] = []
        for level in levels:
            found = {row["detector"]: row for row in mine if row["level"] == level}
            first = next(iter(found.values()))
            areas = {said(d): _interval(found[d]) for d in names if d in found and found[d]["value"] is not None}
            part.append((_bounds(first), first["rows"], areas))
        groups += [(_quantity(name), part)] if part else []
    return strata_figure(groups, theme) if groups else None


def _interval(row: Row) -> tuple[float, float, float]:
    """Value and the ends of its interval; the value itself where there is none."""
    value = float(row["value"])
    return value, value if row["low"] is None else row["low"], value if row["high"] is None else row["high"]


def _bounds(row: Row) -> str:
    if row["from_value"] is None:
        return str(row["level"])
    return f"{row['from_value']:.3g} to {row['to_value']:.3g}"


def _quantity(name: str) -> str:
    """`age_years` -> `age, years`; `position_mm x` -> `position x, mm`."""
    first, _, axis = name.partition(" ")
    for unit in ("years", "mm", "degrees"):
        if first.endswith(f"_{unit}"):
            return f"{first.removesuffix(f'_{unit}').replace('_', ' ')} {axis}".strip() + f", {unit}"
    return name.replace("_", " ")


def differences(board: Board, why: str, theme: Theme) -> Figure | None:
    """Paired differences of the mean area against one detector, with their intervals."""
    family = board.columns[0] if board.columns else ALL
    mine = {row["detector"]: row for row in board.paired if row["why"] == why and row["family"] == family}
    names = [name for name in board.ranked() if name in mine and mine[name]["difference"] is not None]
    if not names:
        return None
    figure, (axis,) = panel(theme, height=1.0 + 0.28 * len(names))
    for place, name in enumerate(reversed(names)):
        row = mine[name]
        better = row["low"] is not None and row["low"] > 0
        color = theme.series[0] if better else theme.series[1] if row["high"] is not None and row["high"] < 0 else theme.muted
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.6)
        axis.plot([row["difference"]], [place], "o", color=color, markersize=5)
    axis.axvline(0.0, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(names)), [said(name) for name in reversed(names)])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    grid(axis, theme, "x")
    label(axis, theme, f"difference of the area under the ROC curve, {family}")
    return figure
