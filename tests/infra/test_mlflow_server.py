"""The MLflow servers of compose.yaml and mlflow.yaml: closed to outsiders, no default password, options that MLflow knows."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

Compose = dict[str, Any]


@pytest.fixture(scope="module")
def compose(infra: Path) -> Compose:
    """compose.yaml, parsed."""
    parsed: Compose = yaml.safe_load((infra / "mlflow/compose.yaml").read_text())
    return parsed


def server_options(command: list[str]) -> dict[str, Any]:
    """A server's command line, read by MLflow's own parser; it refuses what it does not know."""
    from mlflow.cli import server

    assert command[:2] == ["mlflow", "server"]
    plain = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command[2:]]
    return dict(server.make_context("server", plain).params)


def test_ports_are_published_on_this_machine_alone(compose: Compose) -> None:
    """Only MLflow publishes a port, and only on 127.0.0.1; database and store share a network that leads nowhere."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(published) == ["mlflow"]
    for port in published["mlflow"]:
        assert port.startswith("127.0.0.1:")
        assert port.endswith(":5000")
    assert compose["networks"]["back"] == {"internal": True}
    for name, service in compose["services"].items():
        assert service["networks"] == (["front", "back"] if name == "mlflow" else ["back"])


def test_secrets_come_from_the_environment_and_have_no_default(compose: Compose, infra: Path) -> None:
    """Each is `${NAME:?...}`, so that compose refuses to start without; the settings file holds none."""
    secret = re.compile(r"PASSWORD|SECRET|KEY")
    seen = set()
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            if secret.search(name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
                seen.add(name)
    assert {"POSTGRES_PASSWORD", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"} <= seen
    text = (infra / "mlflow/compose.yaml").read_text()
    assert not re.search(r"://\w+:[^@/\s]+@", text), "a password in an address"
    settings = configparser.ConfigParser()
    settings.read(infra / "mlflow/basic_auth.ini")
    assert "admin_password" not in settings["mlflow"]


def test_services_volumes_and_files_that_are_named_exist(compose: Compose, infra: Path) -> None:
    """Dependencies are services with a healthcheck (or ones that end); volumes are declared; the build finds its Dockerfile."""
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], needed
            else:
                assert services[needed]["restart"] == "no", needed
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"], volume
        if service["restart"] != "no":
            assert "healthcheck" in service, name
    assert set(compose["volumes"]) == {"database", "artifacts"}
    build = services["mlflow"]["build"]
    assert (infra / "mlflow" / build["context"] / build["dockerfile"]).resolve() == infra / "mlflow/Dockerfile"
    dockerfile = (infra / "mlflow/Dockerfile").read_text()
    for path in (services["bucket"]["command"][-1], "/etc/mlflow/basic_auth.ini"):
        assert (infra / "mlflow" / Path(path).name).is_file()
        assert f"infra/mlflow/{Path(path).name}" in dockerfile
    assert "MLFLOW_AUTH_CONFIG_PATH=/etc/mlflow/basic_auth.ini" in dockerfile


def test_images_are_pinned(compose: Compose, manifests: dict[tuple[str, str], dict[str, Any]]) -> None:
    """No `latest`; the server and the helper that makes the bucket are one image, the same as in Kubernetes."""
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert all(re.search(r":[\d.]+", image) for image in images.values()), images
    assert images["mlflow"] == images["bucket"]
    pod = manifests["Deployment", "mlflow"]["spec"]["template"]["spec"]
    assert images["mlflow"] == pod["containers"][0]["image"]
    database = manifests["StatefulSet", "postgres"]["spec"]["template"]["spec"]
    assert images["postgres"] == database["containers"][0]["image"]


def test_mlflow_knows_its_options_and_asks_who_is_there(
    compose: Compose, manifests: dict[tuple[str, str], dict[str, Any]], infra: Path
) -> None:
    """Both servers: basic auth, named hosts only, artifacts through the server, the database that basic_auth.ini names."""
    settings = configparser.ConfigParser()
    settings.read(infra / "mlflow/basic_auth.ini")
    here = compose["services"]["mlflow"]["command"]
    there = manifests["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"][0]["command"]
    for command, artifacts in ((here, "s3://mlflow/artifacts"), (there, "/var/lib/mlflow/artifacts")):
        options = server_options(command)
        assert options["app_name"] == "basic-auth"
        assert options["port"] == 5000
        assert options["serve_artifacts"] is True
        assert options["artifacts_destination"] == artifacts
        assert options["backend_store_uri"] == settings["mlflow"]["database_uri"]
        # the plain `postgresql://` of SQLAlchemy 2.1 means a driver that is not installed
        assert options["backend_store_uri"].startswith("postgresql+psycopg2://mlflow@postgres:5432/")
        hosts = options["allowed_hosts"].split(",")
        assert "*" not in hosts
        assert "mlflow:5000" in hosts
    assert compose["services"]["bucket"]["environment"]["S3_BUCKET"] == "mlflow"


def test_the_store_is_where_mlflow_looks_for_it(compose: Compose) -> None:
    """Server and bucket helper have the store's own port and keys."""
    services = compose["services"]
    (port,) = [word.partition("=")[2] for word in services["store"]["command"] if word.startswith("-s3.port=")]
    for name in ("mlflow", "bucket"):
        environment = services[name]["environment"]
        assert environment["MLFLOW_S3_ENDPOINT_URL"] == f"http://store:{port}"
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert environment[key] == services["store"]["environment"][key]
