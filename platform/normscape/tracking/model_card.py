"""The model card: what a registered model is, on which data it was made, how good it is, and where it must not be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from normscape.config import Config
from normscape.scoring.detectors import main_detector
from normscape.stages.files import read_json

METRIC_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "accuracy": "accuracy", "prevalence": "share of anomalous images"}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: its name and run, the code and the data."""

    model: str
    run_id: str
    config_digest: str
    data_digest: str
    code_version: str


def model_card(config: Config, folders: Mapping[str, Path], origin: Origin) -> str:
    """The card, in Markdown.

    Args:
        config: the experiment.
        folders: the finished folders of its stages.
        origin: where the model comes from.
    """
    return "\n\n".join(
        [
            f"# {origin.model}",
            config.description or "Conditional unsupervised anomaly detection.",
            _use(config),
            "## Data\n\n" + _data(config, folders["prepare"], origin),
            "## Results on the test subjects\n\n" + _results(folders["score"]),
            "## Limits\n\n" + _limits(config, folders["prepare"]),
            "## Made by\n\n" + _made(config, origin),
        ]
    )


def _use(config: Config) -> str:
    side = " x ".join([str(config.image_size)] * config.dims)
    known = "; ".join(f"`{a.column}` in {a.unit or 'natural units'}, (N, {a.output_dim})" for a in config.value_attributes)
    shape = ", ".join(["N", str(config.image_channels), *[str(config.image_size)] * config.dims])
    return (
        "## Use\n\n"
        "An image is projected into the style space of a generator that knows normal images only, with its known conditions held "
        "fixed. What the reconstruction misses and how far its style lies from the usual becomes the anomaly score.\n\n"
        f"- `image`: uint8 ({shape}), {side} {'pixels' if config.dims == 2 else 'voxels'}\n"
        f"- conditions: {known or 'none'}\n"
        + ("- `mask`: uint8, 1 in the brain, where residuals count\n" if config.data.source == "brain" else "")
        + "- answer: `anomaly_score` (higher is more abnormal), `anomalous` (1 above the stored threshold), the scores of the "
        "other detectors, whitened lengths and residuals; with the parameter `reconstructions`, the reconstruction too"
    )


def _data(config: Config, prepare: Path, origin: Origin) -> str:
    split = read_json(prepare / "split.json")
    train, test = (len(split.get(part, [])) for part in ("train", "test"))
    file = f" (`{config.data.path.name}`)" if config.data.path else ""
    file = f" ({split['cohort']})" if "cohort" in split else file
    return (
        f"- source: `{config.data.source}`{file}, {split.get('samples', 'unknown')} images\n"
        f"- split by subject: {train} for training, {test} for the test; no choice was made on test subjects\n"
        f"- digest: `{origin.data_digest}`"
    )


def _results(score: Path) -> str:
    lines = ["| detector | metric | value | 95 % interval |", "|---|---|---|---|"]
    subjects = rows = 0
    main = main_detector(read_json(score / "detectors.json"))
    for row in pq.read_table(score / "metrics.parquet").to_pylist():
        if row["split"] != "test" or row["metric"] == "prevalence":
            continue
        subjects, rows = row["subjects"], row["rows"]
        name = f"**{row['detector']}**" if row["detector"] == main else row["detector"]
        lines.append(f"| {name} | {METRIC_NAMES[row['metric']]} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} |")
    note = f"{rows} images of {subjects} subjects; intervals by resampling subjects. `{main}` gives the anomaly score."
    return "\n".join([*lines, "", note])


def _limits(config: Config, prepare: Path) -> str:
    test = len(read_json(prepare / "split.json").get("test", []))
    ranges = ", ".join(f"`{a.column}` from {a.value_min:g} to {a.value_max:g} {a.unit}".rstrip() for a in config.value_attributes)
    items = [
        "For research. Not a medical device, and not tested as one.",
        f"The intervals come from {test} test subjects, and say nothing about other sources, scanners or populations.",
        "The anomalies of training and test were put in artificially; these numbers do not tell how well real ones are found.",
        "The threshold supposes as many anomalous as normal images, as in training. Where anomalies are rare, most alarms are "
        "false; choose another one there.",
    ]
    if ranges:
        items.append(f"Conditions were learned for {ranges}. A wrong or far condition makes a normal image look abnormal.")
    return "\n".join(f"- {item}" for item in items)


def _made(config: Config, origin: Origin) -> str:
    return (
        f"- run `{origin.run_id}` of experiment `{config.name}`, seed {config.seed}\n"
        f"- configuration `{origin.config_digest[:16]}`, code `{origin.code_version}`"
    )
