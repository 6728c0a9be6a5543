"""Figures 4, 5 and 8 of the thesis, and what else a reader wants plotted.

Every function takes the run's files and a theme and returns a matplotlib figure, or None when the file it needs is missing.
Nothing here touches pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from normscape.config import AttributeConfig
from normscape.report.source import Source, Table, rows, unique, where
from normscape.report.style import FONT, Theme, dress, grid, label, legend, mark, panel
from normscape.report.words import detector_name, feature_name, quantity, title

SPLITS = ("train", "test", "generated")


def distances(source: Source, attribute: AttributeConfig, theme: Theme) -> Figure | None:
    """Figure 4: distances of pairs that share an attribute and of pairs that do not, for each split, on one axis."""
    parts = [source.table(stage, "distances.parquet", "attribute", "split", "pair", "distance") for stage in ("auxiliary", "gan")]
    tables = [where(part, attribute=attribute.name) for part in parts if part is not None]
    found = {split: [where(t, split=split) for t in tables if split in t["split"]] for split in SPLITS}
    found = {split: part for split, part in found.items() if part}
    if not found:
        return None
    merged = {split: {n: np.concatenate([t[n] for t in part]) for n in ("pair", "distance")} for split, part in found.items()}
    top = max(0.05, *(float(np.quantile(t["distance"], 0.999)) for t in merged.values()))
    bins = np.linspace(0.0, min(1.0, 1.05 * top), 61)
    figure, axes = panel(theme, height=0.55 + 1.05 * len(merged), rows=len(merged), share_x=True)
    for i, (axis, (split, table)) in enumerate(zip(axes, merged.items(), strict=True)):
        for pair, color in (("same", theme.same), ("different", theme.different)):
            values = table["distance"][table["pair"] == pair]
            if len(values):
                _histogram(axis, values, bins, color, density=True)
        mark(axis, theme, attribute.tau_same, "τ⁺" if i == 0 else "", vertical=True)
        mark(axis, theme, attribute.tau_different, "τ⁻" if i == 0 else "", vertical=True)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.margins(x=0)
        axis.text(0.99, 0.86, split, transform=axis.transAxes, ha="right", va="top", color=theme.ink, fontsize=FONT)
    kinds = ((theme.same, f"same {attribute.name}"), (theme.different, f"different {attribute.name}"))
    legend(axes[0], theme, columns=2, above=True, handles=[Line2D([], [], color=c, linewidth=2, label=text) for c, text in kinds])
    label(axes[-1], theme, f"distance of the {attribute.name} network's outputs (0 to 1)")
    return figure


def _histogram(axis: Axes, values: np.ndarray, bins: np.ndarray, color: str, *, density: bool = False, label: str = "") -> None:
    """Steps with a faint filling; values beyond the last bin count in it."""
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins=bins, density=density)
    axis.stairs(counts, bins, fill=True, color=color, alpha=0.3)
    axis.stairs(counts, bins, color=color, linewidth=1.3, label=label)


def components(source: Source, attribute: AttributeConfig, theme: Theme) -> Figure | None:
    """Figure 5: first two principal components of an attribute's styles, coloured by the value read from the images."""
    table = source.table("latents", "scatter.parquet", "attribute", "pc1", "pc2", "value")
    table = where(table, attribute=attribute.name) if table is not None else {}
    if not rows(table):
        return None
    every = max(1, rows(table) // 5000)
    pick = {n: c[::every] for n, c in table.items()}
    ratio = explained_ratios(source, attribute.name)
    figure, (axis,) = panel(theme, height=3.5)
    points = axis.scatter(
        pick["pc1"], pick["pc2"], c=pick["value"].astype(float), s=5, linewidths=0, alpha=0.85, cmap=theme.ramp,
        vmin=attribute.value_min, vmax=attribute.value_max, rasterized=True,
    )  # fmt: skip
    shares = [f" ({ratio[i]:.1%} of variance)" if len(ratio) > i else "" for i in range(2)]
    label(axis, theme, f"first component{shares[0]}", f"second component{shares[1]}")
    bar = figure.colorbar(points, ax=axis, pad=0.02, fraction=0.05)
    dress(bar.ax, theme)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)
    bar.set_label(quantity(attribute.name, attribute.unit), color=theme.ink, fontsize=FONT)
    return figure


def explained_ratios(source: Source, subspace: str) -> np.ndarray:
    """Shares of variance of a sub-space's components, in order; empty when unknown."""
    table = source.table("latents", "explained_variance.parquet", "subspace", "component", "ratio")
    part = where(table, subspace=subspace) if table is not None else {}
    return part["ratio"][np.argsort(part["component"])].astype(float) if rows(part) else np.array([])


def explained(source: Source, subspace: str, theme: Theme) -> Figure | None:
    """Variance that a sub-space's first components explain, each alone and all together."""
    ratio = explained_ratios(source, subspace)
    if not len(ratio):
        return None
    shown = ratio[:12]
    place = np.arange(1, len(shown) + 1)
    figure, (axis,) = panel(theme, width=3.6, height=2.5)
    axis.bar(place, shown, color=theme.series[0], width=0.7)
    axis.plot(place, np.cumsum(shown), color=theme.series[1], marker="o", markersize=3, linewidth=1.2)
    axis.text(place[-1], np.cumsum(shown)[-1] - 0.05, "together", color=theme.series[1], fontsize=FONT - 1, ha="right", va="top")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, 1.05)
    grid(axis, theme)
    label(axis, theme, f"component of the sub-space {subspace}", "share of variance")
    return figure


def roc(source: Source, split: str, theme: Theme) -> Figure | None:
    """Figure 8: ROC curves of every detector on one split."""
    table = source.table("score", "roc.parquet", "detector", "split", "fpr", "tpr")
    areas = source.table("score", "metrics.parquet", "detector", "split", "metric", "value")
    if table is None or split not in table["split"]:
        return None
    figure, (axis,) = panel(theme, width=4.4, height=4.4)
    axis.plot([0, 1], [0, 1], color=theme.rule, linewidth=0.9)
    detectors = unique(table["detector"])
    for i, detector in reversed(list(enumerate(detectors))):  # the first detectors lie on top
        part = where(table, detector=detector, split=split)
        area = where(areas, detector=detector, split=split, metric="auroc")["value"] if areas else np.array([])
        name = detector_name(detector) + (f"  {area[0]:.3f}" if len(area) else "")
        color = theme.series[i % len(theme.series)]
        axis.plot(part["fpr"], part["tpr"], color=color, linewidth=1.8 if i < 2 else 1.2, label=name)
    axis.set_aspect("equal")
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    grid(axis, theme, "both")
    handles, _ = axis.get_legend_handles_labels()
    found = legend(axis, theme, place="lower right", handles=handles[::-1], title=f"{split}: area under the curve")
    found.get_title().set_color(theme.muted)
    label(axis, theme, "false positive rate", "true positive rate")
    return figure


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over at most `window` points, shorter at both ends."""
    if window < 3 or len(values) < window:
        return values
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def lines(
    source: Source,
    stage: str,
    names: Mapping[str, str],
    theme: Theme,
    *,
    y: str,
    taus: Sequence[tuple[float, str]] = (),
    low: float | None = None,
) -> Figure | None:
    """Curves over training steps, raw ones faint, running means strong.

    Args:
        source: the run's files.
        stage: whose `metrics.jsonl`.
        names: metric -> name in the legend.
        theme: light or dark.
        y: label of the values.
        taus: thresholds as (value, name).
        low: lowest value shown; automatic when empty.
    """
    curves = source.curves(stage)
    found = {n: curves[n] for n in names if n in curves and np.isfinite(curves[n][1]).any()}
    if not found:
        return None
    figure, (axis,) = panel(theme)
    spread: list[np.ndarray] = []
    for i, (name, (steps, values)) in enumerate(found.items()):
        color, many = theme.series[i % len(theme.series)], len(values) > 40
        if many:
            axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        strong = smoothed(values, len(values) // 25 if many else 1)
        axis.plot(steps, strong, color=color, linewidth=1.7, label=names[name], marker=None if many else "o", markersize=3)
        spread.append(np.quantile(values[np.isfinite(values)], [0.005, 0.995]))
    for value, text in taus:
        mark(axis, theme, value, text)
    bottom, top = min(s[0] for s in spread), max([s[1] for s in spread] + [t[0] for t in taus])
    pad = 0.07 * (top - bottom) or 0.1
    axis.set_ylim(bottom - pad if low is None else low, top + pad)  # single spikes do not squeeze the rest
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.margins(x=0.01)
    grid(axis, theme)
    if len(names) > 1:
        legend(axis, theme, columns=3, above=True)
    label(axis, theme, "training step", y)
    return figure


def _bands(x: np.ndarray, y: np.ndarray, count: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Centres (M,) of bins along x and the 5th, 50th and 95th percentile (M, 3) of y in each."""
    edges = np.linspace(float(x.min()), float(x.max()) + 1e-9, count + 1)
    inside = [(0.5 * (a + b), y[(x >= a) & (x < b)]) for a, b in pairwise(edges)]
    kept = [(centre, np.quantile(part, [0.05, 0.5, 0.95])) for centre, part in inside if len(part)]
    return np.array([k[0] for k in kept]), np.array([k[1] for k in kept])


def controllability(source: Source, attribute: AttributeConfig, theme: Theme) -> Figure | None:
    """Asked value against the value that the attribute's network reads from the generated image."""
    table = source.table("controllers", "controllability.parquet", "attribute", "asked", "read")
    part = where(table, attribute=attribute.name) if table is not None else {}
    if not rows(part) or part["asked"].dtype == object:
        return None
    asked, read = part["asked"].astype(float), part["read"].astype(float)
    figure, (axis,) = panel(theme, height=3.5)
    every = max(1, len(asked) // 3000)
    axis.scatter(asked[::every], read[::every], s=4, color=theme.series[0], alpha=0.30, linewidths=0, rasterized=True)
    ends = [float(asked.min()), float(asked.max())]
    axis.plot(ends, ends, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), label="asked = read")
    centre, band = _bands(asked, read)
    axis.plot(centre, band[:, 1], color=theme.series[1], linewidth=1.7, label="median")
    axis.fill_between(centre, band[:, 0], band[:, 2], color=theme.series[1], alpha=0.18, linewidth=0, label="5 to 95 %")
    grid(axis, theme, "both")
    legend(axis, theme, place="upper left")
    name, unit = attribute.name, attribute.unit
    label(axis, theme, quantity(f"asked {name}", unit), quantity(f"{name} read from the image", unit))
    return figure


def identity_kept(source: Source, attribute: AttributeConfig, theme: Theme) -> Figure | None:
    """Recognition distance to the same identity elsewhere in the sweep, against the asked value."""
    table = source.table("controllers", "controllability.parquet", "attribute", "asked", "identity_distance")
    part = where(table, attribute=attribute.name) if table is not None else {}
    if not rows(part) or part["asked"].dtype == object or not np.isfinite(part["identity_distance"].astype(float)).any():
        return None
    keep = np.isfinite(part["identity_distance"].astype(float))
    centre, band = _bands(part["asked"].astype(float)[keep], part["identity_distance"].astype(float)[keep])
    identity = source.config.attributes[0]
    figure, (axis,) = panel(theme, height=3.5)
    axis.plot(centre, band[:, 1], color=theme.series[0], linewidth=1.7, label="median")
    axis.fill_between(centre, band[:, 0], band[:, 2], color=theme.series[0], alpha=0.2, linewidth=0, label="5 to 95 %")
    mark(axis, theme, identity.tau_same, "τ⁺")
    mark(axis, theme, identity.tau_different, "τ⁻")
    axis.set_ylim(0, max(1.15 * identity.tau_different, 1.1 * float(band.max())))
    grid(axis, theme)
    legend(axis, theme, columns=2, above=True)
    label(axis, theme, quantity(f"asked {attribute.name}", attribute.unit), f"{identity.name} distance (0 to 1)")
    return figure


def scores(table: Table, detector: str, theme: Theme) -> Figure | None:
    """Histogram of a detector's scores of normal and anomalous test images."""
    part = where(table, split="test")
    if not rows(part):
        return None
    values = part[f"{detector}_score"].astype(float)
    low, high = float(np.nanmin(values)), float(np.nanquantile(values, 0.999))
    bins = np.linspace(low, high if high > low else low + 1.0, 41)
    figure, (axis,) = panel(theme, height=2.8)
    for name, kind, color in (("normal", 0, theme.same), ("anomalous", 1, theme.different)):
        chosen = values[part["label"] == kind]
        _histogram(axis, chosen, bins, color, label=f"{name} ({len(chosen)})")
    axis.margins(x=0.01)
    grid(axis, theme)
    legend(axis, theme, columns=2, above=True)
    label(axis, theme, f"anomaly score, {detector_name(detector)}", "test images")
    return figure


def importance(source: Source, theme: Theme, *, most: int = 16) -> Figure | None:
    """Features that the forest relies on, the strongest on top."""
    table = source.table("score", "importance.parquet", "feature", "importance")
    if table is None:
        return None
    values = table["importance"].astype(float)
    order = np.argsort(values)[-most:]
    figure, (axis,) = panel(theme, height=0.8 + 0.23 * len(order))
    axis.barh([feature_name(str(f)) for f in table["feature"][order]], values[order], color=theme.series[0], height=0.68)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    grid(axis, theme, "x")
    label(axis, theme, "share of the forest's impurity decrease")
    return figure


Stratum = tuple[str, int, Mapping[str, tuple[float, float, float]]]
"""Name, anomalous images, detector -> (area, low, high)."""


def strata(groups: Sequence[tuple[str, Sequence[Stratum]]], theme: Theme) -> Figure | None:
    """Test AUROC within strata, with 95 % intervals; `groups` holds (name of the quantity, its strata)."""
    count = sum(len(part) + 1 for _, part in groups)
    detectors = list(dict.fromkeys(d for _, part in groups for _, _, areas in part for d in areas))
    if not count or not detectors:
        return None
    figure, (axis,) = panel(theme, height=0.8 + (0.16 + 0.07 * len(detectors)) * count)
    place, names, lowest = 0, {}, 1.0
    for group, part in groups:
        axis.annotate(
            title(group), (0, place + 0.15), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
            color=theme.muted, fontsize=FONT - 0.5, ha="right", va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        for offset, (stratum, images, areas) in enumerate(part, start=1):
            names[place + offset] = f"{stratum}  (n = {images})"
            for i, (detector, (value, low, high)) in enumerate(areas.items()):
                y = place + offset + (i - (len(detectors) - 1) / 2) * 0.75 / len(detectors)
                color = theme.series[detectors.index(detector) % len(theme.series)]
                axis.plot([low, high], [y, y], color=color, linewidth=1.3, alpha=0.55)
                axis.plot([value], [y], "o", color=color, markersize=4)
                lowest = min([lowest] + [v for v in (low, value) if np.isfinite(v)])
        place += 1 + len(part)
    axis.set_yticks(list(names), list(names.values()))
    axis.set_ylim(place - 0.4, -0.5)
    axis.set_xlim(min(0.49, lowest - 0.02), 1.01)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    grid(axis, theme, "x")
    dots = [
        Line2D([], [], color=theme.series[i % len(theme.series)], marker="o", linestyle="", markersize=5, label=detector_name(d))
        for i, d in enumerate(detectors)
    ]
    figure.legend(handles=dots, loc="outside upper left", ncols=2, frameon=False, fontsize=FONT - 0.5, labelcolor=theme.ink)
    label(axis, theme, "area under the ROC curve, test")
    return figure
