"""Two readers follow the documentation: every `normscape` line of its pages is typed, in order, at toy size, and ends well.

The configurations that the pages name are replaced by toys of the same name, and scans by simulated ones; the lines are those of
the pages. What needs servers or Ray is typed by other tests, which `ELSEWHERE` names.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from normscape import cli
from normscape.datasets.simulated import simulate_cohort
from tests.integration.conftest import tiny_settings
from tests.integration.test_brain import AUXILIARY
from tests.integration.test_brain import settings as tiny_brain_settings
from tests.test_docs import DOCS, GENERATED, PAGES, ROOT, command_lines

ELSEWHERE = {
    r"normscape explore": "tests/explore/test_cli_explore.py",
    r"normscape sweep": "tests/test_cli_sweep.py",
    r"--workers|--actors": "tests/integration/test_run_on_workers.py",
    r"brain-sex": "tests/test_docs.py",  # needs the change of the code that its page describes, which that test applies
}
"""Lines that are not typed here, and where they, or their like, are."""
ORDER = {
    "chairs": ["README.md", "index.md", "start.md", "evaluation.md", "sweeps.md", "registry.md"],
    "brains": ["own-cohort.md", "data.md", "own-attribute.md", "registry.md", "README.md"],
}
"""What each reader reads; one page may be for both."""
FOR_BRAINS = r"brain|scan|IXI|DATASET|lesions|prepare|score|COHORT|mine@champion|champion\.zip"
FOR_BRAINS_ALONE = ("own-cohort.md", "data.md")
SMALLER = {
    "chairs": {"NAME": "chairs-cpu", "CONFIG": "configs/chairs/demo.yaml", "gan.steps=2000": "gan.steps=80", "=12000": "=70"},
    "brains": {"NAME": "mine", "COHORT": "runs/cohorts/mine", "_subjects=80": "_subjects=4", "_subjects=30": "_subjects=2"},
}
"""Words that stand for something on the pages, and sizes."""
ALSO = {
    "prepare": ["--spacing", "4", "--strip", "none", "--no-bias-correction"],
    "score": ["--strip", "none", "--steps", "2"],
}
"""Options that make a command quicker."""
BEFORE = {
    "models:/normscape-mine@champion": ["normscape register mine", "normscape promote normscape-mine"],
    "models:/normscape-brain-cpu@champion": ["normscape register brain-cpu", "normscape promote normscape-brain-cpu"],
}
"""What a reader has done before, as another page told."""
ANSWERS = {"normscape init brain --cohort scans": 2}
"""Lines that end by saying what to do first."""


def lines(reader: str, page: str) -> list[str]:
    """What a reader types of a page."""
    path = ROOT / page if page == "README.md" else DOCS / page
    whole = [line for line, is_whole in command_lines(path) if is_whole]
    brains = [page in FOR_BRAINS_ALONE or re.search(FOR_BRAINS, line) is not None for line in whole]
    mine = [line for line, is_brain in zip(whole, brains, strict=True) if is_brain == (reader == "brains")]
    return [line for line in mine if not any(re.search(pattern, line) for pattern in ELSEWHERE)]


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder for each reader, with configurations and scans; what one page makes is there for the next."""
    made = {reader: tmp_path_factory.mktemp(reader) for reader in ORDER}
    for folder in made.values():
        shutil.copytree(ROOT / "configs", folder / "configs")
    put_chairs(made["chairs"] / "configs" / "chairs")
    put_brains(made["brains"] / "configs" / "brain")
    put_scans(made["brains"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield made


def put_chairs(folder: Path) -> None:
    """Toys under the names of the shipped experiments."""
    evaluation: dict[str, Any] = {
        "detectors": ["intensity", "pca"], "families": ["standard"], "seeds": [0], "train_images": 64,
        "network_images": 64, "validation_images": 6, "test_images": 8, "bootstrap_samples": 20,
    }  # fmt: skip
    for size in ("demo", "cpu"):
        toy = tiny_settings() | {"name": f"chairs-{size}", "evaluation": evaluation}
        (folder / f"{size}.yaml").write_text(yaml.safe_dump(toy, sort_keys=False), encoding="utf-8")


def put_brains(folder: Path) -> None:
    """Likewise, on simulated people at 4 mm."""
    toy = tiny_brain_settings(Path())
    data = {"spacing_mm": 4.0, "simulated_subjects": 8, "train_subjects": 4, "test_subjects": 2, "patches_per_subject": 64}
    toy |= {"name": "brain-cpu", "data": data, "brains": {"stride": 6, "identities": 2}}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(toy, sort_keys=False), encoding="utf-8")
    contrast = yaml.safe_load((folder / "contrast.yaml").read_text(encoding="utf-8"))
    contrast["attributes"][0] |= {"latent_dim": 8, "auxiliary": AUXILIARY}
    (folder / "contrast.yaml").write_text(yaml.safe_dump(contrast, sort_keys=False), encoding="utf-8")
    volume = {
        "base": "cpu.yaml", "name": "brain-volume", "attributes": [{"name": "position", "drop": True}],
        "data": {"patches": "whole", "spacing_mm": 24.0}, "augmentation": {"noise_std_max": 0.1},
        "projection": {"calibration_samples": 0},  # one person is left, who has one image
    }  # fmt: skip
    (folder / "volume.yaml").write_text(yaml.safe_dump(volume, sort_keys=False), encoding="utf-8")


def put_scans(desk: Path) -> None:
    """One simulated cohort in the forms that the pages speak of, a new scan, and one with a lesion."""
    simulate_cohort(desk / "scans", subjects=7, seed=3, spacing_mm=4.0)
    with (desk / "scans" / "subjects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (desk / "subjects.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "subject", "age_years", "sex", "site"])
        table.writerows([f"scans/{row['t1']}", row["subject"], row["age_years"], row["sex"], row["site"]] for row in rows[:2])
    ixi, bids, lesions = (desk / name for name in ("IXI-T1", "DATASET", "lesions"))
    ixi.mkdir()
    sexes = {"M": 1, "F": 2}
    with (ixi / "IXI.csv").open("w", newline="") as one, _open(bids / "participants.tsv") as two:
        of_ixi, of_bids = csv.writer(one), csv.writer(two, delimiter="\t")
        of_ixi.writerow(["IXI_ID", "SEX_ID (1=m, 2=f)", "AGE"])
        of_bids.writerow(["participant_id", "age", "sex"])
        for number, row in enumerate(rows[:2], start=1):
            scan = desk / "scans" / row["t1"]
            shutil.copy(scan, ixi / f"IXI{number:03d}-Guys-{700 + number:04d}-T1.nii.gz")
            of_ixi.writerow([number, sexes[row["sex"]], row["age_years"]])
            there = bids / f"sub-{number:02d}" / "anat"
            there.mkdir(parents=True)
            shutil.copy(scan, there / f"sub-{number:02d}_T1w.nii.gz")
            of_bids.writerow([f"sub-{number:02d}", row["age_years"], row["sex"]])
    new = desk / "scans" / rows[-1]["t1"]
    for name in ("new.nii.gz", "SCAN.nii.gz"):
        shutil.copy(new, desk / name)
    (lesions / "p1").mkdir(parents=True)
    shutil.copy(new, lesions / "p1" / "t1_brain.nii.gz")
    image = sitk.ReadImage(str(new))
    marked = np.zeros(image.GetSize()[::-1], np.uint8)
    z, y, x = (side // 2 for side in marked.shape)
    marked[z : z + 3, y : y + 3, x : x + 3] = 1
    lesion = sitk.GetImageFromArray(marked)
    lesion.CopyInformation(image)
    sitk.WriteImage(lesion, str(lesions / "p1" / "lesion.nii.gz"))


def _open(path: Path) -> Any:
    path.parent.mkdir(parents=True)
    return path.open("w", newline="")


def typed(line: str, reader: str) -> list[str]:
    """Arguments of a line, with the reader's own words for the page's."""
    for word, meant in SMALLER[reader].items():
        line = line.replace(word, meant)
    name, command, *rest = shlex.split(line)
    assert name == "normscape"
    return [command, *rest, *([] if rest[:1] == ["cases"] else ALSO.get(command, []))]


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "page"), [(reader, page) for reader, pages in ORDER.items() for page in pages])
def test_a_reader_follows_the_pages(
    reader: str, page: str, desks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One page after the other: each line ends well, and says something."""
    monkeypatch.chdir(desks[reader])
    told = lines(reader, page)
    assert told, f"{page} has no line for the reader of {reader}"
    for line in told:
        before = [earlier for what, all_of_them in BEFORE.items() if what in line for earlier in all_of_them]
        for words, expected in [*((typed(one, reader), None) for one in before), (typed(line, reader), ANSWERS.get(line, 0))]:
            with pytest.raises(SystemExit) as ended:
                cli.main(words)
            out, err = capsys.readouterr()
            if expected is not None:  # what was done before may have been done twice
                assert (ended.value.code or 0) == expected, f"{line}\n{words}\n{out}{err}"
                assert (out + err).strip(), line


def test_no_line_is_forgotten() -> None:
    """Every line of every page is typed by a reader, or has its like in another test that is there."""
    for path in ELSEWHERE.values():
        assert (ROOT / path).is_file()
    followed = {
        page: {line for reader, pages in ORDER.items() if page in pages for line in lines(reader, page)} for page in _names()
    }
    for page in PAGES:
        if page in GENERATED:
            continue
        for line, whole in command_lines(page):
            if whole and not any(re.search(pattern, line) for pattern in ELSEWHERE):
                assert line in followed.get(page.name, ()), f"{page.name}: nobody types {line}"


def _names() -> set[str]:
    return {page for pages in ORDER.values() for page in pages}
