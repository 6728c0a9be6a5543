"""Draw the pictures of the pages: `python -m infra.docs.pictures [NAME ...]`, from the root of the repository.

All when none is named. Nothing but simulated brains, rendered chairs, pages in a browser and diagrams. Pictures are committed;
`make docs-pictures` draws them anew. One that shows a run which is not there is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from infra.docs.pictures import architecture, charts, drawn, fitted, guides, pages, rebuilt
from normscape.errors import UserError

IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
PICTURES: dict[str, Callable[[Path], None]] = {
    "design-layers-stages": architecture.design,
    "cluster-who-runs-what": architecture.cluster,
    "registry-life": architecture.registry,
    "method-subspaces": architecture.method,
    "evaluation-roles": guides.roles,
    "sweeps-trials": guides.sweeps,
    "own-attribute-path": guides.attribute,
    "own-detector-places": guides.detector,
    "scaling-hours": charts.scaling,
    "conditional-density": charts.density,
    "conditional-rebuilt": rebuilt.conditional,
    "anomalies-chairs": drawn.chair_families,
    "data-simulated-scans": drawn.prepared_scans,
    "detectors-chairs": fitted.without_gradients,
    "baselines-neural-chairs": fitted.with_gradients,
    "notebook-map-simulated": drawn.notebook_map,
    "page-viewer-simulated": pages.viewer,
    "explorer-chairs": pages.explorer,
}
"""Name of the file, without its ending, to what draws it."""


def main(names: list[str]) -> int:
    """Draw the named pictures; 2 where there is none of such a name, or one of them cannot be drawn."""
    unknown = sorted(set(names) - set(PICTURES))
    if unknown:
        sys.stderr.write(f"no such picture: {', '.join(unknown)}; there are {', '.join(PICTURES)}\n")
        return 2
    missed = False
    for name in names or PICTURES:
        path = IMAGES / f"{name}.png"
        try:
            PICTURES[name](path)
        except UserError as error:
            sys.stderr.write(f"{path.name} is left as it is: {error}\n")
            missed = True
            continue
        sys.stdout.write(f"{path.name}  {path.stat().st_size // 1000} kB\n")
    return 2 if names and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
