"""Measure speed and memory: `python jobs/benchmark.py`, or with a configuration, a case and a folder; see `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from normscape.benchmark.cases import benchmark
from normscape.benchmark.options import parse
from normscape.benchmark.table import print_results, write_results
from normscape.configio import load_config
from normscape.errors import UserError
from normscape.stages.provenance import choose_device
from normscape.tracking.benchmark import open_store, record_benchmark
from normscape.tracking.store import default_tracking_uri

ROOT = Path(__file__).resolve().parents[1]
# brain/gpu is not among them: on two CPU cores its training cases alone take longer than all others together
CONFIGS = [ROOT / "configs" / name for name in ("chairs/cpu.yaml", "chairs/gpu.yaml", "brain/cpu.yaml")]


def say(text: str) -> None:
    """Progress goes to the error stream, so that the tables can be piped."""
    print(text, file=sys.stderr)


def main() -> int:
    """Read the arguments, measure, print, write and, if asked to, record."""
    given = parse(__doc__)
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
