"""Pictures that calls of the package give: anomalies in rendered chairs, prepared simulated scans, and the notebook's map."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infra.docs.pictures.sheet import INK, PAPER, save

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "docs" / "notebooks" / "cohort-to-map.ipynb"


def chair_families(path: Path) -> None:
    """docs/anomalies.md: the families that pictures have, in the same rendered chairs."""
    from infra.docs.pictures.fitted import unseen_chairs
    from normscape.config import PluginConfig
    from normscape.datasets.anomalies import load_family

    chairs = unseen_chairs()
    names = ["normal", "standard", "clear", "matched", "textured", "foreign"]
    figure = Figure(figsize=(8.0, 2.95), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(names))
    ids = chairs.rows[:2].tolist()
    batch, donors = chairs.batch.rows(slice(0, 2)), chairs.batch.rows(slice(2, 4))
    for column, name in zip(grid.T, names, strict=True):
        drawn = None
        if name != "normal":
            family = load_family(PluginConfig(name=name))
            drawn = family.draw(batch, seed=0, sample_ids=ids, scene=chairs.scene, donors=donors)
        for row, axis in enumerate(column):
            image = batch.images[row] if drawn is None else drawn.images[row]
            axis.imshow((image.permute(1, 2, 0).numpy() + 1) / 2, interpolation="nearest")
            if drawn is not None and drawn.masks[row].any():
                axis.contour(drawn.masks[row, 0].numpy(), levels=[0.5], colors="#d55e00", linewidths=1.1)
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name, fontsize=10, color=INK)
    save(figure, path)


def prepared_scans(path: Path) -> None:
    """docs/data.md: simulated scans after the preprocessing, as the quality page shows them."""
    import SimpleITK as sitk

    from normscape.datasets.cohort import Scan
    from normscape.datasets.simulated import simulate_cohort
    from normscape.preprocessing.atlas import load_atlas
    from normscape.preprocessing.scan import MASK_NAME, T1_NAME, prepare_scan
    from normscape.preprocessing.settings import PreprocessingSettings
    from normscape.report.quality import three_slices

    settings = PreprocessingSettings(strip="none")
    atlas = load_atlas(settings.spacing_mm, None)
    figure = Figure(figsize=(7.0, 4.9), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder) / "raw", subjects=2, seed=4, spacing_mm=2.0)
        for axis, scan in zip(figure.subplots(2, 1), sorted((Path(folder) / "raw" / "t1").iterdir()), strict=True):
            prepared = prepare_scan(Scan(scan, scan.name.partition("_")[0]), settings, atlas, Path(folder) / "prepared")
            if not prepared.good:
                raise ValueError(f"{scan}: {prepared.reason}")
            t1, mask = (sitk.GetArrayFromImage(sitk.ReadImage(str(prepared.folder / name))) for name in (T1_NAME, MASK_NAME))
            axis.imshow(three_slices(t1, (mask > 0).astype(np.uint8), atlas.mask, side=300), interpolation="nearest")
            measured = prepared.measured
            axis.set_title(
                f"simulated scan {prepared.scan.subject}: brain {measured['brain_volume_ml']:.0f} ml, "
                f"Dice with the atlas {measured['atlas_dice']:.3f}", fontsize=9.5, color=INK,
            )  # fmt: skip
            axis.axis("off")
    save(figure, path, colours=72, rare=True)


def notebook_map(path: Path) -> None:
    """docs/notebook.md: the last figure of the notebook."""
    save(notebook()["figure"], path)


@cache
def notebook() -> dict[str, Any]:
    """What the cells of the notebook leave, run once from top to bottom; its files stay until the script ends."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    before = Path.cwd()
    space: dict[str, Any] = {"__name__": "notebook"}
    os.symlink(ROOT / "configs", Path(folder.name) / "configs")
    os.chdir(folder.name)
    try:
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
    finally:
        os.chdir(before)
    pyplot.close("all")
    torch.manual_seed(0)
    return space
