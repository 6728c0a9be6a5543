"""The registered model's code. MLflow runs this file when the model is loaded; nothing of it is pickled.

Input, as named tensors: `image`, uint8 `(N, C, *S)`, for brains `mask`, uint8 `(N, 1, *S)`, 1 in the brain, and each known
condition under its column's name (`angle_degrees`), float64 `(N, D)` in natural units. Output: the table of
`ScoredSystem.score`, one row an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from normscape.stages.provenance import choose_device
from normscape.stages.system import ScoredSystem

IMAGE, MASK = "image", "mask"
SYSTEM = "system"
"""The artifact that holds the packaged system."""
RECONSTRUCTIONS = "reconstructions"
"""Parameter: whether to add the reconstruction, as nested lists."""


class ScoringModel(PythonModel):
    """Scores images with the packaged system."""

    system: ScoredSystem
    # MLflow would check inputs by type hints, and knows hints of single rows only: it is given none, and checks by the signature.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load the packaged system, on a GPU where there is one."""
        self.system = ScoredSystem.from_package(Path(context.artifacts[SYSTEM]), choose_device("auto"))

    def predict(self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """Score a batch.

        Args:
            context: unused.
            model_input: input name to array, `dict[str, np.ndarray]`.
            params: `reconstructions`.

        Raises:
            DataError: images or conditions are not what the model was made for.
        """
        conditions = {a.name: model_input[a.column or ""] for a in self.system.config.value_attributes}
        wanted = bool((params or {}).get(RECONSTRUCTIONS, False))
        masks = torch.from_numpy(np.array(model_input[MASK])) > 0 if MASK in model_input else None
        table = self.system.score(model_input[IMAGE], conditions, masks=masks, reconstructions=wanted).to_pandas()
        if wanted:
            shape = self.system.image_shape
            table["reconstruction"] = [flat.reshape(shape).tolist() for flat in table["reconstruction"]]
        return table


set_model(ScoringModel())
