"""Tables and headline numbers of the run, its networks and its control; the thesis's own beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normscape.config import AttributeConfig
from normscape.report.figures import explained_ratios
from normscape.report.source import Source, Table, rows, unique, where
from normscape.report.thesis import REFERENCES, Reference
from normscape.report.viewer import Target
from normscape.report.words import duration, number, percent, significant, title, with_unit

_DISTANCES = {"euclidean": "Euclidean", "l1": "L1"}


@dataclass(frozen=True)
class Grid:
    """A table: head, rows of cells (the first one is the row's name), and a sentence below."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    note: str = ""
    thesis: Sequence[int] = ()
    """Columns that hold the thesis's numbers."""
    strong: Sequence[int] = ()
    """Rows that matter most."""
    targets: Sequence[Target | None] = ()
    """For each row, where it moves the crosshair of a viewer; empty where no row does."""


@dataclass(frozen=True)
class Headline:
    """One number on top of the page."""

    name: str
    value: str
    interval: str
    compared: str
    reached: bool | None
    """Whether it is at least as good as the thesis; None where nothing is to be compared."""


def reference(source: Source) -> Reference | None:
    """The thesis's results for this data, None when it has none."""
    return REFERENCES.get(source.config.data.source)


# -------------------------------------------------------------------- headline


def headlines(source: Source) -> list[Headline]:
    """How well values and identities are controlled."""
    found = [
        *(_controller_headline(source, attribute) for attribute in source.config.value_attributes),
        _triplet_headline(source, "separated", 0, "Separated triplets, generated images"),
        _triplet_headline(source, "separated_by_margin", 1, "Separated by the margin, generated images"),
    ]
    return [headline for headline in found if headline]


def _triplet_headline(source: Source, column: str, place: int, name: str) -> Headline | None:
    table, known = source.table("gan", "triplets.parquet", "split", column), reference(source)
    part = where(table, split="generated") if table is not None else {}
    if not rows(part):
        return None
    value = float(part[column][0])
    thesis = known.triplets["generated"][place] if known else None
    compared = f"thesis {percent(thesis)}" if thesis is not None else ""
    return Headline(name, percent(value), "", compared, value >= thesis if thesis is not None else None)


def _controller_headline(source: Source, attribute: AttributeConfig) -> Headline | None:
    table, known = source.table("controllers", "controllability.parquet", "attribute", "asked", "read"), reference(source)
    part = where(table, attribute=attribute.name) if table is not None else {}
    if not rows(part):
        return None
    value = float(_errors(part).mean())
    thesis = known.value_error.get(attribute.name, {}).get("test") if known else None
    return Headline(
        f"Error of the {attribute.name} controller",
        with_unit(value, attribute.unit),
        "",
        f"thesis's {attribute.name} network, test: {with_unit(thesis, attribute.unit)}" if thesis else "",
        value <= thesis if thesis else None,
    )


def _errors(part: Table) -> np.ndarray:
    """Absolute errors (N,) of a controllability table; of vectors the distance."""
    asked, read = (np.stack([np.atleast_1d(v) for v in part[n]]).astype(float) for n in ("asked", "read"))
    return np.linalg.norm(asked - read, axis=1)


# -------------------------------------------------------------------- what was run


def subjects(source: Source) -> str:
    """How many subjects and images each split has, as a sentence."""
    table = source.table("prepare", "samples.parquet", "subject", "split")
    if table is None:
        return ""
    parts = []
    for split in unique(table["split"]):
        mine = where(table, split=split)
        purpose = split if split == "unused" else f"for {split}"
        parts.append(f"{len(unique(mine['subject']))} subjects ({rows(mine)} images) {purpose}")
    return "; ".join(parts)


def stages(source: Source) -> Grid | None:
    """Wall time of every stage."""
    found = {stage: m for stage, m in source.manifests().items() if m}
    if not found:
        return None
    total = sum(float(m.get("seconds", 0.0)) for m in found.values())
    lines = []
    for stage, manifest in found.items():
        seconds = float(manifest.get("seconds", 0.0))
        seed, key = manifest.get("seed", ""), str(manifest.get("key", ""))[:8]
        version = str(manifest.get("code_version", "")) or "–"
        share = percent(seconds / total if total else 0.0, 0)
        code = version[:12] + ("-dirty" if "dirty" in version[12:] else "")
        lines.append([stage, duration(seconds), share, str(seed), key, code])
    lines.append(["all, before this page", duration(total), "", "", "", ""])
    return Grid(["Stage", "Wall time", "Share", "Seed", "Key", "Code"], lines, "Stages of this run")


def parameters(source: Source) -> Grid:
    """Table I: the contrastive loss, with the thesis's value in brackets where it differs."""
    known = reference(source)
    lines = []
    for attribute in source.config.attributes:
        mine = (attribute.latent_dim, attribute.tau_same, attribute.tau_different, attribute.distance, attribute.output_dim)
        theirs = known.parameters.get(attribute.name) if known else None
        cells = [f"{a:g}" if isinstance(a, int | float) else _DISTANCES[a] for a in mine]
        if theirs:
            cells = [c if a == t else f"{c} (thesis {t})" for c, a, t in zip(cells, mine, theirs, strict=True)]
        lines.append([attribute.name, *cells, f"{attribute.weight_same:g} / {attribute.weight_different:g}"])
    width = source.config.other_dim
    theirs = known.parameters.get("other") if known else None
    differs = f" (thesis {theirs[0]})" if theirs and theirs[0] != width else ""
    lines.append(["other", f"{width}{differs}", "–", "–", "–", "–", "–"])
    return Grid(
        ["Attribute", "Latent dim", "τ⁺ (same)", "τ⁻ (different)", "Distance", "Outputs", "Weights c⁺ / c⁻"],
        lines,
        "Table I. Contrastive loss parameters",
        "In brackets the thesis's value, where this run uses another one. The thesis does not state its weights."
        if known
        else "",
    )


# -------------------------------------------------------------------- networks and control


def triplets(source: Source) -> Grid | None:
    """Table III: separated triplets on train, test and generated images."""
    known = reference(source)
    lines = []
    for stage in ("auxiliary", "gan"):
        table = source.table(stage, "triplets.parquet", "split", "separated") or {"split": np.array([])}
        for i, split in enumerate(table["split"]):
            theirs = known.triplets.get(split) if known else None
            mine = [float(table[n][i]) if n in table else None for n in ("separated", "separated_by_margin")]
            pairs = [cell for a, b in zip(mine, theirs or (None, None), strict=True) for cell in (percent(a), percent(b))]
            lines.append([title(str(split)), *pairs, f"{int(table['n'][i])}" if "n" in table else ""])
    head = ["Images", "d(a,p) < d(a,n)", "thesis", "d²(a,p) < d²(a,n) − m", "thesis", "Triplets"]
    margin = source.config.attributes[0].auxiliary.margin
    note = f"Share of triplets (anchor a, positive p, negative n) that the recognition network separates; margin m = {margin:g}."
    return Grid(head, lines, "Table III. Recognition network", note, (2, 4)) if lines else None


def value_errors(source: Source) -> Grid | None:
    """Mean absolute errors of the value networks."""
    table = source.table("auxiliary", "value_errors.parquet", "attribute", "split", "mean_absolute_error")
    known = reference(source)
    if table is None:
        return None
    units = {a.name: a.unit for a in source.config.attributes}
    lines = []
    for name, split, error in zip(table["attribute"], table["split"], table["mean_absolute_error"], strict=True):
        theirs = known.value_error.get(name, {}).get(split) if known else None
        unit = units.get(name, "")
        compared = "–" if theirs is None else with_unit(theirs, unit)
        lines.append([title(str(name)), str(split), with_unit(float(error), unit, 2), compared])
    note = "Of a vector, the mean distance." if any(a.output_dim > 1 for a in source.config.value_attributes) else ""
    voxels = table.get("voxels")
    if voxels is not None and np.isfinite(voxels.astype(float)).any():
        note += f" A voxel has {source.config.data.spacing_mm:g} mm."
    return Grid(["Network", "Split", "Mean absolute error", "thesis"], lines, "Errors of the value networks", note, thesis=(3,))


def controllers(source: Source) -> Grid | None:
    """How well asked values are found again in generated images."""
    table = source.table("controllers", "controllability.parquet", "attribute", "asked", "read")
    if table is None:
        return None
    identity = source.config.attributes[0]
    lines = []
    for attribute in source.config.value_attributes:
        part = where(table, attribute=attribute.name)
        if not rows(part):
            continue
        error = _errors(part)
        kept = part["identity_distance"].astype(float) if "identity_distance" in part else np.array([np.nan])
        shown = [with_unit(float(v), attribute.unit, 2) for v in (error.mean(), np.median(error), np.quantile(error, 0.95))]
        distance = number(float(np.nanmean(kept))) if np.isfinite(kept).any() else "–"
        lines.append([title(attribute.name), *shown, distance, str(len(error))])
    head = ["Controller", "Mean absolute error", "Median", "95th percentile", f"{title(identity.name)} distance, mean", "Images"]
    note = (
        f"Images are generated at asked values and read back by the attribute's network. The {identity.name} distance tells how "
        f"far the {identity.name} moves while the value changes; pairs of one {identity.name} are trained to stay below "
        f"τ⁺ = {identity.tau_same:g}, others above τ⁻ = {identity.tau_different:g}."
    )
    return Grid(head, lines, "Controllers", note) if lines else None


def explained(source: Source) -> Grid | None:
    """Variance that the first two components of each sub-space explain."""
    known = reference(source)
    lines = []
    for name in source.config.subspaces:
        ratio = explained_ratios(source, name)
        if len(ratio):
            theirs = known.explained.get(name, ()) if known else ()
            shown = ", ".join(percent(float(v), 0) for v in ratio[:2])
            ninety = int(np.searchsorted(np.cumsum(ratio), 0.9) + 1)
            reached = str(ninety) if ninety <= len(ratio) else f"more than {len(ratio)}"
            lines.append([name, shown, ", ".join(percent(v, 0) for v in theirs) or "–", reached])
    head = ["Sub-space", "First two components", "thesis", "Components for 90 %"]
    return Grid(head, lines, "Explained variance of the styles", thesis=(2,)) if lines else None


def recorded(source: Source) -> Grid | None:
    """Every number of every manifest."""
    lines = [
        [f"{stage}/{name}", significant(float(value))]
        for stage, manifest in source.manifests().items()
        for name, value in sorted(manifest.get("metrics", {}).items())
    ]
    return Grid(["Number", "Value"], lines, "All recorded numbers") if lines else None
