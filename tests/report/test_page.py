"""The page is whole, needs nothing but itself, and says what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from normscape.report import curve, plots
from normscape.report.page import build_page
from normscape.report.source import Source
from normscape.report.style import LIGHT

SECTIONS = ("summary", "run", "networks", "generator", "control", "styles", "projection", "detection", "reproduce")


class Tags(HTMLParser):
    """Start tags with their attributes, and the text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._quiet = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


@pytest.fixture(scope="session")
def page(built: dict[str, Any]) -> Path:
    """The page of a whole run."""
    path: Path = built["page"]
    return path


def test_page_has_all_sections_figures_and_numbers(page: Path) -> None:
    """Every section, figures 4 to 8 and the tables with the thesis's numbers are there, and nothing is called missing."""
    found = Tags(page)
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert set(SECTIONS) <= ids
    figures = {"figure-4-distances-identity", "figure-4-distances-angle", "figure-5-components-angle", "figure-6-sweep-angle"}
    figures |= {
        "figure-7-projections",
        "figure-8-roc-test",
        "figure-8-roc-train",
        "training-losses",
        "residual-time",
        "strata",
        "importance",
        "slider",
    }
    assert figures <= ids
    assert "Not available" not in found.text
    assert "not available" not in found.text
    for number in (
        "97.5\xa0%",
        "85.8\xa0%",
        "88.4\xa0%",
        "0.957",
        "2.4°",
        "82\xa0%, 8\xa0%",
        "rendered chair models (not RC-49)",
        "normscape run chairs-small.yaml",
    ):
        assert number in found.text, number


def test_the_page_says_how_much_faster_the_encoders_start_is(page: Path) -> None:
    """50 steps in 0.22 s get below what takes 20 s in the thesis's way."""
    text = " ".join(Tags(page).text.split())
    assert "1000 steps and leaves a mean L1 residual of 0.0600 (16 normal images)" in text
    assert "50 steps get as low (0.0550), with 16 images at once in 0.22 s each: 90.9 times as many images an hour" in text


def test_a_curve_that_gets_nowhere_is_not_praised_and_none_is_missed_where_none_was_asked_for(small_run: Any) -> None:
    """Where no run gets as low as the thesis's way, the page says what is the lowest."""
    path = small_run.folders["project"] / "curve.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("residual_l1")
    pq.write_table(table.set_column(place, "residual_l1", [[0.09, 0.07, 0.061, 0.12, 0.06]]), path)
    said = curve.sentence(Source(small_run.config, small_run.folders))
    assert "no run gets as low: 0.0610 with 50 steps is the lowest" in said
    assert "times as many" not in said
    cut = table.filter(pc.not_equal(table["steps"], 1000))
    pq.write_table(cut, path)
    assert "cut to 30 of its 1000 steps" in curve.sentence(Source(small_run.config, small_run.folders))
    pq.write_table(table.filter(pc.equal(table["start"], "mean")), path)
    assert curve.sentence(Source(small_run.config, small_run.folders)) == ""
    assert curve.figure(Source(small_run.config, small_run.folders), LIGHT) is not None
    path.unlink()
    source = Source(small_run.config, small_run.folders)
    assert curve.sentence(source) == ""
    assert curve.figure(source, LIGHT) is None
    off = small_run.config.model_copy(update={"projection": small_run.config.projection.model_copy(update={"curve_images": 0})})
    asked = [{plot.name for plot in plots.plots(Source(config, {}))} for config in (small_run.config, off)]
    assert asked[0] - asked[1] == {"residual-time"}


def test_page_is_self_contained_escaped_and_small(page: Path) -> None:
    """No address leads out of the file, a description is text and not markup, and the size stays far below 15 MB."""
    found = Tags(page)
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, name, address)
        assert tag not in ("link", "iframe", "object")
    style = re.search(r"<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style.group(1)
    assert "@import" not in style.group(1)
    assert "&lt;b&gt;tests&lt;/b&gt; &amp; looks" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 8_000_000


def test_page_can_be_read_without_eyes_or_mouse(page: Path) -> None:
    """Every image has an alternative text, the slider a label, links lead to existing places."""
    found = Tags(page)
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    inputs = {attributes["id"] for tag, attributes in found.tags if tag in ("input", "select")}
    labels = {attributes["for"] for tag, attributes in found.tags if tag == "label"}
    assert inputs == labels
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert {
        (attributes["href"] or "")[1:] for tag, attributes in found.tags if tag == "a" and (attributes["href"] or "")[0] == "#"
    } <= ids


def test_figures_are_written_as_png(page: Path) -> None:
    """Each figure of the page is also a file, on white, for MLflow."""
    files = list((page.parent / "figures").glob("*.png"))
    assert len(files) > 15
    assert all(Image.open(file).mode == "RGB" for file in files)


def test_stage_function_returns_numbers(built: dict[str, Any]) -> None:
    """`run` reports the page's size and the number of figures."""
    assert 0 < built["page_megabytes"] < 8
    assert built["figures"] > 15


def test_missing_inputs_leave_sentences(small_run: Any, tmp_path: Path) -> None:
    """A run that broke off early, and files that are missing, still give a page that says so."""
    folders = {name: small_run.folders[name] for name in ("prepare", "auxiliary", "gan")}
    for stage, name in (("auxiliary", "triplets"), ("auxiliary", "distances"), ("gan", "triplets"), ("gan", "distances")):
        (folders[stage] / f"{name}.parquet").unlink()
    (folders["gan"] / "metrics.jsonl").unlink()
    found = Tags(build_page(small_run.config, folders, tmp_path))
    missing = ("auxiliary/triplets.parquet", "gan/metrics.jsonl", "controllers/sweep.npy", "score/metrics.parquet")
    for name in missing:
        assert name in found.text, name
    assert "step 8" in found.text  # what is there is shown
    assert "Not available" in Tags(build_page(small_run.config, {}, tmp_path)).text


def test_with_a_network_the_pool_gives_the_scores(small_run: Any, tmp_path: Path) -> None:
    """Headlines, mistakes and the network's curve are those of both together; what either says by itself stands beside."""
    folders = dict(small_run.folders) | {"network": tmp_path / "network"}
    folders["network"].mkdir()
    (folders["network"] / "metrics.jsonl").write_text('{"step": 100, "loss": 0.9}\n{"step": 200, "loss": 0.7}\n')
    score = folders["score"]
    scores = pq.read_table(score / "scores.parquet")
    said = np.linspace(-2, 2, len(scores))
    forest = scores["forest_score"].to_numpy()
    for name, values in (("network", said), ("pooled", (forest + 1 / (1 + np.exp(-said))) / 2)):
        scores = scores.append_column(f"{name}_score", [values])
    pq.write_table(scores, score / "scores.parquet")
    metrics = pq.read_table(score / "metrics.parquet").to_pylist()
    pooled = [row | {"detector": "pooled", "thesis": None, "value": 0.876} for row in metrics if row["detector"] == "forest"]
    pq.write_table(pa.Table.from_pylist(metrics + pooled), score / "metrics.parquet")
    config = small_run.config.model_copy(update={"network": small_run.config.network.model_copy(update={"images": 5})})
    found = Tags(build_page(config, folders, tmp_path / "page"))
    assert "Area under the ROC curve, forest and network together, test" in found.text
    assert "0.876" in found.text
    assert "thesis 0.957" in found.text
    assert "moved the forest's score most" in found.text
    assert re.search(r"by itself the forest says 0\.\d{3}, the network 0\.\d{3}", found.text)
    assert any(attributes.get("id") == "training-network" for _, attributes in found.tags)


def test_other_attributes_and_volumes(small_run: Any, tmp_path: Path) -> None:
    """Nothing hangs on the name angle or on two dimensions: volumes show their middle slice."""
    data = small_run.config.model_dump(mode="json")
    data["attributes"][1] |= {"name": "age", "unit": "years", "column": "age_years"}
    config = type(small_run.config).model_validate(data | {"dims": 3, "image_channels": 1})
    folder = small_run.folders["controllers"]
    np.save(folder / "sweep.npy", np.random.default_rng(0).integers(0, 255, (3, 5, 1, 8, 8, 8), dtype=np.uint8))
    (folder / "sweep.json").write_text('{"attribute": "age", "values": [20, 30.5, 40, 50, 60], "unit": "years"}')
    path = build_page(config, {"controllers": folder}, tmp_path)
    found = Tags(path)
    assert "Asked age" in found.text
    assert "30.5 years" in path.read_text(encoding="utf-8")
    assert any(attributes.get("id") == "figure-6-sweep-age" for _, attributes in found.tags)
