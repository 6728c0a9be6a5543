"""Distances of real images: the tool that proposes thresholds, its figures and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure

from normscape.config import AttributeConfig, Config
from normscape.report.plots import Plot, render
from normscape.report.style import Theme, grid, label, legend, mark, panel
from normscape.stages.core import StageContext, run_stages
from normscape.stages.files import write_json
from normscape.stages.models import load_auxiliaries
from normscape.stages.prepare import open_samples
from normscape.stages.provenance import choose_device
from normscape.stages.recording import Listener
from normscape.training.distances import RealDistances, Thresholds, measure_all, propose
from normscape.training.recorder import SilentRecorder

WORDS = {"same": "same", "different": "different", "hardest_different": "hardest different"}


def measure_real(
    config: Config, runs_dir: Path, *, pairs: int = 4096, listener: Listener | None = None
) -> tuple[Path, dict[str, Thresholds]]:
    """Measure real training images under the run's auxiliary networks, which are trained first where they are not.

    Writes into `<runs>/<name>/distances/`: `distances.parquet` (attribute, pair: same | different | hardest_different, distance
    in [0, 1]), `thresholds.json` (proposed tau_same and tau_different, by attribute) and `distances-<attribute>.png`.

    Args:
        config: the experiment.
        runs_dir: holds its run.
        pairs: same pairs an attribute.
        listener: hears the stages.

    Returns:
        The folder, and the proposed thresholds by attribute.
    """
    run = run_stages(config, runs_dir, last="auxiliary", listener=listener)
    context = StageContext(config, run.folder, run.stages, choose_device(config.device), SilentRecorder())
    train, _ = open_samples(context)
    networks = load_auxiliaries(config, run.stages["auxiliary"], context.device)
    found = measure_all(
        config.attributes, networks, train, pairs=pairs, batch_size=config.gan.batch_size, seed=config.seed, device=context.device
    )
    proposed = {a.name: propose(a, found[a.name]) for a in config.attributes}
    folder = run.folder / "distances"
    folder.mkdir(exist_ok=True)
    _write_table(folder / "distances.parquet", found)
    write_json(folder / "thresholds.json", {name: asdict(taus) for name, taus in proposed.items()})
    for attribute in config.attributes:
        make = partial(figure, attribute, found[attribute.name], proposed[attribute.name])
        render(Plot(f"distances-{attribute.name}", "", make, "", "", ""), folder)
    return folder, proposed


def _write_table(path: Path, found: Mapping[str, RealDistances]) -> None:
    parts = [(name, pair, distance) for name, measured in found.items() for pair, distance in measured.parts.items()]
    columns = {
        "attribute": pa.array([name for name, _, d in parts for _ in range(len(d))]).dictionary_encode(),
        "pair": pa.array([pair for _, pair, d in parts for _ in range(len(d))]).dictionary_encode(),
        "distance": pa.array(torch.cat([d for *_, d in parts]).numpy()),
    }
    pq.write_table(pa.table(columns), path)


def figure(attribute: AttributeConfig, distances: RealDistances, proposed: Thresholds, theme: Theme) -> Figure:
    """Densities of the three kinds of pairs, with the proposed thresholds and the experiment's own."""
    drawn, (axes,) = panel(theme, height=3.4)
    for (pair, values), colour in zip(distances.parts.items(), theme.series[:3], strict=True):
        axes.hist(values.numpy(), bins=80, range=(0, 1), density=True, histtype="stepfilled", color=colour, alpha=0.18)
        axes.hist(
            values.numpy(), bins=80, range=(0, 1), density=True, histtype="step", color=colour, linewidth=1.4, label=WORDS[pair]
        )
    top = float(max(distances.different.max(), distances.same.max()))
    axes.set_xlim(0, min(1.0, 1.05 * top))
    mark(axes, theme, proposed.tau_same, "τ⁺", vertical=True)
    mark(axes, theme, proposed.tau_different, "τ⁻", vertical=True)
    own = [attribute.tau_same, attribute.tau_different]
    axes.plot(own, [0, 0], linestyle="", marker="^", markersize=7, color=theme.ink, clip_on=False, label="configured", zorder=4)
    label(axes, theme, x=f"{attribute.name} distance of real images", y="density")
    grid(axes, theme)
    legend(axes, theme, above=True, columns=4)
    return drawn
