"""One Ray of four logical CPUs for all tests of this folder: starting one takes seconds."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from normscape.distributed.cluster import connect


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with 4 logical CPUs, no GPU and a token of its own; the tests share it and leave it running."""
    temp = Path(tempfile.mkdtemp(prefix="ns-ray-", dir="/tmp"))  # sockets need a short path
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # nothing is written to ~/.ray
        with connect("local", cpus=4, gpus=0, object_store_bytes=200_000_000, temp_dir=temp):
            yield
    shutil.rmtree(temp, ignore_errors=True)
