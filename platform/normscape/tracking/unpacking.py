"""Reading a bundle that somebody else made: nothing of it is believed before it has been checked.

In this order: every entry of the archive is a plain file that stays in its folder; all of them together keep within the limits;
the list of checksums is of a format that is known here; the files are those of the list, no more and no fewer, and of kinds that
a bundle may hold; each has the size and the SHA-256 of the list, and begins as its kind does. Then the files lie in a temporary
folder, which is removed in the end. Nothing is unpickled and nothing is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from normscape.config import Config
from normscape.configio import load_config
from normscape.datasets.prepared import COHORT_NAME
from normscape.errors import ConfigError, UserError
from normscape.stages.system_files import EXTRAS, PARTS
from normscape.tracking.package import CARD, SYSTEM, TEST_SCORES

FORMAT, VERSION = "normscape-bundle", 1
ABOUT, CHECKSUMS = "bundle.json", "checksums.json"
MAX_BYTES = 4 * 2**30
"""Most that a bundle may unpack to: 4 GiB."""
MAX_FILES = 500
MAX_LIST_BYTES = 2**20
"""Most that `checksums.json` may hold: 1 MiB."""
_REQUIRED = (ABOUT, CARD, TEST_SCORES, f"{SYSTEM}/config.yaml")
_TEXTS = (".json", ".yaml", ".md")
_CHUNK = 1 << 20


class BundleError(UserError):
    """A bundle that is refused; the text says why."""


class About(BaseModel):
    """What a bundle says of itself: `bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(pattern=r"^[\w.\- ]{1,200}$")]
    """Name in the registry."""
    run_id: Annotated[str, Field(max_length=200)]
    """The MLflow run that it comes from, in the store where it was exported."""
    normscape_version: Annotated[str, Field(max_length=50)]
    """That wrote it."""
    tags: dict[Annotated[str, Field(pattern=r"^normscape\.[\w.\-/ ]{1,200}$")], Annotated[str, Field(max_length=5000)]]
    """Of the version in the registry: digests and headline metrics."""


class _Entry(BaseModel):
    """Of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class _Checksums(BaseModel):
    """`checksums.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    version: int
    files: dict[str, _Entry]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        folder: temporary; holds the system, its test scores and its card.
        about: what it says of itself.
        config: of the system.
    """

    folder: Path
    about: About
    config: Config


def belongs(name: str) -> bool:
    """Whether a bundle may hold a file of this name: the fixed ones, and those of the stages that make a system."""
    if name in (*_REQUIRED, f"{SYSTEM}/{COHORT_NAME}"):
        return True
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != SYSTEM:
        return False
    return any(fnmatchcase(parts[2], pattern) for pattern in (PARTS | EXTRAS).get(parts[1], ()))


def hashed(source: Path | bytes) -> dict[str, str | int]:
    """SHA-256, as hex, and size in bytes."""
    digest, size = hashlib.sha256(), 0
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


def problem_of(path: Path, max_bytes: int) -> str:
    """Why a file is not what its name says; empty where it is.

    A safetensors file begins with the length of its JSON header, Parquet with its mark, a text is UTF-8, and a skops file is an
    archive of arrays and JSON, within the limit and without a pickle in it.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix == ".safetensors":
        return "" if head[8:9] == b"{" else "is no safetensors file; a pickle, perhaps, which is never read"
    if path.suffix == ".parquet":
        return "" if head[:4] == b"PAR1" else "is no Parquet file"
    if path.suffix == ".skops":
        return _problem_of_skops(path, max_bytes)
    if path.suffix in _TEXTS:
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return "is no text"
    return ""


def _problem_of_skops(path: Path, max_bytes: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return "is no skops file; a pickle, perhaps, which is never read"
    pickled = [entry.filename for entry in entries if entry.filename.endswith((".pkl", ".pickle"))]
    if pickled or "schema.json" not in (entry.filename for entry in entries):
        return f"holds a pickle ({pickled[0]})" if pickled else "is no skops file"
    return "unpacks to more than the limit" if sum(entry.file_size for entry in entries) > max_bytes else ""


@contextmanager
def unpacked(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[Bundle]:
    """Check a bundle and unpack it for a while.

    Args:
        path: of the bundle.
        max_bytes: most that it may unpack to.

    Raises:
        BundleError: it is damaged, incomplete, too large, or holds what a bundle may not.
    """
    with tempfile.TemporaryDirectory(prefix="normscape-bundle-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                _unpack(archive, folder, max_bytes)
        except FileNotFoundError as error:
            raise BundleError(f"{path}: no such file") from error
        except BundleError as error:
            raise BundleError(f"{path}: {error}; nothing was imported") from error
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise BundleError(f"{path}: not a readable zip archive ({error}); nothing was imported") from error
        try:
            about = About.model_validate_json((folder / ABOUT).read_bytes())
        except ValidationError as error:
            raise BundleError(f"{path}: {ABOUT}: {_first(error)}; nothing was imported") from error
        yield Bundle(folder, about, _config(path, folder, about))


def _config(path: Path, folder: Path, about: About) -> Config:
    """The configuration, which inherits from no other file."""
    file = folder / SYSTEM / "config.yaml"
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(told, dict) and "base" in told:
            raise BundleError(f"{path}: its configuration inherits from a file outside of the bundle; nothing was imported")
        return load_config(file)
    except (ConfigError, yaml.YAMLError, RecursionError) as error:
        reason = "\n".join(str(error).replace(f"{folder}/", "").splitlines()[:3])
        raise BundleError(f"{path}: made for another version of normscape ({about.normscape_version}): {reason}") from error


def _unpack(archive: zipfile.ZipFile, folder: Path, max_bytes: int) -> None:
    """Every check that needs no knowledge of what the files mean."""
    entries = _entries(archive, max_bytes)
    listed = _checksums(archive, entries)
    there, wanted = set(entries) - {CHECKSUMS}, set(listed)
    for names, what in ((there - wanted, "not in its list"), (wanted - there, "missing"), (set(_REQUIRED) - wanted, "missing")):
        if names:
            raise BundleError(f"{', '.join(sorted(names)[:3])}: {what}, {len(names)} in all")
    for name in sorted(wanted):
        if not belongs(name):
            raise BundleError(f"{name}: a bundle holds no such file; pickles and code are never read")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entries[name]) as source, target.open("wb") as sink:
            found = _copy(source, sink, listed[name].bytes)
        if found != listed[name].model_dump():
            raise BundleError(f"{name}: its checksum is wrong; the bundle is damaged, or somebody changed it")
        if problem := problem_of(target, max_bytes):
            raise BundleError(f"{name}: {problem}")


def _entries(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """All entries by name: plain files that stay in their folder, and not too many or too large."""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or name.rstrip("/") != str(path):
            raise BundleError(f"{name}: its path leads out of the bundle")
        if entry.is_dir() or stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BundleError(f"{name}: no plain file, but a link or a folder")
        if name in found:
            raise BundleError(f"{name}: stands twice")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"{name}: encrypted, or packed in a way that bundles are not")
        found[name] = entry
    total = sum(entry.file_size for entry in found.values())
    if total > max_bytes or len(found) > MAX_FILES:
        size = f"{total / 2**30:.1f} GiB in {len(found)} files"
        raise BundleError(f"too large: {size}; a bundle holds at most {max_bytes / 2**30:g} GiB in {MAX_FILES} files")
    return found


def _checksums(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, _Entry]:
    """The list of files, of a format that is known here."""
    entry = entries.get(CHECKSUMS)
    if entry is None:
        raise BundleError(f"no bundle of normscape: {CHECKSUMS} is missing")
    if entry.file_size > MAX_LIST_BYTES:
        raise BundleError(f"{CHECKSUMS}: larger than {MAX_LIST_BYTES // 2**20} MiB")
    try:
        told: Any = json.loads(archive.read(entry))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{CHECKSUMS}: not readable ({error})") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise BundleError(f"no bundle of normscape: {CHECKSUMS} does not say `{FORMAT}`")
    if told.get("version") != VERSION:
        raise BundleError(f"format version {told.get('version')}; this normscape knows version {VERSION}: update it")
    try:
        return _Checksums.model_validate(told).files
    except ValidationError as error:
        raise BundleError(f"{CHECKSUMS}: {_first(error)}") from error


def _copy(source: IO[bytes], sink: IO[bytes], most: int) -> dict[str, str | int]:
    """Copy, and tell SHA-256 and size; no more than one chunk beyond what was announced."""
    digest, size = hashlib.sha256(), 0
    while size <= most and (chunk := source.read(_CHUNK)):
        digest.update(chunk)
        size += len(chunk)
        sink.write(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _first(error: ValidationError) -> str:
    """Where the first problem lies and what it is."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}"
