"""`normscape init`: what it proposes for a cohort, that the schema takes it, and what it says of scans that are not prepared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from normscape import cli
from normscape.configinit import age_range, init_brain, init_chairs, look_at, preset_path, proposed_split
from normscape.configio import load_config
from normscape.datasets.cohort import split_subjects
from normscape.datasets.prepared import PreparedCohort
from normscape.errors import DataError, UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `normscape init ...` and gives (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["normscape", "init", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return int(str(code or 0)), out, err

    return run


@pytest.mark.parametrize("size", ["demo", "cpu", "gpu"])
def test_a_cohort_gives_a_configuration_that_fits_it(
    prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path, size: str
) -> None:
    """Seven persons of known age, 20 to 75; the split can be drawn; every line that is set has its reason beside it."""
    cohort = prepared_cohort()
    out = tmp_path / "new" / "mine.yaml"
    config = init_brain(cohort.folder, out, size)
    assert config == load_config(out)
    assert (config.name, config.data.root, config.data.spacing_mm) == ("mine", cohort.folder.resolve(), 2.0)
    assert (config.data.train_subjects, config.data.test_subjects) == (5, 2)
    ages = [row["age_years"] for row in cohort.subjects.to_pylist() if row["age_years"] is not None]
    age = config.value_attributes[0]
    assert age.value_min <= min(ages) < max(ages) <= age.value_max
    assert (age.value_min, age.value_max) == (20.0, 75.0)
    assert config.projection.calibration_samples == 0  # seven subjects are too few to keep some aside
    assert config.scoring.folds <= 5
    rows = [row for row in cohort.subjects.to_pylist() if row["age_years"] is not None]
    columns = ([row[name] for row in rows] for name in ("subject", "age_years", "site"))
    train, test = split_subjects(*columns, train=5, test=2, seed=config.seed)
    assert not set(train) & set(test)

    text = out.read_text(encoding="utf-8")
    assert "# toy cohort: 9 scans; 7 subjects of known age, 20 to 75 years; 2 mm." in text
    assert "# Sites: south 4, north 3." in text
    assert "# Left out, because their age is not known: 1 subjects." in text
    bare = [
        line for line in text.splitlines() if line and not line.startswith("#") and "#" not in line and not line.endswith(":")
    ]
    assert bare == []
    told = yaml.safe_load(text)
    assert set(told) >= {"base", "name", "description", "seed", "data", "attributes"}
    assert load_config(out.parent / told["base"]).name == f"brain-{size}"


def test_what_differs_from_the_preset_is_said(prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path) -> None:
    """A cohort of 1 mm under a configuration for 2 mm."""
    init_brain(prepared_cohort(spacing_mm=1.0).folder, tmp_path / "mine.yaml", "cpu")
    text = (tmp_path / "mine.yaml").read_text()
    assert "patches of 16 voxels, 16 mm wide; `cpu` is made for 32 mm: prepare with --spacing 2" in text


def test_a_larger_atlas_widens_the_positions(prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path) -> None:
    """The toy's brain is 24 voxels long: at 10 mm it is larger than any."""
    config = init_brain(prepared_cohort(spacing_mm=10.0).folder, tmp_path / "mine.yaml", "cpu")
    assert config.position is not None
    reach = look_at(config.data.root or tmp_path).reach_mm
    assert reach > 90
    assert (config.position.value_min, config.position.value_max) == (-config.position.value_max, config.position.value_max)
    assert reach <= config.position.value_max < reach + 10
    assert config.position.grids == (7,)  # what is not said is inherited


@pytest.mark.parametrize("subjects", [6, 7, 12, 19, 20, 57, 121, 563])
def test_splits_use_every_subject_once(subjects: int) -> None:
    train, test, kept = proposed_split(subjects)
    assert train + test + kept == subjects
    assert train > test >= 2
    assert (kept > 0) == (subjects >= 20)


def test_ages_lie_within_the_range() -> None:
    assert age_range((20.1, 86.3)) == (20.0, 90.0)
    assert age_range((40.0, 40.0)) == (35.0, 45.0)
    assert age_range((0.2, 3.0)) == (0.0, 10.0)


def test_a_file_is_replaced_only_when_asked(prepared_cohort: Callable[..., PreparedCohort], tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("precious")
    folder = prepared_cohort().folder
    for write in (lambda **k: init_brain(folder, out, **k), lambda **k: init_chairs(out, **k)):
        with pytest.raises(UserError, match="is there already; --force replaces it"):
            write()
        assert out.read_text() == "precious"
    assert init_chairs(out, "demo", name="again", force=True).name == "again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "mine.yaml"]


def test_chairs(command, tmp_path: Path) -> None:
    """The same values as the file it builds on; the next commands are said."""
    out = tmp_path / "chairs.yaml"
    code, said, _ = command("chairs", "--out", out, "--size", "demo")
    assert code == 0
    assert f"normscape run {out}" in said
    config, base = load_config(out), load_config(preset_path("chairs", "demo"))
    assert config.model_copy(update={"name": base.name, "description": base.description}) == base
    code, said, _ = command("chairs", "--out", out, "--force", "--json")
    assert json.loads(said) == {"config": str(out), "name": "chairs", "train_subjects": 40, "test_subjects": 9}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["IXI002-Guys-0828-T1.nii.gz"], "normscape prepare ixi --root {folder} --out runs/cohorts/scans"),
        (["sub-01/anat/sub-01_T1w.nii.gz", "participants.tsv"], "normscape prepare bids --root {folder} --out"),
        (["a.nii", "ages.csv"], "normscape prepare table --table {folder}/ages.csv --out"),
        (["b/first one.nii.gz", "a.nii"], "       b/first one.nii.gz,first one,AGE,SITE"),
    ],
)
def test_raw_scans_get_the_command_that_prepares_them(command, tmp_path: Path, files: list[str], expected: str) -> None:
    """And nothing is written."""
    folder = tmp_path / "scans"
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    code, _, err = command("brain", "--cohort", folder, "--out", tmp_path / "out.yaml")
    assert code == 2
    assert "NIfTI files that are not prepared yet" in err
    assert expected.format(folder=folder) in err
    assert "normscape init brain --cohort runs/cohorts/scans" in err
    assert not (tmp_path / "out.yaml").exists()


def test_other_folders_are_refused(command, tmp_path: Path, prepared_cohort: Callable[..., PreparedCohort]) -> None:
    code, _, err = command("brain", "--cohort", tmp_path / "none")
    assert (code, "no such folder" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = command("brain", "--cohort", tmp_path / "empty")
    assert (code, "neither a prepared cohort (cohort.json is missing) nor a folder of NIfTI" in err) == (2, True)
    cohort = prepared_cohort()
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(cohort.folder / "subjects.parquet").to_pylist()
    few = [row | {"age_years": row["age_years"] if row["subject"] in ("p-0", "p-1") else None} for row in rows]
    pq.write_table(pa.Table.from_pylist(few, schema=cohort.subjects.schema), cohort.folder / "subjects.parquet")
    with pytest.raises(DataError, match="2 subjects of known age; at least 6 are needed"):
        look_at(cohort.folder)
