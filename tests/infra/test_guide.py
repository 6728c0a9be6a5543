"""docs/cluster.md can be followed: its commands name files, options, secrets and versions that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import normscape
from normscape import cli

Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def guide(root: Path) -> str:
    """The page."""
    return (root / "docs/cluster.md").read_text()


@pytest.fixture(scope="module")
def commands(guide: str) -> list[str]:
    """Every command of its shell blocks: continued lines joined, comments cut off."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", guide, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [cut for line in lines if (cut := re.sub(r"\s+#.*$", "", line).strip())]


def test_every_file_that_is_applied_or_built_exists(commands: list[str], root: Path) -> None:
    """`my-cluster` is the copy of infra/kuberay that the guide has one make; all its files are used."""
    assert "cp -r infra/kuberay my-cluster" in commands
    named = {name for command in commands for name in re.findall(r"my-cluster/([\w-]+\.yaml)", command)}
    there = {path.name for path in (root / "infra/kuberay").glob("*.yaml")}
    assert named == there
    built = [words[words.index("-f") + 1] for command in commands if (words := shlex.split(command))[:2] == ["docker", "build"]]
    assert len(built) == 3
    for path in built:
        assert (root / path).is_file(), path
    assert "cp infra/ray/cluster.yaml my-cluster.yaml" in commands


def test_links_and_files_in_the_text_exist(guide: str, root: Path) -> None:
    """Links lead to files, and to headings of this page."""
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
        for line in guide.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", guide):
        path, _, anchor = target.partition("#")
        if path:
            assert (root / "docs" / path).exists(), target
        else:
            assert anchor in headings, target
    for path in re.findall(r"`((?:infra|jobs|configs)/[\w/.-]+)`", guide):
        assert (root / path).exists(), path


def test_jobs_are_called_with_options_they_know(commands: list[str], job_arguments: Callable[[str], dict[str, Any]]) -> None:
    """Each is read by the job's own parser; what goes to a cluster writes to shared storage."""
    from ray.dashboard.modules.job.cli import submit

    seen = 0
    for command in commands:
        words = shlex.split(command)
        if words[:3] == ["ray", "job", "submit"]:
            submit.make_context("submit", words[3:])
            words = words[words.index("--") + 1 :]
        if words[0] == "python" and "jobs/run.py" in words[1]:
            arguments = job_arguments(shlex.join(words))
            assert str(arguments["config"]).removeprefix("/home/ray/normscape/").startswith("configs/")
            seen += 1
    assert seen == 5


def test_the_entry_point_in_the_text_is_that_of_the_file(
    commands: list[str], manifests: Manifests, job_arguments: Callable[[str], dict[str, Any]]
) -> None:
    """One says it and the other does it."""
    (said,) = [command for command in commands if command.startswith("python /home/ray/normscape/jobs/run.py")]
    assert job_arguments(said) == job_arguments(manifests["RayJob", "chairs-gpu"]["spec"]["entrypoint"])


def test_normscape_commands_are_known(commands: list[str]) -> None:
    """`normscape ...` in a pod or a shell is read by the command's own parser."""
    group: Any = typer.main.get_command(cli.app)
    seen = 0
    for command in commands:
        words = shlex.split(command)
        words = words[words.index("--") + 1 :] if words[0] == "kubectl" and "--" in words else words
        if words[0] == "normscape":
            group.commands[words[1]].make_context(words[1], words[2:])
            seen += 1
    assert seen >= 2


def test_secrets_that_are_made_are_the_ones_that_pods_read(commands: list[str], manifests: Manifests) -> None:
    """Names and keys; the values are drawn by the shell, none is written down."""
    made: dict[str, dict[str, str]] = {}
    for command in commands:
        words = shlex.split(command)
        if words[:4] == ["kubectl", "create", "secret", "generic"]:
            literals = [word.removeprefix("--from-literal=") for word in words if word.startswith("--from-literal=")]
            made[words[4]] = dict(literal.split("=", 1) for literal in literals)
            assert words[words.index("--namespace") + 1] == "normscape"
    read = set(re.findall(r"'secretRef': \{'name': '([\w-]+)'\}", str(manifests)))
    assert set(made) == read == {"mlflow-server", "mlflow-client"}
    assert set(made["mlflow-client"]) == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    database = manifests["StatefulSet", "postgres"]["spec"]["template"]["spec"]["containers"][0]["env"]
    (key,) = [entry["valueFrom"]["secretKeyRef"]["key"] for entry in database if "valueFrom" in entry]
    needed = {key, "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert set(made["mlflow-server"]) == needed
    for values in made.values():
        for name, value in values.items():
            assert value == "admin" or value.startswith("$("), name


def test_names_ports_and_versions_are_those_of_the_files(
    guide: str, commands: list[str], manifests: Manifests, ray_version: str
) -> None:
    """Images, Ray, the operator's namespace, services and ports that are forwarded."""
    assert f"the same Ray ({ray_version})" in guide
    assert set(re.findall(r"normscape(?:-mlflow)?:(\d[\d.]*\d)", guide)) == {normscape.__version__}
    policy = manifests["NetworkPolicy", "normscape-only"]["spec"]["ingress"][1]["from"][0]
    operator = policy["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert any(
        command.startswith("helm install kuberay-operator ") and f"--namespace {operator} " in command for command in commands
    )
    forwarded = [shlex.split(command)[2:4] for command in commands if command.startswith("kubectl port-forward")]
    cluster = manifests["RayCluster", "normscape"]["metadata"]["name"]
    assert forwarded == [
        ["svc/$CLUSTER-head-svc", "8265:8265"],
        ["svc/mlflow", "5000:5000"],
        [f"svc/{cluster}-head-svc", "8265:8265"],
    ]
    for command in commands:
        if command.startswith("kubectl ") and "-f my-cluster" not in command and "ray-system" not in command:
            assert "--namespace normscape" in command or "normscape/files:" in command, command


def test_make_has_the_targets(commands: list[str], root: Path) -> None:
    """`make services` and its end stand in the Makefile and call the script."""
    makefile = (root / "Makefile").read_text()
    for target, action in (("services", "start"), ("services-stop", "stop")):
        assert f"make {target}" in commands
        assert re.search(rf"^{target}:.*\n\t.*infra/services\.py {action}", makefile, re.MULTILINE), target
