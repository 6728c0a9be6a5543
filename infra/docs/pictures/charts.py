"""Charts of computed numbers: hours by machines, and a density with and without a condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infra.docs.pictures.sheet import INK, MUTED, PAPER, save
from normscape.benchmark.scaling_model import Assumptions, Costs, predict
from normscape.scoring.conditions import SmoothRegression

ROOT = Path(__file__).resolve().parents[3]
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def axes_of(figure: Figure, columns: int) -> list[Axes]:
    """Plain axes side by side."""
    FigureCanvasAgg(figure)
    found = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in found:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5, colors=MUTED)
        axis.xaxis.label.set(size=9, color=INK)
        axis.yaxis.label.set(size=9, color=INK)
    return found


def scaling(path: Path) -> None:
    """docs/scaling.md: the model, with the seconds of that page's table."""
    from normscape.configio import load_config
    from normscape.networks.discriminator import Discriminator
    from normscape.networks.generator import Generator

    config = load_config(ROOT / "configs" / "brain" / "cpu.yaml")
    size = [4.0 * sum(p.numel() for p in part.from_config(config).parameters()) for part in (Generator, Discriminator)]
    costs = Costs(
        config=config.name, device="2 CPU cores", gpu=False, cores=2, steps=2600, warmup_steps=2200, batch_columns=4,
        generator_bytes=size[0], discriminator_bytes=size[1], patches_a_scan=374, prepared_bytes=3.37e6, projected_bytes=9.63e3,
        step_seconds=1.40, warmup_step_seconds=0.373, patch_seconds=0.199, prepare_core_seconds=24.7,
    )  # fmt: skip
    figure = Figure(figsize=(8.0, 3.3), layout="constrained", facecolor=PAPER)
    workers = [1, 2, 4, 8, 16, 32, 64, 128]
    for axis, scans in zip(axes_of(figure, 3), (600, 10_000, 1_000_000), strict=True):
        found = [predict(costs, scans, count, Assumptions()) for count in workers]
        for name, colour, dash in (("training", ORANGE, ":"), ("projection", BLUE, "-"), ("preprocessing", GREEN, "--")):
            hours = [(one.seconds[name] or 0.0) / 3600 for one in found]
            axis.plot(workers, hours, color=colour, linestyle=dash, linewidth=2, label=name)
        axis.set(xscale="log", yscale="log", ylim=(0.01, 5e4), xlabel="machines of 2 cores", xticks=[1, 4, 16, 64])
        axis.set_xticklabels(["1", "4", "16", "64"])
        axis.set_yticks([1 / 60, 1, 24, 24 * 30, 24 * 365], ["1 min", "1 h", "1 day", "1 month", "1 year"])
        axis.minorticks_off()
        axis.grid(axis="y", color="#e3e5e8")
        axis.set_title(f"{scans:,} scans", fontsize=10, color=INK)
        if scans == 600:
            axis.legend(fontsize=8.5, frameon=False, loc="upper right")
        else:
            axis.set_yticklabels([])
    save(figure, path)


def density(path: Path) -> None:
    """docs/conditional-detector.md: a coordinate of a style, of random numbers, against what is known of a subject."""
    random = np.random.default_rng(3)
    age = random.uniform(20, 80, 400)
    place = 0.045 * (age - 50) + 0.4 * np.sin(age / 9) + random.normal(0, 0.35, len(age))
    expected = SmoothRegression.fit(age[:, None], place[:, None], seed=0)
    spread = float((place - expected.predict(age[:, None])[:, 0]).std())
    new = {"A": (30.0, 0.9), "B": (75.0, 0.9)}
    figure = Figure(figsize=(8.0, 3.1), layout="constrained", facecolor=PAPER)
    plain, given = axes_of(figure, 2)
    plain.hist(place, bins=32, orientation="horizontal", color=BLUE, alpha=0.35)
    plain.set(title="Nothing known: length", xlabel="normal images", ylabel="a coordinate u of the style", ylim=(-2.8, 2.8))
    ages = np.linspace(20, 80, 200)
    middle = expected.predict(ages[:, None])[:, 0]
    given.scatter(age, place, s=6, color=BLUE, alpha=0.35, linewidths=0)
    given.plot(ages, middle, color=INK, linewidth=1.8)
    given.fill_between(ages, middle - 2 * spread, middle + 2 * spread, color=BLUE, alpha=0.13, linewidth=0)
    given.set(title="Age known: density", xlabel="age (years)", ylim=(-2.8, 2.8), xlim=(18, 82))
    given.text(60, -0.75, "µ(c) and 2 S", fontsize=8.5, color=MUTED)
    overall = float(place.std())
    for name, (years, value) in new.items():
        away = abs(value - float(expected.predict(np.array([[years]]))[0, 0])) / spread
        unusual = away > 2
        colour = ORANGE if unusual else GREEN
        given.plot([years], [value], marker="o", color=colour, markersize=8)
        shift = (0, 10 if unusual else -18)
        text = f"{name}: m = {away:.1f}"
        given.annotate(text, (years, value), xytext=shift, textcoords="offset points", fontsize=9, ha="center")
    plain.axhline(new["A"][1], color=MUTED, linewidth=1.1, linestyle="--")
    plain.annotate(
        f"A and B: {abs(new['A'][1] - place.mean()) / overall:.1f} deviations from the mean, both", (2, new["A"][1]),
        xytext=(0, 5), textcoords="offset points", fontsize=8.5,
    )  # fmt: skip
    for axis in (plain, given):
        axis.title.set(size=10, color=INK)
    save(figure, path)
