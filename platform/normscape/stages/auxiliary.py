"""Stage `auxiliary`: train one network an attribute and measure it (thesis III.A.3a; table III, figure 4).

Writes:

- `<attribute>.safetensors`;
- `triplets.parquet`: split, separated, separated_by_margin (shares in [0, 1]), n;
- `distances.parquet`: attribute, split, pair (same | different), distance in [0, 1];
- `value_errors.parquet`: attribute, split, mean_absolute_error (of a vector the mean Euclidean distance), unit, and the same in
  voxels where the unit is mm and the data has a spacing. What augmentation draws is read from augmented images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.stages.core import StageContext
from normscape.stages.prepare import open_samples
from normscape.training.auxiliary import EmbeddingQuality, embedding_quality, train_auxiliary, value_error
from normscape.training.checkpoint import TrainingState, save_module
from normscape.training.communicator import Communicator

TRIPLETS = 4000
"""Random triplets, or values, a split."""
VALUE_ERRORS = pa.schema(
    [
        ("attribute", pa.string()),
        ("split", pa.string()),
        ("mean_absolute_error", pa.float64()),
        ("unit", pa.string()),
        ("voxels", pa.float64()),
    ]
)


def run(context: StageContext) -> dict[str, float]:
    """Train and measure every attribute's network."""
    metrics = finish(context, train(context))
    clear(context)
    return metrics


def train(
    context: StageContext, communicator: Communicator | None = None, saved: Callable[[int], None] = lambda step: None
) -> dict[str, AuxiliaryNetwork]:
    """Train every attribute's network from its newest checkpoint; every worker calls it.

    Args:
        context: of the stage.
        communicator: the workers that share each batch.
        saved: called by every worker when a checkpoint of any network is complete, with its step.

    Returns:
        The frozen networks by attribute.
    """
    samples, _ = open_samples(context)
    return {
        attribute.name: train_auxiliary(
            attribute,
            context.config,
            samples,
            folder=context.folder / "checkpoints" / attribute.name,
            digest=context.key,
            device=context.device,
            recorder=context.recorder,
            communicator=communicator,
            saved=saved,
        )
        for attribute in context.config.attributes
    }


def finish(context: StageContext, networks: Mapping[str, AuxiliaryNetwork]) -> dict[str, float]:
    """Write what was trained, and measure it on both splits."""
    config, device = context.config, context.device
    train_samples, test_samples = open_samples(context)
    quality: dict[tuple[str, str], EmbeddingQuality] = {}
    errors: list[dict[str, object]] = []
    metrics: dict[str, float] = {}
    for attribute in config.attributes:
        network = networks[attribute.name]
        save_module(network, context.folder / f"{attribute.name}.safetensors")
        for split, samples in {"train": train_samples, "test": test_samples}.items():
            if attribute.kind == "embedding":
                measured = embedding_quality(network, samples, triplets=TRIPLETS, seed=config.seed, split=split, device=device)
                quality[attribute.name, split] = measured
                metrics |= {
                    f"{split}_separated": measured.separated,
                    f"{split}_separated_by_margin": measured.separated_by_margin,
                }
            else:
                error = value_error(network, samples, count=TRIPLETS, seed=config.seed, split=split, device=device)
                row = {"attribute": attribute.name, "split": split, "mean_absolute_error": error, "unit": attribute.unit}
                metrics[f"{split}_{attribute.name}_error"] = error
                if attribute.unit == "mm" and config.data.source == "brain":
                    voxels = error / config.data.spacing_mm
                    row["voxels"] = metrics[f"{split}_{attribute.name}_error_voxels"] = voxels
                errors.append(row)
    write_quality(context, quality)
    pq.write_table(pa.Table.from_pylist(errors, schema=VALUE_ERRORS), context.folder / "value_errors.parquet")
    return metrics


def clear(context: StageContext) -> None:
    """Let go of the checkpoints, when the results are written."""
    for attribute in context.config.attributes:
        TrainingState.clear(context.folder / "checkpoints" / attribute.name)


def write_quality(context: StageContext, quality: dict[tuple[str, str], EmbeddingQuality]) -> None:
    """Write `triplets.parquet` and `distances.parquet` for (attribute, split) pairs."""
    triplets = [
        {"split": split, "separated": q.separated, "separated_by_margin": q.separated_by_margin, "n": len(q.distance_same)}
        for (_, split), q in quality.items()
    ]
    pq.write_table(pa.Table.from_pylist(triplets), context.folder / "triplets.parquet")
    columns: dict[str, list[object]] = {"attribute": [], "split": [], "pair": [], "distance": []}
    for (attribute, split), q in quality.items():
        for pair, distance in (("same", q.distance_same), ("different", q.distance_different)):
            n = len(distance)
            columns["attribute"] += [attribute] * n
            columns["split"] += [split] * n
            columns["pair"] += [pair] * n
            columns["distance"] += distance.tolist()
    pq.write_table(pa.table(columns), context.folder / "distances.parquet")
