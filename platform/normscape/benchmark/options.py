"""The options of `jobs/benchmark.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from normscape.benchmark.cases import CASES


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: anything else.
    """
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(description: str | None) -> argparse.Namespace:
    """Read the arguments of the process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config", action="append", type=Path, help="may be repeated; default: chairs/cpu, chairs/gpu, brain/cpu"
    )
    parser.add_argument("--only", action="append", choices=list(CASES), default=[], help="just this case; may be repeated")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each action (default: 5)")
    parser.add_argument("--threads", type=positive, help="threads of torch (default: torch's choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.md and benchmark.json")
    parser.add_argument("--mlflow", action="store_true", help="record in MLFLOW_TRACKING_URI, or mlflow.db beside the folder")
    return parser.parse_args()
