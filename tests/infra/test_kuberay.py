"""The KubeRay files fit together, fit the pinned Ray, name only what exists, and are closed to outsiders.

No cluster is needed: the operator's own schema was used when the files were written; here stands what may drift apart later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import normscape
from normscape.configio import load_config
from normscape.distributed.workers import Workers, check_batch, parse_count

Manifests = dict[tuple[str, str], dict[str, Any]]

API_VERSIONS = {
    "Namespace": "v1",
    "PersistentVolumeClaim": "v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "Pod": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
}
# Made by a person, never by a file of the repository.
SECRETS = {"mlflow-client": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}, "mlflow-server": {"PGPASSWORD"}}
FIELDS = {  # of ray.io/v1, as far as they are used
    "RayCluster": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "RayJob": {
        *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("submissionMode", "submitterPodTemplate", "rayClusterSpec"),
    },
    "head": {"rayStartParams", "template"},
    "workers": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}


def pods(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, with where it stands."""
    for (kind, name), document in manifests.items():
        yield from _pods(document, f"{kind} {name}")


def _pods(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield where, value
        for key, part in value.items():
            yield from _pods(part, f"{where}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _pods(part, f"{where}[{index}]")


def containers(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container."""
    for where, pod in pods(manifests):
        for container in pod["containers"]:
            yield f"{where} {container['name']}", container


def test_kinds_and_api_versions_are_those_of_todays_kubernetes_and_kuberay(manifests: Manifests) -> None:
    """Each kind has its API version, and everything lies in one namespace."""
    assert {kind for kind, _ in manifests} == set(API_VERSIONS)
    for (kind, name), document in manifests.items():
        assert document["apiVersion"] == API_VERSIONS[kind], name
        if kind != "Namespace":
            assert document["metadata"]["namespace"] == "normscape", name


def test_fields_of_ray_objects_are_known_ones(manifests: Manifests) -> None:
    """A misspelt field would be dropped by Kubernetes without a word."""
    job = manifests["RayJob", "chairs-gpu"]["spec"]
    cluster = manifests["RayCluster", "normscape"]["spec"]
    assert set(job) == FIELDS["RayJob"]
    assert set(cluster) == FIELDS["RayCluster"]
    assert set(cluster["headGroupSpec"]) == FIELDS["head"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == FIELDS["workers"]


def test_the_job_runs_on_the_cluster_of_raycluster_yaml(manifests: Manifests) -> None:
    """The two files hold the same cluster, so that what works in one works in the other."""
    assert manifests["RayJob", "chairs-gpu"]["spec"]["rayClusterSpec"] == manifests["RayCluster", "normscape"]["spec"]


def test_ray_and_images_have_the_pinned_versions(manifests: Manifests, ray_version: str) -> None:
    """Ray's version is that of pyproject.toml, the image's that of the package; nothing floats."""
    assert manifests["RayCluster", "normscape"]["spec"]["rayVersion"] == ray_version
    images = {container["image"] for _, container in containers(manifests)}
    version = normscape.__version__
    ours = {f"registry.example.org/normscape:{version}-gpu", f"registry.example.org/normscape-mlflow:{version}"}
    assert images == ours | {"postgres:17-bookworm"}


def test_the_cluster_asks_for_a_token_and_grows_by_autoscaler_v2(manifests: Manifests) -> None:
    """Token authentication; GPU workers from none to eight, one GPU each; dead pods are replaced, not restarted."""
    cluster = manifests["RayCluster", "normscape"]["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["gpu"]["minReplicas"], groups["gpu"]["maxReplicas"]) == (0, 8)
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        pod = group["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == ("1" if group["groupName"] == "gpu" else None)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_ports_are_named_and_numbered_alike_everywhere(manifests: Manifests) -> None:
    """The head's ports, the hole in the wall for the operator, the services and the tracking address agree."""
    head = manifests["RayCluster", "normscape"]["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {port["name"]: port["containerPort"] for port in head["ports"]} == RAY_PORTS
    for name in ("mlflow", "postgres"):
        (port,) = manifests["Service", name]["spec"]["ports"]
        kind = "Deployment" if name == "mlflow" else "StatefulSet"
        (container,) = manifests[kind, name]["spec"]["template"]["spec"]["containers"]
        assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
        assert manifests["Service", name]["spec"]["selector"] == manifests[kind, name]["spec"]["template"]["metadata"]["labels"]
    tracking = manifests["ConfigMap", "normscape"]["data"]["MLFLOW_TRACKING_URI"]
    assert tracking == f"http://mlflow:{manifests['Service', 'mlflow']['spec']['ports'][0]['port']}"


def test_only_the_namespace_and_the_operator_get_in(manifests: Manifests) -> None:
    """One policy over all pods; the operator reaches the dashboard's port, from its own namespace, and nothing else."""
    policy = manifests["NetworkPolicy", "normscape-only"]["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    (origin,) = operator["from"]
    assert set(origin) == {"namespaceSelector", "podSelector"}
    assert operator["ports"] == [{"protocol": "TCP", "port": RAY_PORTS["dashboard"]}]
    assert "NodePort" not in str(manifests)
    assert "LoadBalancer" not in str(manifests)


def test_every_claim_config_map_and_secret_that_is_named_exists(manifests: Manifests) -> None:
    """Secrets are the ones that the guide has a person make; everything else is defined here."""
    for where, pod in pods(manifests):
        mounted = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in mounted.values():
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in manifests, where
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in manifests, where
                else:
                    assert source["secretRef"]["name"] in SECRETS, where
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    secret = variable["valueFrom"]["secretKeyRef"]
                    assert secret["key"] in SECRETS[secret["name"]], where
            names = set(mounted)
            if "StatefulSet" in where:
                names |= {
                    claim["metadata"]["name"] for claim in manifests["StatefulSet", "postgres"]["spec"]["volumeClaimTemplates"]
                }
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= names, where


def test_runs_lie_on_storage_that_all_nodes_share(manifests: Manifests) -> None:
    """Head and workers mount the same claim, ReadWriteMany, at the place that the settings and the job name."""
    assert manifests["PersistentVolumeClaim", "normscape-runs"]["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = manifests["RayCluster", "normscape"]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["volumes"] == [{"name": "runs", "persistentVolumeClaim": {"claimName": "normscape-runs"}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "runs", "mountPath": "/mnt/normscape"}]
    data = manifests["ConfigMap", "normscape"]["data"]
    assert data["NORMSCAPE_RUNS"] == "/mnt/normscape/runs"
    assert data["NORMSCAPE_CACHE"].startswith("/mnt/normscape/")


def test_the_entry_point_is_a_job_of_the_repository_with_options_it_knows(
    manifests: Manifests, job_arguments: Callable[[str], dict[str, Any]], root: Path
) -> None:
    """The job's own parser takes the arguments; the configuration is in the image and can be shared out; the GPUs can be had."""
    spec = manifests["RayJob", "chairs-gpu"]["spec"]
    arguments = job_arguments(spec["entrypoint"])
    place = str(arguments["config"])
    assert place.startswith("/home/ray/normscape/configs/")
    config = load_config(root / place.removeprefix("/home/ray/normscape/"))
    check_batch(config, Workers(*parse_count(str(arguments["workers"]), "--workers")))
    assert str(arguments["runs_dir"]) == manifests["ConfigMap", "normscape"]["data"]["NORMSCAPE_RUNS"]
    assert arguments["address"] == "auto"
    # named, because a cluster that starts with no GPU would otherwise be taken for one that has none
    assert arguments["gpus_per_worker"] == 1.0
    assert arguments["gpus_per_actor"] == 1.0
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    for option in ("workers", "actors"):
        most = int(str(arguments[option]).split("-")[-1])
        assert most <= groups["gpu"]["maxReplicas"], option


def test_a_job_that_was_cut_off_is_run_again(manifests: Manifests) -> None:
    """A new cluster and the same command, a few times; the cluster goes when the job is done."""
    spec = manifests["RayJob", "chairs-gpu"]["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert len(manifests["RayJob", "chairs-gpu"]["metadata"]["name"]) <= 47
    assert spec["submissionMode"] == "K8sJobMode"


def test_no_pod_runs_as_root_or_may_become_it(manifests: Manifests) -> None:
    """What the namespace's `restricted` standard asks for, in every pod, the autoscaler beside the head included."""
    assert manifests["Namespace", "normscape"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, pod in pods(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["runAsUser"] > 0, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
    contexts = [(where, container["securityContext"]) for where, container in containers(manifests)]
    contexts.append(("autoscaler", manifests["RayCluster", "normscape"]["spec"]["autoscalerOptions"]["securityContext"]))
    for where, context in contexts:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, where


def test_every_container_says_what_it_needs(manifests: Manifests) -> None:
    """Requests and limits everywhere; memory alike in both, so that Ray knows what it really has."""
    for where, container in containers(manifests):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"]), where
        if container["name"].startswith("ray-head") or container["name"].startswith("ray-worker"):
            assert resources["requests"]["memory"] == resources["limits"]["memory"], where


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).resolve().parents[2].joinpath("infra/kuberay").glob("*.yaml")), ids=lambda p: p.name
)
def test_no_password_or_token_stands_in_a_file(path: Path) -> None:
    """There is no Secret with content, and no variable named like a secret has a plain value."""
    for document in yaml.safe_load_all(path.read_text()):
        assert document["kind"] != "Secret"
        for _, pod in _pods(document, path.name):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    if re.search(r"PASSWORD|TOKEN|SECRET|KEY", variable["name"]):
                        assert "value" not in variable, variable["name"]
        if document["kind"] == "ConfigMap":
            assert not [key for key in document["data"] if re.search(r"PASSWORD|TOKEN|SECRET|KEY", key)]
