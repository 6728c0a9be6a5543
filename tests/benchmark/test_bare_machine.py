"""The benchmark on a machine without the packages at the edges: what cannot be measured there is named, the rest is.

Run as a script (``python -P tests/benchmark/test_bare_machine.py``) this file makes them unimportable and measures; the test does
that in a subprocess.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

EDGES = ("ray", "mlflow", "SimpleITK", "nibabel", "trimesh", "embreex", "h5py")
ABSENT = (*EDGES, "sklearn", "skops", "joblib", "rich", "matplotlib", "torchmetrics")


def test_a_case_runs_or_says_why_not(tmp_path: Path) -> None:
    """Toy chairs and toy brains; cases that need nothing special are tested elsewhere."""
    command = [sys.executable, "-P", __file__]
    environment = os.environ | {"NORMSCAPE_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "Not measured: toy, rendering: embreex is not installed.",
        "Not measured: toy-brain, preprocessing: SimpleITK is not installed.",
        "Not measured: toy-brain, patches: sklearn is not installed.",
        "Not measured: toy-brain, brain: sklearn is not installed.",
        "--mlflow: mlflow is not installed; install mlflow, or leave --mlflow out",
    ):
        assert line in done.stdout
    for case in ("contrastive loss", "training step (D + G)", "whole projection (5 steps"):
        assert case in done.stdout


def main() -> None:
    """Block, measure, print."""
    sys.modules.update(dict.fromkeys(ABSENT))  # None: not found, as if they were not installed
    import tempfile

    import torch

    from normscape.benchmark import work
    from normscape.benchmark.cases import benchmark
    from normscape.benchmark.table import print_results
    from normscape.config import Config
    from normscape.errors import UserError
    from normscape.tracking.benchmark import open_store

    work.PRODUCT_SIDES = {"cpu": 64}
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    brain = toy.toy_brain_settings()
    brain |= {"name": "toy-brain", "data": brain["data"] | {"spacing_mm": 4.0}}
    chairs, brain = (Config.model_validate(settings) for settings in (toy.toy_settings(), brain))
    cpu, few = torch.device("cpu"), ["training", "whole-projection", "patches", "preprocessing", "brain"]
    print_results(benchmark([chairs], device=cpu, only=["contrastive", "rendering"], repeats=1))
    results = benchmark([brain], device=cpu, only=few, repeats=1)
    print_results(results)
    with tempfile.TemporaryDirectory() as folder:
        try:
            open_store(f"sqlite:///{folder}/mlflow.db")
        except UserError as error:
            print(error)


if __name__ == "__main__":
    main()
