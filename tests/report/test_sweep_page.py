"""The page of a sweep: made from result files alone, complete, self-contained, and it hides no failure."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from normscape.config import Config
from normscape.configio import load_config
from normscape.distributed.sweep_forest import distributions, winner
from normscape.distributed.sweep_results import write_results
from normscape.distributed.sweep_search import Search
from normscape.distributed.sweep_trials import Trial, best_trial
from normscape.errors import DataError
from normscape.report.sweep import build_sweep_page, read_sweep
from normscape.sweepconfig import ForestSweep, load_sweep

ROOT = Path(__file__).resolve().parents[2]
TRACE = "Failure # 1\nTraceback:\n  File 'x.py', line 1\nnormscape.errors.DataError: a <b>NaN</b> in residual_l2"


def write_sweep(folder: Path, trials: list[Trial]) -> Config:
    """The result files of a forest sweep over the demo."""
    sweep, config, experiment = load_sweep(ROOT / "configs" / "sweeps" / "forest.yaml")
    assert isinstance(sweep, ForestSweep)
    search = Search(
        trial=lambda point, job: [],
        job={},
        space=distributions(sweep.space),
        final_step=4,
        winner=winner,
        score_name="AUROC <held out>",
    )
    write_results(folder, sweep, config, experiment, search, trials, best_trial(trials))
    return config


def some_trials() -> list[Trial]:
    """Deeper trees score higher; the last trial failed."""
    trials = []
    for number, (depth, leaf) in enumerate([(3, 1), (7, 1), (11, 1), (3, 4), (7, 4), (11, 4)], start=1):
        point = {"max_depth": depth, "n_estimators": 100, "min_samples_leaf": leaf, "features": "thesis"}
        report = {"step": 4.0, "score": 0.7 + 0.02 * depth - 0.001 * leaf, "fold_std": 0.01}
        trials.append(Trial(number, point, status="finished", reports=[report], seconds=2.0))
    point = {"max_depth": 3, "n_estimators": 300, "min_samples_leaf": 1, "features": "residuals"}
    return [*trials, Trial(7, point, status="failed", error=TRACE)]


class Opened(HTMLParser):
    """Collects what a page refers to and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_shows_best_importance_and_failures(tmp_path: Path) -> None:
    write_sweep(tmp_path, some_trials())
    page = build_sweep_page(tmp_path)
    text = page.read_text(encoding="utf-8")
    opened = Opened(text)
    assert all(address.startswith(("#", "data:")) for address in opened.addresses)  # needs no other file
    for figure in ("parallel-coordinates", "importance"):
        assert f'id="{figure}"' in text
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 5000
    words = " ".join(" ".join(opened.words).split())
    assert "0.919" in words  # the best score: depth 11, leaf 1
    assert "trial 3" in words
    assert "1 failed" in words
    assert "a <b>NaN</b> in residual_l2" in words  # the trace is shown, and escaped
    assert "AUROC <held out>" in words
    assert 'id="scores-over-steps"' not in text  # measured once each: there is no curve


def test_importance_finds_the_parameter_that_matters(tmp_path: Path) -> None:
    write_sweep(tmp_path, some_trials())
    found = {row["parameter"]: row["importance"] for row in read_sweep(tmp_path).importance}
    assert max(found, key=lambda name: found[name]) == "max_depth"
    assert sum(found.values()) == pytest.approx(1.0)


def test_best_file_loads_and_says_where_it_is_from(tmp_path: Path) -> None:
    config = write_sweep(tmp_path, some_trials())
    best = load_config(tmp_path / "best.yaml")
    assert best.scoring.max_depth == (11,)
    assert best.model_dump(exclude={"scoring"}) == config.model_dump(exclude={"scoring"})
    assert re.match(r"# Trial 3 of sweep chairs-forest: .* 0.9190 at step 4.", (tmp_path / "best.yaml").read_text())


def test_page_of_a_sweep_without_success(tmp_path: Path) -> None:
    """All trials failed: the page is still there to say why."""
    write_sweep(tmp_path, some_trials()[-1:])
    words = " ".join(Opened(build_sweep_page(tmp_path).read_text(encoding="utf-8")).words)
    assert "No trial succeeded." in words
    assert "residual_l2" in words
    assert not (tmp_path / "best.yaml").exists()


def test_curves_where_trials_were_measured_more_than_once(tmp_path: Path) -> None:
    trials = some_trials()
    for trial in trials[:2]:
        trial.reports.insert(0, {"step": 2.0, "score": 0.5, "fold_std": 0.0})
    write_sweep(tmp_path, trials)
    assert 'id="scores-over-steps"' in build_sweep_page(tmp_path).read_text(encoding="utf-8")


def test_missing_results_are_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the results of a sweep"):
        build_sweep_page(tmp_path)
