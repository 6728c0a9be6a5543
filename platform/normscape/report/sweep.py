"""The page of a sweep: what was tried, what won, what mattered and what failed; one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import normscape
from normscape.errors import DataError
from normscape.report import sweep_figures
from normscape.report.page import template_environment
from normscape.report.plots import Plot, Shown, data_uri, render
from normscape.report.tables import Grid
from normscape.report.words import duration, significant, title

ORIGINS = {"guess": "guess from real images", "experiment": "the experiment's own", "search": "search"}


@dataclass(frozen=True)
class SweepSource:
    """A sweep's folder, read."""

    about: dict[str, Any]
    """`sweep.json`."""
    trials: list[dict[str, Any]]
    reports: list[dict[str, Any]]
    importance: list[dict[str, Any]]
    best_yaml: str

    @property
    def parameters(self) -> list[str]:
        """Names of what was searched, in order."""
        return list(self.about["space"])

    @property
    def scored(self) -> list[dict[str, Any]]:
        """Trials with a score that counts, best first; those that went to the end before those that were stopped."""
        counted = [t for t in self.trials if t["status"] in ("finished", "stopped") and t["score"] is not None]
        return sorted(counted, key=lambda t: (t["status"] != "finished", -t["score"], t["number"]))

    def having(self, status: str) -> list[dict[str, Any]]:
        """Trials that ended so."""
        return [trial for trial in self.trials if trial["status"] == status]


def read_sweep(folder: Path) -> SweepSource:
    """Read what a sweep left.

    Raises:
        DataError: a file is missing.
    """
    try:
        about = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        trials, reports, importance = (
            pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("trials", "reports", "importance")
        )
    except OSError as error:
        raise DataError(f"{folder}: expected the results of a sweep; {error}") from error
    best = folder / "best.yaml"
    return SweepSource(about, trials, reports, importance, best.read_text(encoding="utf-8") if best.exists() else "")


def build_sweep_page(folder: Path) -> Path:
    """Write `index.html` and `figures/*.png` from a sweep's result files.

    Args:
        folder: the sweep's.

    Returns:
        Path of `index.html`.
    """
    source = read_sweep(folder)
    shown: dict[str, list[Shown]] = {}
    for plot in _plots(source):
        shown.setdefault(plot.section, []).append(render(plot, folder / "figures"))
    page = folder / "index.html"
    page.write_text(template_environment().get_template("sweep.html").render(_content(source), figures=shown), encoding="utf-8")
    return page


def _plots(source: SweepSource) -> list[Plot]:
    score = source.about["score"]
    return [
        Plot(
            "parallel-coordinates",
            "trials",
            partial(sweep_figures.parallel, source.trials, source.about["space"], score),
            f"Every trial is a line through its settings to its score ({score}). Bright is better, the thick line is best. "
            "Faint lines were stopped early, dotted ones failed.",
            "Parallel coordinates of all trials.",
            "trials.parquet",
            wide=True,
        ),
        Plot(
            "importance",
            "importance",
            partial(sweep_figures.importance, source.importance),
            "Share of the scores' variance that each setting explains (functional ANOVA).",
            "Bars of the importance of each searched parameter.",
            "importance.parquet",
        ),
        Plot(
            "scores-over-steps",
            "importance",
            partial(sweep_figures.curves, source.reports, source.trials, score),
            "Scores over training steps; lines that end early were stopped.",
            "Curves of each trial's score over its steps.",
            "reports.parquet",
        ),
    ]


def _content(source: SweepSource) -> dict[str, Any]:
    """Everything the template shows, apart from the figures."""
    about, scored = source.about, source.scored
    best = next((t for t in source.trials if t["key"] == about["best"]), None)
    failed = source.having("failed")
    return {
        "about": about,
        "best": best,
        "best_score": significant(best["score"]) if best else "",
        "counts": {status: len(source.having(status)) for status in ("finished", "stopped", "failed", "running")},
        "total": duration(sum(t["seconds"] or 0.0 for t in source.trials)),
        "tables": {
            "best": _best_table(source, best) if best else None,
            "trials": _trials_table(source, scored, best),
        },
        "failed": [{"number": t["number"], "settings": _settings(source, t), "error": t["error"] or ""} for t in failed],
        "formula": about["kind"] == "thresholds",
        "reference": about.get("facts", {}).get("reference_frechet"),
        "yaml": source.best_yaml,
        "yaml_uri": data_uri(source.best_yaml.encode(), "text/yaml"),
        "settings": json.dumps(about["settings"], indent=2, ensure_ascii=False),
        "normscape_version": normscape.__version__,
    }


def _best_table(source: SweepSource, best: Mapping[str, Any]) -> Grid:
    """The winner beside the settings that the search began with."""
    columns = [best, *(t for t in source.trials if t["origin"] != "search" and t["key"] != best["key"])]
    values = [
        name for name in best if name.startswith("value/") and best[name] is not None and not name.startswith("value/fold/")
    ]
    rows = [["score", *(_text(t["score"]) for t in columns)], ["step", *(str(t["step"]) for t in columns)]]
    rows += [[name, *(_text(t.get(f"param/{name}")) for t in columns)] for name in source.parameters]
    rows += [[_value_name(name), *(_text(t.get(name)) for t in columns)] for name in values]
    head = [
        "",
        *(f"{'best: ' if t is best else ''}trial {t['number']}, {ORIGINS.get(t['origin'], t['origin'])}" for t in columns),
    ]
    note = "" if len({t["step"] for t in columns}) < 2 else "Scores at different steps do not compare: training time differs."
    return Grid(head, rows, "Best trial" + (", and where the search began" if len(columns) > 1 else ""), note, strong=(0,))


def _trials_table(source: SweepSource, scored: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> Grid:
    others = [t for t in source.trials if t not in scored]
    rows = [
        [
            str(t["number"]),
            t["status"],
            _text(t["score"]),
            str(t["step"]),
            duration(t["seconds"]),
            ORIGINS.get(t["origin"], t["origin"]),
        ]
        + [_text(t.get(f"param/{name}")) for name in source.parameters]
        for t in (*scored, *others)
    ]
    head = ["trial", "ended", "score", "step", "time", "proposed by", *source.parameters]
    return Grid(head, rows, f"All {len(source.trials)} trials, best first", strong=(0,) if best else ())


def _settings(source: SweepSource, trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(trial.get(f'param/{name}'))}" for name in source.parameters)


def _value_name(column: str) -> str:
    return title(column.removeprefix("value/").replace("/", " ").replace("_", " ")).lower()


def _text(value: Any) -> str:
    """A number with four digits, a word as it is."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | np.integer) else significant(float(value))
