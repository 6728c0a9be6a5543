"""The sheet of anomaly families: a row a family, three pictures an image, written as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normscape.config import PluginConfig
from normscape.datasets.anomalies import Scene, load_family
from normscape.datasets.batches import ImageBatch
from normscape.report.anomalies import anomaly_sheet, save_anomaly_sheet


def test_a_sheet_is_written(tmp_path: Path) -> None:
    """Of patches and of pictures; the blots that are drawn can be seen in it."""
    random = torch.Generator().manual_seed(0)
    patches = ImageBatch(
        0.2 * torch.randn(2, 1, 12, 12, 12, generator=random), torch.ones(2, 1, 12, 12, 12, dtype=torch.bool), {}
    )
    pictures = ImageBatch(torch.rand(2, 3, 16, 16, generator=random), None, {})
    for name, batch, scene in (("patches", patches, Scene(3, 2.0)), ("pictures", pictures, Scene(2, None))):
        families = {family: load_family(PluginConfig(name=family)) for family in ("standard", "clear", "foreign")}
        figure = anomaly_sheet(families, batch, seed=0, sample_ids=[3, 4], scene=scene, donors=batch.rows(torch.tensor([1, 0])))
        axis = figure.axes[0]
        assert [text.get_text() for text in axis.get_yticklabels()] == list(families)
        assert [text.get_text() for text in axis.get_xticklabels()] == ["image 3", "image 4"]
        sheet = np.asarray(axis.images[0].get_array())
        side = batch.images.shape[-1]
        assert sheet.shape == (3 * side + 4, 6 * side + 10, 4)
        normal, drawn = sheet[:side, :side, :3], sheet[:side, side + 2 : 2 * side + 2, :3]
        assert (normal != drawn).any()
        path = tmp_path / "sheets" / f"{name}.png"
        save_anomaly_sheet(figure, path)
        with Image.open(path) as written:
            assert written.size[0] > 500
            assert np.asarray(written).std() > 10
