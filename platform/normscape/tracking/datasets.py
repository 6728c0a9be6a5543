"""The data of a run as MLflow sees it: one dataset a split, with a digest that changes when the data do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from normscape.config import Config

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

SAMPLES_NAME = "samples.parquet"
DIGEST_LENGTH = 16
_TYPES = {"int64": "long", "int32": "integer", "float": "float", "double": "double", "string": "string", "bool": "boolean"}


def data_digest(config: Config, samples: Path) -> str:
    """Digest of the table of samples (who, which split, which values) and of where the images come from.

    Args:
        config: the experiment; its `data` section, image size, channels and dimensions count, the path of a file does not.
        samples: `samples.parquet` of stage `prepare`.
    """
    return _digest(_source(config), pq.read_table(samples))


def dataset_inputs(config: Config, samples: Path) -> list[DatasetInput]:
    """The training and the test samples as dataset inputs, in the contexts `train` and `test`.

    Args:
        config: the experiment.
        samples: `samples.parquet` of stage `prepare`.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    table = pq.read_table(samples)
    source = _source(config)
    schema = {"mlflow_colspec": [_column(field) for field in table.schema]}
    inputs = []
    for split in ("train", "test"):
        part = table.filter(pc.equal(table["split"], split))
        profile = {"num_rows": part.num_rows, "num_subjects": len(set(part["subject"].to_pylist()))}
        dataset = Dataset(
            name=f"{config.data.source}-{split}",
            digest=_digest(source, part),
            source_type="normscape",
            source=json.dumps(source),
            schema=json.dumps(schema),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    return inputs


def _source(config: Config) -> dict[str, Any]:
    """Where the images come from, and how they are made."""
    settings = config.data.model_dump(mode="json", exclude={"path", "root"})
    place = config.data.path or config.data.root
    size = {"image_size": config.image_size, "image_channels": config.image_channels, "dims": config.dims}
    return settings | size | {"file": place.name if place else None}


def _digest(source: dict[str, Any], table: pa.Table) -> str:
    found = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    for name in table.column_names:  # the values, not the file: another writer's bytes are the same data
        found.update(name.encode())
        for value in table[name].to_pylist():
            found.update(repr(value).encode() + b"\n")
    return found.hexdigest()[:DIGEST_LENGTH]


def _column(field: pa.Field) -> dict[str, Any]:
    kind = _TYPES.get(str(field.type), "string")
    if pa.types.is_list(field.type):
        return {"type": "array", "items": {"type": "float"}, "name": field.name, "required": True}
    return {"type": kind, "name": field.name, "required": True}
