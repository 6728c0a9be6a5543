"""The documentation can be followed: commands parse, marked blocks run, links lead somewhere, and named objects exist."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from normscape import cli
from normscape.configio import load_config
from normscape.datasets.prepared import PreparedCohort

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = (DOCS / "configuration.md", DOCS / "commands.md")
_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>\w+) -->\n)?(?P<indent> *)```(?P<kind>[\w-]*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A fenced block: its page, its language, what is asked of it (runs, loads, applies), and its lines."""

    page: Path
    kind: str
    mark: str
    body: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, block["kind"], block["mark"] or "", block["body"]) for block in found]


def marked(mark: str) -> list[Block]:
    """All blocks of all pages with this mark."""
    return [block for page in PAGES for block in blocks(page) if block.mark == mark]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def command_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Every `normscape ...` of a page, and whether it is whole: a line of a block is, a quotation in prose need not be."""
    for block in blocks(page):
        if block.kind in ("", "bash", "console", "sh"):
            for line in block.body.replace("\\\n", " ").splitlines():
                for part in re.sub(r"\s+#.*$", "", line).split("&&"):
                    if part.strip().startswith("normscape "):
                        yield part.strip(), True
    for quoted in re.findall(r"`(normscape [^`]+)`", prose(page)):
        yield re.sub(r"\s+", " ", quoted), False


def parse(line: str, whole: bool = True) -> None:
    """Read a command line with the command's own parser; raises where a command or an option does not exist."""
    group: Any = typer.main.get_command(cli.app)
    words = re.split(r"\s+[>|]\s", line)[0]
    name, *rest = shlex.split(words)
    found, path = group, [name]
    while rest and hasattr(found, "commands"):
        if rest[0].startswith("-"):
            break
        assert rest[0] in found.commands, f"{line}: there is no command `{rest[0]}`"
        path.append(rest[0])
        found = found.commands[rest.pop(0)]
    flags = {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
    for word in rest:
        if re.match(r"-+[a-z]", word):
            assert word.partition("=")[0] in flags, f"{line}: `{' '.join(path)}` has no option {word}"
    if rest and "--help" not in rest and not hasattr(found, "commands"):
        found.make_context(path[-1], list(rest), resilient_parsing=not whole)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_parse(page: Path) -> None:
    """Command, options and arguments; in prose a command may stand for itself, without what it needs."""
    for line, whole in command_lines(page):
        command = line.split()[1]
        if command != "COMMAND":
            parse(line, whole)


def test_the_parser_of_this_test_finds_mistakes() -> None:
    for line in (
        "normscape rum x.yaml",
        "normscape run x.yaml --bogus",
        "normscape config shows x",
        "normscape export a b --out c",
    ):
        with pytest.raises((AssertionError, typer.BadParameter, Exception), match=r"no command|no option|unexpected extra"):
            parse(line)
    assert sum(len(list(command_lines(page))) for page in PAGES if page not in GENERATED) > 60


@pytest.mark.parametrize("block", marked("runs"), ids=lambda block: f"{block.page.name}-{block.kind}")
def test_marked_blocks_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder of their own, with the configurations of the repository; each command ends well and says something."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NORMSCAPE_CACHE", str(tmp_path / "cache"))
    if block.kind == "python":
        exec(compile(block.body, str(block.page), "exec"), {"__name__": "page"})
        return
    assert block.kind == "bash"
    lines = [re.sub(r"\s+#.*$", "", line) for line in block.body.splitlines() if line.strip()]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "normscape", line
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        assert not ended.value.code, f"{line}\n{out}{err}"
        assert out.strip(), line


def test_there_are_blocks_that_run() -> None:
    assert {block.page.name for block in marked("runs")} >= {"index.md", "start.md", "own-attribute.md"}
    assert {block.mark for page in PAGES for block in blocks(page)} == {"", "runs", "loads", "applies"}


@pytest.mark.parametrize("block", marked("loads"), ids=lambda block: block.page.name)
def test_marked_configurations_load(block: Block, tmp_path: Path) -> None:
    """As a file in configs/ would."""
    told = yaml.safe_load(block.body)
    path = tmp_path / "config.yaml"
    path.write_text(block.body.replace(f"base: {told['base']}", f"base: {ROOT / 'configs' / told['base']}"), encoding="utf-8")
    config = load_config(path)
    assert config.name == told["name"]
    assert {entry["name"] for entry in told["attributes"]} <= {attribute.name for attribute in config.attributes}


def test_yaml_and_json_blocks_are_what_they_say() -> None:
    seen = 0
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "yaml":
                assert isinstance(yaml.safe_load(block.body), dict | list), block
                seen += 1
    assert seen >= 3


# ---- links -----------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    lines = [line for line in prose(page).splitlines() if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ")).strip().lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_resolve(page: Path) -> None:
    """To pages, headings and pictures; pages of the site link to nothing outside of docs/, where the site would not find it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target} leads nowhere"
        if page.parent != ROOT:
            assert there.is_relative_to(DOCS), f"{page.name}: {target} leads out of docs/"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}: there is no such heading"


def test_the_site_has_every_page_of_its_menu() -> None:
    """And the menu every page; mkdocs itself would only mention one that is missing there."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    menu = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=loader)["nav"]

    def named(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for inner in part.values() if isinstance(part, dict) else part:
                yield from named(inner)

    listed = list(named(menu))
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not (DOCS / name).is_file()] == []
    written = {"own-cohort.md", "own-attribute.md", "own-detector.md", "registry.md", "method.md", "commands.md"}
    assert written <= set(listed)


# ---- code ------------------------------------------------------------------------------------------------------------------


def resolved(name: str) -> Any:
    """The object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_every_object_that_a_page_names_exists() -> None:
    """`normscape.a.b.C.d` between backticks, and the modules of the Python API."""
    wrong, seen = [], 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        names = set(re.findall(r"`(normscape(?:\.\w+)+)`", text)) | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
        for name in sorted(names):
            seen += 1
            try:
                resolved(name)
            except (ImportError, AttributeError) as error:
                wrong.append(f"{page.name}: {name}: {error}")
    assert not wrong, "\n".join(wrong)
    assert seen > 100


def test_every_equation_stands_next_to_its_function() -> None:
    """Between two formulas of the page stands the name of code, and formulas are what the site can draw."""
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    formulas = list(re.finditer(r"^```math\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(formulas) >= 16
    ends = [found.start() for found in formulas[1:]] + [len(text)]
    followed = [text[found.end() : end] for found, end in zip(formulas, ends, strict=True)]
    assert [
        f[1] for f, after in zip(formulas, followed, strict=True) if "`normscape." not in after and "`pca`" not in after
    ] == []
    for symbol in ("L_c", "L_r", "r_k", "\\tau_k^+", "\\tau_k^-", "\\theta_n", "A\\Delta\\theta", "x'", "P(d(a, p) < d(a, n))"):
        assert any(symbol in found[1] for found in formulas), symbol
    pytest.importorskip("latex2mathml")
    hook = load(ROOT / "infra" / "docs" / "mathml.py")
    drawn = hook.on_page_markdown(text)
    assert "```math" not in drawn
    assert "$`" not in drawn
    assert drawn.count('display="block"') == len(formulas)


def test_the_worked_attribute_works(prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path) -> None:
    """The change of the page fits the code as it is, and patches then know the sex of their subject."""
    [block] = marked("applies")
    target = tmp_path / "platform" / "normscape" / "datasets" / "patches.py"
    target.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "platform" / "normscape" / "datasets" / "patches.py", target)
    command = ["git", "apply", "--unidiff-zero", "--recount", "-"]
    result = subprocess.run(command, input=block.body, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    changed = load(target)
    cohort = prepared_cohort()
    rows = [row | {"sex": ("M", "F", "")[i % 3]} for i, row in enumerate(cohort.subjects.to_pylist())]
    pq.write_table(pa.Table.from_pylist(rows, schema=cohort.subjects.schema), cohort.folder / "subjects.parquet")
    config = load_config(ROOT / "configs" / "brain" / "demo.yaml", ["data.patches_per_subject=8"]).data
    source = changed.open_patches(config, 8, cohort=PreparedCohort.open(cohort.folder), seed=0)
    found = source.values()["is_male"]
    expected = [{"M": 1.0, "F": 0.0, "": 0.5}[rows[scan]["sex"]] for scan in source.scan]
    assert found.shape == (len(source), 1)
    assert found[:, 0].tolist() == expected
    assert set(expected) == {0.0, 0.5, 1.0}


def load(path: Path) -> ModuleType:
    """A module from a file that no package holds."""
    name = f"shown_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_the_command_reference_is_up_to_date() -> None:
    """Else: `make docs-reference`."""
    assert load(ROOT / "infra" / "docs" / "commands.py").reference() == (DOCS / "commands.md").read_text(encoding="utf-8")
