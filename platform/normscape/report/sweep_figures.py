"""Figures of a sweep's page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from normscape.report.style import FONT, Theme, dress, grid, label, panel

_GOOD = ("finished", "stopped")


def parallel(trials: Sequence[Mapping[str, Any]], space: Mapping[str, str], score: str, theme: Theme) -> Figure | None:
    """Parallel coordinates: an axis a parameter and one for the score, a line a trial.

    Args:
        trials: rows of `trials.parquet`.
        space: parameter -> distribution, as Optuna's JSON.
        score: name of the score.
        theme: light or dark.
    """
    scores = [t["score"] for t in trials if t["status"] in _GOOD and t["score"] is not None]
    if not scores:
        return None
    figure, (axes,) = panel(theme, width=max(6.4, 1.25 * (len(space) + 1)), height=3.8)
    axes.set_axis_off()
    low, high = min(scores), max(scores)
    colour = Normalize(low, high if high > low else low + 1e-9)
    best = max((t for t in trials if t["status"] in _GOOD and t["score"] is not None), key=_rank)
    at = np.arange(len(space) + 1)
    for trial in sorted(trials, key=lambda t: (t is best, t["score"] if t["score"] is not None else -math.inf)):
        heights = [_height(trial.get(f"param/{name}"), space[name]) for name in space]
        good = trial["status"] in _GOOD and trial["score"] is not None
        heights.append(float(colour(trial["score"])) if good else math.nan)
        axes.plot(
            at,
            heights,
            color=theme.ramp(float(colour(trial["score"]))) if good else theme.muted,
            linewidth=3.0 if trial is best else 1.2,
            alpha=1.0 if trial["status"] == "finished" else 0.45,
            linestyle="-" if good else ":",
            zorder=3 if trial is best else 2,
        )
    ends = {name: _ends(text) for name, text in space.items()} | {"score": (f"{low:.3g}", f"{high:.3g}")}
    for x, (name, (bottom, top)) in enumerate(ends.items()):
        axes.plot([x, x], [0, 1], color=theme.muted, linewidth=0.9, zorder=1)
        style: dict[str, Any] = {"ha": "center", "fontsize": FONT - 1, "color": theme.muted}
        axes.text(x, -0.03, bottom, va="top", **style)
        axes.text(x, 1.02, top, va="bottom", **style)
        words = name.replace(".", "\n").replace("_", " ")
        axes.text(x, 1.12, words, va="bottom", ha="center", fontsize=FONT - 0.5, color=theme.ink, linespacing=1.1)
    axes.set_xlim(-0.4, len(space) + 0.4)
    axes.set_ylim(-0.12, 1.38)
    return figure


def importance(rows: Sequence[Mapping[str, Any]], theme: Theme) -> Figure | None:
    """Bars of the parameters' importance, largest on top."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row["importance"])
    figure, (axes,) = panel(theme, height=0.9 + 0.28 * len(ordered))
    axes.barh(
        [row["parameter"].replace("_", " ") for row in ordered],
        [row["importance"] for row in ordered],
        color=theme.same,
        height=0.62,
    )
    label(axes, theme, x=f"share of the variance of {ordered[0]['trials']} scores at step {ordered[0]['step']}")
    grid(axes, theme, "x")
    return figure


def curves(reports: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], score: str, theme: Theme) -> Figure | None:
    """Scores over steps, where trials were measured more than once; the best trial is strong."""
    by_trial: dict[int, list[tuple[int, float]]] = {}
    for report in reports:
        by_trial.setdefault(report["number"], []).append((report["step"], report["score"]))
    if not by_trial or max(map(len, by_trial.values())) < 2:
        return None
    figure, (axes,) = panel(theme)
    dress(axes, theme)
    scored = [t for t in trials if t["status"] in _GOOD and t["score"] is not None]
    best = max(scored, key=_rank)["number"] if scored else None
    for number, points in by_trial.items():
        steps, values = zip(*sorted(points), strict=True)
        strong = number == best
        axes.plot(
            steps,
            values,
            marker="o",
            markersize=2.5,
            color=theme.same if strong else theme.muted,
            linewidth=2.2 if strong else 0.9,
            alpha=1.0 if strong else 0.6,
            zorder=3 if strong else 2,
        )
    label(axes, theme, x="step", y="score")
    grid(axes, theme)
    return figure


def _rank(trial: Mapping[str, Any]) -> tuple[bool, float, int]:
    """Trials that went to the end come before those that were stopped; then the score counts, then who was first."""
    return trial["status"] == "finished", trial["score"], -trial["number"]


def _height(value: Any, text: str) -> float:
    """A value's place on its axis, from 0 to 1; logarithmic where the search was."""
    about = json.loads(text)["attributes"]
    if value is None:
        return math.nan
    if "choices" in about:
        choices = list(about["choices"])
        return choices.index(value) / max(1, len(choices) - 1) if value in choices else math.nan
    low, high, x = float(about["low"]), float(about["high"]), float(value)
    if about.get("log"):
        low, high, x = math.log(low), math.log(high), math.log(x)
    return (x - low) / (high - low) if high > low else 0.5


def _ends(text: str) -> tuple[str, str]:
    """What stands at the ends of an axis."""
    about = json.loads(text)["attributes"]
    if "choices" in about:
        return str(about["choices"][0]), str(about["choices"][-1])
    return f"{about['low']:.3g}", f"{about['high']:.3g}"
