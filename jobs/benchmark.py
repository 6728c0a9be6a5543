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

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = (ROOT / "configs/chairs/cpu.yaml", ROOT / "configs/chairs/gpu.yaml")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def say(text: str) -> None:
    """Progress goes to the error stream, so that the tables can be piped."""
    print(text, file=sys.stderr)


def main() -> int:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", type=Path, help="may be repeated (default: chairs/cpu, chairs/gpu)")
    parser.add_argument("--only", action="append", choices=list(CASES), default=[], help="just this case; may be repeated")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each action (default: 5)")
    parser.add_argument("--threads", type=positive, help="threads of torch (default: torch's choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.md and benchmark.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads or torch.get_num_threads())
    try:
        device = choose_device(given.device)
        configs = [load_config(path) for path in given.config or CONFIGS]
        results = benchmark(configs, device=device, only=given.only, repeats=given.repeats, say=say)
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    print_results(results)
    print("written:", *write_results(results, given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
