"""What of a configuration and of a stage folder goes to MLflow, and under which names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import normscape
from normscape.config import Config
from normscape.configio import config_digest
from normscape.stages.provenance import code_version

MAX_PARAM_LENGTH = 500
"""Older servers take no longer parameter values; newer ones take 6000."""
MAX_ARTIFACT_BYTES = 5_000_000
"""Larger tables stay on disk only."""
ARTIFACT_SUFFIXES = (".parquet", ".png", ".json", ".jsonl", ".html", ".yaml")
"""Tables, pictures and records; weights and image arrays stay on disk."""
PAGE_MAX_BYTES = 15_000_000
JOB_VARIABLE = "NORMSCAPE_RAY_JOB_ID"
"""Environment variable with the id of the cluster's job that the run is part of."""


def metric_name(name: str, stage: str = "") -> str:
    """`<name>`, or `<stage>/<name>`, with characters that MLflow refuses replaced by `_`."""
    return re.sub(r"[^\w\-. :/]", "_", f"{stage}/{name}" if stage else name)


def code_tags() -> dict[str, str]:
    """Tags of any run: the code, and the cluster's job where there is one."""
    code = code_version()
    tags = {
        "normscape.version": normscape.__version__,
        "normscape.code_version": code,
        "mlflow.source.name": "normscape",
        "mlflow.source.type": "LOCAL",
    }
    if code != normscape.__version__:  # a git commit
        tags["mlflow.source.git.commit"] = code.removesuffix("-dirty")
        tags["normscape.git_dirty"] = str(code.endswith("-dirty")).lower()
    job = os.environ.get(JOB_VARIABLE)
    return tags | {"normscape.ray_job_id": job, "mlflow.source.type": "JOB"} if job else tags


def stage_tags(config: Config) -> dict[str, str]:
    """Tags of a stage's run: those of any run, and the configuration."""
    return code_tags() | {"normscape.config_digest": config_digest(config)}


def run_tags(config: Config, run_folder: Path) -> dict[str, str]:
    """Tags of the experiment run: those of its stages, its folder and its description."""
    note = {"mlflow.note.content": config.description} if config.description else {}
    return stage_tags(config) | {"normscape.run_folder": str(run_folder.resolve())} | note


def flat_params(config: Config) -> dict[str, str]:
    """Dotted path -> text of every field; lists of named sections are addressed by name (`attributes.identity.tau_same`)."""
    return {path: _shortened(value) for path, value in _leaves("", config.model_dump(mode="json"))}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        for item in value:
            yield from _leaves(f"{path}.{item['name']}", {key: leaf for key, leaf in item.items() if key != "name"})
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"


def curve(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, values) of every whole line of a stage's `metrics.jsonl`; a line that was cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row["step"], {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}


def artifacts(folder: Path) -> list[Path]:
    """Files of a stage folder that MLflow keeps: tables, pictures, records and the page."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in ARTIFACT_SUFFIXES)
    return [path for path in files if path.stat().st_size <= (PAGE_MAX_BYTES if path.suffix == ".html" else MAX_ARTIFACT_BYTES)]
