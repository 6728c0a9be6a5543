"""The import rules of the design: layers import downward only, and the scientific core runs without the edges.

Run as a script (``python -P tests/test_layers.py``) this file blocks the edge packages, imports everything below them and runs
the core; the test at the end does that in a subprocess.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLATFORM = ROOT / "platform"
PACKAGE = PLATFORM / "normscape"

# Height of each part; a part imports only parts that are lower, or parts of its own height as long as there is no circle.
LAYERS: dict[str, int] = {
    "config": 0,
    "configio": 0,
    "configdoc": 0,
    "sweepconfig": 0,
    "plugins": 0,
    "errors": 0,
    "images": 0,
    "networks": 1,
    "losses": 1,
    "datasets": 1,
    "preprocessing": 1,
    "configinit": 2,
    "training": 2,
    "inversion": 2,
    "scoring": 2,
    "baselines": 2,
    "stages": 3,
    "benchmark": 3,
    "evaluation": 3,
    "distributed": 4,
    "tracking": 4,
    "report": 5,
    "explore": 5,
    "runner": 5,
    "cli": 5,
    "cli_evaluate": 5,
    "cli_explore": 5,
    "cli_models": 5,
    "cli_prepare": 5,
    "cli_score": 5,
    "cli_sweep": 5,
    "cli_bundle": 5,
    "cli_init": 5,
    "cli_look": 5,
    "cli_shared": 5,
    "console": 5,
    "doctor": 5,
    "__main__": 5,
    "jobs": 6,
}
EDGES = ("ray", "mlflow")  # only from `distributed` and `tracking` upwards
DATA_EDGES = ("SimpleITK", "nibabel", "trimesh", "embreex", "h5py")  # never in PURE, and nowhere at import time
PURE = ("networks", "losses", "training", "inversion")
CORE = (*PURE, "scoring", "stages", "datasets", "benchmark", "baselines", "evaluation")


def _module_files() -> dict[str, Path]:
    """Every module of the package and of jobs/, by dotted name."""
    files = {}
    for base, folder in ((PLATFORM, PACKAGE), (ROOT, ROOT / "jobs")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def _imports(name: str, path: Path, known: Sequence[str] | dict[str, Path]) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too; `from a import b` gives a.b where that is a module."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def _part(module: str) -> str | None:
    """The part of the house a module belongs to; None for the package itself and for other projects."""
    parts = module.split(".")
    if parts[0] == "jobs":
        return "jobs"
    return parts[1] if parts[0] == "normscape" and len(parts) > 1 else None


def test_platform_is_not_a_package() -> None:
    """platform/__init__.py would hide the standard library's module."""
    assert not (PLATFORM / "__init__.py").exists()
    code = "import platform; print(platform.python_version())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("3.")


def test_every_part_has_a_layer() -> None:
    unknown = {part for name in _module_files() if (part := _part(name)) and part not in LAYERS}
    assert not unknown, f"put these into LAYERS, at their height: {sorted(unknown)}"


def test_imports_run_downward() -> None:
    files = _module_files()
    wrong = []
    for name, path in files.items():
        part = _part(name)
        for target in _imports(name, path, files):
            other = _part(target)
            if part and other and LAYERS.get(other, 0) > LAYERS.get(part, 0):
                wrong.append(f"{name} ({part}) imports {target} ({other})")
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    """Neither between parts nor between modules."""
    files = _module_files()
    modules = {name: {t for t in _imports(name, path, files) if t in files and t != name} for name, path in files.items()}
    parts: dict[str, set[str]] = {}
    for name, targets in modules.items():
        if part := _part(name):
            parts.setdefault(part, set()).update(other for t in targets if (other := _part(t)) and other != part)
    for graph in (modules, parts):
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise AssertionError(f"circle: {' -> '.join(error.args[1])}") from None


def test_edges_stay_at_the_edge() -> None:
    """ray and mlflow: from distributed and tracking upwards; data packages: never in the pure part, not even in a function."""
    files = _module_files()
    wrong = []
    for name, path in files.items():
        part = _part(name)
        roots = {target.split(".")[0] for target in _imports(name, path, files)}
        if LAYERS.get(part or "", 0) < LAYERS["distributed"]:
            wrong += [f"{name} imports {edge}" for edge in EDGES if edge in roots]
        if part in PURE:
            wrong += [f"{name} imports {edge}" for edge in DATA_EDGES if edge in roots]
    assert not wrong, "\n".join(wrong)


def test_core_runs_without_the_edges() -> None:
    """With the edge packages unimportable, everything below them imports, and the core trains, projects and scores."""
    result = subprocess.run([sys.executable, "-P", __file__], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "core: ok" in result.stdout


class _Blocker:
    """A meta-path finder that makes packages unimportable, as if they were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] in (*EDGES, *DATA_EDGES):
            raise ModuleNotFoundError(f"{name} is blocked by this test", name=name)
        return None


def _run_core() -> None:
    """A tiny real run of each part of the core, on random numbers. Add a function a part here."""
    _run_training_and_projection()
    _run_scoring()


def _run_training_and_projection() -> None:
    """One GAN training step with every phase on noise images, and a projection into the style space."""
    import tempfile

    import torch

    from normscape.inversion.projector import Projector
    from normscape.inversion.style_space import WhitenedSubspace
    from normscape.networks.auxiliary import AuxiliaryNetwork
    from normscape.networks.controller import Controller
    from normscape.training.checkpoint import load_module, save_module
    from normscape.training.gan import GanTrainer

    config = _toy_config()
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    trainer = GanTrainer(config, auxiliaries, torch.device("cpu"))
    images = torch.rand(8, 3, 8, 8) * 2 - 1
    measured = trainer.step(images, 0)
    assert {"loss_d", "loss_g", "r1", "path_length", "contrastive"} <= set(measured)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generator.safetensors"
        save_module(trainer.averaged, path)
        load_module(trainer.averaged, path)
    generator = trainer.averaged
    styles = generator.mapping(torch.randn(64, generator.latent_dim))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    controllers = {"angle": Controller.from_config(config.attributes[1], config).requires_grad_(False)}
    projector = Projector(config, generator, controllers, space, auxiliaries["identity"].features)
    result = projector.project(images, {"angle": torch.full((8, 1), 45.0)})
    assert result.images.shape == images.shape


def _toy_config() -> Any:
    """The toy configuration of the tests, read by path: this file also runs as a plain script."""
    from normscape.config import Config

    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Config.model_validate(module.toy_settings())


def _run_scoring() -> None:
    """Fit a forest on noise with one telling column; score it with intervals."""
    import numpy as np

    from normscape.scoring.forest import ForestDetector
    from normscape.scoring.metrics import auroc, bootstrap_by_subject

    generator = np.random.default_rng(0)
    groups = np.repeat([f"s{i}" for i in range(6)], 20)
    label = np.tile([0, 1], 60)
    features = generator.normal(size=(120, 3)) + label[:, None] * [4.0, 0.0, 0.0]
    detector = ForestDetector(max_depth=(3,), n_estimators=(10,), folds=3, seed=0).fit(features, label, groups)
    interval = bootstrap_by_subject(auroc, label, detector.decision_function(features), groups, n=50, seed=0)
    assert interval.value > 0.9


def main() -> None:
    """Block, import, run, and see that nothing got through."""
    sys.meta_path.insert(0, _Blocker())
    for edge in (*EDGES, *DATA_EDGES):
        try:
            importlib.import_module(edge)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{edge} was not blocked")
    names = [name for name in _module_files() if _part(name) in CORE]
    for name in names:
        importlib.import_module(name)
    _run_core()
    leaked = [edge for edge in (*EDGES, *DATA_EDGES) if edge in sys.modules]
    assert not leaked, f"imported in spite of the blocker: {leaked}"
    print(f"core: ok, {len(names)} modules")


if __name__ == "__main__":
    main()
