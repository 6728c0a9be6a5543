"""The Dockerfiles build on the pinned versions, copy only what is there, and put no secret into a layer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCKERFILES = ("docker/Dockerfile", "mlflow/Dockerfile")
SECRET_WORDS = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile in order: word and rest, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def test_the_base_image_is_the_pinned_ray_on_the_python_of_the_project(infra: Path, ray_version: str) -> None:
    """rayproject/ray:2.60.0-py311-gpu, of which CPU or GPU is an argument."""
    found = instructions(infra / "docker/Dockerfile")
    arguments = dict(rest.partition("=")[::2] for word, rest in found if word == "ARG")
    assert arguments["RAY_VERSION"] == ray_version
    assert arguments["PYTHON"] == "py311"
    assert arguments["PLATFORM"] in ("-gpu", "-cpu")
    assert ("FROM", "rayproject/ray:${RAY_VERSION}-${PYTHON}${PLATFORM}") in found


def test_the_lock_is_installed_with_a_choice_of_the_torch_index(infra: Path, root: Path) -> None:
    """Everything comes from requirements.lock; without TORCH_INDEX torch is the CUDA build of PyPI, of the pinned version."""
    commands = [rest for word, rest in instructions(infra / "docker/Dockerfile") if word == "RUN"]
    assert 'pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.lock' in commands
    assert any("--no-deps" in command and command.endswith(" .") for command in commands)
    deepbet = next(line for line in (root / "Makefile").read_text().splitlines() if "deepbet==" in line).split()[-1]
    assert f"pip install --no-cache-dir --no-deps {deepbet}" in commands  # the same as on a laptop
    lock = (root / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lock  # no local label: pip may take the CUDA build or, with the index, the CPU build


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_reaches_the_builder(name: str, infra: Path, root: Path) -> None:
    """Every source of COPY is a file or folder that .dockerignore lets through."""
    ignore = (root / ".dockerignore").read_text().splitlines()
    assert "*" in ignore, "everything is left out but for what is named"
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    for word, rest in instructions(infra / name):
        if word != "COPY":
            continue
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        for source in sources:
            assert (root / source).exists(), source
            assert any(source == place or source.startswith(place + "/") for place in allowed), source
    for place in allowed:
        assert (root / place).exists(), place


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_runs_as_an_ordinary_user_and_holds_no_secret(name: str, infra: Path) -> None:
    """The last USER is not root; no ARG or ENV is named like a secret, and nothing asks for one while building."""
    found = instructions(infra / name)
    users = [rest for word, rest in found if word == "USER"]
    assert users[-1] in ("ray", "1000")
    for word, rest in found:
        if word in ("ARG", "ENV"):
            names = re.findall(r"([A-Z_]+)=", rest) or [rest]
            assert not [each for each in names if SECRET_WORDS.search(each)], rest
        assert "--mount=type=secret" not in rest


def test_the_mlflow_image_has_the_mlflow_of_the_lock_and_what_its_server_needs(infra: Path) -> None:
    """The lock is a constraint, so server and clients have one version; drivers for PostgreSQL and S3 are there."""
    (command,) = [rest for word, rest in instructions(infra / "mlflow/Dockerfile") if word == "RUN"]
    assert "--constraint /tmp/requirements.lock" in command
    for package in ('"mlflow[auth]"', "psycopg2-binary", "boto3"):
        assert package in command
