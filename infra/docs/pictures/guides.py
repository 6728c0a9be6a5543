"""Diagrams of what the guides explain: roles of subjects, sweeps, an attribute and a detector of one's own."""

from __future__ import annotations

from pathlib import Path

from infra.docs.pictures.sheet import Colour, Sheet


def roles(path: Path) -> None:
    """docs/evaluation.md: who is in which role, and who opens it."""
    sheet = Sheet(8.0, 4.1)
    everyone = sheet.box(2.2, 3.45, 3.6, 0.5, "all subjects", "one role each, with all of their images", "grey")
    columns: list[tuple[str, str, str, Colour]] = [
        ("train", "data.train_subjects", "detectors are fitted", "blue"),
        (
            "healthy validation",
            "evaluation.validation_share\nof those left over",
            "thresholds, from\nnormal images alone",
            "green",
        ),
        ("synthetic validation", "the others left over", "choices: which setting,\nwhich baseline", "yellow"),
        ("test", "data.test_subjects", "the numbers of\nthe leaderboard", "orange"),
    ]
    for i, (role, who, use, colour) in enumerate(columns):
        x = 0.15 + 1.96 * i
        box = sheet.box(x, 2.2, 1.82, 0.72, role, who, colour)
        sheet.arrow((2.6 + 0.95 * i, everyone.y), box.top)
        below = sheet.box(x, 1.15, 1.82, 0.55, "", use, "grey")
        sheet.arrow(box.bottom, below.top)
    sheet.box(0.15, 0.2, 5.74, 0.5, "", "open while detectors are built, compared and chosen", "grey")
    sheet.box(6.03, 0.2, 1.82, 0.5, "", "one function opens it, and\nreadings.jsonl says who did", "orange")
    sheet.axes.plot([5.96, 5.96], [0.1, 3.1], color="#d07a35", linestyle=":", linewidth=1.3)
    sheet.save(path)


def sweeps(path: Path) -> None:
    """docs/sweeps.md: from distances to the best configuration; the lengths of trials are drawn, not measured."""
    sheet = Sheet(8.0, 3.0)
    sources: list[tuple[str, str, Colour]] = [
        ("distances", "of real images: a proposal", "green"),
        ("the experiment's own", "thresholds and weights", "blue"),
        ("Optuna", "draws around the proposal", "grey"),
    ]
    for i, (title, text, colour) in enumerate(sources):
        box = sheet.box(0.15, 2.2 - 0.85 * i, 2.05, 0.6, title, text, colour)
        sheet.arrow(box.right, (2.75, box.right[1]))
    sheet.box(2.75, 0.3, 3.15, 2.6)
    sheet.text(4.32, 2.74, "trials, a training each", bold=True)
    cut, end = 3.65, 5.7
    blue, grey, green = "#3f86bd", "#9aa1a9", "#2f9a78"
    lines = [(end, blue), (cut, grey), (4.5, grey), (end, green), (cut, grey), (cut, grey), (end, blue)]
    for i, (stop, shade) in enumerate(lines):
        y = 2.42 - 0.24 * i
        sheet.axes.plot([2.95, stop], [y, y], color=shade, linewidth=5, solid_capstyle="butt")
        if stop < end:
            sheet.axes.plot([stop + 0.08], [y], marker="x", color="#d07a35", markersize=6, markeredgewidth=1.6)
    sheet.axes.plot([cut, cut], [0.75, 2.55], color="#565c64", linestyle=":", linewidth=1.1)
    sheet.text(4.32, 0.5, "first_cut: ASHA stops the worst;   score = control - leak - quality", size=6.9, muted=True)
    best = sheet.box(6.35, 1.75, 1.5, 0.7, "best.yaml", "the best of those\nthat went to the end", "green")
    page = sheet.box(6.35, 0.6, 1.5, 0.7, "index.html", "every trial, and\nwhat mattered", "grey")
    sheet.arrow((5.9, 2.1), best.left)
    sheet.arrow((5.9, 0.95), page.left)
    sheet.save(path)


def attribute(path: Path) -> None:
    """docs/own-attribute.md: where a new value goes."""
    sheet = Sheet(8.0, 3.1)
    table = sheet.box(0.15, 1.75, 1.45, 0.85, "your table", "column sex: M, F", "grey")
    read = sheet.box(2.1, 1.75, 1.6, 0.85, "1. read the value", "PatchSource.values\nis_male: 0 to 1", "orange")
    entry = sheet.box(4.2, 1.75, 1.45, 0.85, "2. describe it", "an entry under\nattributes:", "orange")
    sheet.arrow(table.right, read.left)
    sheet.arrow(read.right, entry.left)
    uses: list[tuple[str, str, Colour]] = [
        ("auxiliary network", "reads it from a patch", "blue"),
        ("sub-space", "of z and w answers for it", "green"),
        ("controller", "turns a value into a style", "green"),
        ("conditions", "of detectors and scores", "pink"),
    ]
    for i, (title, text, colour) in enumerate(uses):
        box = sheet.box(6.1, 2.38 - 0.68 * i, 1.75, 0.55, title, text, colour)
        sheet.arrow(entry.right, box.left)
    check = sheet.box(2.1, 0.35, 3.55, 0.75, "3. normscape distances", "can a patch show it at all? if not, stop here", "yellow")
    sheet.arrow(entry.bottom, (entry.bottom[0], check.top[1]))
    sheet.text(1.0, 0.72, "the two orange boxes\nare all that you write", muted=True)
    sheet.save(path)


def detector(path: Path) -> None:
    """docs/own-detector.md: the two places for an idea of one's own."""
    sheet = Sheet(8.0, 2.9)
    sheet.box(0.15, 1.1, 1.3, 0.75, "image", "and what is known\nof the subject", "grey")
    projection = sheet.box(2.0, 2.0, 1.45, 0.7, "projection", "generator, style", "blue")
    table = sheet.box(3.95, 2.0, 1.65, 0.7, "a row of features", "projections.parquet", "blue")
    own = sheet.box(6.1, 2.0, 1.75, 0.7, "yours, on features", "fit\ndecision_function", "orange")
    words = "fit · decision_function · anomaly_map\nuse: my_package.my_module:MyDetector"
    direct = sheet.box(2.0, 0.25, 3.6, 0.75, "yours, on images", words, "orange")
    board = sheet.box(6.1, 0.25, 1.75, 0.75, "leaderboard", "normscape evaluate", "green")
    sheet.arrow((1.45, 1.6), projection.left)
    sheet.arrow(projection.right, table.left)
    sheet.arrow(table.right, own.left)
    sheet.arrow((1.45, 1.35), direct.left)
    sheet.arrow(direct.right, board.left)
    sheet.text(3.8, 1.5, "a score for every image, higher is more abnormal", muted=True)
    sheet.save(path)
