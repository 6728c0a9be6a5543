"""No command of the documentation is left out: each is typed by a test, or its page says that nobody has run it yet.

`normscape ...` has tests/test_docs_followed.py. This is about all the others: `make`, `ray`, `kubectl`, `python`, ...
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.test_docs import DOCS, PAGES, ROOT, blocks

SHELL = ("bash", "console", "sh")
PROGRAMS = r"(?:make|python|pip|source|export|ray|mlflow|jupyter|curl|cp|sed|grep|docker|helm|kubectl|git|cd) "
"""What a command in a block without a language begins with."""
HERE = (
    r"cp -r infra/kuberay my-cluster$",
    r"sed -i\.orig .* my-cluster/\*\.yaml$",
    r"grep -n EDIT my-cluster/\*\.yaml$",
    r"cp infra/ray/cluster\.yaml my-cluster\.yaml$",
    r"export REGISTRY=",
)
"""Typed by this file."""
BY_TESTS = {
    r"make (demo|test|docs)\b|make \.venv/\.installed-from-lock$|source \.venv/bin/activate$": ".ci/run",
    r"make services(-stop)?$|source runs/services/environment$": "tests/infra/test_services.py",
    r"ray job submit --working-dir \. (--runtime-env-json .* )?-- python jobs/run\.py": "tests/integration/test_jobs.py",
    r"mlflow ui --backend-store-uri|mlflow models serve": "tests/integration/test_mlflow_server.py",
    r"curl --user admin \S+/mlflow/users/create": "tests/integration/test_mlflow_server.py",
    r"python jobs/benchmark\.py": "tests/benchmark/test_job.py",
    r"python -m normscape\.benchmark\.scaling": "tests/benchmark/test_scaling.py",
    r"python -m normscape\.distributed\.projection_benchmark": "tests/distributed/test_projection_benchmark.py",
    r"jupyter lab docs/notebooks/": "tests/test_notebook.py",
    r"pip install --no-deps deepbet==": "tests/infra/test_images.py",
}
"""Typed by other tests, they or their like with smaller sizes: pattern to the file, which names what it runs."""
NEVER_RUN = {
    r"docker |helm |kubectl |(\w+)=\$\(kubectl|python /home/ray/normscape/jobs/run\.py": "cluster.md",
    r"ray (up|down|dashboard|get-auth-token) |chmod 600 |pip install google-api-python-client|export RAY_": "cluster.md",
    r"pip install 'normscape\[\w+\]'": "data.md",
    r"pip install jupyterlab": "notebook.md",
}
"""They need a cluster, a cloud or a package index: pattern to the one page that may have them. Checked against schemas, options
and files by tests/infra; cluster.md says so in its head."""
SAID = "has been started on a real cluster yet"


def other_commands(page: Path) -> list[str]:
    """Commands of a page's blocks but those of `normscape`, continued lines joined and comments cut off."""
    found = []
    for block in blocks(page):
        if block.kind not in ("", *SHELL):
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s+&&\s+", re.sub(r"\s+#.*$", "", line).strip()):
                command = re.sub(r"\s+", " ", part)
                known = re.match(PROGRAMS, command) if block.kind == "" else command and not command.startswith("#")
                if known and not command.startswith("normscape "):
                    found.append(command)
    return found


def test_every_command_is_typed_by_a_test_or_said_not_to_be() -> None:
    """And no pattern is left over from a command that is gone."""
    patterns = {*HERE, *BY_TESTS, *NEVER_RUN}
    used: set[str] = set()
    for page in PAGES:
        for command in other_commands(page):
            found = {pattern for pattern in patterns if re.match(pattern, command) or re.search(rf"(^|\s)({pattern})", command)}
            assert found, f"{page.name}: no test types this: {command}"
            for pattern in found & set(NEVER_RUN):
                assert page.name == NEVER_RUN[pattern], f"{page.name}: {command}"
            used |= found
    assert used == patterns, f"of commands that no page has: {patterns - used}"


def test_the_page_of_commands_that_nobody_has_run_says_so() -> None:
    assert SAID in re.sub(r"\s+", " ", (DOCS / "cluster.md").read_text(encoding="utf-8"))


def test_the_tests_that_are_named_type_them() -> None:
    """The program, and what tells its command from others, stand in the file that is said to type it."""
    marks = {
        ".ci/run": ("make docs", "make test", "make demo"),
        "tests/infra/test_services.py": ("infra/services.py", '"start"', '"stop"'),
        "tests/integration/test_jobs.py": ("ray", "job", "submit", "jobs/run.py"),
        "tests/integration/test_mlflow_server.py": ("mlflow", "serve", "users/create"),
        "tests/benchmark/test_job.py": ("benchmark",),
        "tests/benchmark/test_scaling.py": ("main(",),
        "tests/distributed/test_projection_benchmark.py": ("measure(",),
        "tests/test_notebook.py": ("notebooks",),
        "tests/infra/test_images.py": ("deepbet==",),
    }
    assert set(marks) == set(BY_TESTS.values())
    for name, words in marks.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert [word for word in words if word not in text] == [], name


def test_the_cluster_files_can_be_filled_in_as_the_guide_says(tmp_path: Path) -> None:
    """The guide's own lines, in a shell: afterwards no file names the example's registry, and what is left to edit is listed."""
    commands = [line for line in other_commands(DOCS / "cluster.md") if any(re.match(pattern, line) for pattern in HERE)]
    assert len(commands) == len(HERE)
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    script = "\n".join(["set -e", *commands]).replace("registry.example.org", "registry.mine.org", 1)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    marked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert marked >= {"my-cluster/raycluster.yaml", "my-cluster/rayjob.yaml"}
    filled = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "my-cluster").glob("*.yaml"))
    assert "registry.mine.org/normscape" in filled
    assert "registry.example.org" not in filled
    assert (tmp_path / "my-cluster.yaml").is_file()
