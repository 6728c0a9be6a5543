"""Dropped files: a folder each, named at random; what a file was called is for the eye alone."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from normscape.errors import DataError, UserError

NAME_LENGTH = 80
SUFFIXES = (".nii.gz", ".nii")
_ROOM_BYTES = 256 << 20
"""What a disk must have left beside a file, for its maps."""


class Full(UserError):
    """There is no room for another file."""


@dataclass
class Upload:
    """One dropped file.

    Attributes:
        id: random; the name of its folder.
        owner: session that brought it.
        name: what it was called, cleaned, for display.
        folder: holds the file and all that is made of it.
        path: of the file; its name is ours.
        whole: all of it is there, it is a scan, and nobody has deleted it.
    """

    id: str
    owner: str
    name: str
    folder: Path
    path: Path
    whole: bool = False


class Storage:
    """Folders for dropped files.

    Args:
        folder: where they go; a folder of the system's own for temporary files, removed by `close`, when None.
        most: files at once, of all sessions together.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | None, *, most: int) -> None:
        self.is_kept = folder is not None
        try:
            if folder is None:
                self.folder = Path(mkdtemp(prefix="normscape-explore-"))
            else:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.folder = folder.resolve()
        except OSError as error:
            raise UserError(f"--folder {folder or 'for temporary files'}: cannot be made: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UserError(f"--folder {self.folder}: cannot be written")
        self.most = most
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    @contextmanager
    def receive(self, owner: str, name: str, size: int) -> Iterator[Upload]:
        """A place for a file that arrives; it is gone again when the block raises.

        Args:
            owner: session that brings it.
            name: as the person's machine calls it.
            size: bytes that are expected.

        Raises:
            DataError: not called like a NIfTI file.
            Full: as many files as there may be, or a full disk.
        """
        shown = clean_name(name)
        suffix = next((s for s in SUFFIXES if shown.lower().endswith(s)), None)
        if suffix is None:
            raise DataError(f"{shown}: expected a NIfTI file, .nii or .nii.gz")
        with self._lock:
            if len(self._uploads) >= self.most:
                raise Full(f"there are {self.most} scans already, as many as this page keeps; delete one first")
            if shutil.disk_usage(self.folder).free < size + _ROOM_BYTES:
                raise Full("the disk of this machine is full")
            upload = self._make(owner, shown, suffix)
        try:
            yield upload
        except BaseException:
            self.remove(upload)
            raise
        upload.whole = True

    def _make(self, owner: str, shown: str, suffix: str) -> Upload:
        number = secrets.token_hex(16)
        folder = self.folder / number
        folder.mkdir(mode=0o700)
        upload = Upload(number, owner, shown, folder, folder / f"scan{suffix}")
        self._uploads[number] = upload
        return upload

    def find(self, owner: str, number: str) -> Upload | None:
        """A session's own file; None for those of others, too."""
        with self._lock:
            return self._find(owner, number)

    def _find(self, owner: str, number: str) -> Upload | None:
        found = self._uploads.get(number)
        return found if found is not None and found.owner == owner and found.whole else None

    def hide(self, owner: str, number: str) -> Upload | None:
        """Like `find`, for whoever deletes the file: from here on nobody finds it, not even who asks at the same moment."""
        with self._lock:
            found = self._find(owner, number)
            if found is not None:
                found.whole = False
            return found

    def owned(self, owner: str) -> list[Upload]:
        """All files of a session, the first one first."""
        with self._lock:
            return [upload for upload in self._uploads.values() if upload.owner == owner and upload.whole]

    def remove(self, upload: Upload) -> None:
        """Delete a file and all that was made of it."""
        with self._lock:
            self._uploads.pop(upload.id, None)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def close(self) -> None:
        """Delete everything; in a folder of the user's own only what was to be deleted, and what never was a scan."""
        for upload in list(self._uploads.values()):
            if not upload.whole:
                self.remove(upload)
        if not self.is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def clean_name(name: str) -> str:
    """A file name that can be shown: no folders, no control or direction marks, not too long; its ending stays."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] not in "CZ" or c == " ").strip()
    if not plain.strip("."):
        return "scan"
    if len(plain) <= NAME_LENGTH:
        return plain
    suffix = next((s for s in SUFFIXES if plain.lower().endswith(s)), "")
    return plain[: NAME_LENGTH - len(suffix) - 1] + "…" + suffix
