"""Measure speed and memory: `python jobs/benchmark.py`, or with a configuration, a case and a folder; see `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from normscape.benchmark.cases import CASES, benchmark
from normscape.benchmark.table import print_results, write_results
from normscape.configio import load_config
from normscape.errors import UserError
from normscape.stages.provenance import choose_device
from normscape.tracking.benchmark import open_store, record_benchmark
from normscape.tracking.store import default_tracking_uri

ROOT = Path(__file__).resolve().parents[1]
# brain/gpu is not among them: on two CPU cores its training cases alone take longer than all others together
CONFIGS = [ROOT / "configs" / name for name in ("chairs/cpu.yaml", "chairs/gpu.yaml", "brain/cpu.yaml")]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def say(text: str) -> None:
    """Progress goes to the error stream, so that the tables can be piped."""
    print(text, file=sys.stderr)


def main() -> int:
    """Read the arguments, measure, print, write and, if asked to, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", action="append", type=Path, help="may be repeated; default: chairs/cpu, chairs/gpu, brain/cpu"
    )
    parser.add_argument("--only", action="append", choices=list(CASES), default=[], help="just this case; may be repeated")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each action (default: 5)")
    parser.add_argument("--threads", type=positive, help="threads of torch (default: torch's choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.md and benchmark.json")
    parser.add_argument("--mlflow", action="store_true", help="record in MLFLOW_TRACKING_URI, or mlflow.db beside the folder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads or torch.get_num_threads())
    try:
        device = choose_device(given.device)
        configs = [load_config(path) for path in given.config or CONFIGS]
        uri = default_tracking_uri(given.out.parent)
        store = open_store(uri) if given.mlflow else None
        results = benchmark(configs, device=device, only=given.only, repeats=given.repeats, say=say)
        print_results(results)
        files = write_results(results, given.out)
        print("written:", *files)
        if store is not None:
            print("recorded as run", record_benchmark(store, uri, results, files))
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
