"""Tables of the leaderboard. A cell is a number and, in a second line, its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

from normscape.evaluation.cases import NORMAL
from normscape.evaluation.locked import LOCKED
from normscape.evaluation.scan_measures import ROLE as SCAN
from normscape.evaluation.scorebook import ALL
from normscape.evaluation.splits import SYNTHETIC
from normscape.report.board import THESIS_FAMILY, Board, Row, said
from normscape.report.tables import Grid
from normscape.report.thesis import REFERENCES
from normscape.report.words import duration, number, percent

KINDS = {"none": "See no anomaly while they are fitted", "synthetic": "Learn from synthetic anomalies"}
_HOW = "Mean over a detector's seeds; below it the 95 % interval by resampling subjects, the same resamples for all. "


def cell(row: Row | None, *, share: bool = False, digits: int = 3) -> str:
    """A number with its interval below; a dash where there is none."""
    if row is None or row["value"] is None:
        return "–"
    show = percent if share else number
    text = show(row["value"], 1 if share else digits)
    if row["low"] is None or row["high"] is None:
        return text
    scale, places = (100.0, 1) if share else (1.0, digits)
    return f"{text}\n{scale * row['low']:.{places}f} to {scale * row['high']:.{places}f}"


def leaderboard(board: Board, supervision: str) -> Grid | None:
    """Areas of the detectors of one kind, the best first."""
    names = board.ranked(supervision)
    if not names:
        return None
    rows = []
    for name in names:
        found = [board.metric(LOCKED, name, family, "auroc") for family in board.columns]
        seeds = next((row["seeds"] for row in found if row is not None), 0)
        spread = next((row["spread"] for row in found if row is not None), None)
        rows.append([said(name), *(cell(row) for row in found), str(seeds), number(spread)])
    thesis, note = board.thesis(supervision), ""
    if thesis is not None:
        detector, area = thesis
        data = REFERENCES[str(board.about["source"])].dataset
        kind = {"l1": "threshold on L1", "forest": "random forest"}[detector]
        empty = ["–"] * len(board.columns)
        empty[board.columns.index(THESIS_FAMILY)] = number(area)
        rows.append([f"The thesis: {kind}", *empty, "1", "–"])
        note = f" The thesis's number is of {data}, not of these images; only the family {THESIS_FAMILY} is its task."
    learned = ", ".join(board.about["training_families"]) or "none"
    seen = f"Families that these may learn from: {learned}; all others are new to them. " if supervision == "synthetic" else ""
    head = ["Detector", *(said(name) for name in board.columns), "Seeds", "Spread over seeds"]
    caption = f"{KINDS[supervision]}: area under the ROC curve, locked test"
    own = [i for i, name in enumerate(names) if name in board.about["own"]]
    spread_of = f"The spread is the standard deviation over seeds, of {said(board.columns[0]).lower()}."
    return Grid(head, rows, caption, _HOW + seen + spread_of + note, strong=own)


def precision(board: Board) -> Grid:
    """Average precision beside its prevalence."""
    rows = []
    for name in board.ranked():
        rows.append([said(name), *(cell(board.metric(LOCKED, name, family, "auprc")) for family in board.columns)])
    first = board.ranked()[0]
    base = [board.metric(LOCKED, first, family, "prevalence") for family in board.columns]
    rows.append(["Prevalence", *(percent(row["value"] if row else None) for row in base)])
    head = ["Detector", *(said(name) for name in board.columns)]
    return Grid(head, rows, "Area under the precision-recall curve, locked test", "Prevalence is what guessing reaches.")


def thresholds(board: Board, rate: float) -> Grid:
    """What the thresholds of one promised rate do on the locked test."""
    rows = []
    for name in board.ranked():
        measured = board.metric(LOCKED, name, NORMAL, "false_positive_rate", rate)
        found = [board.metric(LOCKED, name, board.columns[0], metric, rate) for metric in ("sensitivity", "accuracy")]
        families = [board.metric(LOCKED, name, family, "sensitivity", rate) for family in board.families]
        rows.append([said(name), *(cell(row, share=True) for row in (measured, *found, *families))])
    head = ["Detector", "False positives measured", "Sensitivity", "Accuracy", *(said(name) for name in board.families)]
    note = (
        f"Thresholds were chosen so that at most {percent(rate, 0)} of the normal images of healthy validation exceed them; no "
        f"anomaly had a part in that. Sensitivity and accuracy in their own columns are of {board.columns[0]}; the last columns "
        "are sensitivities. Half of the images that accuracy counts are normal."
    )
    if not board.about["promise_kept_by_enough_images"].get(f"{rate:g}", True):
        note += " Healthy validation has too few images to promise so low a rate: the threshold is their highest score."
    return Grid(head, rows, f"At a threshold that promises {percent(rate, 0)} false positives, locked test", note)


def paired(board: Board) -> list[Grid]:
    """Differences of areas, one table for each detector that others are compared with."""
    grids = []
    for why in dict.fromkeys(row["why"] for row in board.paired):
        mine = [row for row in board.paired if row["why"] == why]
        against = mine[0]["against"]
        rows = []
        for name in board.ranked():
            found = {row["family"]: row for row in mine if row["detector"] == name}
            if found:
                rows.append([said(name), *(_difference(found.get(family)) for family in board.columns)])
        head = ["Detector", *(said(name) for name in board.columns)]
        note = "Area of the detector minus that of the other, on the same resamples of subjects; above 0 the detector is better."
        if why != "reference":
            note += " The other was chosen on synthetic validation, not on these images."
        kind = "the reference" if why == "reference" else f"the {why}"
        grids.append(Grid(head, rows, f"Against {kind}: {said(against)}", note))
    return grids


def _difference(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return "–"
    text = f"{row['difference']:+.3f}"
    return text if row["low"] is None else f"{text}\n{row['low']:+.3f} to {row['high']:+.3f}"


def validation(board: Board) -> Grid:
    """Areas on synthetic validation, where choices are made."""
    rows = []
    for name in board.ranked(role=SYNTHETIC):
        rows.append([said(name), *(cell(board.metric(SYNTHETIC, name, family, "auroc")) for family in board.columns)])
    best = {kind: said(name) for kind, name in board.about["best_baselines"].items()}
    chosen = "; ".join(f"{KINDS[kind].lower()}: {name}" for kind, name in best.items())
    note = f"Choices are made here, not on the locked test. Best baselines, {chosen}." if best else "Choices are made here."
    return Grid(
        ["Detector", *(said(name) for name in board.columns)], rows, "Area under the ROC curve, synthetic validation", note
    )


def costs(board: Board) -> Grid:
    """Time and memory."""
    rows = []
    for row in board.costs:
        cells = [duration(row["fit_seconds"]), number(row["image_ms"], 2), number(row["peak_megabytes"], 0)]
        cells += [duration(row["scan_seconds"])] if board.about["scans"] else []
        rows.append([said(row["detector"]), *cells, str(row["seeds"]), row["device"]])
    scans = ["Time a brain"] if board.about["scans"] else []
    note = (
        "Means over seeds. Peak memory is that of the whole process with its data on a CPU, of torch's allocations on a GPU; "
        f"networks look at {board.about['network_images']} images, repeats counted, other detectors keep at most "
        f"{board.about['train_images']}. Time to fit is without the stages of the experiment that a detector builds on."
    )
    return Grid(["Detector", "Time to fit", "ms an image", "Peak memory, MB", *scans, "Seeds", "Device"], rows, "Cost", note)


def scans(board: Board) -> list[Grid]:
    """Whole scans: areas, voxels, and what thresholds find."""
    if not board.about["scans"]:
        return []
    names = [name for name in board.ranked() if board.metric(SCAN, name, NORMAL, "seconds")]
    families = _scan_families(board)
    family = ALL if len(families) > 1 else families[0] if families else ""
    columns = (
        ("scan_auroc", "AUROC of scans"), ("scan_auprc", "AUPRC of scans"), ("voxel_auprc", "AUPRC of voxels"),
        ("ceiling_dice", "Dice, ceiling"),
    )  # fmt: skip
    rows = [[said(name), *(cell(board.metric(SCAN, name, family, metric)) for metric, _ in columns)] for name in names]
    base = board.metric(SCAN, names[0], family, "voxel_prevalence") if names else None
    note = (
        f"Mean of {family}. A scan's score is the mean of its most abnormal millilitre. The ceiling is the Dice of the threshold "
        "that is best for each scan, which needs the truth: no method may use it. "
        f"Prevalence of anomalous voxels {percent(base['value'], 2) if base else '–'}."
    )
    grids = [Grid(["Detector", *(text for _, text in columns)], rows, "Whole scans, locked test", note)]
    for rate in board.rates:
        rows = []
        for name in names:
            cells = [cell(board.metric(SCAN, name, family, metric, rate)) for metric in ("dice", "lesion_sensitivity")]
            cells.append(cell(board.metric(SCAN, name, NORMAL, "false_positives", rate), digits=1))
            cells.append(cell(board.metric(SCAN, name, NORMAL, "flagged", rate), share=True))
            rows.append([said(name), *cells])
        head = ["Detector", "Dice", "Lesions found", "False positives a brain", "Voxels flagged"]
        caption = f"Whole scans at thresholds that promise {percent(rate, 0)} false positive voxels, locked test"
        note = (
            f"Thresholds come from whole scans of healthy validation. Dice and lesions: mean of {family}. A lesion is found when "
            "a quarter of its voxels exceeds the threshold. False positives: connected parts of at least 0.1 ml, and share of "
            "voxels, in scans without an anomaly."
        )
        grids.append(Grid(head, rows, caption, note))
    return grids


def by_family(board: Board, metric: str, caption: str, note: str) -> Grid | None:
    """A measure of whole scans for each family."""
    families = _scan_families(board)
    names = [name for name in board.ranked() if any(board.metric(SCAN, name, family, metric) for family in families)]
    if not names:
        return None
    rows = [[said(name), *(cell(board.metric(SCAN, name, family, metric)) for family in families)] for name in names]
    return Grid(["Detector", *(said(name) for name in families)], rows, caption, note)


def _scan_families(board: Board) -> Sequence[str]:
    present = {row["family"] for row in board.metrics if row["role"] == SCAN}
    return [name for name in board.about["families"] if name in present]


def failures(board: Board) -> Grid | None:
    """Units that failed."""
    if not board.failures:
        return None
    rows = [[said(row["detector"]), str(row["seed"]), row["reason"]] for row in board.failures]
    return Grid(["Detector", "Seed", "Reason"], rows, "Failed", "They are tried again by the next evaluation.")


def markdown(grid: Grid) -> str:
    """A table as Markdown, intervals in brackets."""

    def line(cells: Sequence[str]) -> str:
        texts = [text.replace("|", "\\|").split("\n") for text in cells]
        return "| " + " | ".join(t[0] + (f" ({t[1]})" if len(t) > 1 else "") for t in texts) + " |"

    lines = [f"**{grid.caption}**", "", line(grid.head), "|" + " --- |" * len(grid.head), *(line(row) for row in grid.rows)]
    return "\n".join([*lines, "", grid.note, ""] if grid.note else [*lines, ""])
