"""The files of infra/, parsed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def infra() -> Path:
    """The folder of all of it."""
    return ROOT / "infra"


@pytest.fixture(scope="session")
def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """Every Kubernetes object of infra/kuberay, by kind and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted((ROOT / "infra" / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            key = (document["kind"], document["metadata"]["name"])
            assert key not in found, f"{path.name} defines {key} again"
            found[key] = document
    return found


@pytest.fixture(scope="session")
def ray_version() -> str:
    """The one version of Ray that pyproject.toml pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [match[1] for line in project["dependencies"] if (match := re.fullmatch(r"ray\[[\w,-]+\]==([\d.]+)", line))]
    assert len(pins) == 1
    return pins[0]


@pytest.fixture(scope="session")
def job_arguments() -> Callable[[str], dict[str, Any]]:
    """Gives what `python jobs/X.py ...` would be run with, read by the job's own parser: `job_arguments(command)`."""
    import runpy
    import shlex
    import sys

    import typer

    from normscape import cli

    def parsed(command: str) -> dict[str, Any]:
        program, script, *arguments = shlex.split(command)
        assert program == "python"
        path = ROOT / "jobs" / Path(script).name
        assert path.is_file(), f"{command}: there is no {path}"
        seen: list[list[str]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *arguments])
            patch.setattr(cli, "main", lambda words: seen.append(list(words)))
            runpy.run_path(str(path), run_name="__main__")
        name, *words = seen[0]
        group: Any = typer.main.get_command(cli.app)
        context = group.commands[name].make_context(name, words)
        return dict(context.params)

    return parsed
