"""Stage `prepare`: which images there are, and which subjects are for training and which for the test (thesis III.A.1, III.B.1).

Writes:

- `samples.parquet`, one row an image: sample_id (int64, position in the data set), subject (text), subject_index (int64), split
  (train | test | unused), and the value columns in natural units (`angle_degrees`; `position_mm` is a list x, y, z);
- `split.json`: the seed, how many samples there are, the subjects of each split, and of a brain the cohort's name;
- of a brain also `patches.parquet` and `contrast.parquet` (see `normscape.datasets.patches`).

The images themselves stay where they come from (the cache of rendered chairs, the RC-49 file, the volumes of a prepared cohort);
later stages read them through `open_samples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from normscape.config import Config
from normscape.datasets.cohort import split_subjects as split_stratified
from normscape.datasets.patches import PatchSource
from normscape.datasets.samples import SampleSet, Split, load_samples, split_subjects
from normscape.errors import DataError
from normscape.stages.core import StageContext
from normscape.stages.files import read_json, write_json
from normscape.training.recorder import Recorder

SPLITS = ("train", "test", "unused")


def run(context: StageContext) -> dict[str, float]:
    """Load the samples, split their subjects, and write both down.

    Raises:
        DataError: the samples do not fit the configuration, or there are too few subjects.
    """
    config = context.config
    samples = _load(config, context.folder, recorder=context.recorder)
    _check_samples(samples, config)
    try:
        split = _split(samples, config)
    except DataError as error:
        where = config.data.path or config.data.root or config.data.source
        raise DataError(f"{where}: {error} (data.train_subjects, data.test_subjects)") from error
    code = np.full(len(samples.subjects), SPLITS.index("unused"))
    code[list(split.train)] = SPLITS.index("train")
    code[list(split.test)] = SPLITS.index("test")
    of_sample = code[samples.subject.numpy()]
    _write_samples(context.folder / "samples.parquet", samples, of_sample)
    names = {name: [s for s, c in zip(samples.subjects, code, strict=True) if SPLITS[c] == name] for name in SPLITS}
    described: dict[str, Any] = {
        "seed": config.seed,
        "source": config.data.source,
        "samples": len(samples),
        "subjects": list(samples.subjects),
    }
    if isinstance(samples.images, PatchSource):
        described["cohort"] = samples.images.cohort.name
    write_json(context.folder / "split.json", described | names)
    metrics = {f"{name}_subjects": float(len(names[name])) for name in SPLITS}
    return metrics | {f"{name}_samples": float((of_sample == i).sum()) for i, name in enumerate(SPLITS)}


def open_samples(context: StageContext) -> tuple[SampleSet, SampleSet]:
    """The samples of the training and of the test subjects, as stage `prepare` split them.

    Raises:
        DataError: the data are not those that were split.
    """
    folder = context.inputs["prepare"]
    samples = open_prepared(context.config, folder)
    split = read_json(folder / "split.json")
    index = {name: i for i, name in enumerate(samples.subjects)}
    wanted = [torch.tensor([index[name] for name in split[part]]) for part in ("train", "test")]
    train, test = (samples.select(torch.isin(samples.subject, part).nonzero().squeeze(1)) for part in wanted)
    return train, test


def open_prepared(config: Config, folder: Path) -> SampleSet:
    """All samples, as stage `prepare` saw them; images stay on the disk where the source can be memory-mapped.

    Args:
        config: the experiment.
        folder: the finished folder of stage `prepare`.

    Raises:
        DataError: the data are not those that were split.
    """
    split = read_json(folder / "split.json")
    samples = _load(config, folder, learn_from=split.get("train"))
    if list(samples.subjects) != split.get("subjects") or len(samples) != split.get("samples"):
        raise DataError(
            f"the data changed since {folder} was made: it holds {split.get('samples')} samples of "
            f"{len(split.get('subjects', []))} subjects, now there are {len(samples)} of {len(samples.subjects)}; "
            "run again with `--from prepare`"
        )
    return samples


def _load(
    config: Config, folder: Path, *, learn_from: Sequence[str] | None = None, recorder: Recorder | None = None
) -> SampleSet:
    unit = "scan" if config.data.source == "brain" else "image"
    progress = None if recorder is None else lambda done, total: recorder.progress(done, total, unit)
    return load_samples(config.data, config.image_size, seed=config.seed, folder=folder, learn_from=learn_from, progress=progress)


def _split(samples: SampleSet, config: Config) -> Split:
    """By subject; of a brain with the same shares of sites and ages in both parts."""
    train, test, seed = config.data.train_subjects, config.data.test_subjects, config.seed
    if not isinstance(samples.images, PatchSource):
        return split_subjects(samples.subjects, train, test, seed)
    place = {name: i for i, name in enumerate(samples.subjects)}
    table = samples.images.cohort.subjects.select(["subject", "age_years", "site"]).to_pylist()
    scans = [row for row in table if row["subject"] in place]
    columns = ([row[name] for row in scans] for name in ("subject", "age_years", "site"))
    parts = split_stratified(*columns, train=train, test=test, seed=seed)
    first, second = (tuple(sorted(place[name] for name in part)) for part in parts)
    return Split(train=first, test=second)


def _check_samples(samples: SampleSet, config: Config) -> None:
    """Whether images and values are what the configuration says."""
    expected = (config.image_channels, *[config.image_size] * config.dims)
    found = samples.images.shape
    if found != expected:
        asked = f"the configuration asks for {expected} (image_channels, then image_size for each of dims)"
        raise DataError(f"source {config.data.source} gives images of shape {found}, {asked}")
    for attribute in config.value_attributes:
        column = attribute.column or ""
        if column not in samples.values:
            known = ", ".join(samples.values) or "no columns"
            raise DataError(f"attributes.{attribute.name}.column: source {config.data.source} has no `{column}`; it has {known}")
        width = samples.values[column].shape[1]
        if width != attribute.output_dim:
            found_width = f"column `{column}` has {width} values, not {attribute.output_dim}"
            raise DataError(f"attributes.{attribute.name}.output_dim: {found_width}")


def _write_samples(path: Path, samples: SampleSet, split: np.ndarray) -> None:
    """Write the table; columns with more than one value a sample become lists."""
    subject = samples.subject.numpy()
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array(samples.sample_id.numpy(), pa.int64()),
        "subject": pa.array(np.asarray(samples.subjects, dtype=object)[subject], pa.string()),
        "subject_index": pa.array(subject, pa.int64()),
        "split": pa.array(np.asarray(SPLITS, dtype=object)[split], pa.string()),
    }
    for name, values in samples.values.items():
        array = values.numpy()
        width = array.shape[1]
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        ends = pa.array(np.arange(0, len(flat) + 1, width, dtype=np.int32))
        columns[name] = flat if width == 1 else pa.ListArray.from_arrays(ends, flat)
    pq.write_table(pa.table(columns), path)
