"""The script that packs the atlas, run on small files made here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "assets" / "pack_atlas.py"


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_atlas", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_atlas"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(pack: ModuleType, tmp_path: Path) -> Path:
    """A head, and its brain stored the other way round, with a fourth axis of one."""
    head = np.random.default_rng(0).integers(100, 900, (12, 10, 8)).astype(np.int16)
    brain = np.zeros_like(head)
    brain[3:9, 2:8, 2:6] = head[3:9, 2:8, 2:6]
    image = nib.Nifti1Image(head, np.eye(4))
    nib.save(image, tmp_path / pack.HEAD)
    turned = nib.Nifti1Image(brain, np.eye(4)).as_reoriented(nib.orientations.axcodes2ornt(("L", "A", "S")))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj)[..., None], turned.affine), tmp_path / pack.BRAIN)
    return tmp_path


def test_the_asset(pack: ModuleType, source: Path, tmp_path: Path) -> None:
    """In RAS, 8 bits, the brain 1 to 255; the notice names authors, licence and changes; the same bytes again."""
    path = pack.write(source, tmp_path / "out")
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    assert values.dtype == np.uint8
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.array_equal(np.argwhere(values).min(0), [3, 2, 2])
    assert (values[3:9, 2:8, 2:6].min() >= 1, values.max()) == (True, 255)
    notice = (tmp_path / "out" / "ATLAS_ATTRIBUTION.md").read_text()
    assert all(word in notice for word in ("Rohlfing", "CC BY-SA", "Changes", "12 x 10 x 8"))
    assert pack.write(source, tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_brain_that_lies_elsewhere_is_refused(pack: ModuleType, source: Path, tmp_path: Path) -> None:
    head = nib.load(source / pack.HEAD)
    mirrored = head.get_fdata()[::-1].astype(np.int16)  # a copy: the file is mapped into memory
    nib.save(nib.Nifti1Image(mirrored, head.affine), source / pack.HEAD)
    with pytest.raises(SystemExit, match="does not lie on the brain"):
        pack.write(source, tmp_path / "out")
