"""Stage `report`: one self-contained HTML page of a run, and its figures as PNG files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from scipy.special import expit

import normscape
from normscape.config import Config
from normscape.configio import config_digest, dump_yaml
from normscape.report import brains, curve, detection, pictures, plots, scatter, tables, viewer
from normscape.report.reasons import Reason, forest_reasons
from normscape.report.scatter import image_facts
from normscape.report.source import Source, rows
from normscape.report.thesis import DATA_NAMES
from normscape.report.words import detector_name, duration, number
from normscape.scoring.detectors import MAIN_DETECTORS, main_detector

if TYPE_CHECKING:
    from normscape.stages.core import StageContext

SLIDER_IDENTITIES = 8
SLIDER_VALUES = 60
WORST = 6
"""Images of each kind of mistake."""
GRIDS = 6
"""Sample grids over training."""


def run(context: StageContext) -> dict[str, float]:
    """Write `index.html` and `figures/*.png`.

    Returns:
        Size of the page in megabytes and number of figures.
    """

    def progress(done: int, total: int) -> None:
        context.recorder.progress(done, total, "figure")

    page = build_page(context.config, context.inputs, context.folder, progress=progress)
    return {"page_megabytes": page.stat().st_size / 1e6, "figures": float(len(list((context.folder / "figures").glob("*.png"))))}


def build_page(
    config: Config, folders: Mapping[str, Path], out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Build the page from finished stage folders; what is missing is said in its place.

    Args:
        config: the experiment.
        folders: stage -> finished folder, in the order of the stages.
        out: existing folder that receives `index.html` and `figures/`.
        progress: told (figures drawn, figures in all).

    Returns:
        Path of `index.html`.
    """
    source = Source(config, folders)
    shown: dict[str, list[plots.Shown]] = {}
    plan = [*plots.plots(source), *brains.plots(source)]
    for done, plot in enumerate(plan, start=1):
        shown.setdefault(plot.section, []).append(plots.render(plot, out / "figures"))
        if progress:
            progress(done, len(plan))
    page = out / "index.html"
    page.write_text(template_environment().get_template("page.html").render(_content(source), figures=shown), encoding="utf-8")
    return page


def template_environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("normscape.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Style and script are this package's own files; everything else is escaped.
    texts = resources.files("normscape.report") / "templates"
    environment.globals["style"] = (texts / "page.css").read_text(encoding="utf-8")
    environment.globals["script"] = "".join((texts / name).read_text(encoding="utf-8") for name in ("page.js", "scatter.js"))
    viewer.install(environment)
    return environment


def _content(source: Source) -> dict[str, Any]:
    """Everything the template shows, apart from the figures."""
    config = source.config
    manifests = {stage: manifest for stage, manifest in source.manifests().items() if manifest}
    versions = list(dict.fromkeys(str(m["code_version"]) for m in manifests.values() if m.get("code_version")))
    commits = [v for v in versions if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", v)]
    text = dump_yaml(config)
    return {
        "config": config,
        "data_name": DATA_NAMES.get(config.data.source) or source.json("prepare", "split.json").get("cohort", config.data.source),
        "compared": tables.reference(source),
        "digest": config_digest(config),
        "versions": [v for v in versions if v != normscape.__version__],
        "commit": commits[-1] if commits else "",
        "normscape_version": normscape.__version__,
        "seeds": sorted({str(m["seed"]) for m in manifests.values() if "seed" in m} | {str(config.seed)}),
        "finished": max((str(m.get("finished", "")) for m in manifests.values()), default=""),
        "total": duration(sum(float(m.get("seconds", 0.0)) for m in manifests.values())) if manifests else "",
        "subjects": tables.subjects(source),
        "headlines": detection.headlines(source) + brains.headlines(source) + tables.headlines(source),
        "tables": {
            "stages": tables.stages(source),
            "parameters": tables.parameters(source),
            "triplets": tables.triplets(source),
            "value_errors": tables.value_errors(source),
            "controllers": tables.controllers(source),
            "explained": tables.explained(source),
            "detection": detection.detection(source),
            "forest_grid": detection.forest_grid(source),
            "recorded": tables.recorded(source),
        },
        "slider": _slider(source),
        "samples": _samples(source),
        "mistakes": _mistakes(source),
        "scatter": scatter.content(source),
        "curve": curve.sentence(source),
        "brains": brains.content(source),
        "yaml": text,
        "yaml_uri": plots.data_uri(text.encode(), "text/yaml"),
    }


@dataclass(frozen=True)
class Slider:
    """Images for each asked value, one strip an identity."""

    attribute: str
    values: list[str]
    strips: list[str]
    start: int


def _slider(source: Source) -> Slider | None:
    images, about = source.array("controllers", "sweep.npy"), source.json("controllers", "sweep.json")
    if images is None or len(about.get("values", [])) != images.shape[1]:
        return None
    columns = pictures.spread(images.shape[1], SLIDER_VALUES)
    strips = [plots.data_uri(pictures.strip(images[i, columns])) for i in pictures.spread(images.shape[0], SLIDER_IDENTITIES)]
    values = [pictures.value_text(about["values"][c], about) for c in columns]
    return Slider(str(about.get("attribute", "value")), values, strips, len(columns) // 3)


def _samples(source: Source) -> list[tuple[str, str]]:
    """(step, image) of sample grids over training; early steps, where most happens, lie closer."""
    folder = source.path("gan", "samples")
    files = sorted(folder.glob("step-*.png")) if folder is not None else []
    if not files:
        return []
    chosen = sorted({round((len(files) - 1) * (i / (GRIDS - 1)) ** 1.7) for i in range(GRIDS)})
    steps = [f"{int(file.stem.removeprefix('step-')):,}".replace(",", "\u202f") for file in files]
    return [(steps[i], plots.picture_file(files[i])) for i in chosen]


@dataclass(frozen=True)
class Mistake:
    """A test image that was scored wrongly, its reconstruction and what is known of it."""

    image: str
    rebuilt: str
    difference: str
    score: str
    facts: str
    reasons: list[str]
    """What drove the score, the strongest first; empty where that is not known."""


def _mistakes(source: Source) -> dict[str, Any] | None:
    """The normal test images with the highest scores and the anomalous ones with the lowest."""
    scored = detection.scored_projections(source)
    inputs, rebuilt = source.array("project", "inputs.npy"), source.array("project", "reconstructions.npy")
    if scored is None or inputs is None or rebuilt is None or len(inputs) != rows(scored):
        return None
    names = detection.detectors(scored)
    if not names:
        return None
    detector = main_detector(names) if set(names) & set(MAIN_DETECTORS) else names[0]
    score = scored[f"{detector}_score"].astype(float)
    worst: dict[str, list[int]] = {}
    for side, kind, sign in (("alarms", 0, -1.0), ("misses", 1, 1.0)):
        candidates = np.flatnonzero((scored["split"] == "test") & (scored["label"] == kind))
        worst[side] = candidates[np.argsort(sign * score[candidates], kind="stable")][:WORST].tolist()
    why = forest_reasons(source, [row for side in worst.values() for row in side]) if detector in MAIN_DETECTORS else None
    sides = {
        side: [_mistake(source, scored, inputs, rebuilt, row, score, why.of[row] if why else []) for row in chosen]
        for side, chosen in worst.items()
    }
    threshold = source.json("score", "detectors.json").get(detector, {}).get("threshold")
    return {
        "detector": detector_name(detector),
        "threshold": number(threshold) if threshold is not None else "",
        "bias": number(why.bias) if why else "",
        "moved": "the forest's score" if detector == "pooled" else "the score",
        "usual": why.compared if why else "",
        **sides,
    }


def _mistake(
    source: Source,
    table: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    rebuilt: np.ndarray,
    row: int,
    score: np.ndarray,
    why: list[Reason],
) -> Mistake:
    image, copy = pictures.flat(inputs[row]), pictures.flat(rebuilt[row])
    difference = (255 - np.minimum(255, 2 * np.abs(image.astype(int) - copy.astype(int)))).astype(np.uint8)
    shown, again, apart = (plots.data_uri(pictures.image_png(pixels)) for pixels in (image, copy, difference))
    facts = image_facts(source.config, table, row)
    if "pooled_score" in table:  # the two that it listens to, as probabilities
        said = (float(table["forest_score"][row]), float(expit(table["network_score"][row])))
        facts += ", by itself the forest says {}, the network {}".format(*map(number, said))
    return Mistake(shown, again, apart, number(float(score[row])), facts, [reason.sentence for reason in why])
