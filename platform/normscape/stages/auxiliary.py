"""Stage `auxiliary`: train one network an attribute and measure it (thesis III.A.3a; table III, figure 4).

Writes:

- `<attribute>.safetensors`;
- `triplets.parquet`: split, separated, separated_by_margin (shares in [0, 1]), n;
- `distances.parquet`: attribute, split, pair (same | different), distance in [0, 1];
- `value_errors.parquet`: attribute, split, mean_absolute_error, unit.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from normscape.stages.core import StageContext
from normscape.stages.prepare import open_samples
from normscape.training.auxiliary import EmbeddingQuality, embedding_quality, train_auxiliary, value_error
from normscape.training.checkpoint import TrainingState, save_module

TRIPLETS = 4000
"""Random triplets, or values, a split."""


def run(context: StageContext) -> dict[str, float]:
    """Train and measure every attribute's network."""
    config, device = context.config, context.device
    train, test = open_samples(context)
    splits = {"train": train, "test": test}
    quality: dict[tuple[str, str], EmbeddingQuality] = {}
    errors: list[dict[str, object]] = []
    metrics: dict[str, float] = {}
    checkpoints = context.folder / "checkpoints"
    for attribute in config.attributes:
        network = train_auxiliary(
            attribute,
            config,
            train,
            folder=checkpoints / attribute.name,
            digest=context.key,
            device=device,
            recorder=context.recorder,
        )
        save_module(network, context.folder / f"{attribute.name}.safetensors")
        for split, samples in splits.items():
            if attribute.kind == "embedding":
                measured = embedding_quality(network, samples, triplets=TRIPLETS, seed=config.seed, split=split, device=device)
                quality[attribute.name, split] = measured
                metrics |= {
                    f"{split}_separated": measured.separated,
                    f"{split}_separated_by_margin": measured.separated_by_margin,
                }
            else:
                error = value_error(network, samples, count=TRIPLETS, seed=config.seed, split=split, device=device)
                errors.append({"attribute": attribute.name, "split": split, "mean_absolute_error": error, "unit": attribute.unit})
                metrics[f"{split}_{attribute.name}_error"] = error
    write_quality(context, quality)
    schema = pa.schema(
        [("attribute", pa.string()), ("split", pa.string()), ("mean_absolute_error", pa.float64()), ("unit", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist(errors, schema=schema), context.folder / "value_errors.parquet")
    for attribute in config.attributes:
        TrainingState.clear(checkpoints / attribute.name)
    return metrics


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
