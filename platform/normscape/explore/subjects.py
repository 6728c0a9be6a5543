"""The run's own images at other values: the styles that their projection found, with one attribute's part replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import AttributeConfig
from normscape.explore.trained import Trained
from normscape.inversion.projector import Projector

MOST = 24
"""Images that the page offers, of different subjects as far as there are any."""


@dataclass(frozen=True)
class Subjects:
    """Normal images of subjects that no network was trained on, projected by the run.

    Attributes:
        projector: turns coordinates into images.
        attributes: of known values.
        rows: number of an image to its row of the table, every column of it.
        images: uint8 (N, C, *S), the images as they are, mapped from the disk.
    """

    projector: Projector
    attributes: tuple[AttributeConfig, ...]
    rows: Mapping[int, Mapping[str, Any]]
    images: NDArray[np.uint8]

    @staticmethod
    def of(trained: Trained) -> Subjects | None:
        """Those of a run; None where it holds none."""
        if trained.projector is None or trained.projected is None:
            return None
        rows = _chosen(trained.projected, trained.projector, trained.config.value_attributes)
        images = np.load(trained.projected / "inputs.npy", mmap_mode="r", allow_pickle=False)
        return Subjects(trained.projector, trained.config.value_attributes, rows, images) if rows else None

    def __contains__(self, number: int) -> bool:
        return number in self.rows

    def described(self) -> list[dict[str, Any]]:
        """For the page: who there is, and their known values."""
        found = []
        for number, row in self.rows.items():
            values = {a.name: float(row[a.column or ""]) for a in self.attributes if a.output_dim == 1}
            shown = ", ".join(f"{name} {value:.0f}" for name, value in values.items())
            found.append({"who": f"subject:{number}", "label": f"{row['subject']} ({shown})", "values": values})
        return found

    def original(self, number: int) -> Tensor:
        """The image as it is, uint8 `(C, *S)`."""
        return torch.from_numpy(np.array(self.images[number]))

    @torch.no_grad()
    def at(self, number: int, moved: Mapping[str, Tensor]) -> Tensor:
        """The subject at other values: everything else stays what the projection found.

        Args:
            number: of the image.
            moved: attribute to values `(B, D)`.

        Returns:
            `(B, C, *S)`, about [-1, 1].
        """
        projector, row = self.projector, self.rows[number]
        count, layers = len(next(iter(moved.values()))), len(projector.generator.resolutions)

        def coordinates(name: str) -> Tensor:
            found = torch.tensor(np.array(row[f"coordinates/{name}"], np.float32)).reshape(1, layers, -1)
            return found.to(projector.device).expand(count, -1, -1)

        values = {a.name: _known(a, row).expand(count, -1) for a in self.attributes} | dict(moved)
        styles = projector.styles({name: coordinates(name) for name in projector.free}, projector.encode(values))
        return projector.generator.synthesize(styles)


def _known(attribute: AttributeConfig, row: Mapping[str, Any]) -> Tensor:
    """The value of an image `(1, D)`."""
    column, width = attribute.column or "", attribute.output_dim
    names = [column] if width == 1 else [f"{column}_{i}" for i in range(width)]
    return torch.tensor([[float(row[name]) for name in names]])


def _chosen(folder: Path, projector: Projector, attributes: tuple[AttributeConfig, ...]) -> dict[int, dict[str, Any]]:
    """The first normal test image of each subject, then more of them."""
    import pyarrow.parquet as pq

    who = pq.read_table(folder / "projections.parquet", columns=["subject", "split", "label"])
    subject, split, label = (who[name].to_pylist() for name in ("subject", "split", "label"))
    normal = [i for i in range(len(subject)) if split[i] == "test" and label[i] == 0]
    seen: set[str] = set()
    first = [i for i in normal if subject[i] not in seen and not seen.add(subject[i])]  # type: ignore[func-returns-value]
    rows = sorted((first + [i for i in normal if i not in set(first)])[:MOST], key=lambda i: (subject[i], i))
    columns = ["subject", *(f"coordinates/{name}" for name in projector.free)]
    for a in attributes:
        columns += [a.column or ""] if a.output_dim == 1 else [f"{a.column}_{i}" for i in range(a.output_dim)]
    table = pq.read_table(folder / "projections.parquet", columns=columns).take(rows)
    return dict(zip(rows, table.to_pylist(), strict=True))
