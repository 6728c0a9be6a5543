"""The notebook runs from top to bottom, as a reader runs it, and lies in the repository as one that nobody has run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "cohort-to-map.ipynb"
RUNNER = """
import json, sys

space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
"""
"""Code cells in order, in one namespace, as the kernel would."""


def cells() -> list[dict[str, Any]]:
    """All cells."""
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_it_is_a_notebook_that_nobody_has_run() -> None:
    """nbformat 4.5: every cell has an id of its own; no outputs, no counts, no path of anybody's machine."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in cells()]
    assert len(set(ids)) == len(ids) >= 10
    for cell in cells():
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert "".join(cell["source"]).strip(), cell["id"]
        if cell["cell_type"] == "code":
            assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
            assert (cell["execution_count"], cell["outputs"]) == (None, []), cell["id"]
            compile("".join(cell["source"]), cell["id"], "exec")
        else:
            assert cell["cell_type"] == "markdown"
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"(/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\)", text)
    assert "simulated" in "".join(cells()[0]["source"])


def test_its_links_lead_somewhere() -> None:
    """To pages of the documentation, beside its folder."""
    texts = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "markdown"]
    targets = [target for text in texts for target in re.findall(r"\]\(([^)#]+)", text)]
    assert targets
    for target in targets:
        assert (NOTEBOOK.parent / target).resolve().is_relative_to(ROOT / "docs"), target
        assert (NOTEBOOK.parent / target).is_file(), target


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In an empty folder with the configurations; at its end lies a map on the scan's grid, with finite values."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = os.environ | {"MPLBACKEND": "Agg", "NORMSCAPE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", RUNNER, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    work = tmp_path / "notebook-run"
    found, given = (sitk.ReadImage(str(path)) for path in (work / "scored" / "anomaly_map.nii.gz", work / "scan.nii.gz"))
    values = sitk.GetArrayFromImage(found)
    assert (found.GetSize(), found.GetSpacing()) == (given.GetSize(), given.GetSpacing())
    assert np.isfinite(values).all()
    assert 0 < values.max() <= 1
    assert (work / "map.png").stat().st_size > 10_000
