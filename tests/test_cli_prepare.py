"""`normscape prepare`: what it prints, writes and answers to mistakes; and the page that shows the scans."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
import typer
from PIL import Image
from typer.testing import CliRunner

from normscape.cli_prepare import register
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import DataError, UserError
from normscape.preprocessing.atlas import load_atlas
from normscape.report.quality import ATLAS_COLOUR, MASK_COLOUR, build_quality_page, three_slices

QUICK = ["--spacing", "4", "--strip", "none", "--no-bias-correction"]


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    register(made)
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a cohort of three atlases, a broken scan and one of no age, prepared from a table."""
    root = tmp_path_factory.mktemp("scans")
    atlas = load_atlas(4)
    rows = ["path,subject,age,sex,site,ventricle_volume_ml"]
    for number, name in enumerate(("<b>one</b>", "two", "three")):
        sitk.WriteImage(atlas.image(atlas.t1 * (number + 1)), str(root / f"{number}.nii.gz"))
        rows.append(f"{number}.nii.gz,{name},{30 + 20 * number},F,X,{10 + 5 * number}")
    (root / "bad.nii.gz").write_bytes(b"no image")
    (root / "table.csv").write_text("\n".join([*rows, "bad.nii.gz,bad,40,M,X,", "0.nii.gz,ageless,unknown,M,X,"]) + "\n")
    made = typer.Typer()
    register(made)
    out = root / "out"
    result = CliRunner().invoke(
        made, ["prepare", "table", "--table", str(root / "table.csv"), "--out", str(out), "--name", "three & co", *QUICK]
    )
    assert result.exit_code == 0, result.output
    return out, result.output


def test_the_summary(prepared: tuple[Path, str]) -> None:
    """Counts, the way to the page, and every scan that was left out."""
    out, text = prepared
    assert "three & co" in text
    assert "3 scans of 3 subjects, 4 mm" in text
    assert "1 (read 1)" in text
    assert "left out: bad: read: bad.nii.gz: not a readable file" in text
    assert "left out: ageless: its age is unknown" in text
    assert "quality.html" in text
    assert len(PreparedCohort.open(out)) == 3
    assert pq.read_table(out / "quarantined.parquet").num_rows == 2


def test_the_page(prepared: tuple[Path, str]) -> None:
    """Self-contained; every scan with a picture, names escaped; figures of volume, overlap and the ventricles against age."""
    out, _ = prepared
    html = (out / "quality.html").read_text(encoding="utf-8")
    assert "three &amp; co" in html
    assert "&lt;b&gt;one&lt;/b&gt;" in html
    assert "<b>one</b>" not in html
    assert "bad.nii.gz: not a readable file" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    assert len(pictures) == 3
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0])))).std() > 20
    names = {path.stem for path in (out / "figures").glob("*.png")}
    assert names == {"brain-volume-ml", "atlas-dice", "ventricle-volume-ml-by-age", "brain-volume-ml-by-age"}


def test_flagged_and_bad_scans_come_first(prepared: tuple[Path, str]) -> None:
    out, _ = prepared
    table = pq.read_table(out / "subjects.parquet").to_pandas()
    table.loc[table["subject"] == "two", "flags"] = "stretched far"
    table.loc[table["subject"] == "three", "atlas_dice"] = 0.5
    original = (out / "subjects.parquet").read_bytes()
    try:
        table.to_parquet(out / "subjects.parquet")
        html = build_quality_page(out).read_text(encoding="utf-8")
    finally:
        (out / "subjects.parquet").write_bytes(original)
    assert re.findall(r'alt="Three slices of ([^"]+)"', html) == ["two", "three", "&lt;b&gt;one&lt;/b&gt;"]
    assert '<span class="flags">stretched far</span>' in html


def test_slices_are_seen_from_the_front() -> None:
    """A bright block at the right, in front and on top is at the left, on top, and at the right of the sagittal slice."""
    mask = np.ones((40, 40, 40), np.uint8)
    volume = np.ones((40, 40, 40), np.float32)
    volume[15:40, 15:40, 15:40] = 9.0
    axial, coronal, sagittal = np.split(three_slices(volume, mask, mask, side=80)[..., 0].astype(int), 3, axis=1)
    for part, bright, dark in ((axial, (20, 20), (70, 70)), (coronal, (20, 20), (70, 70)), (sagittal, (20, 60), (70, 10))):
        assert part[bright] > part[dark] + 100
    colours = {tuple(pixel) for pixel in three_slices(volume, mask, mask, side=80).reshape(-1, 3).tolist()}
    assert MASK_COLOUR in colours
    assert ATLAS_COLOUR not in colours  # both outlines lie on each other: the scan's own is on top


def test_a_second_run_prepares_nothing(prepared: tuple[Path, str], app: typer.Typer) -> None:
    out, _ = prepared
    before = {path: path.stat().st_mtime_ns for path in out.glob("scans/*/quality.json")}
    arguments = ["prepare", "table", "--table", str(out.parent / "table.csv"), "--out", str(out), "--name", "three & co", *QUICK]
    result = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("scans/*/quality.json")} == before
    told = json.loads(result.stdout)
    assert (told["scans"], told["subjects"], told["quarantined"], told["dropped"], told["spacing_mm"]) == (3, 3, 1, 1, 4.0)
    assert Path(told["page"]).is_file()


def test_ixi_and_bids(app: typer.Typer, tmp_path: Path) -> None:
    """Both folders lead to the same volume."""
    atlas = load_atlas(4)
    for name in ("ixi/IXI002-Guys-0828-T1.nii.gz", "bids/sub-01/anat/sub-01_T1w.nii.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        sitk.WriteImage(atlas.image(atlas.t1), str(path))
    (tmp_path / "IXI.csv").write_text("IXI_ID,SEX_ID,AGE\n2,2,35.8\n")
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\nsub-01\t35.8\n")
    volumes = []
    for source in ("ixi", "bids"):
        out = tmp_path / f"{source}-out"
        result = CliRunner().invoke(
            app, ["prepare", source, "--root", str(tmp_path / source), "--out", str(out), "--quiet", *QUICK]
        )
        assert result.exit_code == 0, result.output
        cohort = PreparedCohort.open(out)
        assert (cohort.source, cohort.subjects["age_years"].to_pylist()) == (source, [35.8])
        volumes.append(np.asarray(cohort.volumes))
    assert np.array_equal(*volumes)


def test_cases(app: typer.Typer, tmp_path: Path) -> None:
    """Scans with lesions become a table beside them, or where `--out` says; what is left out is said, and what to do next."""
    atlas = load_atlas(4)
    for name in ("data/one/t1.nii.gz", "data/one/mask.nii.gz", "data/two/t1.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(atlas.image(atlas.t1), str(tmp_path / name))
    (tmp_path / "data" / "bad").mkdir()
    (tmp_path / "data" / "bad" / "t1.nii.gz").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["prepare", "cases", str(tmp_path / "data"), "--strip", "none"])
    assert result.exit_code == 0, result.output
    table = tmp_path / "data" / "cases.csv"
    assert f"{table}: 2 cases (subjects), 1 with a lesion's mask, 0 with an age" in result.output
    assert "left out: bad: its scan t1.nii.gz is not a readable image" in result.output
    assert f"--set brains.cases={table}" in result.output
    assert table.read_text() == (
        "path,id,age,lesion,mask,strip\none/t1.nii.gz,one,,one/mask.nii.gz,,none\ntwo/t1.nii.gz,two,,,,none\n"
    )
    for arguments, kind, message in (
        ([str(tmp_path / "data"), "--strip", "x"], UserError, "--strip x: "),
        ([str(table)], UserError, "this is the table that is read"),
        ([str(tmp_path / "none")], DataError, "no such folder or table"),
    ):
        wrong = CliRunner().invoke(app, ["prepare", "cases", *arguments])
        assert isinstance(wrong.exception, kind)
        assert message in str(wrong.exception)


def test_mistakes(app: typer.Typer, tmp_path: Path) -> None:
    """Each in one clear message; several options that are wrong are named together."""
    table = tmp_path / "t.csv"
    table.write_text("path,subject,age\nnone.nii,a,30\n")
    cases = [
        (["ixi", "--root", str(tmp_path / "none")], DataError, "none: no such folder"),
        (["table", "--table", str(table)], DataError, "none of 1 scans can be used"),
        (["table", "--table", str(table), "--spacing", "9", "--strip", "x"], UserError, r"(?s)--spacing 9: .*--strip x: "),
        (["table", "--table", str(table), "--ventricle-labels", "a"], UserError, "--ventricle-labels a: expected numbers"),
        (["bids", "--root", str(tmp_path)], DataError, "no T1 images"),
        (["ixi"], UserError, "say with --root FOLDER where the scans are"),
        (["table", "--root", str(tmp_path)], UserError, "give the table with --table FILE"),
        (["bids", "--root", str(tmp_path), "--table", str(table)], UserError, "--table is for `prepare table`"),
    ]
    for arguments, kind, message in cases:
        result = CliRunner().invoke(app, ["prepare", *arguments])
        assert isinstance(result.exception, kind)
        assert re.search(message, str(result.exception))
