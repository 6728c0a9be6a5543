"""The leaderboard: made from result files alone, complete, self-contained, and it hides no failure."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normscape.errors import DataError
from normscape.evaluation.measures import METRICS_SCHEMA, ROC_SCHEMA, STRATA_SCHEMA
from normscape.evaluation.paired import PAIRED_SCHEMA
from normscape.evaluation.results import COSTS_SCHEMA, FAILURES_SCHEMA
from normscape.evaluation.scorebook import ALL, NEW
from normscape.report.board import read_board
from normscape.report.leaderboard import build_leaderboard

DETECTORS = {
    "conditional": ("synthetic", 0.93),
    "atlas": ("none", 0.79),
    "pca": ("none", 0.52),
    "supervised": ("synthetic", 0.95),
}
FAMILIES = ("standard", "tumour")


def number(value: float, **about: Any) -> dict[str, Any]:
    return about | {"value": value, "low": value - 0.02, "high": value + 0.02, "spread": 0.011}


def write_results(folder: Path, *, failed: bool = True, scans: bool = True, **changes: Any) -> Path:
    """Results of four detectors on two families."""
    folder.mkdir()
    metrics, strata, roc, paired = [], [], [], []
    for name, (kind, area) in DETECTORS.items():
        shared = {"detector": name, "supervision": kind, "seeds": 3, "subjects": 41, "normals": 500, "anomalies": 500}
        for role in ("synthetic", "test"):
            for place, family in enumerate((*FAMILIES, ALL, NEW)):
                about = shared | {"role": role, "family": family}
                metrics.append(number(area - 0.01 * place, metric="auroc", rate=None, **about))
                metrics.append(number(area - 0.1, metric="auprc", rate=None, **about))
                metrics.append(number(0.5, metric="prevalence", rate=None, **about))
                for rate in (0.01, 0.05):
                    metrics += [number(0.4, metric=metric, rate=rate, **about) for metric in ("sensitivity", "accuracy")]
            for rate in (0.01, 0.05):
                metrics.append(number(rate, metric="false_positive_rate", rate=rate, **shared | {"role": role, "family": ""}))
        if scans:
            for family in (*FAMILIES, ALL):
                about = shared | {"role": "scan", "family": family, "rate": None}
                names = ("scan_auroc", "scan_auprc", "voxel_auprc", "voxel_prevalence", "ceiling_dice")
                metrics += [number(0.31, metric=metric, **about) for metric in names]
                for rate in (0.01, 0.05):
                    metrics += [number(0.2, metric=m, **about | {"rate": rate}) for m in ("dice", "lesion_sensitivity")]
            plain = shared | {"role": "scan", "family": ""}
            metrics.append(number(12.0, metric="seconds", rate=None, **plain))
            for rate in (0.01, 0.05):
                metrics += [number(3.4, metric=metric, rate=rate, **plain) for metric in ("false_positives", "flagged")]
        for family in FAMILIES:
            for i, level in enumerate(("low", "middle", "high")):
                edges = {"from_value": 1.0 + i, "to_value": 2.0 + i, "rows": 160, "subjects": 41}
                about = {"detector": name, "family": family, "property": "contrast", "level": level}
                strata.append(number(0.7 + 0.05 * i, **about | edges))
        site = {"detector": name, "family": ALL, "property": "site", "level": "HH", "from_value": None, "to_value": None}
        strata.append(number(0.8, **site | {"rows": 500, "subjects": 41}))
        for family in (*FAMILIES, ALL):
            roc += [{"detector": name, "family": family, "fpr": x, "tpr": x**0.4} for x in (0.0, 0.1, 0.5, 1.0)]
            for why, other in (("reference", "conditional"), ("best baseline without anomalies", "atlas")):
                if name != other:
                    difference = {"difference": 0.1, "low": 0.05, "high": 0.15, "spread": 0.01}
                    paired.append({"detector": name, "against": other, "why": why, "family": family} | difference)
    costs = [
        {"detector": name, "supervision": kind, "seeds": 3, "fit_seconds": 61.0, "image_ms": 1.25, "peak_megabytes": 1234.0}
        | {"scan_seconds": 12.0, "scan_map": "anomaly_map", "device": "cpu", "threads": 2}
        for name, (kind, _) in DETECTORS.items()
    ]
    lost = [{"detector": "ganomaly", "seed": 2, "reason": "while it was fitted: <b>no</b> memory"}] if failed else []
    tables = {
        "metrics": (metrics, METRICS_SCHEMA), "strata": (strata, STRATA_SCHEMA), "roc": (roc, ROC_SCHEMA),
        "paired": (paired, PAIRED_SCHEMA), "costs": (costs, COSTS_SCHEMA), "failures": (lost, FAILURES_SCHEMA),
    }  # fmt: skip
    for name, (rows, schema) in tables.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    about = {
        "name": "brain-cpu", "source": "brain", "cohort": "simulated cohort (121 subjects)",
        "command": "normscape evaluate configs/brain/cpu.yaml", "config_digest": "d" * 64, "code_versions": ["c" * 40],
        "detectors": list(DETECTORS), "own": ["conditional"], "families": list(FAMILIES), "training_families": ["standard"],
        "seeds": [0, 1, 2], "reference": "conditional", "best_baselines": {"none": "atlas", "synthetic": "supervised"},
        "false_positive_rates": [0.01, 0.05], "subjects": {"healthy": 5, "synthetic": 5, "test": 41},
        "left_out": {"test": {"tumour": 7}}, "promise_kept_by_enough_images": {"0.01": False, "0.05": True},
        "bootstrap_samples": 1000, "network_images": 100_000, "train_images": 4000, "scans": 4 if scans else 0, "readings": 12,
        "failed": ["ganomaly, seed 2"] if failed else [], "finished": "2030-01-01T11:00:00+00:00",
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(about | changes))
    (folder / "config.yaml").write_text("name: brain-cpu\n")
    return folder


class Opened(HTMLParser):
    """Collects what a page refers to, what it says, and its tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole evaluation, built once."""
    return build_leaderboard(write_results(tmp_path_factory.mktemp("board") / "results"))


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(address.startswith(("#", "data:")) for address in Opened(text).addresses)
    for figure in ("heat-map", "roc-all-families", "roc-standard", "paired-reference", "strata-standard", "strata-subjects"):
        assert f'id="{figure}"' in text
        assert (page.parent / "figures" / f"{figure}.png").stat().st_size > 3000


def test_detectors_are_ranked_within_their_kind(page: Path) -> None:
    """Those that learn from anomalies stand in a table of their own; the thesis's number is in the column of its task."""
    opened = Opened(page.read_text(encoding="utf-8"))
    heads = [row for row in opened.rows if row and row[0] == "Detector" and "Seeds" in row and "All families" in row]
    assert len(heads) == 2
    first = opened.rows.index(heads[0])
    without = [row[0] for row in opened.rows[first + 1 : first + 4]]
    assert without == ["Atlas", "Pca", "The thesis: threshold on L1"]
    second = opened.rows.index(heads[1], first + 1)
    assert [row[0] for row in opened.rows[second + 1 : second + 4]] == ["Supervised", "Conditional", "The thesis: random forest"]
    column = heads[1].index("Standard")
    assert opened.rows[second + 3][column] == "0.733"
    assert opened.rows[first + 3][column] == "0.658"
    assert opened.rows[second + 1][column] == "0.950 0.930 to 0.970"
    assert opened.rows[second + 1][heads[1].index("Seeds")] == "3"


def test_it_says_what_a_reader_must_know(page: Path) -> None:
    words = Opened(page.read_text(encoding="utf-8")).text
    for text in (
        "simulated cohort (121 subjects)",
        "normscape evaluate configs/brain/cpu.yaml",
        "opened 12 times so far",
        "1 unit failed",
        "while it was fitted: <b>no</b> memory",  # escaped, so that it is read and not bold
        "Tumour: 7 images of role test have no place for such an anomaly and are left out",
        "Healthy validation has too few images to promise so low a rate",
        "Against the best baseline without anomalies: Atlas",
        "ceiling",
        "of IXI, not of these images",
        "Families that these may learn from: standard",
    ):
        assert text in words, text


def test_markdown_has_the_same_numbers(page: Path) -> None:
    text = (page.parent / "leaderboard.md").read_text(encoding="utf-8")
    assert "Data: simulated cohort (121 subjects)" in text
    assert "| Supervised | 0.930 (0.910 to 0.950) | 0.920 (0.900 to 0.940) | 0.950 (0.930 to 0.970) |" in text
    assert "| Conditional | +0.100 (+0.050 to +0.150) |" in text
    assert "Peak memory, MB" in text
    assert all(line.count("|") == 0 or line.startswith("|") for line in text.splitlines())


def test_pictures_without_scans_or_failures(tmp_path: Path) -> None:
    """Chairs: no section of whole scans, the thesis's own numbers of RC-49, and a plain word on what the images are."""
    page = build_leaderboard(write_results(tmp_path / "results", failed=False, scans=False, source="chairs", cohort=""))
    opened = Opened(page.read_text(encoding="utf-8"))
    assert "Whole scans" not in opened.text
    assert "No detector failed." in opened.text
    assert "rendered chair models (not RC-49)" in opened.text
    assert "0.937" in opened.text


def test_one_family_has_no_mean(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", families=["standard"])
    assert read_board(folder).columns == ["standard"]
    assert "New families" not in Opened(build_leaderboard(folder).read_text(encoding="utf-8")).text


def test_missing_results_are_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the results of an evaluation"):
        build_leaderboard(tmp_path)
