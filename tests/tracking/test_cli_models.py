"""`normscape register`, `promote` and `models` say what is wrong in one message; what they do is tested with real stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from normscape.cli_models import register
from normscape.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder whose sqlite store is made once, with an unfinished run."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "chairs-demo").mkdir()
    (runs / "chairs-demo" / "config.yaml").write_text(f"base: {ROOT}/configs/chairs/demo.yaml\n")
    return runs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["register", "nothing"], "nothing: no run folder; the runs in .* are chairs-demo"),
        (["register", "chairs-demo"], "not finished yet: auxiliary, gan, controllers, latents, network, score"),
        (["promote", "configs/nothing.yaml"], "no such configuration"),
        (["promote", "chairs-demo"], "normscape-chairs-demo: no such model .* there are: none"),
        (["promote", str(ROOT / "configs/chairs/demo.yaml")], "normscape-chairs-demo: no such model"),
        (["models", "normscape-x"], "normscape-x: no versions are registered"),
    ],
)
def test_a_mistake_is_one_message(
    app: typer.Typer, runs: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(app, [*arguments, "--runs-dir", str(runs)])
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception


def test_a_store_that_cannot_be_used_is_one_message(app: typer.Typer, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack trace, and no password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    result = CliRunner().invoke(app, ["promote", "chairs-demo", "--runs-dir", str(runs)])
    assert isinstance(result.exception, UserError)
    assert "http://127.0.0.1:9" in str(result.exception)
    assert "secret" not in str(result.exception)
