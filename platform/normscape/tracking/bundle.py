"""A scored system as one file, to be carried to another registry.

A bundle is a zip archive of

- `bundle.json`: the registered model's name, the MLflow run that it comes from, normscape's version, and the version's tags;
- `model_card.md`, and `test_scores.parquet`, by which versions are compared;
- `system/`: `config.yaml`, the weights (safetensors), the style space and the detectors (skops and JSON), of brains also
  `cohort.json`; see `normscape.stages.system_files.write_package`;
- `checksums.json`: format, version, and SHA-256 and size of every other file.

Files are stored as they are, in the order of their names and with one fixed date: the same system gives the same bytes on every
machine. `normscape.tracking.unpacking` reads bundles.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import normscape
from normscape.config import Config
from normscape.configio import config_digest, load_config
from normscape.errors import UserError
from normscape.stages.files import read_json
from normscape.stages.system import ScoredSystem
from normscape.stages.system_files import finished_folders, system_digest
from normscape.tracking.model_card import model_card
from normscape.tracking.package import CARD, SYSTEM, TEST_SCORES, fill_package, input_example, log_package
from normscape.tracking.promotion import DECISION_TAG, TestScores
from normscape.tracking.registry import (
    SYSTEM_TAG,
    Publication,
    Registered,
    fetch_model,
    metric_tags,
    mlflow_run,
    model_name,
    publish,
    registered_before,
    run_origin,
    system_tags,
    with_store,
)
from normscape.tracking.runs import NOTE_NAME
from normscape.tracking.store import active_store, default_tracking_uri, experiment_id, open_client, without_password
from normscape.tracking.unpacking import (
    ABOUT,
    CHECKSUMS,
    FORMAT,
    MAX_BYTES,
    VERSION,
    About,
    Bundle,
    BundleError,
    belongs,
    hashed,
    problem_of,
    unpacked,
)

IMPORTED_TAG = "normscape.imported_from"
"""The MLflow run, in another store, that an imported version comes from."""
_LOCAL_TAGS = (DECISION_TAG, IMPORTED_TAG)
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can tell


@dataclass(frozen=True)
class Exported:
    """A bundle that was written."""

    path: Path
    model: str
    files: int
    bytes: int
    sha256: str


def export_run(run_folder: Path, out: Path, *, model: str | None = None) -> Exported:
    """Write the scored system of a finished run as a bundle.

    Args:
        run_folder: `runs/<name>`, finished up to `score` under the configuration that it holds.
        out: the file; one that is there is replaced.
        model: the name it shall have in a registry; `normscape-<experiment>` when empty.

    Raises:
        UserError: a stage is not finished, the system holds something that a bundle may not, or the file cannot be written.
    """
    config = load_config(run_folder / "config.yaml")
    folders = finished_folders(config, run_folder)
    name = model or model_name(config)
    origin = run_origin(config, folders, model=name, run_id=_recorded_as(run_folder, config))
    tags = system_tags(origin, system_digest(folders)) | metric_tags(folders["score"])
    with tempfile.TemporaryDirectory() as folder:
        fill_package(config, folders, model_card(config, folders, origin), Path(folder))
        about = About(model=name, run_id=origin.run_id, normscape_version=normscape.__version__, tags=tags)
        return write_bundle(Path(folder), about, out)


def export_model(uri: str, tracking_uri: str, out: Path) -> Exported:
    """Write a registered model as a bundle.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: the store.
        out: the file; one that is there is replaced.

    Raises:
        UserError: no such model, it holds something that a bundle may not, or the file cannot be written.
    """
    found = fetch_model(uri, tracking_uri)
    tags = {key: value for key, value in found.tags.items() if key.startswith("normscape.") and key not in _LOCAL_TAGS}
    run_id = found.tags.get(IMPORTED_TAG) or found.run_id
    about = About(model=found.name, run_id=run_id, normscape_version=normscape.__version__, tags=tags)
    return write_bundle(found.folder, about, out)


def write_bundle(folder: Path, about: About, out: Path) -> Exported:
    """Write a folder that `fill_package` made as a bundle.

    Args:
        folder: holds the system, its test scores and its card.
        about: what the bundle says of itself.
        out: the file; one that is there is replaced, and only by a whole one.

    Raises:
        UserError: the system holds something that a bundle may not, or the file cannot be written.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, path in files.items():
        if not belongs(name):
            raise UserError(
                f"{name}: a bundle holds configuration, safetensors, skops, JSON and Parquet, nothing that could run code; "
                "a system whose `projection.perceptual` is vgg16 rests on such a file and cannot be exported"
            )
        if found := problem_of(path, MAX_BYTES):
            raise UserError(f"{path}: {found}")
    told = {ABOUT: _json(about.model_dump())}
    sums = {name: hashed(path) for name, path in files.items()} | {name: hashed(text) for name, text in told.items()}
    told[CHECKSUMS] = _json({"format": FORMAT, "version": VERSION, "files": sums})
    aside = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted([*files, *told]):
                _add(archive, name, files.get(name), told.get(name, b""))
        result = Exported(out, about.model, len(files) + len(told), aside.stat().st_size, str(hashed(aside)["sha256"]))
        os.replace(aside, out)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    return result


def import_bundle(path: Path, tracking_uri: str, *, model: str | None = None, max_bytes: int = MAX_BYTES) -> Registered:
    """Check a bundle, load its system once, and register it as a new version with the alias `challenger`.

    A system that is registered already is left as it is. Where anything is wrong, nothing is registered and nothing kept.

    Args:
        path: of the bundle.
        tracking_uri: the store.
        model: name in the registry; the bundle's own when empty.
        max_bytes: most that the bundle may unpack to.

    Raises:
        BundleError: the bundle is damaged, incomplete, too large, or holds what a bundle may not.
        UserError: its system cannot be loaded here, or the store cannot be used.
    """
    with unpacked(path, max_bytes) as bundle:
        columns = _tried(path, bundle)
        name, system = model or bundle.about.model, bundle.about.tags.get(SYSTEM_TAG, "")
        tags = dict(bundle.about.tags) | {IMPORTED_TAG: bundle.about.run_id}
        card = (bundle.folder / CARD).read_text(encoding="utf-8")
        config = bundle.config

        def work() -> Registered:
            client = open_client(tracking_uri)
            if system and (known := registered_before(client, name, system)) is not None:
                return known
            experiment = experiment_id(client, config.name, tracking_uri)
            run_id = client.create_run(experiment, run_name=f"{config.name}-imported", tags=tags).info.run_id
            try:
                client.log_artifact(run_id, str(bundle.folder / SYSTEM / "config.yaml"))
                with active_store(tracking_uri), mlflow_run(run_id):
                    logged = log_package(config, bundle.folder, columns, tags)
                return publish(client, config, logged, Publication(name, run_id, card, tags), tracking_uri)
            except BaseException:
                client.delete_run(run_id)
                raise

        return with_store(tracking_uri, work)


def _tried(path: Path, bundle: Bundle) -> list[str]:
    """Load the system and score its own example, one step deep; names of the columns that come out.

    Raises:
        BundleError: the files are not what their names say.
    """
    config = bundle.config
    if config.projection.perceptual_path is not None:
        raise BundleError(f"{path}: its configuration names a file outside of the bundle (projection.perceptual_path)")
    try:
        TestScores.read(bundle.folder / TEST_SCORES)
        system = ScoredSystem.from_package(bundle.folder / SYSTEM, steps=1)
        example = input_example(config, bundle.folder / SYSTEM / "gan")
        conditions = {a.name: example[a.column or ""] for a in config.value_attributes}
        masks = torch.from_numpy(example["mask"]) > 0 if "mask" in example else None
        return list(system.score(example["image"], conditions, masks=masks).column_names)
    except UserError as error:
        raise BundleError(f"{path}: its system cannot be used: {error}") from error
    except (KeyError, ValueError, RuntimeError, OSError) as error:  # Arrow and torch on files of another kind
        raise BundleError(f"{path}: its system cannot be used: {type(error).__name__}: {error}") from error


def _recorded_as(run_folder: Path, config: Config) -> str:
    """Id of the MLflow run that recorded this run and configuration, in the usual store or else in any."""
    stores: Mapping[str, str] = read_json(run_folder / NOTE_NAME).get(config_digest(config), {})
    usual = without_password(default_tracking_uri(run_folder.parent))
    return stores.get(usual) or next(iter(stores.values()), "not recorded")


def _add(archive: zipfile.ZipFile, name: str, path: Path | None, text: bytes) -> None:
    """Add a file, or a text, with nothing in its entry that differs between machines."""
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    entry.file_size = len(text) if path is None else path.stat().st_size  # tells early whether 64 bits are needed
    with archive.open(entry, "w") as sink:
        if path is None:
            sink.write(text)
            return
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                sink.write(chunk)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
