"""The leaderboard of an evaluation: one self-contained HTML page, and the same tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import normscape
from normscape.evaluation.locked import LOCKED
from normscape.evaluation.scorebook import ALL
from normscape.report import leaderboard_figures as figures
from normscape.report import leaderboard_tables as tables
from normscape.report.board import Board, read_board, said
from normscape.report.page import template_environment
from normscape.report.plots import Plot, Shown, data_uri, render
from normscape.report.tables import Grid, Headline
from normscape.report.thesis import REFERENCES
from normscape.report.words import number

PAGE_NAME, MARKDOWN_NAME = "index.html", "leaderboard.md"
_PROPERTIES = ("size", "contrast")


def build_leaderboard(folder: Path) -> Path:
    """Write `index.html`, `leaderboard.md` and `figures/*.png` from a folder of results.

    Args:
        folder: `<run>/evaluation/results-<key8>`.

    Returns:
        Path of `index.html`.

    Raises:
        DataError: a table is missing.
    """
    board = read_board(folder)
    shown: dict[str, list[Shown]] = {}
    for plot in _plots(board):
        shown.setdefault(plot.section, []).append(render(plot, folder / "figures"))
    content = _content(board)
    config = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").exists() else ""
    content |= {"yaml": config, "yaml_uri": data_uri(config.encode(), "text/yaml")}
    page = folder / PAGE_NAME
    page.write_text(template_environment().get_template("leaderboard.html").render(content, figures=shown), encoding="utf-8")
    (folder / MARKDOWN_NAME).write_text(_markdown(board, content), encoding="utf-8")
    return page


def _plots(board: Board) -> Iterator[Plot]:
    """All figures of the page."""
    yield Plot(
        "heat-map",
        "areas",
        partial(figures.heat_map, board),
        "Area under the ROC curve of every detector on every family, locked test; mean over seeds.",
        "Heat map of areas; the same numbers stand in the tables.",
        "metrics.parquet",
        wide=True,
    )
    for family in dict.fromkeys((board.columns[0], board.families[0])):
        yield Plot(
            f"roc-{family.replace(' ', '-')}",
            "roc",
            partial(figures.roc, board, family),
            f"ROC curves, {said(family).lower()}, locked test; mean over seeds.",
            f"ROC curves of up to {figures.SHOWN} detectors.",
            "roc.parquet",
        )
    for why in dict.fromkeys(row["why"] for row in board.paired):
        other = next(row["against"] for row in board.paired if row["why"] == why)
        yield Plot(
            f"paired-{re.sub('[^a-z]+', '-', why)}",
            "paired",
            partial(figures.differences, board, why),
            f"Difference to {said(other)} ({why}), with 95 % intervals on the same resamples of subjects.",
            "Dots with intervals; right of zero is better.",
            "paired.parquet",
        )
    for family in board.families:
        yield Plot(
            f"strata-{family}",
            "strata",
            partial(figures.strata, board, family, _PROPERTIES),
            f"{said(family)}: area by size and contrast of the anomaly, against all normal images, with 95 % intervals.",
            "Areas within thirds of the anomalies.",
            "strata.parquet",
        )
    known = [row["property"] for row in board.strata if row["family"] == ALL]
    yield Plot(
        "strata-subjects",
        "strata",
        partial(figures.strata, board, ALL, tuple(dict.fromkeys(known))),
        "Area by what is known of an image, all families together, against normal images of the same part.",
        "Areas within sites and thirds of the known values.",
        "strata.parquet",
    )


def _content(board: Board) -> dict[str, Any]:
    """Everything the template shows, apart from the figures."""
    about = board.about
    ceiling = tables.by_family(
        board, "ceiling_dice", "Ceiling: Dice at the best threshold of each scan", "It needs the truth: no method may use it."
    )
    voxels = tables.by_family(
        board, "voxel_auprc", "Area under the precision-recall curve of voxels, by family", "Mean over scans of the locked test."
    )
    return {
        "about": about,
        "data_name": board.data_name,
        "normscape_version": normscape.__version__,
        "headlines": _headlines(board),
        "boards": [grid for kind in tables.KINDS if (grid := tables.leaderboard(board, kind))],
        "precision": tables.precision(board),
        "thresholds": [tables.thresholds(board, rate) for rate in board.rates],
        "paired": tables.paired(board),
        "validation": tables.validation(board),
        "scans": [*tables.scans(board), *(grid for grid in (voxels, ceiling) if grid)],
        "costs": tables.costs(board),
        "failures": tables.failures(board),
        "left_out": _left_out(board),
        "literature": REFERENCES[about["source"]].dataset if about["source"] in REFERENCES else "",
    }


def _headlines(board: Board) -> list[Headline]:
    """The best detector of each kind, the thesis's number beside it where the task is the same."""
    found = []
    for kind, text in (("none", "Best without anomalies"), ("synthetic", "Best with synthetic anomalies")):
        names = board.ranked(kind)
        if not names:
            continue
        row = board.metric(LOCKED, names[0], board.columns[0], "auroc")
        if row is None or row["value"] is None:
            continue
        interval = f"{number(row['low'])} to {number(row['high'])}" if row["low"] is not None else ""
        found.append(Headline(f"{text}: {said(names[0])}", number(row["value"]), interval, board.columns[0], None))
    return found


def _left_out(board: Board) -> list[str]:
    """Sentences on images whose family found no place for an anomaly."""
    return [
        f"{said(family)}: {count} images of role {role} have no place for such an anomaly and are left out"
        for role, families in board.about["left_out"].items()
        for family, count in families.items()
    ]


def _markdown(board: Board, content: dict[str, Any]) -> str:
    """The tables, with what they are about, as a page for a repository."""
    about = board.about
    subjects = ", ".join(f"{role} {count}" for role, count in about["subjects"].items())
    lines = [
        f"# Leaderboard: {about['name']}",
        "",
        f"Data: {board.data_name}. Subjects: {subjects}. Seeds: {', '.join(map(str, about['seeds']))}.",
        "",
        "```",
        about["command"],
        "```",
        "",
    ]
    grids: list[Grid] = [*content["boards"], content["precision"], *content["thresholds"], *content["paired"], *content["scans"]]
    grids += [content["costs"], content["validation"]]
    grids += [content["failures"]] if content["failures"] else []
    lines += [tables.markdown(grid) for grid in grids]
    lines += [f"- {text}." for text in content["left_out"]]
    return "\n".join(lines) + "\n"
