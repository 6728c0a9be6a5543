"""The cluster file of `ray up` is valid by Ray's own schema, and its commands and options are ones that Ray knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import normscape

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own command, when it is imported


@pytest.fixture(scope="module")
def cluster(infra: Path) -> dict[str, Any]:
    """cluster.yaml, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((infra / "ray/cluster.yaml").read_text())
    return parsed


def started(command: str) -> dict[str, Any]:
    """Options of a `ray start` command, read by Ray's own parser."""
    from ray.scripts.scripts import start

    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    return dict(start.make_context("start", words[2:]).params)


def test_it_is_valid_by_rays_schema(cluster: dict[str, Any]) -> None:
    """Ray's own check, with the defaults of the provider filled in, as `ray up` does before it does anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_a_misspelt_key_would_be_found(cluster: dict[str, Any]) -> None:
    """The check above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(cluster | {"max_worker": 8}))


def test_ray_starts_with_a_token_and_a_private_dashboard(cluster: dict[str, Any]) -> None:
    """Head and workers: one port, token mode in every container, the token from a file that is copied, never written down."""
    head = started(cluster["head_start_ray_commands"][-1])
    assert head["head"] is True
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["port"] == 6379
    worker = started(cluster["worker_start_ray_commands"][-1])
    assert worker["address"] == "$RAY_HEAD_IP:6379"
    assert worker["object_manager_port"] == head["object_manager_port"]
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_it_has_the_image_and_the_folders_of_the_other_clusters(
    cluster: dict[str, Any], manifests: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """One image everywhere; run folders and cache at the same place as under KubeRay."""
    assert cluster["docker"]["image"] == f"registry.example.org/normscape:{normscape.__version__}-gpu"
    options = cluster["docker"]["run_options"]
    assert "--volume /mnt/normscape:/mnt/normscape" in options
    data = manifests["ConfigMap", "normscape"]["data"]
    for name in ("NORMSCAPE_RUNS", "NORMSCAPE_CACHE"):
        assert f"--env {name}={data[name]}" in options


def test_it_grows_from_nothing_to_eight_gpus(cluster: dict[str, Any]) -> None:
    """Workers come when they are asked for; the head computes nothing for others."""
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert types["gpu"]["resources"]["GPU"] == 1
    assert cluster["max_workers"] == 8


def test_what_a_person_must_fill_in_is_marked(infra: Path) -> None:
    """No project, zone, address or system image of somebody's; each placeholder's line says EDIT."""
    lines = (infra / "ray/cluster.yaml").read_text().splitlines()
    placeholders = [line for line in lines if re.search(r"EDIT-[A-Z-]+", line)]
    assert len(placeholders) == 6
    assert all("# EDIT" in line for line in placeholders)
